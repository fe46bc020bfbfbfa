//! The same proxy in Envoy's language: `attache export envoy`.
//!
//! The bootstrap behaves under Envoy 1.40 as the configuration does here: the same filters in the
//! same order, the same routes, timeouts, normalisation and limits. What Envoy turns off by
//! default and we turn on (or the other way round) is written out.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use attache_service::{
    Address,
    config::{ConfigValue, Located, Node, envoy::type_url, format_duration, json},
    tls::{ClusterTls, ListenerTls, TlsVersion},
};
use json::{Map, Value, json};

use crate::{
    config::{AccessLog, Cluster, Config, EscapedSlashesAction, Listener, Route, Target},
    plan::{DEFAULT_CLUSTER_IDLE, Limits},
    policies::encode_per_route,
};

/// Why a configuration cannot be exported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Envoy cannot reach a service inside this process.
    #[error(
        "cluster `{0}` is embedded: run its service on its own and say where, with `--embedded {0}=ADDRESS`"
    )]
    Embedded(String),
    /// An address was given for a cluster that is not embedded or does not exist.
    #[error("there is no embedded cluster `{0}`")]
    NotEmbedded(String),
}

/// The Envoy bootstrap equal to `config`.
///
/// `embedded` says where the services of embedded clusters can be reached instead, by cluster.
///
/// # Errors
/// When an embedded cluster has no address, or an address no embedded cluster.
pub fn envoy(config: &Config, embedded: &BTreeMap<String, Address>) -> Result<Value, ExportError> {
    let is_embedded = |cluster: &&Cluster| matches!(cluster.target.value, Target::Embedded(_));
    for name in embedded.keys() {
        if !config
            .clusters
            .iter()
            .filter(is_embedded)
            .any(|c| c.name.value == *name)
        {
            return Err(ExportError::NotEmbedded(name.clone()));
        }
    }
    let clusters = config
        .clusters
        .iter()
        .map(|cluster| self::cluster(cluster, embedded))
        .collect::<Result<Vec<_>, _>>()?;
    let listeners: Vec<_> = config
        .listeners
        .iter()
        .map(|l| listener(l, config))
        .collect();
    let mut bootstrap = json!({
        "static_resources": { "listeners": listeners, "clusters": clusters },
    });
    if let Some(node) = config.node.as_ref().and_then(ConfigValue::encode) {
        bootstrap["node"] = node;
    }
    if let Some(admin) = &config.admin {
        bootstrap["admin"] = json!({ "address": address(&admin.value) });
    }
    Ok(bootstrap)
}

fn listener(listener: &Listener, config: &Config) -> Value {
    let mut chain = json!({ "filters": [{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": connection_manager(listener, config),
    }]});
    if let Some(tls) = &listener.tls {
        chain["transport_socket"] = downstream_tls(tls);
    }
    let buffer_limit = listener
        .per_connection_buffer_limit_bytes
        .as_ref()
        .map_or(1 << 20, |limit| limit.value.bytes());
    json!({
        "name": listener.name.value,
        "address": address(&listener.address.value),
        "per_connection_buffer_limit_bytes": buffer_limit,
        "filter_chains": [chain],
    })
}

fn connection_manager(listener: &Listener, config: &Config) -> Value {
    let defaults = Limits::default();
    let limits = listener.limits.as_ref();
    let number = |written: Option<usize>, default: usize| written.unwrap_or(default);
    let bytes = limits
        .and_then(|limits| limits.max_header_bytes.as_ref())
        .map_or(defaults.max_header_bytes, |size| size.value.as_usize());
    let streams = limits
        .and_then(|l| l.max_concurrent_streams)
        .unwrap_or(defaults.max_concurrent_streams);
    let header_timeout = limits
        .and_then(|l| l.header_timeout)
        .unwrap_or(defaults.header_timeout);
    let idle_timeout = limits
        .and_then(|l| l.idle_timeout)
        .unwrap_or(defaults.idle_timeout);
    let max_headers = number(limits.and_then(|l| l.max_headers), defaults.max_headers);
    let mut json = json!({
        "@type": type_url("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": listener.name.value,
        "codec_type": "AUTO",
        "server_header_transformation": "PASS_THROUGH",
        "use_remote_address": listener.use_remote_address.unwrap_or(true),
        "xff_num_trusted_hops": listener.xff_num_trusted_hops.unwrap_or(0),
        "generate_request_id": listener.generate_request_id.unwrap_or(true),
        "preserve_external_request_id": listener.preserve_external_request_id.unwrap_or(false),
        "normalize_path": listener.normalize_path.unwrap_or(true),
        "merge_slashes": listener.merge_slashes.unwrap_or(false),
        "path_with_escaped_slashes_action": listener
            .path_with_escaped_slashes_action
            .unwrap_or(EscapedSlashesAction::KeepUnchanged)
            .as_str(),
        "max_request_headers_kb": bytes.div_ceil(1024),
        "request_headers_timeout": format_duration(header_timeout),
        "common_http_protocol_options": {
            "max_headers_count": max_headers,
            "idle_timeout": format_duration(idle_timeout),
        },
        "http_protocol_options": { "enable_trailers": true, "accept_http_10": true },
        "http2_protocol_options": { "max_concurrent_streams": streams },
        "http_filters": http_filters(listener, config),
        "route_config": {
            "name": "routes",
            "virtual_hosts": virtual_hosts(config),
            "ignore_port_in_host_matching": true,
        },
    });
    let upgrades = listener
        .upgrades
        .clone()
        .unwrap_or_else(|| vec!["websocket".to_owned()]);
    json["upgrade_configs"] = upgrades
        .iter()
        .map(|upgrade| json!({ "upgrade_type": upgrade }))
        .collect();
    let http2 = listener.http2_protocol_options.as_ref();
    if let Some(allow) = http2.and_then(|http2| http2.allow_connect) {
        json["http2_protocol_options"]["allow_connect"] = allow.into();
    }
    if let Some(log) = &listener.access_log {
        json["access_log"] = access_log(&log.value);
    }
    json
}

fn http_filters(listener: &Listener, config: &Config) -> Vec<Value> {
    let named = listener.filters.iter().filter_map(|name| {
        let filter = config.filters.get(name.as_str())?;
        let config = filter.value.policy.encode_typed()?;
        let mut json = json!({ "name": name.value, "typed_config": config });
        if filter.value.disabled {
            json["disabled"] = json!(true);
        }
        Some(json)
    });
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": type_url("envoy.extensions.filters.http.router.v3.Router") },
    });
    named.chain([router]).collect()
}

