//! How long calls took, in whole milliseconds as the reference has it, in a bounded number of
//! buckets.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use std::time::Duration;

use super::cells::{shard, shards};

/// Up to here each millisecond has a bucket of its own.
const EXACT: u64 = 256;
/// Buckets in each doubling beyond that.
const PARTS: u64 = 16;
/// Doublings beyond that: up to more than four hours.
const DOUBLINGS: u64 = 16;
const BUCKETS: usize = (EXACT + PARTS * DOUBLINGS) as usize;

/// How often calls took how long.
#[derive(Debug)]
pub(super) struct Times {
    shards: Box<[Box<[AtomicU64]>]>,
    sent: Mutex<Vec<u64>>,
}

impl Times {
    pub(super) fn new() -> Self {
        let shard = || (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Self {
            shards: (0..shards()).map(|_| shard()).collect(),
            sent: Mutex::new(vec![0; BUCKETS]),
        }
    }

    pub(super) fn add(&self, time: Duration) {
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let shard = self.shards.get(shard());
        if let Some(count) = shard.and_then(|shard| shard.get(bucket(milliseconds))) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Milliseconds, and how often.
    pub(super) fn totals(&self) -> Vec<(u64, u64)> {
        times(&self.sums())
    }

    /// The same since the last time.
    pub(super) fn flush(&self) -> Vec<(u64, u64)> {
        let sums = self.sums();
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let unsent: Vec<_> = sums
            .iter()
            .zip(&*sent)
            .map(|(sum, sent)| sum.wrapping_sub(*sent))
            .collect();
        *sent = sums;
        times(&unsent)
    }

    fn sums(&self) -> Vec<u64> {
        let mut sums = vec![0_u64; BUCKETS];
        for shard in &self.shards {
            for (sum, count) in sums.iter_mut().zip(shard) {
                *sum = sum.wrapping_add(count.load(Ordering::Relaxed));
            }
        }
        sums
    }
}

fn times(counts: &[u64]) -> Vec<(u64, u64)> {
    let counts = counts.iter().enumerate();
    let taken = counts.filter(|(_, count)| **count > 0);
    taken
        .map(|(bucket, count)| (least(bucket as u64), *count))
        .collect()
}

fn bucket(milliseconds: u64) -> usize {
    let bucket = match milliseconds.checked_div(EXACT) {
        None | Some(0) => milliseconds,
        Some(times) => {
            let doubling = u64::from(times.ilog2());
            let part = (milliseconds >> doubling) / (EXACT / PARTS) - PARTS;
            EXACT + (doubling * PARTS) + part
        }
    };
    usize::try_from(bucket).map_or(BUCKETS - 1, |bucket| bucket.min(BUCKETS - 1))
}

/// The shortest time of a bucket.
fn least(bucket: u64) -> u64 {
    match bucket.checked_sub(EXACT) {
        None => bucket,
        Some(beyond) => ((PARTS + beyond % PARTS) * (EXACT / PARTS)) << (beyond / PARTS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_exact_at_first_and_never_far_off() {
        for milliseconds in (0..300).chain([1000, 4095, 4096, 65_535, 9_999_999]) {
            let least = least(bucket(milliseconds) as u64);
            assert!(least <= milliseconds, "{milliseconds}");
            assert!(
                milliseconds < EXACT && least == milliseconds
                    || milliseconds >= EXACT && (milliseconds - least) * 16 <= milliseconds,
                "{milliseconds}: {least}"
            );
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn times_are_counted_and_sent_once() {
        let times = Times::new();
        times.add(Duration::from_micros(900));
        times.add(Duration::from_millis(3));
        times.add(Duration::from_millis(3));
        assert_eq!(times.flush(), [(0, 1), (3, 2)]);
        times.add(Duration::from_millis(3));
        assert_eq!(times.flush(), [(3, 1)]);
        assert_eq!(times.totals(), [(0, 1), (3, 3)]);
    }
}
