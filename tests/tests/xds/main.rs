//! Our proxy and real Envoy behind the same control plane, go-control-plane: both come up empty,
//! and are told listeners, routes, clusters and endpoints.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod changes;
mod listeners;
mod missing;
mod tcp;
mod world;
