//! A small HTTP/1.1 server for what people and programs ask beside the traffic: probes, metrics,
//! debug pages. Everything about it is bounded: connections, heads, bodies, silence.

use std::{convert::Infallible, future::Future, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::{Io, listen::Listener, shutdown::Shutdown};

/// Plain text.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// Bound on finishing what runs at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Bound on a request's head.
const MAX_HEAD: usize = 16 << 10;

/// A whole response.
pub type Reply = Response<Full<Bytes>>;

/// What such a server allows.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Connections at a time; further ones wait to be accepted. Default 64.
    pub connections: usize,
    /// Bound on sending one request head, and on a connection's silence between requests.
    /// Default 10 s.
    pub head: Duration,
    /// Bound on a connection's whole life, however slowly it reads. Default 300 s.
    pub age: Option<Duration>,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 64,
            head: Duration::from_secs(10),
            age: Some(Duration::from_secs(300)),
        }
    }
}

/// Answers requests on `listener` until `shutdown`.
pub async fn serve<R, F, B>(listener: Listener, limits: HttpLimits, respond: R, shutdown: Shutdown)
where
    R: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(limits.connections.max(1)));
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, socket) = tokio::select! {
            next = next => next,
            () = shutdown.recv() => break,
        };
        let (limits, respond, shutdown) = (limits.clone(), respond.clone(), shutdown.clone());
        connections.spawn(async move {
            let _place = place;
            let served = connection(socket.boxed(), &limits, respond, &shutdown);
            let ended = match limits.age {
                None => served.await,
                Some(age) => match tokio::time::timeout(age, served).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                },
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "HTTP connection ended");
            }
        });
    }
    drop(listener);
    connections.close();
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await;
}

async fn connection<R, F, B>(
    io: Box<dyn Io>,
    limits: &HttpLimits,
    respond: R,
    shutdown: &Shutdown,
) -> hyper::Result<()>
where
    R: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes, Error = Infallible> + 'static,
{
    let respond = service_fn(async |request| Ok::<_, Infallible>(respond(request).await));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(io), respond);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = shutdown.recv() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// Why there is no whole body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It is longer than allowed.
    #[error("the body is too long")]
    TooLong,
    /// The client went away.
    #[error("the body broke off")]
    Broken,
}

/// The whole body of a request, of at most `limit` bytes.
///
/// # Errors
/// It is longer, or breaks off.
pub async fn body(request: Request<Incoming>, limit: usize) -> Result<Bytes, BodyError> {
    match Limited::new(request.into_body(), limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(BodyError::TooLong),
        Err(_) => Err(BodyError::Broken),
    }
}

/// A response of this status, media type and text, which browsers are not to guess about.
pub fn reply(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
