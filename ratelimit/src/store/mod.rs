//! Where counters live.

pub mod inspect;
pub(crate) mod key;
pub mod lease;
pub mod memcached;
pub mod memory;
pub mod outage;
pub mod over_limit;
pub mod redis;
pub mod shared;
mod split;

use std::{fmt::Write as _, future::Future, ops::Range};

use self::key::KeyText;
use crate::limiter::{UnixTime, Window};

pub use inspect::{CounterState, Inspect, Page, Query};
pub use memcached::MemcachedStore;
pub use memory::MemoryStore;
pub use redis::RedisStore;
pub use shared::{SharedSettings, SharedStore};

/// Counters that many requests add to at once.
///
/// Exactness is the contract: an addition and the reading of its result are one step, so that of
/// any number of concurrent hits on one key exactly as many fit a limit as it allows.
pub trait Store: Send + Sync + 'static {
    /// Carries out all charges of `batch` in order and puts what became of each into `readings`,
    /// which comes in empty and goes out as long as the batch.
    ///
    /// # Errors
    /// When the counters cannot be reached in time. Some of the charges may then have been
    /// carried out.
    fn charge(
        &self,
        batch: &Batch,
        readings: &mut Vec<Reading>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// How far the time to count by is ahead of this instance's clock, in microseconds. A store that
    /// several instances share goes by its own time, so that all of them are in the same window.
    fn ahead(&self) -> i64 {
        0
    }

    /// The time to count by, when this instance's clock shows `local`.
    fn time(&self, local: UnixTime) -> UnixTime {
        UnixTime::from_micros(local.micros().saturating_add_signed(self.ahead()))
    }

    /// Whether the counters can be reached at the moment. Those of this process always can.
    fn is_connected(&self) -> bool {
        true
    }

    /// Frees the counters of windows that ended before `now`. Called every few seconds for as
    /// long as it returns true; false says that the store needs no such help.
    fn sweep(&self, _now: UnixTime) -> bool {
        false
    }
}

/// A store that is never waited for.
pub trait ImmediateStore: Store {
    /// Does at once what [`Store::charge`] does for a batch of one charge.
    fn charge_one(&self, key: &str, terms: &Terms, amount: Amount, now: UnixTime) -> Reading;
}

impl ImmediateStore for MemoryStore {
    #[inline]
    fn charge_one(&self, key: &str, terms: &Terms, amount: Amount, now: UnixTime) -> Reading {
        MemoryStore::charge_one(self, key, terms, amount, now)
    }
}

impl<S: ImmediateStore> ImmediateStore for std::sync::Arc<S> {
    #[inline]
    fn charge_one(&self, key: &str, terms: &Terms, amount: Amount, now: UnixTime) -> Reading {
        S::charge_one(self, key, terms, amount, now)
    }
}

/// Why a store did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no connection, and a new one is being made in the background.
    #[error("{store} at {address} is not connected: {reason}")]
    NotConnected {
        /// What kind of store it is: `redis` or `memcached`.
        store: &'static str,
        /// Where the store is, without credentials.
        address: String,
        /// What the last attempt ended with.
        reason: String,
    },
    /// No answer came within the deadline of one operation.
    #[error("{store} at {address} did not answer within {millis} ms")]
    Timeout {
        /// What kind of store it is: `redis` or `memcached`.
        store: &'static str,
        /// Where the store is, without credentials.
        address: String,
        /// The deadline.
        millis: u128,
    },
    /// The store answered with an error.
    #[error("{store} at {address}: {reason}")]
    Failed {
        /// What kind of store it is: `redis` or `memcached`.
        store: &'static str,
        /// Where the store is, without credentials.
        address: String,
        /// What it said.
        reason: String,
    },
    /// A list of counters cannot go on there.
    #[error("`{cursor}` is not a cursor of a list of counters")]
    NoCursor {
        /// Where it was to go on.
        cursor: String,
    },
    /// The store cannot count in the way that the rule asks for.
    #[error("{store} cannot count {what}")]
    Unsupported {
        /// What kind of store it is.
        store: &'static str,
        /// What it cannot do.
        what: &'static str,
    },
}

/// What to do with a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// Add hits; 0 only looks.
    Add(u32),
    /// Give hits back; a counter does not go below 0.
    Refund(u32),
}

