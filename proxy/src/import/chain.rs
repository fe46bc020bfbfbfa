//! Filter chains: those that pass TLS on by the server name, and the one for everything else.

use attache_service::config::{Node, Value, envoy::message_of};

use super::{
    block::Block,
    connection_manager::{self, Beside},
    dropped::{Effect, Findings},
    filter::Filters,
    output::{self, Output},
    sni, tcp_proxy, tls,
};

const CONNECTION_MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

/// Network filters that only count and label.
const STATISTICS: [&str; 3] = [
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "io.istio.network.peer_metadata.Config",
    "stats.PluginConfig",
];

/// Which peers may connect, where a PROXY protocol says who the clients are.
const PEERS: &str = "direct_source_prefix_ranges";

/// What the chains of a listener do with its connections.
pub(super) enum Served {
    /// They are read as HTTP.
    Http(Beside),
    /// They are passed on.
    Connections,
    /// Nothing that can be done here. A listener of ours without a word would serve HTTP.
    Nothing,
}

/// Reads the chains of a listener into the listener that `out` becomes. `peers_are_read` says that
/// [`peers`] were taken.
pub(super) fn convert(
    chains: &[&Node],
    peers_are_read: bool,
    out: &mut Output,
    filters: &mut Filters,
    found: &mut Findings,
) -> Served {
    let (by_name, others): (Vec<_>, Vec<_>) =
        chains.iter().copied().partition(|chain| passes_on(chain));
    let mut served = Served::Nothing;
    let shared = sni::shared(&others, found);
    let mut others = others.into_iter();
    let other = others.next();
    if let Some(other) = other
        && !by_name.is_empty()
        && other.get("transport_socket").is_none_or(Node::is_null)
        && serves_http(other)
    {
        let why = "beside connections that are passed on unopened, HTTP is served over TLS only";
        found.push(other, Effect::Behaviour, why);
    } else if let Some(other) = other {
        let all = shared.as_ref().unwrap_or(other);
        served = for_the_rest(all, peers_are_read, out, filters, found);
        if matches!(served, Served::Nothing) {
            return served;
        }
    }
    for further in others.filter(|_| shared.is_none()) {
        let why = "a listener has one chain here besides those that pass TLS on by the server \
            name: this one is left out";
        found.push(further, Effect::Protection, why);
    }
    let mut passed_on = Vec::new();
    for chain in by_name {
        let Some(one) = by_server_name(chain, peers_are_read, found) else {
            continue;
        };
        if passed_on.is_empty()
            && other.is_none()
            && let Some(logs) = &one.logs
        {
            out.put("access_log", logs.clone());
        }
        let logs = out.get("access_log").map(Node::to_json);
        if logs != one.logs.as_ref().map(Node::to_json) {
            let why = "the access logs of a listener are the same for all its connections here";
            found.push(chain, Effect::Behaviour, why);
        }
        passed_on.push(one.to.into_node());
    }
    if !passed_on.is_empty() {
        out.put("tls_passthrough", output::list(passed_on));
        if matches!(served, Served::Nothing) {
            served = Served::Connections;
        }
    }
    served
}

/// Whether a chain ends in HTTP.
pub(super) fn serves_http(chain: &Node) -> bool {
    let filters = chain.get("filters").and_then(Node::as_seq);
    let mut filters = filters.unwrap_or_default().iter();
    filters.any(|filter| message(filter) == Some(CONNECTION_MANAGER))
}

/// The networks whose peers may connect, as texts, where all chains name the same.
pub(super) fn peers(chains: &[&Node]) -> Option<Vec<Node>> {
    let of = |chain: &Node| chain.get("filter_chain_match")?.get(PEERS).cloned();
    let first = of(chains.first()?)?;
    let same = |chain: &&Node| of(chain).is_some_and(|own| own.to_json() == first.to_json());
    if !chains.iter().all(same) {
        return None;
    }
    let nets = first.as_seq()?.iter().map(|net| {
        let address = net.get("address_prefix").and_then(Node::text)?;
        let length = net.get("prefix_len").and_then(Node::text).unwrap_or("0");
        Some(output::text_at(format!("{address}/{length}"), &net.span))
    });
    nets.collect()
}

/// Whether a chain is for server names, and passes connections on unopened.
fn passes_on(chain: &Node) -> bool {
    let names = chain
        .get("filter_chain_match")
        .and_then(|wanted| wanted.get("server_names"));
    let filters = chain.get("filters").and_then(Node::as_seq);
    let mut filters = filters.unwrap_or_default().iter();
    names.is_some_and(|names| !names.is_null())
        && chain.get("transport_socket").is_none_or(Node::is_null)
        && filters.any(|filter| message(filter) == Some(TCP_PROXY))
}

