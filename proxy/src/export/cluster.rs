//! Clusters and their endpoints.

use std::{collections::BTreeMap, time::Duration};

use attache_service::{
    Address,
    cluster::EndpointConfig,
    config::{ConfigValue, Located, envoy::type_url, format_duration, json},
};
use json::{Value, json};

use super::{ExportError, address, discovery, guards, resolved, tls};
use crate::{
    config::{Cluster, DnsLookupFamily, DnsType, LbPolicy, Target},
    plan::DEFAULT_CLUSTER_IDLE,
};

pub(super) fn export(
    cluster: &Cluster,
    embedded: &BTreeMap<String, Address>,
) -> Result<Value, ExportError> {
    let name = &cluster.name.value;
    let http2 = cluster.http2.is_some() || matches!(cluster.target.value, Target::Embedded(_));
    let connect_timeout = cluster.connect_timeout.as_deref().copied();
    let connect_timeout = connect_timeout.unwrap_or(Duration::from_secs(1));
    let protocol = if http2 {
        json!({ "http2_protocol_options": {} })
    } else {
        json!({ "http_protocol_options": { "enable_trailers": true } })
    };
    let idle_timeout = cluster.idle_timeout.as_deref().copied();
    let idle_timeout = idle_timeout.unwrap_or(DEFAULT_CLUSTER_IDLE);
    let mut common = json!({ "idle_timeout": format_duration(idle_timeout) });
    if let Some(max) = &cluster.max_connection_duration {
        common["max_connection_duration"] = json!(format_duration(max.value));
    }
    if let Some(max) = &cluster.max_requests_per_connection {
        common["max_requests_per_connection"] = json!(max.value);
    }
    let mut json = json!({
        "name": name,
        "lb_policy": lb_policy(cluster),
        "connect_timeout": format_duration(connect_timeout),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": type_url("envoy.extensions.upstreams.http.v3.HttpProtocolOptions"),
                "common_http_protocol_options": common,
                "explicit_http_config": protocol,
            },
        },
    });
    if let Some(common) = cluster
        .common_lb_config
        .as_ref()
        .and_then(ConfigValue::encode)
    {
        json["common_lb_config"] = common;
    }
    guards::of_cluster(cluster, &mut json);
    let endpoints = endpoints(cluster, embedded, &mut json)?;
    if let Some(metadata) = cluster.metadata.as_ref().and_then(ConfigValue::encode) {
        json["metadata"] = metadata;
    }
    if let Some(tls) = &cluster.tls {
        json["transport_socket"] = tls::upstream(tls, host(&endpoints), http2);
    }
    Ok(json)
}

/// Envoy has no peak EWMA: what it has and comes next is `LEAST_REQUEST`.
fn lb_policy(cluster: &Cluster) -> &'static str {
    match (&cluster.target.value, cluster.lb_policy) {
        (Target::OriginalDst(_), _) => "CLUSTER_PROVIDED",
        (_, None | Some(LbPolicy::PeakEwma)) => LbPolicy::LeastRequest.as_str(),
        (_, Some(policy)) => policy.as_str(),
    }
}

/// Says where the endpoints of a cluster are, and which of them are known.
fn endpoints(
    cluster: &Cluster,
    embedded: &BTreeMap<String, Address>,
    json: &mut Value,
) -> Result<Vec<EndpointConfig>, ExportError> {
    let name = &cluster.name.value;
    let at = |address: &Address| EndpointConfig {
        address: Located::nowhere(address.clone()),
        weight: None,
        hostname: None,
        health_status: None,
    };
    let endpoints = match &cluster.target.value {
        Target::Endpoints(written) => written.iter().map(|one| one.0.clone()).collect(),
        Target::Dns(name) => vec![at(&name.value)],
        Target::Embedded(_) => {
            let address = embedded
                .get(name)
                .ok_or_else(|| ExportError::Embedded(name.clone()))?;
            vec![at(address)]
        }
        Target::EndpointsFile(path) => {
            json["type"] = json!("EDS");
            json["eds_cluster_config"] = json!({
                "eds_config": {
                    "resource_api_version": "V3",
                    "path_config_source": { "path": resolved(path) },
                },
            });
            return Ok(Vec::new());
        }
        Target::Eds(eds) => {
            json["type"] = json!("EDS");
            json["eds_cluster_config"] = json!({ "eds_config": discovery::ads() });
            if let Some(name) = &eds.service_name {
                json["eds_cluster_config"]["service_name"] = json!(name);
            }
            return Ok(Vec::new());
        }
        Target::OriginalDst(raw) => {
            json["type"] = json!("ORIGINAL_DST");
            let mut config = json!({ "use_http_header": raw.http_header_name.is_some() });
            if let Some(header) = &raw.http_header_name {
                config["http_header_name"] = json!(header.value);
            }
            if let Some(key) = raw.metadata_key.as_ref().and_then(ConfigValue::encode) {
                config["metadata_key"] = key;
            }
            json["original_dst_lb_config"] = config;
            return Ok(Vec::new());
        }
    };
    let literal = |endpoint: &EndpointConfig| match &endpoint.address.value {
        Address::Tcp { host, .. } => host.parse::<std::net::IpAddr>().is_ok(),
        Address::Unix(_) => true,
    };
    if endpoints.iter().all(literal) {
        json["type"] = json!("STATIC");
    } else {
        let kind = cluster.dns_type.as_ref().map(|kind| kind.value);
        json["type"] = json!(kind.unwrap_or(DnsType::Strict).as_str());
        let family = cluster.dns_lookup_family;
        json["dns_lookup_family"] = json!(family.unwrap_or(DnsLookupFamily::V4Preferred).as_str());
        if let Some(every) = &cluster.dns_refresh_rate {
            json["dns_refresh_rate"] = json!(format_duration(every.value));
        }
    }
    let encoded = endpoints.iter().map(|endpoint| {
        let mut inner = json!({ "address": address(&endpoint.address.value) });
        if let Some(hostname) = &endpoint.hostname {
            inner["hostname"] = json!(hostname);
        }
        let mut outer = json!({ "endpoint": inner });
        if let Some(weight) = &endpoint.weight {
            outer["load_balancing_weight"] = json!(weight.value);
        }
        if let Some(status) = endpoint.health_status {
            outer["health_status"] = json!(status.as_str());
        }
        outer
    });
    let encoded: Vec<_> = encoded.collect();
    json["load_assignment"] =
        json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": encoded }] });
    Ok(endpoints)
}

/// The name that TLS asks for unless it is configured: that of the first endpoint.
fn host(endpoints: &[EndpointConfig]) -> Option<&str> {
    endpoints.iter().find_map(
        |endpoint| match (&endpoint.hostname, &endpoint.address.value) {
            (Some(name), _) => Some(name.as_str()),
            (None, Address::Tcp { host, .. }) => Some(host),
            (None, Address::Unix(_)) => None,
        },
    )
}
