//! Chains for server names that differ in nothing but their certificates: one listener with several.

use attache_service::config::{Entry, Key, Node, Value, json::Value as Json};

use super::dropped::{Effect, Findings};

const SOCKET: [&str; 4] = [
    "transport_socket",
    "typed_config",
    "common_tls_context",
    "tls_certificates",
];
const NAMES: [&str; 2] = ["filter_chain_match", "server_names"];

/// The one chain that chains with HTTP over TLS are together, with the certificates of all; `None`
/// when they differ in more, or when there is nothing to be put together.
pub(super) fn shared(chains: &[&Node], found: &mut Findings) -> Option<Node> {
    let (first, others) = chains.split_first()?;
    let mut names = chains.iter().filter_map(|chain| at(chain, &NAMES));
    let named = names.next()?;
    let content = content(first);
    let certified = |chain: &&Node| {
        super::chain::serves_http(chain) && at(chain, &SOCKET).is_some_and(|c| c.as_seq().is_some())
    };
    if !chains.iter().all(certified) || others.iter().any(|other| self::content(other) != content) {
        return None;
    }
    let mut all = Vec::new();
    for certificate in chains
        .iter()
        .filter_map(|chain| at(chain, &SOCKET)?.as_seq())
        .flatten()
    {
        if all
            .iter()
            .all(|known: &Node| known.to_json() != certificate.to_json())
        {
            all.push(certificate.clone());
        }
    }
    found.push(
        named,
        Effect::Behaviour,
        "whoever asks for another server name is served too, with the first certificate",
    );
    let mut shared = without(first, &NAMES);
    put(&mut shared, &SOCKET, &mut |certificates| {
        certificates.value = Value::Seq(std::mem::take(&mut all));
    });
    Some(shared)
}

/// What a chain says besides names and certificates.
fn content(chain: &Node) -> Json {
    let mut rest = without(&without(chain, &NAMES), &SOCKET);
    if let Value::Map(entries) = &mut rest.value {
        entries.retain(
            |Entry {
                 key: Key { name, .. },
                 ..
             }| !matches!(&**name, "name" | "metadata"),
        );
    }
    let mut json = rest.to_json();
    let filters = json.get_mut("filters").and_then(Json::as_array_mut);
    for filter in filters.into_iter().flatten() {
        if let Some(config) = filter.get_mut("typed_config").and_then(Json::as_object_mut) {
            config.remove("stat_prefix");
        }
    }
    json
}

fn at<'n>(node: &'n Node, path: &[&str]) -> Option<&'n Node> {
    path.iter().try_fold(node, |node, name| node.get(name))
}

/// The same without what stands at a place.
fn without(node: &Node, path: &[&str]) -> Node {
    let mut node = node.clone();
    if let (Some((last, way)), Value::Map(_)) = (path.split_last(), &node.value) {
        put(&mut node, way, &mut |inner| {
            if let Value::Map(entries) = &mut inner.value {
                entries.retain(|entry| &*entry.key.name != *last);
            }
        });
    }
    node
}

/// Changes what stands at a place, if something does.
fn put(node: &mut Node, path: &[&str], change: &mut dyn FnMut(&mut Node)) {
    let Some((name, rest)) = path.split_first() else {
        return change(node);
    };
    if let Value::Map(entries) = &mut node.value {
        for entry in entries.iter_mut().filter(|entry| &*entry.key.name == *name) {
            put(&mut entry.value, rest, change);
        }
    }
}
