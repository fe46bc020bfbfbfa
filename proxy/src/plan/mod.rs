//! The plan: a configuration validated, resolved and immutable; what workers run.

mod cluster;
mod listener;

use std::{sync::Arc, time::Duration};

pub use cluster::{ClusterPlan, DEFAULT_CLUSTER_IDLE, Endpoint, Protocol};
pub use listener::{Limits, ListenerPlan};

use crate::{filters::FilterPlans, route::RouteTable};

/// Everything a worker needs to run.
#[derive(Debug)]
pub struct Plan {
    /// Where requests come in.
    pub listeners: Vec<Arc<ListenerPlan>>,
    /// Where they go.
    pub routes: Arc<RouteTable>,
    /// Upstreams and policy services; routes refer to them by index.
    pub clusters: Vec<Arc<ClusterPlan>>,
    /// The policies that listeners name.
    pub filters: FilterPlans,
    /// Threads; 0 is one per processor. Not changed by a reload.
    pub workers: usize,
    /// How long requests in flight may take to end on shutdown. Default 30 s.
    pub drain_timeout: Duration,
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
            filters: FilterPlans::default(),
            workers: 1,
            drain_timeout: DEFAULT_DRAIN_TIMEOUT,
        }
    }
}

/// Bound on the drain unless configured.
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
