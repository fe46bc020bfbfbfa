//! One listener, as a worker runs it.

use std::{sync::Arc, time::Duration};

use attache_service::{
    listen::{ListenAddress, SocketMode},
    tls::ServerTls,
};

use crate::{
    access_log::AccessLogPlan, hygiene::ForwardOptions, local_reply::LocalReplies,
    path::PathOptions, proxy_protocol::ProxyProtocol, route::RouteTable, server_names::ServerNames,
    tcp::TcpPlan, underscores::Underscores,
};

/// One listener.
#[derive(Debug)]
pub struct ListenerPlan {
    /// Name for logs and metrics.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: ListenAddress,
    /// Permissions of a socket file; those that the process's umask leaves when absent.
    pub mode: Option<SocketMode>,
    /// What connections begin with, before anything else; nothing when absent.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// TLS connections that are passed on unopened, by the server name that they ask for.
    pub tls_passthrough: Option<ServerNames<TcpPlan>>,
    /// TLS; plain text when absent.
    pub tls: Option<ServerTls>,
    /// Pass connections on instead of serving HTTP.
    pub tcp: Option<TcpPlan>,
    /// The versions of HTTP that clients may speak (`codec_type`). Default both, as Envoy.
    pub codec: Codec,
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
    /// Its own routes; those of the plan when absent.
    pub routes: Option<Arc<RouteTable>>,
    /// Names of the policies, outermost first.
    pub filters: Vec<Arc<str>>,
    /// Bytes of one body that a policy may hold back (`per_connection_buffer_limit_bytes`).
    /// Default 1 MiB, as Envoy.
    pub buffer_limit: usize,
    /// Bound on a stream, from the head of its request (`max_stream_duration`). Default: none.
    pub max_stream_duration: Option<Duration>,
    /// What becomes of requests with headers whose names have underscores. Default: they pass.
    pub underscores: Underscores,
    /// Access logs. Default none.
    pub access_logs: Vec<AccessLogPlan>,
    /// What answers look like that are made here.
    pub local_replies: Option<LocalReplies>,
}

impl ListenerPlan {
    /// A plain-text listener with defaults.
    pub fn new(name: &str, address: impl Into<ListenAddress>) -> Self {
        Self {
            name: name.into(),
            address: address.into(),
            mode: None,
            proxy_protocol: None,
            tls_passthrough: None,
            tls: None,
            tcp: None,
            codec: Codec::default(),
            limits: Limits::default(),
            forward: ForwardOptions::default(),
            path: PathOptions::default(),
            upgrades: vec!["websocket".to_owned()],
            allow_connect: false,
            routes: None,
            filters: Vec::new(),
            buffer_limit: 1 << 20,
            max_stream_duration: None,
            underscores: Underscores::default(),
            access_logs: Vec::new(),
            local_replies: None,
        }
    }

    /// Whether connections can be opened at all, other than to be passed on unopened.
    pub(crate) fn opens(&self) -> bool {
        self.tls_passthrough.is_none() || self.tls.is_some() || self.tcp.is_some()
    }

    /// Whether any of its connections is passed on.
    pub(crate) fn passes_on(&self) -> bool {
        self.tls_passthrough.is_some() || self.tcp.is_some()
    }
}

/// The versions of HTTP that the clients of a listener may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    /// Both, told apart by ALPN or by the first bytes.
    #[default]
    Auto,
    /// HTTP/1.1 and 1.0.
    Http1,
    /// HTTP/2.
    Http2,
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
    /// Requests in flight at a time, over all workers; more get 503. None by default: it costs a
    /// counter that all workers share.
    pub max_requests: Option<usize>,
    /// Requests of one connection; then it is closed politely. None by default, as Envoy.
    pub max_requests_per_connection: Option<u32>,
    /// Age at which a connection is closed politely. None by default, as Envoy.
    pub max_connection_duration: Option<Duration>,
    /// How long a request body that a policy waits for may be silent. Default 5 min, as Envoy's
    /// `stream_idle_timeout`.
    pub body_timeout: Duration,
    /// How long a client may take nothing of a response that is there. Default 5 min, as Envoy's
    /// `stream_idle_timeout`.
    pub write_timeout: Duration,
    /// HTTP/2 requests that a client may give up within 10 seconds, if they are more than half
    /// of what it began; then its connection is dropped. Default 500, as Envoy.
    pub max_resets: u32,
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
            max_requests: None,
            max_requests_per_connection: None,
            max_connection_duration: None,
            body_timeout: crate::route::DEFAULT_IDLE_TIMEOUT,
            write_timeout: crate::route::DEFAULT_IDLE_TIMEOUT,
            max_resets: 500,
        }
    }
}
