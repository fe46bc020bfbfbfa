//! What happens while the store is away: a circuit breaker, and what each rule says.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use attache_service::{
    Metrics,
    metrics::{Counter, Gauge},
};
use tokio::time::Instant;

use super::{
    Amount, Batch, Charge, Charging, Inspect, MemoryStore, Meter, Outage, Page, Query, Reading,
    Source, Store, StoreError, Terms,
};
use crate::limiter::UnixTime;

/// Counters that this instance keeps on its own at once, for [`Outage::LocalShare`].
const LOCAL_COUNTERS: usize = 100_000;

/// When a store counts as away.
#[derive(Debug, Clone)]
pub struct BreakerSettings {
    /// Operations that fail one after the other until the store is asked no more. Default 5.
    pub failures: u32,
    /// After this long one operation tries whether the store is back. Default 250 ms.
    pub probe_after: Duration,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            failures: 5,
            probe_after: Duration::from_millis(250),
        }
    }
}

/// A store that may go away.
///
/// After some failures one after the other it is asked no more, but for one operation from time
/// to time that sees whether it is back. Meanwhile, and for each operation that fails, the rules
/// say what happens to the hits; if one of a request's rules says [`Outage::Fail`], the request
/// fails.
///
/// A local share is the limit divided by the number of instances, rounded down, and starts anew:
/// in the window in which the store goes away as many as the limit may pass once more, in those
/// that lie in the outage no more than the limit. What has passed without the store is counted.
#[derive(Debug)]
pub struct OutageStore<S> {
    store: S,
    breaker: Breaker,
    local: MemoryStore,
    instances: NonZeroU32,
    metrics: OutageMetrics,
}

#[derive(Debug)]
struct OutageMetrics {
    failed: Counter,
    open: Counter,
    closed: Counter,
    local_share: Counter,
    admitted: Counter,
}

impl<S: Store> OutageStore<S> {
    /// A store that may go away, shared by so many instances.
    pub fn new(
        store: S,
        breaker: &BreakerSettings,
        instances: NonZeroU32,
        metrics: &Metrics,
    ) -> Self {
        Self {
            store,
            breaker: Breaker::new(breaker, metrics),
            // Its numbers are not those of the store that the rules are about.
            local: MemoryStore::new(LOCAL_COUNTERS, &Metrics::default()),
            instances,
            metrics: OutageMetrics::new(metrics),
        }
    }

    /// The store behind.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Whether the store counts as away.
    pub fn is_away(&self) -> bool {
        self.breaker.is_open()
    }

    /// Does as the rules say.
    fn without_store(
        &self,
        batch: &Batch,
        readings: &mut Vec<Reading>,
        error: StoreError,
    ) -> Result<(), StoreError> {
        readings.clear();
        let fails = |(_, charge): (&str, &Charge)| charge.terms.outage == Outage::Fail;
        if batch.iter().any(fails) {
            self.metrics.failed.inc();
            return Err(error);
        }
        let refused = batch.charging() == Charging::AllOrNothing
            && batch.len() > 1
            && batch.iter().any(|(_, charge)| {
                charge.terms.outage == Outage::Closed && matches!(charge.amount, Amount::Add(_))
            });
        let mut local = batch.another(batch.charging());
        for (key, charge) in batch.iter() {
            if charge.terms.outage == Outage::LocalShare {
                let amount = match refused {
                    true => Amount::Add(0),
                    false => charge.amount,
                };
                local.charge_key(key, self.share(&charge.terms), amount);
            }
        }
        let mut shares = Vec::with_capacity(local.len());
        self.local.charge_now(&local, &mut shares);
        let mut shares = shares.into_iter();
        let mut admitted = 0_u64;
        for (_, charge) in batch.iter() {
            let reading = match charge.terms.outage {
                Outage::Open => {
                    self.metrics.open.inc();
                    open(batch, charge)
                }
                Outage::Closed => {
                    self.metrics.closed.inc();
                    closed(batch, charge)
                }
                Outage::LocalShare => {
                    self.metrics.local_share.inc();
                    match shares.next() {
                        Some(share) => {
                            let mut reading = self.scaled(&charge.terms, share);
                            if let (true, Amount::Add(hits)) = (refused, charge.amount) {
                                reading.after = reading.before.saturating_add(hits.into());
                                reading.charged = false;
                            }
                            reading
                        }
                        None => closed(batch, charge),
                    }
                }
                Outage::Fail => return Err(error),
            };
            if let Amount::Add(hits) = charge.amount
                && !refused
                && reading.after <= u64::from(charge.terms.capacity())
            {
                admitted = admitted.saturating_add(hits.into());
            }
            readings.push(reading);
        }
        self.metrics.admitted.inc_by(admitted);
        Ok(())
    }

