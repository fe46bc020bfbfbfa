//! The filter's configuration as written, with Envoy's field names.

use std::time::Duration;

use attache_filter::{
    fraction::RuntimeFractionalPercent,
    grpc_service::{ApiVersion, GrpcService, HttpStatus},
    matcher::{HeaderMatcher, StringMatcher},
};
use attache_service::{
    config::{Empty, Located},
    config_enum, config_oneof, config_struct,
};

config_struct! {
    /// Envoy's `extensions.filters.http.ratelimit.v3.RateLimit`.
    pub struct RateLimit {
        /// The domain to ask for.
        pub domain: Located<String>,
        /// Which requests are asked about. Default `both`.
        pub request_type: Option<RequestType>,
        /// Bound on one call. Default 20 ms; 0 waits without bound.
        pub timeout: Option<Duration>,
        /// Refuse requests when the service fails. Default false.
        pub failure_mode_deny: Option<bool>,
        /// Tell limited gRPC callers `RESOURCE_EXHAUSTED` instead of `UNAVAILABLE`. Default false.
        pub rate_limited_as_resource_exhausted: Option<bool>,
        /// The service.
        pub rate_limit_service: RateLimitServiceConfig,
        /// Whether responses get `x-ratelimit-*` headers. Default `OFF`.
        pub enable_x_ratelimit_headers: Option<XRateLimitHeadersRfcVersion>,
        /// Leave `x-envoy-ratelimited` off limited responses. Default false.
        pub disable_x_envoy_ratelimited_header: Option<bool>,
        /// Status of limited responses; below 400 means 429. Default 429.
        pub rate_limited_status: Option<HttpStatus>,
        /// Headers to add to limited responses, at most ten.
        pub response_headers_to_add: Located<Vec<HeaderValueOption>>,
        /// Status of refusals because the service failed. Default 500.
        pub status_on_error: Option<HttpStatus>,
        /// Added to the filter's name in metrics.
        pub stat_prefix: Option<String>,
        /// The share of requests that are asked about. Default all.
        pub filter_enabled: Option<RuntimeFractionalPercent>,
        /// The share of limited requests that are refused. Default all.
        pub filter_enforced: Option<RuntimeFractionalPercent>,
        /// The share of requests that are refused when the service fails; goes before
        /// `failure_mode_deny`.
        pub failure_mode_deny_percent: Option<RuntimeFractionalPercent>,
        /// What is asked, where the route does not say otherwise.
        pub rate_limits: Vec<Policy>,
        /// Where the service's dynamic metadata goes. Default `envoy.filters.http.ratelimit`.
        pub metadata_namespace: Option<String>,
        /// Add `retry-after` to limited responses of status 429. Default false.
        pub enable_retry_after_header: Option<bool>,
    }
    envoy_type = "envoy.extensions.filters.http.ratelimit.v3.RateLimit";
    elsewhere {
        "stage" => "it selects among the `rate_limits` of routes, which stand in this filter or in `typed_per_filter_config` here",
    }
}

config_struct! {
    /// Envoy's `extensions.filters.http.ratelimit.v3.RateLimitPerRoute`.
    pub struct RateLimitPerRoute {
        /// What is asked on this route, instead of the filter's `rate_limits`.
        pub rate_limits: Vec<Policy>,
        /// The domain on this route, instead of the filter's.
        pub domain: Option<String>,
        /// Accepted for configurations written for Envoy. It decides about `rate_limits` of a
        /// virtual host, which do not exist here.
        pub vh_rate_limits: Option<VhRateLimitsOptions>,
    }
    envoy_type = "envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute";
    elsewhere {
        "override_option" => "was never implemented by Envoy",
    }
}

config_struct! {
    /// Envoy's `config.ratelimit.v3.RateLimitServiceConfig`.
    pub struct RateLimitServiceConfig {
        /// The service. Its `timeout` is not used, as in Envoy: the filter has its own.
        pub grpc_service: GrpcService,
        /// Must be `V3` where it is given.
        pub transport_api_version: Option<ApiVersion>,
    }
}

config_enum! {
    /// Which requests a filter applies to; `x-envoy-internal: true` makes a request internal.
    #[derive(Default)]
    pub enum RequestType {
        /// Internal ones.
        Internal = "internal",
        /// The others.
        External = "external",
        /// All.
        #[default]
        Both = "both",
        /// All.
        Empty = "",
    }
}

