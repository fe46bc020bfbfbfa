//! `clusters`, as written.

use std::{path::PathBuf, time::Duration};

use attache_filter::metadata::{Metadata, MetadataKey};
use attache_service::{
    Address,
    cluster::{
        WrittenEndpoint, breakers::CircuitBreakers, health::HealthCheck, outlier::OutlierDetection,
    },
    config::{Empty, Located},
    config_enum, config_oneof, config_struct,
    tls::ClusterTls,
};

use super::CommonHttpProtocolOptions;

config_struct! {
    /// A group of endpoints that serve the same: an upstream or a policy service.
    pub struct Cluster {
        /// Name that routes and filters use.
        pub name: Located<String>,
        /// How endpoints are chosen. Default `LEAST_REQUEST` (Envoy: `ROUND_ROBIN`).
        pub lb_policy: Option<LbPolicy>,
        /// Settings of `PEAK_EWMA`.
        pub peak_ewma_lb_config: Option<Located<PeakEwmaConfig>>,
        /// Settings of all policies.
        pub common_lb_config: Option<CommonLbConfig>,
        /// Which addresses of a name are endpoints. Default `STRICT_DNS`.
        pub dns_type: Option<Located<DnsType>>,
        /// Pause between two lookups of a name. Default 5s.
        pub dns_refresh_rate: Option<Located<Duration>>,
        /// Which kinds of addresses of a name are used. Default `V4_PREFERRED` (Envoy: `AUTO`).
        pub dns_lookup_family: Option<DnsLookupFamily>,
        /// Bound on establishing a connection, TLS included. Default 1s (Envoy: 5s).
        pub connect_timeout: Option<Located<Duration>>,
        /// How long an unused connection is kept. Default 1h.
        pub idle_timeout: Option<Located<Duration>>,
        /// How endpoints are asked whether they are well, by the proxy itself: one entry. Default:
        /// they are not asked.
        pub health_checks: Vec<Located<HealthCheck>>,
        /// When endpoints are left out for how they answer. Default: never.
        pub outlier_detection: Option<OutlierDetection>,
        /// How much of the cluster may be in use at a time, and how many requests may be sent
        /// again. Default: no limits, and a budget of 20 % for retries (Envoy: 1024 and 3).
        pub circuit_breakers: Option<CircuitBreakers>,
        /// What holds for HTTP in any version.
        pub common_http_protocol_options: Option<CommonHttpProtocolOptions>,
        /// A connection this old takes no further requests, give or take a tenth. Default: no
        /// bound.
        pub max_connection_duration: Option<Located<Duration>>,
        /// A connection that has carried so many requests takes no further ones. Default: no
        /// bound.
        pub max_requests_per_connection: Option<Located<u32>>,
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
        "type" => "write `endpoints`, `dns`, `endpoints_file`, `eds` or `original_dst`",
        "load_assignment" => "write the addresses in `endpoints`",
        "transport_socket" => "write `tls`",
        "typed_extension_protocol_options" => "write `http2: {}` for HTTP/2",
        "http2_protocol_options" => "write `http2: {}`",
        "respect_dns_ttl" => "names are looked up every `dns_refresh_rate`",
        "dns_failure_refresh_rate" => "a lookup that failed is repeated after `dns_refresh_rate`",
        "dns_jitter" => "names are looked up every `dns_refresh_rate`",
        "dns_resolvers" => "the system is asked",
        "least_request_lb_config" => "two endpoints are drawn; requests count by weight",
        "ring_hash_lb_config" => "rendezvous hashing has no ring",
        "maglev_lb_config" => "rendezvous hashing has no table",
        "load_balancing_policy" => "write `lb_policy`",
        "eds_cluster_config" => "write `eds` or `endpoints_file`",
        "original_dst_lb_config" => "write `original_dst`",
        "lb_subset_config" => "endpoints have no metadata",
    }
}

config_oneof! {
    /// Where the endpoints of a cluster are.
    pub enum Target {
        /// Here. Each is `host:port` or `unix:/path`, or a map with more; a name is looked up
        /// again and again.
        Endpoints(Endpoints) = "endpoints",
        /// `host:port`, looked up again and again.
        Dns(Located<Address>) = "dns",
        /// A YAML or JSON file, read again when it changes: a list as `endpoints` has it, or what
        /// Envoy reads for `eds_config`.
        EndpointsFile(Located<PathBuf>) = "endpoints_file",
        /// With the control plane of `xds`.
        Eds(Eds) = "eds",
        /// Where each request says.
        OriginalDst(OriginalDst) = "original_dst",
        /// A service in this process, reached without a socket.
        Embedded(Embedded) = "embedded",
    }
}

