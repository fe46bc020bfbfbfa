//! One part of the counters: a table that takes back the memory of what is over.

use std::hash::{BuildHasher as _, Hash as _, Hasher as _};

use attache_service::metrics::Counter as Metric;
use hashbrown::HashTable;

use super::{
    KeyHasher,
    counter::{Counter, Kind},
    key::Key,
};
use crate::{limiter::UnixTime, store::CounterState};

/// Places looked at for every new counter. Dead counters go faster than new ones come: of the
/// places of a table at least three in eight are taken, but right after it was shrunk or grew.
const SWEEP: usize = 8;

/// Counters compared when a live counter must go.
const CANDIDATES: usize = 8;

/// Some of the counters; those whose hash falls into this part.
#[derive(Debug)]
pub(super) struct Shard {
    table: HashTable<Slot>,
    hasher: KeyHasher,
    /// Where the search for dead counters goes on.
    cursor: usize,
    /// No counter is over before this second, so that there is nothing to sweep until then.
    earliest: u64,
}

/// A counter and its name, in one cache line: finding one is one look into memory.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Slot {
    counter: Counter,
    key: Key,
}

/// A key, hashed, with the kind of counter that is meant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'k> {
    pub(super) hash: u64,
    pub(super) key: &'k str,
    pub(super) kind: Kind,
}

impl<'k> Name<'k> {
    #[inline]
    pub(super) fn new(hasher: &KeyHasher, key: &'k str, kind: Kind) -> Self {
        Self {
            hash: hash(hasher, key.as_bytes(), kind),
            key,
            kind,
        }
    }
}

/// The kind is always as long, so nothing need stand between the two.
#[inline]
fn hash(hasher: &KeyHasher, key: &[u8], kind: Kind) -> u64 {
    let mut state = hasher.build_hasher();
    state.write(key);
    kind.hash(&mut state);
    state.finish()
}

/// What a table holds at most, and where it counts what had to go.
#[derive(Debug)]
pub(super) struct Room<'m> {
    pub(super) capacity: usize,
    pub(super) evicted: &'m Metric,
}

impl Shard {
    pub(super) fn new(hasher: KeyHasher) -> Self {
        Self {
            table: HashTable::default(),
            hasher,
            cursor: 0,
            earliest: u64::MAX,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// The slots from this place on, with their places.
    pub(super) fn slots_from(&self, place: usize) -> impl Iterator<Item = (usize, &Slot)> {
        (place..self.table.num_buckets()).filter_map(|at| Some((at, self.table.get_bucket(at)?)))
    }

    pub(super) fn find(&self, name: Name<'_>) -> Option<&Counter> {
        let slot = self.table.find(name.hash, |slot| slot.is(name))?;
        Some(&slot.counter)
    }

    #[inline]
    pub(super) fn find_mut(&mut self, name: Name<'_>) -> Option<&mut Counter> {
        let slot = self.table.find_mut(name.hash, |slot| slot.is(name))?;
        Some(&mut slot.counter)
    }

    /// Puts in a counter that is not there yet. Returns how many others were freed for it.
    pub(super) fn insert(
        &mut self,
        name: Name<'_>,
        counter: Counter,
        now: UnixTime,
        room: &Room<'_>,
    ) -> usize {
        let removed = self.make_room(now, room);
        // Hits that follow can only put the end off.
        self.earliest = self.earliest.min(counter.ends());
        let slot = Slot {
            counter,
            key: Key::new(name.key),
        };
        let hasher = &self.hasher;
        self.table
            .insert_unique(name.hash, slot, |slot| slot.hash(hasher));
        removed
    }

    /// Looks at a few places and frees the dead counters there; if the shard is full all the
    /// same, frees the least used of a few. Returns how many were freed.
    fn make_room(&mut self, now: UnixTime, room: &Room<'_>) -> usize {
        let mut removed = 0;
        if self.earliest <= now.seconds() {
            for _ in 0..SWEEP.min(self.table.num_buckets()) {
                let at = self.step();
                let dead = |slot: &Slot| slot.counter.ends() <= now.seconds();
                if self.table.get_bucket(at).is_some_and(dead) {
                    removed += self.remove(at);
                }
            }
        }
        while self.table.len() >= room.capacity {
            let mut least: Option<(u64, usize)> = None;
            let mut compared = 0;
            for _ in 0..self.table.num_buckets() {
                let at = self.step();
                if let Some(slot) = self.table.get_bucket(at) {
                    let used = slot.counter.used_at(now);
                    if least.is_none_or(|(fewest, _)| used < fewest) {
                        least = Some((used, at));
                    }
                    compared += 1;
                    if compared == CANDIDATES {
                        break;
                    }
                }
            }
            let Some((_, at)) = least else { break };
            removed += self.remove(at);
            room.evicted.inc();
        }
        removed
    }

    /// The next place of the search.
    fn step(&mut self) -> usize {
        let at = if self.cursor < self.table.num_buckets() {
            self.cursor
        } else {
            0
        };
        self.cursor = at + 1;
        at
    }

    /// Frees what is at a place. Returns how many that were.
    fn remove(&mut self, at: usize) -> usize {
        match self.table.get_bucket_entry(at) {
            Ok(entry) => {
                entry.remove();
                1
            }
            Err(_) => 0,
        }
    }

    /// Frees what is over, and the memory with it. Returns how many were freed.
    pub(super) fn sweep(&mut self, now: UnixTime) -> usize {
        if now.seconds() < self.earliest {
            return 0;
        }
        let mut earliest = u64::MAX;
        let removed = self.remove_where(|slot| {
            let ends = slot.counter.ends();
            let over = ends <= now.seconds();
            if !over {
                earliest = earliest.min(ends);
            }
            over
        });
        self.earliest = earliest;
        if self.table.len() < self.table.capacity() / 4 {
            let hasher = &self.hasher;
            self.table.shrink_to_fit(|slot| slot.hash(hasher));
        }
        removed
    }

    /// Frees the counters that `gone` says. Returns how many.
    pub(super) fn remove_where(&mut self, mut gone: impl FnMut(&Slot) -> bool) -> usize {
        let before = self.table.len();
        self.table.retain(|slot| !gone(slot));
        before - self.table.len()
    }
}

impl Slot {
    #[inline]
    fn is(&self, name: Name<'_>) -> bool {
        self.key.is(name.key) && self.counter.kind() == name.kind
    }

    fn hash(&self, hasher: &KeyHasher) -> u64 {
        hash(hasher, self.key.bytes(), self.counter.kind())
    }

    /// The name under which operators know it.
    pub(super) fn stored_key(&self) -> String {
        match &self.counter {
            Counter::Fixed { window, .. } => format!("{}{}", self.key, window.window().start),
            Counter::Sliding { .. } | Counter::Bucket { .. } => self.key.to_string(),
        }
    }

    /// What there is to see of it; `None` when it is over.
    pub(super) fn state(&self, now: UnixTime) -> Option<CounterState> {
        let ends = self.counter.ends();
        (ends > now.seconds()).then(|| CounterState {
            key: self.stored_key(),
            used: self.counter.used_at(now),
            resets_in: ends - now.seconds(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_fills_one_cache_line() {
        assert_eq!((size_of::<Slot>(), align_of::<Slot>()), (64, 64));
    }
}
