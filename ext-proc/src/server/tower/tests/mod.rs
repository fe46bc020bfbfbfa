//! Middleware in a proxy in memory: what the upstream and the caller get.

mod answers;
mod bodies;
mod failures;
mod layers;
mod trailers;

use std::io::Read as _;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use tower::{BoxError, Service};

use crate::{
    client::{BodyMode, Filter, Modes},
    server::{
        Server,
        tower::{Body, Next},
    },
    testing::Proxy,
};

/// The modes that show a body.
const SHOWN: [BodyMode; 4] = [
    BodyMode::Buffered,
    BodyMode::BufferedPartial,
    BodyMode::Streamed,
    BodyMode::FullDuplexStreamed,
];

/// A proxy in front of a stack.
fn proxy<F, S, B>(make: F) -> Proxy
where
    F: FnOnce(Next) -> S,
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: HttpBody + Send + 'static,
    B::Error: Into<BoxError>,
{
    Proxy::of(Server::tower(make)).filter(|filter| {
        // A busy machine must not make a test fail.
        filter.message_timeout = std::time::Duration::from_secs(20);
    })
}

/// Settings with these body modes, and the trailers that full duplex wants.
fn modes(request: BodyMode, response: BodyMode) -> impl FnOnce(&mut Filter) {
    move |filter| {
        filter.modes = Modes {
            request_body: request,
            response_body: response,
            request_trailers: request == BodyMode::FullDuplexStreamed,
            response_trailers: response == BodyMode::FullDuplexStreamed,
            ..Modes::default()
        };
    }
}

fn get(path: &str) -> Request<Bytes> {
    Request::get(path).body(Bytes::new()).unwrap()
}

fn post(body: &'static str) -> Request<Bytes> {
    Request::post("/").body(Bytes::from(body)).unwrap()
}

fn gunzipped(data: &[u8]) -> String {
    let mut text = String::new();
    let mut decoder = flate2::read::GzDecoder::new(data);
    decoder.read_to_string(&mut text).unwrap();
    text
}
