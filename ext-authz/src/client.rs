//! The calling end: a `tower` layer that asks an auth service before each request.
//!
//! Behaves like Envoy 1.40's filter of the same name. [`config`] is what is written,
//! [`plan`] what runs; [`encode`], [`answer`], [`apply`] and [`http`] are pure: request head to
//! check, answer to verdict, verdict to changes, and the same for services without gRPC.
//! [`layer`] joins them with I/O.

mod act;
pub mod answer;
pub mod apply;
mod ask;
mod body;
pub mod config;
pub mod encode;
pub mod http;
pub mod layer;
mod log;
pub mod plan;
pub mod query;
mod shown;
mod stats;
#[cfg(test)]
mod tests;

pub use act::METADATA_NAMESPACE;
pub use config::{ExtAuthz as ExtAuthzConfig, ExtAuthzPerRoute};
pub use layer::{ExtAuthz, ExtAuthzLayer};
pub use plan::{Filter, PerRoute};
