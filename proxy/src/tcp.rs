//! Connections that are passed on as they are (Envoy's `TcpProxy`).

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use attache_filter::{
    RequestContext,
    context::{ResponseFlag, UpstreamAttempt},
};
use attache_service::{
    Metrics,
    cluster::{self, Io},
    metrics::{Counter, Gauge},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    router::Router,
    upstream::{Endpoint, UpstreamError, Wanted},
};

/// Bytes on their way, each way.
const BUFFER: usize = 16 << 10;
/// Silence is looked for this many times per idle timeout.
const LOOKS: u32 = 4;
/// Bytes of long connections are counted at least this often.
const COUNTED_EVERY: Duration = Duration::from_secs(5);

/// Where connections go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpPlan {
    /// Index of the cluster.
    pub cluster: usize,
    /// How long nothing may move either way; absent for ever. Default 1 h, as Envoy.
    pub idle_timeout: Option<Duration>,
    /// How often connecting is tried, each time with the next endpoint. Default 1, as Envoy.
    pub max_connect_attempts: u32,
}

impl TcpPlan {
    /// To the cluster with this index, with defaults.
    pub fn to(cluster: usize) -> Self {
        Self {
            cluster,
            idle_timeout: Some(DEFAULT_IDLE),
            max_connect_attempts: 1,
        }
    }
}

/// How long nothing may move unless configured.
pub const DEFAULT_IDLE: Duration = Duration::from_secs(3600);

/// What is counted of the connections that a listener passes on.
#[derive(Debug, Clone)]
pub(crate) struct TcpStats {
    open: Gauge,
    total: Counter,
    received: Counter,
    sent: Counter,
    failed: Counter,
    idle: Counter,
}

impl TcpStats {
    pub(crate) fn new(listener: &str, metrics: &Metrics) -> Self {
        let label = &[("listener", listener)];
        let counter = |name: &str, help: &str| metrics.counter(name, help, label);
        Self {
            open: metrics.gauge(
                "attache_tcp_connections",
                "Connections that are passed on as they are, open now.",
                label,
            ),
            total: counter(
                "attache_tcp_connections_started",
                "Connections passed on as they are.",
            ),
            received: counter(
                "attache_tcp_received_bytes",
                "Bytes from clients whose connections are passed on.",
            ),
            sent: counter(
                "attache_tcp_sent_bytes",
                "Bytes to clients whose connections are passed on.",
            ),
            failed: counter(
                "attache_tcp_connect_failures",
                "Connections closed because no endpoint could be reached.",
            ),
            idle: counter(
                "attache_tcp_idle_timeouts",
                "Connections closed because nothing moved.",
            ),
        }
    }
}

/// What passed through one connection.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    received: AtomicU64,
    sent: AtomicU64,
    /// It was the upstream that ended it badly.
    upstream_reset: AtomicBool,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Bytes from the client.
    pub(crate) received: u64,
    /// Bytes to the client.
    pub(crate) sent: u64,
    /// Why, in a word.
    pub(crate) details: &'static str,
}

/// Passes a connection on until both sides have ended it. What there is to log of it is noted in
/// `context`.
pub(crate) async fn pass_on<IO>(
    router: &Router,
    plan: &TcpPlan,
    stats: &TcpStats,
    context: Option<&RequestContext>,
    io: IO,
) -> Ended
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    stats.total.inc();
    let mut ended = Ended {
        received: 0,
        sent: 0,
        details: "upstream_connect_failure",
    };
    // Held while the connection lasts, so that it counts there.
    let Some((_endpoint, upstream)) = connect(router, plan, context).await else {
        stats.failed.inc();
        return ended;
    };
    let _open = Open::new(&stats.open);
    let passed = Arc::<Passed>::default();
    let mut downstream = Watched {
        io,
        side: Side::Client,
        passed: passed.clone(),
    };
    let mut upstream = Watched {
        io: upstream,
        side: Side::Upstream,
        passed: passed.clone(),
    };
    let copy =
        tokio::io::copy_bidirectional_with_sizes(&mut downstream, &mut upstream, BUFFER, BUFFER);
    let mut counted = Counted {
        stats,
        passed: &passed,
        received: 0,
        sent: 0,
    };
    ended.details = tokio::select! {
        copied = copy => match copied {
            Ok(_) => "closed",
            Err(error) => {
                tracing::debug!(%error, "connection ended");
                match passed.upstream_reset.load(Ordering::Relaxed) {
                    true => {
                        flag(context, &[ResponseFlag::UpstreamRemoteReset]);
                        "upstream_reset"
                    }
                    false => "downstream_reset",
                }
            }
        },
        () = silence(&mut counted, plan.idle_timeout) => {
            stats.idle.inc();
            "idle_timeout"
        }
    };
    counted.update();
    ended.received = passed.received.load(Ordering::Relaxed);
    ended.sent = passed.sent.load(Ordering::Relaxed);
    ended
}

