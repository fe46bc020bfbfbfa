//! How often which latency occurred.

use std::time::Duration;

/// Parts of each power of two: a latency is known to within 1/128 of itself.
const PARTS: u32 = 7;

/// Latencies, in memory that does not grow with their number.
///
/// Up to 256 ns each nanosecond has its own bucket, then each power of two has 128.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        let buckets = (u64::BITS - PARTS + 1) << PARTS;
        Self {
            counts: vec![0; usize::try_from(buckets).unwrap_or_default()],
            count: 0,
            max: 0,
        }
    }
}

impl Histogram {
    /// Adds one latency.
    pub(crate) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(nanos)) {
            *count += 1;
            self.count += 1;
            self.max = self.max.max(nanos);
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The longest.
    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// What `percent` of them do not exceed; zero when there are none.
    pub(crate) fn percentile(&self, percent: f64) -> Duration {
        // Counts are far below what a float holds exactly.
        let rank = ((percent / 100.0) * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(upper(bucket).min(self.max));
            }
        }
        self.max()
    }

    /// How many there are in each power of two that has any, and those between: the bound that
    /// they do not exceed, and their number.
    pub(crate) fn octaves(&self) -> Vec<(Duration, u64)> {
        let mut octaves: Vec<(Duration, u64)> = self
            .counts
            .chunks(1 << PARTS)
            .enumerate()
            .map(|(octave, counts)| {
                let last = ((octave + 1) << PARTS) - 1;
                (Duration::from_nanos(upper(last)), counts.iter().sum())
            })
            .skip_while(|(_, count)| *count == 0)
            .collect();
        while octaves.last().is_some_and(|(_, count)| *count == 0) {
            octaves.pop();
        }
        octaves
    }
}

/// The bucket of a number of nanoseconds.
fn bucket(nanos: u64) -> usize {
    let shift = (u64::BITS - nanos.leading_zeros()).saturating_sub(PARTS + 1);
    let part = nanos >> shift;
    let bucket = (u64::from(shift) << PARTS) + part;
    usize::try_from(bucket).unwrap_or(usize::MAX)
}

/// The largest number of nanoseconds of a bucket.
fn upper(bucket: usize) -> u64 {
    let shift = (bucket >> PARTS).saturating_sub(1);
    let part = bucket - (shift << PARTS);
    let next = (part as u128 + 1) << shift;
    u64::try_from(next - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of all magnitudes, each with its neighbours.
    fn numbers() -> impl Iterator<Item = u64> {
        let powers = (0..64).map(|power| 1_u64 << power);
        powers.flat_map(|power| {
            let near = [power - 1, power, power.saturating_add(1)];
            near.into_iter().chain([power / 2 * 3, power / 7 * 9])
        })
    }

    #[test]
    fn a_latency_is_known_to_within_a_part_of_itself() {
        for nanos in numbers() {
            let upper = upper(bucket(nanos));
            assert!(upper >= nanos, "{nanos} {upper}");
            assert!(upper - nanos <= nanos / 128, "{nanos} {upper}");
            assert_eq!(bucket(upper), bucket(nanos));
        }
    }

    #[test]
    fn every_number_has_a_bucket() {
        let mut histogram = Histogram::default();
        for nanos in [0, 1, u64::MAX] {
            histogram.record(Duration::from_nanos(nanos));
        }
        assert_eq!(histogram.count(), 3);
        assert_eq!(histogram.percentile(100.0), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_latencies() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(99.0), Duration::ZERO);
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        for (percent, micros) in [
            (0.0, 1),
            (50.0, 500),
            (99.0, 990),
            (99.9, 999),
            (100.0, 1000),
        ] {
            let exact = Duration::from_micros(micros);
            let found = histogram.percentile(percent);
            assert!(
                found >= exact && found <= exact + exact / 128,
                "{percent} {found:?}"
            );
        }
        assert_eq!(histogram.max(), Duration::from_millis(1));
    }

    #[test]
    fn octaves_hold_every_latency_once_and_begin_and_end_with_some() {
        let mut histogram = Histogram::default();
        assert!(histogram.octaves().is_empty());
        for micros in [100, 100, 900] {
            histogram.record(Duration::from_micros(micros));
        }
        let octaves = histogram.octaves();
        let counts: Vec<_> = octaves.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [2, 0, 0, 1]);
        assert!(octaves[0].0 >= Duration::from_micros(100));
        assert!(octaves[3].0 >= Duration::from_micros(900));
    }
}
