//! One downstream connection: TLS, protocol detection, HTTP, drain.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use attache_filter::{ConnectionInfo, context::TlsInfo};
use attache_service::{Shutdown, listen, tls};
use bytes::Bytes;
use http::Request;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    activity::{self, Activity, Verdict},
    edge::{Downstream, Edge},
    hygiene::Peer,
    plan::Limits,
    socket::{Socket, detect},
};

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes of a response that leave in one write, and most bytes of a request read at once.
const BUFFER: usize = 256 << 10;
/// hyper takes no smaller buffer.
const MIN_BUFFER: usize = 8192;

/// A listener in one worker. What it does with requests can be replaced at any time.
pub(crate) struct Listening {
    pub(crate) edge: ArcSwap<Edge>,
    /// Connections of this listener in all workers.
    pub(crate) connections: Arc<AtomicUsize>,
    /// Ends this listener: the proxy stops, or a reload removed it.
    pub(crate) drain: Shutdown,
}

/// A connection that counts; dropped at its end.
struct Counted<'l>(&'l Listening, Arc<Edge>);

impl<'l> Counted<'l> {
    fn new(listening: &'l Listening, edge: &Arc<Edge>) -> Option<Self> {
        let limit = edge.plan.limits.max_connections;
        if listening.connections.fetch_add(1, Ordering::Relaxed) >= limit {
            listening.connections.fetch_sub(1, Ordering::Relaxed);
            edge.stats.refused.inc();
            return None;
        }
        edge.stats.connections.inc();
        Some(Self(listening, edge.clone()))
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.1.stats.connections.dec();
    }
}

/// Why a connection ended other than by its own will.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("no request within the header timeout")]
    SlowStart,
    #[error("{0:?}")]
    Watchdog(Verdict),
}

/// Serves one accepted connection until its end.
pub(crate) async fn serve(listening: Arc<Listening>, socket: listen::Socket) {
    let edge = listening.edge.load_full();
    let Some(counted) = Counted::new(&listening, &edge) else {
        return;
    };
    let ended = match socket {
        listen::Socket::Tcp(io) => {
            let addresses = (io.peer_addr().ok(), io.local_addr().ok());
            start(&listening, &edge, io, addresses).await
        }
        listen::Socket::Unix(io) => start(&listening, &edge, io, (None, None)).await,
    };
    if let Err(error) = ended {
        edge.stats.broken.inc();
        tracing::debug!(listener = %edge.plan.name, %error, "connection ended");
    }
    drop(counted);
}

async fn start<IO>(
    listening: &Arc<Listening>,
    edge: &Arc<Edge>,
    io: IO,
    addresses: (Option<SocketAddr>, Option<SocketAddr>),
) -> Result<(), Broken>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limit = edge.plan.limits.header_timeout;
    let mut info = ConnectionInfo {
        peer: addresses.0,
        local: addresses.1,
        tls: None,
    };
    match &edge.plan.tls {
        None => {
            let mut io = io;
            let detected = tokio::select! {
                detected = tokio::time::timeout(limit, detect(&mut io)) => detected,
                // Nothing has begun that could be finished.
                () = listening.drain.recv() => return Ok(()),
            };
            let (http2, ahead) = detected.map_err(|_| Broken::SlowStart)??;
            run(listening, edge, io, info, http2, ahead).await
        }
        Some(tls) => {
            let accepted = tokio::time::timeout(limit, tls.accept(io)).await;
            let io = accepted.map_err(|_| Broken::SlowStart)??;
            let peer = tls::Peer::of(io.get_ref().1);
            let http2 = peer.alpn.as_deref() == Some("h2");
            info.tls = Some(TlsInfo {
                sni: peer.sni,
                alpn: peer.alpn,
                peer_certificate: peer.certificate,
                peer_principal: peer.principal,
                local_principal: tls.local_principal().map(|name| name.to_string()),
            });
            run(listening, edge, io, info, http2, Bytes::new()).await
        }
    }
}