config_enum! {
    /// Whether responses get `x-ratelimit-*` headers.
    pub enum XRateLimitHeadersRfcVersion {
        /// No.
        Off = "OFF",
        /// As in the draft RFC, version 3.
        DraftVersion03 = "DRAFT_VERSION_03",
    }
}

config_enum! {
    /// Whether a virtual host's `rate_limits` apply to a route.
    pub enum VhRateLimitsOptions {
        /// When the route has none.
        Override = "OVERRIDE",
        /// Together with the route's.
        Include = "INCLUDE",
        /// Not at all.
        Ignore = "IGNORE",
    }
}

config_struct! {
    /// Envoy's `config.core.v3.HeaderValueOption`.
    pub struct HeaderValueOption {
        /// Name and value.
        pub header: Located<HeaderValue>,
        /// What to do when the header is there already. Default `APPEND_IF_EXISTS_OR_ADD`.
        pub append_action: Option<HeaderAppendAction>,
        /// Add the header even with an empty value. Default false.
        pub keep_empty_value: Option<bool>,
    }
    elsewhere {
        "append" => "is deprecated in Envoy: use `append_action`",
    }
}

config_struct! {
    /// Envoy's `config.core.v3.HeaderValue`.
    pub struct HeaderValue {
        /// Name.
        pub key: String,
        /// Value; may be empty.
        pub value: Option<String>,
    }
    elsewhere {
        "raw_value" => "write the value as text in `value`",
    }
}

config_enum! {
    /// Envoy's `HeaderValueOption.HeaderAppendAction`.
    #[derive(Default)]
    pub enum HeaderAppendAction {
        /// Add another one.
        #[default]
        AppendIfExistsOrAdd = "APPEND_IF_EXISTS_OR_ADD",
        /// Add it when there is none.
        AddIfAbsent = "ADD_IF_ABSENT",
        /// Replace what is there, or add it.
        OverwriteIfExistsOrAdd = "OVERWRITE_IF_EXISTS_OR_ADD",
        /// Replace what is there; do nothing when there is none.
        OverwriteIfExists = "OVERWRITE_IF_EXISTS",
    }
}

config_struct! {
    /// Envoy's `config.route.v3.RateLimit`: how one descriptor is made of a request.
    pub struct Policy {
        /// Each adds an entry, in this order. One that cannot makes the descriptor be left out.
        pub actions: Located<Vec<Action>>,
        /// How many hits a request is. Default 1.
        pub hits_addend: Option<HitsAddend>,
        /// Whether this descriptor's limit shows in `x-ratelimit-*`. Default: as the filter says.
        pub x_ratelimit_option: Option<XRateLimitOption>,
    }
    elsewhere {
        "stage" => "Envoy takes it only in the `rate_limits` of a route",
        "disable_key" => "there is no runtime layer here; Envoy takes it only in the `rate_limits` of a route",
        "limit" => "not supported yet",
        "apply_on_stream_done" => "not supported yet",
    }
}

config_enum! {
    /// Whether a descriptor's limit shows in `x-ratelimit-*`.
    #[derive(Default)]
    pub enum XRateLimitOption {
        /// As the filter says.
        #[default]
        Unspecified = "UNSPECIFIED",
        /// No.
        Off = "OFF",
        /// Yes.
        DraftVersion03 = "DRAFT_VERSION_03",
    }
}

config_struct! {
    /// Envoy's `RateLimit.HitsAddend`.
    pub struct HitsAddend {
        /// This many, at most 1,000,000,000. 0 only looks.
        pub number: Option<Located<u64>>,
        /// Give the hits back instead. Default false.
        pub is_negative_hits: Option<bool>,
    }
    elsewhere {
        "format" => "not supported yet",
    }
}

