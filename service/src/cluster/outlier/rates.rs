//! Endpoints that stand out by how many of their requests succeed.

use super::Percent;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct SuccessRate {
    pub(super) enforced: Percent,
    pub(super) local: Percent,
    pub(super) hosts: u32,
    pub(super) volume: u32,
    pub(super) deviations: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct FailurePercentage {
    pub(super) enforced: Percent,
    pub(super) local: Percent,
    pub(super) hosts: u32,
    pub(super) volume: u32,
    pub(super) threshold: f64,
}

/// How many percent are good, at each place that had at least `volume` of them.
fn success_rates(tallies: &[(usize, (u32, u32))], volume: u32) -> Vec<(usize, f64)> {
    let counted = tallies.iter().filter(|(_, (all, _))| *all >= volume.max(1));
    counted
        .map(|(place, (all, good))| (*place, 100.0 * f64::from(*good) / f64::from(*all)))
        .collect()
}

impl SuccessRate {
    /// The places of those whose rate of success is far below the others'.
    pub(super) fn outliers(&self, tallies: &[(usize, (u32, u32))]) -> Vec<usize> {
        let rates = success_rates(tallies, self.volume);
        if rates.is_empty() || rates.len() < self.hosts as usize {
            return Vec::new();
        }
        let count = rates.len() as f64;
        let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
        let squares = rates.iter().map(|(_, rate)| (rate - mean).powi(2));
        let deviation = (squares.sum::<f64>() / count).sqrt();
        let threshold = mean - self.deviations * deviation;
        let bad = rates.into_iter().filter(|(_, rate)| *rate < threshold);
        bad.map(|(place, _)| place).collect()
    }
}

impl FailurePercentage {
    /// The places of those that fail too often.
    pub(super) fn outliers(&self, tallies: &[(usize, (u32, u32))]) -> Vec<usize> {
        let rates = success_rates(tallies, self.volume);
        if rates.len() < self.hosts as usize {
            return Vec::new();
        }
        let bad = rates
            .into_iter()
            .filter(|(_, rate)| 100.0 - rate >= self.threshold);
        bad.map(|(place, _)| place).collect()
    }
}
