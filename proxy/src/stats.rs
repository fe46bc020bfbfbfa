//! Counters of the proxy. Handles are resolved when a worker is set up.

use attache_service::{
    Metrics,
    metrics::{Counter, Gauge, Latency},
};
use http::StatusCode;

use crate::overload;

const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Counts by class of status code.
#[derive(Debug, Clone)]
struct ByClass([Counter; 6]);

impl ByClass {
    fn new(metrics: &Metrics, name: &str, help: &str, label: (&str, &str)) -> Self {
        Self(CLASSES.map(|class| metrics.counter(name, help, &[label, ("code_class", class)])))
    }

    fn count(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        let [other, ..] = &self.0;
        self.0.get(class).unwrap_or(other).inc();
    }

    fn unanswered(&self) {
        let [other, ..] = &self.0;
        other.inc();
    }
}

/// What is counted of one listener.
#[derive(Debug, Clone)]
pub(crate) struct ListenerStats {
    requests: ByClass,
    /// From the head of a request to the head of its response.
    pub(crate) duration: Latency,
    /// Connections open now.
    pub(crate) connections: Gauge,
    /// Connections closed at once, being over the limit.
    pub(crate) refused: Counter,
    /// Connections ended for a protocol error or a timeout.
    pub(crate) broken: Counter,
    /// Times that the system had no means for a connection.
    pub(crate) exhausted: Counter,
    /// Requests refused for want of room.
    pub(crate) overloaded: Counter,
}

impl ListenerStats {
    pub(crate) fn new(listener: &str, metrics: &Metrics) -> Self {
        let label = ("listener", listener);
        Self {
            requests: ByClass::new(
                metrics,
                "attache_downstream_requests",
                "Requests answered or refused, by listener and class of status code; `other` \
                    where the stream or the connection ended without one.",
                label,
            ),
            duration: metrics.latency(
                "attache_downstream_request_duration_seconds",
                "Time from the head of a request to the head of its response, by listener.",
                &[label],
            ),
            connections: metrics.gauge(
                "attache_downstream_connections",
                "Client connections open now.",
                &[label],
            ),
            refused: metrics.counter(
                "attache_downstream_connections_refused",
                "Client connections closed at once for `max_connections` or the limit of all listeners.",
                &[label],
            ),
            broken: metrics.counter(
                "attache_downstream_connections_broken",
                "Client connections ended by a protocol error or a timeout.",
                &[label],
            ),
            exhausted: metrics.counter(
                "attache_downstream_accept_failures",
                "Times that the system had no means, such as open files, to accept a connection.",
                &[label],
            ),
            overloaded: overload::counter(listener, metrics),
        }
    }

    pub(crate) fn count(&self, status: StatusCode) {
        self.requests.count(status);
    }

    /// Counts a request that nobody served, and the status of its answer if it had one.
    pub(crate) fn count_unserved(&self, status: Option<StatusCode>) {
        match status {
            Some(status) => self.requests.count(status),
            None => self.requests.unanswered(),
        }
    }
}

/// What is counted of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct ClusterStats {
    requests: ByClass,
    /// From the last attempt's begin to the head of its response.
    pub(crate) duration: Latency,
    /// Requests that got no response.
    pub(crate) failed: Counter,
    /// Requests not sent again, as they had been as often as their route allows.
    pub(crate) retries_exhausted: Counter,
    /// Redirects of upstreams that were followed here.
    pub(crate) redirects_followed: Counter,
    /// Redirects of upstreams that should have been and could not.
    pub(crate) redirects_failed: Counter,
    /// Copies of requests for other clusters.
    pub(crate) mirrored: Counter,
    /// Copies that lagged too far behind their requests.
    pub(crate) mirrors_cut_off: Counter,
    /// Copies not sent, as too many others were under way.
    pub(crate) mirrors_dropped: Counter,
}

impl ClusterStats {
    pub(crate) fn new(cluster: &str, metrics: &Metrics) -> Self {
        let label = ("cluster", cluster);
        Self {
            requests: ByClass::new(
                metrics,
                "attache_upstream_requests",
                "Responses of upstreams, by cluster and class of status code.",
                label,
            ),
            duration: metrics.latency(
                "attache_upstream_request_duration_seconds",
                "Time that upstreams took to begin their responses, by cluster.",
                &[label],
            ),
            failed: metrics.counter(
                "attache_upstream_failures",
                "Requests that an upstream did not answer: no connection, reset, timeout.",
                &[label],
            ),
            retries_exhausted: metrics.counter(
                "attache_upstream_retries_exhausted",
                "Requests not sent again, as they had been `num_retries` times.",
                &[label],
            ),
            redirects_followed: metrics.counter(
                "attache_upstream_redirects_followed",
                "Redirects of upstreams that `internal_redirect_policy` let the proxy follow.",
                &[label],
            ),
            redirects_failed: metrics.counter(
                "attache_upstream_redirects_failed",
                "Redirects that `internal_redirect_policy` names, passed on all the same.",
                &[label],
            ),
            mirrored: metrics.counter(
                "attache_upstream_mirrored",
                "Copies of requests that `request_mirror_policies` sent to the cluster.",
                &[label],
            ),
            mirrors_cut_off: metrics.counter(
                "attache_upstream_mirrors_cut_off",
                "Copies of requests broken off, as the cluster took their bodies too slowly.",
                &[label],
            ),
            mirrors_dropped: metrics.counter(
                "attache_upstream_mirrors_dropped",
                "Copies of requests not sent, as too many others were under way.",
                &[label],
            ),
        }
    }

    pub(crate) fn count(&self, status: StatusCode) {
        self.requests.count(status);
    }
}
