//! The filter's configuration as written, with Envoy's field names.

use std::time::Duration;

use attache_filter::{
    fraction::RuntimeFractionalPercent,
    grpc_service::{ApiVersion, GrpcService, HttpStatus},
    header_option::HeaderValueOption,
};
use attache_service::{config::Located, config_enum, config_struct};

mod action;
mod extension;
mod policy;

pub use action::{
    Action, AddressMatcher, GenericKey, HeaderValueMatch, MaskedRemoteAddress, MetaData,
    MetadataSource, QueryParameterValueMatch, QueryParameters, RemoteAddressMatch, RequestHeaders,
};
pub use extension::{
    DestinationIpInput, DestinationPortInput, DirectSourceIpInput, Expr, Extension, HeaderInput,
    Producer, QueryParameterInput, ServerNameInput, SourceIpInput, SourcePortInput,
};
pub use policy::{
    DynamicMetadataLimit, HitsAddend, LimitOverride, LimitSource, Policy, RateLimitUnit,
    RoutePolicy, StaticLimit, XRateLimitOption,
};

config_struct! {
    /// Envoy's `extensions.filters.http.ratelimit.v3.RateLimit`.
    pub struct RateLimit {
        /// The domain to ask for.
        pub domain: Located<String>,
        /// Which `rate_limits` of routes and virtual hosts are used: those of this stage, 0 to 10.
        /// Default 0. Means nothing to `rate_limits` in the filter and in its settings of routes.
        pub stage: Option<Located<u32>>,
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
        /// What is asked, where the route's settings of this filter do not say otherwise. With any,
        /// the `rate_limits` of routes and virtual hosts count for nothing.
        pub rate_limits: Vec<Policy>,
        /// Where the service's dynamic metadata goes. Default `envoy.filters.http.ratelimit`.
        pub metadata_namespace: Option<String>,
        /// Add `retry-after` to limited responses of status 429. Default false.
        pub enable_retry_after_header: Option<bool>,
    }
    envoy_type = "envoy.extensions.filters.http.ratelimit.v3.RateLimit";
}

config_struct! {
    /// Envoy's `extensions.filters.http.ratelimit.v3.RateLimitPerRoute`.
    pub struct RateLimitPerRoute {
        /// What is asked on this route, instead of all other `rate_limits`.
        pub rate_limits: Vec<Policy>,
        /// The domain on this route, instead of the filter's.
        pub domain: Option<String>,
        /// Whether the `rate_limits` of the virtual host are used. Default `OVERRIDE`.
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
    #[derive(Default)]
    pub enum VhRateLimitsOptions {
        /// When the route has none.
        #[default]
        Override = "OVERRIDE",
        /// Together with the route's.
        Include = "INCLUDE",
        /// Not at all.
        Ignore = "IGNORE",
    }
}
