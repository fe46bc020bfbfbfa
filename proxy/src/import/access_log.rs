//! Access logs: Envoy's loggers, and the formats of their lines.

use attache_filter::format::Format;
use attache_service::config::{ConfigValue, Errors, Node, Span, Value, envoy::message_of};

use super::{
    block::Block,
    dropped::{Effect, Findings},
    output::{self, Output},
};
use crate::config::AccessLog;

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
    let log = out.into_node();
    let mut errors = Errors::new();
    let decoded = AccessLog::decode(&log, &mut errors);
    if decoded.is_none() || !errors.is_empty() {
        let gone = Some("this access log");
        found.refused(&errors, node, gone, Effect::Behaviour);
        return None;
    }
    Some(log)
}

fn format(mut format: Block<'_>, out: &mut Output, found: &mut Findings) {
    let mut text = format.take("text_format");
    if let Some(mut source) = format.block("text_format_source", found) {
        text = source.take("inline_string").or(text);
        source.finish(Effect::Behaviour, found);
    }
    let json = format.take("json_format");
    if let Some(text) = text {
        match Format::parse_log(text.text().unwrap_or_default()) {
            Ok(_) => out.put("text_format", text.clone()),
            Err(fault) => {
                let why = format!("{fault}: Envoy's default line is written instead");
                found.push(text, Effect::Behaviour, why);
                out.text("format", "envoy", &text.span);
            }
        }
    } else if let Some(json) = json {
        out.put("json_format", known(json, found));
    } else {
        out.text("format", "envoy", &Span::none());
    }
    let omit = format.take("omit_empty_values");
    if let Some(omit) = omit.filter(|_| out.get("format").is_none()) {
        out.put("omit_empty_values", omit.clone());
    }
    format.finish(Effect::Behaviour, found);
}

/// The fields that can be written.
fn known(json: &Node, found: &mut Findings) -> Node {
    let mut node = json.clone();
    let mut writes = |value: &mut Node| {
        if let Some(Err(fault)) = value.as_str().map(Format::parse_log) {
            let why = format!("{fault}: this field is left out");
            found.push(value, Effect::Behaviour, why);
            return false;
        }
        *value = known(value, found);
        true
    };
    match &mut node.value {
        Value::Map(entries) => entries.retain_mut(|entry| writes(&mut entry.value)),
        Value::Seq(items) => items.retain_mut(writes),
        _ => {}
    }
    node
}
