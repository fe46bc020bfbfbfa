//! Calls a processor for each request: a `tower` layer that behaves as Envoy's filter does.
//!
//! - `config`: the filter's settings as written, Envoy's field names.
//! - `mode`: which parts of an exchange are shown.
//! - `plan`: the same checked and compiled; shared by all workers.
//! - `layer`: the tower layer and its service.
//! - `exchange`: the protocol, a pure state machine: what came in, what goes out.
//! - `drive`, `body`: what connects an exchange with the gRPC call, the clock and the bodies.
//! - `linger`: the streams of observing processors after their exchanges.
//! - `http`: the flavour that asks over plain HTTP.
//! - `encode`, `mutation`: messages out, header mutations in.
//! - `attributes`, `metadata`, `extras`: what is told beside the message, and dynamic metadata in.
//! - `stats`: Envoy's counters.

pub mod config;

mod attributes;
mod body;
mod drive;
mod encode;
mod exchange;
mod extras;
mod http;
mod layer;
mod linger;
mod metadata;
mod mode;
mod mutation;
mod plan;
mod stats;

#[cfg(test)]
mod tests;

pub use attributes::ShownAttributes;
pub use body::BrokenOff;
pub use http::HttpCall;
pub use layer::{ExtProc, ExtProcLayer};
pub use metadata::{MetadataRules, Namespaces};
pub use mode::{BodyMode, Modes};
pub use plan::{Filter, PerRoute, RouteCacheAction};

/// The two directions of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// From the caller to the upstream.
    Request,
    /// From the upstream to the caller.
    Response,
}
