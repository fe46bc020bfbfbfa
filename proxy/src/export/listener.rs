//! Listeners, with what stands before their requests.

use std::time::Duration;

use attache_service::{
    config::{Located, envoy::type_url, format_duration, json},
    listen::ListenAddress,
};
use json::{Value, json};

use super::{ExportError, access_log, address, connection_manager, tls};
use crate::{
    config::{Config, Listener, ProxyProtocol},
    plan::Limits,
    tcp,
};

pub(super) fn export(listener: &Listener, config: &Config) -> Result<Value, ExportError> {
    let buffer_limit = listener
        .per_connection_buffer_limit_bytes
        .as_ref()
        .map_or(1 << 20, |limit| limit.value.bytes());
    let mut json = json!({
        "name": listener.name.value,
        "address": listen_address(listener)?,
        "per_connection_buffer_limit_bytes": buffer_limit,
        "filter_chains": filter_chains(listener, config),
    });
    let mut before = Vec::new();
    if let Some(settings) = &listener.proxy_protocol {
        before.push(proxy_protocol(settings));
    }
    if !listener.tls_passthrough.is_empty() {
        before.push(json!({
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": {
                "@type": type_url("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"),
            },
        }));
    }
    if !before.is_empty() {
        let limits = listener.limits.as_ref();
        let timeout = limits.and_then(|limits| limits.header_timeout.as_ref());
        let timeout = timeout.map_or(Limits::default().header_timeout, |written| written.value);
        json["listener_filters_timeout"] = json!(format_duration(timeout));
        json["listener_filters"] = before.into();
    }
    Ok(json)
}

/// Those that are passed on unopened, and the one for all others.
fn filter_chains(listener: &Listener, config: &Config) -> Vec<Value> {
    let mut chains = Vec::new();
    for one in &listener.tls_passthrough {
        let names: Vec<_> = one.server_names.iter().map(|name| &name.value).collect();
        let attempts = one.max_connect_attempts.as_ref();
        let filter = tcp_proxy(listener, &one.cluster, one.idle_timeout, attempts);
        chains.push(json!({
            "filter_chain_match": { "server_names": names, "transport_protocol": "tls" },
            "filters": [filter],
        }));
    }
    let filter = match &listener.tcp {
        Some(tcp) => {
            let attempts = tcp.value.max_connect_attempts.as_ref();
            Some(tcp_proxy(
                listener,
                &tcp.value.cluster,
                tcp.value.idle_timeout,
                attempts,
            ))
        }
        None if listener.tls.is_none() && !chains.is_empty() => None,
        None => Some(json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": connection_manager::export(listener, config),
        })),
    };
    if let Some(filter) = filter {
        let mut chain = json!({ "filters": [filter] });
        if let Some(tls) = &listener.tls {
            chain["transport_socket"] = tls::downstream(tls, listener.tcp.is_none());
        }
        chains.push(chain);
    }
    // Other peers find no chain, and are closed.
    let from = listener.proxy_protocol.iter().flat_map(|p| &p.from);
    let from: Vec<_> = from.map(|net| cidr(&net.value)).collect();
    for chain in chains.iter_mut().filter(|_| !from.is_empty()) {
        if chain["filter_chain_match"].is_null() {
            chain["filter_chain_match"] = json!({});
        }
        chain["filter_chain_match"]["direct_source_prefix_ranges"] = json!(from);
    }
    chains
}

fn cidr(net: &str) -> Value {
    let (address, length) = net.split_once('/').unwrap_or((net, ""));
    let most = if address.contains(':') { 128 } else { 32 };
    let length = length.parse::<u8>().unwrap_or(most);
    json!({ "address_prefix": address, "prefix_len": length })
}

fn proxy_protocol(settings: &ProxyProtocol) -> Value {
    let optional = settings.allow_requests_without_proxy_protocol;
    let disallowed = settings.disallowed_versions.iter();
    let disallowed: Vec<_> = disallowed.map(|version| version.as_str()).collect();
    json!({
        "name": "envoy.filters.listener.proxy_protocol",
        "typed_config": {
            "@type": type_url("envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"),
            "allow_requests_without_proxy_protocol": optional.unwrap_or(false),
            "disallowed_versions": disallowed,
        },
    })
}

fn tcp_proxy(
    listener: &Listener,
    cluster: &str,
    idle_timeout: Option<Duration>,
    attempts: Option<&Located<u32>>,
) -> Value {
    let mut json = json!({
        "@type": type_url("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": listener.name.value,
        "cluster": cluster,
        "idle_timeout": format_duration(idle_timeout.unwrap_or(tcp::DEFAULT_IDLE)),
        "max_connect_attempts": attempts.map_or(1, |attempts| attempts.value),
    });
    if let Some(log) = &listener.access_log {
        json["access_log"] = access_log::export(log);
    }
    json!({ "name": "envoy.filters.network.tcp_proxy", "typed_config": json })
}

fn listen_address(listener: &Listener) -> Result<Value, ExportError> {
    match &listener.address.value {
        ListenAddress::Systemd(_) => Err(ExportError::Systemd(listener.name.value.clone())),
        ListenAddress::At(at) => {
            let mut json = address(at);
            if let Some(mode) = &listener.mode {
                json["pipe"]["mode"] = mode.value.bits().into();
            }
            Ok(json)
        }
    }
}
