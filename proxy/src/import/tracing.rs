//! Traces: each connection manager says them in Envoy, and the file once here.

use attache_service::config::{Node, envoy::message_of, json::Value as Json};

use super::{
    block::Block,
    dropped::{Effect, Findings},
    output::{self, Output},
};
use crate::config::TracingConfig;

const OPEN_TELEMETRY: &str = "envoy.config.trace.v3.OpenTelemetryConfig";
/// What Envoy is called in traces unless told.
const NAME: &str = "unknown_service:envoy";

/// Reads what the listeners say; `None` without traces, and after they were dropped.
pub(super) fn convert(listeners: &[Option<Node>], found: &mut Findings) -> Option<Json> {
    let mut written = listeners.iter().flatten();
    let first = written.next()?;
    let content = first.to_json();
    for other in written.filter(|other| other.to_json() != content) {
        let why = "traces are set once for all listeners: those of the first one count";
        found.push(other, Effect::Behaviour, why);
    }
    if listeners.iter().any(Option::is_none) {
        let why = "traces are set once for all listeners: those without any have these too";
        found.push(first, Effect::Behaviour, why);
    }
    one(first, found)
}

fn one(node: &Node, found: &mut Findings) -> Option<Json> {
    let mut tracing = Block::open(node, found)?;
    let mut out = Output::default();
    let Some(mut provider) = tracing.block("provider", found) else {
        let why = "it does not say where to: that stands in the bootstrap, or nowhere";
        found.push(node, Effect::Behaviour, why);
        return None;
    };
    provider.take("name");
    let config = provider.take("typed_config");
    match config {
        Some(config) if message_of(config) == Some(OPEN_TELEMETRY) => {
            collector(config, &mut out, found)?;
        }
        _ => {
            found.push(node, Effect::Behaviour, "spans go to OpenTelemetry only");
            return None;
        }
    }
    provider.finish(Effect::Behaviour, found);
    for name in ["client_sampling", "random_sampling", "overall_sampling"] {
        if let Some(share) = tracing.take(name) {
            // A message without its value is 0.
            match share.get("value") {
                Some(value) => out.put(name, value.clone()),
                None => out.text(name, "0", &share.span),
            }
        }
    }
    let why = "what a span has is the same for all";
    tracing.nothing(
        &["spawn_upstream_span", "verbose", "max_path_tag_length"],
        why,
        found,
    );
    tracing.finish(Effect::Behaviour, found);
    let what = "all of it";
    output::decode::<TracingConfig>(&out.into_node(), node, what, Effect::Behaviour, found)
}

fn collector(node: &Node, out: &mut Output, found: &mut Findings) -> Option<()> {
    let mut config = Block::open(node, found)?;
    let mut service = config.block("grpc_service", found);
    let mut grpc = service
        .as_mut()
        .and_then(|service| service.block("envoy_grpc", found));
    let cluster = grpc.as_mut().and_then(|grpc| grpc.take("cluster_name"));
    let Some(cluster) = cluster else {
        let why = "spans are sent over gRPC, to a cluster: `grpc_service.envoy_grpc` is needed";
        found.push(node, Effect::Behaviour, why);
        return None;
    };
    out.put("cluster", cluster.clone());
    if let Some(mut service) = service {
        let why = "spans wait for a collector as long as is sensible";
        service.nothing(&["timeout"], why, found);
        service.finish(Effect::Behaviour, found);
    }
    if let Some(grpc) = grpc.as_mut() {
        grpc.finish(Effect::Behaviour, found);
    }
    match config.take("service_name") {
        Some(name) => out.put("service_name", name.clone()),
        None => out.text("service_name", NAME, &node.span),
    }
    config.finish(Effect::Behaviour, found);
    Some(())
}
