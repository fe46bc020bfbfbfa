//! Metadata as it is written: Envoy's `config.core.v3.Metadata` and `google.protobuf.Struct`.

use std::collections::BTreeMap;

use attache_service::config::{
    ConfigValue, Errors, Located, Node, Schemas, Value, envoy::message_of, json,
};
use attache_service::config_struct;
use prost::Message as _;
use prost_types::{Any, ListValue, Struct, value::Kind};

config_struct! {
    /// Envoy's `config.core.v3.Metadata`: facts by namespace.
    #[derive(Default)]
    pub struct Metadata {
        /// Any values, by namespace.
        pub filter_metadata: BTreeMap<String, StructValue>,
        /// Messages of a type, by namespace: `google.protobuf.Struct` and `StringValue`, with
        /// their `@type`.
        pub typed_filter_metadata: BTreeMap<String, TypedValue>,
    }
}

/// Metadata of a route or cluster, by namespace.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RouteMetadata {
    /// Namespaces that hold structs.
    pub untyped: BTreeMap<String, Struct>,
    /// Namespaces that hold a message of some type.
    pub typed: BTreeMap<String, Any>,
}

impl RouteMetadata {
    /// The values of what was written.
    pub fn plan(raw: &Metadata) -> Self {
        let untyped = raw.filter_metadata.iter();
        let typed = raw.typed_filter_metadata.iter();
        Self {
            untyped: untyped.map(|(k, v)| (k.clone(), v.value())).collect(),
            typed: typed.map(|(k, v)| (k.clone(), v.value.clone())).collect(),
        }
    }
}

config_struct! {
    /// Envoy's `type.metadata.v3.MetadataKey`: where in metadata a value is.
    pub struct MetadataKey {
        /// The namespace, mostly a filter's name.
        pub key: Located<String>,
        /// The way to the value within it.
        pub path: Located<Vec<PathSegment>>,
    }
}

config_struct! {
    /// Envoy's `MetadataKey.PathSegment`.
    pub struct PathSegment {
        /// The name of a field.
        pub key: String,
    }
}

/// A [`MetadataKey`], checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataPath {
    /// The namespace.
    pub namespace: String,
    /// The way to the value within it; never empty.
    pub path: Vec<String>,
}

impl MetadataPath {
    /// Checks a key; faults are reported at their place.
    pub fn plan(raw: &MetadataKey, errors: &mut Errors) -> Option<Self> {
        if raw.key.value.is_empty() {
            errors.push(&raw.key, "`key` must not be empty");
            return None;
        }
        if raw.path.value.is_empty() {
            errors.push(&raw.path, "`path` needs at least one `key`");
            return None;
        }
        Some(Self {
            namespace: raw.key.value.clone(),
            path: raw.path.value.iter().map(|s| s.key.clone()).collect(),
        })
    }

    /// The value in metadata of a route or cluster.
    pub fn in_route<'m>(&self, metadata: &'m RouteMetadata) -> Option<&'m prost_types::Value> {
        find(metadata.untyped.get(&self.namespace)?, &self.path)
    }
}

/// The value at the end of `path`; `None` for an empty one.
pub fn find<'m>(fields: &'m Struct, path: &[String]) -> Option<&'m prost_types::Value> {
    let (first, rest) = path.split_first()?;
    let mut value = fields.fields.get(first)?;
    for key in rest {
        let Some(Kind::StructValue(fields)) = &value.kind else {
            return None;
        };
        value = fields.fields.get(key)?;
    }
    Some(value)
}

/// A `google.protobuf.Struct` in configuration: a map of anything.
#[derive(Debug, Clone, PartialEq)]
pub struct StructValue(Node);

impl StructValue {
    /// The map as a message.
    pub fn value(&self) -> Struct {
        fields_of(&self.0)
    }
}

impl ConfigValue for StructValue {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        if !matches!(node.value, Value::Map(_)) {
            errors.expected(node, "a map");
            return None;
        }
        Some(Self(node.clone()))
    }

    fn encode(&self) -> Option<json::Value> {
        self.0.encode()
    }

    fn schema(_schemas: &mut Schemas) -> json::Value {
        json::json!({ "type": "object" })
    }
}

/// A `google.protobuf.Any` in configuration, of a type that needs no descriptors to be read.
#[derive(Debug, Clone, PartialEq)]
pub struct TypedValue {
    written: Node,
    value: Any,
}

