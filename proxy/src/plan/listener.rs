//! One listener, as a worker runs it.

use std::{sync::Arc, time::Duration};

use attache_service::{Address, tls::ServerTls};

use crate::{access_log::AccessLogPlan, hygiene::ForwardOptions, path::PathOptions};

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
