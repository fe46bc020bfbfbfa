//! Tower middleware as a processor: the inner service is whatever the proxy does next.
//!
//! Any `tower::Service` over [`http::Request`] runs as it is: the layers of `tower-http`, an
//! axum router that answers some paths and has [`Next`] as its fallback, a stack of your own.
//!
//! ```no_run
//! use attache_ext_proc::server::tower::{Next, run_tower};
//! use tower::ServiceBuilder;
//! use tower_http::{compression::CompressionLayer, cors::CorsLayer};
//!
//! fn main() -> std::process::ExitCode {
//!     run_tower(|next: Next| {
//!         ServiceBuilder::new()
//!             .layer(CorsLayer::permissive())
//!             .layer(CompressionLayer::new())
//!             .service(next)
//!     })
//! }
//! ```
//!
//! The stack is made once and cloned for each exchange, so what its layers share (limits,
//! counters) is shared by all exchanges. What a middleware changes in the request that it gives
//! to [`Next`], and in the response that it gives back, becomes the replies to the proxy; a
//! response that it gives without [`Next`], or instead of waiting for it, answers the caller.
//!
//! # Bodies
//!
//! The body mode of a direction decides what middleware can do with its [`Body`]:
//!
//! | mode | read and change | read all of it before the head goes on |
//! |---|---|---|
//! | NONE | no: it passes, or is replaced by one that is not made of it | no |
//! | BUFFERED | yes | yes |
//! | BUFFERED_PARTIAL | when it fits the proxy's buffer and has no trailers; else it can be looked at only | likewise |
//! | STREAMED | yes, but for the end of one with trailers | with `send_body_without_waiting_for_header_response` |
//! | FULL_DUPLEX_STREAMED | yes | yes |
//!
//! A middleware that wants more fails the exchange, with a line in the log that says which mode
//! it needs: a message that says it is compressed and is not would be worse. What a failure
//! means is the setting [`Server::on_failure`](super::Server::on_failure); an exchange of which something
//! was changed already does not pass, it ends with an error.
//!
//! Trailers are frames of the body, in the streamed modes; elsewhere they pass unseen. They can
//! be changed, not added where there are none.
//!
//! # What the proxy must show
//!
//! The headers of the request, always; those of the response, unless none of it is shown
//! (`response_header_mode: SKIP`). `forward_rules` may not hide `:method`, `:path`, `:status`.
//! A new path or header changes the route when the request that goes on has [`ClearRouteCache`]
//! among its extensions. `content-length` and `transfer-encoding` are made to fit the body,
//! whatever a middleware says of them.

mod answer;
mod body;
mod exchange;
mod fault;
mod half;
mod head;
mod next;

#[cfg(test)]
mod tests;

use std::{process::ExitCode, sync::Arc};

use ::tower::{BoxError, Service};
use http::{Request, Response};

pub use body::{Body, ReadError};
pub use next::{Next, NextFuture};

use super::Server;

/// In the extensions of a request that goes on: the proxy picks the route again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClearRouteCache;

/// All that a `main` needs, see [`run`](super::run): serves the stack that `make` makes around
/// the service it is given.
pub fn run_tower<F, S, B>(make: F) -> ExitCode
where
    F: FnOnce(Next) -> S,
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    Server::tower(make).run()
}

impl Server {
    /// Serves a stack of tower middleware, see [`tower`](self).
    pub fn tower<F, S, B>(make: F) -> Self
    where
        F: FnOnce(Next) -> S,
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: http_body::Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let service = make(Next(()));
        Self::of(move |settings| {
            let service = service.clone();
            Arc::new(move |session| {
                Box::pin(exchange::run(session, service.clone(), settings.clone()))
            })
        })
    }
}
