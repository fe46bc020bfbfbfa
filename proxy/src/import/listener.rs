//! Listeners: Envoy's have chains, ours have one.

use attache_service::config::{Node, envoy::message_of, json::Value as Json};

use super::{
    address,
    block::Block,
    connection_manager::{self, Beside},
    dropped::{Effect, Findings},
    filter::Filters,
    output::{self, Output},
    tls,
};
use crate::config::Listener;

const CONNECTION_MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

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
    let address = address::text(listener.take("address")?, found)?;
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
    listener_filters(&mut listener, &mut out, found);
    if let Some(limit) = listener.take("per_connection_buffer_limit_bytes") {
        out.put("per_connection_buffer_limit_bytes", limit.clone());
    }
    let chains = listener.list("filter_chains");
    let default = listener.take("default_filter_chain");
    let mut beside = Beside::default();
    let mut chains = chains.iter().chain(default);
    if let Some(first) = chains.next() {
        beside = chain(first, &mut out, filters, found);
    }
    for further in chains {
        found.push(
            further,
            Effect::Protection,
            "a listener has one chain here: this one is left out",
        );
    }
    for entry in listener.rest() {
        if output::has_field::<Listener>(&entry.key.name) {
            out.put(&entry.key.name, entry.value.clone());
        } else {
            let why = format!("`{}` has no counterpart here", entry.key.name);
            found.push(&entry.key, Effect::Behaviour, why);
        }
    }
    let config = output::decode::<Listener>(&out.into_node(), Effect::Behaviour, found);
    if config.is_none() {
        found.push(node, Effect::Behaviour, "the whole listener is left out");
    }
    Some(Converted {
        config: config?,
        routes: beside.routes,
        tracing: beside.tracing,
    })
}

fn listener_filters(listener: &mut Block<'_>, out: &mut Output, found: &mut Findings) {
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
                    if let Some(allow) = config.take("allow_requests_without_proxy_protocol") {
                        settings.put("allow_requests_without_proxy_protocol", allow.clone());
                    }
                    config.nothing(&["stat_prefix"], "metrics go by the listener", found);
                    config.finish(Effect::Behaviour, found);
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
}

fn chain(node: &Node, out: &mut Output, filters: &mut Filters, found: &mut Findings) -> Beside {
    let mut beside = Beside::default();
    let Some(mut chain) = Block::open(node, found) else {
        return beside;
    };
    chain.nothing(&["name", "metadata"], "a listener has one chain", found);
    chain.drop(
        "filter_chain_match",
        Effect::Protection,
        "the one chain of a listener takes every connection",
        found,
    );
    if let Some(socket) = chain.take("transport_socket") {
        tls::listener(socket, out, found);
    }
    for filter in chain.list("filters") {
        let config = filter.get("typed_config");
        match config {
            Some(config) if message_of(config) == Some(CONNECTION_MANAGER) => {
                beside = connection_manager::convert(config, out, filters, found);
            }
            _ => found.push(
                filter,
                Effect::Protection,
                "only the HTTP connection manager has a counterpart here",
            ),
        }
    }
    chain.finish(Effect::Behaviour, found);
    beside
}
