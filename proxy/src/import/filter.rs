//! HTTP filters, and the names that routes know them by.

use std::collections::BTreeMap;

use attache_service::config::{Node, Span, envoy::message_of, json::Value as Json};

use super::{
    block::Block,
    dropped::{Effect, Findings},
    json_map,
    output::{self, text_at},
};
use crate::config::FilterConfig;

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

/// All filters so far: they have one namespace here, and one for each listener in Envoy.
#[derive(Debug, Default)]
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
            match output::decode::<FilterConfig>(node, Effect::Protection, found) {
                Some(filter) => {
                    let ours = self.add(name, filter);
                    chain.order.push(text_at(&ours, &node.span));
                    chain.names.insert(name.to_owned(), ours);
                }
                None => {
                    let why = format!("the filter `{name}` is left out: what it did is not done");
                    found.push(node, Effect::Protection, why);
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
                            found.push(at, Effect::Protection, why);
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
