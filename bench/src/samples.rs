//! Latencies of answered requests, and figures drawn from several rounds.

use std::time::Duration;

/// Latencies of one measurement, kept exactly: a few seconds hold no more than
/// some hundred thousand.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<u32>);

impl Samples {
    /// Adds one; those over four seconds count as four seconds.
    pub(crate) fn add(&mut self, latency: Duration) {
        self.0
            .push(u32::try_from(latency.as_nanos()).unwrap_or(u32::MAX));
    }

    /// Adds those of another.
    pub(crate) fn append(&mut self, mut other: Samples) {
        self.0.append(&mut other.0);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// The given percentiles, in microseconds; 0 where nothing was measured.
    pub(crate) fn percentiles<const N: usize>(&mut self, percents: [f64; N]) -> [f64; N] {
        self.0.sort_unstable();
        percents.map(|percent| {
            let last = self.0.len().saturating_sub(1);
            // Truncation is wanted: the sample at or just below the rank.
            let rank = (percent / 100.0 * last as f64) as usize;
            self.0
                .get(rank)
                .map_or(0.0, |nanos| f64::from(*nanos) / 1e3)
        })
    }
}

/// The median; of an even number of values, the mean of the middle two.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2).copied();
    let lower = values.get(values.len().saturating_sub(1) / 2).copied();
    match (lower, upper) {
        (Some(lower), Some(upper)) => f64::midpoint(lower, upper),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_all_samples() {
        let mut samples = Samples::default();
        for micros in (0..=100).rev() {
            samples.add(Duration::from_micros(micros));
        }
        let mut more = Samples::default();
        more.append(samples);
        assert_eq!(more.count(), 101);
        assert_eq!(more.percentiles([0.0, 50.0, 99.0]), [0.0, 50.0, 99.0]);
        assert_eq!(Samples::default().percentiles([50.0]), [0.0]);
    }

    #[test]
    fn the_median_needs_no_order() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0]), 2.5);
        assert!(median([]).is_nan());
    }
}
