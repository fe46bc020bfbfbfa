//! Counters of this process: exact, bounded, and cleared away when their window is over.

use std::{
    borrow::Cow,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

use attache_service::{
    Metrics,
    metrics::{Counter, Gauge},
};
use hashbrown::HashTable;

use super::{Amount, Batch, Store, StoreError};
use crate::limiter::Window;

/// Counters held at once by default.
pub const DEFAULT_CAPACITY: usize = 1_000_000;

/// Locks are taken per shard; more shards than this bring nothing on ordinary machines.
const SHARDS: usize = 64;

/// Slots looked at for every new counter. Over one means that dead counters go faster than new
/// ones come.
const SWEEP: usize = 4;

/// Longer keys are held as a digest, so that long values do not take more memory than others.
const LONGEST_KEY: usize = 256;

/// Slots compared when a live counter must go.
const CANDIDATES: usize = 8;

/// Counters in the memory of this process.
///
/// Every addition happens in one critical section of one shard, so limits hold exactly however
/// many threads hit them. A counter lives until its window ends; its memory is used again by the
/// next counters. At most `capacity` counters are held (by default [`DEFAULT_CAPACITY`], about
/// 100 bytes each plus at most 256 for the key): beyond that the least used of a few is given up,
/// which can let as many hits pass again as it had counted. `attache_ratelimit_counters` and
/// `attache_ratelimit_counters_evicted` show how close that is.
#[derive(Debug)]
pub struct MemoryStore {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    second_hasher: RandomState,
    shard_capacity: usize,
    live: Gauge,
    evicted: Counter,
}

#[derive(Debug, Default)]
struct Shard {
    /// Positions in `slots`, found by the key's hash.
    index: HashTable<usize>,
    slots: Vec<Slot>,
    /// Where the search for dead counters goes on.
    cursor: usize,
}

#[derive(Debug)]
struct Slot {
    hash: u64,
    key: Box<str>,
    window: Window,
    count: u64,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(DEFAULT_CAPACITY, &Metrics::default())
    }
}

impl MemoryStore {
    /// A store for at most `capacity` counters, rounded up to a multiple of the 64 shards.
    pub fn new(capacity: usize, metrics: &Metrics) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            second_hasher: RandomState::new(),
            shard_capacity: capacity.div_ceil(SHARDS).max(1),
            live: metrics.gauge(
                "attache_ratelimit_counters",
                "Counters held in memory.",
                &[],
            ),
            evicted: metrics.counter(
                "attache_ratelimit_counters_evicted",
                "Counters given up before their window ended, for want of room.",
                &[],
            ),
        }
    }

    /// Counters held, those of past windows included until their memory is taken back.
    pub fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| lock(shard).slots.len())
            .sum()
    }

    /// Whether nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Frees the counters of windows that ended before `now` (Unix seconds).
    ///
    /// New counters do this bit by bit; this is for giving memory back when traffic ceases.
    pub fn sweep(&self, now: u64) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            let mut position = 0;
            while let Some(slot) = shard.slots.get(position) {
                if slot.window.end() <= now {
                    shard.remove(position);
                    self.live.dec();
                } else {
                    position += 1;
                }
            }
            if shard.slots.len() < shard.slots.capacity() / 4 {
                shard.slots.shrink_to_fit();
                let Shard { index, slots, .. } = &mut *shard;
                index.shrink_to_fit(|at| slots.get(*at).map_or(0, |slot| slot.hash));
            }
        }
    }

    /// The key as it is held. Two keyed hashes of 64 bits tell long keys apart.
    fn held<'k>(&self, key: &'k str) -> Cow<'k, str> {
        if key.len() <= LONGEST_KEY {
            return Cow::Borrowed(key);
        }
        let (first, second) = (self.hasher.hash_one(key), self.second_hasher.hash_one(key));
        // No key that is held as it is looks so: those start with a domain.
        Cow::Owned(format!("\0{}:{first:016x}{second:016x}", key.len()))
    }

    fn apply(&self, now: u64, key: &str, window: Window, amount: Amount) -> u64 {
        let key = &*self.held(key);
        // The same key with another unit is another counter.
        let hash = self.hasher.hash_one((key, window.length));
        // The table inside the shard uses the low and the top bits.
        #[allow(clippy::cast_possible_truncation)]
        let shard = (hash >> 40) as usize % SHARDS;
        let Some(shard) = self.shards.get(shard) else {
            return 0;
        };
        let mut shard = lock(shard);
        let Shard { index, slots, .. } = &mut *shard;
        let found = index.find(hash, |at| {
            slots.get(*at).is_some_and(|slot| {
                slot.hash == hash && slot.window.length == window.length && *slot.key == *key
            })
        });
        if let Some(slot) = found.and_then(|at| slots.get_mut(*at)) {
            slot.enter(window);
            return slot.apply(amount);
        }
        let mut slot = Slot {
            hash,
            key: key.into(),
            window,
            count: 0,
        };
        let count = slot.apply(amount);
        let removed = shard.make_room(now, self.shard_capacity, &self.evicted);
        shard.insert(slot);
        self.live.inc_by(1 - i64::try_from(removed).unwrap_or(0));
        count
    }
}

