//! One cluster, as a worker runs it.

use std::{sync::Arc, time::Duration};

use attache_service::{Address, channel::Target, tls::ClientTls};
use tokio::sync::Semaphore;

use crate::retry;

/// One cluster: an upstream or a policy service.
#[derive(Debug)]
pub struct ClusterPlan {
    /// Its name.
    pub name: Arc<str>,
    /// Its endpoints, used round robin.
    pub targets: Vec<Endpoint>,
    /// How requests are sent.
    pub protocol: Protocol,
    /// TLS to the endpoints; plain text when absent.
    pub tls: Option<ClientTls>,
    /// Bound on establishing a connection, TLS included. Default 1 s (Envoy: 5 s).
    pub connect_timeout: Duration,
    /// How long an unused connection is kept. Default 1 h, as Envoy.
    pub idle_timeout: Duration,
    /// Room for requests that are sent again at the same time, over all workers.
    pub(crate) retries: Semaphore,
}

impl ClusterPlan {
    /// A plain-text HTTP/1.1 cluster with defaults.
    pub fn new(name: &str, addresses: impl IntoIterator<Item = Address>) -> Self {
        Self {
            name: name.into(),
            targets: addresses
                .into_iter()
                .map(|address| Endpoint(Target::Address(address)))
                .collect(),
            protocol: Protocol::Http1,
            tls: None,
            connect_timeout: Duration::from_secs(1),
            idle_timeout: DEFAULT_CLUSTER_IDLE,
            retries: Semaphore::new(retry::MAX_RUNNING),
        }
    }
}

/// How long an unused connection to an endpoint is kept unless configured.
pub const DEFAULT_CLUSTER_IDLE: Duration = Duration::from_secs(3600);

/// Where one endpoint of a cluster is.
#[derive(Clone)]
pub struct Endpoint(pub Target);

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Target::Address(address) => address.fmt(f),
            Target::Embedded(_) => f.write_str("embedded"),
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// The protocol spoken to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 with kept connections.
    Http1,
    /// HTTP/2, one connection per worker and endpoint (`http2: {}`).
    Http2,
}