    fn share(&self, terms: &Terms) -> Terms {
        let meter = match terms.meter {
            Meter::TokenBucket { period, burst } => Meter::TokenBucket {
                period,
                burst: burst / self.instances,
            },
            meter @ (Meter::FixedWindow(_) | Meter::SlidingWindow(_)) => meter,
        };
        Terms {
            meter,
            limit: terms.limit / self.instances,
            ..*terms
        }
    }

    /// What is left of the share is what is left of the limit.
    fn scaled(&self, terms: &Terms, reading: Reading) -> Reading {
        let others = terms.capacity() - self.share(terms).capacity();
        Reading {
            before: reading.before.saturating_add(others.into()),
            after: reading.after.saturating_add(others.into()),
            source: Source::Outage,
            ..reading
        }
    }
}

fn open(batch: &Batch, charge: &Charge) -> Reading {
    let capacity = u64::from(charge.terms.capacity());
    let after = match charge.amount {
        Amount::Add(hits) => u64::from(hits).min(capacity),
        Amount::Refund(_) => 0,
    };
    Reading {
        before: 0,
        after,
        charged: false,
        resets_in: resets_in(batch, charge),
        source: Source::Outage,
    }
}

fn closed(batch: &Batch, charge: &Charge) -> Reading {
    let capacity = u64::from(charge.terms.capacity());
    let after = match charge.amount {
        // Who only looks goes on if there is room; there is none.
        Amount::Add(hits) => capacity.saturating_add(u64::from(hits).max(1)),
        Amount::Refund(_) => capacity,
    };
    Reading {
        before: capacity,
        after,
        charged: false,
        resets_in: resets_in(batch, charge),
        source: Source::Outage,
    }
}

fn resets_in(batch: &Batch, charge: &Charge) -> u64 {
    match charge.terms.meter {
        Meter::FixedWindow(window) | Meter::SlidingWindow(window) => {
            window.resets_in(batch.now().seconds())
        }
        Meter::TokenBucket { period, .. } => period.max(1),
    }
}

impl<S: Store> Store for OutageStore<S> {
    async fn charge(&self, batch: &Batch, readings: &mut Vec<Reading>) -> Result<(), StoreError> {
        if let Err(error) = self.breaker.admit() {
            return self.without_store(batch, readings, error);
        }
        match self.store.charge(batch, readings).await {
            Ok(()) => {
                self.breaker.succeeded();
                Ok(())
            }
            // That the store cannot do it says nothing about the store.
            Err(error @ StoreError::Unsupported { .. }) => Err(error),
            Err(error) => {
                self.breaker.failed(&error);
                self.without_store(batch, readings, error)
            }
        }
    }

    fn ahead(&self) -> i64 {
        self.store.ahead()
    }

    fn is_connected(&self) -> bool {
        self.store.is_connected()
    }

    fn sweep(&self, now: UnixTime) -> bool {
        self.store.sweep(now);
        self.local.sweep(now);
        true
    }
}

/// Shows what the store has, not what this instance counts on its own while the store is away.
impl<S: Store + Inspect> Inspect for OutageStore<S> {
    async fn list(&self, query: &Query, now: UnixTime) -> Result<Page, StoreError> {
        self.store.list(query, now).await
    }

    async fn reset(&self, prefix: &str) -> Result<u64, StoreError> {
        self.local.reset(prefix).await?;
        self.store.reset(prefix).await
    }
}

