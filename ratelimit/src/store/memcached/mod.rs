//! Counters shared by any number of instances through memcached.
//!
//! - `protocol`: its text protocol.
//! - `link`: one server: the queue, the connection's life.

mod link;
mod protocol;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use attache_service::{
    Address, Metrics,
    metrics::{Counter, Gauge},
    tls::ClientTls,
};
use aws_lc_rs::digest;

use self::{
    link::Link,
    protocol::{Answer, Command, LONGEST_LIFETIME, Step},
};
use super::{
    Amount, Batch, Charge, Meter, Reading, Rejected, Store, StoreError,
    redis::settings::{InvalidUrl, address},
};
use crate::limiter::Window;

/// What the URL of a memcached starts with.
pub(super) const SCHEME: &str = "memcached://";

/// The port of memcached when none is written.
const PORT: u16 = 11211;

/// Longer keys memcached does not take.
const LONGEST_KEY: usize = 250;

/// How often a counter that comes and goes is tried.
const TRIES: usize = 8;

/// How to reach memcached, and how to keep counters there.
#[derive(Debug, Clone)]
pub struct MemcachedSettings {
    /// The servers; each key lives on one of them.
    pub servers: Vec<Address>,
    /// TLS to the servers. Default: none.
    pub tls: Option<ClientTls>,
    /// Bound on one operation. Default 10 ms.
    pub timeout: Duration,
    /// Bound on establishing a connection. Default 1 s.
    pub connect_timeout: Duration,
    /// Put before every key. Default empty.
    pub key_prefix: String,
    /// Counters outlive their window by a random time up to this. Default 2 s; the reference
    /// service has 300 s.
    pub expiry_jitter: Duration,
}

/// Counters in memcached, in fixed windows.
///
/// Keys, and which server has which, are the reference service's. Hits are added first and judged
/// then, so limits hold exactly; the reference service reads first, and lets more pass when
/// requests come at the same time. Hits that are not to count when they do not fit are taken back
/// at once, as are those of charges that belong together when one does not fit: for that moment
/// others find less room than there is.
///
/// A key that memcached would not take, for its length or its characters, is held as its SHA-256.
/// memcached may forget counters when its memory is full. Windows are cut by this instance's
/// clock.
#[derive(Clone)]
pub struct MemcachedStore {
    context: Arc<Context>,
    links: Arc<[Link]>,
}

struct Context {
    settings: MemcachedSettings,
    connected: Gauge,
    errors: Counter,
    timeouts: Counter,
}

impl fmt::Debug for MemcachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemcachedStore")
            .field("settings", &self.context.settings)
            .finish_non_exhaustive()
    }
}

impl MemcachedSettings {
    /// Reads `memcached://host[:port],host[:port]...`, with defaults for the rest.
    ///
    /// # Errors
    /// When the URL is not of this kind.
    pub fn parse(url: &str) -> Result<Self, InvalidUrl> {
        let hosts = url.strip_prefix(SCHEME).unwrap_or(url);
        let servers = hosts.trim_end_matches('/').split(',');
        let servers: Result<_, _> = servers.map(|host| address(host, PORT)).collect();
        servers.map(Self::new)
    }

    /// Settings with defaults.
    pub fn new(servers: Vec<Address>) -> Self {
        Self {
            servers,
            tls: None,
            timeout: Duration::from_millis(10),
            connect_timeout: Duration::from_secs(1),
            key_prefix: String::new(),
            expiry_jitter: Duration::from_secs(2),
        }
    }
}

impl MemcachedStore {
    /// A store that tries to connect once before it returns, and goes on trying in the background
    /// if that fails.
    ///
    /// Must run in a tokio runtime that lives as long as the store: the connections are driven by
    /// it.
    pub async fn connect(settings: MemcachedSettings, metrics: &Metrics) -> Self {
        let context = Arc::new(Context {
            connected: metrics.gauge(
                "attache_ratelimit_memcached_connected",
                "Connections to memcached that can be used.",
                &[],
            ),
            errors: metrics.counter(
                "attache_ratelimit_memcached_errors",
                "Operations that failed, other than by time.",
                &[],
            ),
            timeouts: metrics.counter(
                "attache_ratelimit_memcached_timeouts",
                "Operations that memcached did not answer in time.",
                &[],
            ),
            settings,
        });
        let servers = &context.settings.servers;
        let links: Arc<[Link]> = servers
            .iter()
            .map(|address| Link::start(address.clone(), &context))
            .collect();
        for link in &*links {
            link.tried().await;
        }
        Self { context, links }
    }