impl Store for MemoryStore {
    async fn charge(&self, batch: &Batch, counts: &mut Vec<u64>) -> Result<(), StoreError> {
        counts.extend(
            batch
                .iter()
                .map(|(key, charge)| self.apply(batch.now(), key, charge.window, charge.amount)),
        );
        Ok(())
    }

    fn sweep(&self, now: u64) -> bool {
        MemoryStore::sweep(self, now);
        true
    }
}

impl Slot {
    /// Turns to `window`, if the slot is not in it.
    fn enter(&mut self, window: Window) {
        if self.window.start == window.start {
            return;
        }
        // Of two threads at the edge of a window the one with the older time may come second: its
        // hit counts in the new window. A window further ahead was opened by a clock that has
        // been set back since.
        let is_next = self.window.start == window.end();
        if !is_next {
            self.window = window;
            self.count = 0;
        }
    }

    fn apply(&mut self, amount: Amount) -> u64 {
        self.count = match amount {
            Amount::Add(hits) => self.count.saturating_add(hits.into()),
            Amount::Refund(hits) => self.count.saturating_sub(hits.into()),
        };
        self.count
    }
}

impl Shard {
    /// Looks at a few slots and frees the dead ones; if the shard is full all the same, frees the
    /// least used of a few. Returns how many were freed.
    fn make_room(&mut self, now: u64, capacity: usize, evicted: &Counter) -> usize {
        let mut removed = 0;
        for _ in 0..SWEEP.min(self.slots.len()) {
            if self.cursor >= self.slots.len() {
                self.cursor = 0;
            }
            match self.slots.get(self.cursor) {
                Some(slot) if slot.window.end() <= now => {
                    self.remove(self.cursor);
                    removed += 1;
                }
                _ => self.cursor += 1,
            }
        }
        while self.slots.len() >= capacity {
            let candidates = (0..CANDIDATES).map(|i| (self.cursor + i) % self.slots.len());
            let least = candidates.min_by_key(|at| self.slots.get(*at).map(|slot| slot.count));
            let Some(least) = least else { break };
            self.remove(least);
            // The next search starts behind those that were just compared.
            self.cursor += CANDIDATES;
            evicted.inc();
            removed += 1;
        }
        removed
    }

    fn insert(&mut self, slot: Slot) {
        let Self { index, slots, .. } = self;
        let at = slots.len();
        index.insert_unique(slot.hash, at, |at| {
            slots.get(*at).map_or(0, |slot| slot.hash)
        });
        slots.push(slot);
    }

    fn remove(&mut self, at: usize) {
        let last = self.slots.len().saturating_sub(1);
        let Some(slot) = self.slots.get(at) else {
            return;
        };
        if let Ok(entry) = self.index.find_entry(slot.hash, |position| *position == at) {
            entry.remove();
        }
        self.slots.swap_remove(at);
        // The last slot has moved here.
        if let Some(moved) = self.slots.get(at)
            && let Some(position) = self
                .index
                .find_mut(moved.hash, |position| *position == last)
        {
            *position = at;
        }
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, thread};

    use proptest::prelude::*;

    use super::*;

    fn window(now: u64, length: u64) -> Window {
        Window::at(now, length)
    }

