//! What the reference says of YAML that has not the shape of a rule file.

use attache_service::config::{Entry, Errors, Key, Node, Span, Value};

use super::extension;

/// Every key of the reference. As there the list is flat: a known key in the wrong place is no
/// error.
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
            let shown = shown(&key.name);
            let text = format!("config error, key is not of type string: {shown}");
            errors.push(key, text);
            continue;
        }
        if !KEYS.contains(&&*key.name) && !extension::is_key(&key.name) {
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

const TRUE: [&str; 4] = ["true", "yes", "on", "y"];
const FALSE: [&str; 4] = ["false", "no", "off", "n"];
const NULL: [&str; 2] = ["null", "~"];

/// Whether a key is text to a YAML 1.1 parser: quoted, or not something else.
pub(super) fn is_string(key: &Key) -> bool {
    let name = key.name.to_ascii_lowercase();
    let other = [&TRUE[..], &FALSE, &NULL]
        .iter()
        .any(|names| names.contains(&name.as_str()))
        || (name.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
            && name.parse::<f64>().is_ok());
    !other || is_quoted(&key.span)
}

/// A key that is not text, as the reference shows it.
fn shown(name: &str) -> &str {
    let lower = name.to_ascii_lowercase();
    let is_one_of = |names: &[&str]| names.contains(&lower.as_str());
    match name {
        _ if is_one_of(&TRUE) => "true",
        _ if is_one_of(&FALSE) => "false",
        _ if is_one_of(&NULL) => "<nil>",
        _ => name,
    }
}

fn is_quoted(span: &Span) -> bool {
    let at = |number: u32| (number as usize).saturating_sub(1);
    span.source()
        .and_then(|source| source.text().lines().nth(at(span.line())))
        .and_then(|line| line.chars().nth(at(span.column())))
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
    let Some(node) = node.filter(|node| !node.is_null()) else {
        return 0;
    };
    let number = match node.value {
        // Already refused as a leaf.
        Value::Float(_) => return 0,
        Value::Int(_) | Value::String(_) if !is_quoted(&node.span) => node.text().and_then(whole),
        _ => None,
    };
    let number = number.and_then(|number| u32::try_from(number).ok());
    number.unwrap_or_else(|| {
        mismatch(node, "uint32", errors);
        0
    })
}

/// A whole number as YAML 1.1 has them: `1_000`, `0x10`, `0b11`, and `010`, which is 8.
fn whole(text: &str) -> Option<i128> {
    let plain = text.replace('_', "");
    let (sign, digits) = match plain.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, digits.get(2..)?),
        [b'0', b'o' | b'O', ..] => (8, digits.get(2..)?),
        [b'0', b'b' | b'B', ..] => (2, digits.get(2..)?),
        [b'0', _, ..] => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    if !digits.starts_with(|first: char| first.is_digit(radix)) {
        return None;
    }
    i128::from_str_radix(digits, radix).ok()?.checked_mul(sign)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_those_of_the_older_yaml() {
        let table = [
            ("20", Some(20)),
            ("+20", Some(20)),
            ("-1", Some(-1)),
            ("0", Some(0)),
            ("1_000", Some(1000)),
            ("0x10", Some(16)),
            ("0b11", Some(3)),
            ("0o17", Some(15)),
            ("010", Some(8)),
            ("08", None),
            ("0x", None),
            ("", None),
            ("-", None),
            ("--1", None),
            ("0x-1", None),
            ("1x", None),
            ("ü", None),
        ];
        for (text, expected) in table {
            assert_eq!(whole(text), expected, "{text}");
        }
    }
}
