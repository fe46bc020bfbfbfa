//! HTTP filters, and the names that routes know them by.

use std::collections::BTreeMap;

use attache_service::config::{
    ConfigValue, Errors, Node, Span, envoy::message_of, json::Value as Json,
};

use super::{
    block::Block,
    dropped::{Effect, Findings},
    json_map,
    output::text_at,
};
use crate::config::FilterConfig;

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

/// Filters that neither refuse a request nor tell another filter what to refuse, by a part of the
/// name of their type.
const DECIDES_NOTHING: [&str; 19] = [
    "extensions.filters.http.bandwidth_limit.",
    "extensions.filters.http.cache.",
    "extensions.filters.http.compressor.",
    "extensions.filters.http.connect_grpc_bridge.",
    "extensions.filters.http.cors.",
    "extensions.filters.http.decompressor.",
    "extensions.filters.http.fault.",
    "extensions.filters.http.file_system_buffer.",
    "extensions.filters.http.grpc_http1_bridge.",
    "extensions.filters.http.grpc_http1_reverse_bridge.",
    "extensions.filters.http.grpc_json_transcoder.",
    "extensions.filters.http.grpc_stats.",
    "extensions.filters.http.health_check.",
    "extensions.filters.http.on_demand.",
    "extensions.filters.http.stateful_session.",
    "extensions.filters.http.tap.",
    "istio.envoy.config.filter.http.alpn.",
    "io.istio.http.peer_metadata.",
    "stats.PluginConfig",
];

/// All filters so far: they have one namespace here, and one for each listener in Envoy.
#[derive(Debug, Clone, Default)]
pub(super) struct Filters {
    known: json_map::Map,
}

/// The filters of one listener.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// Our names, in order.
    pub(super) order: Vec<Node>,
    /// Our name of each of Envoy's.
    pub(super) names: BTreeMap<String, String>,
}

impl Filters {
    pub(super) fn into_map(self) -> json_map::Map {
        self.known
    }

    /// Reads `http_filters`.
    pub(super) fn chain(&mut self, nodes: &[Node], found: &mut Findings) -> Chain {
        let mut chain = Chain::default();
        for node in nodes {
            let name = node.get("name").and_then(Node::text).unwrap_or_default();
            let config = node.get("typed_config");
            if config.and_then(message_of) == Some(ROUTER) {
                router(config, found);
                continue;
            }
            let mut errors = Errors::new();
            let decoded = FilterConfig::decode(node, &mut errors);
            match decoded.as_ref().and_then(FilterConfig::encode) {
                Some(filter) => {
                    found.refused(&errors, node, None, Effect::Protection);
                    let ours = self.add(name, filter);
                    chain.order.push(text_at(&ours, &node.span));
                    chain.names.insert(name.to_owned(), ours);
                }
                None => {
                    let reasons: Vec<_> = errors.iter().map(|error| error.message()).collect();
                    let why = format!(
                        "the filter `{name}` is left out, and what it did is not done: {}",
                        reasons.join("; ")
                    );
                    let message = config.and_then(message_of).unwrap_or_default();
                    found.push(node, effect_without(message), why);
                }
            }
        }
        chain
    }

    /// The name of a filter: its own, unless another has it.
    fn add(&mut self, name: &str, filter: Json) -> String {
        let mut ours = name.to_owned();
        let mut nth = 2;
        while self.known.get(&ours).is_some_and(|other| *other != filter) {
            ours = format!("{name}-{nth}");
            nth += 1;
        }
        self.known.insert(ours.clone(), filter);
        ours
    }
}

/// What it means that a filter of this type is missing: one that is not known may protect.
fn effect_without(message: &str) -> Effect {
    match DECIDES_NOTHING.iter().any(|kind| message.contains(kind)) {
        true => Effect::Behaviour,
        false => Effect::Protection,
    }
}

fn router(config: Option<&Node>, found: &mut Findings) {
    if let Some(mut router) = config.and_then(|config| Block::open(config, found)) {
        router.nothing(
            &["dynamic_stats", "start_child_span"],
            "there is nothing to choose",
            found,
        );
        router.finish(Effect::Behaviour, found);
    }
}

/// A part of a route table with the filters' names here; settings of filters that are not here
/// are dropped.
pub(super) fn renamed(node: &Node, names: &BTreeMap<String, String>, found: &mut Findings) -> Node {
    let mut node = node.clone();
    walk(&mut node, names, found);
    node
}

fn walk(node: &mut Node, names: &BTreeMap<String, String>, found: &mut Findings) {
    use attache_service::config::Value;
    match &mut node.value {
        Value::Map(entries) => {
            for entry in entries {
                if &*entry.key.name == "typed_per_filter_config"
                    && let Value::Map(settings) = &mut entry.value.value
                {
                    settings.retain_mut(|setting| match names.get(&*setting.key.name) {
                        Some(ours) => {
                            setting.key.name = ours.as_str().into();
                            true
                        }
                        None => {
                            let at: &Span = &setting.key.span;
                            let why = format!("there is no filter `{}` here", setting.key.name);
                            // What its absence means is said where it would stand; settings of a
                            // filter that is nowhere do nothing in Envoy either.
                            found.push(at, Effect::Nothing, why);
                            false
                        }
                    });
                } else {
                    walk(&mut entry.value, names, found);
                }
            }
        }
        Value::Seq(items) => {
            for item in items {
                walk(item, names, found);
            }
        }
        _ => {}
    }
}
