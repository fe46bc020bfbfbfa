//! A configuration as it may be shown to people: as written, without secrets.

use serde::ser::{Serialize, SerializeMap as _, SerializeSeq as _, Serializer};

use super::node::{Entry, Node, Value};

/// What stands for a secret.
const HIDDEN: &str = "(hidden)";

/// A value that is written out as it stands in its file, keys in their order, without secrets:
///
/// - what comes from the environment is shown as the name of its variable;
/// - values of headers that are added (`key` beside `value`) are hidden, unless they are one
///   operator such as `%REQ(x-id)%`; so are those that headers with names of secrets are matched
///   with;
/// - texts under keys that are called as secrets are: `password`, `secret`, `token`,
///   `authorization`, `credential`, `api_key`;
/// - private keys, and addresses that name a user.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'n> {
    node: &'n Node,
    hidden: bool,
}

impl<'n> Shown<'n> {
    /// A view of `node`.
    pub fn new(node: &'n Node) -> Self {
        let hidden = false;
        Self { node, hidden }
    }

    /// A view of one entry of a map.
    fn of(entry: &'n Entry, map: &'n [Entry], hidden: bool) -> Self {
        let key = &*entry.key.name;
        let named = map
            .iter()
            .find(|other| matches!(&*other.key.name, "name" | "key" | "header_name"));
        let header = named.and_then(|named| named.value.as_str());
        let secret = match key {
            "name" | "key" | "header_name" => false,
            "value" | "raw_value" if map.iter().any(|other| &*other.key.name == "key") => {
                !entry.value.as_str().is_some_and(is_operator)
            }
            _ if key.ends_with("_match") || key.contains("value") => {
                header.is_some_and(is_secret_name)
            }
            _ => false,
        };
        Self {
            node: &entry.value,
            hidden: hidden || secret || is_secret_name(key),
        }
    }
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if let Some(shown) = &self.node.shown {
            return to.serialize_str(&variable(shown));
        }
        match &self.node.value {
            Value::Null => to.serialize_unit(),
            Value::Bool(value) => to.serialize_bool(*value),
            Value::Int(value) => match i64::try_from(*value) {
                Ok(value) => to.serialize_i64(value),
                Err(_) => to.serialize_f64(*value as f64),
            },
            Value::Float(value) => to.serialize_f64(*value),
            Value::String(text) if self.hidden || is_secret(text) => to.serialize_str(HIDDEN),
            Value::String(text) => to.serialize_str(text),
            Value::Seq(items) => {
                let mut list = to.serialize_seq(Some(items.len()))?;
                for node in items {
                    let hidden = self.hidden;
                    list.serialize_element(&Self { node, hidden })?;
                }
                list.end()
            }
            Value::Map(entries) => {
                let mut map = to.serialize_map(Some(entries.len()))?;
                for entry in entries {
                    let value = Shown::of(entry, entries, self.hidden);
                    map.serialize_entry(&*entry.key.name, &value)?;
                }
                map.end()
            }
        }
    }
}

/// `${NAME}` without the default, which may be a secret too.
fn variable(written: &str) -> String {
    match written.split_once(":-") {
        Some((name, _)) => format!("{name}}}"),
        None => written.to_owned(),
    }
}

/// Whether a field or a header of this name has a secret as its value.
fn is_secret_name(name: &str) -> bool {
    const PARTS: [&str; 8] = [
        "password",
        "passwd",
        "secret",
        "token",
        "authorization",
        "credential",
        "api_key",
        "apikey",
    ];
    let name = name.to_ascii_lowercase().replace('-', "_");
    PARTS.iter().any(|part| name.contains(part)) || matches!(&*name, "cookie" | "set_cookie")
}

/// Whether a text is one operator of an access log, whose value is not written here.
fn is_operator(text: &str) -> bool {
    let inner = text
        .strip_prefix('%')
        .and_then(|text| text.strip_suffix('%'));
    inner.is_some_and(|inner| !inner.is_empty() && !inner.contains('%'))
}

/// Whether a text shows what it is.
fn is_secret(text: &str) -> bool {
    let names_user = || {
        let (_, rest) = text.split_once("://")?;
        rest.split(['/', '?', '#']).next()?.rsplit_once('@')
    };
    text.contains("PRIVATE KEY-----") || names_user().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Document;

    fn shown(text: &str) -> String {
        let env = |name: &str| (name == "TOKEN").then(|| "s3cret".to_owned());
        let document = Document::parse_with("a.yaml", text, &env).unwrap();
        serde_json::to_string(&Shown::new(document.root())).unwrap()
    }

    #[test]
    fn what_is_no_secret_is_shown_in_its_order() {
        for (text, json) in [
            (
                "{ b: 1, a: [x, 0.5, true, null, -3] }",
                r#"{"b":1,"a":["x",0.5,true,null,-3]}"#,
            ),
            (
                "name: x-id\nstring_match: { exact: one }",
                r#"{"name":"x-id","string_match":{"exact":"one"}}"#,
            ),
            (
                "header: { key: x-id, value: '%REQ(x-request-id)%' }",
                r#"{"header":{"key":"x-id","value":"%REQ(x-request-id)%"}}"#,
            ),
            (
                "generic_key: { descriptor_key: a, descriptor_value: b }",
                r#"{"generic_key":{"descriptor_key":"a","descriptor_value":"b"}}"#,
            ),
            (
                "clusters: [{ name: token-service, endpoints: ['a:1'] }]",
                r#"{"clusters":[{"name":"token-service","endpoints":["a:1"]}]}"#,
            ),
            (
                "tls: { private_key: tls.key }\nmax_tokens: 10",
                r#"{"tls":{"private_key":"tls.key"},"max_tokens":10}"#,
            ),
            ("x: http://host:4317/a@b", r#"{"x":"http://host:4317/a@b"}"#),
        ] {
            assert_eq!(shown(text), json, "{text}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        for text in [
            "x: ${TOKEN}",
            "x: ${MISSING:-s3cret}",
            "{ key: x-origin, value: s3cret }",
            "{ key: x-origin, value: 'Bearer s3cret %REQ(a)%' }",
            "{ key: x-origin, value: '%REQ(a)% s3cret %REQ(b)%' }",
            "{ name: x-api-key, string_match: { exact: s3cret } }",
            "{ name: Authorization, string_match: { safe_regex: { regex: 's3cret.*' } } }",
            "{ name: cookie, exact_value: s3cret }",
            "client_secret: { value: s3cret }",
            "context_extensions: { api-key: s3cret, list: { token: [s3cret] } }",
            "x: '-----BEGIN PRIVATE KEY-----s3cret'",
            "x: redis://:s3cret@127.0.0.1:6379/0",
        ] {
            let shown = shown(text);
            assert!(!shown.contains("s3cret"), "{text}: {shown}");
        }
        assert_eq!(shown("x: ${MISSING:-s3cret}"), r#"{"x":"${MISSING}"}"#);
    }
}
