//! Booleans, numbers, text, and types with a textual syntax of their own.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use serde_json::{Value as Json, json};

use super::error::Errors;
use super::node::{Node, Value, quote};
use super::schema::Schemas;
use super::value::ConfigValue;

/// What a JSON Schema must let through where something else than text stands: `${NAME}`.
pub(crate) const VARIABLE: &str = r"^\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}$";

impl ConfigValue for bool {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        if let Value::Bool(value) = node.value {
            return Some(value);
        }
        errors.expected(node, "`true` or `false`");
        None
    }

    fn encode(&self) -> Option<Json> {
        Some(Json::Bool(*self))
    }

    fn schema(_schemas: &mut Schemas) -> Json {
        json!({ "type": ["boolean", "string"], "pattern": VARIABLE })
    }
}

/// A whole number, also as proto JSON allows it: quoted, or with a fraction of zero.
fn whole(node: &Node) -> Option<i128> {
    match &node.value {
        Value::Int(value) => Some(*value),
        Value::Float(value) if value.fract() == 0.0 && value.abs() < 9e15 => Some(*value as i128),
        Value::String(text) if text.bytes().all(|c| c.is_ascii_digit() || c == b'-') => {
            text.parse().ok()
        }
        _ => None,
    }
}

/// `0123` is 123 in one version of YAML and 83 in the other.
fn ambiguous(node: &Node) -> bool {
    let text = node.text().unwrap_or_default();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|c| c.is_ascii_digit())
}

macro_rules! integers {
    ($($type:ty),*) => { $(
        impl ConfigValue for $type {
            fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
                let what = || {
                    format!("a whole number from {} to {}", <$type>::MIN, <$type>::MAX)
                };
                match whole(node) {
                    Some(_) if ambiguous(node) => {
                        errors.invalid(node, "leading zeros are ambiguous (octal or decimal)");
                        None
                    }
                    Some(value) => {
                        let value = <$type>::try_from(value).ok();
                        if value.is_none() {
                            errors.expected(node, &what());
                        }
                        value
                    }
                    None => {
                        errors.expected(node, &what());
                        None
                    }
                }
            }

            fn encode(&self) -> Option<Json> {
                Some(Json::from(*self))
            }

            fn schema(_schemas: &mut Schemas) -> Json {
                json!({
                    "type": ["integer", "string"],
                    "minimum": <$type>::MIN,
                    "maximum": <$type>::MAX,
                    "pattern": format!(r"^-?\d+$|{VARIABLE}"),
                })
            }
        }
    )* };
}

integers!(u8, u16, u32, u64, usize, i8, i16, i32, i64, isize);

macro_rules! floats {
    ($($type:ty),*) => { $(
        impl ConfigValue for $type {
            fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
                let value = match node.value {
                    Value::Int(value) => Some(value as $type),
                    Value::Float(value) => Some(value as $type),
                    _ => None,
                };
                let value = value.filter(|value| value.is_finite());
                if value.is_none() {
                    errors.expected(node, "a number");
                }
                value
            }

            fn encode(&self) -> Option<Json> {
                Some(Json::from(*self))
            }

            fn schema(_schemas: &mut Schemas) -> Json {
                json!({ "type": ["number", "string"], "pattern": VARIABLE })
            }
        }
    )* };
}

floats!(f32, f64);

impl ConfigValue for String {
    /// Any scalar, as written: where text is wanted, `1.0` and `true` are text.
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        match node.text() {
            Some(text) if !node.is_null() => Some(text.to_owned()),
            _ => {
                errors.expected(node, "text");
                None
            }
        }
    }

    fn encode(&self) -> Option<Json> {
        Some(Json::String(self.clone()))
    }

    fn schema(_schemas: &mut Schemas) -> Json {
        json!({ "type": ["string", "number", "boolean"] })
    }
}

impl ConfigValue for PathBuf {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        match String::decode(node, errors)? {
            text if text.is_empty() => {
                errors.expected(node, "a path");
                None
            }
            text => Some(PathBuf::from(text)),
        }
    }

    fn encode(&self) -> Option<Json> {
        Some(Json::String(self.display().to_string()))
    }

    fn schema(_schemas: &mut Schemas) -> Json {
        json!({ "type": "string", "minLength": 1 })
    }
}

/// Decodes text through [`FromStr`]. `what` completes "expected …": `an IP address`.
pub fn decode_parsed<T>(node: &Node, errors: &mut Errors, what: &str) -> Option<T>
where
    T: FromStr,
    T::Err: Display,
{
    let text = match node.text() {
        Some(text) if !node.is_null() => text,
        _ => {
            errors.expected(node, what);
            return None;
        }
    };
    match text.parse() {
        Ok(value) => Some(value),
        // The parser's own message may repeat the value, which a variable may keep secret.
        Err(_) if node.shown.is_some() => {
            errors.expected(node, what);
            None
        }
        Err(error) => {
            let field = node.label().map(|label| format!(" for {}", quote(label)));
            let field = field.unwrap_or_default();
            let found = node.describe();
            errors.push(
                node,
                format!("expected {what}{field}, found {found}: {error}"),
            );
            None
        }
    }
}

crate::config_parsed! {
    http::HeaderName => "a header name",
    http::Method => "an HTTP method",
    http::Uri => "a URI",
    std::net::IpAddr => "an IP address",
    std::net::SocketAddr => "an IP address and port",
}
