//! Counters shared by any number of instances through Redis.
//!
//! Keys are those of the reference service, so both can run side by side on one Redis while one
//! takes over from the other.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use attache_service::{
    Metrics,
    metrics::{Counter, Gauge},
};
use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, Pipeline, RedisError,
    aio::MultiplexedConnection,
};

use tokio::runtime::Handle;

use super::{Amount, Batch, Store, StoreError};

/// Bound on one operation by default: half of what Envoy waits for a rate limit service.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(10);

/// Commands waiting for the connection at once; more wait outside, within their deadline.
const QUEUE: usize = 1024;

/// Commands sent and not answered at once, so that a stalled Redis does not collect an unbounded
/// pile.
const IN_FLIGHT: usize = 16 * 1024;

/// A connection on which operations time out for this long without one answer is given up.
const STALLED: Duration = Duration::from_secs(1);

/// Stands for a time that has not come.
const NEVER: u64 = u64::MAX;

/// Waits between attempts to connect grow from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Gives hits back without going below 0.
const REFUND: &str = "local n = redis.call('DECRBY', KEYS[1], ARGV[1]) \
    if n < 0 then redis.call('SET', KEYS[1], 0) n = 0 end \
    redis.call('EXPIRE', KEYS[1], ARGV[2]) return n";

/// How to reach Redis.
#[derive(Clone)]
pub struct RedisSettings {
    /// `redis://[user:password@]host:port/database` or `unix:///path`.
    pub url: String,
    /// Bound on one operation. Default [`DEFAULT_TIMEOUT`].
    pub timeout: Duration,
    /// Bound on establishing a connection. Default 1 s.
    pub connect_timeout: Duration,
    /// Put before every key. Default empty.
    pub key_prefix: String,
}

impl RedisSettings {
    /// Settings with defaults.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            timeout: DEFAULT_TIMEOUT,
            connect_timeout: Duration::from_secs(1),
            key_prefix: String::new(),
        }
    }
}

/// The URL may hold a password.
impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSettings")
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("key_prefix", &self.key_prefix)
            .finish_non_exhaustive()
    }
}

/// A Redis URL that cannot be used. Does not show the URL, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the Redis URL is not valid: {0}")]
pub struct InvalidUrl(String);

/// Counters in Redis, over one connection that all requests share.
///
/// All counters of a request are charged in one round trip, with `INCRBY` and `EXPIRE` for each.
/// An operation that is not answered within the timeout fails, and while there is no connection
/// operations fail at once, so that the caller's failure mode applies without delay. A lost or
/// stalled connection is replaced in the background.
#[derive(Clone)]
pub struct RedisStore {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    address: String,
    settings: RedisSettings,
    connection: ArcSwapOption<Live>,
    /// Why there is no connection.
    reason: ArcSwapOption<String>,
    connecting: AtomicBool,
    /// Where connections are driven: not on the runtime of whichever request finds one lost.
    runtime: Handle,
    metrics: StoreMetrics,
}

struct Live {
    connection: MultiplexedConnection,
    opened: Instant,
    /// Milliseconds from `opened` to the first operation that timed out since the last answer;
    /// [`NEVER`] when there was none.
    silent_since: AtomicU64,
}

struct StoreMetrics {
    connected: Gauge,
    errors: Counter,
    timeouts: Counter,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("address", &self.inner.address)
            .field("settings", &self.inner.settings)
            .finish_non_exhaustive()
    }
}

impl RedisStore {
    /// A store that tries to connect once before it returns, and goes on trying in the background
    /// if that fails.
    ///
    /// Must run in a tokio runtime that lives as long as the store: the connection is driven by
    /// it.
    ///
    /// # Errors
    /// When the URL is not valid. That Redis cannot be reached is no error here.
    pub async fn connect(settings: RedisSettings, metrics: &Metrics) -> Result<Self, InvalidUrl> {
        let invalid = |error: RedisError| {
            let detail = error.detail().map(str::to_owned);
            InvalidUrl(detail.unwrap_or_else(|| error.category().to_owned()))
        };
        let info = settings
            .url
            .as_str()
            .into_connection_info()
            .map_err(invalid)?;
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let info = info.set_tcp_settings(tcp);
        let address = info.addr().to_string();
        let store = Self {
            inner: Arc::new(Inner {
                client: Client::open(info).map_err(invalid)?,
                address,
                settings,
                connection: ArcSwapOption::empty(),
                reason: ArcSwapOption::empty(),
                connecting: AtomicBool::new(true),
                runtime: Handle::current(),
                metrics: StoreMetrics::new(metrics),
            }),
        };
        if store.inner.try_connect().await {
            store.inner.connecting.store(false, Ordering::Release);
        } else {
            let inner = Arc::downgrade(&store.inner);
            store.inner.runtime.spawn(reconnect(inner));
        }
        Ok(store)
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.inner.connection.load().is_some()
    }

    fn pipeline(&self, batch: &Batch) -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(2 * batch.len());
        let mut name = String::new();
        for (key, charge) in batch.iter() {
            Batch::write_key(
                &mut name,
                &self.inner.settings.key_prefix,
                key,
                charge.window,
            );
            let length = charge.window.length;
            match charge.amount {
                Amount::Add(hits) => {
                    pipeline.cmd("INCRBY").arg(&name).arg(hits);
                    pipeline.cmd("EXPIRE").arg(&name).arg(length).ignore();
                }
                Amount::Refund(hits) => {
                    pipeline
                        .cmd("EVAL")
                        .arg(REFUND)
                        .arg(1)
                        .arg(&name)
                        .arg(hits)
                        .arg(length);
                }
            }
        }
        pipeline
    }
}

