//! Counters that each worker adds to in memory of its own, summed up when somebody asks.

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use crate::limiter::Tally;

/// Most parts that a counter is split into; more workers than that share them.
const MOST_SHARDS: usize = 16;

/// What is counted of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stat {
    TotalHits,
    OverLimit,
    NearLimit,
    OverLimitWithLocalCache,
    WithinLimit,
    ShadowMode,
    DomainNotFound,
}

/// How many there are.
pub(super) const STATS: usize = 7;

impl Stat {
    /// In the order of [`Counts`].
    pub(super) const ALL: [Self; STATS] = [
        Self::TotalHits,
        Self::OverLimit,
        Self::NearLimit,
        Self::OverLimitWithLocalCache,
        Self::WithinLimit,
        Self::ShadowMode,
        Self::DomainNotFound,
    ];

    /// The reference's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::TotalHits => "total_hits",
            Self::OverLimit => "over_limit",
            Self::NearLimit => "near_limit",
            Self::OverLimitWithLocalCache => "over_limit_with_local_cache",
            Self::WithinLimit => "within_limit",
            Self::ShadowMode => "shadow_mode",
            Self::DomainNotFound => "domain_not_found",
        }
    }
}

/// One number for each [`Stat`].
pub(super) type Counts = [u64; STATS];

/// What a decision adds.
pub(super) fn counts(tally: Tally) -> Counts {
    [
        tally.total,
        tally.over,
        tally.near,
        tally.over_with_local_cache,
        tally.within,
        tally.shadow,
        0,
    ]
}

/// Adds `more` to `sum`, number by number.
pub(super) fn add(sum: &mut Counts, more: &Counts) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum = sum.wrapping_add(*more);
    }
}

/// By how much `counts` is more than `before`, number by number.
pub(super) fn growth(counts: &Counts, before: &Counts) -> Counts {
    let mut growth = *counts;
    for (growth, before) in growth.iter_mut().zip(before) {
        *growth = growth.wrapping_sub(*before);
    }
    growth
}

/// The part that this thread adds to, of [`shards`] many.
pub(super) fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    MINE.with(|mine| mine & (shards() - 1))
}

/// A power of two.
pub(super) fn shards() -> usize {
    static SHARDS: AtomicUsize = AtomicUsize::new(0);
    match SHARDS.load(Ordering::Relaxed) {
        0 => {
            let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
            let shards = cores.next_power_of_two().min(MOST_SHARDS);
            SHARDS.store(shards, Ordering::Relaxed);
            shards
        }
        shards => shards,
    }
}

/// The counters of one path. A cache line for each worker, so that they do not wait for each other.
#[derive(Debug)]
pub(super) struct Cells {
    shards: Box<[Cell]>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Cell([AtomicU64; STATS]);

impl Cells {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..shards()).map(|_| Cell::default()).collect(),
        }
    }

    pub(super) fn add(&self, counts: &Counts) {
        let Some(Cell(cell)) = self.shards.get(shard()) else {
            return;
        };
        for (cell, count) in cell.iter().zip(counts) {
            if *count > 0 {
                cell.fetch_add(*count, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn sum(&self) -> Counts {
        let mut sum = Counts::default();
        for Cell(cell) in &self.shards {
            for (sum, cell) in sum.iter_mut().zip(cell) {
                *sum = sum.wrapping_add(cell.load(Ordering::Relaxed));
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_add_is_summed_up() {
        let cells = Cells::new();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        cells.add(&[1, 0, 2, 0, 0, 0, 0]);
                    }
                });
            }
        });
        assert_eq!(cells.sum(), [2000, 0, 4000, 0, 0, 0, 0]);
    }
}
