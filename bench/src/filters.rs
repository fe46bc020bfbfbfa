//! The policies' filters, once for both proxies: the bodies are Envoy's own
//! messages, which our proxy takes as they are.

use serde_json::{Value, json};

use crate::row::{Row, Shown};

/// A policy's filter. The cluster of the service that it asks has its name.
pub(crate) struct Filter {
    /// Its name.
    pub(crate) name: &'static str,
    /// The name of its kind, as in `envoy.filters.http.<kind>`.
    pub(crate) kind: &'static str,
    /// The name of its message.
    pub(crate) message: &'static str,
    /// The message.
    pub(crate) body: Value,
}

/// The filters of a row, in the order that a request meets them.
///
/// Deadlines are long, so that a pause of a busy machine is not a failure;
/// what fails is an error, never let through, so that it can't look quick.
pub(crate) fn of(row: Row) -> Vec<Filter> {
    let mut filters = Vec::new();
    if row.auth() {
        filters.push(Filter {
            name: "auth",
            kind: "ext_authz",
            message: "ExtAuthz",
            body: json!({
                "transport_api_version": "V3",
                "grpc_service": { "envoy_grpc": { "cluster_name": "auth" }, "timeout": "5s" },
                "failure_mode_allow": false,
            }),
        });
    }
    if row.limits() {
        filters.push(Filter {
            name: "limits",
            kind: "ratelimit",
            message: "RateLimit",
            body: json!({
                "domain": "bench",
                "timeout": "5s",
                "failure_mode_deny": true,
                "rate_limit_service": {
                    "transport_api_version": "V3",
                    "grpc_service": { "envoy_grpc": { "cluster_name": "limits" } },
                },
                "rate_limits": [{ "actions": [
                    { "remote_address": {} },
                    { "request_headers": { "header_name": "x-tenant", "descriptor_key": "tenant" } },
                ] }],
            }),
        });
    }
    if row.processed() {
        // In full duplex a message may end with trailers, and then they are shown too.
        let (body, trailers) = match row.shown() {
            Shown::None => ("NONE", "SKIP"),
            Shown::Streamed => ("STREAMED", "SKIP"),
            Shown::FullDuplexStreamed => ("FULL_DUPLEX_STREAMED", "SEND"),
        };
        filters.push(Filter {
            name: "rewrite",
            kind: "ext_proc",
            message: "ExternalProcessor",
            body: json!({
                "grpc_service": { "envoy_grpc": { "cluster_name": "rewrite" } },
                "message_timeout": "5s",
                "failure_mode_allow": false,
                "processing_mode": {
                    "request_header_mode": "SEND",
                    "response_header_mode": "SEND",
                    "request_body_mode": "NONE",
                    "response_body_mode": body,
                    "request_trailer_mode": "SKIP",
                    "response_trailer_mode": trailers,
                },
            }),
        });
    }
    filters
}
