//! One downstream connection: PROXY protocol, TLS, protocol detection, HTTP, drain.

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use arc_swap::ArcSwap;
use attache_filter::{
    ConnectionInfo, RequestContext,
    context::{Route, TlsInfo},
};
use attache_service::{listen, metrics::Gauge, tls};
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
    activity::{self, Activity, Stage, Verdict},
    ahead::Ahead,
    bell::Bell,
    client_hello,
    drain::Drain,
    edge::{Downstream, Edge, Everywhere},
    http1::Http1,
    hygiene::Peer,
    plan::{Codec, Limits},
    proxy_protocol::{self, Header},
    socket::{Socket, detect},
    tcp::{self, TcpPlan},
    tunnel::Io,
};

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes of a response that leave in one write, and most bytes of a request read at once.
const BUFFER: usize = 256 << 10;
/// hyper takes no smaller buffer.
const MIN_BUFFER: usize = 8192;
/// How often a draining HTTP/2 connection looks whether it has had a request.
const LOOK_FOR_REQUEST: Duration = Duration::from_millis(20);

/// A listener in one worker. What it does with requests can be replaced at any time.
pub(crate) struct Listening {
    pub(crate) edge: ArcSwap<Edge>,
    /// Connections of this listener in all workers.
    pub(crate) connections: Arc<AtomicUsize>,
    /// Ends this listener: the proxy stops, or a reload removed it.
    pub(crate) drain: Drain,
}

/// A connection that counts; dropped at its end. It outlives configurations, so it holds none.
struct Counted<'l> {
    listening: &'l Listening,
    everywhere: Arc<Everywhere>,
    open: Gauge,
}

impl<'l> Counted<'l> {
    fn new(listening: &'l Listening, edge: &Arc<Edge>) -> Option<Self> {
        let limit = edge.plan.limits.max_connections;
        if listening.connections.fetch_add(1, Ordering::Relaxed) >= limit {
            listening.connections.fetch_sub(1, Ordering::Relaxed);
            edge.stats.refused.inc();
            return None;
        }
        if !edge.everywhere.enter(edge.max_everywhere) {
            listening.connections.fetch_sub(1, Ordering::Relaxed);
            edge.stats.refused.inc();
            return None;
        }
        edge.stats.connections.inc();
        Some(Self {
            listening,
            everywhere: edge.everywhere.clone(),
            open: edge.stats.connections.clone(),
        })
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.listening.connections.fetch_sub(1, Ordering::Relaxed);
        self.everywhere.leave();
        self.open.dec();
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
    #[error("{0}")]
    ProxyProtocol(#[from] proxy_protocol::Refused),
    #[error("nothing is served for the server name {0:?}")]
    ServerName(Option<String>),
    #[error("{0:?}")]
    Watchdog(Verdict),
    #[error("not the version of HTTP that the listener speaks")]
    OtherVersion,
}

/// Serves one accepted connection until its end.
pub(crate) async fn serve(listening: Arc<Listening>, socket: listen::Socket) {
    let edge = listening.edge.load_full();
    let Some(counted) = Counted::new(&listening, &edge) else {
        return;
    };
    let ended = match socket {
        listen::Socket::Tcp(io) => {
            let info = ConnectionInfo {
                peer: io.peer_addr().ok(),
                local: io.local_addr().ok(),
                tls: None,
            };
            begin(&listening, edge, io, info).await
        }
        listen::Socket::Unix(io) => begin(&listening, edge, io, ConnectionInfo::default()).await,
    };
    if let Err(error) = ended {
        let edge = listening.edge.load();
        edge.stats.broken.inc();
        tracing::debug!(listener = %edge.plan.name, %error, "connection ended");
    }
    drop(counted);
}

/// Looks at what comes before everything else, where a listener has that.
async fn begin<IO>(
    listening: &Arc<Listening>,
    edge: Arc<Edge>,
    io: IO,
    mut info: ConnectionInfo,
) -> Result<(), Broken>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if edge.plan.proxy_protocol.is_none() && edge.plan.tls_passthrough.is_none() {
        return start(listening, edge, io, info).await;
    }
    // Boxed: other connections need not carry its state, nor the program its code twice.
    Box::pin(async move {
        let limit = edge.plan.limits.header_timeout;
        let looked = tokio::time::timeout(limit, look_ahead(&edge, Box::new(io), &mut info)).await;
        let (io, passed_on) = looked.map_err(|_| Broken::SlowStart)??;
        match passed_on {
            Some(plan) => pass_on(&edge, &plan, io, info).await,
            None => start(listening, edge, io, info).await,
        }
    })
    .await
}

/// Reads what stands before TLS and HTTP, and decides whether the connection is passed on.
async fn look_ahead(
    edge: &Edge,
    mut io: Box<dyn Io>,
    info: &mut ConnectionInfo,
) -> Result<(Ahead<Box<dyn Io>>, Option<TcpPlan>), Broken> {
    let mut ahead = Bytes::new();
    if let Some(settings) = &edge.plan.proxy_protocol {
        if !settings.lets(info.peer.map(|peer| peer.ip())) {
            return Err(proxy_protocol::Refused::Stranger.into());
        }
        let header;
        (header, ahead) = proxy_protocol::read(&mut io, settings).await?;
        if let Header::Proxied {
            source,
            destination,
        } = header
        {
            info.peer = Some(source);
            info.local = Some(destination);
        }
    }
    let mut io = Ahead { ahead, io };
    let Some(names) = &edge.plan.tls_passthrough else {
        return Ok((io, None));
    };
    let beginning = client_hello::read(&mut io).await?;
    let name = beginning.server_name;
    let plan = name.as_deref().and_then(|name| names.get(name)).cloned();
    if plan.is_none() && !edge.plan.opens() {
        return Err(Broken::ServerName(name));
    }
    if plan.is_some() && edge.log.is_some() {
        info.tls = Some(TlsInfo {
            sni: name,
            ..TlsInfo::default()
        });
    }
    let io = Ahead {
        ahead: beginning.ahead,
        io: match io.ahead.is_empty() {
            true => io.io,
            false => Box::new(io),
        },
    };
    Ok((io, plan))
}

/// Passes a connection on as it is.
async fn pass_on<IO>(
    edge: &Edge,
    plan: &TcpPlan,
    io: IO,
    info: ConnectionInfo,
) -> Result<(), Broken>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    let Some(stats) = &edge.tcp_stats else {
        return Ok(());
    };
    let logged = edge.log.as_ref().map(|log| {
        let client_ip = info.peer.map(|peer| peer.ip());
        let mut context = RequestContext::new(Arc::new(info), http::Version::default());
        context.client_ip = client_ip;
        let cluster = edge.router.clusters.get(plan.cluster);
        context.set_route(Some(Arc::new(Route {
            cluster: cluster.map(|cluster| cluster.plan.name.clone()),
            ..Route::default()
        })));
        (log, context)
    });
    let context = logged.as_ref().map(|(_, context)| context);
    let ended = tcp::pass_on(&edge.router, plan, stats, context, io).await;
    tracing::debug!(listener = %edge.plan.name, ?ended, "connection passed on");
    if let Some((log, context)) = logged {
        context.set_details(ended.details);
        log.passed(Arc::new(context), &ended);
    }
    Ok(())
}

