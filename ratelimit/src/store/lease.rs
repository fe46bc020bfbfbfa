//! Shares of a limit that an instance takes from the store and spends on its own.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use attache_service::{
    Metrics,
    metrics::{Counter, Gauge},
};
use tokio::time::Instant;

use super::{
    Amount, Batch, Charge, Charging, Inspect, Meter, Outage, Page, Query, Reading, Rejected,
    Sharing, Source, Store, StoreError, Terms,
    split::{Known, charge_rest},
};
use crate::limiter::{UnixTime, Window};

const SHARDS: usize = 16;

/// A share that nobody has spent from for so many times its length is given back.
const IDLE: u32 = 2;

/// How shares are borrowed.
#[derive(Debug, Clone)]
pub struct LeaseSettings {
    /// The largest share, in hits; up to 2^31. Default 1,000.
    pub max: u32,
    /// A share is meant to last this long at the rate of the last ones. Default 100 ms.
    pub target: Duration,
    /// Counters with shares at once; others are exact. Default 10,000.
    pub capacity: usize,
}

impl Default for LeaseSettings {
    fn default() -> Self {
        Self {
            max: 1000,
            target: Duration::from_millis(100),
            capacity: 10_000,
        }
    }
}

/// A store from which shares of limits are borrowed, for charges of fixed windows that ask for
/// it ([`Sharing::Leased`]); all others go through.
///
/// A share is taken by adding it to the counter as if it were hits, and only if it fits, together
/// with a hit that the store decides: so
/// together the instances never let more pass than the limit. What they have borrowed and not
/// spent others cannot have: of `N` instances up to `N` times the size of a share may be refused
/// though the limit is not reached. A share grows while it is spent sooner than it is meant to
/// last, shrinks when it is not, and is at most `1 / 2N` of what is left; when that is less than
/// two hits, each hit is decided by the store. What is not spent for a while, or when the window
/// is about to end, is given back.
///
/// What remains of the limit, as the answers tell it, is what the store last said.
#[derive(Debug)]
pub struct LeaseStore<S> {
    inner: Arc<Inner<S>>,
}

#[derive(Debug)]
struct Inner<S> {
    store: S,
    settings: LeaseSettings,
    instances: NonZeroU32,
    hasher: RandomState,
    shards: Box<[Mutex<Leases>]>,
    /// The last leased charge was decided without the store.
    is_away: AtomicBool,
    borrowed: Counter,
    returned: Counter,
    held: Gauge,
}

/// By their keys.
type Leases = HashMap<Box<str>, Lease>;

/// What this instance has of one counter.
#[derive(Debug)]
struct Lease {
    window: Window,
    /// Borrowed and not spent.
    tokens: u64,
    /// What the counter stood at when the store was last asked.
    count: u64,
    limit: u32,
    /// How much to borrow next.
    size: u64,
    /// Somebody is borrowing.
    is_borrowing: bool,
    borrowed_at: Instant,
    spent_at: Instant,
    /// When the window ends.
    ends_at: Instant,
}

/// What is to be done about one charge.
enum Step {
    /// It is answered.
    Known(Reading),
    /// The store decides.
    Exact,
    /// The store decides, and is asked for a share of this size.
    Borrow(u32),
}

impl<S: Store> LeaseStore<S> {
    /// A store that lends to this instance and others, `instances` in all.
    ///
    /// Must run in a tokio runtime, which gives back what is not spent.
    pub fn new(
        store: S,
        settings: LeaseSettings,
        instances: NonZeroU32,
        metrics: &Metrics,
    ) -> Self {
        let inner = Arc::new(Inner {
            store,
            settings,
            instances,
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            is_away: AtomicBool::new(false),
            borrowed: metrics.counter(
                "attache_ratelimit_lease_borrowed",
                "Hits borrowed from the store in advance.",
                &[],
            ),
            returned: metrics.counter(
                "attache_ratelimit_lease_returned",
                "Borrowed hits given back to the store.",
                &[],
            ),
            held: metrics.gauge(
                "attache_ratelimit_lease_counters",
                "Counters that shares are held of.",
                &[],
            ),
        });
        tokio::spawn(give_back(Arc::downgrade(&inner)));
        Self { inner }
    }

    /// The store behind.
    pub fn store(&self) -> &S {
        &self.inner.store
    }
}

