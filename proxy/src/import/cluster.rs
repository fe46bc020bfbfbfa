//! Clusters and their endpoints.

use attache_service::config::{Node, Span, Value, json::Value as Json};

use super::{
    address,
    block::Block,
    connection_manager::{UNUSED, bound},
    discovery,
    dropped::{Effect, Findings},
    output::{self, Output, text_at},
    tls,
};
use crate::config::{Cluster, CommonHttpProtocolOptions};

/// The header that names endpoints unless another is written.
const ORIGINAL_DST_HEADER: &str = "x-envoy-original-dst-host";

/// Options of HTTP/2 that make no request go another way.
const FRAMES: [&str; 9] = [
    "hpack_table_size",
    "enable_huffman_encoding",
    "use_oghttp2_codec",
    "max_metadata_size",
    "max_outbound_frames",
    "max_outbound_control_frames",
    "max_consecutive_inbound_frames_with_empty_payload",
    "max_inbound_priority_frames_per_stream",
    "max_inbound_window_update_frames_per_data_frame_sent",
];

/// Reads a cluster; `None` after it was dropped.
pub(super) fn convert(node: &Node, found: &mut Findings) -> Option<Json> {
    let mut cluster = Block::open(node, found)?;
    let mut out = Output::default();
    if let Some(name) = cluster.take("name") {
        out.put("name", name.clone());
    }
    match cluster.take("connect_timeout") {
        Some(timeout) => out.put("connect_timeout", timeout.clone()),
        None => out.text("connect_timeout", "5s", &node.span),
    }
    match cluster.take("lb_policy") {
        Some(policy) if policy.text() == Some("CLUSTER_PROVIDED") => {}
        Some(policy) => out.put("lb_policy", policy.clone()),
        None => out.text("lb_policy", "ROUND_ROBIN", &node.span),
    }
    http2(&mut cluster, &mut out, found);
    options(&mut cluster, &mut out, found);
    if let Some(socket) = cluster.take("transport_socket")
        && !tls::cluster(socket, &mut out, found)
    {
        return None;
    }
    if let Some(sockets) = cluster.take("transport_socket_matches") {
        let why = "TLS is the same for all endpoints here: the whole cluster is left out";
        found.push(sockets.head(), Effect::Protection, why);
        return None;
    }
    if !target(&mut cluster, node, &mut out, found) {
        return None;
    }
    cluster.nothing(
        &["alt_stat_name", "track_timeout_budgets", "respect_dns_ttl"],
        "nothing here goes by it",
        found,
    );
    breakers(&mut cluster, &mut out, found);
    for entry in cluster.rest() {
        if output::has_field::<Cluster>(&entry.key.name) {
            out.put(&entry.key.name, entry.value.clone());
        } else {
            let why = format!("`{}` has no counterpart here", entry.key.name);
            found.push(&entry.key, Effect::Behaviour, why);
        }
    }
    let what = "the whole cluster";
    output::decode::<Cluster>(&out.into_node(), node, what, Effect::Behaviour, found)
}

/// There is one priority here: bounds of others are left out.
fn breakers(cluster: &mut Block<'_>, out: &mut Output, found: &mut Findings) {
    let Some(written) = cluster.take("circuit_breakers") else {
        return;
    };
    let mut breakers = written.clone();
    if let Value::Map(entries) = &mut breakers.value {
        for entry in entries.iter_mut().filter(|e| &*e.key.name == "thresholds") {
            if let Value::Seq(thresholds) = &mut entry.value.value {
                thresholds.retain(|one| is_for_all(one, found));
            }
        }
    }
    out.put("circuit_breakers", breakers);
}

fn is_for_all(thresholds: &Node, found: &mut Findings) -> bool {
    match thresholds.get("priority") {
        Some(priority) if !matches!(priority.text(), Some("DEFAULT")) && !priority.is_null() => {
            let why = "all requests have the priority `DEFAULT` here: these bounds are left out";
            found.push(priority, Effect::Behaviour, why);
            false
        }
        _ => true,
    }
}

fn empty() -> Node {
    Node::new(Value::Map(Vec::new()))
}

