//! Counters of this process: exact, bounded, and cleared away when their window is over.

mod counter;
mod key;
mod shard;

use std::{
    borrow::Cow,
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

use attache_service::{
    Metrics,
    metrics::{Counter as Metric, Gauge},
};
use foldhash::fast::RandomState as KeyHasher;

use self::{
    counter::{Counter, Kind},
    shard::{Name, Room, Shard},
};
use super::{
    Amount, Batch, Charge, Inspect, Meter, Page, Query, Reading, Store, StoreError, Terms,
};
use crate::limiter::UnixTime;

/// Counters held at once by default.
pub const DEFAULT_CAPACITY: usize = 1_000_000;

/// Locks are taken per shard; more shards than this bring nothing on ordinary machines.
const SHARDS: usize = 64;

/// Longer keys are held as a digest, so that long values do not take more memory than others.
const LONGEST_KEY: usize = 256;

/// Counters in the memory of this process.
///
/// Every addition happens in one critical section of one shard, so limits hold exactly however many
/// threads hit them. A counter lives until its window ends, or its bucket is full again; its memory
/// is used again by the next counters. At most `capacity` counters are held (by default
/// [`DEFAULT_CAPACITY`], 70 to 140 bytes each, plus at most 256 for a key of more than 30 bytes):
/// beyond that the least used of a few is given up, which can let as many hits pass again as it had
/// counted. `attache_ratelimit_counters` and `attache_ratelimit_counters_evicted` show how close
/// that is.
#[derive(Debug)]
pub struct MemoryStore {
    shards: Box<[Mutex<Shard>; SHARDS]>,
    hasher: KeyHasher,
    /// Tell long keys apart, which are not held as they are.
    digests: [RandomState; 2],
    shard_capacity: usize,
    live: Gauge,
    evicted: Metric,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(DEFAULT_CAPACITY, &Metrics::default())
    }
}

impl MemoryStore {
    /// A store for at most `capacity` counters, rounded up to a multiple of the 64 shards.
    pub fn new(capacity: usize, metrics: &Metrics) -> Self {
        let hasher = KeyHasher::default();
        Self {
            shards: Box::new(std::array::from_fn(|_| {
                Mutex::new(Shard::new(hasher.clone()))
            })),
            hasher,
            digests: [RandomState::new(), RandomState::new()],
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
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Frees the counters whose windows ended before `now`.
    ///
    /// New counters do this bit by bit; this is for giving memory back when traffic ceases.
    pub fn sweep(&self, now: UnixTime) {
        for shard in self.shards.iter() {
            let removed = lock(shard).sweep(now);
            self.count(0, removed);
        }
    }

    /// Charges without waiting for anything: what [`Store::charge`] does.
    pub fn charge_now(&self, batch: &Batch, readings: &mut Vec<Reading>) {
        if batch.is_together() {
            self.charge_together(batch, readings);
        } else {
            let one = |(key, charge): (&str, &Charge)| {
                self.charge_one(key, &charge.terms, charge.amount, batch.now())
            };
            readings.extend(batch.iter().map(one));
        }
    }

    /// Charges one counter without waiting for anything.
    #[inline]
    pub(super) fn charge_one(
        &self,
        key: &str,
        terms: &Terms,
        amount: Amount,
        now: UnixTime,
    ) -> Reading {
        let key = &*self.held(key);
        let name = self.name(key, &terms.meter);
        let mut shard = lock(self.shard(name));
        self.apply(&mut shard, name, terms, amount, now)
    }

    #[inline]
    fn apply(
        &self,
        shard: &mut Shard,
        name: Name<'_>,
        terms: &Terms,
        amount: Amount,
        now: UnixTime,
    ) -> Reading {
        if let Some(counter) = shard.find_mut(name) {
            counter.enter(terms, now);
            return counter.charge(terms, amount, now);
        }
        self.add(shard, name, terms, amount, now)
    }

    /// Charges a counter that is not there yet.
    #[cold]
    fn add(
        &self,
        shard: &mut Shard,
        name: Name<'_>,
        terms: &Terms,
        amount: Amount,
        now: UnixTime,
    ) -> Reading {
        let mut counter = Counter::new(terms, now);
        let reading = counter.charge(terms, amount, now);
        // What was only looked at, or refused, leaves nothing to remember.
        if counter.used(now) > 0 {
            let room = Room {
                capacity: self.shard_capacity,
                evicted: &self.evicted,
            };
            let removed = shard.insert(name, counter, now, &room);
            self.count(1, removed);
        }
        reading
    }

    /// Charges all if all fit, and none otherwise, in one critical section.
    fn charge_together(&self, batch: &Batch, readings: &mut Vec<Reading>) {
        let now = batch.now();
        let keys: Vec<_> = batch.iter().map(|(key, _)| self.held(key)).collect();
        let charges: Vec<_> = batch
            .iter()
            .zip(&keys)
            .map(|((_, charge), key)| (self.name(key, &charge.terms.meter), charge))
            .collect();

        // In order, so that no two batches wait for each other.
        let mut order: Vec<_> = charges.iter().map(|(name, _)| shard_of(*name)).collect();
        order.sort_unstable();
        order.dedup();
        let mut shards: Vec<(usize, MutexGuard<'_, Shard>)> = order
            .into_iter()
            .filter_map(|at| Some((at, lock(self.shards.get(at)?))))
            .collect();
        let mut fits = true;
        for (position, (name, Charge { terms, amount, .. })) in charges.iter().enumerate() {
            let mut counter = shards
                .iter()
                .find(|(at, _)| *at == shard_of(*name))
                .and_then(|(_, shard)| shard.find(*name).copied())
                .unwrap_or_else(|| Counter::new(terms, now));
            counter.enter(terms, now);
            // Hits on the same counter earlier in the batch count too.
            let pending = charges
                .iter()
                .take(position)
                .filter(|(other, _)| other.hash == name.hash && other.key == name.key)
                .filter(|(other, _)| other.kind == name.kind)
                .map(|(_, charge)| match charge.amount {
                    Amount::Add(hits) => u64::from(hits),
                    Amount::Refund(_) => 0,
                })
                .sum();
            let mut reading = counter.preview(terms, *amount, pending, now);
            fits &= counter::fits(terms, *amount, reading.after);
            reading.charged = false;
            reading.resets_in = counter.resets_in(terms, *amount, &reading, now);
            readings.push(reading);
        }
        if !fits {
            return;
        }
        readings.clear();
        for (name, charge) in charges {
            let shard = shards.iter_mut().find(|(at, _)| *at == shard_of(name));
            if let Some((_, shard)) = shard {
                readings.push(self.apply(shard, name, &charge.terms, charge.amount, now));
            }
        }
    }

    /// The key as it is held. Two keyed hashes of 64 bits tell long keys apart.
    #[inline]
    fn held<'k>(&self, key: &'k str) -> Cow<'k, str> {
        if key.len() <= LONGEST_KEY {
            Cow::Borrowed(key)
        } else {
            Cow::Owned(self.digest(key))
        }
    }

    #[cold]
    fn digest(&self, key: &str) -> String {
        let [first, second] = &self.digests;
        let (first, second) = (first.hash_one(key), second.hash_one(key));
        // No key that is held as it is looks so: those start with a domain.
        format!("\0{}:{first:016x}{second:016x}", key.len())
    }

    #[inline]
    fn name<'k>(&self, key: &'k str, meter: &Meter) -> Name<'k> {
        Name::new(&self.hasher, key, Kind::of(meter))
    }

    fn shard(&self, name: Name<'_>) -> &Mutex<Shard> {
        &self.shards[shard_of(name)]
    }

    fn count(&self, added: usize, removed: usize) {
        if added != removed {
            let change = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            self.live.inc_by(change(added) - change(removed));
        }
    }
}

