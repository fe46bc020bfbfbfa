//! `routes` and `virtual_hosts`, as written: field for field Envoy's `config.route.v3`.

mod action;
mod direct_response;
mod hash_policy;
mod matches;
mod mirror;
mod redirect;
mod table;
mod weighted;

use std::collections::BTreeMap;

use attache_filter::{header_option::HeaderValueOption, metadata::Metadata};
use attache_ratelimit::client::raw::RoutePolicy;
use attache_service::{
    config::{Located, Node, Size},
    config_oneof, config_struct,
};

pub use action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, ConnectConfig, HostRewrite,
    InternalRedirectPolicy, MaxStreamDuration, RouteAction, UpgradeConfig,
};
pub use direct_response::{BodyFormat, DataSource, DirectResponse, Source, SubstitutionFormat};
pub use hash_policy::{
    ConnectionProperties, HashBy, HashCookie, HashHeader, HashPolicy, HashQueryParameter,
};
pub use matches::{ConnectMatcher, GrpcMatcher, PathMatch, RouteMatch};
pub use mirror::{HeaderAction, HeaderMutation, RequestMirrorPolicy};
pub use redirect::{PathRedirect, Redirect, RedirectCode, SchemeChange};
pub(crate) use table::Table;
pub use table::{RouteConfiguration, RouteSpecifier};
pub use weighted::{ClusterWeight, WeightTarget, WeightedClusters};

use super::RetryPolicy;

config_struct! {
    /// Routes for some hosts.
    pub struct VirtualHost {
        /// Name for logs and errors.
        pub name: String,
        /// `example.com`, `*.example.com`, `example.*` or `*`; ports are ignored.
        pub domains: Vec<Located<String>>,
        /// In order: the first that matches is taken.
        pub routes: Vec<Route>,
        /// Settings of filters for all of these routes. A route's own go before them: of
        /// `ext_proc` field by field; of `ext_authz` context extensions one by one; all else as a
        /// whole.
        pub typed_per_filter_config: BTreeMap<String, Node>,
        /// Policies for `ratelimit`, where neither the filter nor the route has any; see
        /// `vh_rate_limits` of the filter's settings of a route.
        pub rate_limits: Vec<RoutePolicy>,
        /// Headers added to requests for the upstream, with Envoy's formatters in their values.
        /// Changes of a route come first, then those of its virtual host, then those at the top
        /// of the file, unless `most_specific_header_mutations_wins`.
        pub request_headers_to_add: Vec<HeaderValueOption>,
        /// Headers taken from requests, before any is added.
        pub request_headers_to_remove: Vec<Located<String>>,
        /// Headers added to responses.
        pub response_headers_to_add: Vec<HeaderValueOption>,
        /// Headers taken from responses, before any is added.
        pub response_headers_to_remove: Vec<Located<String>>,
        /// When requests are sent again, on routes without a `retry_policy`.
        pub retry_policy: Option<RetryPolicy>,
        /// Copies of requests, on routes without `request_mirror_policies`.
        pub request_mirror_policies: Vec<RequestMirrorPolicy>,
    }
    elsewhere {
        "require_tls" => "write a `redirect` with `https_redirect`",
        "cors" => "CORS is the work of a processor",
        "matcher" => "matcher trees are not supported: write `routes`",
        "virtual_clusters" => "there are no statistics by virtual cluster",
        "include_request_attempt_count" => "attempts are not told in headers",
        "include_attempt_count_in_response" => "attempts are not told in headers",
        "include_is_timeout_retry_header" => "attempts are not told in headers",
        "retry_policy_typed_config" => "write `retry_policy`",
        "hedge_policy" => "no request is sent twice at once: write `per_try_timeout` and `num_retries`",
        "per_request_buffer_limit_bytes" => "write it in the routes",
        "request_body_buffer_limit" => "write it in the routes",
        "metadata" => "write it in the routes",
        "route_specifiers" => "write `route`, `redirect` or `direct_response`",
    }
}

config_struct! {
    /// Which requests, and what is done with them.
    pub struct Route {
        /// Name for logs.
        pub name: Option<String>,
        /// Which requests.
        pub r#match: RouteMatch,
        /// Settings of filters for this route, by filter name: Envoy's `ExtProcPerRoute`,
        /// `ExtAuthzPerRoute` and `RateLimitPerRoute`.
        pub typed_per_filter_config: BTreeMap<String, Node>,
        /// How much of one body a policy may hold back on this route, when that is more than the
        /// listener's `per_connection_buffer_limit_bytes`; less has no effect, as in Envoy. Of a body that is
        /// kept to be sent again, it is the bound, be it more or less.
        pub request_body_buffer_limit: Option<Size>,
        /// The same, without `request_body_buffer_limit`.
        pub per_request_buffer_limit_bytes: Option<Size>,
        /// Facts about the route that filters may show to their services.
        pub metadata: Option<Metadata>,
        /// Headers added to requests, before those of the virtual host.
        pub request_headers_to_add: Vec<HeaderValueOption>,
        /// Headers taken from requests.
        pub request_headers_to_remove: Vec<Located<String>>,
        /// Headers added to responses.
        pub response_headers_to_add: Vec<HeaderValueOption>,
        /// Headers taken from responses.
        pub response_headers_to_remove: Vec<Located<String>>,
    }
    oneof {
        /// What is done with them.
        pub action: Step,
    }
    elsewhere {
        "decorator" => "spans have their own names: see `tracing` at the top",
        "tracing" => "traces are set for the whole proxy, in `tracing` at the top",
        "stat_prefix" => "there are no statistics by route",
        "route_specifiers" => "write `route`, `redirect` or `direct_response`",
    }
}

config_oneof! {
    /// What is done with a request.
    pub enum Step {
        /// It goes to a cluster.
        Route(RouteAction) = "route",
        /// It is answered with a redirect.
        Redirect(Redirect) = "redirect",
        /// It is answered here.
        DirectResponse(DirectResponse) = "direct_response",
    }
    elsewhere {
        "non_forwarding_action" => "for gRPC clients only",
        "filter_action" => "write `route`, `redirect` or `direct_response`",
    }
}
