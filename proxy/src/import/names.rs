//! Proto JSON allows `lowerCamelCase` beside `snake_case`; from here on there is only the latter.

use std::sync::Arc;

use attache_service::config::{Entry, Node, Value};

/// Maps whose keys are somebody's names, not fields.
const NAMES: [&str; 3] = [
    "typed_per_filter_config",
    "typed_extension_protocol_options",
    "context_extensions",
];

/// Values that are somebody's own, all the way down.
const FREE: [&str; 3] = ["filter_metadata", "json_format", "inline_string"];

/// The same tree with the names of fields in snake_case.
pub(super) fn snake_case(node: &Node) -> Node {
    rename(node, true)
}

fn rename(node: &Node, fields: bool) -> Node {
    let mut renamed = node.clone();
    match &mut renamed.value {
        Value::Map(entries) => {
            for entry in entries {
                rename_entry(entry, fields);
            }
        }
        Value::Seq(items) => {
            for item in items {
                *item = rename(item, true);
            }
        }
        _ => {}
    }
    renamed
}

fn rename_entry(entry: &mut Entry, fields: bool) {
    if fields && entry.key.name.bytes().any(|b| b.is_ascii_uppercase()) {
        entry.key.name = snake(&entry.key.name);
    }
    let name = &*entry.key.name;
    // `metadata` of a node is a struct of its owner; that of a route or cluster has fields.
    let free = fields && (FREE.contains(&name) || name == "metadata" && !has_fields(&entry.value));
    if !free {
        let names = fields && NAMES.contains(&name);
        entry.value = rename(&entry.value, !names);
    }
}

fn has_fields(metadata: &Node) -> bool {
    ["filter_metadata", "filterMetadata"]
        .iter()
        .any(|key| metadata.get(key).is_some())
}

fn snake(name: &str) -> Arc<str> {
    let mut out = String::with_capacity(name.len() + 4);
    for (at, c) in name.char_indices() {
        if c.is_ascii_uppercase() {
            if at > 0 {
                out.push('_');
            }
            out.push(c.to_ascii_lowercase());
        } else {
            out.push(c);
        }
    }
    out.into()
}
