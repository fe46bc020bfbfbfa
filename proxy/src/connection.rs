//! One downstream connection: HTTP, its watchdog, drain. How it begins is in
//! [`opening`](crate::opening).

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use attache_filter::ConnectionInfo;
use attache_service::{cluster::Io, listen, metrics::Gauge};
use bytes::Bytes;
use http::{Request, Version};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{
    activity::{self, Activity, Stage, Verdict},
    bell::Bell,
    drain::Drain,
    edge::{Downstream, Edge, Everywhere},
    http1::Http1,
    hygiene::Peer,
    opening,
    plan::Limits,
    proxy_protocol,
    socket::Socket,
    unserved::{self, Cause},
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
pub(crate) struct Counted {
    pub(crate) listening: Arc<Listening>,
    everywhere: Arc<Everywhere>,
    open: Gauge,
    /// What a drain waits for.
    _open: TaskTrackerToken,
}

impl Counted {
    fn new(listening: Arc<Listening>, edge: &Edge, token: TaskTrackerToken) -> Option<Self> {
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
            _open: token,
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.listening.connections.fetch_sub(1, Ordering::Relaxed);
        self.everywhere.leave();
        self.open.dec();
    }
}

/// Why a connection ended other than by its own will.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
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

/// The rest of a connection's life once it is known what it speaks.
///
/// Each part of that life has its memory for itself: many connections stand and do nothing, and
/// they shall not carry what the others or their own beginning need.
pub(crate) type Serving = Pin<Box<dyn Future<Output = Result<(), Broken>> + Send>>;

/// Serves one accepted connection until its end. A drain waits for those that have a `token`.
pub(crate) async fn serve(
    listening: Arc<Listening>,
    socket: listen::Socket,
    token: TaskTrackerToken,
) {
    let edge = listening.edge.load_full();
    let Some(counted) = Counted::new(listening, &edge, token) else {
        return;
    };
    let counted = Arc::new(counted);
    let accepted = edge.notes.times.then(Instant::now);
    let opened = match socket {
        listen::Socket::Tcp(io) => {
            let info = ConnectionInfo {
                peer: io.peer_addr().ok(),
                local: io.local_addr().ok(),
                tls: None,
                accepted,
            };
            opening::open(counted.clone(), edge, io, info).await
        }
        listen::Socket::Unix(io) => {
            let info = ConnectionInfo {
                accepted,
                ..ConnectionInfo::default()
            };
            opening::open(counted.clone(), edge, io, info).await
        }
    };
    let ended = match opened {
        Ok(serving) => serving.await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        let edge = counted.listening.edge.load();
        edge.stats.broken.inc();
        tracing::debug!(listener = %edge.plan.name, %error, "connection ended");
    }
}

/// Speaks HTTP. What a request is to be done with, it takes from what the listener does by then,
/// so that clusters and channels of a configuration that was replaced do not live as long as some
/// connection does.
pub(crate) fn http(
    counted: Arc<Counted>,
    edge: &Edge,
    io: Box<dyn Io>,
    info: ConnectionInfo,
    http2: bool,
    ahead: Bytes,
) -> Serving {
    let (limits, allow_connect) = (edge.plan.limits, edge.plan.allow_connect);
    let activity = Arc::<Activity>::default();
    let downstream = Arc::new(Downstream {
        peer: Peer::new(info.peer.map(|peer| peer.ip()), info.tls.is_some()),
        info: Arc::new(info),
        activity: activity.clone(),
        counted: counted.clone(),
    });
    let client = downstream.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        client.activity.passes_on();
        let edge = client.counted.listening.edge.load_full();
        edge.serve(client.clone(), request)
    });
    let listening = counted.listening.clone();
    if http2 {
        let io = TokioIo::new(Socket::http2(io, ahead, activity));
        let mut builder = http2_builder(&limits);
        if allow_connect {
            builder.enable_connect_protocol();
        }
        let connection = builder.serve_connection(io, service);
        Box::pin(drive(connection, downstream, limits, listening))
    } else {
        let io = Socket::http1(io, ahead, activity);
        let connection = Http1::new(http1_builder(&limits), io, service);
        Box::pin(drive(connection, downstream, limits, listening))
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
trait Connection: Future<Output = Result<(), hyper::Error>> + Unpin {
    /// Clients learn from a response that they shall come by another connection. To close one
    /// without that could lose a request that is on its way.
    const TOLD_IN_RESPONSES: bool;
    /// Of requests of which nothing else is known.
    const VERSION: Version;

    fn close_politely(&mut self);

    /// Gives back what it does not need while it is not used.
    fn rest(&mut self) {}

    /// Tells the client that its request is late; whether it learned of it.
    fn answer_late(&mut self, _: &mut Context<'_>) -> bool {
        false
    }

    /// Why it ended with `error` before a request that had come could be served, if one had.
    fn unserved(&mut self, error: &hyper::Error, limits: &Limits) -> Option<Cause>;
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
    const VERSION: Version = Version::HTTP_11;

    fn close_politely(&mut self) {
        self.close();
    }

    fn rest(&mut self) {
        self.rest();
    }

    fn answer_late(&mut self, cx: &mut Context<'_>) -> bool {
        self.answer_late(cx)
    }

    fn unserved(&mut self, error: &hyper::Error, limits: &Limits) -> Option<Cause> {
        self.unserved(error, limits)
    }
}

impl<I, S, E> Connection for http2::Connection<I, S, E>
where
    Self: Future<Output = Result<(), hyper::Error>> + Unpin,
    S: hyper::service::HttpService<Incoming>,
    S::Error: Into<attache_filter::BoxError>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S::ResBody: http_body::Body + 'static,
    <S::ResBody as http_body::Body>::Error: Into<attache_filter::BoxError>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, S::ResBody>,
{
    const TOLD_IN_RESPONSES: bool = false;
    const VERSION: Version = Version::HTTP_2;

    fn close_politely(&mut self) {
        Pin::new(self).graceful_shutdown();
    }

    fn unserved(&mut self, error: &hyper::Error, _: &Limits) -> Option<Cause> {
        let source = std::error::Error::source(error)?;
        let error = source.downcast_ref::<h2::Error>()?;
        if !error.is_library() || !error.is_go_away() {
            return None;
        }
        Some(match error.reason() {
            Some(h2::Reason::ENHANCE_YOUR_CALM) => Cause::HeadersTooLarge { answered: false },
            _ => Cause::BrokenConnection,
        })
    }
}

/// Drives a connection until it ends, is drained, or its watchdog speaks.
///
/// Its parts borrow from the one future, which holds what it is given in its place alone.
#[expect(
    clippy::manual_async_fn,
    reason = "an async function has its arguments twice: as they come and as it uses them"
)]
fn drive<C: Connection>(
    mut connection: C,
    downstream: Arc<Downstream>,
    limits: Limits,
    listening: Arc<Listening>,
) -> impl Future<Output = Result<(), Broken>> {
    async move {
        let activity = &*downstream.activity;
        let mut drained = pin!(leave(&listening.drain, activity, C::TOLD_IN_RESPONSES));
        let mut watchdog = pin!(activity::watch(activity, &limits, Stage::Open));
        let bell = Bell::rung();
        let waker = Waker::from(bell.clone());
        let mut closing = false;
        let verdict = std::future::poll_fn(|cx: &mut Context<'_>| {
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(Ok(ended));
            }
            // A codec that waits for its client to read may have more to look at.
            if C::VERSION == Version::HTTP_2
                && activity.unserved() > 0
                && !closing
                && !activity.blocked.load(Ordering::Relaxed)
            {
                Unserved::of::<C>(&listening, &downstream).settle(Cause::MalformedStream);
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
                Poll::Ready(verdict) => {
                    if verdict == Verdict::SlowHead && activity.in_head.load(Ordering::Relaxed) {
                        let blocked = activity.blocked.load(Ordering::Relaxed);
                        let answered = !blocked && connection.answer_late(cx);
                        Unserved::of::<C>(&listening, &downstream)
                            .note(Cause::Late { answered }, limits.header_timeout);
                    }
                    return Poll::Ready(Err(verdict));
                }
                Poll::Pending if closing => return Poll::Pending,
                Poll::Pending if used_up => {}
                Poll::Pending if drained.as_mut().poll(apart).is_ready() => {}
                Poll::Pending if activity.may_rest() => {
                    connection.rest();
                    return Pin::new(&mut connection).poll(cx).map(Ok);
                }
                Poll::Pending => return Poll::Pending,
            }
            closing = true;
            watchdog.set(activity::watch(activity, &limits, Stage::Closing));
            connection.close_politely();
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(Ok(ended));
            }
            // The first look of the watchdog sets its timer.
            let _ = watchdog.as_mut().poll(apart);
            Poll::Pending
        })
        .await;
        let ended = verdict.map_err(Broken::Watchdog)?;
        let refused = ended
            .as_ref()
            .err()
            .and_then(|error| connection.unserved(error, &limits));
        // What a client sends behind our GOAWAY is for its next connection.
        if !closing || refused.is_some() {
            Unserved::of::<C>(&listening, &downstream).end(refused, ended.is_err());
        }
        Ok(ended?)
    }
}

