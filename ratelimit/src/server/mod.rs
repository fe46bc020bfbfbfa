//! The rate limit service: Envoy's `envoy.service.ratelimit.v3.RateLimitService`, a drop-in for the
//! reference service.
//!
//! - [`settings`]: what a server is started with.
//! - [`service`]: the server: rules, store, reload, gRPC.

pub mod service;
pub mod settings;
mod statistics;

pub use service::RateLimitServer;
pub use settings::{Settings, SettingsError, StoreSettings};
