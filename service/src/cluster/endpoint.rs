//! One endpoint of a cluster, as the whole process knows it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{sync::Notify, time::Instant};

use super::{outlier::Record, stats::Stats};
use crate::{Address, channel::Target};

/// Why an endpoint should not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Trouble {
    /// It fails its active health check.
    FailedCheck = 1,
    /// Outlier detection has ejected it.
    Ejected = 2,
    /// Whoever named it says that it is not to be used (Envoy's `health_status`).
    Withdrawn = 4,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::FailedCheck, Self::Ejected, Self::Withdrawn];

    /// The name of Envoy's health flag.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FailedCheck => "failed_active_hc",
            Self::Ejected => "failed_outlier_check",
            Self::Withdrawn => "failed_eds_health",
        }
    }
}

/// Bytes of a reason that are kept.
const LONGEST_REASON: usize = 200;

/// An endpoint as a source names it.
#[derive(Clone)]
pub struct Described {
    /// Where it is.
    pub target: Target,
    /// Its address, where the source has looked it up. A target that is a name and has none is
    /// looked up at each connection.
    pub address: Option<SocketAddr>,
    /// Its name for TLS, and for health checks. Default: the host of its target.
    pub hostname: Option<Arc<str>>,
    /// Its share of the requests, relative to others. 0 counts as 1. Default 1.
    pub weight: u32,
    /// The source says that it is not to be used.
    pub withdrawn: bool,
    /// It stays the same endpoint when its address changes: connections to the earlier address
    /// go on, others are made to the later one (Envoy's `LOGICAL_DNS`).
    pub logical: bool,
}

impl Described {
    /// An endpoint with defaults.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            address: None,
            hostname: None,
            weight: 1,
            withdrawn: false,
            logical: false,
        }
    }
}

impl From<Target> for Described {
    fn from(target: Target) -> Self {
        Self::new(target)
    }
}

impl From<Address> for Described {
    fn from(address: Address) -> Self {
        Self::new(Target::Address(address))
    }
}

/// One endpoint of a cluster, shared by all workers and clients.
///
/// It stays the same one as long as its cluster has it, whatever else changes there.
pub struct Endpoint {
    target: Target,
    address: Located,
    hostname: Option<Arc<str>>,
    trouble: AtomicU8,
    /// Why it is in its troubles, for people.
    reasons: Mutex<Vec<(Trouble, String)>>,
    common: Arc<Common>,
    tallies: Mutex<Vec<Weak<Tally>>>,
    connects: AtomicU64,
    connect_failures: AtomicU64,
    record: Record,
}

/// Where an endpoint is on the network.
enum Located {
    /// Known from the beginning, or to be looked up by whoever connects.
    Fixed(Option<SocketAddr>),
    /// A name whose address changes, while connections to the earlier one stay.
    Latest(ArcSwapOption<SocketAddr>),
}

impl Endpoint {
    pub(super) fn new(described: &Described, common: Arc<Common>) -> Self {
        let literal = || match &described.target {
            Target::Address(Address::Tcp { host, port }) => {
                let ip = host.parse().ok()?;
                Some(SocketAddr::new(ip, *port))
            }
            _ => None,
        };
        Self {
            target: described.target.clone(),
            address: match described.logical {
                true => Located::Latest(ArcSwapOption::from_pointee(described.address)),
                false => Located::Fixed(described.address.or_else(literal)),
            },
            hostname: described.hostname.clone(),
            trouble: AtomicU8::new(0),
            reasons: Mutex::default(),
            common,
            tallies: Mutex::default(),
            connects: AtomicU64::new(0),
            connect_failures: AtomicU64::new(0),
            record: Record::default(),
        }
    }

    /// Whether it is what the source names.
    pub(super) fn is(&self, described: &Described) -> bool {
        let at = match &self.address {
            Located::Fixed(address) => {
                !described.logical && (described.address.is_none() || *address == described.address)
            }
            Located::Latest(_) => described.logical,
        };
        at && self.hostname == described.hostname && self.target.is(&described.target)
    }

