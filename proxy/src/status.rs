//! What runs, to be looked at.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use attache_service::cluster::{ClusterSnapshot, LbPolicy, breakers::BreakersSnapshot};
use serde::Serialize;

use crate::{
    edge::Everywhere,
    plan::{ClusterPlan, Plan, Protocol},
};

/// A look at a proxy that runs; it goes on while the proxy drains. Cheap to clone.
#[derive(Clone)]
pub struct Status {
    pub(crate) plan: Arc<ArcSwap<Plan>>,
    pub(crate) everywhere: Arc<Everywhere>,
}

/// A cluster as it is now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterStatus {
    /// Its name and its endpoints.
    #[serde(flatten)]
    pub cluster: ClusterSnapshot,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    /// Whether TLS is spoken to it.
    pub tls: bool,
    /// How endpoints are chosen.
    pub lb_policy: &'static str,
    /// Whether endpoints are asked if they are well.
    pub health_checked: bool,
    /// Whether endpoints are ejected for how they answer.
    pub outlier_detection: bool,
    /// How much of it is in use.
    pub circuit_breakers: Option<BreakersSnapshot>,
}

impl Status {
    /// Client connections open now, of all listeners.
    pub fn connections(&self) -> usize {
        self.everywhere.connections()
    }

    /// How long new connections are still served when the proxy drains, and when the drain is
    /// over at the latest.
    pub fn drain_times(&self) -> (Duration, Duration) {
        let plan = self.plan.load();
        (plan.drain_min, plan.drain_timeout)
    }

    /// The clusters, in the order of the configuration.
    pub fn clusters(&self) -> Vec<ClusterStatus> {
        let plan = self.plan.load();
        plan.clusters
            .iter()
            .map(|one| ClusterStatus::of(one))
            .collect()
    }
}

impl ClusterStatus {
    fn of(plan: &ClusterPlan) -> Self {
        let guards = plan.guards.get();
        Self {
            cluster: plan.endpoints.snapshot(),
            protocol: match plan.protocol {
                Protocol::Http1 => "HTTP/1.1",
                Protocol::Http2 => "HTTP/2",
            },
            tls: plan.tls.is_some(),
            lb_policy: match plan.balance.policy {
                LbPolicy::RoundRobin => "ROUND_ROBIN",
                LbPolicy::Random => "RANDOM",
                LbPolicy::LeastRequest => "LEAST_REQUEST",
                LbPolicy::PeakEwma { .. } => "PEAK_EWMA",
                LbPolicy::Hash => "RING_HASH",
            },
            health_checked: plan.health.is_some(),
            outlier_detection: plan.outliers.is_some(),
            circuit_breakers: guards.map(|guards| guards.breakers.snapshot()),
        }
    }
}

impl fmt::Display for ClusterStatus {
    /// Lines `cluster::name::value` and `cluster::endpoint::name::value`, as Envoy's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.cluster.name;
        writeln!(f, "{name}::protocol::{}", self.protocol)?;
        writeln!(f, "{name}::tls::{}", self.tls)?;
        writeln!(f, "{name}::lb_policy::{}", self.lb_policy)?;
        writeln!(f, "{name}::health_checked::{}", self.health_checked)?;
        writeln!(f, "{name}::outlier_detection::{}", self.outlier_detection)?;
        if let Some(breakers) = &self.circuit_breakers {
            for (limit, usage) in [
                ("max_connections", breakers.max_connections),
                ("max_pending_requests", breakers.max_pending_requests),
                ("max_requests", breakers.max_requests),
                ("max_retries", Some(breakers.max_retries)),
            ] {
                let Some(usage) = usage else {
                    continue;
                };
                writeln!(f, "{name}::default_priority::{limit}::{}", usage.limit)?;
                writeln!(f, "{name}::default_priority::{limit}::used::{}", usage.used)?;
            }
        }
        for endpoint in &self.cluster.endpoints {
            let at = format_args!("{name}::{}", endpoint.address);
            writeln!(f, "{at}::hostname::{}", endpoint.hostname)?;
            writeln!(f, "{at}::weight::{}", endpoint.weight)?;
            writeln!(f, "{at}::rq_active::{}", endpoint.active_requests)?;
            writeln!(f, "{at}::cx_total::{}", endpoint.connects)?;
            writeln!(f, "{at}::cx_connect_fail::{}", endpoint.connect_failures)?;
            write!(f, "{at}::health_flags::")?;
            match endpoint.healthy {
                true => writeln!(f, "healthy")?,
                false => {
                    for trouble in &endpoint.troubles {
                        write!(f, "/{}", trouble.flag)?;
                    }
                    writeln!(f)?;
                }
            }
            for trouble in &endpoint.troubles {
                if let Some(why) = &trouble.why {
                    writeln!(f, "{at}::{}::why::{why}", trouble.flag)?;
                }
                if let Some(seconds) = trouble.ends_in {
                    writeln!(f, "{at}::{}::ends_in::{seconds}s", trouble.flag)?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Status")
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}
