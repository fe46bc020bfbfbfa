//! The configuration file of the proxy: what was written, and the way to a [`Plan`].
//!
//! The bodies of filters, routes and per-route settings are field for field Envoy's; listeners
//! and clusters are shorter. [`Config`] says exactly what was written; [`Config::read`] checks it
//! and resolves every name, and reports all mistakes at once, each with its place.

mod access_log;
mod build;
mod client_cert;
mod cluster;
mod filter;
mod listener;
mod live_page;
mod local_reply;
mod overload;
mod protocol;
mod retry;
mod route;
mod tracing;
mod xds;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use attache_filter::{header_option::HeaderValueOption, metadata::StructValue};
use attache_service::{
    Address,
    channel::EmbeddedConnector,
    config::{Document, Errors, Located, Size},
    config_struct,
};

pub use access_log::{
    AccessLog, AccessLogFilter, AccessLogFormat, AccessLogOutput, AccessLogs, Comparison,
    ComparisonHolder, ComparisonOp, FilterList, FilterSpecifier, GrpcStatusFilter, HeaderFilter,
    NoSettings, ResponseFlagFilter, RuntimeFilter, RuntimeUint, Sample, SampleBy, SampleConfig,
};
pub use client_cert::{ForwardClientCertDetails, SetCurrentClientCertDetails};
pub use cluster::{
    Cluster, CommonLbConfig, DnsLookupFamily, DnsType, Eds, Embedded, Endpoints, LbPolicy,
    OriginalDst, PeakEwmaConfig, Percent, Target,
};
pub use filter::{FilterConfig, GrpcWeb, Policy};
pub use listener::{
    CodecType, EscapedSlashesAction, Http2ProtocolOptions, LimitsConfig, Listener, ProxyProtocol,
    ProxyProtocolVersion, Tcp, TlsPassthrough,
};
pub use live_page::LivePage;
pub use local_reply::{
    LocalReplyConfig, ReplyCondition, ReplyFilter, ReplyFilters, ResponseMapper,
};
pub use overload::Overload;
pub use protocol::{CommonHttpProtocolOptions, UnderscoresAction};
pub use retry::{
    HostPredicate, PredicateName, PreviousHosts, RateLimitedRetryBackOff, ResetHeader,
    ResetHeaderFormat, RetryBackOff, RetryPolicy,
};
pub use route::{
    BodyFormat, ClusterNotFoundResponseCode, ClusterSpecifier, ClusterWeight, ConnectConfig,
    ConnectMatcher, ConnectionProperties, DataSource, DirectResponse, GrpcMatcher, HashBy,
    HashCookie, HashHeader, HashPolicy, HashQueryParameter, HeaderAction, HeaderMutation,
    HostRewrite, InternalRedirectPolicy, MaxStreamDuration, PathMatch, PathRedirect, Redirect,
    RedirectCode, RequestMirrorPolicy, Route, RouteAction, RouteConfiguration, RouteMatch,
    RouteSpecifier, SchemeChange, Source, Step, SubstitutionFormat, UpgradeConfig, VirtualHost,
    WeightTarget, WeightedClusters,
};

pub(crate) use route::Table;
pub use tracing::TracingConfig;
pub use xds::{ApiType, DiscoveredType, XdsConfig, XdsHeader};

use crate::Plan;

config_struct! {
    /// What `attache run` reads.
    pub struct Config {
        /// Where requests come in.
        pub listeners: Vec<Listener>,
        /// The policies, by the names that listeners and routes use.
        pub filters: BTreeMap<String, Located<FilterConfig>>,
        /// Routes for every host; the first that matches is taken.
        pub routes: Vec<Route>,
        /// Routes for some hosts.
        pub virtual_hosts: Vec<VirtualHost>,
        /// Headers added to all requests for upstreams (Envoy's `RouteConfiguration`).
        pub request_headers_to_add: Vec<HeaderValueOption>,
        /// Headers taken from all requests for upstreams.
        pub request_headers_to_remove: Vec<Located<String>>,
        /// Headers added to all responses of routes.
        pub response_headers_to_add: Vec<HeaderValueOption>,
        /// Headers taken from all responses of routes.
        pub response_headers_to_remove: Vec<Located<String>>,
        /// Make header changes at the top of the file first, then those of virtual hosts, then
        /// those of routes, so that the last word is the route's. Default false: the other way
        /// round.
        pub most_specific_header_mutations_wins: Option<bool>,
        /// Bytes that the body of a `direct_response` may have. Default 4 KiB.
        pub max_direct_response_body_size_bytes: Option<Size>,
        /// Copies of requests, where neither the route nor its virtual host says anything.
        pub request_mirror_policies: Vec<RequestMirrorPolicy>,
        /// Refuse routes to clusters that there are not; else they are answered as
        /// `cluster_not_found_response_code` says. Default true.
        pub validate_clusters: Option<bool>,
        /// Route tables by the names that listeners use, for those that do not share the one at
        /// the top of the file.
        pub route_configs: BTreeMap<String, RouteConfiguration>,
        /// Where requests go, and the policy services.
        pub clusters: Vec<Cluster>,
        /// The control plane that more of all this comes from; none when left out.
        pub xds: Option<Located<XdsConfig>>,
        /// Where the admin page listens; loopback only. None when left out.
        pub admin: Option<Located<Address>>,
        /// The live page of the admin page.
        pub live_page: Option<LivePage>,
        /// Traces of requests; none when left out.
        pub tracing: Option<Located<TracingConfig>>,
        /// What policies are told of this proxy.
        pub node: Option<NodeConfig>,
        /// When to refuse requests for want of memory. Never when left out.
        pub overload: Option<Located<Overload>>,
        /// Worker threads, each with its own connections. Default: one per core.
        pub workers: Option<Located<usize>>,
        /// How the process ends.
        pub drain: Option<Located<DrainConfig>>,
        /// Connections at a time, of all listeners together; more are closed at once. Default: no
        /// limit but those of the listeners.
        pub max_active_downstream_connections: Option<Located<usize>>,
    }
    elsewhere {
        "static_resources" => "this is an Envoy bootstrap: `attache import envoy` turns it into `listeners`, `routes`, `filters` and `clusters` at the top",
        "dynamic_resources" => "write `xds: { cluster: NAME }` for a control plane",
        "overload_manager" => "write `overload: { max_memory: SIZE }`, `max_active_downstream_connections`, and `limits` of listeners",
        "layered_runtime" => "there is no runtime layer: change the value and reload",
    }
}