/// How hits are counted over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Meter {
    /// One count for each window, from 0.
    FixedWindow(Window),
    /// The count of the window, and of the window before it as much as is left of a span of one
    /// window's length that ends now.
    SlidingWindow(Window),
    /// A bucket of `burst` tokens that gets the limit's number of them every `period` seconds,
    /// evenly. What counts is the tokens that are missing from it. Also known as GCRA.
    TokenBucket {
        /// Seconds; at least 1.
        period: u64,
        /// Tokens that the bucket holds.
        burst: u32,
    },
}

/// What becomes of hits that do not fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Rejected {
    /// They stay counted, as in the reference service.
    #[default]
    Counted,
    /// They are not counted.
    Free,
}

/// How exactly instances that share a store keep a limit together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// The store decides each hit.
    #[default]
    Exact,
    /// Instances take shares of the limit from the store and spend them on their own.
    Leased,
}

/// What happens to hits while the store is away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Outage {
    /// The request gets an error, as in the reference service, so that the caller's failure mode
    /// applies.
    #[default]
    Fail,
    /// They pass.
    Open,
    /// They do not.
    Closed,
    /// Each instance counts on its own, up to a share of the limit.
    LocalShare,
}

/// How one rule's hits are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How they are counted over time.
    pub meter: Meter,
    /// How many fit: of a window, or into a bucket in a period.
    pub limit: u32,
    /// What becomes of those that do not fit.
    pub rejected: Rejected,
    /// How instances share the limit.
    pub sharing: Sharing,
    /// What happens while the store is away.
    pub outage: Outage,
}

/// One counter to charge.
#[derive(Debug, Clone)]
pub struct Charge {
    key: Range<usize>,
    /// How to count.
    pub terms: Terms,
    /// What to do.
    pub amount: Amount,
}

/// Whether the charges of a batch depend on each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Charging {
    /// Each counter is charged, whatever becomes of the others.
    #[default]
    Each,
    /// Either all hits fit and are counted, or none is.
    AllOrNothing,
}

/// What became of a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// What counted before the charge.
    pub before: u64,
    /// What counts with it. Of hits that were not counted since they did not fit, what would
    /// count.
    pub after: u64,
    /// Whether it was carried out.
    pub charged: bool,
    /// When the counter is as if it had never been charged, in seconds from now, at least 1.
    pub resets_in: u64,
    /// Who says so.
    pub source: Source,
}

/// Who decided on a charge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Source {
    /// The store.
    #[default]
    Store,
    /// What this instance remembers of a counter that is over its limit.
    OverLimitCache,
    /// A share of the limit that this instance has leased.
    Lease,
    /// What the rule says for the time while the store is away.
    Outage,
}

/// The charges of one request, their keys in one buffer.
#[derive(Debug)]
pub struct Batch {
    now: UnixTime,
    charging: Charging,
    keys: KeyText,
    charges: Vec<Charge>,
}

impl Terms {
    /// `limit` hits in a fixed window, counted as the reference service does.
    pub fn fixed_window(window: Window, limit: u32) -> Self {
        Self {
            meter: Meter::FixedWindow(window),
            limit,
            rejected: Rejected::default(),
            sharing: Sharing::default(),
            outage: Outage::default(),
        }
    }

    /// What a reading is held against: the limit, or what fits into the bucket.
    #[inline]
    pub fn capacity(&self) -> u32 {
        match self.meter {
            Meter::FixedWindow(_) | Meter::SlidingWindow(_) => self.limit,
            Meter::TokenBucket { burst, .. } => burst,
        }
    }
}

impl Reading {
    /// What the store says of a counter that went from `before` to `after`.
    pub fn of_store(before: u64, after: u64, resets_in: u64) -> Self {
        Self {
            before,
            after,
            charged: true,
            resets_in,
            source: Source::Store,
        }
    }
}

impl Batch {
    /// An empty batch for the time `now`, of charges that do not depend on each other.
    pub fn new(now: UnixTime) -> Self {
        Self {
            now,
            charging: Charging::default(),
            keys: KeyText::default(),
            charges: Vec::new(),
        }
    }

    /// Empties the batch for another request, at the time `now`.
    pub fn restart(&mut self, now: UnixTime, charging: Charging) {
        self.now = now;
        self.charging = charging;
        self.keys.clear();
        self.charges.clear();
    }

