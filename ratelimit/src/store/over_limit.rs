//! What this instance remembers of counters that are over their limit, so that hits on them need
//! not ask the store.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use attache_service::{Metrics, metrics::Counter};

use super::{
    Amount, Batch, Charge, Charging, Inspect, Meter, Page, Query, Reading, Source, Store,
    StoreError,
    split::{Known, charge_rest},
};
use crate::limiter::{UnixTime, Window};

/// Places that a counter can have. Of those that are full the one whose window ends first goes.
const WAYS: usize = 4;

/// A store that is not asked about counters of fixed windows that are known to be full.
///
/// What is remembered is what a counter stood at, not that it was over: a higher limit, by a
/// reload or by the request, is held against the same count. Hits that are answered from here are
/// not counted in the store. Refunds through this instance are seen; while those of others let
/// hits pass again in the store, this instance goes on refusing until the window ends.
///
/// A counter takes 26 bytes, whatever the length of its key.
#[derive(Debug)]
pub struct OverLimitStore<S> {
    store: S,
    sets: Box<[Mutex<[Full; WAYS]>]>,
    hasher: RandomState,
    /// How often counters were forgotten.
    stale: AtomicU64,
    hits: Counter,
    misses: Counter,
}

/// A counter that cannot take more.
#[derive(Debug, Clone, Copy, Default)]
struct Full {
    /// Of the key and its window.
    hash: u64,
    /// The first second after the window.
    end: u64,
    /// It stands at this at least.
    count: u64,
}

impl<S: Store> OverLimitStore<S> {
    /// Remembers as much as fits into so many bytes; with 0 nothing.
    pub fn new(store: S, bytes: usize, metrics: &Metrics) -> Self {
        let sets = bytes / size_of::<Mutex<[Full; WAYS]>>();
        let sets = sets.max(usize::from(bytes > 0));
        Self {
            store,
            sets: (0..sets).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            stale: AtomicU64::new(0),
            hits: metrics.counter(
                "attache_ratelimit_over_limit_cache_hits",
                "Charges answered without asking the store.",
                &[],
            ),
            misses: metrics.counter(
                "attache_ratelimit_over_limit_cache_misses",
                "Charges that the store was asked about.",
                &[],
            ),
        }
    }

    /// The store behind.
    pub fn store(&self) -> &S {
        &self.store
    }

