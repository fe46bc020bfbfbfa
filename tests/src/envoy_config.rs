//! Scenarios as one Envoy bootstrap: a listener for each, and its clusters.
//!
//! What Envoy runs is our own export of the configuration that our proxy
//! runs, so that the export is tested with everything else. Only where our
//! proxy refuses a scenario are filters and routes put in by hand. Names of
//! clusters are made unique by a prefix, which observations lose again.

use std::collections::BTreeMap;

use attache_proxy::{Config, export};
use serde_json::{Map, Value, json};

use crate::noise;
use crate::scenario::Scenario;

const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";

/// Adds an access log that says what ours says, in the working directory.
pub fn log_requests(part: &mut Value, nth: usize, scenario: &Scenario) -> Result<(), String> {
    let manager = part
        .pointer_mut(MANAGER)
        .ok_or("the export has no connection manager")?;
    if scenario.listener.contains_key("access_log") {
        // What we export of it, but to a file.
        let log = &mut manager["access_log"][0];
        log["name"] = json!("envoy.access_loggers.file");
        log["typed_config"]["@type"] =
            json!("type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog");
        log["typed_config"]["path"] = json!(log_name(nth));
        return Ok(());
    }
    let (mut policies, mut states) = (Map::new(), Map::new());
    for (name, kind, _) in scenario.filters()? {
        if kind == "ext_proc" {
            let state = format!("%FILTER_STATE({name}:PLAIN)%");
            policies.insert(name, json!(state));
        } else if kind == "ext_authz" {
            let shadow = format!("{name}.shadow");
            let state = format!("%FILTER_STATE({shadow})%");
            states.insert(shadow, json!(state));
            // Its figures can only be had one by one.
            let figure = |of: &&str| {
                let state = format!("%FILTER_STATE({name}:FIELD:{of})%");
                ((*of).to_owned(), json!(state))
            };
            let figures: Map<_, _> = noise::FIGURES.iter().map(figure).collect();
            states.insert(name, Value::Object(figures));
        }
    }
    manager["access_log"] = json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": log_name(nth),
            "log_format": { "json_format": {
                "status": "%RESPONSE_CODE%",
                "flags": "%RESPONSE_FLAGS%",
                "details": "%RESPONSE_CODE_DETAILS%",
                "policies": policies,
                "filter_state": states,
            } },
        },
    }]);
    Ok(())
}

/// The access log of the n-th scenario.
pub fn log_name(nth: usize) -> String {
    format!("access-{nth}")
}

/// The prefix of the clusters of the n-th scenario.
pub fn prefix(nth: usize) -> String {
    format!("scenario-{nth}~")
}

/// The name of the listener of the n-th scenario.
pub fn listener_name(nth: usize) -> String {
    format!("scenario-{nth}")
}

/// The bootstrap of these parts, one for each scenario.
pub fn bootstrap(parts: &[Value]) -> Value {
    let all = |kind: &str| -> Value {
        let lists = parts
            .iter()
            .filter_map(|part| part["static_resources"][kind].as_array());
        lists.flatten().cloned().collect()
    };
    // One process is one node: scenarios must not use the same names in it.
    let mut node = Map::new();
    for metadata in parts.iter().map(|part| &part["node"]["metadata"]) {
        node.extend(metadata.as_object().cloned().unwrap_or_default());
    }
    let mut node = json!({ "metadata": node });
    for (field, value) in parts
        .iter()
        .filter_map(|part| part["node"].as_object())
        .flatten()
    {
        if field != "metadata" {
            node[field] = value.clone();
        }
    }
    json!({
        "node": node,
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
        "static_resources": { "listeners": all("listeners"), "clusters": all("clusters") },
        // Scenarios have their own waiting; Envoy's watch over the main thread
        // would only report that the machine is busy.
        "watchdogs": {},
    })
}

/// The n-th scenario's configuration in Envoy's language.
pub fn exported(nth: usize, config: &Config) -> Result<Value, String> {
    let mut part = export::envoy(config, &BTreeMap::new()).map_err(|e| e.to_string())?;
    make_unique(&mut part, nth);
    Ok(part)
}

