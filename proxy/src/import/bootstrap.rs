//! A whole bootstrap.

use attache_service::config::{
    Node,
    json::{Map, Value as Json, json},
};

use super::{
    Unprotected, address,
    block::Block,
    cluster, discovery,
    dropped::{Effect, Findings},
    filter::Filters,
    listener::{self, Routes},
    output::{self, Output},
    overload, refused, tracing,
};
use crate::config::NodeConfig;

/// Reads a bootstrap.
pub(super) fn convert(node: &Node, unprotected: Unprotected, found: &mut Findings) -> Json {
    let mut config = Map::new();
    let Some(mut bootstrap) = Block::open(node, found) else {
        return Json::Object(config);
    };
    let mut filters = Filters::default();
    if let Some(mut resources) = bootstrap.block("static_resources", found) {
        let mut listeners = Vec::new();
        let mut tables: Vec<Option<Json>> = Vec::new();
        let mut traces = Vec::new();
        for node in resources.list("listeners") {
            let (so_far, known) = (found.len(), filters.clone());
            let one = listener::convert(node, &mut filters, found);
            let open = unprotected == Unprotected::LeftOut && found.lost_protection_since(so_far);
            if open && one.is_some() {
                found.push(node, Effect::Behaviour, refused::OPEN);
            }
            let Some(one) = one.filter(|_| !open) else {
                filters = known;
                continue;
            };
            listeners.push(one.config);
            traces.push(one.tracing);
            tables.push(match one.routes {
                Some(Routes::Here(table)) => Some(table),
                Some(Routes::Discovered(name)) => {
                    if let Some(listener) = listeners.last_mut().and_then(Json::as_object_mut) {
                        listener.insert("route_config_name".into(), name.into());
                    }
                    None
                }
                None => None,
            });
        }
        routes(tables, &mut listeners, &mut config);
        if let Some(tracing) = tracing::convert(&traces, found) {
            config.insert("tracing".into(), tracing);
        }
        config.insert("listeners".into(), listeners.into());
        let clusters: Vec<_> = resources
            .list("clusters")
            .iter()
            .filter_map(|node| cluster::convert(node, found))
            .collect();
        config.insert("clusters".into(), clusters.into());
        resources.finish(Effect::Behaviour, found);
    }
    if let Some(dynamic) = bootstrap.take("dynamic_resources")
        && let Some(xds) = discovery::convert(dynamic, found)
    {
        config.insert("xds".into(), xds);
    }
    let filters = filters.into_map();
    if !filters.is_empty() {
        config.insert("filters".into(), json!(filters));
    }
    let guards = overload::convert(&mut bootstrap, found);
    for (name, value) in [
        ("overload", guards.overload),
        ("max_active_downstream_connections", guards.max_connections),
    ] {
        if let Some(value) = value {
            config.insert(name.into(), value);
        }
    }
    admin(&mut bootstrap, &mut config, found);
    if let Some(node) = bootstrap.take("node")
        && let Some(node) =
            output::decode::<NodeConfig>(node, node, "all of it", Effect::Nothing, found)
    {
        config.insert("node".into(), node);
    }
    bootstrap.nothing(
        &["stats_config", "stats_sinks", "stats_flush_interval"],
        "metrics are read by `/metrics`",
        found,
    );
    bootstrap.finish(Effect::Behaviour, found);
    Json::Object(config)
}

/// What all listeners with routes share stands at the top; where they differ, each has its own.
fn routes(tables: Vec<Option<Json>>, listeners: &mut [Json], config: &mut Map<String, Json>) {
    let content = |table: &Json| {
        let mut table = table.clone();
        if let Some(map) = table.as_object_mut() {
            map.remove("name");
        }
        table
    };
    let mut different: Vec<Json> = Vec::new();
    for table in tables.iter().flatten().map(content) {
        if !different.contains(&table) {
            different.push(table);
        }
    }
    if different.len() > 1 {
        for (listener, table) in listeners.iter_mut().zip(tables) {
            if let (Some(listener), Some(table)) = (listener.as_object_mut(), table) {
                listener.insert("route_config".into(), table);
            }
        }
    } else if let Some(Json::Object(table)) = different.pop() {
        config.extend(table);
    }
}

fn admin(bootstrap: &mut Block<'_>, config: &mut Map<String, Json>, found: &mut Findings) {
    let Some(mut admin) = bootstrap.block("admin", found) else {
        return;
    };
    let mut out = Output::default();
    if let Some(node) = admin.take("address")
        && let Some(address) = address::text(node, found)
    {
        let local = address
            .parse()
            .is_ok_and(|a| attache_service::admin::is_local(&a));
        match local {
            true => out.text("admin", address, &node.span),
            false => found.push(
                node,
                Effect::Behaviour,
                "the admin page is for loopback only",
            ),
        }
    }
    admin.nothing(&["access_log", "access_log_path"], "it has no log", found);
    admin.finish(Effect::Behaviour, found);
    if let Json::Object(map) = out.into_node().to_json() {
        config.extend(map);
    }
}
