//! What guards the whole process: the overload manager, and a limit of the runtime layer.

use attache_service::config::{Node, envoy::message_of, json::Value as Json};

use super::{
    block::Block,
    dropped::{Effect, Findings},
    output::{self, Output},
};
use crate::config::Overload;

const CONNECTIONS: &str =
    "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig";
const HEAP: &str = "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig";
const REFUSE: &str = "envoy.overload_actions.stop_accepting_requests";
const LAYER_LIMIT: [&str; 2] = ["overload", "global_downstream_max_connections"];

/// What there is to say at the top of our file.
#[derive(Debug, Default)]
pub(super) struct Converted {
    /// `overload`.
    pub(super) overload: Option<Json>,
    /// `max_active_downstream_connections`.
    pub(super) max_connections: Option<Json>,
}

/// Reads the overload manager, and the runtime layers for the limit that older files have there.
pub(super) fn convert(bootstrap: &mut Block<'_>, found: &mut Findings) -> Converted {
    let mut converted = Converted::default();
    if let Some(node) = bootstrap.take("overload_manager") {
        manager(node, &mut converted, found);
    }
    if let Some(mut runtime) = bootstrap.block("layered_runtime", found) {
        for layer in runtime.list("layers") {
            self::layer(layer, &mut converted, found);
        }
    }
    converted
}

fn manager(node: &Node, converted: &mut Converted, found: &mut Findings) {
    let Some(mut manager) = Block::open(node, found) else {
        return;
    };
    let mut heap = None;
    for monitor in manager.list("resource_monitors") {
        let config = monitor.get("typed_config");
        let name = monitor.get("name").and_then(Node::text).unwrap_or_default();
        match (config, config.and_then(message_of)) {
            (Some(config), Some(CONNECTIONS)) => {
                let Some(mut config) = Block::open(config, found) else {
                    continue;
                };
                let limit = config.take("max_active_downstream_connections");
                limited(limit, converted);
                config.finish(Effect::Behaviour, found);
            }
            (Some(config), Some(HEAP)) => {
                if let Some(mut config) = Block::open(config, found) {
                    let size = config.take("max_heap_size_bytes");
                    heap = size.map(|size| (name, size));
                    config.finish(Effect::Behaviour, found);
                }
            }
            _ => {
                let why = format!("what `{name}` watches is not watched here");
                found.push(monitor, Effect::Protection, why);
            }
        }
    }
    let interval = manager.take("refresh_interval");
    let mut overload = Output::default();
    for action in manager.list("actions") {
        let share = heap.and_then(|(monitor, _)| threshold(action, monitor));
        match (share, heap) {
            (Some(share), Some((_, size))) if overload.is_empty() => {
                let bytes = size.text().and_then(|text| text.parse::<f64>().ok());
                let bytes = bytes.unwrap_or_default() * share;
                // Heaps are smaller than what a double counts exactly.
                overload.text("max_memory", format!("{}", bytes as u64), &size.span);
            }
            _ => {
                let why = "memory is watched here to refuse requests from one threshold on, and \
                    for nothing else";
                found.push(action, Effect::Protection, why);
            }
        }
    }
    if let Some(interval) = interval.filter(|_| !overload.is_empty()) {
        overload.put("refresh_interval", interval.clone());
    }
    manager.finish(Effect::Behaviour, found);
    if !overload.is_empty() {
        let what = "all of it";
        converted.overload = output::decode::<Overload>(
            &overload.into_node(),
            node,
            what,
            Effect::Protection,
            found,
        );
    }
}

/// The share of a monitor's resource from which this action refuses requests, if that is all.
fn threshold(action: &Node, monitor: &str) -> Option<f64> {
    let name = action.get("name").and_then(Node::text);
    let [trigger] = action.get("triggers").and_then(Node::as_seq)? else {
        return None;
    };
    let of = trigger.get("name").and_then(Node::text);
    if name != Some(REFUSE) || of != Some(monitor) {
        return None;
    }
    let value = trigger.get("threshold")?.get("value")?.text()?;
    value
        .parse()
        .ok()
        .filter(|share| *share > 0.0 && *share <= 1.0)
}

/// The layers above come later, and count.
fn layer(node: &Node, converted: &mut Converted, found: &mut Findings) {
    let Some(mut layer) = Block::open(node, found) else {
        return;
    };
    layer.take("name");
    let why = "there is no runtime layer";
    if let Some(values) = layer.take("static_layer") {
        let [outer, inner] = LAYER_LIMIT;
        let flat = format!("{outer}.{inner}");
        let nested = values.get(outer).and_then(|values| values.get(inner));
        limited(values.get(&flat).or(nested), converted);
        for entry in values.as_map().unwrap_or_default() {
            let name = &*entry.key.name;
            if name.starts_with("envoy.resource_limits") {
                let why = "connections of a listener are limited by its `limits` here";
                found.push(&entry.key, Effect::Protection, why);
            } else if name == outer {
                let inside = entry.value.as_map().unwrap_or_default();
                for other in inside.iter().filter(|other| &*other.key.name != inner) {
                    found.push(&other.key, Effect::Nothing, why);
                }
            } else if name != flat {
                found.push(&entry.key, Effect::Nothing, why);
            }
        }
    }
    layer.nothing(&["admin_layer"], why, found);
    layer.finish(Effect::Behaviour, found);
}

fn limited(limit: Option<&Node>, converted: &mut Converted) {
    let limit = limit
        .and_then(Node::text)
        .and_then(|text| text.parse::<u64>().ok());
    if let Some(limit) = limit {
        converted.max_connections = Some(limit.into());
    }
}