config_oneof! {
    /// Envoy's `RateLimit.Action`.
    pub enum Action {
        /// `destination_cluster`: the cluster of the route.
        DestinationCluster(Empty) = "destination_cluster",
        /// A header's value.
        RequestHeaders(RequestHeaders) = "request_headers",
        /// A query parameter's value.
        QueryParameters(QueryParameters) = "query_parameters",
        /// `remote_address`: the client's address.
        RemoteAddress(Empty) = "remote_address",
        /// `masked_remote_address`: the client's network.
        MaskedRemoteAddress(MaskedRemoteAddress) = "masked_remote_address",
        /// Always the same.
        GenericKey(GenericKey) = "generic_key",
        /// Always the same, when the headers match.
        HeaderValueMatch(HeaderValueMatch) = "header_value_match",
        /// Always the same, when the query parameters match.
        QueryParameterValueMatch(QueryParameterValueMatch) = "query_parameter_value_match",
    }
    elsewhere {
        "source_cluster" => "this proxy belongs to no cluster; use `generic_key` with the key `source_cluster`",
        "dynamic_metadata" => "is deprecated in Envoy, and `metadata` is not supported yet",
        "metadata" => "not supported yet",
        "remote_address_match" => "not supported yet",
        "extension" => "extensions of Envoy's own process do not exist here",
    }
}

config_struct! {
    /// Envoy's `RateLimit.Action.RequestHeaders`.
    pub struct RequestHeaders {
        /// The header; pseudo-headers such as `:path` are allowed. Of several the first counts.
        pub header_name: Located<String>,
        /// Key of the entry.
        pub descriptor_key: Located<String>,
        /// When the header is absent, leave out the entry instead of the descriptor. Default false.
        pub skip_if_absent: Option<bool>,
    }
}

config_struct! {
    /// Envoy's `RateLimit.Action.QueryParameters`.
    pub struct QueryParameters {
        /// The parameter. Of several the first counts.
        pub query_parameter_name: Located<String>,
        /// Key of the entry.
        pub descriptor_key: Located<String>,
        /// When the parameter is absent, leave out the entry instead of the descriptor. Default
        /// false.
        pub skip_if_absent: Option<bool>,
    }
}

config_struct! {
    /// Envoy's `RateLimit.Action.MaskedRemoteAddress`.
    pub struct MaskedRemoteAddress {
        /// Bits of an IPv4 network, at most 32. Default 32.
        pub v4_prefix_mask_len: Option<Located<u8>>,
        /// Bits of an IPv6 network, at most 128. Default 128.
        pub v6_prefix_mask_len: Option<Located<u8>>,
    }
}

config_struct! {
    /// Envoy's `RateLimit.Action.GenericKey`.
    pub struct GenericKey {
        /// Value of the entry.
        pub descriptor_value: Located<String>,
        /// Key of the entry. Default `generic_key`.
        pub descriptor_key: Option<String>,
    }
    elsewhere {
        "default_value" => "values are literal here, so there is always one",
    }
}

config_struct! {
    /// Envoy's `RateLimit.Action.HeaderValueMatch`.
    pub struct HeaderValueMatch {
        /// Value of the entry.
        pub descriptor_value: Located<String>,
        /// Key of the entry. Default `header_match`.
        pub descriptor_key: Option<String>,
        /// Make the entry when all headers match (true) or when not all do (false). Default true.
        pub expect_match: Option<bool>,
        /// At least one.
        pub headers: Located<Vec<HeaderMatcher>>,
    }
    elsewhere {
        "default_value" => "values are literal here, so there is always one",
    }
}

config_struct! {
    /// Envoy's `RateLimit.Action.QueryParameterValueMatch`.
    pub struct QueryParameterValueMatch {
        /// Value of the entry.
        pub descriptor_value: Located<String>,
        /// Key of the entry. Default `query_match`.
        pub descriptor_key: Option<String>,
        /// Make the entry when all parameters match (true) or when not all do (false). Default
        /// true.
        pub expect_match: Option<bool>,
        /// At least one.
        pub query_parameters: Located<Vec<QueryParameterMatcher>>,
    }
    elsewhere {
        "default_value" => "values are literal here, so there is always one",
    }
}

config_struct! {
    /// Envoy's `config.route.v3.QueryParameterMatcher`.
    pub struct QueryParameterMatcher {
        /// The parameter's name.
        pub name: String,
    }
    oneof {
        /// What its value must be; present when left out.
        pub matches: Option<QueryParameterMatch>,
    }
}

config_oneof! {
    /// How a [`QueryParameterMatcher`] compares the parameter's value.
    pub enum QueryParameterMatch {
        /// The value matches.
        StringMatch(StringMatcher) = "string_match",
        /// The parameter is present (true) or absent (false).
        PresentMatch(bool) = "present_match",
    }
}