/// How HTTP is spoken to it.
fn options(cluster: &mut Block<'_>, out: &mut Output, found: &mut Findings) {
    const HTTP: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let Some(mut all) = cluster.block("typed_extension_protocol_options", found) else {
        return;
    };
    if let Some(mut http) = all.block(HTTP, found) {
        if let Some(mut explicit) = http.block("explicit_http_config", found) {
            http2(&mut explicit, out, found);
            if let Some(mut http1) = explicit.block("http_protocol_options", found) {
                http1.nothing(&["enable_trailers"], "always on", found);
                http1.finish(Effect::Behaviour, found);
            }
            explicit.finish(Effect::Behaviour, found);
        }
        if let Some(mut common) = http.block("common_http_protocol_options", found) {
            let mut options = Output::default();
            if let Some(timeout) =
                bound(common.take("idle_timeout"), UNUSED, Effect::Nothing, found)
            {
                out.put("idle_timeout", timeout.clone());
            }
            for entry in common.rest() {
                if output::has_field::<Cluster>(&entry.key.name) {
                    out.put(&entry.key.name, entry.value.clone());
                } else if output::has_field::<CommonHttpProtocolOptions>(&entry.key.name) {
                    options.put(&entry.key.name, entry.value.clone());
                } else {
                    let why = format!("`{}` has no counterpart here", entry.key.name);
                    found.push(&entry.key, Effect::Behaviour, why);
                }
            }
            out.map("common_http_protocol_options", options);
        }
        http.finish(Effect::Behaviour, found);
    }
    all.finish(Effect::Behaviour, found);
}

/// Reads the options that say that HTTP/2 is spoken.
fn http2(block: &mut Block<'_>, out: &mut Output, found: &mut Findings) {
    if let Some(mut http2) = block.block("http2_protocol_options", found) {
        out.put("http2", empty());
        http2.nothing(
            &[
                "initial_stream_window_size",
                "initial_connection_window_size",
            ],
            "windows are chosen by the proxy",
            found,
        );
        let why = "how frames are counted and packed is the proxy's";
        http2.nothing(&FRAMES, why, found);
        let why = "a connection carries as many requests as the endpoint allows";
        http2.nothing(&["max_concurrent_streams"], why, found);
        http2.finish(Effect::Behaviour, found);
    }
}

/// Reads where the endpoints are; whether there is a way to say it.
fn target(cluster: &mut Block<'_>, node: &Node, out: &mut Output, found: &mut Findings) -> bool {
    let kind = cluster.text("type").unwrap_or("STATIC");
    match kind {
        "STATIC" | "STRICT_DNS" | "LOGICAL_DNS" => {
            let endpoints = match cluster.take("load_assignment") {
                Some(assignment) => self::assignment(assignment, found),
                None => Vec::new(),
            };
            out.put("endpoints", output::list(endpoints));
            if kind == "LOGICAL_DNS" {
                out.text("dns_type", kind, &node.span);
            }
            if kind != "STATIC" && node.get("dns_lookup_family").is_none() {
                out.text("dns_lookup_family", "AUTO", &node.span);
            }
        }
        "EDS" => eds(cluster, out, found),
        "ORIGINAL_DST" => return original_dst(cluster, node, out, found),
        other => {
            let at = node
                .get("type")
                .or(node.get("cluster_type"))
                .unwrap_or(node);
            let why = format!(
                "clusters of the type {other} have no counterpart here: the whole cluster is left \
                    out"
            );
            found.push(at, Effect::Behaviour, why);
            return false;
        }
    }
    true
}