/// Keeps requests from a store that does not answer.
#[derive(Debug)]
struct Breaker {
    failures: u32,
    probe_after: Duration,
    started: Instant,
    /// Failures since the last success.
    failed: AtomicU32,
    /// When the next probe is due, in milliseconds from `started`.
    probe_at: AtomicU64,
    last: ArcSwapOption<StoreError>,
    away: Gauge,
    outages: Counter,
}

impl Breaker {
    fn new(settings: &BreakerSettings, metrics: &Metrics) -> Self {
        Self {
            failures: settings.failures.max(1),
            probe_after: settings.probe_after,
            started: Instant::now(),
            failed: AtomicU32::new(0),
            probe_at: AtomicU64::new(0),
            last: ArcSwapOption::empty(),
            away: metrics.gauge(
                "attache_ratelimit_store_away",
                "Whether the store has failed so often that it is not asked.",
                &[],
            ),
            outages: metrics.counter(
                "attache_ratelimit_store_outages",
                "Times that the store went away.",
                &[],
            ),
        }
    }

    fn is_open(&self) -> bool {
        self.failed.load(Ordering::Relaxed) >= self.failures
    }

    /// Whether the store may be asked; else the error that it last answered with.
    fn admit(&self) -> Result<(), StoreError> {
        if !self.is_open() {
            return Ok(());
        }
        let now = millis(self.started.elapsed());
        let due = self.probe_at.load(Ordering::Relaxed);
        let next = now.saturating_add(millis(self.probe_after));
        let is_probe = now >= due
            && self
                .probe_at
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        match self.last.load_full() {
            Some(last) if !is_probe => Err((*last).clone()),
            _ => Ok(()),
        }
    }

    fn succeeded(&self) {
        // Most of the time nothing has failed, and nothing is written.
        if self.failed.load(Ordering::Relaxed) == 0 {
            return;
        }
        if self.failed.swap(0, Ordering::Relaxed) >= self.failures {
            self.away.set(0);
            tracing::info!("the store is back");
        }
    }

