//! `route`: where and how a request goes on.

use std::time::Duration;

use attache_filter::substitution::RegexMatchAndSubstitute;
use attache_ratelimit::client::raw::RoutePolicy;
use attache_service::{config::Located, config_enum, config_oneof, config_struct};

use super::{HashPolicy, RequestMirrorPolicy, WeightedClusters};
use crate::config::RetryPolicy;

config_struct! {
    /// Where and how a request goes on.
    pub struct RouteAction {
        /// What is answered where `cluster_header` names no cluster. Default
        /// `SERVICE_UNAVAILABLE`.
        pub cluster_not_found_response_code: Option<ClusterNotFoundResponseCode>,
        /// From the end of the request to the end of the response. Default 15s; 0s is forever.
        pub timeout: Option<Duration>,
        /// Longest silence of a stream. Default 5m; 0s is forever.
        pub idle_timeout: Option<Duration>,
        /// Replaces the part of the path that matched.
        pub prefix_rewrite: Option<Located<String>>,
        /// Replaces what a regular expression matches in the path; the query stays.
        pub regex_rewrite: Option<Located<RegexMatchAndSubstitute>>,
        /// Replaces the path, with Envoy's formatters in it; the query stays.
        pub path_rewrite: Option<Located<String>>,
        /// Where the host is replaced, add the one before to `x-forwarded-host`. Default false.
        pub append_x_forwarded_host: Option<bool>,
        /// Copies of requests to other clusters. Default: those of the virtual host.
        pub request_mirror_policies: Vec<RequestMirrorPolicy>,
        /// Ways out of HTTP on this route, whatever `upgrades` of the listener says.
        pub upgrade_configs: Vec<UpgradeConfig>,
        /// Bound on the whole stream, tunnels among them. Default: none.
        pub max_stream_duration: Option<MaxStreamDuration>,
        /// When a request is sent again, to another endpoint. Default: never.
        pub retry_policy: Option<RetryPolicy>,
        /// Redirects of the upstream that are followed here. Default: none.
        pub internal_redirect_policy: Option<InternalRedirectPolicy>,
        /// What a request's endpoint is chosen by, where its cluster has `lb_policy: RING_HASH` or
        /// `MAGLEV`.
        pub hash_policy: Vec<HashPolicy>,
        /// Policies for `ratelimit`, where the filter has none.
        pub rate_limits: Vec<RoutePolicy>,
        /// Use the `rate_limits` of the virtual host too (deprecated in Envoy: write
        /// `vh_rate_limits: INCLUDE` in the filter's settings of the route). Default false.
        pub include_vh_rate_limits: Option<bool>,
    }
    oneof {
        /// The cluster.
        pub cluster: ClusterSpecifier,
        /// The new host.
        pub host_rewrite: Option<HostRewrite>,
    }
    elsewhere {
        "cors" => "CORS is the work of a processor",
        "metadata_match" => "endpoints have no metadata",
        "priority" => "there are no priorities",
        "hedge_policy" => "no request is sent twice at once: write `per_try_timeout` and `num_retries`",
        "path_rewrite_policy" => "path templates are not supported",
        "early_data_policy" => "early data is not accepted",
        "flush_timeout" => "there is no such choice",
    }
}

config_oneof! {
    /// The cluster of a route.
    pub enum ClusterSpecifier {
        /// This one.
        Cluster(Located<String>) = "cluster",
        /// The one that a request header names, as it is when the route is picked.
        ClusterHeader(Located<String>) = "cluster_header",
        /// One of several.
        WeightedClusters(WeightedClusters) = "weighted_clusters",
    }
    elsewhere {
        "cluster_specifier_plugin" => "let a policy set a header, and name it as `cluster_header`",
        "inline_cluster_specifier_plugin" => "let a policy set a header, and name it as `cluster_header`",
    }
}

config_oneof! {
    /// The new host of a request.
    pub enum HostRewrite {
        /// This one.
        HostRewriteLiteral(Located<String>) = "host_rewrite_literal",
        /// What a request header says; its own where there is no such header.
        HostRewriteHeader(Located<String>) = "host_rewrite_header",
        /// The path without its query, after a substitution.
        HostRewritePathRegex(RegexMatchAndSubstitute) = "host_rewrite_path_regex",
        /// This one, with Envoy's formatters in it.
        HostRewrite(Located<String>) = "host_rewrite",
        /// The name of the endpoint, where it has one.
        AutoHostRewrite(bool) = "auto_host_rewrite",
    }
}

config_enum! {
    /// The answer where there is no such cluster.
    #[derive(Default)]
    pub enum ClusterNotFoundResponseCode {
        /// 503.
        #[default]
        ServiceUnavailable = "SERVICE_UNAVAILABLE",
        /// 404.
        NotFound = "NOT_FOUND",
        /// 500.
        InternalServerError = "INTERNAL_SERVER_ERROR",
    }
}

config_struct! {
    /// Bound on a stream, from the head of its request (Envoy's `RouteAction.MaxStreamDuration`).
    pub struct MaxStreamDuration {
        /// The bound; 0s is none. Given, the route's `timeout` does not count. Default: that of
        /// the listener.
        pub max_stream_duration: Option<Duration>,
        /// Where a request has `grpc-timeout`, that is the bound, but at most this; 0s is no more
        /// than the header says. Default: the header does not count.
        pub grpc_timeout_header_max: Option<Duration>,
        /// So much less than `grpc-timeout`, for the way back. Default 0s.
        pub grpc_timeout_header_offset: Option<Duration>,
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
        "predicates" => "extensions of Envoy are not loaded",
        "response_headers_to_copy" => "the redirected request has the headers of the client's",
        "redirect_url_rewriter" => "extensions of Envoy are not loaded",
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
        "proxy_protocol_config" => "the PROXY protocol is not spoken to upstreams",
        "allow_post" => "tunnels over POST are not supported",
    }
}
