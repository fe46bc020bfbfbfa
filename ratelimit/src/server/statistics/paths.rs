//! Statistics of paths that requests have a part in. There may be any number of them, so only the
//! latest are kept, and what is given up counts on as `other`.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::cells::{Counts, add, growth, shard, shards};

/// The path that counts for all that were given up.
pub(super) const OTHER: &str = "other";

/// Counters by path, each worker's behind a lock of its own.
#[derive(Debug)]
pub(super) struct Paths {
    shards: Box<[Mutex<Shard>]>,
    /// Most paths of one worker.
    capacity: usize,
}

#[derive(Debug, Default)]
struct Shard {
    paths: HashMap<Box<str>, Entry>,
    other: Flushed,
    clock: u64,
}

#[derive(Debug, Default)]
struct Entry {
    counts: Flushed,
    used: u64,
}

/// Counts, and what of them has been sent.
#[derive(Debug, Default, Clone, Copy)]
struct Flushed {
    counts: Counts,
    sent: Counts,
}

impl Flushed {
    fn unsent(&mut self) -> Counts {
        let unsent = growth(&self.counts, &self.sent);
        self.sent = self.counts;
        unsent
    }
}

impl Paths {
    /// At most about `capacity` paths in all.
    pub(super) fn new(capacity: usize) -> Self {
        let shards = shards();
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            capacity: capacity.div_ceil(shards).max(1),
        }
    }

    pub(super) fn add(&self, path: &str, counts: &Counts) {
        self.take_over(path, counts, &Counts::default());
    }

    /// Adds what was counted, and in part sent, elsewhere.
    pub(super) fn take_over(&self, path: &str, counts: &Counts, sent: &Counts) {
        let Some(shard) = self.shards.get(shard()) else {
            return;
        };
        let mut shard = lock(shard);
        shard.clock = shard.clock.wrapping_add(1);
        let now = shard.clock;
        if let Some(entry) = shard.paths.get_mut(path) {
            entry.used = now;
            add(&mut entry.counts.counts, counts);
            add(&mut entry.counts.sent, sent);
            return;
        }
        if shard.paths.len() >= self.capacity {
            shard.make_room();
        }
        let entry = Entry {
            counts: Flushed {
                counts: *counts,
                sent: *sent,
            },
            used: now,
        };
        shard.paths.insert(path.into(), entry);
    }

    /// Calls `put` with every path and what it counted in all.
    pub(super) fn totals(&self, put: &mut dyn FnMut(&str, &Counts)) {
        for shard in &self.shards {
            let shard = lock(shard);
            for (path, entry) in &shard.paths {
                put(path, &entry.counts.counts);
            }
            put(OTHER, &shard.other.counts);
        }
    }

    /// Calls `put` with every path and what it counted since the last time.
    pub(super) fn flush(&self, put: &mut dyn FnMut(&str, &Counts)) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            for (path, entry) in &mut shard.paths {
                put(path, &entry.counts.unsent());
            }
            put(OTHER, &shard.other.unsent());
        }
    }
}

impl Shard {
    /// Gives the oldest part of the paths up, so that this is seldom needed.
    fn make_room(&mut self) {
        let mut ages: Vec<u64> = self.paths.values().map(|entry| entry.used).collect();
        let part = ages.len() / 8;
        let (_, oldest_kept, _) = ages.select_nth_unstable(part);
        let oldest_kept = *oldest_kept;
        let other = &mut self.other;
        self.paths.retain(|_, entry| {
            // Of a single path none would go.
            let keep = entry.used > oldest_kept;
            if !keep {
                add(&mut other.counts, &entry.counts.counts);
                add(&mut other.sent, &entry.counts.sent);
            }
            keep
        });
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(hits: u64) -> Counts {
        [hits, 0, 0, 0, 0, 0, 0]
    }

    fn collect(read: impl FnOnce(&mut dyn FnMut(&str, &Counts))) -> HashMap<String, u64> {
        let mut found = HashMap::new();
        read(&mut |path, counts| {
            *found.entry(path.to_owned()).or_default() += counts[0];
        });
        found.retain(|_, hits| *hits > 0);
        found
    }

    #[test]
    fn the_latest_paths_stay_and_nothing_is_lost() {
        let paths = Paths {
            capacity: 8,
            ..Paths::new(8)
        };
        for number in 0..100 {
            paths.add("hot", &hits(1));
            paths.add(&format!("d.k_{number}"), &hits(2));
        }
        let totals = collect(|put| paths.totals(put));
        assert!(totals.len() <= 9, "{totals:?}");
        assert_eq!(totals["hot"], 100);
        assert_eq!(totals["d.k_99"], 2);
        assert_eq!(totals.values().sum::<u64>(), 300);
    }

    #[test]
    fn what_was_sent_is_not_sent_again_as_other() {
        let paths = Paths {
            capacity: 2,
            ..Paths::new(2)
        };
        paths.add("a", &hits(5));
        assert_eq!(collect(|put| paths.flush(put)), [("a".into(), 5)].into());
        paths.add("a", &hits(1));
        paths.add("b", &hits(1));
        paths.add("c", &hits(1));
        let flushed = collect(|put| paths.flush(put));
        assert_eq!(flushed[OTHER], 1, "{flushed:?}");
        assert_eq!(flushed.values().sum::<u64>(), 3);
        assert_eq!(collect(|put| paths.totals(put))[OTHER], 6);
        assert!(collect(|put| paths.flush(put)).is_empty());
    }
}
