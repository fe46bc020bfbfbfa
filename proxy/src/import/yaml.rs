//! YAML as people write it: blocks, short lists in one line.

use attache_service::config::json::Value as Json;

/// The longest list or map that stands in one line, in characters.
const IN_LINE: usize = 90;

/// Writes a value as a YAML document.
pub fn to_yaml(value: &Json) -> String {
    let mut out = String::new();
    match value {
        Json::Object(map) if !map.is_empty() => block_map(map, 0, &mut out),
        other => {
            out.push_str(&flow(other));
            out.push('\n');
        }
    }
    out
}

fn block_map(
    map: &attache_service::config::json::Map<String, Json>,
    depth: usize,
    out: &mut String,
) {
    for (index, (key, value)) in map.iter().enumerate() {
        // The first key of a list's item stands behind its dash.
        if index > 0 || !out.ends_with("- ") {
            indent(depth, out);
        }
        out.push_str(&scalar(key));
        out.push(':');
        entry(value, depth, out);
    }
}

fn entry(value: &Json, depth: usize, out: &mut String) {
    let line = flow(value);
    let short = line.chars().count() + depth * 2 <= IN_LINE && depth > 0;
    match value {
        Json::Object(map) if !map.is_empty() && !short => {
            out.push('\n');
            block_map(map, depth + 1, out);
        }
        Json::Array(items) if !items.is_empty() && !short => {
            out.push('\n');
            for item in items {
                indent(depth, out);
                out.push_str("- ");
                match item {
                    Json::Object(map) if !map.is_empty() => block_map(map, depth + 1, out),
                    other => {
                        out.push_str(&flow(other));
                        out.push('\n');
                    }
                }
            }
        }
        _ => {
            out.push(' ');
            out.push_str(&line);
            out.push('\n');
        }
    }
}

fn indent(depth: usize, out: &mut String) {
    for _ in 0..depth {
        out.push_str("  ");
    }
}

/// A value in one line.
fn flow(value: &Json) -> String {
    match value {
        Json::Object(map) if map.is_empty() => "{}".to_owned(),
        Json::Object(map) => {
            let entries: Vec<_> = map
                .iter()
                .map(|(key, value)| format!("{}: {}", scalar(key), flow(value)))
                .collect();
            format!("{{ {} }}", entries.join(", "))
        }
        Json::Array(items) => {
            let items: Vec<_> = items.iter().map(flow).collect();
            format!("[{}]", items.join(", "))
        }
        Json::String(text) => scalar(text),
        other => other.to_string(),
    }
}

/// A text: plain where that reads back as the same, in JSON's quotes else.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let begins = text
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '/' || c == '_');
    let word = matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    match begins && !word && text.chars().all(plain) {
        true => text.to_owned(),
        false => Json::from(text).to_string(),
    }
}
