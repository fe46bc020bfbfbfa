//! Rate limiting for Envoy-style proxies: a drop-in rate limit service, the limiter as a library,
//! and the layer that asks such a service.
//!
//! - [`client`]: the layer that asks a rate limit service.
//! - [`config`]: the rule language (domains, descriptors, limits).
//! - [`limiter`]: decisions: rules, windows, counts.
//! - [`server`]: the rate limit service.
//! - [`store`]: where counters live: in memory or in Redis.

pub mod client;
pub mod config;
pub mod limiter;
pub mod server;
pub mod store;

pub use config::{Limit, Rules};
pub use limiter::Limiter;
pub use server::RateLimitServer;