impl<S: Store> Store for LeaseStore<S> {
    async fn charge(&self, batch: &Batch, readings: &mut Vec<Reading>) -> Result<(), StoreError> {
        let leases = batch.iter().any(|(_, charge)| leased(charge).is_some());
        if !leases || batch.charging() == Charging::AllOrNothing {
            return self.inner.store.charge(batch, readings).await;
        }
        self.inner.charge(batch, readings).await
    }

    fn ahead(&self) -> i64 {
        self.inner.store.ahead()
    }

    fn is_connected(&self) -> bool {
        self.inner.store.is_connected()
    }

    fn sweep(&self, now: UnixTime) -> bool {
        self.inner.store.sweep(now)
    }
}

/// The window and the hits, if they may be taken from a share.
fn leased(charge: &Charge) -> Option<(Window, u32)> {
    match (charge.terms.sharing, charge.terms.meter, charge.amount) {
        (Sharing::Leased, Meter::FixedWindow(window), Amount::Add(hits)) => Some((window, hits)),
        _ => None,
    }
}

impl<S: Store> Inner<S> {
    async fn charge(&self, batch: &Batch, readings: &mut Vec<Reading>) -> Result<(), StoreError> {
        // The charges, and behind each for which a share is borrowed the share.
        let mut asked = batch.another(Charging::Each);
        let mut known = Known::with_capacity(batch.len());
        let mut shares = Vec::with_capacity(batch.len());
        let mut borrows = Borrows {
            inner: self,
            keys: Vec::new(),
        };
        for (key, charge) in batch.iter() {
            let step = match leased(charge) {
                Some((window, hits)) => self.step(key, charge, window, hits, batch.now()),
                None => Step::Exact,
            };
            asked.charge_key(key, charge.terms, charge.amount);
            let (answer, share) = match step {
                Step::Known(reading) => (Some(reading), None),
                Step::Exact => (None, None),
                Step::Borrow(size) => (None, Some(size)),
            };
            known.push(answer);
            shares.push(share);
            if let Some(size) = share {
                borrows.keys.push(key);
                asked.charge_key(key, share_of(&charge.terms), Amount::Add(size));
                known.push(None);
            }
        }
        let mut answers = Vec::with_capacity(asked.len());
        charge_rest(&self.store, &asked, Charging::Each, known, &mut answers).await?;
        let mut answers = answers.into_iter();
        for ((key, charge), share) in batch.iter().zip(shares) {
            let Some(reading) = answers.next() else { break };
            readings.push(reading);
            if leased(charge).is_some() {
                self.note(key, charge, &reading);
            }
            if let (Some(size), Some(answer)) = (share, share.and_then(|_| answers.next())) {
                self.settle(key, charge, size, &answer);
            }
        }
        Ok(())
    }

    fn shard(&self, key: &str) -> Option<MutexGuard<'_, Leases>> {
        #[allow(clippy::cast_possible_truncation)]
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        let shard = self.shards.get(at)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn step(&self, key: &str, charge: &Charge, window: Window, hits: u32, now: UnixTime) -> Step {
        let limit = charge.terms.limit;
        let hits = u64::from(hits);
        let Some(mut shard) = self.shard(key) else {
            return Step::Exact;
        };
        if !shard.contains_key(key) {
            if shard.len() >= self.settings.capacity.div_ceil(SHARDS) {
                return Step::Exact;
            }
            shard.insert(key.into(), Lease::new(window, limit, now));
            self.held.inc();
        }
        let Some(lease) = shard.get_mut(key) else {
            return Step::Exact;
        };
        if lease.window.length != window.length {
            return Step::Exact;
        }
        if lease.window.start < window.start || lease.limit != limit {
            // What is left of the last window is worth nothing in this one.
            lease.renew(window, limit, now);
        }
        if lease.window.start != window.start {
            return Step::Exact;
        }
        let at = Instant::now();
        if hits > 0 && lease.tokens >= hits {
            lease.tokens -= hits;
            lease.spent_at = at;
            let after = lease.count.saturating_sub(lease.tokens);
            return Step::Known(Reading {
                before: after.saturating_sub(hits),
                after,
                charged: true,
                resets_in: window.resets_in(now.seconds()),
                source: Source::Lease,
            });
        }
        // What is decided while the store is away is no share of its counter.
        if hits == 0 || lease.is_borrowing || self.is_away.load(Ordering::Relaxed) {
            return Step::Exact;
        }
        lease.resize(at, &self.settings, self.instances);
        if lease.size < 2 {
            lease.borrowed_at = at;
            return Step::Exact;
        }
        lease.is_borrowing = true;
        Step::Borrow(u32::try_from(lease.size).unwrap_or(u32::MAX))
    }