async fn connect(
    router: &Router,
    plan: &TcpPlan,
    context: Option<&RequestContext>,
) -> Option<(Endpoint, Box<dyn Io>)> {
    let cluster = router.clusters.get(plan.cluster)?;
    // Those that could not be reached count as busy for the next attempt.
    let mut unreachable = Vec::new();
    for _ in 0..plan.max_connect_attempts {
        let Some(mut endpoint) = cluster.pick(&Wanted::Balanced(None), 0) else {
            break;
        };
        let begun = context.map(|context| context.started.elapsed());
        let made = endpoint.own.connect_plain().await;
        if let (Some(context), Some(begun)) = (context, begun) {
            let failure = made.as_ref().err().and_then(UpstreamError::connect_failure);
            note(context, &endpoint.endpoint, begun, failure);
        }
        match made {
            Ok(io) => {
                endpoint.answered();
                return Some((endpoint, io));
            }
            Err(error) => {
                endpoint.failed();
                cluster.stats.failed.inc();
                tracing::debug!(cluster = %cluster.plan.name, %error, "cannot connect");
                unreachable.push(endpoint);
            }
        }
    }
    flag(
        context,
        match unreachable.is_empty() {
            true => &[ResponseFlag::NoHealthyUpstream],
            false => &[
                ResponseFlag::UpstreamConnectionFailure,
                ResponseFlag::UpstreamRetryLimitExceeded,
            ],
        },
    );
    None
}

fn note(
    context: &RequestContext,
    endpoint: &cluster::Endpoint,
    begun: Duration,
    failure: Option<String>,
) {
    if let Some(address) = endpoint.address() {
        context.set_upstream(address);
    }
    context.record_attempt(UpstreamAttempt {
        endpoint: endpoint.to_string(),
        begun,
        answered: None,
        ended: context.started.elapsed(),
        status: None,
        span: None,
        waited: None,
        failure,
    });
}

fn flag(context: Option<&RequestContext>, flags: &[ResponseFlag]) {
    if let Some(context) = context {
        flags.iter().for_each(|flag| context.add_flag(*flag));
    }
}

struct Open<'s>(&'s Gauge);

impl<'s> Open<'s> {
    fn new(gauge: &'s Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What of a connection stands in the counters.
struct Counted<'c> {
    stats: &'c TcpStats,
    passed: &'c Passed,
    received: u64,
    sent: u64,
}

impl Counted<'_> {
    /// Counts what is not counted yet; whether there was any.
    fn update(&mut self) -> bool {
        let received = self.passed.received.load(Ordering::Relaxed);
        let sent = self.passed.sent.load(Ordering::Relaxed);
        let more = received.wrapping_sub(self.received);
        self.stats.received.inc_by(more);
        let more_sent = sent.wrapping_sub(self.sent);
        self.stats.sent.inc_by(more_sent);
        (self.received, self.sent) = (received, sent);
        more > 0 || more_sent > 0
    }
}

/// Resolves when nothing has moved for `idle`. Counts what moves.
async fn silence(counted: &mut Counted<'_>, idle: Option<Duration>) {
    let every = idle.map_or(COUNTED_EVERY, |idle| (idle / LOOKS).min(COUNTED_EVERY));
    let every = every.max(Duration::from_millis(1));
    let mut quiet = Duration::ZERO;
    loop {
        tokio::time::sleep(every).await;
        quiet = match counted.update() {
            true => Duration::ZERO,
            false => quiet.saturating_add(every),
        };
        if idle.is_some_and(|idle| quiet >= idle) {
            return;
        }
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Upstream,
}

/// Counts what is read, and notes whose fault it is when that fails.
struct Watched<IO> {
    io: IO,
    side: Side,
    passed: Arc<Passed>,
}

impl<IO> Watched<IO> {
    fn judge<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() && self.side == Side::Upstream {
            self.passed.upstream_reset.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.judge(read)?;
        let count = buf.filled().len().saturating_sub(before);
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let counter = match self.side {
            Side::Client => &self.passed.received,
            Side::Upstream => &self.passed.sent,
        };
        counter.fetch_add(count, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        Poll::Ready(self.judge(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
