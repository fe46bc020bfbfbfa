//! The filter's counters: its own, and as Envoy has them, those of the clusters that requests go
//! to.

use std::{collections::HashMap, sync::OnceLock};

use attache_service::{Metrics, metrics::Counter};

use super::filter::Filter;

/// Counter handles of one filter, resolved once.
pub(super) struct Stats {
    answers: Answers,
    /// Calls at the end of an exchange that were made.
    pub(super) stream_done: Counter,
    /// Calls at the end of an exchange that failed.
    pub(super) stream_done_error: Counter,
    /// Calls at the end of an exchange that were left out, as too many were on their way.
    pub(super) stream_done_dropped: Counter,
    clusters: HashMap<String, OnceLock<Answers>>,
    metrics: Metrics,
    prefix: Option<String>,
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Ok,
    Error,
    OverLimit,
    FailureModeAllowed,
}

struct Answers {
    ok: Counter,
    error: Counter,
    over_limit: Counter,
    failure_mode_allowed: Counter,
}

impl Answers {
    /// `of` and `at` say in names and help texts whose they are.
    fn new(metrics: &Metrics, of: &str, at: &str, labels: &[(&str, &str)]) -> Self {
        let counter = |name: &str, help: &str| {
            metrics.counter(
                &format!("attache_{of}_{name}"),
                &format!("{help}{at}."),
                labels,
            )
        };
        Self {
            ok: counter("ok", "Requests that the service found within their limits"),
            error: counter("error", "Calls to the service that failed"),
            over_limit: counter("over_limit", "Requests that the service found over a limit"),
            failure_mode_allowed: counter(
                "failure_mode_allowed",
                "Requests let through because the service failed",
            ),
        }
    }

    fn count(&self, answer: Answer) {
        match answer {
            Answer::Ok => self.ok.inc(),
            Answer::Error => self.error.inc(),
            Answer::OverLimit => self.over_limit.inc(),
            Answer::FailureModeAllowed => self.failure_mode_allowed.inc(),
        };
    }
}

impl Stats {
    /// `clusters` are those that requests may go to. Their counters are made when there is
    /// something to count.
    pub(super) fn new<'c>(
        filter: &Filter,
        clusters: impl Iterator<Item = &'c str>,
        metrics: &Metrics,
    ) -> Self {
        let prefix = filter.stat_prefix.clone();
        let mut labels = vec![("filter", &*filter.name)];
        labels.extend(prefix.as_deref().map(|prefix| ("stat_prefix", prefix)));
        let counter = |name: &str, help: &str| {
            metrics.counter(&format!("attache_ratelimit_filter_{name}"), help, &labels)
        };
        Self {
            answers: Answers::new(metrics, "ratelimit_filter", "", &labels),
            stream_done: counter("stream_done", "Calls at the end of an exchange."),
            stream_done_error: counter(
                "stream_done_error",
                "Calls at the end of an exchange that failed.",
            ),
            stream_done_dropped: counter(
                "stream_done_dropped",
                "Calls at the end of an exchange left out, as too many were on their way.",
            ),
            clusters: clusters
                .map(|name| (name.to_owned(), OnceLock::new()))
                .collect(),
            metrics: metrics.clone(),
            prefix,
        }
    }

    /// Counts what came of a call about a request that goes to `cluster`, if to any.
    pub(super) fn count(&self, answer: Answer, cluster: Option<&str>) {
        self.answers.count(answer);
        if let Some((name, answers)) = cluster.and_then(|name| self.clusters.get_key_value(name)) {
            let of_cluster = answers.get_or_init(|| {
                let mut labels = vec![("cluster", name.as_str())];
                labels.extend(self.prefix.as_deref().map(|prefix| ("stat_prefix", prefix)));
                let at = ", by upstream cluster";
                Answers::new(&self.metrics, "cluster_ratelimit", at, &labels)
            });
            of_cluster.count(answer);
        }
    }
}