    /// Takes what was borrowed, if it was granted.
    fn settle(&self, key: &str, charge: &Charge, size: u32, share: &Reading) {
        let granted = share.source == Source::Store && share.charged;
        if granted {
            self.borrowed.inc_by(size.into());
        }
        let Some(mut shard) = self.shard(key) else {
            return;
        };
        let Some(lease) = shard.get_mut(key) else {
            return;
        };
        if !granted {
            lease.size = 0;
        } else if lease.is_of(&charge.terms) {
            lease.tokens = lease.tokens.saturating_add(size.into());
            lease.count = share.after;
            lease.spent_at = Instant::now();
        }
    }

    /// Remembers what was said of a counter.
    fn note(&self, key: &str, charge: &Charge, reading: &Reading) {
        match reading.source {
            Source::Lease => return,
            Source::Store | Source::OverLimitCache => self.is_away.store(false, Ordering::Relaxed),
            Source::Outage => return self.is_away.store(true, Ordering::Relaxed),
        }
        if let Some(mut shard) = self.shard(key)
            && let Some(lease) = shard.get_mut(key)
            && lease.is_of(&charge.terms)
        {
            lease.count = match reading.charged {
                true => reading.after,
                false => reading.before,
            };
        }
    }

    /// Takes what is to be given back out of the leases, and those that are over.
    fn unspent(&self) -> Batch {
        // The time of a refund does not matter.
        let mut batch = Batch::new(UnixTime::default());
        let idle = self.settings.target * IDLE;
        let now = Instant::now();
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|key, lease| {
                let over = lease.ends_at <= now;
                let is_idle = now.saturating_duration_since(lease.spent_at) >= idle;
                if !over && lease.tokens > 0 && is_idle {
                    let tokens = std::mem::take(&mut lease.tokens);
                    let terms = Terms::fixed_window(lease.window, lease.limit);
                    let back = u32::try_from(tokens).unwrap_or(u32::MAX);
                    batch.charge_key(key, terms, Amount::Refund(back));
                    self.returned.inc_by(tokens);
                    lease.count = lease.count.saturating_sub(tokens);
                    lease.size /= 2;
                }
                let keep = !over && (lease.tokens > 0 || lease.is_borrowing || !is_idle);
                if !keep {
                    self.held.dec();
                }
                keep
            });
        }
        batch
    }
}

impl Lease {
    /// Whether it is a share of what these terms limit.
    fn is_of(&self, terms: &Terms) -> bool {
        Meter::FixedWindow(self.window) == terms.meter && self.limit == terms.limit
    }

    fn new(window: Window, limit: u32, time: UnixTime) -> Self {
        let now = Instant::now();
        let end = UnixTime::from_seconds(window.end()).micros();
        let left = Duration::from_micros(end.saturating_sub(time.micros()));
        Self {
            ends_at: now.checked_add(left).unwrap_or(now),
            window,
            tokens: 0,
            count: 0,
            limit,
            size: 1,
            is_borrowing: false,
            borrowed_at: now,
            spent_at: now,
        }
    }

    /// Starts anew in a window, with the size that was right in the last one.
    fn renew(&mut self, window: Window, limit: u32, time: UnixTime) {
        *self = Self {
            size: self.size.max(1),
            is_borrowing: self.is_borrowing,
            borrowed_at: self.borrowed_at,
            ..Self::new(window, limit, time)
        };
    }

    /// Decides how much to borrow, when the last share is spent.
    fn resize(&mut self, now: Instant, settings: &LeaseSettings, instances: NonZeroU32) {
        let lasted = now.saturating_duration_since(self.borrowed_at);
        self.size = if lasted < settings.target {
            self.size.max(1).saturating_mul(2)
        } else if lasted > settings.target * 2 {
            self.size / 2
        } else {
            self.size
        };
        let left = u64::from(self.limit).saturating_sub(self.count);
        let fair = left / (2 * u64::from(instances.get()));
        self.size = self
            .size
            .min(settings.max.min(u32::MAX / 2).into())
            .min(fair);
        self.borrowed_at = now;
    }
}

