//! `routes` and `virtual_hosts`, as written: field for field Envoy's `config.route.v3`.

use std::{collections::BTreeMap, time::Duration};

use attache_filter::{
    grpc_service::StatusCode,
    matcher::{HeaderMatcher, RegexMatcher},
    metadata::Metadata,
};
use attache_ratelimit::client::raw::RoutePolicy;
use attache_service::{
    config::{Located, Node, Size},
    config_enum, config_oneof, config_struct,
};

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
    }
    elsewhere {
        "retry_policy" => "write `retry_policy` in `route` of its routes",
        "request_headers_to_add" => "header changes by routes are not supported yet",
        "request_headers_to_remove" => "header changes by routes are not supported yet",
        "response_headers_to_add" => "header changes by routes are not supported yet",
        "response_headers_to_remove" => "header changes by routes are not supported yet",
        "require_tls" => "write a `redirect` with `https_redirect`",
        "cors" => "CORS is the work of a processor",
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
    }
    oneof {
        /// What is done with them.
        pub action: Step,
    }
    elsewhere {
        "request_headers_to_add" => "header changes by routes are not supported yet",
        "request_headers_to_remove" => "header changes by routes are not supported yet",
        "response_headers_to_add" => "header changes by routes are not supported yet",
        "response_headers_to_remove" => "header changes by routes are not supported yet",
        "decorator" => "tracing is not supported yet",
        "tracing" => "tracing is not supported yet",
        "stat_prefix" => "there are no statistics by route",
    }
}

config_struct! {
    /// Which requests a route is for.
    pub struct RouteMatch {
        /// All of these must match.
        pub headers: Vec<HeaderMatcher>,
    }
    oneof {
        /// Test of the path, without the query.
        pub path: Located<PathMatch>,
    }
    elsewhere {
        "query_parameters" => "not supported yet; match `:path` in `headers`",
        "case_sensitive" => "not supported yet: paths are compared with regard to case",
        "runtime_fraction" => "there is no runtime layer",
        "grpc" => "match `content-type` in `headers`",
        "tls_context" => "not supported yet",
        "dynamic_metadata" => "not supported yet",
        "filter_state" => "there is no filter state here",
        "cookies" => "match `cookie` in `headers`",
    }
}

config_oneof! {
    /// Test of a path, without the query.
    pub enum PathMatch {
        /// The path starts with this.
        Prefix(String) = "prefix",
        /// The path is this.
        Path(String) = "path",
        /// The path is this, or goes on with a slash.
        PathSeparatedPrefix(String) = "path_separated_prefix",
        /// The whole path matches.
        SafeRegex(RegexMatcher) = "safe_regex",
        /// The request is a `CONNECT`; nothing else matches those.
        ConnectMatcher(ConnectMatcher) = "connect_matcher",
    }
    elsewhere {
        "path_match_policy" => "path templates are not supported",
    }
}

config_struct! {
    /// Matches `CONNECT` requests (Envoy's `RouteMatch.ConnectMatcher`).
    pub struct ConnectMatcher {}
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
        "filter_action" => "not supported",
    }
}

config_struct! {
    /// Where and how a request goes on.
    pub struct RouteAction {
        /// The cluster.
        pub cluster: Located<String>,
        /// From the end of the request to the end of the response. Default 15s; 0s is forever.
        pub timeout: Option<Duration>,
        /// Longest silence of a stream. Default 5m; 0s is forever.
        pub idle_timeout: Option<Duration>,
        /// Replaces the part of the path that matched.
        pub prefix_rewrite: Option<Located<String>>,
        /// Replaces the host.
        pub host_rewrite_literal: Option<Located<String>>,
        /// Ways out of HTTP on this route, whatever `upgrades` of the listener says.
        pub upgrade_configs: Vec<UpgradeConfig>,
        /// When a request is sent again, to the next endpoint. Default: never.
        pub retry_policy: Option<RetryPolicy>,
        /// Redirects of the upstream that are followed here. Default: none.
        pub internal_redirect_policy: Option<InternalRedirectPolicy>,
        /// Policies for `ratelimit`, where the filter has none.
        pub rate_limits: Vec<RoutePolicy>,
        /// Use the `rate_limits` of the virtual host too (deprecated in Envoy: write
        /// `vh_rate_limits: INCLUDE` in the filter's settings of the route). Default false.
        pub include_vh_rate_limits: Option<bool>,
    }
    elsewhere {
        "weighted_clusters" => "not supported yet: name one `cluster`",
        "cluster_header" => "not supported yet: name a `cluster`",
        "regex_rewrite" => "not supported yet; `prefix_rewrite` is",
        "auto_host_rewrite" => "not supported yet; `host_rewrite_literal` is",
        "host_rewrite_header" => "not supported yet; `host_rewrite_literal` is",
        "hash_policy" => "hashing is not supported yet",
        "request_mirror_policies" => "mirroring is not supported yet",
        "max_stream_duration" => "not supported yet; `timeout` bounds the whole exchange",
        "cors" => "CORS is the work of a processor",
        "metadata_match" => "endpoints have no metadata",
        "priority" => "there are no priorities",
        "hedge_policy" => "not supported",
        "append_x_forwarded_host" => "not supported yet",
    }
}