/// Begins with TLS or HTTP. `edge` is what the listener does at this moment: a connection of HTTP
/// lets go of it, as every request takes what holds by then, so that clusters and channels of a
/// configuration that was replaced do not live as long as some connection does.
async fn start<IO>(
    listening: &Arc<Listening>,
    edge: Arc<Edge>,
    io: IO,
    mut info: ConnectionInfo,
) -> Result<(), Broken>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limit = edge.plan.limits.header_timeout;
    match (&edge.plan.tls, &edge.plan.tcp) {
        (None, None) => {
            let mut io = io;
            let detected = tokio::select! {
                detected = tokio::time::timeout(limit, detect(&mut io)) => detected,
                // Nothing has begun that could be finished.
                () = listening.drain.ending() => return Ok(()),
            };
            let (http2, ahead) = detected.map_err(|_| Broken::SlowStart)??;
            let http2 = match edge.plan.codec {
                Codec::Auto => http2,
                Codec::Http1 => false,
                Codec::Http2 if http2 => true,
                Codec::Http2 => return Err(Broken::OtherVersion),
            };
            run(listening, edge, io, info, http2, ahead).await
        }
        (None, Some(tcp)) => Box::pin(pass_on(&edge, tcp, io, info)).await,
        (Some(tls), tcp) => {
            let accepted = tokio::time::timeout(limit, tls.accept(io)).await;
            let io = accepted.map_err(|_| Broken::SlowStart)??;
            let peer = tls::Peer::of(io.get_ref().1);
            let local = tls.local_principal(peer.sni.as_deref());
            let http2 = match edge.plan.codec {
                Codec::Auto => peer.alpn.as_deref() == Some("h2"),
                Codec::Http1 => false,
                Codec::Http2 => true,
            };
            info.tls = Some(TlsInfo {
                sni: peer.sni,
                alpn: peer.alpn,
                peer_certificate: peer.certificate,
                peer_principal: peer.principal,
                local_principal: local.map(|name| name.to_string()),
            });
            match tcp {
                Some(tcp) => Box::pin(pass_on(&edge, tcp, io, info)).await,
                None => run(listening, edge, io, info, http2, Bytes::new()).await,
            }
        }
    }
}

