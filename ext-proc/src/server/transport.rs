//! The gRPC service: calls in, sessions out.
//!
//! Straight over HTTP bodies: the exchange runs when its replies are asked for, so it needs no
//! task of its own and ends with the call; all replies that are ready leave in one frame.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use attache_service::trace::{Ended, Tracer};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Frame;
use tonic::{Code, Status, body::Body, server::NamedService};
use tracing::Instrument;

use super::{
    drain::Drain,
    rules::ProxySettings,
    session::{Outbox, Session},
};

/// An exchange that runs.
pub(super) type Running = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;
/// Begins an exchange.
pub(super) type Run = dyn Fn(Session) -> Running + Send + Sync;

/// The service `envoy.service.ext_proc.v3.ExternalProcessor`.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) run: Arc<Run>,
    pub(super) settings: Arc<ProxySettings>,
    pub(super) drain: Option<Drain>,
    pub(super) tracer: Tracer,
}

/// The method, as spans name it.
const METHOD: &str = "envoy.service.ext_proc.v3.ExternalProcessor/Process";

impl NamedService for Service {
    const NAME: &'static str = "envoy.service.ext_proc.v3.ExternalProcessor";
}

impl tower::Service<Request<Body>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !request.uri().path().ends_with("/Process") {
            return ready(Ok(Status::unimplemented("no such method here").into_http()));
        }
        let (head, incoming) = request.into_parts();
        let call = Ended::of(self.tracer.call(METHOD, &head.headers));
        let outbox = Outbox::default();
        let session = Session::new(
            head.headers,
            incoming,
            outbox.clone(),
            self.settings.clone(),
            self.drain.clone(),
        );
        let span = session.exchange().trace().map(|trace| {
            tracing::info_span!(
                "exchange",
                trace_id = trace.trace_id,
                parent_id = trace.parent_id
            )
        });
        let running = (self.run)(session);
        let running = match span {
            Some(span) => Box::pin(running.instrument(span)) as Running,
            None => running,
        };
        let mut response = Response::new(Body::new(Replies {
            outbox,
            state: State::Running(running),
            call: Some(call),
        }));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        ready(Ok(response))
    }
}

/// The replies of one exchange.
struct Replies {
    outbox: Outbox,
    state: State,
    /// Taken when it has ended.
    call: Option<Ended>,
}

enum State {
    Running(Running),
    /// The rest is sent, then how it ended.
    Ended(Result<(), Status>),
    Done,
}

impl http_body::Body for Replies {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let State::Running(running) = &mut this.state {
            this.outbox.awake();
            match running.as_mut().poll(cx) {
                Poll::Ready(result) => {
                    let whole = this.outbox.end();
                    let result = result.and(whole);
                    if let Some(call) = this.call.take() {
                        call.with(result.as_ref().map_or_else(Status::code, |()| Code::Ok));
                    }
                    this.state = State::Ended(result);
                }
                Poll::Pending => {
                    return this
                        .outbox
                        .poll_pop(cx)
                        .map(|data| Some(Ok(Frame::data(data))));
                }
            }
        }
        if matches!(this.state, State::Ended(_))
            && let Some(data) = this.outbox.pop()
        {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match std::mem::replace(&mut this.state, State::Done) {
            State::Ended(result) => Poll::Ready(Some(Ok(Frame::trailers(trailers(result))))),
            State::Running(_) | State::Done => Poll::Ready(None),
        }
    }
}

fn trailers(result: Result<(), Status>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let status = result.err().unwrap_or_else(|| Status::ok(""));
    if status.add_header(&mut trailers).is_err() {
        trailers.insert("grpc-status", HeaderValue::from_static("13"));
    }
    trailers
}
