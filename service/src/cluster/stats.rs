//! What is counted of a cluster.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

use super::{Endpoints, Trouble};
use crate::{
    Metrics,
    metrics::{Counter, Latency},
};

/// Counters of one cluster.
#[derive(Debug)]
pub(super) struct Stats {
    connects: Counter,
    connect_failures: Counter,
    connect_duration: Latency,
    pub(super) updates: Counter,
    pub(super) failed_updates: Counter,
}

impl Stats {
    fn new(cluster: &str, metrics: &Metrics) -> Self {
        let label = ("cluster", cluster);
        let update = |result| {
            metrics.counter(
                "attache_upstream_membership_updates",
                "Times that a cluster's endpoints were looked up or read.",
                &[label, ("result", result)],
            )
        };
        Self {
            connects: metrics.counter(
                "attache_upstream_connects",
                "Connections made to endpoints.",
                &[label],
            ),
            connect_failures: metrics.counter(
                "attache_upstream_connect_failures",
                "Connections to endpoints that could not be made.",
                &[label],
            ),
            connect_duration: metrics.latency(
                "attache_upstream_connect_duration_seconds",
                "Time that connections to endpoints took, TLS included.",
                &[label],
            ),
            updates: update("ok"),
            failed_updates: update("failed"),
        }
    }

    pub(super) fn connect(&self, made: bool, took: Duration) {
        match made {
            true => {
                self.connects.inc();
                self.connect_duration.observe(took);
            }
            false => {
                self.connect_failures.inc();
            }
        }
    }
}

/// A cluster as it is now, for people to look at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterSnapshot {
    /// Its name.
    pub name: String,
    /// Its endpoints.
    pub endpoints: Vec<EndpointSnapshot>,
}

/// An endpoint as it is now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EndpointSnapshot {
    /// Its address, as far as it is known.
    pub address: String,
    /// Its name for TLS.
    pub hostname: String,
    /// Its share of the requests, relative to the others.
    pub weight: u32,
    /// Whether nothing speaks against using it.
    pub healthy: bool,
    /// What speaks against it, with the names of Envoy's health flags.
    pub troubles: Vec<TroubleSnapshot>,
    /// Requests on it.
    pub active_requests: u64,
    /// Connections made.
    pub connects: u64,
    /// Connections that could not be made.
    pub connect_failures: u64,
}

/// What speaks against an endpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TroubleSnapshot {
    /// Envoy's health flag.
    pub flag: &'static str,
    /// Why, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Of an ejection: the seconds until it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_in: Option<u64>,
}

impl Endpoints {
    /// Counts in `metrics` from now on, and says there how many endpoints there are. Has an
    /// effect only once.
    pub fn describe(self: &Arc<Self>, metrics: &Metrics) {
        let stats = &self.common().stats;
        if stats.set(Stats::new(self.name(), metrics)).is_err() {
            return;
        }
        self.read(
            metrics,
            "attache_upstream_membership_total",
            "Endpoints of a cluster.",
            |endpoints| endpoints.members().len() as u64,
        );
        self.read(
            metrics,
            "attache_upstream_membership_healthy",
            "Endpoints of a cluster that nothing speaks against.",
            |endpoints| {
                let members = endpoints.members();
                let healthy = members.iter().filter(|member| member.endpoint.is_healthy());
                healthy.count() as u64
            },
        );
        self.read(
            metrics,
            "attache_upstream_requests_active",
            "Requests and calls that endpoints of a cluster are working on.",
            |endpoints| {
                let members = endpoints.members();
                members.iter().map(|member| member.endpoint.active()).sum()
            },
        );
    }

    /// A gauge, read while there are these endpoints.
    fn read(
        self: &Arc<Self>,
        metrics: &Metrics,
        name: &str,
        help: &str,
        value: impl Fn(&Self) -> u64 + Send + Sync + 'static,
    ) {
        let this: Weak<Self> = Arc::downgrade(self);
        metrics.read_gauge(name, help, move |put| {
            let Some(endpoints) = this.upgrade() else {
                return false;
            };
            put(&[("cluster", endpoints.name())], value(&endpoints));
            true
        });
    }

    /// The cluster as it is now.
    pub fn snapshot(&self) -> ClusterSnapshot {
        let members = self.members();
        let endpoints = members.iter().map(|member| {
            let endpoint = &member.endpoint;
            let troubles = Trouble::ALL.into_iter();
            let troubles = troubles.filter(|trouble| endpoint.is_in(*trouble));
            let now = Instant::now();
            let until = endpoint.record().ejected_until();
            let troubles = troubles.map(|trouble| TroubleSnapshot {
                flag: trouble.as_str(),
                why: endpoint.reason(trouble),
                ends_in: until
                    .filter(|_| trouble == Trouble::Ejected)
                    .map(|until| until.saturating_duration_since(now).as_secs()),
            });
            let (connects, connect_failures) = endpoint.connects();
            EndpointSnapshot {
                address: endpoint.to_string(),
                hostname: endpoint.hostname().to_owned(),
                weight: member.weight,
                healthy: endpoint.is_healthy(),
                troubles: troubles.collect(),
                active_requests: endpoint.active(),
                connects,
                connect_failures,
            }
        });
        ClusterSnapshot {
            name: self.name().to_string(),
            endpoints: endpoints.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Address;

    #[test]
    fn membership_is_told_as_long_as_the_cluster_is_there() {
        let metrics = Metrics::default();
        let addresses = ["10.0.0.1:80", "10.0.0.2:80"].map(|a| a.parse::<Address>().unwrap());
        let endpoints = Endpoints::new("web", addresses);
        endpoints.describe(&metrics);
        let members = endpoints.members();
        members[0]
            .endpoint
            .mark_for(Trouble::Ejected, "x".repeat(1000));

        let text = metrics.render();
        for line in [
            "attache_upstream_membership_total{cluster=\"web\"} 2",
            "attache_upstream_membership_healthy{cluster=\"web\"} 1",
            "attache_upstream_requests_active{cluster=\"web\"} 0",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        let snapshot = endpoints.snapshot();
        let trouble = TroubleSnapshot {
            flag: "failed_outlier_check",
            why: Some("x".repeat(200)),
            ends_in: None,
        };
        assert_eq!(snapshot.endpoints[0].troubles, [trouble]);
        assert!(snapshot.endpoints[1].healthy);

        drop(endpoints);
        assert!(!metrics.render().contains("cluster=\"web\"} 2"));
    }
}
