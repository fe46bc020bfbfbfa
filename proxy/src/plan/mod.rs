//! The plan: a configuration validated, resolved and immutable; what workers run.

mod cluster;
mod listener;

use std::{sync::Arc, time::Duration};

use attache_service::Metrics;

pub use cluster::{ClusterPlan, DEFAULT_CLUSTER_IDLE, DestinationPlan, Protocol};
pub use listener::{Codec, Limits, ListenerPlan};

use crate::{filters::FilterPlans, live::Masks, route::RouteTable, trace::TracePlan, xds::XdsPlan};
pub use crate::{overload::OverloadPlan, underscores::Underscores};

/// Everything a worker needs to run.
#[derive(Debug)]
pub struct Plan {
    /// Where requests come in.
    pub listeners: Vec<Arc<ListenerPlan>>,
    /// Where they go, from listeners without routes of their own.
    pub routes: Arc<RouteTable>,
    /// Upstreams and policy services; routes refer to them by index.
    pub clusters: Vec<Arc<ClusterPlan>>,
    /// Traces; none when absent.
    pub tracing: Option<TracePlan>,
    /// The control plane that more comes from; none when absent.
    pub xds: Option<XdsPlan>,
    /// The policies that listeners name.
    pub filters: FilterPlans,
    /// Threads; 0 is one per processor. Not changed by a reload.
    pub workers: usize,
    /// How long new connections are still served on shutdown, until load balancers have noticed.
    /// Default 0.
    pub drain_min: Duration,
    /// How long requests in flight may take to end on shutdown, from its beginning. Default 30 s.
    pub drain_timeout: Duration,
    /// Connections at a time, of all listeners together; more are closed at once. No limit when
    /// absent.
    pub max_connections: Option<usize>,
    /// When to refuse requests for want of memory. Never by default.
    pub overload: Option<OverloadPlan>,
    /// Headers whose values the live page does not show.
    pub masks: Masks,
}

impl Plan {
    /// A plan of these parts, without policies and with defaults for the rest.
    pub fn new(
        listeners: Vec<ListenerPlan>,
        routes: RouteTable,
        clusters: Vec<ClusterPlan>,
    ) -> Self {
        Self {
            listeners: listeners.into_iter().map(Arc::new).collect(),
            routes: Arc::new(routes),
            clusters: clusters.into_iter().map(Arc::new).collect(),
            tracing: None,
            xds: None,
            filters: FilterPlans::default(),
            workers: 1,
            drain_min: Duration::ZERO,
            drain_timeout: DEFAULT_DRAIN_TIMEOUT,
            max_connections: None,
            overload: None,
            masks: Masks::default(),
        }
    }

    /// Begins to guard the clusters: health checks are the whole process's, not a worker's.
    pub(crate) fn guard(&self, metrics: &Metrics) {
        for cluster in &self.clusters {
            cluster.guards(metrics);
        }
    }

    /// Takes over what is the same in `before`: clusters, with their endpoints' health and all
    /// that workers hold for them, and the TLS sessions of listeners.
    pub(crate) fn succeed(&mut self, before: &Self) {
        for listener in &self.listeners {
            let same = before.listeners.iter().find(|l| l.name == listener.name);
            let tls = same.and_then(|same| same.tls.as_ref());
            if let (Some(tls), Some(before)) = (&listener.tls, tls) {
                tls.succeed(before);
            }
        }
        for cluster in &mut self.clusters {
            if let Some(same) = before.clusters.iter().find(|other| cluster.is(other)) {
                *cluster = same.clone();
                let xds = self.xds.as_mut().map(|xds| &mut xds.settings.channel);
                if let Some(channel) = xds.filter(|channel| channel.name == cluster.name) {
                    // They are followed already.
                    channel.endpoints = cluster.endpoints.clone();
                }
            }
        }
    }
}

/// Bound on the drain unless configured.
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
