//! The `metadata` of a descriptor: any map, as a protobuf `Struct`.

use attache_service::config::{Entry, Errors, Node, Value};
use prost_types::{ListValue, Struct, value::Kind};

use super::yaml;

/// The metadata of a descriptor, if it has any.
pub(super) fn read(node: Option<&Node>, errors: &mut Errors) -> Option<Struct> {
    let node = node.filter(|node| !node.is_null())?;
    match &node.value {
        // Here any key is taken for its text.
        Value::Map(entries) => Some(fields(entries, errors)),
        _ => {
            yaml::mismatch(node, "map[string]interface {}", errors);
            None
        }
    }
}

fn fields(entries: &[Entry], errors: &mut Errors) -> Struct {
    let fields = entries.iter();
    let fields = fields.map(|entry| (entry.key.name.to_string(), value(&entry.value, errors)));
    Struct {
        fields: fields.collect(),
    }
}

fn kind(node: &Node, errors: &mut Errors) -> Kind {
    match &node.value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        // Numbers of a Struct are floating point ones.
        #[allow(clippy::cast_precision_loss)]
        Value::Int(value) => Kind::NumberValue(*value as f64),
        Value::Float(value) => Kind::NumberValue(*value),
        Value::String(value) => Kind::StringValue(value.clone()),
        Value::Seq(items) => Kind::ListValue(ListValue {
            values: items.iter().map(|item| value(item, errors)).collect(),
        }),
        Value::Map(entries) => {
            for entry in entries.iter().filter(|entry| !yaml::is_string(&entry.key)) {
                let name = &entry.key.name;
                let text = format!("error parsing metadata: the key {name} is not text");
                errors.push(&entry.key, text);
            }
            Kind::StructValue(fields(entries, errors))
        }
    }
}

fn value(node: &Node, errors: &mut Errors) -> prost_types::Value {
    prost_types::Value {
        kind: Some(kind(node, errors)),
    }
}