async fn run<IO>(
    listening: &Arc<Listening>,
    edge: Arc<Edge>,
    io: IO,
    info: ConnectionInfo,
    http2: bool,
    ahead: Bytes,
) -> Result<(), Broken>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (limits, allow_connect) = (edge.plan.limits, edge.plan.allow_connect);
    drop(edge);
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
        if allow_connect {
            builder.enable_connect_protocol();
        }
        // Boxed: connections of HTTP/1.1 need not carry its state.
        let mut connection = Box::pin(builder.serve_connection(io, service));
        drive(connection.as_mut(), activity, limits, &listening.drain).await
    } else {
        let io = Socket::http1(io, ahead, activity.clone());
        let connection = Http1::new(http1_builder(&limits), io, service);
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
    /// Clients learn from a response that they shall come by another connection. To close one
    /// without that could lose a request that is on its way.
    const TOLD_IN_RESPONSES: bool;

    fn close_politely(self: Pin<&mut Self>);

    /// Gives back what it does not need while it is not used.
    fn rest(self: Pin<&mut Self>) {}
}

impl<IO, S> Connection for Http1<IO, S>
where
    S: hyper::service::HttpService<Incoming> + Unpin,
    S::Error: Into<attache_filter::BoxError>,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S::ResBody: http_body::Body + 'static,
    <S::ResBody as http_body::Body>::Error: Into<attache_filter::BoxError>,
{
    const TOLD_IN_RESPONSES: bool = true;

    fn close_politely(self: Pin<&mut Self>) {
        self.get_mut().close();
    }

    fn rest(self: Pin<&mut Self>) {
        self.get_mut().rest();
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
    const TOLD_IN_RESPONSES: bool = false;

    fn close_politely(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Drives a connection until it ends, is drained, or its watchdog speaks.
async fn drive<C: Connection>(
    mut connection: Pin<&mut C>,
    activity: Arc<Activity>,
    limits: Limits,
    drain: &Drain,
) -> Result<(), Broken> {
    let mut drained = pin!(leave(drain, activity.clone(), C::TOLD_IN_RESPONSES));
    let mut watchdog = pin!(activity::watch(activity.clone(), limits, Stage::Open));
    let bell = Bell::rung();
    let waker = Waker::from(bell.clone());
    let mut closing = false;
    let verdict = std::future::poll_fn(|cx: &mut Context<'_>| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(Ok(ended));
        }
        if activity.is_resetting(&limits) {
            return Poll::Ready(Err(Verdict::Resets));
        }
        let used_up = !closing && activity.is_used_up(&limits);
        if !bell.has_rung(cx) && !used_up {
            return Poll::Pending;
        }
        let apart = &mut Context::from_waker(&waker);
        match watchdog.as_mut().poll(apart) {
            Poll::Ready(Verdict::Idle) if closing => return Poll::Ready(Ok(Ok(()))),
            Poll::Ready(Verdict::Idle | Verdict::Old) => {}
            Poll::Ready(verdict) => return Poll::Ready(Err(verdict)),
            Poll::Pending if closing => return Poll::Pending,
            Poll::Pending if used_up => {}
            Poll::Pending if drained.as_mut().poll(apart).is_ready() => {}
            Poll::Pending if activity.may_rest() => {
                connection.as_mut().rest();
                return connection.as_mut().poll(cx).map(Ok);
            }
            Poll::Pending => return Poll::Pending,
        }
        closing = true;
        watchdog.set(activity::watch(activity.clone(), limits, Stage::Closing));
        connection.as_mut().close_politely();
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(Ok(ended));
        }
        // The first look of the watchdog sets its timer.
        let _ = watchdog.as_mut().poll(apart);
        Poll::Pending
    })
    .await;
    match verdict {
        Ok(ended) => Ok(ended?),
        Err(verdict) => Err(Broken::Watchdog(verdict)),
    }
}

/// Resolves when a connection is to close as soon as it has no request.
async fn leave(drain: &Drain, activity: Arc<Activity>, told_in_responses: bool) {
    let within = drain.leaving().await;
    if told_in_responses {
        activity.closing.store(true, Ordering::Relaxed);
        return drain.ending().await;
    }
    let sleep = async {
        tokio::time::sleep(within.mul_f64(rand::random())).await;
        // The first request may be on its way, and would be lost with the connection.
        while activity.served.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(LOOK_FOR_REQUEST).await;
        }
    };
    tokio::select! {
        () = sleep => {}
        () = drain.ending() => {}
    }
}
