//! Route tables: Envoy's are ours, route by route.

use std::collections::{BTreeMap, BTreeSet};

use attache_service::config::{ConfigValue, Errors, Node, Span, Value, json::Value as Json};

use super::{
    block::Block,
    domains,
    dropped::{Effect, Findings},
    filter,
    output::{self, Output},
    refusal,
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
    let written = table.list("virtual_hosts");
    domains::say(written, found);
    let mut seen = BTreeSet::new();
    let hosts: Vec<(&Node, Node)> = written
        .iter()
        .filter_map(|host| Some((host, virtual_host(host, &mut seen, found)?)))
        .collect();
    for entry in table.rest() {
        if output::has_field::<RouteConfiguration>(&entry.key.name) {
            out.put(&entry.key.name, entry.value.clone());
        } else {
            let effect = match &*entry.key.name {
                "typed_per_filter_config" | "internal_only_headers" => Effect::Protection,
                _ => Effect::Behaviour,
            };
            let why = format!("`{}` has no counterpart here", entry.key.name);
            found.push(&entry.key, effect, why);
        }
    }
    let mut json = out.into_node().to_json();
    let hosts = hosts.iter().filter_map(|(at, host)| {
        let what = "the whole virtual host";
        // Its requests would go to a host with fewer labels.
        output::decode::<VirtualHost>(host, *at, what, Effect::Protection, found)
    });
    json["virtual_hosts"] = Json::Array(hosts.collect());
    Some(json)
}

/// A virtual host with those of its routes that can be told. Domains are added to those `seen`.
fn virtual_host(node: &Node, seen: &mut BTreeSet<String>, found: &mut Findings) -> Option<Node> {
    let mut host = Block::open(node, found)?;
    let mut out = Output::default();
    let routes = host.list("routes").iter();
    let routes = routes.map(|route| self::route(route, found)).collect();
    host.nothing(&["stat_prefix", "virtual_clusters"], STATISTICS, found);
    if let Some(require) = host.take("require_tls")
        && require.text() != Some("NONE")
    {
        let why = "plain text is not redirected to TLS here; make a `redirect`";
        found.push(require.head(), Effect::Protection, why);
    }
    if let Some(domains) = host.take("domains") {
        let domains = domains::without_ports(domains, seen, found);
        if domains.as_seq().is_some_and(<[Node]>::is_empty) {
            return None;
        }
        out.put("domains", domains);
    }
    for entry in host.rest() {
        out.put(&entry.key.name, entry.value.clone());
    }
    out.put("routes", output::list(routes));
    Some(out.into_node())
}

const STATISTICS: &str = "there are no statistics by route";

/// A route, as far as it can be told. One that takes requests and does with them what is unknown
/// answers them with 500, so that none goes on to the routes behind it; so does one of which a part
/// of `match` is unknown, with all that it takes without that part.
fn route(route: &Node, found: &mut Findings) -> Node {
    let mut errors = Errors::new();
    let matches = route.get("match");
    let matched = matches.and_then(|node| RouteMatch::decode(node, &mut errors));
    let Some(matches) = matches.filter(|_| matched.is_some() && errors.is_empty()) else {
        let wider = known_part(matches, &route.span);
        let result = refusal::result(&wider.to_json());
        if errors.is_empty() {
            found.push(
                route,
                Effect::Behaviour,
                format!("`match` is unknown: {result}"),
            );
        }
        for error in &errors {
            let span = Some(error.span()).filter(|span| span.is_known());
            let why = format!("{}: {result}", error.message());
            found.push(span.unwrap_or(&route.span), Effect::Behaviour, why);
        }
        return refusing(wider, &route.span);
    };
    let mut errors = Errors::new();
    if Route::decode(route, &mut errors).is_none() {
        for error in &errors {
            let span = Some(error.span()).filter(|span| span.is_known());
            let why = format!(
                "{}: requests of this route are answered with 500",
                error.message()
            );
            found.push(span.unwrap_or(&route.span), Effect::Behaviour, why);
        }
        return refusing(matches.clone(), &route.span);
    }
    without_statistics(route)
}

/// The route that refuses what another took.
fn refusing(matches: Node, at: &Span) -> Node {
    let mut answer = Output::default();
    answer.number("status", 500, at);
    let mut out = Output::default();
    out.put("match", matches);
    out.put("direct_response", answer.into_node());
    out.into_node()
}

/// The conditions of a match that can be told. Without the others it takes all that it took, and
/// more.
fn known_part(matches: Option<&Node>, at: &Span) -> Node {
    let any_path = |mut conditions: Output| {
        if refusal::PATHS
            .iter()
            .all(|path| conditions.get(path).is_none())
        {
            conditions.text("prefix", "/", at);
        }
        conditions.into_node()
    };
    let mut known = Output::default();
    for entry in matches.and_then(Node::as_map).unwrap_or_default() {
        let mut alone = Output::default();
        alone.put(&entry.key.name, entry.value.clone());
        let mut errors = Errors::new();
        let decoded = RouteMatch::decode(&any_path(alone), &mut errors);
        if decoded.is_some() && errors.is_empty() {
            known.put(&entry.key.name, entry.value.clone());
        }
    }
    any_path(known)
}

fn without_statistics(route: &Node) -> Node {
    let mut route = route.clone();
    if let Value::Map(entries) = &mut route.value {
        entries.retain(|entry| &*entry.key.name != "stat_prefix");
    }
    route
}
