//! A control plane: `dynamic_resources`.

use attache_service::config::{
    format_duration,
    json::{Value, json},
};

use crate::{
    config::{ApiType, DiscoveredType, XdsConfig},
    xds,
};

/// Envoy's form of `xds`. The time of the first answer is a matter of each resource there. Headers
/// of the call are left out: they are secrets of files.
pub(super) fn export(xds: &XdsConfig) -> Value {
    let mut service = json!({ "cluster_name": xds.cluster.value });
    if let Some(authority) = &xds.authority {
        service["authority"] = json!(authority.value);
    }
    let mut dynamic = json!({
        "ads_config": {
            "api_type": xds.api_type.unwrap_or(ApiType::Grpc).as_str(),
            "transport_api_version": "V3",
            "grpc_services": [{ "envoy_grpc": service }],
        },
    });
    let resources = xds
        .resources
        .as_deref()
        .unwrap_or(xds::plan::DEFAULT_RESOURCES);
    for resource in resources {
        let name = match resource {
            DiscoveredType::Clusters => "cds_config",
            DiscoveredType::Listeners => "lds_config",
        };
        let mut source = ads();
        if let Some(timeout) = &xds.initial_fetch_timeout {
            source["initial_fetch_timeout"] = json!(format_duration(timeout.value));
        }
        dynamic[name] = source;
    }
    dynamic
}

/// The aggregated stream.
pub(super) fn ads() -> Value {
    json!({ "ads": {}, "resource_api_version": "V3" })
}