/// Notes the requests of one connection that nobody served.
struct Unserved<'c> {
    listening: &'c Listening,
    downstream: &'c Downstream,
    version: Version,
}

impl<'c> Unserved<'c> {
    fn of<C: Connection>(listening: &'c Listening, downstream: &'c Downstream) -> Self {
        let version = C::VERSION;
        Self {
            listening,
            downstream,
            version,
        }
    }

    fn note(&self, cause: Cause, since: Duration) {
        let edge = self.listening.edge.load();
        unserved::note(&edge, self.downstream, self.version, cause, since);
    }

    /// The codec of HTTP/2 has done with what has come, for `cause` where it took offence.
    fn settle(&self, cause: Cause) {
        let refused = self.downstream.activity.settle();
        for _ in 0..refused.malformed {
            self.note(cause, Duration::ZERO);
        }
        for _ in 0..refused.too_large {
            self.note(Cause::HeadersTooLarge { answered: true }, Duration::ZERO);
        }
    }

    /// The connection has ended, for `refused` where the codec could not go on.
    fn end(&self, refused: Option<Cause>, failed: bool) {
        let activity = &self.downstream.activity;
        let begun = activity.in_head.load(Ordering::Relaxed);
        if self.version == Version::HTTP_2 {
            // What was malformed before is settled; of the last bytes the codec tells nothing.
            self.settle(refused.unwrap_or(Cause::Left));
            if begun {
                self.note(refused.unwrap_or(Cause::Left), Duration::ZERO);
            }
            return;
        }
        // A head behind a request that is not over would not be read yet.
        let begun = begun && failed && activity.requests.load(Ordering::Relaxed) == 0;
        if let Some(cause) = refused.or(begun.then_some(Cause::Left)) {
            self.note(cause, Duration::ZERO);
        }
    }
}

