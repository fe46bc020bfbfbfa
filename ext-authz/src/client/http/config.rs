//! `http_service` as it is written: Envoy's field names and defaults.

use attache_filter::{
    grpc_service::MetadataEntry, http_uri::HttpUri, matcher::ListStringMatcher, retry::RetryPolicy,
};
use attache_service::{config::Located, config_struct};

config_struct! {
    /// Envoy's `ext_authz.v3.HttpService`: an auth service that is asked over plain HTTP.
    pub struct HttpService {
        /// The cluster, and the bound on a check (`0s` is none). Nothing else of it counts: the
        /// host is the client's, the path as below.
        pub server_uri: HttpUri,
        /// Stands before the path of the request. Starts with a slash.
        pub path_prefix: Option<Located<String>>,
        /// Stands in place of path and query. Starts with a slash.
        pub path_override: Option<Located<String>>,
        /// What is sent beside the request's head.
        pub authorization_request: Option<AuthorizationRequest>,
        /// What of an answer counts beside its status.
        pub authorization_response: Option<AuthorizationResponse>,
        /// When a check is made again. Default: never.
        pub retry_policy: Option<Located<RetryPolicy>>,
    }
}

config_struct! {
    /// Envoy's `AuthorizationRequest`.
    pub struct AuthorizationRequest {
        /// Headers to show (Envoy's deprecated form of the filter's `allowed_headers`).
        pub allowed_headers: Option<Located<ListStringMatcher>>,
        /// Headers to add; values of the request are filled in as in `initial_metadata`.
        pub headers_to_add: Vec<Located<MetadataEntry>>,
    }
}

config_struct! {
    /// Envoy's `AuthorizationResponse`: which headers of an answer go where.
    pub struct AuthorizationResponse {
        /// Set in the request, when it is allowed. Default: none.
        pub allowed_upstream_headers: Option<Located<ListStringMatcher>>,
        /// Added to the request as lines of their own. Default: none.
        pub allowed_upstream_headers_to_append: Option<Located<ListStringMatcher>>,
        /// Given to a client that is denied, beside status, `location` and `www-authenticate`.
        /// Default: all.
        pub allowed_client_headers: Option<Located<ListStringMatcher>>,
        /// Added to the response of an allowed request. Default: none.
        pub allowed_client_headers_on_success: Option<Located<ListStringMatcher>>,
        /// Kept as dynamic metadata. Default: none.
        pub dynamic_metadata_from_headers: Option<Located<ListStringMatcher>>,
    }
}
