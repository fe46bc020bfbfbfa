//! `match`: which requests a route is for.

use attache_filter::matcher::{CookieMatcher, HeaderMatcher, QueryParameterMatcher, RegexMatcher};
use attache_service::{config::Located, config_oneof, config_struct};

config_struct! {
    /// Which requests a route is for.
    pub struct RouteMatch {
        /// All of these must match.
        pub headers: Vec<HeaderMatcher>,
        /// All of these must match. Of a parameter that is given twice the first counts, and
        /// values are compared as they stand in the path, without decoding.
        pub query_parameters: Vec<QueryParameterMatcher>,
        /// All of these must match. Of a cookie that is given twice the first counts.
        pub cookies: Vec<CookieMatcher>,
        /// Whether the path is compared with regard to case; `safe_regex` always is. Default
        /// true.
        pub case_sensitive: Option<bool>,
        /// The request must be a gRPC call: `content-type: application/grpc`.
        pub grpc: Option<GrpcMatcher>,
    }
    oneof {
        /// Test of the path, without the query.
        pub path: Located<PathMatch>,
    }
    elsewhere {
        "runtime_fraction" => "there is no runtime layer: write `weighted_clusters` to split requests",
        "tls_context" => "a listener with `client_ca` lets nobody in without a certificate",
        "dynamic_metadata" => "let the policy set a header, and match that",
        "filter_state" => "there is no filter state here",
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

config_struct! {
    /// Matches gRPC calls (Envoy's `RouteMatch.GrpcRouteMatchOptions`).
    pub struct GrpcMatcher {}
}
