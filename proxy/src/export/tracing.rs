//! Traces in Envoy's language.
//!
//! Envoy has a span for a call to a policy too, but none for each phase of `ext_proc`.

use attache_service::{
    Address,
    config::{envoy::type_url, json},
};
use json::{Value, json};

use super::address;
use crate::config::TracingConfig;

/// The cluster of a collector that is configured by its endpoint.
const COLLECTOR: &str = "attache-trace-collector";

pub(super) fn export(tracing: &TracingConfig) -> Value {
    let cluster = tracing.cluster.as_ref();
    let cluster = cluster.map_or(COLLECTOR, |cluster| cluster.as_str());
    let mut json = json!({
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": type_url("envoy.config.trace.v3.OpenTelemetryConfig"),
                "grpc_service": { "envoy_grpc": { "cluster_name": cluster }, "timeout": "10s" },
                "service_name": tracing.service_name.as_deref().unwrap_or("attache"),
            },
        },
        "spawn_upstream_span": true,
    });
    for (name, share) in [
        ("client_sampling", &tracing.client_sampling),
        ("random_sampling", &tracing.random_sampling),
        ("overall_sampling", &tracing.overall_sampling),
    ] {
        if let Some(share) = share {
            json[name] = json!({ "value": share.value });
        }
    }
    json
}

/// The cluster of a collector that is configured by its endpoint.
pub(super) fn cluster(tracing: &TracingConfig) -> Option<Value> {
    let endpoint = tracing.endpoint.as_ref()?.value.trim();
    let secure = endpoint.starts_with("https://");
    let bare = endpoint
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let at: Address = match bare.parse() {
        Ok(at) => at,
        Err(_) => format!("{bare}:4317").parse().ok()?,
    };
    let mut json = json!({
        "name": COLLECTOR,
        "type": "STRICT_DNS",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": type_url("envoy.extensions.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        },
        "load_assignment": {
            "cluster_name": COLLECTOR,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(&at) } }] }],
        },
    });
    if matches!(at, Address::Unix(_)) {
        json["type"] = "STATIC".into();
    }
    if secure {
        json["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": type_url("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
                "common_tls_context": {
                    "validation_context": { "system_root_certs": {} },
                },
            },
        });
    }
    Some(json)
}