impl Store for MemoryStore {
    async fn charge(&self, batch: &Batch, readings: &mut Vec<Reading>) -> Result<(), StoreError> {
        self.charge_now(batch, readings);
        Ok(())
    }

    fn sweep(&self, now: UnixTime) -> bool {
        MemoryStore::sweep(self, now);
        true
    }
}

impl Inspect for MemoryStore {
    async fn list(&self, query: &Query, now: UnixTime) -> Result<Page, StoreError> {
        let (mut shard, mut end) = match &query.cursor {
            None => (0, usize::MAX),
            Some(cursor) => position(cursor).ok_or_else(|| StoreError::NoCursor {
                cursor: cursor.clone(),
            })?,
        };
        let mut page = Page::default();
        while let Some(slots) = self.shards.get(shard) {
            for (at, slot) in lock(slots).slots_before(end) {
                if page.counters.len() >= query.limit.max(1) {
                    page.next = Some(format!("{shard}:{}", at + 1));
                    return Ok(page);
                }
                let state = slot.state(now);
                if let Some(state) = state.filter(|state| state.key.starts_with(&query.prefix)) {
                    page.counters.push(state);
                }
            }
            (shard, end) = (shard + 1, usize::MAX);
        }
        Ok(page)
    }

    async fn reset(&self, prefix: &str) -> Result<u64, StoreError> {
        let mut sum = 0;
        for shard in self.shards.iter() {
            let removed = lock(shard).remove_where(|slot| slot.stored_key().starts_with(prefix));
            self.count(0, removed);
            sum += removed as u64;
        }
        Ok(sum)
    }
}

/// A shard, and the position in it before which the next counter is.
fn position(cursor: &str) -> Option<(usize, usize)> {
    let (shard, at) = cursor.split_once(':')?;
    Some((shard.parse().ok()?, at.parse().ok()?))
}

fn shard_of(name: Name<'_>) -> usize {
    // The table inside the shard uses the low and the top bits.
    #[allow(clippy::cast_possible_truncation)]
    let bits = (name.hash >> 40) as usize;
    bits % SHARDS
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
