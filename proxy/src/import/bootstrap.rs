//! A whole bootstrap.

use attache_service::config::{
    Node,
    json::{Map, Value as Json, json},
};

use super::{
    address,
    block::Block,
    cluster,
    dropped::{Effect, Findings},
    filter::Filters,
    listener::{self, Routes},
    output::{self, Output},
};
use crate::config::NodeConfig;

/// Reads a bootstrap.
pub(super) fn convert(node: &Node, found: &mut Findings) -> Json {
    let mut config = Map::new();
    let Some(mut bootstrap) = Block::open(node, found) else {
        return Json::Object(config);
    };
    let mut filters = Filters::default();
    if let Some(mut resources) = bootstrap.block("static_resources", found) {
        let mut listeners = Vec::new();
        let mut tables: Vec<(String, Json)> = Vec::new();
        for node in resources.list("listeners") {
            let Some(one) = listener::convert(node, &mut filters, found) else {
                continue;
            };
            listeners.push(one.config);
            match one.routes {
                Some(Routes::Here(table)) => tables.push((name_of(node), table)),
                Some(Routes::Discovered(name)) => {
                    let why = format!("the routes `{name}` are with a control plane");
                    found.push(node, Effect::Behaviour, why);
                }
                None => {}
            }
        }
        config.insert("listeners".into(), listeners.into());
        routes(tables, &mut config, node, found);
        let clusters: Vec<_> = resources
            .list("clusters")
            .iter()
            .filter_map(|node| cluster::convert(node, found))
            .collect();
        config.insert("clusters".into(), clusters.into());
        resources.finish(Effect::Behaviour, found);
    }
    let filters = filters.into_map();
    if !filters.is_empty() {
        config.insert("filters".into(), json!(filters));
    }
    admin(&mut bootstrap, &mut config, found);
    if let Some(node) = bootstrap.take("node")
        && let Some(node) = output::decode::<NodeConfig>(node, Effect::Nothing, found)
    {
        config.insert("node".into(), node);
    }
    bootstrap.nothing(
        &[
            "layered_runtime",
            "stats_config",
            "stats_sinks",
            "stats_flush_interval",
        ],
        "there is no runtime layer, and metrics are read by `/metrics`",
        found,
    );
    bootstrap.finish(Effect::Behaviour, found);
    Json::Object(config)
}

fn name_of(node: &Node) -> String {
    let name = node.get("name").and_then(Node::text);
    name.unwrap_or_default().to_owned()
}

/// All listeners share their routes here.
fn routes(
    tables: Vec<(String, Json)>,
    config: &mut Map<String, Json>,
    node: &Node,
    found: &mut Findings,
) {
    let mut tables = tables.into_iter();
    let Some((_, mut first)) = tables.next() else {
        return;
    };
    let unnamed = |table: &mut Json| table.as_object_mut().and_then(|table| table.remove("name"));
    unnamed(&mut first);
    for (listener, mut other) in tables {
        unnamed(&mut other);
        if other != first {
            let why = format!(
                "all listeners have the same routes here: those of listener `{listener}` are left out"
            );
            found.push(node, Effect::Protection, why);
        }
    }
    if let Json::Object(table) = first {
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
