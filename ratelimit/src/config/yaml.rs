//! What the reference says of YAML that has not the shape of a rule file.

use attache_service::config::{Entry, Errors, Key, Node, Value};

/// Every key that may stand anywhere in a file. As in the reference the list is flat: a known key
/// in the wrong place is no error.
const KEYS: [&str; 16] = [
    "domain",
    "key",
    "value",
    "descriptors",
    "rate_limit",
    "unit",
    "requests_per_unit",
    "unlimited",
    "name",
    "replaces",
    "shadow_mode",
    "quota_mode",
    "detailed_metric",
    "value_to_metric",
    "share_threshold",
    "metadata",
];

/// Checks keys and the kinds of values of a whole file.
pub(super) fn check(node: &Node, errors: &mut Errors) {
    for Entry { key, value } in node.as_map().unwrap_or_default() {
        if !is_string(key) {
            let text = format!("config error, key is not of type string: {}", key.name);
            errors.push(key, text);
            continue;
        }
        if !KEYS.contains(&&*key.name) {
            errors.push(key, format!("config error, unknown key '{}'", key.name));
            continue;
        }
        if &*key.name != "metadata" {
            check_value(value, errors);
        }
    }
}

fn check_value(value: &Node, errors: &mut Errors) {
    match &value.value {
        Value::Map(_) => check(value, errors),
        Value::Seq(items) => {
            for item in items {
                if item.as_map().is_some() {
                    check(item, errors);
                } else {
                    let shown = item.text().unwrap_or("[...]");
                    let text = format!(
                        "config error, yaml file contains list of type other than map: {shown}"
                    );
                    errors.push(item, text);
                }
            }
        }
        Value::Float(_) => errors.push(value, "error checking config"),
        Value::Int(number) if i64::try_from(*number).is_err() => {
            errors.push(value, "error checking config");
        }
        Value::Int(_) | Value::Bool(_) | Value::String(_) | Value::Null => {}
    }
}

/// Whether a key is text to a YAML parser: quoted, or not something else.
fn is_string(key: &Key) -> bool {
    const OTHERS: [&str; 10] = [
        "true", "false", "yes", "no", "on", "off", "y", "n", "null", "~",
    ];
    let name = key.name.to_ascii_lowercase();
    let other = OTHERS.contains(&name.as_str())
        || (name.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
            && name.parse::<f64>().is_ok());
    !other || is_quoted(key)
}

fn is_quoted(key: &Key) -> bool {
    let at = |number: u32| (number as usize).saturating_sub(1);
    key.span
        .source()
        .and_then(|source| source.text().lines().nth(at(key.span.line())))
        .and_then(|line| line.chars().nth(at(key.span.column())))
        .is_some_and(|c| c == '"' || c == '\'')
}

/// A scalar as it was written; `None` and an error for lists and maps. Nothing is the empty text.
pub(super) fn text<'n>(node: Option<&'n Node>, errors: &mut Errors) -> Option<&'n str> {
    let Some(node) = node else { return Some("") };
    if node.is_null() {
        return Some("");
    }
    let text = node.text();
    if text.is_none() {
        mismatch(node, "string", errors);
    }
    text
}

/// A boolean; false when absent.
pub(super) fn boolean(node: Option<&Node>, errors: &mut Errors) -> bool {
    match node.map(|node| (node, &node.value)) {
        None | Some((_, Value::Null)) => false,
        Some((_, Value::Bool(value))) => *value,
        Some((node, _)) => match node.text().map(str::to_ascii_lowercase).as_deref() {
            // The names that YAML 1.1 has besides.
            Some("yes" | "on" | "y") => true,
            Some("no" | "off" | "n") => false,
            _ => {
                mismatch(node, "bool", errors);
                false
            }
        },
    }
}

/// A whole number of 32 bits; 0 when absent.
pub(super) fn number(node: Option<&Node>, errors: &mut Errors) -> u32 {
    match node.map(|node| (node, &node.value)) {
        None | Some((_, Value::Null)) => 0,
        Some((node, Value::Int(value))) => u32::try_from(*value).unwrap_or_else(|_| {
            mismatch(node, "uint32", errors);
            0
        }),
        // Already refused as a leaf.
        Some((_, Value::Float(_))) => 0,
        Some((node, _)) => {
            mismatch(node, "uint32", errors);
            0
        }
    }
}

/// The items of a list; none when absent.
pub(super) fn list<'n>(node: Option<&'n Node>, what: &str, errors: &mut Errors) -> &'n [Node] {
    match node.map(|node| (node, &node.value)) {
        None | Some((_, Value::Null)) => &[],
        Some((_, Value::Seq(items))) => items,
        Some((node, _)) => {
            mismatch(node, what, errors);
            &[]
        }
    }
}

/// A value of the wrong type, in the words of the reference's YAML library.
pub(super) fn mismatch(node: &Node, wanted: &str, errors: &mut Errors) {
    const SHOWN: usize = 10;
    let tag = match &node.value {
        Value::Null => "!!null",
        Value::Bool(_) => "!!bool",
        Value::Int(_) => "!!int",
        Value::Float(_) => "!!float",
        Value::String(_) => "!!str",
        Value::Seq(_) => "!!seq",
        Value::Map(_) => "!!map",
    };
    let found = match node.text() {
        None => tag.to_owned(),
        Some(text) if text.chars().count() > SHOWN => {
            let start: String = text.chars().take(SHOWN - 3).collect();
            format!("{tag} `{start}...`")
        }
        Some(text) => format!("{tag} `{text}`"),
    };
    let line = node.span.line();
    errors.push(
        node,
        format!(
            "error loading config file: yaml: unmarshal errors:\n  line {line}: cannot unmarshal {found} into {wanted}"
        ),
    );
}
