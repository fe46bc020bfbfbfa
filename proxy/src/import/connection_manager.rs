//! The HTTP connection manager: with its filter chain, a listener of ours.

use std::collections::BTreeMap;

use attache_service::config::{Node, Span, parse_duration};

use super::{
    access_log,
    block::Block,
    discovery,
    dropped::{Effect, Findings},
    filter::Filters,
    listener::Routes,
    output::{self, Output},
    route,
};
use crate::config::{CommonHttpProtocolOptions, LimitsConfig, Listener};

/// What a connection manager has that is no part of its listener here.
#[derive(Default)]
pub(super) struct Beside {
    pub(super) routes: Option<Routes>,
    /// Its traces, as written.
    pub(super) tracing: Option<Node>,
}

/// Reads a connection manager into the listener that `out` becomes.
pub(super) fn convert(
    node: &Node,
    out: &mut Output,
    filters: &mut Filters,
    found: &mut Findings,
) -> Beside {
    let Some(mut manager) = Block::open(node, found) else {
        return Beside::default();
    };
    if let Some(codec) = manager.take("codec_type")
        && codec.text() != Some("AUTO")
    {
        out.put("codec_type", codec.clone());
    }
    let tracing = manager.take("tracing").cloned();
    manager.nothing(&["stat_prefix"], "metrics go by the listener's name", found);
    unlike_ours(&mut manager, out, &node.span);
    limits(&mut manager, out, found);
    upgrades(&mut manager, out, found);
    let logs = manager.list("access_log");
    if !logs.is_empty() {
        out.put("access_log", access_log::convert(logs, found));
    }
    if let Some(transformation) = manager.take("server_header_transformation") {
        match transformation.text() {
            Some("PASS_THROUGH") => {}
            _ if output::has_field::<Listener>("server_header_transformation") => {
                out.put("server_header_transformation", transformation.clone());
            }
            _ => found.push(
                transformation,
                Effect::Behaviour,
                "the header `server` is passed on as the upstream wrote it",
            ),
        }
    } else {
        found.push(
            node,
            Effect::Nothing,
            "the header `server` is passed on as the upstream wrote it; Envoy would replace it",
        );
    }
    let chain = filters.chain(manager.list("http_filters"), found);
    if !chain.order.is_empty() {
        out.put("filters", output::list(chain.order.clone()));
    }
    let routes = routes(&mut manager, &chain.names, found);
    for entry in manager.rest() {
        if output::has_field::<Listener>(&entry.key.name) {
            out.put(&entry.key.name, entry.value.clone());
        } else {
            let effect = match &*entry.key.name {
                "early_header_mutation_extensions" => Effect::Protection,
                _ => Effect::Behaviour,
            };
            let why = format!("`{}` has no counterpart here", entry.key.name);
            found.push(&entry.key, effect, why);
        }
    }
    Beside { routes, tracing }
}

/// What Envoy and we do otherwise when nothing is said.
fn unlike_ours(manager: &mut Block<'_>, out: &mut Output, at: &Span) {
    for name in ["use_remote_address", "normalize_path"] {
        out.flag(name, manager.flag(name).unwrap_or(false), at);
    }
    if let Some(action) = manager.take("path_with_escaped_slashes_action")
        && action.text() != Some("IMPLEMENTATION_SPECIFIC_DEFAULT")
    {
        out.put("path_with_escaped_slashes_action", action.clone());
    }
}

