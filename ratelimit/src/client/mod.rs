//! The layer that asks a rate limit service before a request goes on: Envoy's
//! `envoy.filters.http.ratelimit`.
//!
//! - [`raw`]: the configuration, field for field Envoy's.
//! - [`filter`]: the same checked and compiled: [`Filter`], [`PerRoute`].
//! - [`action`]: from a request to the entries of a descriptor.
//! - [`policy`]: which descriptors, and on which routes.
//! - [`request`]: the call's message.
//! - [`answer`]: what a service's answer does to request and response.
//! - [`ratelimit_headers`]: the `x-ratelimit-*` headers.
//! - [`layer`]: the tower layer; `ending`: the call when the exchange is over.

pub mod action;
pub mod answer;
mod ending;
pub mod filter;
pub mod headers;
pub mod layer;
pub mod policy;
pub mod ratelimit_headers;
pub mod raw;
pub mod request;
mod stats;

pub use filter::{Filter, PerRoute};
pub use layer::{RateLimitLayer, RateLimitService};
pub use policy::{RouteLimits, Settings, StagedPolicies};
pub use raw::{RateLimit, RateLimitPerRoute};
