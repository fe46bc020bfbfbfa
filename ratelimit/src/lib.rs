//! Rate limiting for Envoy-style proxies: a drop-in rate limit service, the limiter as a library,
//! the layer that asks such a service, and one that needs none.
//!
//! - [`client`]: the layer that asks a rate limit service.
//! - [`config`]: the rule language (domains, descriptors, limits).
//! - [`limiter`]: decisions: rules, windows, counts.
//! - [`local`]: a layer that asks no service, but the limiter of this process.
//! - [`server`]: the rate limit service.
//! - [`store`]: where counters live: in memory or in Redis.

pub mod client;
pub mod config;
pub mod limiter;
pub mod local;
pub mod server;
pub mod store;

pub use config::{Limit, Rules};
pub use limiter::Limiter;
pub use server::RateLimitServer;
