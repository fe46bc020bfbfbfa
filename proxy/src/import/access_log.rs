//! Access logs: Envoy's loggers, and the formats of their lines.

use attache_service::config::{Node, envoy::message_of};

use super::{
    block::Block,
    dropped::{Effect, Findings},
    output::{self, Output},
};

const LOGGERS: &str = "envoy.extensions.access_loggers.";

/// Reads `access_log` into the list that ours is.
pub(super) fn convert(logs: &[Node], found: &mut Findings) -> Node {
    output::list(logs.iter().filter_map(|log| one(log, found)).collect())
}

fn one(node: &Node, found: &mut Findings) -> Option<Node> {
    let mut log = Block::open(node, found)?;
    log.take("name");
    let mut out = Output::default();
    if let Some(filter) = log.take("filter") {
        out.put("filter", filter.clone());
    }
    let config = log.take("typed_config");
    let message = config.and_then(message_of).unwrap_or_default();
    let kind = message.strip_prefix(LOGGERS).unwrap_or_default();
    if !matches!(
        kind,
        "file.v3.FileAccessLog" | "stream.v3.StdoutAccessLog" | "stream.v3.StderrAccessLog"
    ) {
        let why = "only logs to a file, standard output and standard error have a counterpart here";
        found.push(node, Effect::Behaviour, why);
        return None;
    }
    let mut logger = Block::open(config?, found)?;
    if let Some(path) = logger.take("path") {
        out.put("path", path.clone());
    }
    if kind.ends_with("StderrAccessLog") {
        out.text("output", "stderr", &node.span);
    }
    match logger.block("log_format", found) {
        Some(format) => self::format(format, &mut out, found),
        None => out.text("format", "envoy", &node.span),
    }
    logger.finish(Effect::Behaviour, found);
    log.finish(Effect::Behaviour, found);
    Some(out.into_node())
}

fn format(mut format: Block<'_>, out: &mut Output, found: &mut Findings) {
    if let Some(text) = format.take("text_format") {
        out.put("text_format", text.clone());
    }
    if let Some(mut source) = format.block("text_format_source", found) {
        if let Some(text) = source.take("inline_string") {
            out.put("text_format", text.clone());
        }
        source.finish(Effect::Behaviour, found);
    }
    for name in ["json_format", "omit_empty_values"] {
        if let Some(value) = format.take(name) {
            out.put(name, value.clone());
        }
    }
    format.finish(Effect::Behaviour, found);
}