    #[test]
    fn of_sixty_four_threads_exactly_the_limit_passes() {
        let store = MemoryStore::default();
        let passed: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..64)
                .map(|_| {
                    scope.spawn(|| {
                        (0..1000)
                            .filter(|_| {
                                store.apply(7, "d_k_v_", window(7, 3600), Amount::Add(1)) <= 500
                            })
                            .count()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(passed, 500);
    }

    #[test]
    fn a_new_window_starts_from_zero() {
        let store = MemoryStore::default();
        assert_eq!(store.apply(119, "k", window(119, 60), Amount::Add(2)), 2);
        assert_eq!(store.apply(120, "k", window(120, 60), Amount::Add(1)), 1);
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn a_late_thread_counts_in_the_window_that_has_begun() {
        let store = MemoryStore::default();
        assert_eq!(store.apply(120, "k", window(120, 60), Amount::Add(1)), 1);
        assert_eq!(store.apply(119, "k", window(119, 60), Amount::Add(1)), 2);
        assert_eq!(store.apply(121, "k", window(121, 60), Amount::Add(1)), 3);
    }

    #[test]
    fn a_clock_set_back_does_not_hold_on_to_the_future() {
        let store = MemoryStore::default();
        assert_eq!(store.apply(6000, "k", window(6000, 60), Amount::Add(9)), 9);
        assert_eq!(store.apply(60, "k", window(60, 60), Amount::Add(1)), 1);
    }

    #[test]
    fn units_do_not_share_a_counter() {
        let store = MemoryStore::default();
        assert_eq!(store.apply(0, "k", window(0, 60), Amount::Add(5)), 5);
        assert_eq!(store.apply(0, "k", window(0, 3600), Amount::Add(1)), 1);
    }

    #[test]
    fn long_keys_count_apart_without_being_kept() {
        let store = MemoryStore::default();
        let key = |last: &str| format!("{}{last}", "long".repeat(10_000));
        for expected in 1..=3 {
            for last in ["a", "b"] {
                let count = store.apply(0, &key(last), window(0, 60), Amount::Add(1));
                assert_eq!(count, expected);
            }
        }
        for shard in &store.shards {
            for slot in &lock(shard).slots {
                assert!(slot.key.len() <= LONGEST_KEY, "{}", slot.key.len());
            }
        }
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn hits_given_back_stop_at_zero() {
        let store = MemoryStore::default();
        store.apply(0, "k", window(0, 60), Amount::Add(5));
        assert_eq!(store.apply(0, "k", window(0, 60), Amount::Refund(3)), 2);
        assert_eq!(store.apply(0, "k", window(0, 60), Amount::Refund(3)), 0);
    }

    #[test]
    fn memory_returns_when_windows_end() {
        let metrics = Metrics::default();
        let store = MemoryStore::new(1 << 20, &metrics);
        for second in 0..5u64 {
            for user in 0..2000 {
                let key = format!("{second}_{user}");
                store.apply(second, &key, window(second, 1), Amount::Add(1));
            }
            assert!(store.len() <= 4000, "{} after {second}", store.len());
        }
        store.sweep(5);
        assert!(store.is_empty());
        let text = metrics.render();
        assert!(text.contains("attache_ratelimit_counters{} 0"), "{text}");
    }

    #[test]
    fn a_flood_of_new_keys_neither_grows_the_store_nor_resets_a_used_counter() {
        let metrics = Metrics::default();
        let store = MemoryStore::new(64 * 16, &metrics);
        store.apply(0, "busy", window(0, 3600), Amount::Add(100));
        for user in 0..50_000 {
            store.apply(0, &format!("user_{user}"), window(0, 3600), Amount::Add(1));
        }
        assert!(store.len() <= 64 * 16);
        assert_eq!(store.apply(0, "busy", window(0, 3600), Amount::Add(1)), 101);
        assert!(!metrics.render().contains("counters_evicted_total{} 0"));
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(
            steps in prop::collection::vec((0..40u8, 0..3u64, any::<bool>(), 0..5u32), 1..400),
        ) {
            let store = MemoryStore::new(1 << 16, &Metrics::default());
            let mut model: HashMap<(u8, u64), u64> = HashMap::new();
            let mut now = 0;
            for (key, step, refund, hits) in steps {
                now += step;
                let window = window(now, 2);
                let amount = if refund { Amount::Refund(hits) } else { Amount::Add(hits) };
                let count = model.entry((key, window.start)).or_default();
                *count = match amount {
                    Amount::Add(hits) => *count + u64::from(hits),
                    Amount::Refund(hits) => count.saturating_sub(hits.into()),
                };
                prop_assert_eq!(store.apply(now, &format!("k{key}"), window, amount), *count);
            }
        }
    }
}