/// Endpoints that requests name. Where the socket says it, there is nothing to go by here.
fn original_dst(
    cluster: &mut Block<'_>,
    node: &Node,
    out: &mut Output,
    found: &mut Findings,
) -> bool {
    let mut settings = Output::default();
    let config = cluster.take("original_dst_lb_config");
    if let Some(mut config) = config.and_then(|config| Block::open(config, found)) {
        if config.flag("use_http_header") == Some(true) {
            match config.take("http_header_name") {
                Some(name) => settings.put("http_header_name", name.clone()),
                None => settings.text("http_header_name", ORIGINAL_DST_HEADER, &node.span),
            }
        }
        if let Some(key) = config.take("metadata_key") {
            settings.put("metadata_key", key.clone());
        }
        let why = "it is not asked for";
        config.nothing(&["http_header_name"], why, found);
        config.finish(Effect::Behaviour, found);
    }
    if settings.is_empty() {
        let at = node.get("type").unwrap_or(node);
        let why = "endpoints are named by a header or metadata here, not by where a connection \
            went: the whole cluster is left out";
        found.push(at, Effect::Behaviour, why);
        return false;
    }
    let why = "endpoints that nobody asks for are forgotten";
    cluster.nothing(&["cleanup_interval"], why, found);
    let at = config.unwrap_or(node);
    let anywhere = ["0.0.0.0/0", "::/0"].map(|net| text_at(net, &at.span));
    settings.put("allowed", output::list(anywhere.into()));
    found.push(
        at.head(),
        Effect::Nothing,
        "requests may name any address, as they may there: narrow `allowed`",
    );
    out.put("original_dst", settings.into_node());
    true
}

/// Endpoints that come from somewhere else: a file, or the control plane.
fn eds(cluster: &mut Block<'_>, out: &mut Output, found: &mut Findings) {
    let mut settings = Output::default();
    let mut file = None;
    if let Some(mut eds) = cluster.block("eds_cluster_config", found) {
        if let Some(name) = eds.take("service_name") {
            settings.put("service_name", name.clone());
        }
        if let Some(mut source) = eds.block("eds_config", found) {
            file = discovery::file(&mut source, found);
            discovery::aggregated(&mut source, found);
        }
        eds.finish(Effect::Behaviour, found);
    }
    match file {
        Some(path) => out.put("endpoints_file", path.clone()),
        None => out.put("eds", settings.into_node()),
    }
}

/// The endpoints of a `ClusterLoadAssignment`.
pub(super) fn assignment(node: &Node, found: &mut Findings) -> Vec<Node> {
    let mut endpoints = Vec::new();
    let Some(mut assignment) = Block::open(node, found) else {
        return endpoints;
    };
    assignment.take("cluster_name");
    let places = assignment.list("endpoints");
    for (index, place) in places.iter().enumerate() {
        let Some(mut place) = Block::open(place, found) else {
            continue;
        };
        place.nothing(&["locality"], "there are no localities here", found);
        if places.len() == 1 {
            let why = "a share of all requests is all of them";
            place.nothing(&["load_balancing_weight"], why, found);
        }
        if index > 0 {
            place.drop(
                "priority",
                Effect::Behaviour,
                "there are no priorities: all endpoints are used",
                found,
            );
        }
        for endpoint in place.list("lb_endpoints") {
            endpoints.extend(self::endpoint(endpoint, found));
        }
        place.finish(Effect::Behaviour, found);
    }
    assignment.finish(Effect::Behaviour, found);
    endpoints
}

/// One endpoint: an address, or a map when there is more to say of it.
fn endpoint(node: &Node, found: &mut Findings) -> Option<Node> {
    let mut out = Output::default();
    let at: &Span = &node.span;
    let lb = Block::open(node, found);
    let inner = lb.and_then(|mut lb| Some((lb.block("endpoint", found)?, lb)));
    let written = inner.and_then(|(mut inner, lb)| Some((inner.take("address")?, inner, lb)));
    let before = found.len();
    let known =
        written.and_then(|(address, inner, lb)| Some((address::text(address, found)?, inner, lb)));
    let Some((address, mut inner, mut lb)) = known else {
        // Where its address was read, what is wrong with it was said.
        if found.len() == before {
            let why = "it has no address that is known here: the endpoint is left out";
            found.push(node, Effect::Behaviour, why);
        }
        return None;
    };
    if let Some(host) = inner.take("hostname") {
        out.put("hostname", host.clone());
    }
    inner.finish(Effect::Behaviour, found);
    if let Some(weight) = lb.take("load_balancing_weight") {
        out.put("weight", weight.clone());
    }
    if let Some(metadata) = lb.take("metadata") {
        out.put("metadata", metadata.clone());
    }
    if let Some(health) = lb.take("health_status")
        && health.text() != Some("UNKNOWN")
    {
        out.put("health_status", health.clone());
    }
    lb.finish(Effect::Behaviour, found);
    if out.is_empty() {
        return Some(text_at(address, at));
    }
    out.text("address", address, at);
    Some(out.into_node())
}