fn message(filter: &Node) -> Option<&str> {
    message_of(filter.get("typed_config")?)
}

/// The one filter that ends a chain.
enum Last<'n> {
    Http(&'n Node),
    Tcp(&'n Node),
}

fn last<'n>(chain: &mut Block<'n>, found: &mut Findings) -> Option<Last<'n>> {
    let mut last = None;
    for filter in chain.list("filters") {
        let config = filter.get("typed_config");
        match (config, config.and_then(message_of)) {
            (Some(config), Some(CONNECTION_MANAGER)) if last.is_none() => {
                last = Some(Last::Http(config));
            }
            (Some(config), Some(TCP_PROXY)) if last.is_none() => last = Some(Last::Tcp(config)),
            (_, message) => found.push(
                filter,
                effect_without(message.unwrap_or_default()),
                "only the HTTP connection manager or the TCP proxy, one for each chain, has a \
                    counterpart here",
            ),
        }
    }
    last
}

/// What it means that a network filter of this type is missing: one that is not known may protect.
fn effect_without(message: &str) -> Effect {
    match STATISTICS.contains(&message) {
        true => Effect::Behaviour,
        false => Effect::Protection,
    }
}

fn by_server_name(
    node: &Node,
    peers_are_read: bool,
    found: &mut Findings,
) -> Option<tcp_proxy::Converted> {
    let mut chain = Block::open(node, found)?;
    chain.nothing(&["name", "metadata"], "chains have no names here", found);
    let mut wanted = chain.block("filter_chain_match", found)?;
    let names = wanted.take("server_names");
    match wanted.take("transport_protocol") {
        Some(protocol) if !matches!(protocol.text(), Some("tls" | "")) => {
            let why = "only TLS connections ask for a server name";
            found.push(protocol, Effect::Protection, why);
        }
        _ => {}
    }
    ends(wanted, peers_are_read, found);
    let last = last(&mut chain, found);
    chain.finish(Effect::Behaviour, found);
    let Some(Last::Tcp(config)) = last else {
        return None;
    };
    let mut converted = tcp_proxy::convert(config, found);
    if let Some(names) = names {
        converted.to.put("server_names", names.clone());
    }
    Some(converted)
}

fn for_the_rest(
    node: &Node,
    peers_are_read: bool,
    out: &mut Output,
    filters: &mut Filters,
    found: &mut Findings,
) -> Served {
    let Some(mut chain) = Block::open(node, found) else {
        return Served::Nothing;
    };
    chain.nothing(&["name", "metadata"], "chains have no names here", found);
    let socket = chain.take("transport_socket");
    if let Some(mut wanted) = chain.block("filter_chain_match", found) {
        // Without TLS there is none to tell apart.
        let tls = socket.is_some();
        match wanted.take("transport_protocol") {
            Some(protocol) if !(tls && protocol.text() == Some("tls")) => found.push(
                protocol,
                Effect::Protection,
                "this chain of a listener takes every connection",
            ),
            _ => {}
        }
        ends(wanted, peers_are_read, found);
    }
    if let Some(socket) = socket
        && !tls::listener(socket, out, found)
    {
        return Served::Nothing;
    }
    let served = match last(&mut chain, found) {
        Some(Last::Http(config)) => {
            Served::Http(connection_manager::convert(config, out, filters, found))
        }
        Some(Last::Tcp(config)) => {
            let tcp_proxy::Converted { to, logs } = tcp_proxy::convert(config, found);
            out.put("tcp", to.into_node());
            if let Some(logs) = logs {
                out.put("access_log", logs);
            }
            Served::Connections
        }
        None => Served::Nothing,
    };
    chain.finish(Effect::Behaviour, found);
    served
}

/// Ends a match: connections cannot be told apart by what else stands there.
fn ends(mut wanted: Block<'_>, peers_are_read: bool, found: &mut Findings) {
    if peers_are_read {
        wanted.take(PEERS);
    }
    for entry in wanted.rest() {
        // An empty list is none.
        if !matches!(&entry.value.value, Value::Seq(items) if items.is_empty()) {
            let why = format!(
                "this chain of a listener does not go by `{}`",
                entry.key.name
            );
            found.push(&entry.key, Effect::Protection, why);
        }
    }
}
