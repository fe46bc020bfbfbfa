//! Middleware made for HTTP servers, unchanged, in front of whatever the proxy does next: CORS,
//! request ids, compression, and a router that answers one path itself.
//!
//! Compression needs a `response_body_mode`: any but NONE. The others work in every mode.
//!
//! `cargo run --release --example tower_layers [-- ADDRESS]`, by default on 127.0.0.1:50051.
use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use attache_ext_proc::server::tower::{Next, run_tower};
use axum::{Router, routing::get};
use http::{HeaderName, Request};
use tower::ServiceBuilder;
use tower_http::{
    compression::CompressionLayer,
    cors::CorsLayer,
    request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer},
};

const ID: HeaderName = HeaderName::from_static("x-tower-id");

/// Counts.
#[derive(Clone, Default)]
struct Count(Arc<AtomicU64>);

impl MakeRequestId for Count {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        Some(RequestId::new(number.into()))
    }
}

fn main() -> ExitCode {
    run_tower(|next: Next| {
        let router = Router::new()
            .route("/hello", get(|| async { "hello from the router\n" }))
            .fallback_service(next);
        ServiceBuilder::new()
            .layer(SetRequestIdLayer::new(ID, Count::default()))
            .layer(PropagateRequestIdLayer::new(ID))
            .layer(CorsLayer::permissive())
            .layer(CompressionLayer::new())
            .service(router)
    })
}
