//! How long the stages of a pipeline take.

use std::time::Instant;

use attache_service::{Metrics, metrics::Histogram};

/// Histograms of one pipeline, by stage.
#[derive(Debug)]
pub(super) struct StageSeconds {
    pub(super) identity: Histogram,
    pub(super) metadata: Histogram,
    /// Rules, and the policy that they ask.
    pub(super) policy: Histogram,
    pub(super) response: Histogram,
}

impl StageSeconds {
    pub(super) fn new(pipeline: &str, metrics: &Metrics) -> Self {
        let histogram = |stage| {
            metrics.histogram(
                "attache_auth_stage_seconds",
                "Time that checks spent in a stage of a pipeline.",
                &[("pipeline", pipeline), ("stage", stage)],
            )
        };
        Self {
            identity: histogram("identity"),
            metadata: histogram("metadata"),
            policy: histogram("policy"),
            response: histogram("response"),
        }
    }
}

/// The time of the stage that a check is in. It counts however the stage ends: with the next one,
/// an error, or the check being dropped.
pub(super) struct Timing<'a> {
    stage: &'a Histogram,
    since: Instant,
}

impl<'a> Timing<'a> {
    /// Begins with a first stage.
    pub(super) fn of(stage: &'a Histogram) -> Self {
        Self {
            stage,
            since: Instant::now(),
        }
    }

    /// The next stage begins.
    pub(super) fn enter(&mut self, stage: &'a Histogram) {
        let now = Instant::now();
        self.stage
            .observe(now.duration_since(self.since).as_secs_f64());
        (self.stage, self.since) = (stage, now);
    }
}

impl Drop for Timing<'_> {
    fn drop(&mut self) {
        self.stage.observe(self.since.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_counts_once_also_the_one_that_a_check_ends_in() {
        let metrics = Metrics::default();
        let seconds = StageSeconds::new("p", &metrics);
        let mut timing = Timing::of(&seconds.identity);
        timing.enter(&seconds.policy);
        drop(timing);
        let text = metrics.render();
        let count = |stage: &str, count: u32| {
            let labels = format!("{{pipeline=\"p\",stage=\"{stage}\"}}");
            text.contains(&format!(
                "attache_auth_stage_seconds_count{labels} {count}\n"
            ))
        };
        assert!(count("identity", 1) && count("policy", 1), "{text}");
        assert!(count("metadata", 0) && count("response", 0), "{text}");
    }
}