config_struct! {
    /// When a request is sent again (Envoy's `config.route.v3.RetryPolicy`). All attempts are
    /// within the route's `timeout`.
    pub struct RetryPolicy {
        /// After which failures, with commas between: `5xx`, `gateway-error`, `reset`,
        /// `connect-failure`, `refused-stream`, `retriable-status-codes`, `retriable-4xx`.
        /// Default: after none.
        pub retry_on: Option<Located<String>>,
        /// Attempts after the first. Default 1.
        pub num_retries: Option<u32>,
        /// Bound on each attempt, up to the head of the response. Default: none of its own.
        pub per_try_timeout: Option<Duration>,
        /// The statuses of `retriable-status-codes`.
        pub retriable_status_codes: Vec<Located<u16>>,
        /// Pauses between attempts. Default: up to 25 ms at first, up to 250 ms later.
        pub retry_back_off: Option<RetryBackOff>,
    }
    elsewhere {
        "per_try_idle_timeout" => "not supported yet; `per_try_timeout` is",
        "retriable_headers" => "not supported yet; `retriable_status_codes` is",
        "retriable_request_headers" => "match the headers in a route of its own",
        "rate_limited_retry_back_off" => "not supported yet; `retry_back_off` is",
        "retry_priority" => "clusters have no priorities here",
        "retry_host_predicate" => "endpoints are taken in turn, so a retry takes the next one",
        "host_selection_retry_max_attempts" => "endpoints are taken in turn, so a retry takes the next one",
        "retry_options_predicates" => "not supported",
    }
}

config_struct! {
    /// Pauses between attempts (Envoy's `RetryPolicy.RetryBackOff`).
    pub struct RetryBackOff {
        /// Bound of the first pause, doubled for each further one; pauses are chosen at random
        /// below it. At least 1 ms.
        pub base_interval: Located<Duration>,
        /// Bound of all pauses. Default ten times `base_interval`.
        pub max_interval: Option<Located<Duration>>,
    }
}

config_struct! {
    /// Redirects of the upstream that are followed here (Envoy's
    /// `config.route.v3.InternalRedirectPolicy`): the request goes to the new place, through all
    /// policies again.
    pub struct InternalRedirectPolicy {
        /// Redirects that are followed for one request. Default 1.
        pub max_internal_redirects: Option<u32>,
        /// Statuses of those: of 301, 302, 303, 307 and 308. Default 302.
        pub redirect_response_codes: Vec<Located<u16>>,
        /// Also from `http` to `https` and back. Default false.
        pub allow_cross_scheme_redirect: Option<bool>,
    }
    elsewhere {
        "predicates" => "not supported yet",
        "response_headers_to_copy" => "not supported yet",
        "redirect_url_rewriter" => "not supported",
    }
}

config_struct! {
    /// A way out of HTTP (Envoy's `RouteAction.UpgradeConfig`).
    pub struct UpgradeConfig {
        /// What `Upgrade` asks for, such as `websocket`, or `CONNECT`.
        pub upgrade_type: Located<String>,
        /// Default true.
        pub enabled: Option<bool>,
        /// A `CONNECT` ends here, and its bytes go to the cluster over a connection of their own.
        pub connect_config: Option<ConnectConfig>,
    }
}

config_struct! {
    /// How a `CONNECT` ends here.
    pub struct ConnectConfig {}
    elsewhere {
        "proxy_protocol_config" => "the PROXY protocol is not supported yet",
        "allow_post" => "tunnels over POST are not supported",
    }
}

config_struct! {
    /// A redirect. What is not written stays as it was asked for.
    pub struct Redirect {
        /// The new host.
        pub host_redirect: Option<String>,
        /// The new port.
        pub port_redirect: Option<u16>,
        /// The status. Default `MOVED_PERMANENTLY`.
        pub response_code: Option<RedirectCode>,
        /// Leave the query out. Default false.
        pub strip_query: Option<bool>,
    }
    oneof {
        /// The new scheme.
        pub scheme: Option<SchemeChange>,
        /// The new path.
        pub path: Option<PathRewrite>,
    }
}

config_oneof! {
    /// The new scheme of a redirect.
    pub enum SchemeChange {
        /// `https`.
        HttpsRedirect(bool) = "https_redirect",
        /// This one.
        SchemeRedirect(String) = "scheme_redirect",
    }
}

config_oneof! {
    /// The new path of a redirect.
    pub enum PathRewrite {
        /// This one; it may carry a query.
        PathRedirect(String) = "path_redirect",
        /// Replaces the part of the path that matched.
        PrefixRewrite(String) = "prefix_rewrite",
    }
    elsewhere {
        "regex_rewrite" => "not supported yet; `prefix_rewrite` is",
    }
}

config_enum! {
    /// The status of a redirect.
    pub enum RedirectCode {
        /// 301.
        MovedPermanently = "MOVED_PERMANENTLY",
        /// 302.
        Found = "FOUND",
        /// 303.
        SeeOther = "SEE_OTHER",
        /// 307.
        TemporaryRedirect = "TEMPORARY_REDIRECT",
        /// 308.
        PermanentRedirect = "PERMANENT_REDIRECT",
    }
}

config_struct! {
    /// A fixed answer.
    pub struct DirectResponse {
        /// Its status.
        pub status: StatusCode,
        /// Its body.
        pub body: Option<Body>,
    }
}

config_struct! {
    /// A text in the configuration (Envoy's `DataSource`).
    pub struct Body {
        /// The text.
        pub inline_string: String,
    }
    elsewhere {
        "filename" => "not supported yet; write `inline_string`",
        "inline_bytes" => "not supported yet; write `inline_string`",
        "environment_variable" => "write `inline_string: ${NAME}`",
    }
}