    /// The charges that `keep` says yes to, by their number.
    #[must_use]
    pub fn part(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let mut part = Self::new(self.now);
        part.charging = self.charging;
        for (number, (key, charge)) in self.iter().enumerate() {
            if keep(number) {
                part.charge_key(key, charge.terms, charge.amount);
            }
        }
        part
    }

    /// Changes nothing any more: all charges become looks.
    pub fn only_look(&mut self) {
        for charge in &mut self.charges {
            charge.amount = Amount::Add(0);
        }
    }

    /// Bytes that the batch holds on to.
    pub(crate) fn footprint(&self) -> usize {
        self.keys.footprint() + self.charges.capacity() * size_of::<Charge>()
    }

    /// The time of the request.
    pub fn now(&self) -> UnixTime {
        self.now
    }

    /// Whether the charges depend on each other.
    pub fn charging(&self) -> Charging {
        self.charging
    }

    /// Whether what becomes of a charge is not up to its own terms.
    fn is_together(&self) -> bool {
        let counted = |charge: &Charge| charge.terms.rejected == Rejected::Counted;
        self.charging == Charging::AllOrNothing
            && (self.charges.len() > 1 || self.charges.iter().any(counted))
    }

    /// Sets whether the charges depend on each other.
    pub fn set_charging(&mut self, charging: Charging) {
        self.charging = charging;
    }

    /// Starts a key with a domain. An earlier key that was not charged is dropped.
    pub fn begin(&mut self, domain: &str) {
        self.keys.begin(domain);
    }

    /// Extends the key by one entry of a descriptor.
    ///
    /// Returns `<key>_<value>`, which is also the name that rules are looked up by.
    pub fn entry(&mut self, key: &str, value: &str) -> &str {
        self.keys.entry(key, value)
    }

    /// Charges the key that was put together last.
    pub fn charge(&mut self, terms: Terms, amount: Amount) {
        self.charges.push(Charge {
            key: self.keys.keep(),
            terms,
            amount,
        });
    }

    /// Where the next key is put together.
    pub(crate) fn keys(&mut self) -> &mut KeyText {
        &mut self.keys
    }

    /// Nothing to charge.
    pub fn is_empty(&self) -> bool {
        self.charges.is_empty()
    }

    /// How many counters are charged.
    pub fn len(&self) -> usize {
        self.charges.len()
    }

    /// The charges with their keys, `<domain>_<key>_<value>_...`, without the window.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Charge)> {
        let charges = self.charges.iter();
        charges.map(|charge| (self.keys.kept(&charge.key), charge))
    }

    /// A key as it stands in a shared store: behind a prefix, followed by the window's start.
    fn write_key(buffer: &mut String, prefix: &str, key: &str, window: Window) {
        buffer.clear();
        buffer.push_str(prefix);
        buffer.push_str(key);
        // Writing to a String cannot fail.
        let _ = write!(buffer, "{}", window.start);
    }

    /// An empty batch for the same time.
    fn another(&self, charging: Charging) -> Self {
        let mut batch = Self::new(self.now);
        batch.charging = charging;
        batch
    }

    /// Charges a key as it stands in another batch.
    fn charge_key(&mut self, key: &str, terms: Terms, amount: Amount) {
        self.keys.whole(key);
        self.charge(terms, amount);
    }
}

/// A store chosen when the program starts.
#[derive(Debug)]
pub enum AnyStore {
    /// Counters of this process.
    Memory(MemoryStore),
    /// Counters shared through Redis.
    Redis(Box<SharedStore<RedisStore>>),
    /// Counters shared through memcached.
    Memcached(Box<SharedStore<MemcachedStore>>),
}

impl Store for AnyStore {
    async fn charge(&self, batch: &Batch, readings: &mut Vec<Reading>) -> Result<(), StoreError> {
        match self {
            Self::Memory(store) => store.charge(batch, readings).await,
            // Boxed, so that counting in memory does not carry the room that these need.
            Self::Redis(store) => Box::pin(store.charge(batch, readings)).await,
            Self::Memcached(store) => Box::pin(store.charge(batch, readings)).await,
        }
    }