impl Store for RedisStore {
    async fn charge(&self, batch: &Batch, counts: &mut Vec<u64>) -> Result<(), StoreError> {
        let inner = &self.inner;
        let Some(live) = inner.connection.load_full() else {
            inner.metrics.errors.inc();
            let reason = inner.reason.load_full();
            return Err(StoreError::NotConnected {
                address: inner.address.clone(),
                reason: reason.map_or_else(String::new, |reason| (*reason).clone()),
            });
        };
        let pipeline = self.pipeline(batch);
        let mut connection = live.connection.clone();
        let answer = pipeline.query_async::<Vec<i64>>(&mut connection);
        match tokio::time::timeout(inner.settings.timeout, answer).await {
            Ok(Ok(values)) if values.len() == batch.len() => {
                live.note_answer();
                // Counters of others may be negative; to a limit that is 0.
                counts.extend(values.into_iter().map(|n| u64::try_from(n).unwrap_or(0)));
                Ok(())
            }
            Ok(Ok(values)) => {
                live.note_answer();
                Err(self.failed(format!(
                    "{} answers to {} commands",
                    values.len(),
                    batch.len()
                )))
            }
            Ok(Err(error)) => {
                if error.is_io_error() || error.is_unrecoverable_error() {
                    inner.give_up(&live, error.to_string());
                } else {
                    live.note_answer();
                }
                Err(self.failed(error.to_string()))
            }
            Err(_) => {
                inner.metrics.timeouts.inc();
                if live.note_silence() > STALLED {
                    inner.give_up(&live, "the connection stalled".to_owned());
                }
                Err(StoreError::Timeout {
                    address: inner.address.clone(),
                    millis: inner.settings.timeout.as_millis(),
                })
            }
        }
    }
}

impl RedisStore {
    fn failed(&self, reason: String) -> StoreError {
        self.inner.metrics.errors.inc();
        StoreError::Failed {
            address: self.inner.address.clone(),
            reason,
        }
    }
}

impl Inner {
    async fn try_connect(&self) -> bool {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.settings.connect_timeout))
            // Ours: it covers the wait for a place in the queue too.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE)
            .set_concurrency_limit(IN_FLIGHT);
        // The library's own bound may leave out the handshake.
        let opened = tokio::time::timeout(
            self.settings.connect_timeout,
            self.client
                .get_multiplexed_async_connection_with_config(&config),
        );
        match opened.await {
            Ok(Ok(connection)) => {
                self.connection.store(Some(Arc::new(Live {
                    connection,
                    opened: Instant::now(),
                    silent_since: AtomicU64::new(NEVER),
                })));
                self.metrics.connected.set(1);
                tracing::info!(address = %self.address, "connected to Redis");
                true
            }
            Ok(Err(error)) => self.note_failure(error.to_string()),
            Err(_) => self.note_failure(format!(
                "no connection within {:?}",
                self.settings.connect_timeout
            )),
        }
    }

    /// Keeps the reason for callers; logs it when it is a new one.
    fn note_failure(&self, reason: String) -> bool {
        let known = self.reason.load();
        if known.as_deref() != Some(&reason) {
            tracing::warn!(address = %self.address, %reason, "cannot connect to Redis");
            self.reason.store(Some(Arc::new(reason)));
        }
        false
    }

    /// Drops `live`, unless somebody else has, and connects anew in the background.
    fn give_up(self: &Arc<Self>, live: &Arc<Live>, reason: String) {
        if self.connecting.swap(true, Ordering::AcqRel) {
            return;
        }
        let current = self.connection.load();
        if !current
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, live))
        {
            self.connecting.store(false, Ordering::Release);
            return;
        }
        tracing::warn!(address = %self.address, %reason, "lost the connection to Redis");
        self.reason.store(Some(Arc::new(reason)));
        self.connection.store(None);
        self.metrics.connected.set(0);
        self.runtime.spawn(reconnect(Arc::downgrade(self)));
    }
}

/// Tries until there is a connection or nobody needs one. Owns the `connecting` mark.
async fn reconnect(inner: Weak<Inner>) {
    let (mut wait, longest) = RETRY;
    loop {
        // Up to a quarter more, so that many instances do not come back at the same time.
        tokio::time::sleep(wait.mul_f64(1.0 + rand::random::<f64>() / 4.0)).await;
        wait = (wait * 2).min(longest);
        let Some(inner) = inner.upgrade() else { return };
        if inner.try_connect().await {
            inner.connecting.store(false, Ordering::Release);
            return;
        }
    }
}

impl Live {
    fn note_answer(&self) {
        if self.silent_since.load(Ordering::Relaxed) != NEVER {
            self.silent_since.store(NEVER, Ordering::Relaxed);
        }
    }

    /// Notes that an operation timed out; returns how long there has been no answer.
    fn note_silence(&self) -> Duration {
        let now = self.age();
        let since = self.silent_since.fetch_min(now, Ordering::Relaxed).min(now);
        Duration::from_millis(now - since)
    }

    fn age(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl StoreMetrics {
    fn new(metrics: &Metrics) -> Self {
        Self {
            connected: metrics.gauge(
                "attache_ratelimit_redis_connected",
                "Whether there is a connection to Redis.",
                &[],
            ),
            errors: metrics.counter(
                "attache_ratelimit_redis_errors",
                "Operations that failed, other than by time.",
                &[],
            ),
            timeouts: metrics.counter(
                "attache_ratelimit_redis_timeouts",
                "Operations that Redis did not answer in time.",
                &[],
            ),
        }
    }
}
