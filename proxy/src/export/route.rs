//! Route tables.

use std::collections::BTreeMap;

use attache_service::config::{ConfigValue, Node, json};
use json::{Map, Value, json};

use super::{guards, resolved, set_file};
use crate::{
    config::{ClusterSpecifier, Config, Listener, Route, RouteSpecifier, Source, Step, Table},
    policies::encode_per_route,
};

/// Virtual hosts and routes are Envoy's already; only per-route settings need their types, and
/// files their places.
///
/// # Errors
/// The name of those that the control plane has.
pub(super) fn table<'c>(listener: &'c Listener, config: &'c Config) -> Result<Value, &'c str> {
    let specifier = listener.route_specifier.as_ref().map(|own| &own.value);
    let (name, table) = match specifier {
        None => ("routes", Table::from(config)),
        Some(RouteSpecifier::RouteConfig(own)) => {
            let name = own.name.as_deref();
            (
                name.unwrap_or(&listener.name.value),
                Table::from(own.as_ref()),
            )
        }
        Some(RouteSpecifier::RouteConfigName(name)) => {
            match config.route_configs.get(&name.value) {
                Some(table) => (name.as_str(), Table::from(table)),
                None => return Err(name),
            }
        }
    };
    let routes = |routes: &[Route]| -> Vec<Value> {
        routes.iter().filter_map(|r| route(r, config)).collect()
    };
    let mut hosts: Vec<_> = table
        .virtual_hosts
        .iter()
        .filter_map(|host| {
            let mut json = host.encode()?;
            let object = json.as_object_mut()?;
            object.insert("routes".to_owned(), routes(&host.routes).into());
            set_per_filter(object, &host.typed_per_filter_config, config);
            Some(json)
        })
        .collect();
    if !table.routes.is_empty() {
        hosts.push(json!({ "name": "default", "domains": ["*"], "routes": routes(table.routes) }));
    }
    let mut json = json!({
        "name": name,
        "virtual_hosts": hosts,
        "validate_clusters": table.validate_clusters,
        "ignore_port_in_host_matching": true,
    });
    let changes = [
        (
            "request_headers_to_add",
            table.request_headers_to_add.encode(),
        ),
        (
            "request_headers_to_remove",
            table.request_headers_to_remove.encode(),
        ),
        (
            "response_headers_to_add",
            table.response_headers_to_add.encode(),
        ),
        (
            "response_headers_to_remove",
            table.response_headers_to_remove.encode(),
        ),
        (
            "most_specific_header_mutations_wins",
            table.most_specific_header_mutations_wins.encode(),
        ),
        (
            "request_mirror_policies",
            table.request_mirror_policies.encode(),
        ),
    ];
    for (name, value) in changes {
        if let Some(value) = value {
            json[name] = value;
        }
    }
    if let Some(most) = table.max_direct_response_body_size_bytes {
        json["max_direct_response_body_size_bytes"] = most.bytes().into();
    }
    Ok(json)
}

fn route(route: &Route, config: &Config) -> Option<Value> {
    let mut json = route.encode()?;
    guards::of_route(route, &mut json);
    let object = json.as_object_mut()?;
    set_per_filter(object, &route.typed_per_filter_config, config);
    match &route.action {
        Step::Route(action) => {
            if let ClusterSpecifier::WeightedClusters(weighted) = &action.cluster {
                let clusters = json.pointer_mut("/route/weighted_clusters/clusters")?;
                let clusters = clusters.as_array_mut()?.iter_mut();
                for (json, raw) in clusters.zip(&weighted.clusters.value) {
                    set_per_filter(json.as_object_mut()?, &raw.typed_per_filter_config, config);
                }
            }
        }
        Step::DirectResponse(direct) => {
            let body = direct.body.as_ref();
            if let Some(Source::Filename(path)) = body.map(|body| &body.source) {
                *json.pointer_mut("/direct_response/body/filename")? = json!(resolved(path));
            }
            let format = direct.body_format.as_ref();
            set_file(&mut json["direct_response"], "body_format", format);
        }
        Step::Redirect(_) => {}
    }
    Some(json)
}

/// Gives the settings of filters their types.
fn set_per_filter(
    object: &mut Map<String, Value>,
    settings: &BTreeMap<String, Node>,
    config: &Config,
) {
    object.remove("typed_per_filter_config");
    if let Some(settings) = per_filter(settings, config) {
        object.insert("typed_per_filter_config".to_owned(), settings);
    }
}

fn per_filter(settings: &BTreeMap<String, Node>, config: &Config) -> Option<Value> {
    let encoded = settings.iter().filter_map(|(name, node)| {
        let filter = config.filters.get(name)?;
        Some((name.clone(), encode_per_route(&filter.value.policy, node)?))
    });
    let encoded: Map<_, _> = encoded.collect();
    (!encoded.is_empty()).then_some(Value::Object(encoded))
}
