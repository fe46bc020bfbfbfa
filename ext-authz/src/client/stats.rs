//! The filter's counters, named as Envoy names them.

use std::{collections::HashMap, sync::OnceLock};

use attache_service::{Metrics, metrics::Counter};

use super::plan::Filter;

/// Counter handles of one filter, resolved once.
pub(crate) struct Stats {
    decisions: Decisions,
    pub(crate) disabled: Counter,
    pub(crate) ignored_dynamic_metadata: Counter,
    pub(crate) filter_state_name_collision: Counter,
    pub(crate) omitted_headers: Counter,
    pub(crate) omitted_response_headers: Counter,
    pub(crate) request_header_limits_reached: Counter,
    pub(crate) response_header_limits_reached: Counter,
    pub(crate) shadow_denied: Counter,
    pub(crate) shadow_error: Counter,
    clusters: HashMap<String, OnceLock<Decisions>>,
    metrics: Metrics,
    prefix: Option<String>,
}

/// What is counted of each check, also for the cluster that the request goes to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Decision {
    Ok,
    Denied,
    Error,
    FailureModeAllowed,
    Invalid,
}

struct Decisions {
    ok: Counter,
    denied: Counter,
    error: Counter,
    failure_mode_allowed: Counter,
    invalid: Counter,
}

impl Decisions {
    /// `of` and `at` say in names and help texts whose they are.
    fn new(metrics: &Metrics, of: &str, at: &str, labels: &[(&str, &str)]) -> Self {
        let counter = |name: &str, help: &str| {
            let help = format!("{help}{at}.");
            metrics.counter(&format!("attache_{of}ext_authz_{name}"), &help, labels)
        };
        Self {
            ok: counter("ok", "Requests that the auth service allowed"),
            denied: counter("denied", "Requests that the auth service denied"),
            error: counter("error", "Checks that failed"),
            failure_mode_allowed: counter(
                "failure_mode_allowed",
                "Requests that passed since their check failed",
            ),
            invalid: counter("invalid", "Answers that could not be carried out"),
        }
    }

    fn count(&self, decision: Decision) {
        match decision {
            Decision::Ok => self.ok.inc(),
            Decision::Denied => self.denied.inc(),
            Decision::Error => self.error.inc(),
            Decision::FailureModeAllowed => self.failure_mode_allowed.inc(),
            Decision::Invalid => self.invalid.inc(),
        };
    }
}

impl Stats {
    /// `clusters` are those that requests may go to. Their counters are made when there is
    /// something to count.
    pub(crate) fn new<'c>(
        filter: &Filter,
        clusters: impl Iterator<Item = &'c str>,
        metrics: &Metrics,
    ) -> Self {
        let prefix = filter.stat_prefix.clone();
        let mut labels = vec![("filter", &*filter.name)];
        labels.extend(prefix.as_deref().map(|prefix| ("stat_prefix", prefix)));
        let counter = |name: &str, help: &str| {
            metrics.counter(&format!("attache_ext_authz_{name}"), help, &labels)
        };
        Self {
            decisions: Decisions::new(metrics, "", "", &labels),
            disabled: counter("disabled", "Requests that were not checked."),
            ignored_dynamic_metadata: counter(
                "ignored_dynamic_metadata",
                "Answers whose dynamic metadata was not kept.",
            ),
            filter_state_name_collision: counter(
                "filter_state_name_collision",
                "Checks that could not be noted in the access log, since their name was taken.",
            ),
            omitted_headers: counter(
                "omitted_headers",
                "Headers of answers left out since they would break a message.",
            ),
            omitted_response_headers: counter(
                "omitted_response_headers",
                "Responses with no room for all headers of the answer.",
            ),
            request_header_limits_reached: counter(
                "request_header_limits_reached",
                "Requests with too many headers after the answer's changes.",
            ),
            response_header_limits_reached: counter(
                "response_header_limits_reached",
                "Responses with too many headers after the answer's changes.",
            ),
            shadow_denied: counter(
                "shadow_denied",
                "Requests that passed in shadow mode though they were denied.",
            ),
            shadow_error: counter(
                "shadow_error",
                "Requests that passed in shadow mode though their check failed.",
            ),
            clusters: clusters
                .map(|name| (name.to_owned(), OnceLock::new()))
                .collect(),
            metrics: metrics.clone(),
            prefix,
        }
    }

    /// Counts a decision about a request that goes to `cluster`, if to any.
    pub(crate) fn count(&self, decision: Decision, cluster: Option<&str>) {
        self.decisions.count(decision);
        if let Some((name, decisions)) = cluster.and_then(|name| self.clusters.get_key_value(name))
        {
            let of_cluster = decisions.get_or_init(|| {
                let mut labels = vec![("cluster", name.as_str())];
                labels.extend(self.prefix.as_deref().map(|prefix| ("stat_prefix", prefix)));
                Decisions::new(&self.metrics, "cluster_", ", by upstream cluster", &labels)
            });
            of_cluster.count(decision);
        }
    }
}