/// Resolves when a connection is to close as soon as it has no request.
async fn leave(drain: &Drain, activity: &Activity, told_in_responses: bool) {
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

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::ready};

    use http::Response;
    use http_body_util::Full;
    use hyper::service::HttpService;
    use tokio::net::TcpStream;
    use tokio_rustls::server::TlsStream;

    use super::*;

    /// Bytes of what a function gives.
    fn given<A, B, C, D, R>(_: impl FnOnce(A, B, C, D) -> R) -> usize {
        size_of::<R>()
    }

    /// Bytes that a connection of HTTP/1.1 holds beside what carries it, with such a service as
    /// there is.
    fn held() -> usize {
        fn driven<S>(_: S) -> usize
        where
            S: HttpService<Incoming, ResBody = Full<Bytes>, Error = Infallible> + Unpin,
        {
            given(drive::<Http1<Box<dyn Io>, S>>)
        }
        let (listening, downstream) = (Arc::new(()), Arc::new(()));
        driven(service_fn(move |_: Request<Incoming>| {
            let _ = (&listening, &downstream);
            ready(Ok(Response::new(Full::default())))
        }))
    }

    #[test]
    fn a_connection_holds_no_more_than_it_needs_while_it_rests() {
        let task = given(|listening, socket, token, ()| serve(listening, socket, token));
        assert!(task <= 256, "the task: {task}");
        let plain = held() + size_of::<TcpStream>();
        assert!(plain <= 1280, "over TCP: {plain}");
        // The state of TLS alone has more than a kilobyte.
        let tls = held() + size_of::<TlsStream<TcpStream>>();
        assert!(tls <= 2560, "over TLS: {tls}");
    }
}