config_struct! {
    /// How the process ends after SIGTERM. Readiness fails at once; clients are asked to come by
    /// other connections (`connection: close`, GOAWAY) and requests in flight finish.
    pub struct DrainConfig {
        /// How long new connections are still served, until load balancers have noticed. Default 0.
        pub min: Option<Duration>,
        /// When what still runs is dropped, counted from the beginning. Default 30s.
        pub max: Option<Duration>,
    }
}

config_struct! {
    /// Envoy's `config.core.v3.Node`: what policies and a control plane are told of this proxy.
    pub struct NodeConfig {
        /// Facts about this proxy, by name: `bootstrap_metadata_labels_key` of `ext_authz` shows
        /// one of them.
        pub metadata: Option<StructValue>,
        /// The cluster that this proxy belongs to (Envoy's `--service-cluster`): what the action
        /// `source_cluster` of `ratelimit` sends. Default: empty.
        pub cluster: Option<String>,
        /// The name of this proxy (Envoy's `--service-node`), for a control plane. Default: empty.
        pub id: Option<String>,
        /// Where this proxy runs, for a control plane.
        pub locality: Option<LocalityConfig>,
    }
}

config_struct! {
    /// A place (Envoy's `config.core.v3.Locality`).
    pub struct LocalityConfig {
        /// The region.
        pub region: Option<String>,
        /// The zone within the region.
        pub zone: Option<String>,
        /// The part of the zone.
        pub sub_zone: Option<String>,
    }
}

/// Services of this process that clusters may name with `embedded`.
pub trait EmbeddedServices {
    /// The way to the service that `cluster` names; a mistake is reported at its place. Relative
    /// paths have been resolved.
    fn connect(
        &self,
        cluster: &str,
        service: &EmbeddedService,
        errors: &mut Errors,
    ) -> Option<EmbeddedConnector>;
}

/// A service that a cluster embeds.
#[derive(Debug, Clone, PartialEq)]
pub enum EmbeddedService {
    /// The auth service with this configuration file.
    ExtAuthz(Located<PathBuf>),
    /// The rate limit service with this folder of rules.
    Ratelimit(Located<PathBuf>),
    /// A processor built into the program, by name.
    ExtProc(Located<String>),
}

/// No service is embedded: naming one is a mistake.
#[derive(Debug, Clone, Copy, Default)]
pub struct NothingEmbedded;

impl EmbeddedServices for NothingEmbedded {
    fn connect(
        &self,
        cluster: &str,
        service: &EmbeddedService,
        errors: &mut Errors,
    ) -> Option<EmbeddedConnector> {
        let message = format!("cluster `{cluster}`: this program embeds no services");
        match service {
            EmbeddedService::ExtAuthz(at) | EmbeddedService::Ratelimit(at) => {
                errors.push(at, message);
            }
            EmbeddedService::ExtProc(at) => errors.push(at, message),
        }
        None
    }
}

impl Config {
    /// Reads a file and plans it.
    ///
    /// # Errors
    /// Every mistake in the file, located; also when it cannot be read.
    pub fn load(
        path: impl AsRef<Path>,
        embedded: &dyn EmbeddedServices,
    ) -> Result<(Self, Plan), Errors> {
        Self::read(&Document::load(path)?, embedded)
    }

    /// Plans what was decoded from `document`, or put together from it and other parts. `None`
    /// only after an error was added.
    pub(crate) fn plan(
        &self,
        document: &Document,
        embedded: &dyn EmbeddedServices,
        errors: &mut Errors,
    ) -> Option<Plan> {
        build::plan(self, document, embedded, errors)
    }

    /// Decodes and plans a document.
    ///
    /// # Errors
    /// Every mistake in it, located.
    pub fn read(
        document: &Document,
        embedded: &dyn EmbeddedServices,
    ) -> Result<(Self, Plan), Errors> {
        let (config, mut errors) = document.decode_partly::<Self>();
        let both = config.and_then(|config| {
            let plan = config.plan(document, embedded, &mut errors)?;
            Some((config, plan))
        });
        errors.into_result(both)
    }
}