    /// Where it is, as it was named.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Its address, where it is known without asking for it.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.address {
            Located::Fixed(address) => *address,
            Located::Latest(address) => address.load().as_deref().copied(),
        }
    }

    /// Takes over what may change of an endpoint that stays.
    pub(super) fn update(&self, described: &Described) {
        self.mark(Trouble::Withdrawn, described.withdrawn);
        if let (Located::Latest(address), Some(to)) = (&self.address, described.address) {
            address.store(Some(Arc::new(to)));
        }
    }

    /// Its name for TLS and for health checks: as configured, else the host of its target.
    pub fn hostname(&self) -> &str {
        match (&self.hostname, &self.target) {
            (Some(name), _) => name,
            (None, Target::Address(Address::Tcp { host, .. })) => host,
            (None, _) => "localhost",
        }
    }

    /// Its name, where it has one that is no address.
    pub fn host_name(&self) -> Option<&str> {
        match (&self.hostname, &self.target) {
            (Some(name), _) => Some(name),
            (None, Target::Address(Address::Tcp { host, .. })) => {
                Some(host.as_str()).filter(|host| host.parse::<IpAddr>().is_err())
            }
            (None, _) => None,
        }
    }

    /// Whether nothing speaks against using it.
    pub fn is_healthy(&self) -> bool {
        self.trouble.load(Ordering::Relaxed) == 0
    }

    /// Whether it is in this trouble.
    pub fn is_in(&self, trouble: Trouble) -> bool {
        self.trouble.load(Ordering::Relaxed) & trouble as u8 != 0
    }

    /// Marks it, or takes the mark away; balancers see it before their next pick. Tells whether
    /// that changed something.
    pub fn mark(&self, trouble: Trouble, is: bool) -> bool {
        let bit = trouble as u8;
        let before = match is {
            true => self.trouble.fetch_or(bit, Ordering::Relaxed),
            false => self.trouble.fetch_and(!bit, Ordering::Relaxed),
        };
        let changed = (before & bit != 0) != is;
        if changed {
            if !is {
                self.reasons().retain(|(of, _)| *of != trouble);
            }
            self.common.raise();
        }
        changed
    }

    /// Marks it, and keeps the reason to be looked at.
    pub fn mark_for(&self, trouble: Trouble, reason: impl fmt::Display) -> bool {
        let changed = self.mark(trouble, true);
        let mut text = reason.to_string();
        if text.len() > LONGEST_REASON {
            text.truncate(text.floor_char_boundary(LONGEST_REASON));
        }
        let mut reasons = self.reasons();
        reasons.retain(|(of, _)| *of != trouble);
        reasons.push((trouble, text));
        changed
    }

    /// Why it is in this trouble, where that is known.
    pub fn reason(&self, trouble: Trouble) -> Option<String> {
        let reasons = self.reasons();
        let mut reasons = reasons.iter();
        let of = reasons.find(|(of, _)| *of == trouble);
        of.map(|(_, reason)| reason.clone())
    }

    fn reasons(&self) -> MutexGuard<'_, Vec<(Trouble, String)>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one worker to count in.
    pub(super) fn tally(&self) -> Arc<Tally> {
        let tally = Arc::new(Tally::default());
        let mut all = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(&tally));
        tally
    }

    /// Requests on it now, over all workers.
    pub fn active(&self) -> u64 {
        let all = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let each = all.iter().filter_map(Weak::upgrade);
        each.map(|tally| u64::from(tally.active.load(Ordering::Relaxed)))
            .sum()
    }

    /// What outlier detection knows of it.
    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// Waits for an attempt to connect, and counts it.
    ///
    /// # Errors
    /// Those of the attempt.
    pub async fn counted<T, E>(&self, attempt: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let started = Instant::now();
        let result = attempt.await;
        self.count_connect(result.is_ok(), started.elapsed());
        result
    }

    /// Counts an attempt to connect.
    pub(super) fn count_connect(&self, made: bool, took: Duration) {
        let counter = match made {
            true => &self.connects,
            false => &self.connect_failures,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(stats) = self.common.stats.get() {
            stats.connect(made, took);
        }
    }

    /// Connections made and attempts failed, over all workers.
    pub fn connects(&self) -> (u64, u64) {
        (
            self.connects.load(Ordering::Relaxed),
            self.connect_failures.load(Ordering::Relaxed),
        )
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address(), &self.target) {
            (Some(address), _) => address.fmt(f),
            (None, Target::Address(address)) => address.fmt(f),
            (None, Target::Embedded(_)) => f.write_str("embedded"),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What one worker counts of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) active: AtomicU32,
}

/// What the endpoints of a cluster have in common.
#[derive(Debug, Default)]
pub(super) struct Common {
    /// Counts the changes of the set and of its members' health.
    version: AtomicU64,
    pub(super) changed: Notify,
    pub(super) stats: OnceLock<Stats>,
}

impl Common {
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(super) fn raise(&self) {
        self.version.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
    }
}