impl ConfigValue for TypedValue {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        let inner = node.get("value");
        let value = match (message_of(node), inner) {
            (Some("google.protobuf.Struct"), Some(inner)) => fields_of(inner).encode_to_vec(),
            (Some("google.protobuf.StringValue"), Some(inner)) => {
                inner.text().unwrap_or_default().to_owned().encode_to_vec()
            }
            _ => {
                errors.expected(
                    node,
                    "`@type: type.googleapis.com/google.protobuf.Struct` (or `StringValue`) and a `value`",
                );
                return None;
            }
        };
        let url = node.get("@type").and_then(Node::as_str).unwrap_or_default();
        Some(Self {
            value: Any {
                type_url: url.to_owned(),
                value,
            },
            written: node.clone(),
        })
    }

    fn encode(&self) -> Option<json::Value> {
        self.written.encode()
    }

    fn schema(_schemas: &mut Schemas) -> json::Value {
        json::json!({
            "type": "object",
            "properties": { "@type": { "type": "string" }, "value": true },
            "required": ["@type", "value"],
        })
    }
}

fn fields_of(node: &Node) -> Struct {
    let entries = match &node.value {
        Value::Map(entries) => entries.as_slice(),
        _ => &[],
    };
    let fields = entries.iter();
    Struct {
        fields: fields
            .map(|entry| (entry.key.name.to_string(), value_of(&entry.value)))
            .collect(),
    }
}

fn value_of(node: &Node) -> prost_types::Value {
    let kind = match &node.value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        // The message knows no whole numbers.
        Value::Int(value) => Kind::NumberValue(*value as f64),
        Value::Float(value) => Kind::NumberValue(*value),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Seq(items) => Kind::ListValue(ListValue {
            values: items.iter().map(value_of).collect(),
        }),
        Value::Map(_) => Kind::StructValue(fields_of(node)),
    };
    prost_types::Value { kind: Some(kind) }
}

/// A message's value as JSON, for logs.
pub fn to_json(value: &prost_types::Value) -> json::Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => json::Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::NumberValue(value)) => number(*value),
        Some(Kind::StringValue(text)) => text.as_str().into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(to_json).collect(),
        Some(Kind::StructValue(fields)) => struct_to_json(fields),
    }
}

/// As protobuf's JSON: whole numbers without a fraction.
fn number(value: f64) -> json::Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT {
        (value as i64).into()
    } else {
        value.into()
    }
}

/// A struct as JSON, for logs.
pub fn struct_to_json(value: &Struct) -> json::Value {
    let fields = value.fields.iter();
    json::Value::Object(fields.map(|(k, v)| (k.clone(), to_json(v))).collect())
}

#[cfg(test)]
mod tests {
    use attache_service::config::Document;

    use super::*;

    fn decode(text: &str) -> Result<Metadata, String> {
        let document = Document::parse("m.yaml", text).unwrap();
        document.decode().map_err(|errors| errors.to_string())
    }

    #[test]
    fn what_is_written_is_what_the_messages_hold() {
        let text = "
filter_metadata: { ns: { s: text, n: 1, f: 1.5, b: true, l: [1, x], o: { k: ~ } } }
typed_filter_metadata:
  typed: { '@type': type.googleapis.com/google.protobuf.StringValue, value: hello }
";
        let raw = decode(text).unwrap();
        let metadata = RouteMetadata::plan(&raw);
        assert_eq!(
            struct_to_json(&metadata.untyped["ns"]),
            json::json!({ "s": "text", "n": 1, "f": 1.5, "b": true, "l": [1, "x"], "o": { "k": null } })
        );
        let typed = &metadata.typed["typed"];
        assert_eq!(
            typed.type_url,
            "type.googleapis.com/google.protobuf.StringValue"
        );
        assert_eq!(
            <String as prost::Message>::decode(&*typed.value).unwrap(),
            "hello"
        );
        assert_eq!(
            raw.encode().unwrap()["filter_metadata"]["ns"]["n"],
            json::json!(1)
        );
    }

    #[test]
    fn other_types_are_refused() {
        for text in [
            "typed_filter_metadata: { ns: { '@type': type.googleapis.com/google.protobuf.Duration, value: 1s } }",
            "typed_filter_metadata: { ns: { value: 1s } }",
            "filter_metadata: { ns: text }",
        ] {
            assert!(decode(text).unwrap_err().contains("expected"), "{text}");
        }
    }
}
