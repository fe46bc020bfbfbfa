//! The configurations of a soak, as a good operator writes them: two endpoints of everything,
//! health checks, and retries where a request may safely be sent again.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use super::origin::HEALTH_PATH;
use super::visit::{API_PATH, GENERATION_HEADER, LIMIT, TENANT};
use crate::certificates::Certificates;
use crate::filters;
use crate::row::{LARGE_PATH, Row};

/// Everybody may go everywhere but to one path.
pub(crate) const AUTH: &str = "\
identity:
- name: anyone
  anonymous: {}
rules:
- { action: allow, identity: [anyone], paths: [{ exact: /small }, { exact: /large }, { exact: /echo }, { exact: /api }] }
upstream_headers:
  x-auth-user: { value: alice }
";

/// One tenant without a limit, and one limit for each other.
pub(crate) fn limits() -> String {
    format!(
        "domain: bench\n\
         descriptors:\n\
         - key: remote_address\n\
         \x20 descriptors:\n\
         \x20 - {{ key: tenant, value: {TENANT}, rate_limit: {{ unlimited: true }} }}\n\
         \x20 - {{ key: tenant, rate_limit: {{ unit: year, requests_per_unit: {LIMIT} }} }}\n"
    )
}

/// Who listens where.
pub(crate) struct Addresses {
    pub(crate) plain: SocketAddr,
    pub(crate) secure: SocketAddr,
    pub(crate) extra: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) web: Vec<String>,
    pub(crate) api: Vec<String>,
    pub(crate) auth: Vec<String>,
    pub(crate) limits: Vec<String>,
    pub(crate) rewrite: Vec<String>,
}

/// The proxy's configuration of a number. What changes from one to the next: the number itself in
/// each answer, settings of clusters, so that they are made anew, and a listener that comes and
/// goes.
pub(crate) fn config(generation: u64, at: &Addresses, tls: &Certificates) -> Value {
    let mut bodies = Map::new();
    let mut names = Vec::new();
    for filter in filters::of(Row::All) {
        names.push(filter.name);
        bodies.insert(filter.name.to_owned(), json!({ filter.kind: filter.body }));
    }
    let limits = json!({ "max_requests_per_connection": 5000 });
    let mut listeners = vec![
        json!({ "name": "plain", "address": at.plain.to_string(), "filters": names, "limits": limits }),
        json!({
            "name": "secure",
            "address": at.secure.to_string(),
            "filters": names,
            "limits": limits,
            "tls": { "certificate": tls.certificate(), "private_key": tls.key() },
        }),
    ];
    if has_extra(generation) {
        listeners
            .push(json!({ "name": "extra", "address": at.extra.to_string(), "filters": names }));
    }
    json!({
        "listeners": listeners,
        "filters": bodies,
        "response_headers_to_add": [{
            "header": { "key": GENERATION_HEADER, "value": generation.to_string() },
        }],
        "routes": [
            route(json!({ "path": API_PATH }), "api", json!({})),
            route(
                json!({ "path": LARGE_PATH }),
                "web",
                json!({ "rewrite": { "overrides": { "processing_mode": {
                    "request_header_mode": "SEND",
                    "response_header_mode": "SEND",
                    "response_body_mode": "STREAMED",
                } } } }),
            ),
            route(json!({ "prefix": "/" }), "web", json!({})),
        ],
        "clusters": [
            origins("web", &at.web, generation),
            origins("api", &at.api, generation / 3),
            policy("auth", &at.auth, generation / 2),
            policy("limits", &at.limits, generation / 4),
            policy("rewrite", &at.rewrite, generation / 5),
        ],
        "admin": at.admin.to_string(),
    })
}

/// Whether the configuration has the listener that comes and goes.
pub(crate) fn has_extra(generation: u64) -> bool {
    generation.is_multiple_of(2)
}

fn route(matches: Value, cluster: &str, per_filter: Value) -> Value {
    json!({
        "match": matches,
        "route": {
            "cluster": cluster,
            "timeout": "20s",
            // Nothing that is asked here does harm when it is done twice.
            "retry_policy": {
                "retry_on": "connect-failure,refused-stream,reset",
                "num_retries": 3,
                "retry_back_off": { "base_interval": "5ms", "max_interval": "50ms" },
            },
        },
        "typed_per_filter_config": per_filter,
    })
}

fn origins(name: &str, endpoints: &[String], version: u64) -> Value {
    let balance = match version % 3 {
        0 => "LEAST_REQUEST",
        1 => "ROUND_ROBIN",
        _ => "PEAK_EWMA",
    };
    json!({
        "name": name,
        "endpoints": endpoints,
        "lb_policy": balance,
        "connect_timeout": "5s",
        "health_checks": [check(json!({ "http_health_check": { "path": HEALTH_PATH } }))],
        // When one of two ends, half of what is on its way may have to be sent again.
        "circuit_breakers": { "thresholds": [{
            "max_requests": 10_000,
            "max_pending_requests": 10_000,
            "max_connections": 10_000,
            "max_retries": 1000,
        }] },
    })
}

fn policy(name: &str, endpoints: &[String], version: u64) -> Value {
    let balance = match version % 2 {
        0 => "ROUND_ROBIN",
        _ => "LEAST_REQUEST",
    };
    json!({
        "name": name,
        "endpoints": endpoints,
        "lb_policy": balance,
        "connect_timeout": "5s",
        "http2": {},
        "health_checks": [check(json!({ "grpc_health_check": {} }))],
    })
}

fn check(mut kind: Value) -> Value {
    if let Some(check) = kind.as_object_mut() {
        check.insert("interval".to_owned(), json!("0.5s"));
        check.insert("timeout".to_owned(), json!("5s"));
        check.insert("unhealthy_threshold".to_owned(), json!(2));
        check.insert("healthy_threshold".to_owned(), json!(1));
    }
    kind
}
