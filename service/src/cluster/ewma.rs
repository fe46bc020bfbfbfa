//! Latency as it was lately, quick to rise and slow to fall: the peak-sensitive exponentially
//! weighted moving average of Finagle and Linkerd.

use std::time::Duration;

use tokio::time::Instant;

/// The latency of one endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeakEwma {
    decay: Duration,
    /// In seconds; 0 before the first measurement.
    estimate: f64,
    at: Instant,
}

impl PeakEwma {
    pub(super) fn new(decay: Duration, now: Instant) -> Self {
        Self {
            decay,
            estimate: 0.0,
            at: now,
        }
    }

    /// Takes in a latency. One above the estimate is believed at once.
    pub(super) fn record(&mut self, latency: Duration, now: Instant) {
        let latency = latency.as_secs_f64();
        let kept = self.kept(now);
        self.estimate = match latency > self.estimate {
            true => latency,
            false => self.estimate * kept + latency * (1.0 - kept),
        };
        self.at = now;
    }

    /// The estimate in seconds: it falls while nothing is measured, so that an endpoint that was
    /// slow is tried again.
    pub(super) fn estimate(&self, now: Instant) -> f64 {
        self.estimate * self.kept(now)
    }

    /// The share of the estimate that is left after the time that has passed.
    fn kept(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (-passed / self.decay.as_secs_f64().max(f64::MIN_POSITIVE)).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECAY: Duration = Duration::from_secs(10);

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn a_peak_is_believed_at_once_and_forgotten_with_time() {
        let start = Instant::now();
        let mut ewma = PeakEwma::new(DECAY, start);
        assert!(close(ewma.estimate(start), 0.0));

        ewma.record(Duration::from_millis(10), start);
        ewma.record(Duration::from_millis(500), start);
        assert!(close(ewma.estimate(start), 0.5));

        let later = start + DECAY;
        assert!(close(ewma.estimate(later), 0.5 / std::f64::consts::E));
    }

    #[test]
    fn what_is_measured_after_a_pause_weighs_more() {
        let start = Instant::now();
        let mut soon = PeakEwma::new(DECAY, start);
        soon.record(Duration::from_secs(1), start);
        let mut late = soon;
        let (after, long_after) = (start + DECAY / 10, start + DECAY * 3);

        soon.record(Duration::from_millis(100), after);
        late.record(Duration::from_millis(100), long_after);

        assert!(soon.estimate(after) > 0.9);
        assert!(late.estimate(long_after) < 0.2);
    }
}
