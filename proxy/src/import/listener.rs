//! Listeners.

use attache_service::config::{Node, envoy::message_of, json::Value as Json, parse_duration};

use super::{
    address,
    block::Block,
    chain,
    connection_manager::Beside,
    dropped::{Effect, Findings},
    filter::Filters,
    output::{self, Output},
};
use crate::config::Listener;

/// A listener of ours.
pub(super) struct Converted {
    /// As `listeners` holds it.
    pub(super) config: Json,
    /// Its routes.
    pub(super) routes: Option<Routes>,
    /// Its traces, as Envoy has them.
    pub(super) tracing: Option<Node>,
}

/// Where the routes of a listener are.
pub(super) enum Routes {
    /// In the same resource: a table.
    Here(Json),
    /// With the control plane, under this name.
    Discovered(String),
}

/// Reads a listener; `None` after it was dropped as a whole.
pub(super) fn convert(
    node: &Node,
    filters: &mut Filters,
    found: &mut Findings,
) -> Option<Converted> {
    let mut listener = Block::open(node, found)?;
    let mut out = Output::default();
    let Some(address) = listener.take("address") else {
        let why = "it has no address of its own: the whole listener is left out";
        found.push(node, Effect::Behaviour, why);
        return None;
    };
    let address = address::text(address, found)?;
    if listener.flag("bind_to_port") == Some(false) {
        let why = "connections come to it from other listeners only: the whole listener is left \
            out";
        found.push(node, Effect::Behaviour, why);
        return None;
    }
    match listener.take("name") {
        Some(name) => out.put("name", name.clone()),
        None => out.text("name", &address, &node.span),
    }
    out.text("address", address, &node.span);
    listener.nothing(
        &[
            "stat_prefix",
            "traffic_direction",
            "enable_reuse_port",
            "metadata",
        ],
        "nothing here goes by it",
        found,
    );
    let chains = listener.list("filter_chains").iter();
    let chains: Vec<_> = chains
        .chain(listener.take("default_filter_chain"))
        .collect();
    let peers = listener_filters(&mut listener, chain::peers(&chains), &mut out, found);
    if let Some(limit) = listener.take("per_connection_buffer_limit_bytes") {
        out.put("per_connection_buffer_limit_bytes", limit.clone());
    }
    let why = "connections are logged where they are served: by what serves HTTP, or passes on";
    listener.drop("access_log", Effect::Behaviour, why, found);
    let beside = chain::convert(&chains, peers, &mut out, filters, found);
    first_bytes(&mut listener, &mut out, found);
    for entry in listener.rest() {
        if output::has_field::<Listener>(&entry.key.name) {
            out.put(&entry.key.name, entry.value.clone());
        } else {
            let why = format!("`{}` has no counterpart here", entry.key.name);
            found.push(&entry.key, Effect::Behaviour, why);
        }
    }
    let (routes, tracing) = match beside {
        chain::Served::Http(Beside { routes, tracing }) => {
            if routes.is_none() {
                let why = "it is not said which routes there are: the whole listener is left out";
                found.push(node, Effect::Behaviour, why);
                return None;
            }
            (routes, tracing)
        }
        chain::Served::Connections => (None, None),
        chain::Served::Nothing => {
            let why = "nothing can be done here with its connections: the whole listener is left \
                out";
            found.push(node, Effect::Behaviour, why);
            return None;
        }
    };
    let what = "the whole listener";
    let config =
        output::decode::<Listener>(&out.into_node(), node, what, Effect::Behaviour, found)?;
    Some(Converted {
        config,
        routes,
        tracing,
    })
}

/// The first bytes of a connection may take as long as a request's head here.
fn first_bytes(listener: &mut Block<'_>, out: &mut Output, found: &mut Findings) {
    let Some(timeout) = listener.take("listener_filters_timeout") else {
        return;
    };
    let waits = out.get("proxy_protocol").is_some() || out.get("tls_passthrough").is_some();
    let length = |node: &Node| parse_duration(node.text().unwrap_or_default());
    let head = out
        .get("limits")
        .and_then(|limits| limits.get("header_timeout"));
    match head {
        Some(head) if length(head) == length(timeout) => {}
        None if length(timeout).is_some_and(|length| !length.is_zero()) => {
            out.put_in("limits", "header_timeout", timeout.clone());
        }
        _ if waits => found.push(
            timeout,
            Effect::Behaviour,
            "the beginning of a connection may take `limits.header_timeout`, as the head of a request",
        ),
        _ => found.push(
            timeout,
            Effect::Nothing,
            "the protocol is detected without listener filters",
        ),
    }
}

/// Reads what looks at connections first; gives whether `peers` are carried over.
fn listener_filters(
    listener: &mut Block<'_>,
    peers: Option<Vec<Node>>,
    out: &mut Output,
    found: &mut Findings,
) -> bool {
    let mut carried = false;
    for node in listener.list("listener_filters") {
        let message = node.get("typed_config").and_then(message_of);
        match message.and_then(|message| message.rsplit_once('.')) {
            Some((_, "TlsInspector" | "HttpInspector")) => found.push(
                node,
                Effect::Nothing,
                "the protocol is detected without listener filters",
            ),
            Some((_, "ProxyProtocol")) if output::has_field::<Listener>("proxy_protocol") => {
                let mut settings = Output::default();
                let config = node.get("typed_config");
                if let Some(mut config) = config.and_then(|config| Block::open(config, found)) {
                    for name in [
                        "allow_requests_without_proxy_protocol",
                        "disallowed_versions",
                    ] {
                        if let Some(value) = config.take(name) {
                            settings.put(name, value.clone());
                        }
                    }
                    config.nothing(&["stat_prefix"], "metrics go by the listener", found);
                    config.finish(Effect::Behaviour, found);
                }
                if let Some(peers) = &peers {
                    settings.put("from", output::list(peers.clone()));
                    carried = true;
                }
                out.put("proxy_protocol", settings.into_node());
            }
            _ => found.push(
                node,
                Effect::Protection,
                "this listener filter has no counterpart here",
            ),
        }
    }
    carried
}
