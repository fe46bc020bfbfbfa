//! The trait of everything that can stand in a configuration file.

use serde_json::Value as Json;

use super::error::Errors;
use super::node::Node;
use super::schema::Schemas;

/// A type that can be read from a configuration file, written as Envoy's JSON, and described.
///
/// Types with fields come from [`config_struct!`](crate::config_struct),
/// [`config_enum!`](crate::config_enum) and [`config_oneof!`](crate::config_oneof), text with a
/// syntax of its own from [`config_parsed!`](crate::config_parsed).
pub trait ConfigValue: Sized {
    /// Reads a value.
    ///
    /// `None` only after an error was added. A value in spite of errors is possible (it had, say,
    /// an unknown field), so that plan building can go on and find more of them.
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self>;

    /// What a field has when it is not written; `None` if it must be.
    fn missing() -> Option<Self> {
        None
    }

    /// The value in Envoy's proto JSON; `None` if the field is not to be written.
    fn encode(&self) -> Option<Json>;

    /// Like [`ConfigValue::encode`], where leaving the value out would mean something else: an
    /// empty list or map is written.
    fn encode_present(&self) -> Option<Json> {
        self.encode()
    }

    /// Like [`ConfigValue::encode`], as the content of a `google.protobuf.Any`: with `@type`.
    fn encode_typed(&self) -> Option<Json> {
        let mut json = self.encode()?;
        if let (Some(name), Some(object)) = (Self::envoy_type(), json.as_object_mut()) {
            object.insert("@type".into(), super::envoy::type_url(name).into());
        }
        Some(json)
    }

    /// The protobuf message that Envoy has for this type, if declared.
    fn envoy_type() -> Option<&'static str> {
        None
    }

    /// The JSON Schema of this type, usually a reference to one that was put into `schemas`.
    fn schema(schemas: &mut Schemas) -> Json;
}

/// A group of fields of which exactly one may be present (protobuf's `oneof`).
///
/// Made by [`config_oneof!`](crate::config_oneof). `Option` of such a type is a group that may
/// be absent.
pub trait ConfigOneof: Sized {
    /// The fields of the group.
    fn variants() -> &'static [&'static str];

    /// Fields Envoy has in this group and we do not, with the reason.
    fn elsewhere() -> &'static [(&'static str, &'static str)];

    /// Reads the value of one of the fields; `None` only after an error was added.
    fn decode_variant(key: &str, node: &Node, errors: &mut Errors) -> Option<Self>;

    /// What the group has when none of its fields is there; `None` if one must be.
    fn absent() -> Option<Self> {
        None
    }

    /// The field and its value.
    fn encode_variant(&self) -> Option<(&'static str, Json)>;

    /// The fields' schemas.
    fn schema_variants(schemas: &mut Schemas) -> Vec<(&'static str, Json)>;
}

impl<T: ConfigOneof> ConfigOneof for Option<T> {
    fn variants() -> &'static [&'static str] {
        T::variants()
    }

    fn elsewhere() -> &'static [(&'static str, &'static str)] {
        T::elsewhere()
    }

    fn decode_variant(key: &str, node: &Node, errors: &mut Errors) -> Option<Self> {
        T::decode_variant(key, node, errors).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }

    fn encode_variant(&self) -> Option<(&'static str, Json)> {
        self.as_ref()?.encode_variant()
    }

    fn schema_variants(schemas: &mut Schemas) -> Vec<(&'static str, Json)> {
        T::schema_variants(schemas)
    }
}

impl<T: ConfigOneof> ConfigOneof for Box<T> {
    fn variants() -> &'static [&'static str] {
        T::variants()
    }

    fn elsewhere() -> &'static [(&'static str, &'static str)] {
        T::elsewhere()
    }

    fn decode_variant(key: &str, node: &Node, errors: &mut Errors) -> Option<Self> {
        T::decode_variant(key, node, errors).map(Box::new)
    }

    fn absent() -> Option<Self> {
        T::absent().map(Box::new)
    }

    fn encode_variant(&self) -> Option<(&'static str, Json)> {
        self.as_ref().encode_variant()
    }

    fn schema_variants(schemas: &mut Schemas) -> Vec<(&'static str, Json)> {
        T::schema_variants(schemas)
    }
}