    fn set(&self, key: &str, window: Window) -> Option<(u64, MutexGuard<'_, [Full; WAYS]>)> {
        let hash = self.hasher.hash_one((key, window.start, window.length));
        #[allow(clippy::cast_possible_truncation)]
        let at = (hash >> 32) as usize % self.sets.len().max(1);
        let set = self.sets.get(at)?;
        Some((hash, set.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// The answer, if the counter is known to be full.
    fn find(&self, key: &str, charge: &Charge, now: UnixTime) -> Option<Reading> {
        let Meter::FixedWindow(window) = charge.terms.meter else {
            return None;
        };
        let Amount::Add(hits) = charge.amount else {
            return None;
        };
        let (hash, set) = self.set(key, window)?;
        let full = set
            .iter()
            .find(|full| full.hash == hash && full.end == window.end())?;
        let (limit, after) = (
            u64::from(charge.terms.limit),
            full.count.saturating_add(hits.into()),
        );
        // Who only looks at a counter that is just full is not over.
        (full.count >= limit && after > limit).then(|| Reading {
            before: full.count,
            after,
            charged: false,
            resets_in: window.resets_in(now.seconds()),
            source: Source::OverLimitCache,
        })
    }

    /// Remembers a counter that is full. What the store said before `stale` went up may not be
    /// true any more.
    fn note(&self, key: &str, charge: &Charge, reading: &Reading, now: UnixTime, stale: u64) {
        let Meter::FixedWindow(window) = charge.terms.meter else {
            return;
        };
        let count = match reading.charged {
            true => reading.after,
            false => reading.before,
        };
        if reading.source != Source::Store || count < u64::from(charge.terms.limit) {
            return;
        }
        let Some((hash, mut set)) = self.set(key, window) else {
            return;
        };
        if self.stale.load(Ordering::Relaxed) != stale {
            return;
        }
        let known = set.iter().position(|full| full.hash == hash);
        let place = known.or_else(|| {
            let ends = |full: &Full| match full.end > now.seconds() {
                true => full.end,
                false => 0,
            };
            (0..WAYS).min_by_key(|at| set.get(*at).map(ends))
        });
        if let Some(full) = place.and_then(|place| set.get_mut(place)) {
            *full = Full {
                hash,
                end: window.end(),
                count,
            };
        }
    }

    /// Forgets the counters that hits are given back to; false if there are none.
    fn forget(&self, batch: &Batch) -> bool {
        let mut any = false;
        for (key, charge) in batch.iter() {
            let (Meter::FixedWindow(window), Amount::Refund(_)) =
                (charge.terms.meter, charge.amount)
            else {
                continue;
            };
            any = true;
            if let Some((hash, mut set)) = self.set(key, window) {
                for full in set.iter_mut().filter(|full| full.hash == hash) {
                    *full = Full::default();
                }
            }
        }
        any
    }

    /// One does not fit, so none is charged; the others are only looked at.
    async fn look(
        &self,
        batch: &Batch,
        known: Known,
        readings: &mut Vec<Reading>,
    ) -> Result<(), StoreError> {
        let mut look = batch.another(Charging::Each);
        for (key, charge) in batch.iter() {
            look.charge_key(key, charge.terms, Amount::Add(0));
        }
        charge_rest(&self.store, &look, Charging::Each, known, readings).await?;
        for (reading, (_, charge)) in readings.iter_mut().zip(batch.iter()) {
            if reading.source != Source::OverLimitCache {
                reading.charged = false;
                reading.after = match charge.amount {
                    Amount::Add(hits) => reading.before.saturating_add(hits.into()),
                    Amount::Refund(hits) => reading.before.saturating_sub(hits.into()),
                };
            }
        }
        Ok(())
    }
}

impl<S: Store> Store for OverLimitStore<S> {
    async fn charge(&self, batch: &Batch, readings: &mut Vec<Reading>) -> Result<(), StoreError> {
        if self.sets.is_empty() {
            return self.store.charge(batch, readings).await;
        }
        let now = batch.now();
        let stale = self.stale.load(Ordering::Relaxed);
        let mut known = Known::new();
        for (place, (key, charge)) in batch.iter().enumerate() {
            if let Some(reading) = self.find(key, charge, now) {
                known.resize(place, None);
                known.push(Some(reading));
            }
        }
        let found = known.iter().flatten().count();
        self.hits.inc_by(u64::try_from(found).unwrap_or(u64::MAX));
        let asked = batch.len().saturating_sub(found);
        self.misses.inc_by(u64::try_from(asked).unwrap_or(u64::MAX));
        let gives_back = self.forget(batch);
        if found == 0 {
            self.store.charge(batch, readings).await?;
        } else {
            known.resize(batch.len(), None);
            if batch.charging() == Charging::AllOrNothing && batch.len() > 1 {
                self.look(batch, known, readings).await?;
            } else {
                charge_rest(&self.store, batch, batch.charging(), known, readings).await?;
            }
        }
        for ((key, charge), reading) in batch.iter().zip(readings.iter()) {
            self.note(key, charge, reading, now, stale);
        }
        if gives_back {
            // What the store said to others before is not true any more.
            self.stale.fetch_add(1, Ordering::Relaxed);
            self.forget(batch);
        }
        Ok(())
    }

    fn ahead(&self) -> i64 {
        self.store.ahead()
    }

    fn is_connected(&self) -> bool {
        self.store.is_connected()
    }

    fn sweep(&self, now: UnixTime) -> bool {
        self.store.sweep(now)
    }
}

/// With some counters this instance forgets all that it remembers: keys are remembered by their
/// hash.
impl<S: Store + Inspect> Inspect for OverLimitStore<S> {
    async fn list(&self, query: &Query, now: UnixTime) -> Result<Page, StoreError> {
        self.store.list(query, now).await
    }

    async fn reset(&self, prefix: &str) -> Result<u64, StoreError> {
        let forgotten = self.store.reset(prefix).await;
        // Of those that could not all be forgotten some may be.
        self.stale.fetch_add(1, Ordering::Relaxed);
        for set in &self.sets {
            *set.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{MemoryStore, Rejected, Terms};

    const NOW: UnixTime = UnixTime::from_seconds(61);

    fn terms(limit: u32) -> Terms {
        Terms::fixed_window(Window::at(NOW.seconds(), 60), limit)
    }

    async fn charge(
        store: &OverLimitStore<MemoryStore>,
        charges: &[(&str, u32, Amount)],
        charging: Charging,
    ) -> Vec<Reading> {
        let mut batch = Batch::new(NOW);
        batch.set_charging(charging);
        for (key, limit, amount) in charges {
            batch.charge_key(key, terms(*limit), *amount);
        }
        let mut readings = Vec::new();
        store.charge(&batch, &mut readings).await.unwrap();
        assert_eq!(readings.len(), charges.len());
        readings
    }

    async fn one(store: &OverLimitStore<MemoryStore>, limit: u32, amount: Amount) -> Reading {
        charge(store, &[("k", limit, amount)], Charging::Each).await[0]
    }

    fn store(bytes: usize) -> OverLimitStore<MemoryStore> {
        OverLimitStore::new(MemoryStore::default(), bytes, &Metrics::default())
    }

    #[tokio::test]
    async fn a_full_counter_is_answered_without_the_store() {
        let store = store(1 << 10);
        let first = one(&store, 1, Amount::Add(1)).await;
        assert_eq!((first.after, first.source), (1, Source::Store));
        let second = one(&store, 1, Amount::Add(1)).await;
        assert_eq!((second.after, second.source), (2, Source::OverLimitCache));
        let looked_at = one(&store, 1, Amount::Add(0)).await;
        assert_eq!((looked_at.after, looked_at.source), (1, Source::Store));
    }

    #[tokio::test]
    async fn a_higher_limit_is_held_against_the_count() {
        let store = store(1 << 10);
        one(&store, 1, Amount::Add(1)).await;
        let raised = one(&store, 3, Amount::Add(1)).await;
        assert_eq!((raised.after, raised.source), (2, Source::Store));
        assert!(raised.charged);
    }

    #[tokio::test]
    async fn counters_that_are_forgotten_are_not_known_any_more() {
        let store = store(1 << 10);
        one(&store, 1, Amount::Add(1)).await;
        assert_eq!(store.reset("k").await, Ok(1));
        let again = one(&store, 1, Amount::Add(1)).await;
        assert_eq!((again.after, again.source), (1, Source::Store));
    }

    #[test]
    fn an_answer_from_before_counters_were_forgotten_is_not_remembered() {
        let store = store(1 << 10);
        let mut batch = Batch::new(NOW);
        batch.charge_key("k", terms(1), Amount::Add(1));
        let (key, charge) = batch.iter().next().unwrap();
        let full = Reading::of_store(0, 1, 60);
        let stale = store.stale.fetch_add(1, Ordering::Relaxed);
        store.note(key, charge, &full, NOW, stale);
        assert_eq!(store.find(key, charge, NOW), None);
        store.note(key, charge, &full, NOW, stale + 1);
        assert!(store.find(key, charge, NOW).is_some());
    }

    #[tokio::test]
    async fn hits_given_back_are_seen() {
        let store = store(1 << 10);
        one(&store, 1, Amount::Add(1)).await;
        one(&store, 1, Amount::Refund(1)).await;
        let again = one(&store, 1, Amount::Add(1)).await;
        assert_eq!((again.after, again.source), (1, Source::Store));
    }

    #[tokio::test]
    async fn an_answer_from_before_hits_were_given_back_is_not_remembered() {
        let store = store(1 << 10);
        let mut batch = Batch::new(NOW);
        batch.charge_key("k", terms(1), Amount::Add(1));
        let (key, charge) = batch.iter().next().unwrap();
        let asked = store.stale.load(Ordering::Relaxed);
        let full = Reading::of_store(0, 1, 60);
        // Another request gives the hit back before this one has heard of its answer.
        one(&store, 1, Amount::Refund(1)).await;
        store.note(key, charge, &full, NOW, asked);
        assert_eq!(store.find(key, charge, NOW), None);
    }

    #[tokio::test]
    async fn without_memory_the_store_is_asked_every_time() {
        let store = store(0);
        for _ in 0..3 {
            assert_eq!(one(&store, 1, Amount::Add(1)).await.source, Source::Store);
        }
    }

    #[tokio::test]
    async fn few_bytes_hold_few_counters_and_never_the_wrong_ones() {
        let store = store(200);
        for round in 0..3 {
            for key in 0..100 {
                let key = key.to_string();
                let reading = charge(&store, &[(&key, 1, Amount::Add(1))], Charging::Each).await;
                assert_eq!(reading[0].after > 1, round > 0, "{key}");
            }
        }
        assert!(store.hits.get() < 50);
    }

    #[tokio::test]
    async fn of_charges_that_belong_together_none_is_carried_out_when_one_is_full() {
        let store = store(1 << 10);
        one(&store, 1, Amount::Add(1)).await;
        let both = [("k", 1, Amount::Add(1)), ("other", 5, Amount::Add(2))];
        let readings = charge(&store, &both, Charging::AllOrNothing).await;
        assert_eq!(readings[0].source, Source::OverLimitCache);
        assert_eq!((readings[1].before, readings[1].after), (0, 2));
        assert!(!readings[1].charged);
        let each = charge(&store, &both, Charging::Each).await;
        assert_eq!((each[0].after, each[1].after), (2, 2));
        assert!(each[1].charged);
    }

    #[tokio::test]
    async fn hits_that_are_free_when_refused_are_remembered_as_not_counted() {
        let store = store(1 << 10);
        let mut batch = Batch::new(NOW);
        let free = Terms {
            rejected: Rejected::Free,
            ..terms(2)
        };
        batch.charge_key("k", free, Amount::Add(5));
        store.charge(&batch, &mut Vec::new()).await.unwrap();
        // Two still fit.
        assert_eq!(one(&store, 2, Amount::Add(2)).await.source, Source::Store);
        let full = one(&store, 2, Amount::Add(1)).await;
        assert_eq!(full.source, Source::OverLimitCache);
    }
}
