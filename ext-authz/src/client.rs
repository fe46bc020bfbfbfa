//! The calling end: a `tower` layer that asks an auth service before each request.
//!
//! Behaves like Envoy 1.40's filter of the same name. [`config`] is what is written,
//! [`plan`] what runs; [`encode`], [`answer`] and [`apply`] are pure: request head to check,
//! answer to verdict, verdict to changes. [`layer`] joins them with I/O.

pub mod answer;
pub mod apply;
mod body;
pub mod config;
pub mod encode;
pub mod layer;
pub mod plan;
pub mod query;
mod stats;
#[cfg(test)]
mod tests;

pub use config::{ExtAuthz as ExtAuthzConfig, ExtAuthzPerRoute};
pub use layer::{ExtAuthz, ExtAuthzLayer};
pub use plan::{Filter, PerRoute};
