//! Outlier ejection at work: what requests to a cluster tell the detector, and what it decides.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Endpoint, Endpoints, Trouble,
    outlier::{Change, Crowd, Detector, Outcome, Reason},
};
use crate::{
    Metrics,
    metrics::{Counter, Gauge},
};

/// The outlier detection of one cluster, shared by all its clients.
#[derive(Debug)]
pub struct Outliers {
    detector: Detector,
    /// Held while endpoints are counted and one of them is ejected.
    deciding: Mutex<()>,
    ejections: [Counter; Reason::ALL.len()],
    refused: Counter,
    ejected: Gauge,
}

impl Outliers {
    /// Detection with these settings for the cluster `name`.
    pub fn new(detector: Detector, name: &str, metrics: &Metrics) -> Arc<Self> {
        let cluster = ("cluster", name);
        Arc::new(Self {
            detector,
            deciding: Mutex::default(),
            ejections: Reason::ALL.map(|reason| {
                metrics.counter(
                    "attache_upstream_ejections",
                    "Endpoints left out for how they answer, by cluster and reason.",
                    &[cluster, ("reason", reason.name())],
                )
            }),
            refused: metrics.counter(
                "attache_upstream_ejections_refused",
                "Endpoints that stay in use all the same, as too few others could be used.",
                &[cluster],
            ),
            ejected: metrics.gauge(
                "attache_upstream_endpoints_ejected",
                "Endpoints left out now for how they answer.",
                &[cluster],
            ),
        })
    }

    /// Notes how a request to `endpoint` went.
    pub fn note(&self, endpoints: &Endpoints, endpoint: &Endpoint, outcome: Outcome) {
        if let Some(reason) = self.detector.note(endpoint.record(), outcome) {
            self.eject(endpoints, endpoint, reason);
        }
    }

    fn eject(&self, endpoints: &Endpoints, endpoint: &Endpoint, reason: Reason) {
        let _alone = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        if endpoint.record().is_ejected() {
            return;
        }
        let members = endpoints.members();
        let of = |which: fn(&Endpoint) -> bool| {
            let which = members.iter().filter(|member| which(&member.endpoint));
            which.count()
        };
        let crowd = Crowd {
            all: members.len(),
            ejected: of(|endpoint| endpoint.is_in(Trouble::Ejected)),
            usable: of(Endpoint::is_healthy),
        };
        let now = Instant::now();
        if self.detector.eject(endpoint.record(), crowd, now) {
            self.ejected(endpoints, endpoint, reason);
        } else {
            self.refused.inc();
        }
    }

    fn ejected(&self, endpoints: &Endpoints, endpoint: &Endpoint, reason: Reason) {
        endpoint.mark_for(Trouble::Ejected, reason.name());
        self.ejected.inc();
        if let Some(counter) = self.ejections.get(reason as usize) {
            counter.inc();
        }
        tracing::warn!(
            cluster = %endpoints.name(), %endpoint, reason = reason.name(),
            "the endpoint is ejected for how it answers"
        );
    }

    fn readmitted(&self, cluster: &str, endpoint: &Endpoint) {
        if endpoint.mark(Trouble::Ejected, false) {
            self.ejected.dec();
            tracing::info!(cluster, %endpoint, "the endpoint that was ejected is used again");
        }
    }

    /// Ends an ejection, as the endpoint has passed an active health check.
    pub(super) fn passed_check(&self, cluster: &str, endpoint: &Endpoint) {
        if self.detector.readmits_checked
            && endpoint.is_in(Trouble::Ejected)
            && endpoint.record().readmit(Instant::now())
        {
            self.readmitted(cluster, endpoint);
        }
    }

    /// The clock: ends ejections and looks at rates, as long as `endpoints` are in use.
    pub async fn run(self: Arc<Self>, endpoints: Weak<Endpoints>) {
        let mut ticks = ticks(self.detector.interval);
        loop {
            ticks.tick().await;
            let Some(endpoints) = endpoints.upgrade() else {
                return;
            };
            self.tick(&endpoints);
        }
    }

    fn tick(&self, endpoints: &Endpoints) {
        let _alone = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        let members = endpoints.members();
        let others = |endpoint: &Endpoint| {
            !endpoint.is_in(Trouble::FailedCheck) && !endpoint.is_in(Trouble::Withdrawn)
        };
        let records: Vec<_> = members
            .iter()
            .map(|member| (member.endpoint.record(), others(&member.endpoint)))
            .collect();
        for (place, change) in self.detector.tick(&records, Instant::now()) {
            let Some(member) = members.get(place) else {
                continue;
            };
            match change {
                Change::Ejected(reason) => self.ejected(endpoints, &member.endpoint, reason),
                Change::Readmitted => self.readmitted(endpoints.name(), &member.endpoint),
            }
        }
        // Endpoints may have gone while they were ejected.
        let ejected = members
            .iter()
            .filter(|member| member.endpoint.is_in(Trouble::Ejected));
        self.ejected
            .set(i64::try_from(ejected.count()).unwrap_or(i64::MAX));
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}
