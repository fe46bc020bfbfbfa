//! Values made of values: optional, listed, mapped, located, and trees taken as they are.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use serde_json::{Value as Json, json};

use super::error::Errors;
use super::node::{Node, Span, Spanned, Value};
use super::schema::Schemas;
use super::value::{ConfigOneof, ConfigValue};

impl<T: ConfigValue> ConfigValue for Option<T> {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        if node.is_explicit_null() {
            return Some(None);
        }
        T::decode(node, errors).map(Some)
    }

    fn missing() -> Option<Self> {
        Some(None)
    }

    fn encode(&self) -> Option<Json> {
        self.as_ref()?.encode_present()
    }

    fn encode_typed(&self) -> Option<Json> {
        self.as_ref()?.encode_typed()
    }

    fn envoy_type() -> Option<&'static str> {
        T::envoy_type()
    }

    fn schema(schemas: &mut Schemas) -> Json {
        T::schema(schemas)
    }
}

impl<T: ConfigValue> ConfigValue for Box<T> {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        T::decode(node, errors).map(Box::new)
    }

    fn missing() -> Option<Self> {
        T::missing().map(Box::new)
    }

    fn encode(&self) -> Option<Json> {
        self.as_ref().encode()
    }

    fn encode_present(&self) -> Option<Json> {
        self.as_ref().encode_present()
    }

    fn encode_typed(&self) -> Option<Json> {
        self.as_ref().encode_typed()
    }

    fn envoy_type() -> Option<&'static str> {
        T::envoy_type()
    }

    fn schema(schemas: &mut Schemas) -> Json {
        T::schema(schemas)
    }
}

impl<T: ConfigValue> ConfigValue for Vec<T> {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        match &node.value {
            Value::Seq(items) => {
                // Every item is decoded before the first failure counts, to report them all.
                let decoded: Vec<Option<T>> =
                    items.iter().map(|item| T::decode(item, errors)).collect();
                decoded.into_iter().collect()
            }
            // A key whose items are all commented out.
            Value::Null if !node.is_invalid() => Some(Vec::new()),
            _ => {
                errors.expected(node, "a list");
                None
            }
        }
    }

    fn missing() -> Option<Self> {
        Some(Vec::new())
    }

    fn encode(&self) -> Option<Json> {
        match self.is_empty() {
            true => None,
            false => self.encode_present(),
        }
    }

    fn encode_present(&self) -> Option<Json> {
        let items = self.iter().map(present);
        Some(Json::Array(items.collect()))
    }

    fn schema(schemas: &mut Schemas) -> Json {
        json!({ "type": ["array", "null"], "items": T::schema(schemas) })
    }
}

impl<V: ConfigValue> ConfigValue for BTreeMap<String, V> {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        match &node.value {
            Value::Map(entries) => {
                let decoded: Vec<Option<(String, V)>> = entries
                    .iter()
                    .map(|entry| {
                        let value = V::decode(&entry.value, errors)?;
                        Some((entry.key.name.to_string(), value))
                    })
                    .collect();
                decoded.into_iter().collect()
            }
            Value::Null if !node.is_invalid() => Some(BTreeMap::new()),
            _ => {
                errors.expected(node, "a map");
                None
            }
        }
    }

    fn missing() -> Option<Self> {
        Some(BTreeMap::new())
    }

    fn encode(&self) -> Option<Json> {
        match self.is_empty() {
            true => None,
            false => self.encode_present(),
        }
    }

    fn encode_present(&self) -> Option<Json> {
        let entries = self
            .iter()
            .map(|(key, value)| (key.clone(), present(value)));
        Some(Json::Object(entries.collect()))
    }

    fn schema(schemas: &mut Schemas) -> Json {
        json!({ "type": ["object", "null"], "additionalProperties": V::schema(schemas) })
    }
}

fn present<T: ConfigValue>(value: &T) -> Json {
    value.encode_present().unwrap_or(Json::Null)
}

/// A value that remembers where it was written, for errors found after decoding:
/// `errors.push(&located, "message")`.
///
/// Equality compares values, not places.
#[derive(Clone, Debug, Default)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub span: Span,
}

impl<T> Located<T> {
    /// A value that stands in no file.
    pub fn nowhere(value: T) -> Self {
        Self {
            value,
            span: Span::none(),
        }
    }

    /// The value alone.
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T: PartialEq> PartialEq for Located<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Located<T> {}

impl<T> Spanned for Located<T> {
    fn span(&self) -> &Span {
        &self.span
    }
}

impl<T> Deref for Located<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Located<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T: ConfigValue> ConfigValue for Located<T> {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        let value = T::decode(node, errors)?;
        let span = match node.value {
            // As for the errors of this module: a map is named by its key.
            Value::Map(_) => node.head().clone(),
            _ => node.span.clone(),
        };
        Some(Self { value, span })
    }

    fn missing() -> Option<Self> {
        T::missing().map(Self::nowhere)
    }

    fn encode(&self) -> Option<Json> {
        self.value.encode()
    }

    fn encode_present(&self) -> Option<Json> {
        self.value.encode_present()
    }

    fn encode_typed(&self) -> Option<Json> {
        self.value.encode_typed()
    }

    fn envoy_type() -> Option<&'static str> {
        T::envoy_type()
    }

    fn schema(schemas: &mut Schemas) -> Json {
        T::schema(schemas)
    }
}

/// The place is that of the field that was chosen.
impl<T: ConfigOneof> ConfigOneof for Located<T> {
    fn variants() -> &'static [&'static str] {
        T::variants()
    }

    fn elsewhere() -> &'static [(&'static str, &'static str)] {
        T::elsewhere()
    }

    fn decode_variant(key: &str, node: &Node, errors: &mut Errors) -> Option<Self> {
        let value = T::decode_variant(key, node, errors)?;
        let span = node.head().clone();
        Some(Self { value, span })
    }

    fn absent() -> Option<Self> {
        T::absent().map(Self::nowhere)
    }

    fn encode_variant(&self) -> Option<(&'static str, Json)> {
        self.value.encode_variant()
    }

    fn schema_variants(schemas: &mut Schemas) -> Vec<(&'static str, Json)> {
        T::schema_variants(schemas)
    }
}

impl ConfigValue for Node {
    fn decode(node: &Node, _errors: &mut Errors) -> Option<Self> {
        Some(node.clone())
    }

    fn encode(&self) -> Option<Json> {
        Some(self.to_json())
    }

    fn schema(_schemas: &mut Schemas) -> Json {
        Json::Bool(true)
    }
}

impl ConfigValue for Json {
    fn decode(node: &Node, _errors: &mut Errors) -> Option<Self> {
        Some(node.to_json())
    }

    fn encode(&self) -> Option<Json> {
        Some(self.clone())
    }

    fn schema(_schemas: &mut Schemas) -> Json {
        Json::Bool(true)
    }
}