    /// Whether all servers can be asked.
    pub fn is_connected(&self) -> bool {
        !self.links.is_empty() && self.links.iter().all(Link::is_connected)
    }

    /// Where the servers are, for errors.
    fn name(&self) -> String {
        let servers = &self.context.settings.servers;
        let names: Vec<_> = servers.iter().map(ToString::to_string).collect();
        names.join(",")
    }

    fn link(&self, key: &str) -> Result<&Link, StoreError> {
        let count = u32::try_from(self.links.len()).unwrap_or(u32::MAX).max(1);
        // The reference service's client does not hash for one server.
        let at = match count {
            1 => 0,
            _ => crc32(key.as_bytes()) % count,
        };
        let link = usize::try_from(at).ok().and_then(|at| self.links.get(at));
        link.ok_or_else(|| StoreError::NotConnected {
            store: "memcached",
            address: self.name(),
            reason: "there are no servers".to_owned(),
        })
    }

    /// What stands in memcached for a charge, and the window.
    fn key(&self, key: &str, charge: &Charge) -> Result<(String, Window), StoreError> {
        let Meter::FixedWindow(window) = charge.terms.meter else {
            return Err(StoreError::Unsupported {
                store: "memcached",
                what: "otherwise than in fixed windows",
            });
        };
        let mut name = String::with_capacity(key.len() + 20);
        Batch::write_key(&mut name, &self.context.settings.key_prefix, key, window);
        let is_taken =
            name.len() <= LONGEST_KEY && !name.bytes().any(|byte| byte <= b' ' || byte == 0x7f);
        if !is_taken {
            name = digest::digest(&digest::SHA256, name.as_bytes())
                .as_ref()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
        }
        Ok((name, window))
    }

    async fn run(&self, key: &str, step: Step) -> Result<Answer, StoreError> {
        let command = Command {
            key: key.to_owned(),
            step,
        };
        self.link(key)?.ask(command).await
    }

    /// Adds hits; returns what the counter stands at with them.
    async fn add(&self, key: &str, hits: u32, window: Window) -> Result<u64, StoreError> {
        let hits = u64::from(hits);
        if hits == 0 {
            return Ok(match self.run(key, Step::Get).await? {
                Answer::Count(count) => count,
                _ => 0,
            });
        }
        for _ in 0..TRIES {
            if let Answer::Count(count) = self.run(key, Step::Increase(hits)).await? {
                return Ok(count);
            }
            let make = Step::Make {
                count: hits,
                expires: self.expires(window),
            };
            if self.run(key, make).await? == Answer::Made {
                return Ok(hits);
            }
        }
        Err(self
            .link(key)?
            .failed("the counter comes and goes".to_owned()))
    }

    /// Gives hits back; returns what the counter stands at without them.
    async fn take_back(&self, key: &str, hits: u32) -> Result<u64, StoreError> {
        Ok(match self.run(key, Step::Decrease(hits.into())).await? {
            Answer::Count(count) => count,
            _ => 0,
        })
    }