fn virtual_hosts(config: &Config) -> Vec<Value> {
    let routes = |routes: &[Route]| -> Vec<Value> {
        routes.iter().filter_map(|r| route(r, config)).collect()
    };
    let mut hosts: Vec<_> = config
        .virtual_hosts
        .iter()
        .map(|host| {
            let domains: Vec<_> = host.domains.iter().map(|d| d.value.as_str()).collect();
            let mut json =
                json!({ "name": host.name, "domains": domains, "routes": routes(&host.routes) });
            if let Some(settings) = per_filter(&host.typed_per_filter_config, config) {
                json["typed_per_filter_config"] = settings;
            }
            if let Some(limits) = host.rate_limits.encode() {
                json["rate_limits"] = limits;
            }
            json
        })
        .collect();
    if !config.routes.is_empty() {
        hosts
            .push(json!({ "name": "default", "domains": ["*"], "routes": routes(&config.routes) }));
    }
    hosts
}

/// Routes are Envoy's already; only the per-route settings need their types.
fn route(route: &Route, config: &Config) -> Option<Value> {
    let mut json = route.encode()?;
    let object = json.as_object_mut()?;
    object.remove("typed_per_filter_config");
    if let Some(settings) = per_filter(&route.typed_per_filter_config, config) {
        object.insert("typed_per_filter_config".to_owned(), settings);
    }
    Some(json)
}

fn per_filter(settings: &BTreeMap<String, Node>, config: &Config) -> Option<Value> {
    let encoded = settings.iter().filter_map(|(name, node)| {
        let filter = config.filters.get(name)?;
        Some((name.clone(), encode_per_route(&filter.value.policy, node)?))
    });
    let encoded: Map<_, _> = encoded.collect();
    (!encoded.is_empty()).then_some(Value::Object(encoded))
}

fn cluster(cluster: &Cluster, embedded: &BTreeMap<String, Address>) -> Result<Value, ExportError> {
    let name = &cluster.name.value;
    let (addresses, http2) = match &cluster.target.value {
        Target::Endpoints(addresses) => (
            addresses
                .iter()
                .map(|address| &address.value)
                .collect::<Vec<_>>(),
            cluster.http2.is_some(),
        ),
        Target::Embedded(_) => {
            let address = embedded
                .get(name)
                .ok_or_else(|| ExportError::Embedded(name.clone()))?;
            (vec![address], true)
        }
    };
    let literal = |address: &&Address| match address {
        Address::Tcp { host, .. } => host.parse::<std::net::IpAddr>().is_ok(),
        Address::Unix(_) => true,
    };
    let kind = if addresses.iter().all(literal) {
        "STATIC"
    } else {
        "STRICT_DNS"
    };
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|a| json!({ "endpoint": { "address": address(a) } }))
        .collect();
    let connect_timeout = cluster.connect_timeout.unwrap_or(Duration::from_secs(1));
    let protocol = if http2 {
        json!({ "http2_protocol_options": {} })
    } else {
        json!({ "http_protocol_options": { "enable_trailers": true } })
    };
    let idle_timeout = cluster.idle_timeout.unwrap_or(DEFAULT_CLUSTER_IDLE);
    let unlimited = u32::MAX;
    let mut json = json!({
        "name": name,
        "type": kind,
        "lb_policy": "ROUND_ROBIN",
        "connect_timeout": format_duration(connect_timeout),
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": endpoints }] },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": type_url("envoy.extensions.upstreams.http.v3.HttpProtocolOptions"),
                "common_http_protocol_options": { "idle_timeout": format_duration(idle_timeout) },
                "explicit_http_config": protocol,
            },
        },
        // There are no circuit breakers here; Envoy's default of 1024 would be one.
        "circuit_breakers": { "thresholds": [{
            "max_connections": unlimited,
            "max_pending_requests": unlimited,
            "max_requests": unlimited,
        }]},
    });
    if let Some(metadata) = cluster.metadata.as_ref().and_then(ConfigValue::encode) {
        json["metadata"] = metadata;
    }
    if let Some(tls) = &cluster.tls {
        let hosts = addresses.iter().filter_map(|address| match address {
            Address::Tcp { host, .. } => Some(host.as_str()),
            Address::Unix(_) => None,
        });
        json["transport_socket"] = upstream_tls(tls, hosts.into_iter().next(), http2);
    }
    Ok(json)
}

