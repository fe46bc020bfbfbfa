//! Active health checks: each endpoint of a cluster is asked at intervals whether it is well,
//! once for the whole process.
//!
//! Unlike in Envoy, which serves nothing until each endpoint has been asked once, an endpoint is
//! used until its first check has failed.

mod config;
mod probe;
mod state;

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

pub use config::{
    Check, CodecClientType, GrpcHealthCheck, HealthCheck, HealthPlan, HttpHealthCheck,
    IMMEDIATE_FAIL, Payload, RequestMethod, StatusRange, TcpHealthCheck,
};

use super::{Endpoint, Endpoints, Outliers, Trouble};
use crate::{Metrics, metrics::Counter, tls::ClientTls};
use probe::Prober;
use state::{Results, Step, Verdict, by_chance};

/// The health checks of one cluster.
#[derive(Clone)]
pub struct HealthChecks {
    plan: Arc<HealthPlan>,
    tls: Option<ClientTls>,
    outliers: Option<Arc<Outliers>>,
    /// Whether the cluster has ever been used.
    used: Arc<AtomicBool>,
    passed: Counter,
    failed: Counter,
}

impl HealthChecks {
    /// Checks of the cluster `name`, over its `tls`. Those that pass end ejections by
    /// `outliers`.
    pub fn new(
        plan: HealthPlan,
        tls: Option<ClientTls>,
        outliers: Option<Arc<Outliers>>,
        name: &str,
        metrics: &Metrics,
    ) -> Self {
        let counter = |result| {
            metrics.counter(
                "attache_health_checks",
                "Active health checks, by cluster and result.",
                &[("cluster", name), ("result", result)],
            )
        };
        Self {
            plan: Arc::new(plan),
            tls,
            outliers,
            used: Arc::default(),
            passed: counter("passed"),
            failed: counter("failed"),
        }
    }

    /// Checks all endpoints, as long as they are in use.
    pub async fn run(self, endpoints: Weak<Endpoints>) {
        let mut checked: HashMap<usize, AbortOnDropHandle<()>> = HashMap::new();
        let Some(changes) = endpoints.upgrade().map(|endpoints| endpoints.changes()) else {
            return;
        };
        loop {
            let version = changes.now();
            let Some(set) = endpoints.upgrade() else {
                return;
            };
            let members = set.members();
            checked.retain(|known, _| members.iter().any(|m| place(&m.endpoint) == *known));
            for member in members.iter() {
                checked.entry(place(&member.endpoint)).or_insert_with(|| {
                    let check = self
                        .clone()
                        .check(member.endpoint.clone(), endpoints.clone());
                    AbortOnDropHandle::new(tokio::spawn(check))
                });
            }
            drop((set, members));
            changes.since(version).await;
        }
    }

    /// Checks one endpoint again and again.
    async fn check(self, endpoint: Arc<Endpoint>, endpoints: Weak<Endpoints>) {
        let mut results = Results::default();
        let mut prober = Prober::new(endpoint.clone(), self.plan.clone(), self.tls.clone());
        sleep(by_chance(self.plan.initial_jitter)).await;
        loop {
            let outcome = prober.check().await;
            let Some(set) = endpoints.upgrade() else {
                return;
            };
            let cluster = set.name();
            let verdict = match &outcome {
                Ok(()) => Verdict::Passed,
                Err(failure) => failure.verdict(),
            };
            match verdict {
                Verdict::Passed => self.passed.inc(),
                Verdict::Refused | Verdict::Unclear => self.failed.inc(),
            };
            let healthy = !endpoint.is_in(Trouble::FailedCheck);
            let step = results.take(verdict, healthy, self.plan.thresholds);
            if step == Step::Changed {
                match &outcome {
                    Ok(()) => {
                        endpoint.mark(Trouble::FailedCheck, false);
                        tracing::info!(%cluster, %endpoint, "the endpoint passes its health check again");
                    }
                    Err(reason) => {
                        endpoint.mark_for(Trouble::FailedCheck, reason);
                        tracing::warn!(%cluster, %endpoint, %reason, "the endpoint fails its health check");
                    }
                }
            }
            let healthy = !endpoint.is_in(Trouble::FailedCheck);
            if healthy
                && outcome.is_ok()
                && let Some(outliers) = &self.outliers
            {
                outliers.passed_check(cluster, &endpoint);
            }
            let used = self.used(&set);
            let pause = self.plan.pauses.after(step, healthy, used);
            drop(set);
            sleep(pause).await;
        }
    }

    /// Whether there has ever been a connection for a request.
    fn used(&self, set: &Endpoints) -> bool {
        let members = set.members();
        let mut connects = members.iter().map(|member| member.endpoint.connects().0);
        if !self.used.load(Relaxed) && connects.any(|made| made > 0) {
            self.used.store(true, Relaxed);
        }
        self.used.load(Relaxed)
    }
}

/// What tells an endpoint from the others while it lives; its check keeps it.
fn place(endpoint: &Arc<Endpoint>) -> usize {
    Arc::as_ptr(endpoint).addr()
}

/// Marks an endpoint whose answer to a request has said that it is unhealthy, until it passes
/// its checks again.
pub fn fail_at_once(cluster: &str, endpoint: &Endpoint) {
    if endpoint.mark_for(Trouble::FailedCheck, IMMEDIATE_FAIL) {
        tracing::warn!(
            cluster, %endpoint, reason = IMMEDIATE_FAIL.as_str(),
            "the endpoint fails its health check"
        );
    }
}

#[cfg(test)]
mod tests;