config_struct! {
    /// Endpoints that a control plane tells (Envoy's `eds_cluster_config`).
    pub struct Eds {
        /// The name of the endpoints. Default: that of the cluster.
        pub service_name: Option<String>,
    }
    elsewhere {
        "eds_config" => "they come by the stream of `xds`",
    }
}

/// The addresses of a cluster.
pub type Endpoints = Vec<WrittenEndpoint>;

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

config_struct! {
    /// A cluster whose endpoints are named by the requests (Envoy's `ORIGINAL_DST` with
    /// `use_http_header` or `metadata_key`).
    pub struct OriginalDst {
        /// A header with `ip:port`, or several of them with commas between, each for when the one
        /// before has failed.
        pub http_header_name: Option<Located<String>>,
        /// Dynamic metadata with the same text, such as a policy has left.
        pub metadata_key: Option<MetadataKey>,
        /// Networks such as `10.0.0.0/8` that an endpoint may be in. Anything else is answered
        /// with 503.
        pub allowed: Located<Vec<Located<String>>>,
        /// Endpoints that each worker keeps connections to at a time. Default 1024.
        pub max_endpoints: Option<Located<usize>>,
    }
}

config_enum! {
    /// How endpoints are chosen (Envoy's `LbPolicy`).
    pub enum LbPolicy {
        /// In turn, each as often as its weight says.
        RoundRobin = "ROUND_ROBIN",
        /// Of two that are drawn, the one with fewer requests of this worker for its weight.
        LeastRequest = "LEAST_REQUEST",
        /// Any, as often as their weights say.
        Random = "RANDOM",
        /// Of two that are drawn, the one that will probably answer sooner, by the latency seen
        /// lately and the requests on it. Envoy has no such policy.
        PeakEwma = "PEAK_EWMA",
        /// By the hash that `hash_policy` of the route says, with rendezvous hashing.
        RingHash = "RING_HASH",
        /// The same.
        Maglev = "MAGLEV",
    }
    elsewhere {
        "CLUSTER_PROVIDED" => "left out, it is what `original_dst` does",
    }
}

config_struct! {
    /// Settings of `PEAK_EWMA`.
    pub struct PeakEwmaConfig {
        /// How long what was measured counts. Default 10s.
        pub decay_time: Option<Located<Duration>>,
    }
}

config_struct! {
    /// Settings of all policies (Envoy's `CommonLbConfig`).
    pub struct CommonLbConfig {
        /// When fewer endpoints than this are healthy, all are used; 0 never does that. Default
        /// 50 per cent.
        pub healthy_panic_threshold: Option<Percent>,
    }
    elsewhere {
        "zone_aware_lb_config" => "there are no zones",
        "locality_weighted_lb_config" => "there are no zones",
        "update_merge_window" => "each change of the endpoints counts at once",
        "ignore_new_hosts_until_first_hc" => "there is no such choice",
        "close_connections_on_host_set_change" => "connections to endpoints that are gone end with their requests",
        "consistent_hashing_lb_config" => "endpoints are hashed by their addresses",
        "override_host_status" => "there is no such choice",
    }
}

config_struct! {
    /// Envoy's `type.v3.Percent`.
    pub struct Percent {
        /// From 0 to 100.
        pub value: Located<f64>,
    }
}

config_enum! {
    /// Which addresses of a name are endpoints.
    pub enum DnsType {
        /// Each is one.
        Strict = "STRICT_DNS",
        /// The name is one, at the first of them; when that changes, new connections go there.
        Logical = "LOGICAL_DNS",
    }
}

config_enum! {
    /// Which kinds of addresses are used.
    pub enum DnsLookupFamily {
        /// IPv6, else IPv4.
        Auto = "AUTO",
        /// IPv4 alone.
        V4Only = "V4_ONLY",
        /// IPv6 alone.
        V6Only = "V6_ONLY",
        /// IPv4, else IPv6.
        V4Preferred = "V4_PREFERRED",
        /// Both.
        All = "ALL",
    }
}
