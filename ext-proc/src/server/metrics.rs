//! What is counted of handlers.

use std::time::Duration;

use attache_service::{
    Metrics,
    metrics::{Counter, Histogram},
};

/// A part of an exchange.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    RequestHeaders,
    RequestBody,
    RequestTrailers,
    ResponseHeaders,
    ResponseBody,
    ResponseTrailers,
}

const PARTS: [&str; 6] = [
    "request_headers",
    "request_body",
    "request_trailers",
    "response_headers",
    "response_body",
    "response_trailers",
];

/// What a handler came to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outcome {
    Ok,
    Responded,
    Failed,
}

const OUTCOMES: [&str; 3] = ["ok", "responded", "failed"];

/// Handles of the metrics of one server.
#[derive(Debug)]
pub(super) struct PartMetrics {
    handled: [[Counter; 3]; 6],
    seconds: [Histogram; 6],
    pub(super) cut_bodies: Counter,
}

impl PartMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let handled = |part: &str, result: &str| {
            metrics.counter(
                "attache_processor_handled",
                "Parts of exchanges that a processor has handled.",
                &[("part", part), ("result", result)],
            )
        };
        let seconds = |part: &str| {
            metrics.histogram(
                "attache_processor_handler_seconds",
                "Time that a processor took for a part of an exchange.",
                &[("part", part)],
            )
        };
        Self {
            handled: PARTS.map(|part| OUTCOMES.map(|outcome| handled(part, outcome))),
            seconds: PARTS.map(seconds),
            cut_bodies: metrics.counter(
                "attache_processor_cut_bodies",
                "Streamed bodies that ended with trailers while a part of them was held back.",
                &[],
            ),
        }
    }

    pub(super) fn record(&self, part: Part, outcome: Outcome, took: Duration) {
        let handled = self.handled.get(part as usize);
        if let Some(counter) = handled.and_then(|outcomes| outcomes.get(outcome as usize)) {
            counter.inc();
        }
        if let Some(histogram) = self.seconds.get(part as usize) {
            histogram.observe(took.as_secs_f64());
        }
    }
}
