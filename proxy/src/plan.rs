//! The plan: a configuration validated, resolved and immutable; what workers run.

use std::{sync::Arc, time::Duration};

use attache_service::{
    Address,
    channel::Target,
    tls::{ClientTls, ServerTls},
};
use tokio::sync::Semaphore;

use crate::{
    access_log::AccessLogPlan, filters::FilterPlans, hygiene::ForwardOptions, path::PathOptions,
    retry, route::RouteTable,
};

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

/// One listener.
#[derive(Debug)]
pub struct ListenerPlan {
    /// Name for logs and metrics.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: Address,
    /// TLS; plain text when absent.
    pub tls: Option<ServerTls>,
    /// Bounds on what clients may do.
    pub limits: Limits,
    /// Client address and request id.
    pub forward: ForwardOptions,
    /// Path normalisation.
    pub path: PathOptions,
    /// `Upgrade` protocols let through, lower case. Default `websocket`.
    pub upgrades: Vec<String>,
    /// Take upgrades over HTTP/2, as extended `CONNECT` (RFC 8441). Default false, as Envoy.
    pub allow_connect: bool,
    /// Names of the policies, outermost first.
    pub filters: Vec<Arc<str>>,
    /// Bytes of one body that a policy may hold back (`per_connection_buffer_limit_bytes`).
    /// Default 1 MiB, as Envoy.
    pub buffer_limit: usize,
    /// Access log; none when absent.
    pub access_log: Option<AccessLogPlan>,
}

impl ListenerPlan {
    /// A plain-text listener with defaults.
    pub fn new(name: &str, address: Address) -> Self {
        Self {
            name: name.into(),
            address,
            tls: None,
            limits: Limits::default(),
            forward: ForwardOptions::default(),
            path: PathOptions::default(),
            upgrades: vec!["websocket".to_owned()],
            allow_connect: false,
            filters: Vec::new(),
            buffer_limit: 1 << 20,
            access_log: None,
        }
    }
}

/// Bounds on what the clients of a listener may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time, over all workers; more are closed at once. Default 10000.
    pub max_connections: usize,
    /// Header fields of a request; more is 431. Default 100, as Envoy.
    pub max_headers: usize,
    /// Bytes of a request head; more is 431. At least 8192. Default 64 KiB (Envoy: 60 KiB).
    pub max_header_bytes: usize,
    /// From the first byte of a head (or the start of the connection, TLS included) to its last.
    /// Default 10 s.
    pub header_timeout: Duration,
    /// How long a connection without requests is kept. Default 1 h, as Envoy.
    pub idle_timeout: Duration,
    /// HTTP/2 requests at a time on one connection. Default 100 (Envoy: 1024).
    pub max_concurrent_streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_headers: 100,
            max_header_bytes: 64 << 10,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(3600),
            max_concurrent_streams: 100,
        }
    }
}

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
