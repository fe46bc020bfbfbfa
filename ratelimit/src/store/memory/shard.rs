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

/// Counters looked at for every new one, so that dead ones go faster than new ones come.
const SWEEP: usize = 4;

/// Counters compared when a live counter must go.
const CANDIDATES: usize = 8;

/// More counters than this are not held: their positions would not fit.
const MOST: usize = u32::MAX as usize;

/// Some of the counters; those whose hash falls into this part.
///
/// The slots lie side by side, in as few pages of memory as they fill. In a hash table of their own
/// they would be spread over up to twice as many, and a decision over many counters would wait
/// longer for the address of a slot than for the slot.
#[derive(Debug)]
pub(super) struct Shard {
    slots: Vec<Slot>,
    /// Positions in `slots`.
    positions: HashTable<u32>,
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
            slots: Vec::new(),
            positions: HashTable::new(),
            hasher,
            cursor: 0,
            earliest: u64::MAX,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The slots before this position, the last first, with their positions. No slot ever moves
    /// up, so whoever goes on from the position where he stopped misses none.
    pub(super) fn slots_before(&self, end: usize) -> impl Iterator<Item = (usize, &Slot)> {
        self.slots.iter().enumerate().take(end).rev()
    }

    #[inline]
    pub(super) fn find(&self, name: Name<'_>) -> Option<&Counter> {
        let at = self.position(name)?;
        self.slots.get(at).map(|slot| &slot.counter)
    }

    #[inline]
    pub(super) fn find_mut(&mut self, name: Name<'_>) -> Option<&mut Counter> {
        let at = self.position(name)?;
        self.slots.get_mut(at).map(|slot| &mut slot.counter)
    }

    #[inline]
    fn position(&self, name: Name<'_>) -> Option<usize> {
        let is = |at: &u32| self.slots.get(*at as usize).is_some_and(|it| it.is(name));
        Some(*self.positions.find(name.hash, is)? as usize)
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
        let key = Key::new(name.key);
        self.slots.push(Slot { counter, key });
        self.add_position(self.slots.len() - 1, name.hash);
        removed
    }

    /// Looks at a few counters and frees the dead ones; if the shard is full all the same, frees
    /// the least used of a few. Returns how many were freed.
    fn make_room(&mut self, now: UnixTime, room: &Room<'_>) -> usize {
        let before = self.slots.len();
        if self.earliest <= now.seconds() {
            for _ in 0..SWEEP {
                let at = self.step();
                let dead = |slot: &Slot| slot.counter.ends() <= now.seconds();
                if self.slots.get(at).is_some_and(dead) {
                    self.remove(at);
                }
            }
        }
        while self.slots.len() >= room.capacity.min(MOST) {
            let mut least: Option<(u64, usize)> = None;
            for _ in 0..CANDIDATES {
                let at = self.step();
                if let Some(slot) = self.slots.get(at) {
                    let used = slot.counter.used_at(now);
                    if least.is_none_or(|(fewest, _)| used < fewest) {
                        least = Some((used, at));
                    }
                }
            }
            let Some((_, at)) = least else { break };
            self.remove(at);
            room.evicted.inc();
        }
        before - self.slots.len()
    }

    /// The next position of the search.
    fn step(&mut self) -> usize {
        let at = if self.cursor < self.slots.len() {
            self.cursor
        } else {
            0
        };
        self.cursor = at + 1;
        at
    }

    /// Frees the counter at a position, which the last one takes.
    fn remove(&mut self, at: usize) {
        let last = self.slots.len().saturating_sub(1);
        self.remove_position(at);
        if at != last {
            self.remove_position(last);
        }
        self.slots.swap_remove(at);
        if let Some(moved) = self.slots.get(at) {
            self.add_position(at, moved.hash(&self.hasher));
        }
    }

    fn add_position(&mut self, at: usize, hash: u64) {
        let Self {
            slots,
            positions,
            hasher,
            ..
        } = self;
        let rehash = |at: &u32| slots.get(*at as usize).map_or(0, |slot| slot.hash(hasher));
        positions.insert_unique(hash, number(at), rehash);
    }

    fn remove_position(&mut self, at: usize) {
        if let Some(slot) = self.slots.get(at) {
            let hash = slot.hash(&self.hasher);
            if let Ok(position) = self.positions.find_entry(hash, |it| *it == number(at)) {
                position.remove();
            }
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
        removed
    }

    /// Frees the counters that `gone` says. Returns how many.
    pub(super) fn remove_where(&mut self, mut gone: impl FnMut(&Slot) -> bool) -> usize {
        let before = self.slots.len();
        self.slots.retain(|slot| !gone(slot));
        let removed = before - self.slots.len();
        if removed > 0 {
            if self.slots.len() < self.slots.capacity() / 4 {
                self.slots.shrink_to_fit();
                self.positions = HashTable::with_capacity(self.slots.len());
            }
            self.positions.clear();
            for at in 0..self.slots.len() {
                if let Some(slot) = self.slots.get(at) {
                    self.add_position(at, slot.hash(&self.hasher));
                }
            }
        }
        removed
    }
}

/// A position as it is kept.
fn number(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
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