/// The n-th scenario in Envoy's language, where our proxy refuses it. `frame`
/// is its configuration without filters and routes.
pub fn by_hand(nth: usize, frame: &Config, scenario: &Scenario) -> Result<Value, String> {
    let mut part = export::envoy(frame, &BTreeMap::new()).map_err(|e| e.to_string())?;
    let manager = part
        .pointer_mut(MANAGER)
        .ok_or("the export has no connection manager")?;
    let router = manager["http_filters"].take();
    let mut filters = Vec::new();
    for (name, kind, body) in scenario.filters()? {
        let off = scenario.is_off(&name);
        let config = with_type(type_of(kind), body);
        filters.push(json!({ "name": name, "typed_config": config, "disabled": off }));
    }
    filters.extend(router.as_array().into_iter().flatten().cloned());
    manager["http_filters"] = filters.into();
    let hosts = match scenario.virtual_hosts.as_slice() {
        [] => vec![json!({ "name": "all", "domains": ["*"], "routes": scenario.routes })],
        hosts => hosts.to_vec(),
    };
    let hosts: Result<Vec<_>, String> = hosts
        .into_iter()
        .map(|mut host| {
            for one in host["routes"].as_array_mut().into_iter().flatten() {
                *one = route(scenario, one)?;
            }
            route(scenario, &host)
        })
        .collect();
    manager["route_config"]["virtual_hosts"] = hosts?.into();
    for (name, value) in &scenario.route_configuration {
        manager["route_config"][name] = value.clone();
    }
    make_unique(&mut part, nth);
    Ok(part)
}

fn make_unique(part: &mut Value, nth: usize) {
    let resources = &mut part["static_resources"];
    prefix_clusters(resources, nth);
    for cluster in resources["clusters"].as_array_mut().into_iter().flatten() {
        let name = cluster["name"].as_str().unwrap_or_default();
        cluster["name"] = json!(format!("{}{name}", prefix(nth)));
    }
    for listener in resources["listeners"].as_array_mut().into_iter().flatten() {
        listener["name"] = json!(listener_name(nth));
    }
    if let Some(manager) = part.pointer_mut(MANAGER) {
        // Counters of their own.
        manager["stat_prefix"] = json!(listener_name(nth));
    }
}

fn prefix_clusters(value: &mut Value, nth: usize) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match value {
                    Value::String(text) if name == "cluster" || name == "cluster_name" => {
                        *text = format!("{}{text}", prefix(nth));
                    }
                    Value::Object(weighted) if name == "weighted_clusters" => {
                        let clusters = weighted.get_mut("clusters").and_then(Value::as_array_mut);
                        for cluster in clusters.into_iter().flatten() {
                            if let Some(Value::String(name)) = cluster.get_mut("name") {
                                *name = format!("{}{name}", prefix(nth));
                            }
                        }
                    }
                    other => prefix_clusters(other, nth),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| prefix_clusters(item, nth)),
        _ => {}
    }
}

fn route(scenario: &Scenario, route: &Value) -> Result<Value, String> {
    let mut route = route.clone();
    if let Some(Value::Object(overrides)) = route.get_mut("typed_per_filter_config") {
        let filters = scenario.filters()?;
        for (name, body) in overrides.iter_mut() {
            let (_, kind, _) = filters
                .iter()
                .find(|(other, _, _)| other == name)
                .ok_or_else(|| format!("a route speaks of {name}, which is no filter"))?;
            *body = with_type(&format!("{}PerRoute", per_route_type(kind)), body.take());
        }
    }
    Ok(route)
}

fn type_of(kind: &str) -> &'static str {
    match kind {
        "ext_proc" => "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_web" => "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb",
        "ext_authz" => "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        _ => "envoy.extensions.filters.http.ratelimit.v3.RateLimit",
    }
}

fn per_route_type(kind: &str) -> &'static str {
    match kind {
        "ext_proc" => "envoy.extensions.filters.http.ext_proc.v3.ExtProc",
        other => type_of(other),
    }
}

fn with_type(name: &str, body: Value) -> Value {
    let mut fields = Map::new();
    let name = format!("type.googleapis.com/{name}");
    fields.insert("@type".to_owned(), json!(name));
    if let Value::Object(body) = body {
        fields.extend(body);
    }
    Value::Object(fields)
}