fn address(address: &Address) -> Value {
    match address {
        Address::Tcp { host, port } => {
            json!({ "socket_address": { "address": host, "port_value": port } })
        }
        Address::Unix(path) => json!({ "pipe": { "path": path } }),
    }
}

fn access_log(log: &AccessLog) -> Value {
    let format = json!({ "json_format": {
        "time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
        "host": "%REQ(:AUTHORITY)%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
        "duration_ms": "%DURATION%",
        "upstream": "%UPSTREAM_HOST%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }});
    match &log.path {
        Some(path) => json!([{
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": type_url("envoy.extensions.access_loggers.file.v3.FileAccessLog"),
                "path": resolved(path),
                "log_format": format,
            },
        }]),
        None => json!([{
            "name": "envoy.access_loggers.stdout",
            "typed_config": {
                "@type": type_url("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"),
                "log_format": format,
            },
        }]),
    }
}

fn downstream_tls(tls: &ListenerTls) -> Value {
    let mut common = json!({
        "alpn_protocols": tls.alpn.clone().unwrap_or_else(|| vec!["h2".into(), "http/1.1".into()]),
        "tls_certificates": [certificate(&tls.certificate, &tls.private_key)],
        "tls_params": {
            "tls_minimum_protocol_version": tls.min_version.unwrap_or(TlsVersion::Tls12).as_str(),
        },
    });
    if let Some(ca) = &tls.client_ca {
        common["validation_context"] = json!({ "trusted_ca": { "filename": resolved(ca) } });
    }
    transport_socket(
        "DownstreamTlsContext",
        json!({
            "common_tls_context": common,
            "require_client_certificate": tls.client_ca.is_some(),
        }),
    )
}

fn upstream_tls(tls: &ClusterTls, host: Option<&str>, http2: bool) -> Value {
    let sni = tls.sni.as_ref().map(|sni| sni.value.as_str()).or(host);
    let mut validation = match &tls.ca {
        Some(ca) => json!({ "trusted_ca": { "filename": resolved(ca) } }),
        None => json!({ "system_root_certs": {} }),
    };
    if let Some(name) = sni {
        let kind = if name.parse::<std::net::IpAddr>().is_ok() {
            "IP_ADDRESS"
        } else {
            "DNS"
        };
        validation["match_typed_subject_alt_names"] =
            json!([{ "san_type": kind, "matcher": { "exact": name } }]);
    }
    let mut common = json!({
        "alpn_protocols": [if http2 { "h2" } else { "http/1.1" }],
        "validation_context": validation,
    });
    if let (Some(chain), Some(key)) = (&tls.certificate, &tls.private_key) {
        common["tls_certificates"] = json!([certificate(chain, key)]);
    }
    let mut context = json!({ "common_tls_context": common });
    if let Some(name) = sni.filter(|name| name.parse::<std::net::IpAddr>().is_err()) {
        context["sni"] = json!(name);
    }
    transport_socket("UpstreamTlsContext", context)
}

fn certificate(chain: &Located<PathBuf>, key: &Located<PathBuf>) -> Value {
    json!({
        "certificate_chain": { "filename": resolved(chain) },
        "private_key": { "filename": resolved(key) },
    })
}

fn transport_socket(context: &str, mut config: Value) -> Value {
    config["@type"] = json!(type_url(&format!(
        "envoy.extensions.transport_sockets.tls.v3.{context}"
    )));
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": config })
}

/// A path as Envoy finds it: relative ones start at the file that names them.
fn resolved(path: &Located<PathBuf>) -> PathBuf {
    let folder = path.span.file().and_then(|file| Path::new(file).parent());
    let path = folder.unwrap_or(Path::new("")).join(&path.value);
    std::path::absolute(&path).unwrap_or(path)
}
