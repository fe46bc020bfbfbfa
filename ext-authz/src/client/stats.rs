//! The filter's counters, named as Envoy names them.

use attache_service::{Metrics, metrics::Counter};

use super::plan::Filter;

/// Counter handles of one filter, resolved once.
#[derive(Debug, Clone)]
pub(crate) struct Stats {
    pub(crate) ok: Counter,
    pub(crate) denied: Counter,
    pub(crate) error: Counter,
    pub(crate) failure_mode_allowed: Counter,
    pub(crate) disabled: Counter,
    pub(crate) invalid: Counter,
    pub(crate) ignored_dynamic_metadata: Counter,
    pub(crate) omitted_headers: Counter,
    pub(crate) request_header_limits_reached: Counter,
    pub(crate) response_header_limits_reached: Counter,
}

impl Stats {
    pub(crate) fn new(filter: &Filter, metrics: &Metrics) -> Self {
        let mut labels = vec![("filter", &*filter.name)];
        if let Some(prefix) = &filter.stat_prefix {
            labels.push(("stat_prefix", prefix));
        }
        let counter = |name: &str, help: &str| {
            metrics.counter(&format!("attache_ext_authz_{name}"), help, &labels)
        };
        Self {
            ok: counter("ok", "Requests that the auth service allowed."),
            denied: counter("denied", "Requests that the auth service denied."),
            error: counter("error", "Checks that failed."),
            failure_mode_allowed: counter(
                "failure_mode_allowed",
                "Requests that passed since their check failed.",
            ),
            disabled: counter("disabled", "Requests that were not checked."),
            invalid: counter("invalid", "Answers that could not be carried out."),
            ignored_dynamic_metadata: counter(
                "ignored_dynamic_metadata",
                "Answers whose dynamic metadata was not kept.",
            ),
            omitted_headers: counter(
                "omitted_headers",
                "Headers of answers left out since they would break a message.",
            ),
            request_header_limits_reached: counter(
                "request_header_limits_reached",
                "Requests with too many headers after the answer's changes.",
            ),
            response_header_limits_reached: counter(
                "response_header_limits_reached",
                "Responses with too many headers after the answer's changes.",
            ),
        }
    }
}