    fn expires(&self, window: Window) -> u64 {
        let jitter = self.context.settings.expiry_jitter.as_secs();
        let more = rand::random_range(0..=jitter);
        let lifetime = window.length.saturating_add(more);
        if lifetime <= LONGEST_LIFETIME {
            return lifetime;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.unwrap_or_default().as_secs().saturating_add(lifetime)
    }

    async fn charge_one(
        &self,
        batch: &Batch,
        key: &str,
        charge: &Charge,
    ) -> Result<Reading, StoreError> {
        let (name, window) = self.key(key, charge)?;
        let resets_in = window.resets_in(batch.now().seconds());
        let limit = u64::from(charge.terms.limit);
        match charge.amount {
            Amount::Refund(hits) => {
                let after = self.take_back(&name, hits).await?;
                // At most: what was there is not told.
                let before = after.saturating_add(hits.into());
                Ok(Reading::of_store(before, after, resets_in))
            }
            Amount::Add(hits) => {
                let after = self.add(&name, hits, window).await?;
                let before = after.saturating_sub(hits.into());
                let mut reading = Reading::of_store(before, after, resets_in);
                if after > limit && charge.terms.rejected == Rejected::Free {
                    self.take_back(&name, hits).await?;
                    reading.charged = false;
                }
                Ok(reading)
            }
        }
    }

    async fn charge_all(
        &self,
        batch: &Batch,
        readings: &mut Vec<Reading>,
    ) -> Result<(), StoreError> {
        for (key, charge) in batch.iter() {
            readings.push(self.charge_one(batch, key, charge).await?);
        }
        let fits = |(reading, (_, charge)): (&Reading, (&str, &Charge))| {
            matches!(charge.amount, Amount::Refund(_))
                || reading.after <= u64::from(charge.terms.limit)
        };
        if !batch.is_together() || readings.iter().zip(batch.iter()).all(fits) {
            return Ok(());
        }
        for (reading, (key, charge)) in readings.iter_mut().zip(batch.iter()) {
            if reading.charged {
                let (name, window) = self.key(key, charge)?;
                match charge.amount {
                    Amount::Add(hits) => {
                        self.take_back(&name, hits).await?;
                    }
                    Amount::Refund(hits) => {
                        self.add(&name, hits, window).await?;
                    }
                }
                reading.charged = false;
            }
        }
        Ok(())
    }
}

impl Store for MemcachedStore {
    fn is_connected(&self) -> bool {
        Self::is_connected(self)
    }

    async fn charge(&self, batch: &Batch, readings: &mut Vec<Reading>) -> Result<(), StoreError> {
        let timeout = self.context.settings.timeout;
        let charged = tokio::time::timeout(timeout, self.charge_all(batch, readings)).await;
        let error = match charged {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => {
                self.context.errors.inc();
                error
            }
            Err(_) => {
                self.context.timeouts.inc();
                StoreError::Timeout {
                    store: "memcached",
                    address: self.name(),
                    millis: timeout.as_millis(),
                }
            }
        };
        readings.clear();
        Err(error)
    }
}

/// CRC-32 as of Ethernet, by which the reference service's client chooses servers.
fn crc32(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| match crc & 1 {
            0 => crc >> 1,
            _ => (crc >> 1) ^ 0xedb8_8320,
        })
    });
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{limiter::UnixTime, store::Terms};

    #[test]
    fn urls_name_the_servers() {
        let settings = MemcachedSettings::parse("memcached://a,b:7").unwrap();
        let servers: Vec<_> = settings.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["a:11211", "b:7"]);
        assert!(MemcachedSettings::parse("memcached://").is_err());
    }

    #[test]
    fn servers_are_chosen_by_the_usual_sum() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[tokio::test]
    async fn keys_are_the_references_unless_memcached_would_not_take_them() {
        let settings = MemcachedSettings::new(Vec::new());
        let store = MemcachedStore::connect(settings, &Metrics::default()).await;
        let name = |value: &str| {
            let mut batch = Batch::new(UnixTime::from_seconds(61));
            batch.begin("d");
            batch.entry("k", value);
            batch.charge(Terms::fixed_window(Window::at(61, 60), 1), Amount::Add(1));
            let (key, charge) = batch.iter().next().unwrap();
            store.key(key, charge).unwrap().0
        };
        assert_eq!(name("v"), "d_k_v_60");
        for value in ["a b", "a\r\nflush_all", &"long".repeat(100)] {
            let name = name(value);
            assert_eq!(name.len(), 64, "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_hexdigit()));
        }
        assert_ne!(name("a b"), name("b a"));
    }
}
