//! What the results of an endpoint's checks mean: thresholds and pauses, without a clock.

use std::time::Duration;

use rand::Rng;

use super::config::{CheckPauses, Thresholds};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The endpoint is well.
    Passed,
    /// It has said that it is not.
    Refused,
    /// It did not say: no connection, no answer in time, or one that may change soon.
    Unclear,
}

/// What a check has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    /// It counts towards a threshold.
    Towards,
    /// The endpoint is of the other kind.
    Changed,
}

/// Results of the checks of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Results {
    /// Checks in a row that speak for a change.
    row: u32,
    checked: bool,
}

impl Results {
    /// Takes in a verdict on an endpoint that counts as `healthy` so far. The first verdict
    /// counts alone.
    pub(super) fn take(&mut self, verdict: Verdict, healthy: bool, at: Thresholds) -> Step {
        let first = !std::mem::replace(&mut self.checked, true);
        if (verdict == Verdict::Passed) == healthy {
            self.row = 0;
            return Step::Nothing;
        }
        self.row = self.row.saturating_add(1);
        let threshold = match healthy {
            true => at.unhealthy,
            false => at.healthy,
        };
        if !first && verdict != Verdict::Refused && self.row < threshold {
            return Step::Towards;
        }
        self.row = 0;
        Step::Changed
    }
}

impl CheckPauses {
    /// The pause after a check which did `step`, and after which the endpoint is `healthy`;
    /// `used` when something has been sent to its cluster.
    pub(super) fn after(&self, step: Step, healthy: bool, used: bool) -> Duration {
        let pause = match (used, healthy, step) {
            (false, true, _) => self.idle_healthy,
            (false, false, _) => self.idle,
            (true, true, Step::Changed) => self.healthy_edge,
            (true, false, Step::Changed) => self.unhealthy_edge,
            // Half way to the other kind, at the pace of the edge.
            (true, true, Step::Towards) => self.unhealthy_edge,
            (true, false, Step::Towards) => self.healthy_edge,
            (true, true, Step::Nothing) => self.healthy,
            (true, false, Step::Nothing) => self.unhealthy,
        };
        let percent = f64::from(self.jitter_percent) / 100.0;
        let jitter = self.jitter.saturating_add(pause.mul_f64(percent));
        pause.saturating_add(by_chance(jitter))
    }
}

/// Something from 0 to this.
pub(super) fn by_chance(most: Duration) -> Duration {
    match most.is_zero() {
        true => most,
        false => most.mul_f64(rand::rng().random::<f64>()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Verdict::*, *};

    const AT: Thresholds = Thresholds {
        unhealthy: 3,
        healthy: 2,
    };

    /// The health after each of these verdicts; endpoints begin healthy.
    fn after(verdicts: &[Verdict]) -> Vec<bool> {
        let mut results = Results::default();
        let mut healthy = true;
        let each = verdicts.iter().map(|verdict| {
            if results.take(*verdict, healthy, AT) == Step::Changed {
                healthy = !healthy;
            }
            healthy
        });
        each.collect()
    }

    #[test]
    fn thresholds_are_counted_in_a_row() {
        for (verdicts, wanted) in [
            (
                &[Passed, Unclear, Unclear, Unclear][..],
                &[true, true, true, false][..],
            ),
            (
                &[Passed, Unclear, Unclear, Passed, Unclear, Unclear, Unclear],
                &[true, true, true, true, true, true, false],
            ),
            (
                &[Passed, Refused, Passed, Refused, Passed, Passed],
                &[true, false, false, false, false, true],
            ),
            (
                &[Passed, Refused, Passed, Unclear, Passed, Passed],
                &[true, false, false, false, false, true],
            ),
        ] {
            assert_eq!(after(verdicts), wanted, "{verdicts:?}");
        }
    }

    #[test]
    fn the_first_verdict_counts_alone() {
        assert_eq!(after(&[Passed]), [true]);
        assert_eq!(after(&[Unclear, Passed, Passed]), [false, false, true]);
        // As after a reload: it is known to be unhealthy.
        let mut results = Results::default();
        assert_eq!(results.take(Passed, false, AT), Step::Changed);
    }

    #[test]
    fn pauses_go_by_health_by_change_and_by_use() {
        let secs = Duration::from_secs;
        let pauses = CheckPauses {
            healthy: secs(1),
            healthy_edge: secs(2),
            unhealthy: secs(3),
            unhealthy_edge: secs(4),
            idle: secs(5),
            idle_healthy: secs(6),
            jitter: secs(0),
            jitter_percent: 0,
        };
        for (step, healthy, used, wanted) in [
            (Step::Nothing, true, true, 1),
            (Step::Changed, true, true, 2),
            (Step::Towards, false, true, 2),
            (Step::Nothing, false, true, 3),
            (Step::Changed, false, true, 4),
            (Step::Towards, true, true, 4),
            (Step::Nothing, false, false, 5),
            (Step::Nothing, true, false, 6),
        ] {
            let pause = pauses.after(step, healthy, used);
            assert_eq!(pause, secs(wanted), "{step:?} {healthy} {used}");
        }
        let jittered = CheckPauses {
            jitter: secs(1),
            jitter_percent: 100,
            ..pauses
        };
        for _ in 0..100 {
            let pause = jittered.after(Step::Nothing, true, true);
            assert!((secs(1)..=secs(3)).contains(&pause), "{pause:?}");
        }
    }
}
