//! A small, fast proxy: listener, route, policy layers, upstream.
//!
//! - [`config`]: the configuration file, as written.
//! - [`export`]: the same in Envoy's language.
//! - [`import`]: Envoy's configuration in ours.
//! - [`plan`]: what a proxy runs, validated and immutable.
//! - [`route`]: picking the route of a request.
//! - [`retry`]: when a request is sent again.
//! - [`filters`]: the stack of policies around the upstream.
//! - [`path`]: path normalisation.
//! - [`local_reply`]: what the proxy's own answers look like.
//! - [`proxy_protocol`]: what load balancers say of connections that they pass on.
//! - [`tcp`]: connections that are passed on as they are.
//! - [`server_names`]: what belongs to the name that a TLS client asks for.
//! - [`access_log`]: access logs.
//! - [`status`]: what runs, to be looked at.
//! - [`trace`]: which requests are traced, and their spans.
//! - [`live`]: the last requests, for people who watch.
//!
//! [`Proxy::start`] runs a [`Plan`]; [`Running`] reloads and stops it.

pub mod access_log;
mod activity;
mod ahead;
mod attempts;
mod bell;
mod body;
mod client_cert;
mod client_hello;
pub mod config;
mod connection;
mod drain;
mod edge;
pub mod export;
mod extended_connect;
pub mod filters;
mod framing;
mod grpc_web;
mod header_blocks;
mod http1;
mod hygiene;
pub mod import;
mod internal_redirect;
pub mod live;
pub mod local_reply;
mod mirror;
mod opening;
mod overload;
pub mod path;
pub mod plan;
mod policies;
pub mod proxy_protocol;
pub mod retry;
pub mod route;
mod router;
mod running;
pub mod server_names;
mod shares;
mod silence;
mod socket;
mod stats;
pub mod status;
pub mod stream_duration;
pub mod tcp;
pub mod trace;
mod tunnel;
mod underscores;
mod unread;
mod unserved;
mod upstream;
mod worker;
pub mod xds;

pub use client_cert::{ClientCertDetails, ForwardClientCert};
pub use config::Config;
pub use hygiene::ForwardOptions;
pub use plan::Plan;
pub use running::{Proxy, Running, StartError};
