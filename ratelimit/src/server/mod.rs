//! The rate limit service: Envoy's `envoy.service.ratelimit.v3.RateLimitService`, a drop-in for the
//! reference service.
//!
//! - [`settings`]: what a server is started with.
//! - [`service`]: the server: rules, store, reload, gRPC.
//! - [`admin`]: pages about limits and counters.
//! - [`answers`]: headers and dynamic metadata of responses.
//! - [`rule_source`], [`runtime_directory`]: where the rules come from.
//! - [`environment`]: the reference's environment variables.
//! - [`http`]: the reference's HTTP endpoints.
//! - [`health`]: whether the service is healthy, as the reference has it.
//! - [`json`]: requests and responses as JSON.
//! - [`sink`]: where statistics go.
//! - [`quota`]: the quota service: proxies count for themselves.
//! - [`xds`]: rules from a control plane.

pub mod admin;
pub mod answers;
pub mod environment;
pub mod health;
pub mod http;
pub mod json;
pub mod quota;
mod response;
pub mod rule_source;
pub mod runtime_directory;
pub mod service;
pub mod settings;
pub mod sink;
mod statistics;
pub mod xds;

pub use answers::{Answers, ResponseHeaders};
pub use environment::Environment;
pub use rule_source::RuleSource;
pub use runtime_directory::RuntimeDirectory;
pub use service::{RateLimitServer, ServerSettings};
pub use settings::{Settings, StoreSettings};
pub use statistics::StatisticsSource;