/// Bounds stand in four places there, and in one here.
fn limits(manager: &mut Block<'_>, out: &mut Output, found: &mut Findings) {
    let mut limits = Output::default();
    match manager.take("max_request_headers_kb") {
        Some(kb) => {
            let size = format!("{}KiB", kb.text().unwrap_or_default());
            limits.text("max_header_bytes", size, &kb.span);
        }
        None => limits.text("max_header_bytes", "60KiB", &Span::none()),
    }
    let timeout = manager.take("request_headers_timeout");
    let what = "on how long a head takes here: 10s";
    if let Some(timeout) = bound(timeout, what, Effect::Nothing, found) {
        limits.put("header_timeout", timeout.clone());
    }
    let timeout = manager.take("stream_idle_timeout");
    let what = "on silent bodies here: 5m";
    if let Some(timeout) = bound(timeout, what, Effect::Behaviour, found) {
        limits.put("body_timeout", timeout.clone());
        limits.put("write_timeout", timeout.clone());
    }
    let moved = |block: &mut Block<'_>, from: &str, to: &str, limits: &mut Output| {
        if let Some(value) = block.take(from) {
            limits.put(to, value.clone());
        }
    };
    if let Some(mut common) = manager.block("common_http_protocol_options", found) {
        moved(&mut common, "max_headers_count", "max_headers", &mut limits);
        let timeout = common.take("idle_timeout");
        if let Some(timeout) = bound(timeout, UNUSED, Effect::Nothing, found) {
            limits.put("idle_timeout", timeout.clone());
        }
        // 0 is no bound there, as nothing is here.
        let requests = common.take("max_requests_per_connection");
        if let Some(requests) = requests.filter(|requests| requests.text() != Some("0")) {
            limits.put("max_requests_per_connection", requests.clone());
        }
        carry(&mut common, &mut limits, out, found);
    }
    let mut options = Output::default();
    if let Some(mut http2) = manager.block("http2_protocol_options", found) {
        moved(
            &mut http2,
            "max_concurrent_streams",
            "max_concurrent_streams",
            &mut limits,
        );
        moved(&mut http2, "allow_connect", "allow_connect", &mut options);
        http2.nothing(
            &[
                "initial_stream_window_size",
                "initial_connection_window_size",
            ],
            "windows are chosen by the proxy",
            found,
        );
        http2.finish(Effect::Behaviour, found);
    }
    if let Some(mut http1) = manager.block("http_protocol_options", found) {
        http1.nothing(&["enable_trailers", "accept_http_10"], "always on", found);
        http1.finish(Effect::Behaviour, found);
    }
    out.map("limits", limits);
    out.map("http2_protocol_options", options);
}

/// What a cluster and a listener have where Envoy keeps unused connections for ever.
pub(super) const UNUSED: &str = "on unused connections here: 1h";

/// A timeout, unless it is 0, which is none in Envoy; `effect` is what our bound means then.
pub(super) fn bound<'n>(
    timeout: Option<&'n Node>,
    what: &str,
    effect: Effect,
    found: &mut Findings,
) -> Option<&'n Node> {
    let timeout = timeout?;
    if parse_duration(timeout.text().unwrap_or_default()).is_some_and(|length| length.is_zero()) {
        let why = format!("there is always a bound {what}");
        found.push(timeout, effect, why);
        return None;
    }
    Some(timeout)
}

/// What is a limit, an option or a field of the listener under the same name.
fn carry(block: &mut Block<'_>, limits: &mut Output, out: &mut Output, found: &mut Findings) {
    let mut common = Output::default();
    for entry in block.rest() {
        let name = &*entry.key.name;
        if output::has_field::<LimitsConfig>(name) {
            limits.put(name, entry.value.clone());
        } else if output::has_field::<CommonHttpProtocolOptions>(name) {
            common.put(name, entry.value.clone());
        } else if output::has_field::<Listener>(name) {
            out.put(name, entry.value.clone());
        } else {
            let why = format!("`{name}` has no counterpart here");
            found.push(&entry.key, Effect::Behaviour, why);
        }
    }
    out.map("common_http_protocol_options", common);
}

fn upgrades(manager: &mut Block<'_>, out: &mut Output, found: &mut Findings) {
    let mut names = Vec::new();
    for node in manager.list("upgrade_configs") {
        let Some(mut upgrade) = Block::open(node, found) else {
            continue;
        };
        let enabled = upgrade.flag("enabled") != Some(false);
        if let Some(name) = upgrade.take("upgrade_type") {
            if name
                .text()
                .is_some_and(|name| name.eq_ignore_ascii_case("connect"))
            {
                found.push(
                    name,
                    Effect::Behaviour,
                    "`CONNECT` is allowed by `upgrade_configs` of a route",
                );
            } else if enabled {
                names.push(name.clone());
            }
        }
        upgrade.finish(Effect::Protection, found);
    }
    out.put("upgrades", output::list(names));
}

fn routes(
    manager: &mut Block<'_>,
    names: &BTreeMap<String, String>,
    found: &mut Findings,
) -> Option<Routes> {
    if let Some(mut rds) = manager.block("rds", found) {
        let name = rds.text("route_config_name").unwrap_or_default().to_owned();
        if let Some(mut source) = rds.block("config_source", found) {
            discovery::aggregated(&mut source, found);
        }
        rds.finish(Effect::Behaviour, found);
        return Some(Routes::Discovered(name));
    }
    let table = manager.take("route_config")?;
    Some(Routes::Here(route::table(table, Some(names), found)?))
}
