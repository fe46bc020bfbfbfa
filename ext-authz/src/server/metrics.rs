//! What is counted of checks.

use std::time::Duration;

use attache_service::{
    Metrics,
    metrics::{Counter, Gauge, Histogram},
};

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The request may pass.
    Allowed,
    /// It may not.
    Denied,
    /// The authorizer says that it failed, or its decision cannot be sent.
    Error,
    /// It panicked.
    Panic,
    /// It took too long.
    Deadline,
    /// The caller went away first.
    Cancelled,
    /// It was not asked, since too many checks were under way.
    Shed,
}

const OUTCOMES: [&str; 7] = [
    "allowed",
    "denied",
    "error",
    "panic",
    "deadline",
    "cancelled",
    "shed",
];

impl Outcome {
    pub(super) fn name(self) -> &'static str {
        OUTCOMES.get(self as usize).copied().unwrap_or_default()
    }
}

/// Handles of the metrics of one server.
#[derive(Debug)]
pub(super) struct CheckMetrics {
    checks: [Counter; 7],
    seconds: Histogram,
    pub(super) in_flight: Gauge,
}

impl CheckMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let checks = |outcome: &str| {
            metrics.counter(
                "attache_authorizer_checks",
                "Checks by what they came to.",
                &[("outcome", outcome)],
            )
        };
        Self {
            checks: OUTCOMES.map(checks),
            seconds: metrics.histogram(
                "attache_authorizer_check_seconds",
                "Time that the authorizer took for a check.",
                &[],
            ),
            in_flight: metrics.gauge(
                "attache_authorizer_checks_in_flight",
                "Checks that the authorizer is busy with.",
                &[],
            ),
        }
    }

    pub(super) fn record(&self, outcome: Outcome, took: Duration) {
        if let Some(counter) = self.checks.get(outcome as usize) {
            counter.inc();
        }
        if outcome != Outcome::Shed {
            self.seconds.observe(took.as_secs_f64());
        }
    }
}
