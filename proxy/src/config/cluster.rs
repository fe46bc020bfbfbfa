//! `clusters`, as written.

use std::{path::PathBuf, time::Duration};

use attache_filter::metadata::Metadata;
use attache_service::{
    Address,
    config::{Empty, Located},
    config_enum, config_oneof, config_struct,
    tls::ClusterTls,
};

config_struct! {
    /// A group of endpoints that serve the same: an upstream or a policy service.
    pub struct Cluster {
        /// Name that routes and filters use.
        pub name: Located<String>,
        /// How endpoints are chosen. Default `ROUND_ROBIN`.
        pub lb_policy: Option<LbPolicy>,
        /// Bound on establishing a connection, TLS included. Default 1s (Envoy: 5s).
        pub connect_timeout: Option<Duration>,
        /// How long an unused connection is kept. Default 1h.
        pub idle_timeout: Option<Duration>,
        /// Speak HTTP/2; gRPC services need it. HTTP/1.1 when left out.
        pub http2: Option<Empty>,
        /// Speak TLS; plain text when left out.
        pub tls: Option<Located<ClusterTls>>,
        /// Facts about the cluster that policies may look at.
        pub metadata: Option<Metadata>,
    }
    oneof {
        /// Where the endpoints are.
        pub target: Located<Target>,
    }
    elsewhere {
        "type" => "write the addresses in `endpoints`",
        "load_assignment" => "write the addresses in `endpoints`",
        "health_checks" => "active health checks are not supported yet",
        "outlier_detection" => "outlier detection is not supported yet",
        "circuit_breakers" => "circuit breakers are not supported yet",
        "transport_socket" => "write `tls`",
        "typed_extension_protocol_options" => "write `http2: {}` for HTTP/2",
        "http2_protocol_options" => "write `http2: {}`",
    }
}

config_oneof! {
    /// Where the endpoints of a cluster are.
    pub enum Target {
        /// `host:port` or `unix:/path`.
        Endpoints(Endpoints) = "endpoints",
        /// A service in this process, reached without a socket.
        Embedded(Embedded) = "embedded",
    }
    elsewhere {
        "dns" => "DNS discovery is not supported yet: a name in `endpoints` is looked up at each connection",
    }
}

/// The addresses of a cluster.
pub type Endpoints = Vec<Located<Address>>;

config_oneof! {
    /// A service in this process.
    pub enum Embedded {
        /// The auth service, with this configuration file.
        ExtAuthz(Located<PathBuf>) = "ext_authz",
        /// The rate limit service, with this folder of rules; it counts in memory.
        Ratelimit(Located<PathBuf>) = "ratelimit",
        /// A processor built into the program, by name.
        ExtProc(Located<String>) = "ext_proc",
    }
}

config_enum! {
    /// How endpoints are chosen (Envoy's `LbPolicy`).
    pub enum LbPolicy {
        /// In turn.
        RoundRobin = "ROUND_ROBIN",
    }
    elsewhere {
        "LEAST_REQUEST" => "not supported yet; `ROUND_ROBIN` is",
        "RANDOM" => "not supported yet; `ROUND_ROBIN` is",
        "RING_HASH" => "not supported yet; `ROUND_ROBIN` is",
        "MAGLEV" => "not supported yet; `ROUND_ROBIN` is",
    }
}