/// A share is taken only if it fits, and of the store alone.
fn share_of(terms: &Terms) -> Terms {
    Terms {
        rejected: Rejected::Free,
        sharing: Sharing::Exact,
        outage: Outage::Closed,
        ..*terms
    }
}

/// Lets others borrow again, whatever becomes of the request.
struct Borrows<'a, S: Store> {
    inner: &'a Inner<S>,
    keys: Vec<&'a str>,
}

impl<S: Store> Drop for Borrows<'_, S> {
    fn drop(&mut self) {
        for key in &self.keys {
            if let Some(mut shard) = self.inner.shard(key)
                && let Some(lease) = shard.get_mut(*key)
            {
                lease.is_borrowing = false;
            }
        }
    }
}

/// Gives back what is not spent, for as long as the store is used.
async fn give_back<S: Store>(inner: Weak<Inner<S>>) {
    loop {
        let Some(strong) = inner.upgrade() else {
            return;
        };
        let pause = strong.settings.target.max(Duration::from_millis(1));
        let batch = strong.unspent();
        if !batch.is_empty() {
            let mut readings = Vec::new();
            // What cannot be given back is lost to this window: fewer pass, never more.
            if let Err(error) = strong.store.charge(&batch, &mut readings).await {
                tracing::debug!(%error, "cannot give back what was borrowed");
            }
        }
        drop(strong);
        tokio::time::sleep(pause).await;
    }
}

/// Shares of counters that are forgotten are worth nothing: those hits are not counted any more.
impl<S: Store + Inspect> Inspect for LeaseStore<S> {
    async fn list(&self, query: &Query, now: UnixTime) -> Result<Page, StoreError> {
        self.inner.store.list(query, now).await
    }