    fn failed(&self, error: &StoreError) {
        let next = millis(self.started.elapsed()).saturating_add(millis(self.probe_after));
        self.probe_at.store(next, Ordering::Relaxed);
        self.last.store(Some(Arc::new(error.clone())));
        let before = self
            .failed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |failed| {
                Some(failed.saturating_add(1))
            })
            .unwrap_or_default();
        if before.saturating_add(1) == self.failures {
            self.away.set(1);
            self.outages.inc();
            tracing::warn!(%error, "the store is away");
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl OutageMetrics {
    fn new(metrics: &Metrics) -> Self {
        let counter = |policy| {
            metrics.counter(
                "attache_ratelimit_decided_without_store",
                "Charges decided by what the rules say for the time while the store is away.",
                &[("outage", policy)],
            )
        };
        Self {
            failed: counter("fail"),
            open: counter("open"),
            closed: counter("closed"),
            local_share: counter("local_share"),
            admitted: metrics.counter(
                "attache_ratelimit_admitted_without_store",
                "Hits that passed without the store: what limits may be exceeded by, at most.",
                &[],
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::limiter::Window;

    const NOW: UnixTime = UnixTime::from_seconds(61);

    /// Counts, or fails, and how often it is asked.
    #[derive(Debug, Default)]
    struct Flaky {
        memory: MemoryStore,
        is_away: AtomicBool,
        asked: AtomicU32,
    }

    impl Store for Flaky {
        async fn charge(
            &self,
            batch: &Batch,
            readings: &mut Vec<Reading>,
        ) -> Result<(), StoreError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            match self.is_away.load(Ordering::Relaxed) {
                true => Err(away()),
                false => self.memory.charge(batch, readings).await,
            }
        }
    }

    fn away() -> StoreError {
        StoreError::Timeout {
            store: "redis",
            address: "host:1".to_owned(),
            millis: 10,
        }
    }

    fn store(instances: u32) -> (OutageStore<Flaky>, Metrics) {
        let metrics = Metrics::default();
        let instances = NonZeroU32::new(instances).unwrap();
        let store = OutageStore::new(
            Flaky::default(),
            &BreakerSettings::default(),
            instances,
            &metrics,
        );
        store.store.is_away.store(true, Ordering::Relaxed);
        (store, metrics)
    }

    async fn hit(
        store: &OutageStore<Flaky>,
        outage: Outage,
        limit: u32,
    ) -> Result<Reading, StoreError> {
        let mut batch = Batch::new(NOW);
        let terms = Terms {
            outage,
            ..Terms::fixed_window(Window::at(NOW.seconds(), 60), limit)
        };
        batch.charge_key("k", terms, Amount::Add(1));
        let mut readings = Vec::new();
        store.charge(&batch, &mut readings).await?;
        Ok(readings[0])
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_fails_is_asked_no_more_but_for_a_probe() {
        let (store, metrics) = store(1);
        for _ in 0..100 {
            assert_eq!(hit(&store, Outage::Fail, 1).await, Err(away()));
        }
        assert_eq!(store.store.asked.load(Ordering::Relaxed), 5);
        assert!(store.is_away());
        assert!(metrics.render().contains("store_away{} 1"));

        tokio::time::advance(Duration::from_millis(250)).await;
        for _ in 0..10 {
            hit(&store, Outage::Fail, 1).await.unwrap_err();
        }
        assert_eq!(store.store.asked.load(Ordering::Relaxed), 6);

        store.store.is_away.store(false, Ordering::Relaxed);
        tokio::time::advance(Duration::from_millis(250)).await;
        for _ in 0..10 {
            assert_eq!(
                hit(&store, Outage::Fail, 1).await.unwrap().source,
                Source::Store
            );
        }
        assert!(metrics.render().contains("store_away{} 0"));
        assert!(metrics.render().contains("store_outages_total{} 1"));
    }

    #[tokio::test]
    async fn rules_say_what_happens_meanwhile() {
        let (store, metrics) = store(4);
        for hits in 0..10 {
            let passed = |reading: Reading| {
                assert_eq!(reading.source, Source::Outage);
                reading.after <= 10
            };
            assert!(passed(hit(&store, Outage::Open, 10).await.unwrap()));
            assert!(!passed(hit(&store, Outage::Closed, 10).await.unwrap()));
            // A fourth of ten.
            let share = passed(hit(&store, Outage::LocalShare, 10).await.unwrap());
            assert_eq!(share, hits < 2);
        }
        let text = metrics.render();
        assert!(text.contains("admitted_without_store_total{} 12"), "{text}");
        assert!(text.contains(r#"decided_without_store_total{outage="closed"} 10"#));
    }

    #[tokio::test]
    async fn one_rule_that_fails_fails_the_request() {
        let (store, _) = store(1);
        let mut batch = Batch::new(NOW);
        for outage in [Outage::Open, Outage::Fail] {
            let terms = Terms {
                outage,
                ..Terms::fixed_window(Window::at(61, 60), 1)
            };
            batch.charge_key("k", terms, Amount::Add(1));
        }
        let mut readings = Vec::new();
        assert_eq!(store.charge(&batch, &mut readings).await, Err(away()));
        assert!(readings.is_empty());
    }

    #[tokio::test]
    async fn of_charges_that_belong_together_a_closed_one_keeps_the_others_from_counting() {
        let (store, _) = store(1);
        let mut batch = Batch::new(NOW);
        batch.set_charging(Charging::AllOrNothing);
        for (key, outage) in [("a", Outage::LocalShare), ("b", Outage::Closed)] {
            let terms = Terms {
                outage,
                ..Terms::fixed_window(Window::at(61, 60), 1)
            };
            batch.charge_key(key, terms, Amount::Add(1));
        }
        for _ in 0..3 {
            let mut readings = Vec::new();
            store.charge(&batch, &mut readings).await.unwrap();
            assert_eq!((readings[0].before, readings[0].after), (0, 1));
            assert!(!readings[0].charged);
            assert_eq!(readings[1].after, 2);
        }
    }
}
