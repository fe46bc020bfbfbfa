//! The same proxy in Envoy's language: `attache export envoy`.
//!
//! The bootstrap behaves under Envoy 1.40 as the configuration does here: the same filters in the
//! same order, the same routes, timeouts, normalisation and limits. What Envoy turns off by
//! default and we turn on (or the other way round) is written out. What Envoy has no word for is
//! listed by [`left_out`].

mod access_log;
mod cluster;
mod connection_manager;
mod discovery;
mod guards;
mod left_out;
mod listener;
mod route;
mod tls;
mod tracing;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use attache_service::{
    Address,
    config::{ConfigValue, Located, envoy::type_url, format_duration, json},
};
use json::{Value, json};

pub use left_out::left_out;

use crate::config::{BodyFormat, Cluster, Config, Source, SubstitutionFormat, Target};

/// Why a configuration cannot be exported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Envoy cannot reach a service inside this process.
    #[error(
        "cluster `{0}` is embedded: run its service on its own and say where, with `--embedded {0}=ADDRESS`"
    )]
    Embedded(String),
    /// Envoy takes no sockets from systemd.
    #[error(
        "listener `{0}` has its sockets from systemd, which Envoy cannot take: write an address"
    )]
    Systemd(String),
    /// An address was given for a cluster that is not embedded or does not exist.
    #[error("there is no embedded cluster `{0}`")]
    NotEmbedded(String),
}

/// The Envoy bootstrap equal to `config`.
///
/// `embedded` says where the services of embedded clusters can be reached instead, by cluster.
///
/// # Errors
/// When an embedded cluster has no address, or an address no embedded cluster; also when a
/// listener has its sockets from systemd.
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
    let mut clusters = config
        .clusters
        .iter()
        .map(|cluster| cluster::export(cluster, embedded))
        .collect::<Result<Vec<_>, _>>()?;
    let tracing = config.tracing.as_ref();
    clusters.extend(tracing.and_then(|tracing| tracing::cluster(tracing)));
    let listeners = config
        .listeners
        .iter()
        .map(|listener| listener::export(listener, config))
        .collect::<Result<Vec<_>, _>>()?;
    let mut bootstrap = json!({
        "static_resources": { "listeners": listeners, "clusters": clusters },
    });
    if let Some(node) = node(config) {
        bootstrap["node"] = node;
    }
    if let Some(xds) = &config.xds {
        bootstrap["dynamic_resources"] = discovery::export(&xds.value);
    }
    if let Some(overload) = overload_manager(config) {
        bootstrap["overload_manager"] = overload;
    }
    if let Some(admin) = &config.admin {
        bootstrap["admin"] = json!({ "address": address(&admin.value) });
    }
    Ok(bootstrap)
}

/// Envoy reads nothing from a file or a control plane as long as it has no name and no cluster;
/// its `--service-node` and `--service-cluster` go before these.
fn node(config: &Config) -> Option<Value> {
    let node = config.node.as_ref().and_then(ConfigValue::encode);
    let is_discovered = |cluster: &Cluster| {
        let target = &cluster.target.value;
        matches!(target, Target::EndpointsFile(_) | Target::Eds(_))
    };
    if config.xds.is_none() && !config.clusters.iter().any(is_discovered) {
        return node;
    }
    let mut node = node.unwrap_or_else(|| json!({}));
    for field in ["id", "cluster"] {
        if node.get(field).is_none() {
            node[field] = json!("attache");
        }
    }
    Some(node)
}

/// Envoy looks at its heap where ours looks at resident memory, and has no part below which it
/// resumes: one threshold does both. A share of the cgroup's memory is for Envoy's own place to
/// say, and left out.
fn overload_manager(config: &Config) -> Option<Value> {
    let mut monitors = Vec::new();
    let mut manager = json!({});
    if let Some(limit) = &config.max_active_downstream_connections {
        monitors.push(json!({
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": type_url("envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"),
                "max_active_downstream_connections": limit.value,
            },
        }));
    }
    let overload = config.overload.as_ref().map(|overload| &overload.value);
    if let Some(overload) = overload
        && let Some(max) = &overload.max_memory
    {
        let interval = overload.refresh_interval.as_ref();
        let interval = interval.map_or(Duration::from_millis(250), |interval| interval.value);
        let heap = "envoy.resource_monitors.fixed_heap";
        monitors.push(json!({
            "name": heap,
            "typed_config": {
                "@type": type_url("envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig"),
                "max_heap_size_bytes": max.value.bytes(),
            },
        }));
        manager["refresh_interval"] = json!(format_duration(interval));
        manager["actions"] = json!([{
            "name": "envoy.overload_actions.stop_accepting_requests",
            "triggers": [{ "name": heap, "threshold": { "value": 1.0 } }],
        }]);
    }
    if monitors.is_empty() {
        return None;
    }
    manager["resource_monitors"] = monitors.into();
    Some(manager)
}

fn address(address: &Address) -> Value {
    match address {
        Address::Tcp { host, port } => {
            json!({ "socket_address": { "address": host, "port_value": port } })
        }
        Address::Unix(path) => json!({ "pipe": { "path": path } }),
    }
}

/// A path as Envoy finds it: relative ones start at the file that names them.
pub(crate) fn resolved(path: &Located<PathBuf>) -> PathBuf {
    let folder = path.span.file().and_then(|file| Path::new(file).parent());
    let path = folder.unwrap_or(Path::new("")).join(&path.value);
    std::path::absolute(&path).unwrap_or(path)
}

/// Names the file of a format by its full path.
fn set_file(json: &mut Value, name: &str, format: Option<&BodyFormat>) {
    if let Some(SubstitutionFormat::TextFormatSource(source)) = format.map(|raw| &raw.format)
        && let Source::Filename(path) = &source.source
    {
        json[name]["text_format_source"]["filename"] = json!(resolved(path));
    }
}
