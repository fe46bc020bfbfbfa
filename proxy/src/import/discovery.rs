//! A control plane: `dynamic_resources` with an aggregated stream.

use attache_service::config::{Node, json::Value as Json, parse_duration};

use super::{
    block::Block,
    dropped::{Effect, Findings},
    output::{self, Output, text_at},
};
use crate::config::XdsConfig;

/// The file of a `ConfigSource` that is one.
pub(super) fn file<'n>(source: &mut Block<'n>, found: &mut Findings) -> Option<&'n Node> {
    if let Some(path) = source.take("path") {
        return Some(path);
    }
    let mut file = source.block("path_config_source", found)?;
    let path = file.take("path");
    let why = "the folder of a file is watched anyway";
    file.nothing(&["watched_directory"], why, found);
    file.finish(Effect::Behaviour, found);
    path
}

/// Reads the rest of a `ConfigSource`: all there is comes over one aggregated stream here.
pub(super) fn aggregated(source: &mut Block<'_>, found: &mut Findings) {
    source.take("ads");
    source.take("resource_api_version");
    let why = "the one of `xds` is for everything";
    source.nothing(&["initial_fetch_timeout"], why, found);
    source.finish(Effect::Behaviour, found);
}

/// Reads `dynamic_resources`; `None` after it was dropped.
pub(super) fn convert(node: &Node, found: &mut Findings) -> Option<Json> {
    let mut dynamic = Block::open(node, found)?;
    let mut out = Output::default();
    let mut resources = Vec::new();
    for (field, ours) in [("cds_config", "CDS"), ("lds_config", "LDS")] {
        let Some(mut source) = dynamic.block(field, found) else {
            continue;
        };
        resources.push(text_at(ours, &node.span));
        if let Some(timeout) = source.take("initial_fetch_timeout") {
            let duration = timeout.text().and_then(parse_duration);
            if duration.is_some_and(|duration| duration.is_zero()) {
                let why = "a start does not wait for ever here";
                found.push(timeout, Effect::Behaviour, why);
            } else {
                out.put("initial_fetch_timeout", timeout.clone());
            }
        }
        aggregated(&mut source, found);
    }
    let Some(mut ads) = dynamic.block("ads_config", found) else {
        let why = "a control plane is followed by `ads_config` here";
        found.push(node, Effect::Behaviour, why);
        return None;
    };
    if let Some(kind) = ads.take("api_type") {
        out.put("api_type", kind.clone());
    }
    ads.take("transport_api_version");
    ads.nothing(
        &["set_node_on_first_message_only"],
        "the node is said once",
        found,
    );
    let mut services = ads.list("grpc_services").iter();
    if let Some(mut service) = services.next().and_then(|node| Block::open(node, found)) {
        if let Some(mut envoy) = service.block("envoy_grpc", found) {
            if let Some(cluster) = envoy.take("cluster_name") {
                out.put("cluster", cluster.clone());
            }
            if let Some(authority) = envoy.take("authority") {
                out.put("authority", authority.clone());
            }
            envoy.finish(Effect::Behaviour, found);
        }
        service.finish(Effect::Behaviour, found);
    }
    for further in services {
        found.push(further, Effect::Behaviour, "there is one control plane");
    }
    ads.finish(Effect::Behaviour, found);
    dynamic.finish(Effect::Behaviour, found);
    out.put("resources", output::list(resources));
    let what = "the control plane";
    output::decode::<XdsConfig>(&out.into_node(), node, what, Effect::Behaviour, found)
}
