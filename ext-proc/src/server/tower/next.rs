//! What a middleware calls as its inner service.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use ::tower::{BoxError, Service};
use http::{Request, Response, StatusCode, request};
use http_body::Body as HttpBody;
use tokio::sync::oneshot;

use super::body::{Body, Output};

/// Whatever the proxy does next: the service at the bottom of the stack.
///
/// It sends the request on as it is given and resolves with the response that the proxy shows.
/// It finds its exchange in the extensions of the request, so a middleware that makes a new
/// request has to take them over. An exchange is sent on once: another call with the same
/// extensions, as retries make, is answered with an empty 500, and so is one without them; the
/// log says why.
#[derive(Debug, Clone, Copy)]
pub struct Next(pub(super) ());

impl<B> Service<Request<B>> for Next
where
    B: HttpBody + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = NextFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> NextFuture {
        let (mut head, body) = request.into_parts();
        let Some(Way(way)) = head.extensions.remove::<Way>() else {
            tracing::error!("a request went on without the extensions that it came with");
            return NextFuture(None);
        };
        let way = way.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(way) = way else {
            tracing::error!("a request went on twice; a proxy sends it once");
            return NextFuture(None);
        };
        let (respond, response) = oneshot::channel();
        let body = Output::new(body);
        let forwarded = Forwarded {
            head,
            body,
            respond,
        };
        match way.send(Box::new(forwarded)) {
            Ok(()) => NextFuture(Some(response)),
            Err(_) => NextFuture(None),
        }
    }
}

/// The response of what the proxy does next.
#[derive(Debug)]
pub struct NextFuture(Option<oneshot::Receiver<Response<Body>>>);

impl Future for NextFuture {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(response) = &mut self.0 {
            match Pin::new(response).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(response)) => return Poll::Ready(Ok(response)),
                // The exchange is over: nobody gets what is answered now.
                Poll::Ready(Err(_)) => {}
            }
        }
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        Poll::Ready(Ok(response))
    }
}

/// A request that a middleware gave to [`Next`].
pub(super) struct Forwarded {
    pub(super) head: request::Parts,
    pub(super) body: Output,
    pub(super) respond: oneshot::Sender<Response<Body>>,
}

/// The way back to the exchange, in the extensions of its request.
#[derive(Clone)]
pub(super) struct Way(Arc<Mutex<Option<oneshot::Sender<Box<Forwarded>>>>>);

impl Way {
    pub(super) fn new() -> (Self, oneshot::Receiver<Box<Forwarded>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Arc::new(Mutex::new(Some(sender)))), receiver)
    }
}