async fn run<IO>(
    listening: &Arc<Listening>,
    edge: &Arc<Edge>,
    io: IO,
    info: ConnectionInfo,
    http2: bool,
    ahead: Bytes,
) -> Result<(), Broken>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = edge.plan.limits;
    let activity = Arc::<Activity>::default();
    let downstream = Arc::new(Downstream {
        peer: Peer::new(info.peer.map(|peer| peer.ip()), info.tls.is_some()),
        info: Arc::new(info),
        activity: activity.clone(),
    });
    let handle = listening.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        handle.edge.load_full().serve(downstream.clone(), request)
    });
    if http2 {
        let io = TokioIo::new(Socket::http2(io, ahead, activity.clone()));
        let mut builder = http2_builder(&limits);
        if edge.plan.allow_connect {
            builder.enable_connect_protocol();
        }
        let connection = builder.serve_connection(io, service);
        drive(pin!(connection), activity, limits, &listening.drain).await
    } else {
        let io = TokioIo::new(Socket::http1(io, ahead, activity.clone()));
        let connection = http1_builder(&limits)
            .serve_connection(io, service)
            .with_upgrades();
        drive(pin!(connection), activity, limits, &listening.drain).await
    }
}

fn http1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // Ours is in `activity`: hyper's sets up a timer per request.
        .header_read_timeout(None)
        .max_header_size(limits.max_header_bytes.max(MIN_BUFFER))
        .max_buf_size(limits.max_header_bytes.max(BUFFER));
    // hyper keeps its default number of headers on the stack, any other on the heap.
    if limits.max_headers != 100 {
        builder.max_headers(limits.max_headers);
    }
    builder
}

fn http2_builder(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX));
    builder
}

/// A hyper connection, of either version.
trait Connection: Future<Output = Result<(), hyper::Error>> {
    fn close_politely(self: Pin<&mut Self>);
}

impl<I, S> Connection for http1::UpgradeableConnection<I, S>
where
    Self: Future<Output = Result<(), hyper::Error>>,
    S: hyper::service::HttpService<Incoming>,
    S::Error: Into<attache_filter::BoxError>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S::ResBody: http_body::Body + 'static,
    <S::ResBody as http_body::Body>::Error: Into<attache_filter::BoxError>,
{
    fn close_politely(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S, E> Connection for http2::Connection<I, S, E>
where
    Self: Future<Output = Result<(), hyper::Error>>,
    S: hyper::service::HttpService<Incoming>,
    S::Error: Into<attache_filter::BoxError>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S::ResBody: http_body::Body + 'static,
    <S::ResBody as http_body::Body>::Error: Into<attache_filter::BoxError>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, S::ResBody>,
{
    fn close_politely(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Drives a connection until it ends, is drained, or its watchdog speaks.
async fn drive<C: Connection>(
    mut connection: Pin<&mut C>,
    activity: Arc<Activity>,
    limits: Limits,
    drain: &Shutdown,
) -> Result<(), Broken> {
    let mut watchdog = pin!(activity::watch(activity, limits));
    let mut drained = pin!(drain.recv());
    let mut closing = false;
    let verdict = std::future::poll_fn(|cx: &mut Context<'_>| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(Ok(ended));
        }
        if closing {
            return Poll::Pending;
        }
        match watchdog.as_mut().poll(cx) {
            Poll::Ready(Verdict::Idle) => closing = true,
            Poll::Ready(verdict) => return Poll::Ready(Err(verdict)),
            Poll::Pending => closing = drained.as_mut().poll(cx).is_ready(),
        }
        if closing {
            connection.as_mut().close_politely();
            return connection.as_mut().poll(cx).map(Ok);
        }
        Poll::Pending
    })
    .await;
    match verdict {
        Ok(ended) => Ok(ended?),
        Err(verdict) => Err(Broken::Watchdog(verdict)),
    }
}