    fn ahead(&self) -> i64 {
        match self {
            Self::Memory(store) => store.ahead(),
            Self::Redis(store) => store.ahead(),
            Self::Memcached(store) => store.ahead(),
        }
    }

    fn is_connected(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Redis(store) => store.is_connected(),
            Self::Memcached(store) => store.is_connected(),
        }
    }

    fn sweep(&self, now: UnixTime) -> bool {
        match self {
            Self::Memory(store) => Store::sweep(store, now),
            Self::Redis(store) => store.sweep(now),
            Self::Memcached(store) => store.sweep(now),
        }
    }
}

/// Counters in memcached cannot be looked at: it does not list its keys.
impl Inspect for AnyStore {
    async fn list(
        &self,
        query: &inspect::Query,
        now: UnixTime,
    ) -> Result<inspect::Page, StoreError> {
        match self {
            Self::Memory(store) => store.list(query, now).await,
            Self::Redis(store) => store.list(query, now).await,
            Self::Memcached(_) => Err(not_listed()),
        }
    }

    async fn reset(&self, prefix: &str) -> Result<u64, StoreError> {
        match self {
            Self::Memory(store) => store.reset(prefix).await,
            Self::Redis(store) => store.reset(prefix).await,
            Self::Memcached(_) => Err(not_listed()),
        }
    }
}

fn not_listed() -> StoreError {
    StoreError::Failed {
        store: "memcached",
        address: "its servers".to_owned(),
        reason: "it cannot list its counters".to_owned(),
    }
}

impl From<MemoryStore> for AnyStore {
    fn from(store: MemoryStore) -> Self {
        Self::Memory(store)
    }
}

impl<S: Store> Store for std::sync::Arc<S> {
    fn charge(
        &self,
        batch: &Batch,
        readings: &mut Vec<Reading>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        S::charge(self, batch, readings)
    }

    fn ahead(&self) -> i64 {
        S::ahead(self)
    }

    fn is_connected(&self) -> bool {
        S::is_connected(self)
    }

    fn sweep(&self, now: UnixTime) -> bool {
        S::sweep(self, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charge(batch: &mut Batch, length: u64) {
        let window = Window::at(batch.now().seconds(), length);
        batch.charge(Terms::fixed_window(window, 10), Amount::Add(1));
    }

    fn stored_keys(batch: &Batch) -> Vec<String> {
        let mut buffer = String::new();
        batch
            .iter()
            .map(|(key, charge)| {
                let Meter::FixedWindow(window) = charge.terms.meter else {
                    panic!("{charge:?}");
                };
                Batch::write_key(&mut buffer, "", key, window);
                buffer.clone()
            })
            .collect()
    }

    #[test]
    fn keys_are_those_of_the_reference() {
        let mut batch = Batch::new(UnixTime::from_seconds(1234));
        batch.begin("domain");
        assert_eq!(batch.entry("key", "value"), "key_value");
        charge(&mut batch, 1);
        batch.begin("domain");
        assert_eq!(batch.entry("key", ""), "key_");
        charge(&mut batch, 1);
        batch.begin("domain");
        batch.entry("key2", "value2");
        batch.entry("subkey2", "subvalue2");
        charge(&mut batch, 60);
        assert_eq!(
            stored_keys(&batch),
            [
                "domain_key_value_1234",
                "domain_key__1234",
                "domain_key2_value2_subkey2_subvalue2_1200"
            ]
        );
    }

    #[test]
    fn values_that_share_a_counter_share_its_key() {
        let mut batch = Batch::new(UnixTime::from_seconds(1234));
        batch.begin("domain");
        batch.entry("top", "a");
        batch.keys.share("top/*");
        batch.entry("files", "ü.pdf");
        batch.keys.share("files/*");
        charge(&mut batch, 1);
        assert_eq!(stored_keys(&batch), ["domain_top_top/*_files_files/*_1234"]);
    }

    #[test]
    fn a_key_that_is_not_charged_leaves_no_trace() {
        let mut batch = Batch::new(UnixTime::from_seconds(1234));
        batch.begin("d");
        batch.entry("a", "1");
        batch.begin("d");
        batch.entry("b", "2");
        charge(&mut batch, 3600);
        assert_eq!(stored_keys(&batch), ["d_b_2_0"]);
    }
}
