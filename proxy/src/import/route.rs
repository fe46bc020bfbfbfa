//! Route tables: Envoy's are ours, route by route.

use std::collections::BTreeMap;

use attache_service::config::{ConfigValue, Errors, Node, Value, json::Value as Json};

use super::{
    block::Block,
    dropped::{Effect, Findings},
    filter,
    output::{self, Output},
};
use crate::config::{Route, RouteConfiguration, RouteMatch, VirtualHost};

/// Reads a `RouteConfiguration`. `names` are the filters of its listener, where it is known.
pub(super) fn table(
    node: &Node,
    names: Option<&BTreeMap<String, String>>,
    found: &mut Findings,
) -> Option<Json> {
    let renamed = names.map(|names| filter::renamed(node, names, found));
    let mut table = Block::open(renamed.as_ref().unwrap_or(node), found)?;
    let mut out = Output::default();
    if let Some(name) = table.take("name") {
        out.put("name", name.clone());
    }
    if table.flag("ignore_port_in_host_matching") != Some(true) {
        let why = "the port of a host never counts here";
        found.push(node, Effect::Nothing, why);
    }
    let hosts: Vec<Node> = table
        .list("virtual_hosts")
        .iter()
        .filter_map(|host| virtual_host(host, found))
        .collect();
    for entry in table.rest() {
        if output::has_field::<RouteConfiguration>(&entry.key.name) {
            out.put(&entry.key.name, entry.value.clone());
        } else {
            let why = format!("`{}` has no counterpart here", entry.key.name);
            found.push(&entry.key, Effect::Behaviour, why);
        }
    }
    let mut json = out.into_node().to_json();
    let hosts = hosts
        .iter()
        .filter_map(|host| output::decode::<VirtualHost>(host, Effect::Behaviour, found));
    json["virtual_hosts"] = Json::Array(hosts.collect());
    Some(json)
}

/// A virtual host with those of its routes that can be told.
fn virtual_host(node: &Node, found: &mut Findings) -> Option<Node> {
    let mut host = Block::open(node, found)?;
    let mut out = Output::default();
    let routes = host
        .list("routes")
        .iter()
        .filter(|route| is_whole(route, found))
        .map(without_statistics)
        .collect();
    host.nothing(&["stat_prefix", "virtual_clusters"], STATISTICS, found);
    for entry in host.rest() {
        out.put(&entry.key.name, entry.value.clone());
    }
    out.put("routes", output::list(routes));
    Some(out.into_node())
}

const STATISTICS: &str = "there are no statistics by route";

/// Whether a route can be told. One of which a part of `match` is unknown would take requests
/// that are not its own.
fn is_whole(route: &Node, found: &mut Findings) -> bool {
    let mut errors = Errors::new();
    let matches = route.get("match");
    let matched = matches.is_some_and(|node| RouteMatch::decode(node, &mut errors).is_some());
    let whole = matched && errors.is_empty() && {
        let mut errors_of_all = Errors::new();
        let decoded = Route::decode(route, &mut errors_of_all).is_some();
        if !decoded {
            errors = errors_of_all;
        }
        decoded
    };
    if !whole {
        found.refused(&errors, Effect::Behaviour);
        found.push(
            matches.unwrap_or(route),
            Effect::Behaviour,
            "the whole route is left out",
        );
    }
    whole
}

fn without_statistics(route: &Node) -> Node {
    let mut route = route.clone();
    if let Value::Map(entries) = &mut route.value {
        entries.retain(|entry| &*entry.key.name != "stat_prefix");
    }
    route
}