    async fn reset(&self, prefix: &str) -> Result<u64, StoreError> {
        let forgotten = self.inner.store.reset(prefix).await;
        for shard in &self.inner.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, lease) in shard.iter_mut() {
                let name = format!("{key}{}", lease.window.start);
                // Of a longer name the end may be a window's length.
                if name.starts_with(prefix) || prefix.starts_with(&name) {
                    (lease.tokens, lease.count) = (0, 0);
                }
            }
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        MemoryStore,
        outage::{BreakerSettings, OutageStore},
    };

    const NOW: UnixTime = UnixTime::from_seconds(7200);

    type Instance = LeaseStore<Arc<MemoryStore>>;

    fn instances(count: u32, max: u32) -> (Arc<MemoryStore>, Vec<Instance>) {
        let store = Arc::new(MemoryStore::default());
        let number = NonZeroU32::new(count).unwrap();
        let settings = LeaseSettings {
            max,
            ..LeaseSettings::default()
        };
        let instances = (0..count)
            .map(|_| LeaseStore::new(store.clone(), settings.clone(), number, &Metrics::default()))
            .collect();
        (store, instances)
    }

    fn terms(limit: u32) -> Terms {
        Terms {
            sharing: Sharing::Leased,
            ..Terms::fixed_window(Window::at(NOW.seconds(), 3600), limit)
        }
    }

    async fn charge(store: &impl Store, limit: u32, amount: Amount) -> Reading {
        let mut batch = Batch::new(NOW);
        batch.charge_key("k", terms(limit), amount);
        let mut readings = Vec::new();
        store.charge(&batch, &mut readings).await.unwrap();
        readings[0]
    }

    async fn hit(store: &impl Store, limit: u32) -> bool {
        charge(store, limit, Amount::Add(1)).await.after <= u64::from(limit)
    }

    #[tokio::test(start_paused = true)]
    async fn four_instances_never_let_more_pass_and_few_less() {
        for max in [10, 100, 1000] {
            let (_, instances) = instances(4, max);
            let mut passed = 0;
            let mut first_refused = None;
            for round in 0..2000 {
                for (number, instance) in instances.iter().enumerate() {
                    // The load is not even.
                    if round % (number + 1) == 0 {
                        match hit(instance, 1000).await {
                            true => passed += 1,
                            false => {
                                first_refused.get_or_insert(passed);
                            }
                        }
                    }
                }
            }
            assert!(passed <= 1000, "{passed}");
            let first_refused = first_refused.unwrap();
            assert!(first_refused >= 1000 - 4 * max.min(125), "{first_refused}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_store_is_asked_less_and_less() {
        let (_, instances) = instances(1, 1000);
        let mut of_store = 0;
        for _ in 0..50_000 {
            let reading = charge(&instances[0], 100_000, Amount::Add(1)).await;
            of_store += u32::from(reading.source == Source::Store);
        }
        let borrowed = instances[0].inner.borrowed.get();
        assert!(borrowed >= 49_000, "{borrowed}");
        // Once for each share.
        assert!(of_store < 100, "{of_store}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_spent_is_given_back() {
        let (store, instances) = instances(1, 1000);
        for _ in 0..100 {
            assert!(hit(&instances[0], 10_000).await);
        }
        let borrowed = charge(&store, 10_000, Amount::Add(0)).await.after;
        assert!(borrowed > 100, "{borrowed}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(charge(&store, 10_000, Amount::Add(0)).await.after, 100);
        assert_eq!(instances[0].inner.held.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_tell_how_many_hits_are_left() {
        let (_, instances) = instances(1, 1000);
        for count in 1..=1000 {
            let reading = charge(&instances[0], 1000, Amount::Add(1)).await;
            assert_eq!((reading.before, reading.after), (count - 1, count));
        }
        assert!(!hit(&instances[0], 1000).await);
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_store_is_away_nothing_is_borrowed_of_the_local_share() {
        /// Not there.
        struct Away;
        impl Store for Away {
            async fn charge(&self, _: &Batch, _: &mut Vec<Reading>) -> Result<(), StoreError> {
                Err(StoreError::Timeout {
                    store: "redis",
                    address: "host:1".to_owned(),
                    millis: 10,
                })
            }
        }
        let (metrics, four) = (Metrics::default(), NonZeroU32::new(4).unwrap());
        let away = OutageStore::new(Away, &BreakerSettings::default(), four, &metrics);
        let store = LeaseStore::new(away, LeaseSettings::default(), four, &metrics);
        let mut passed = 0;
        for _ in 0..1000 {
            let mut batch = Batch::new(NOW);
            let terms = Terms {
                outage: Outage::LocalShare,
                ..terms(1000)
            };
            batch.charge_key("k", terms, Amount::Add(1));
            let mut readings = Vec::new();
            store.charge(&batch, &mut readings).await.unwrap();
            passed += u32::from(readings[0].after <= 1000);
        }
        // A fourth.
        assert_eq!(passed, 250);
        let text = metrics.render();
        assert!(
            text.contains("admitted_without_store_total{} 250"),
            "{text}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_of_one_limit_is_not_spent_on_another() {
        let (_, instances) = instances(1, 1000);
        let lease = &instances[0];
        for _ in 0..20 {
            hit(lease, 10_000).await;
        }
        let mut batch = Batch::new(NOW);
        batch.charge_key("k", terms(10_000), Amount::Add(1));
        let (key, charge) = batch.iter().next().unwrap();
        // The answer to a share of the old limit comes when a lower one is in force.
        hit(lease, 10).await;
        lease
            .inner
            .settle(key, charge, 500, &Reading::of_store(20, 520, 60));
        let shard = lease.inner.shard("k").unwrap();
        assert_eq!(shard.get("k").unwrap().tokens, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_given_up_does_not_stop_the_borrowing() {
        /// Never answers.
        struct Silent;
        impl Store for Silent {
            async fn charge(&self, _: &Batch, _: &mut Vec<Reading>) -> Result<(), StoreError> {
                std::future::pending().await
            }
        }
        let store = LeaseStore::new(
            Silent,
            LeaseSettings::default(),
            NonZeroU32::MIN,
            &Metrics::default(),
        );
        for _ in 0..2 {
            let given_up = tokio::time::timeout(Duration::from_millis(10), hit(&store, 1000)).await;
            assert!(given_up.is_err());
            let shard = store.inner.shard("k").unwrap();
            assert!(!shard.get("k").unwrap().is_borrowing);
        }
    }
}
