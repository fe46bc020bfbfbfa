//! A small, fast proxy: listener, route, policy layers, upstream.
//!
//! - [`config`]: the configuration file, as written.
//! - [`export`]: the same in Envoy's language.
//! - [`plan`]: what a proxy runs, validated and immutable.
//! - [`route`]: picking the route of a request.
//! - [`retry`]: when a request is sent again.
//! - [`filters`]: the stack of policies around the upstream.
//! - [`path`]: path normalisation.
//! - [`access_log`]: the JSON access log.
//!
//! [`Proxy::start`] runs a [`Plan`]; [`Running`] reloads and stops it.

pub mod access_log;
mod activity;
mod attempts;
mod body;
pub mod config;
mod connection;
mod edge;
pub mod export;
mod extended_connect;
pub mod filters;
mod framing;
mod hygiene;
mod internal_redirect;
pub mod path;
pub mod plan;
mod policies;
pub mod retry;
pub mod route;
mod router;
mod running;
mod socket;
mod stats;
mod tunnel;
mod unread;
mod upstream;
mod worker;

pub use config::Config;
pub use hygiene::ForwardOptions;
pub use plan::Plan;
pub use running::{Proxy, Running, StartError};
