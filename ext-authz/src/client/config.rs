//! The filter's settings as they are written: Envoy's field names and defaults.

use std::collections::BTreeMap;

use attache_filter::{
    fraction::RuntimeFractionalPercent,
    grpc_service::{ApiVersion, GrpcService, HttpStatus},
    matcher::ListStringMatcher,
    metadata::StructValue,
    metadata_matcher::MetadataMatcher,
    mutation::HeaderMutationRules,
};
use attache_service::{config::Located, config_oneof, config_struct};

use super::http::config::HttpService;

config_oneof! {
    /// The auth service to ask.
    pub enum Services {
        /// Over gRPC. `timeout` bounds a check; default 200 ms, `0s` is no bound.
        GrpcService(GrpcService) = "grpc_service",
        /// Over plain HTTP: the answer's status decides.
        HttpService(Box<HttpService>) = "http_service",
    }
}

config_struct! {
    /// Envoy's `ExtAuthz`: asks an auth service whether a request may pass.
    pub struct ExtAuthz {
        /// Version of the protocol: `V3`.
        pub transport_api_version: Option<ApiVersion>,
        /// Let requests pass when the auth service fails. Default false.
        pub failure_mode_allow: Option<bool>,
        /// Tell the upstream of it with `x-envoy-auth-failure-mode-allowed: true`. Default false.
        pub failure_mode_allow_header_add: Option<bool>,
        /// Show the auth service the request body. Default: checks on the head alone.
        pub with_request_body: Option<Located<BufferSettings>>,
        /// Pick the route again when the answer changes request headers or query. Default false.
        pub clear_route_cache: Option<bool>,
        /// Only when one of these headers or the query is changed.
        pub clear_route_cache_headers: Vec<String>,
        /// Status of the reply when the auth service fails. Default 403.
        pub status_on_error: Option<HttpStatus>,
        /// Answer 500 when the auth service asks for something malformed. Default false.
        pub validate_mutations: Option<bool>,
        /// Which request headers the auth service may change. Default: all.
        pub decoder_header_mutation_rules: Option<HeaderMutationRules>,
        /// Answer 500 when response headers exceed 100 after additions. Default false.
        pub enforce_response_header_limits: Option<bool>,
        /// Namespaces of dynamic metadata to show to the auth service.
        pub metadata_context_namespaces: Vec<String>,
        /// The same for metadata of a type.
        pub typed_metadata_context_namespaces: Vec<String>,
        /// Namespaces of the route's `metadata` to show to the auth service.
        pub route_metadata_context_namespaces: Vec<String>,
        /// The same for metadata of a type.
        pub route_typed_metadata_context_namespaces: Vec<String>,
        /// Share of requests that are checked. Default all.
        pub filter_enabled: Option<RuntimeFractionalPercent>,
        /// Check only requests with this dynamic metadata. Default: all.
        pub filter_enabled_metadata: Option<MetadataMatcher>,
        /// Deny requests that these two leave unchecked. Default false.
        pub deny_at_disable: Option<RuntimeFeatureFlag>,
        /// Show the client's certificate to the auth service. Default false.
        pub include_peer_certificate: Option<bool>,
        /// Show facts of the TLS session to the auth service. Default false.
        pub include_tls_session: Option<bool>,
        /// Name of the node's metadata (`node.metadata`) that is shown as labels of the
        /// destination. Default: none.
        pub bootstrap_metadata_labels_key: Option<String>,
        /// A name that tells the statistics of several filters apart.
        pub stat_prefix: Option<String>,
        /// Headers to show to the auth service, pseudo-headers included. Default: all.
        pub allowed_headers: Option<Located<ListStringMatcher>>,
        /// Headers to hide from the auth service, even when allowed.
        pub disallowed_headers: Option<Located<ListStringMatcher>>,
        /// Send headers line by line as bytes instead of joined and as text. Default false.
        pub encode_raw_headers: Option<bool>,
        /// Keep dynamic metadata from the auth service. Default true.
        pub enable_dynamic_metadata_ingestion: Option<bool>,
        /// Cut bodies of denials to this many bytes. Default 0: not cut.
        pub max_denied_response_body_bytes: Option<u32>,
        /// Ask, and note the decision in the access log, but let denied requests and failures
        /// pass. Default false.
        pub shadow_mode: Option<bool>,
        /// Count a denial as a response of the route's cluster. Default true.
        pub charge_cluster_response_stats: Option<bool>,
        /// Noted in the access log with each check.
        pub filter_metadata: Option<StructValue>,
        /// Note time and size of each check in the access log's `filter_state`. Default false.
        pub emit_filter_state_stats: Option<bool>,
        /// Give each check a span of its own in the trace of its request. Default true.
        pub emit_client_span: Option<bool>,
    }
    envoy_type = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
    oneof {
        /// The service to ask.
        pub services: Services,
    }
}

config_struct! {
    /// Envoy's `ExtAuthz.BufferSettings`: how much of the body the auth service sees.
    pub struct BufferSettings {
        /// Most bytes of the body; a larger one is answered with 413. Greater than 0.
        pub max_request_bytes: Located<u32>,
        /// Show only the beginning of larger bodies instead. Default false.
        pub allow_partial_message: Option<bool>,
        /// Send the body as bytes, not as text. Default false.
        pub pack_as_bytes: Option<bool>,
    }
}

config_struct! {
    /// Envoy's `RuntimeFeatureFlag`.
    pub struct RuntimeFeatureFlag {
        /// The flag.
        pub default_value: bool,
        /// The name that Envoy requires. There is no runtime layer here: the default holds.
        pub runtime_key: String,
    }
}

config_oneof! {
    /// What a route changes.
    pub enum PerRouteOverride {
        /// Whether requests go unchecked.
        Disabled(bool) = "disabled",
        /// How requests are checked.
        CheckSettings(Box<CheckSettings>) = "check_settings",
    }
}

config_struct! {
    /// Envoy's `ExtAuthzPerRoute`: settings of one route or virtual host.
    pub struct ExtAuthzPerRoute {}
    envoy_type = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";
    oneof {
        /// One of the two.
        pub settings: PerRouteOverride,
    }
}

config_struct! {
    /// Envoy's `CheckSettings`.
    pub struct CheckSettings {
        /// Told to the auth service over gRPC; merged with those of the virtual host.
        pub context_extensions: BTreeMap<String, String>,
        /// Check on the head alone although the filter buffers bodies. Default false.
        pub disable_request_body_buffering: Option<Located<bool>>,
        /// Buffering of this route instead of the filter's.
        pub with_request_body: Option<Located<BufferSettings>>,
        /// Give each check of this route a span. Default: as the filter says.
        pub emit_client_span: Option<bool>,
    }
    oneof {
        /// The auth service of this route. Default: the filter's.
        pub service: Option<Services>,
    }
}
