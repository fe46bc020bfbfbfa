//! Protobuf messages as plain values, by their descriptors.
//!
//! Messages are JSON objects with protobuf field names. For the sake of
//! readers some types have a shorter form: header lists are lists of
//! `[name, value]`, wrappers are their value, durations are `0.5s`,
//! a `Struct` is the object that it holds. What a sender left out, or set to
//! its default where the wire does not tell the two apart, is absent.

use std::sync::LazyLock;

use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey,
    MessageDescriptor, ReflectMessage as _, Value as Field, prost::Message as _,
};
use serde_json::{Map, Value, json};

use crate::text;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(attache_proto::FILE_DESCRIPTOR_SET).expect("the embedded descriptors")
});

/// The descriptor of the message with this full name.
pub fn descriptor(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(name)
        .unwrap_or_else(|| panic!("no message {name}"))
}

/// Reads one message.
pub fn decode(descriptor: &MessageDescriptor, bytes: &[u8]) -> Result<Value, String> {
    let message = DynamicMessage::decode(descriptor.clone(), bytes)
        .map_err(|error| format!("{}: {error}", descriptor.name()))?;
    Ok(show(&message))
}

/// Writes one message. `raw` says where the value of a header given as text
/// goes: to `raw_value` (External Processing) or to `value` (the others).
pub fn encode(descriptor: &MessageDescriptor, value: &Value, raw: bool) -> Result<Vec<u8>, String> {
    Ok(build(descriptor, value, raw)?.encode_to_vec())
}

/// Reads one message from protobuf's JSON.
pub fn from_json(descriptor: &MessageDescriptor, json: &[u8]) -> Result<Value, String> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let message = DynamicMessage::deserialize(descriptor.clone(), &mut reader)
        .map_err(|error| format!("{}: {error}", descriptor.name()))?;
    Ok(show(&message))
}

/// Writes one message as protobuf's JSON.
pub fn to_json(descriptor: &MessageDescriptor, value: &Value) -> Result<Vec<u8>, String> {
    serde_json::to_vec(&build(descriptor, value, true)?).map_err(|e| e.to_string())
}

fn show(message: &DynamicMessage) -> Value {
    let name = message.descriptor();
    match name.full_name() {
        "google.protobuf.Struct" => return show_struct(message),
        "google.protobuf.Value" => return show_value(message),
        "google.protobuf.Duration" => return show_duration(message),
        "google.protobuf.Timestamp" => return json!("<time>"),
        "envoy.config.core.v3.HeaderMap" => return show_headers(message),
        full if is_wrapper(full) => {
            return message
                .get_field_by_name("value")
                .map_or(Value::Null, |v| show_field(&v, None));
        }
        _ => {}
    }
    let mut object = Map::new();
    for (field, value) in message.fields() {
        object.insert(field.name().to_owned(), show_field(value, Some(&field)));
    }
    for unknown in message.unknown_fields() {
        object.insert(format!("<unknown {}>", unknown.number()), Value::Bool(true));
    }
    Value::Object(object)
}

fn show_field(value: &Field, field: Option<&FieldDescriptor>) -> Value {
    match value {
        Field::Bool(v) => json!(v),
        Field::I32(v) => json!(v),
        Field::I64(v) => json!(v),
        Field::U32(v) => json!(v),
        Field::U64(v) => json!(v),
        Field::F32(v) => json!(v),
        Field::F64(v) => json!(v),
        Field::String(v) => json!(v),
        Field::Bytes(v) => text::from_bytes(v),
        Field::EnumNumber(number) => match field.map(FieldDescriptor::kind) {
            Some(Kind::Enum(names)) => show_enum(&names, *number),
            _ => json!(number),
        },
        Field::Message(message) => show(message),
        Field::List(list) => list.iter().map(|v| show_field(v, field)).collect(),
        Field::Map(map) => {
            let of = field.and_then(|f| match f.kind() {
                Kind::Message(entry) => entry.get_field_by_name("value"),
                _ => None,
            });
            let entries = map
                .iter()
                .map(|(k, v)| (show_key(k), show_field(v, of.as_ref())));
            Value::Object(entries.collect())
        }
    }
}

fn show_enum(names: &EnumDescriptor, number: i32) -> Value {
    names
        .get_value(number)
        .map_or(json!(number), |value| json!(value.name()))
}

fn show_key(key: &MapKey) -> String {
    key.as_str()
        .map_or_else(|| format!("{key:?}"), str::to_owned)
}

fn show_headers(message: &DynamicMessage) -> Value {
    let Some(Field::List(list)) = message.get_field_by_name("headers").map(|v| v.into_owned())
    else {
        return json!([]);
    };
    let pair = |header: &Field| -> Option<Value> {
        let header = header.as_message()?;
        let (key, value) = (
            header.get_field_by_name("key")?,
            header.get_field_by_name("value")?,
        );
        let raw = header.get_field_by_name("raw_value")?;
        let shown = match value.as_str()? {
            "" => text::from_bytes(raw.as_bytes()?),
            // Only this form is marked: the filters use the other one.
            value => json!({ "value": value }),
        };
        Some(json!([key.as_str()?, shown]))
    };
    list.iter().filter_map(pair).collect()
}

fn show_struct(message: &DynamicMessage) -> Value {
    message
        .get_field_by_name("fields")
        .map_or(json!({}), |fields| show_field(&fields, None))
}

fn show_value(message: &DynamicMessage) -> Value {
    match message.fields().next() {
        Some((field, _)) if field.name() == "null_value" => Value::Null,
        Some((field, value)) if field.name() == "list_value" => value
            .as_message()
            .and_then(|list| {
                list.get_field_by_name("values")
                    .map(|v| show_field(&v, None))
            })
            .unwrap_or(json!([])),
        Some((_, value)) => show_field(value, None),
        None => Value::Null,
    }
}

fn show_duration(message: &DynamicMessage) -> Value {
    let seconds = message
        .get_field_by_name("seconds")
        .and_then(|v| v.as_i64())
        .unwrap_or(0);
    let nanos = message
        .get_field_by_name("nanos")
        .and_then(|v| v.as_i32())
        .unwrap_or(0);
    json!(format!("{}s", seconds as f64 + f64::from(nanos) / 1e9))
}

fn is_wrapper(full_name: &str) -> bool {
    full_name
        .strip_prefix("google.protobuf.")
        .is_some_and(|name| name.len() > "Value".len() && name.ends_with("Value"))
        && full_name != "google.protobuf.ListValue"
}

fn build(of: &MessageDescriptor, value: &Value, raw: bool) -> Result<DynamicMessage, String> {
    let mut message = DynamicMessage::new(of.clone());
    match of.full_name() {
        "google.protobuf.Struct" => return build_struct(of, value, raw),
        "google.protobuf.Value" => return build_value(of, value, raw),
        "google.protobuf.Duration" => {
            let seconds: f64 = (value.as_str())
                .and_then(|text| text.strip_suffix('s')?.parse().ok())
                .ok_or_else(|| format!("not a duration: {value}"))?;
            message.set_field_by_name("seconds", Field::I64(seconds.trunc() as i64));
            message.set_field_by_name("nanos", Field::I32((seconds.fract() * 1e9).round() as i32));
            return Ok(message);
        }
        "envoy.config.core.v3.HeaderValue" if !value.is_object() => {
            let (name, bytes) = text::to_header(value)?;
            message.set_field_by_name("key", Field::String(name));
            if raw {
                message.set_field_by_name("raw_value", Field::Bytes(bytes.into()));
            } else {
                let text = String::from_utf8(bytes).map_err(|e| e.to_string())?;
                message.set_field_by_name("value", Field::String(text));
            }
            return Ok(message);
        }
        "envoy.config.core.v3.HeaderValueOption" if !value.is_object() => {
            return build(of, &json!({ "header": value }), raw);
        }
        "envoy.config.core.v3.HeaderMap" if value.is_array() => {
            return build(of, &json!({ "headers": value }), raw);
        }
        full if is_wrapper(full) => {
            let field = of
                .get_field_by_name("value")
                .ok_or("a wrapper without value")?;
            message.set_field(&field, build_field(&field.kind(), value, raw)?);
            return Ok(message);
        }
        _ => {}
    }
    let object = value
        .as_object()
        .ok_or_else(|| format!("not a {}: {value}", of.name()))?;
    for (name, value) in object {
        let field = of
            .get_field_by_name(name)
            .ok_or_else(|| format!("{} has no {name}", of.name()))?;
        message.set_field(&field, build_any(&field, value, raw)?);
    }
    Ok(message)
}

fn build_any(field: &FieldDescriptor, value: &Value, raw: bool) -> Result<Field, String> {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else {
            return Err("a map without entry".into());
        };
        let of = entry
            .get_field_by_name("value")
            .ok_or("a map without value")?;
        let object = value
            .as_object()
            .ok_or_else(|| format!("not a map: {value}"))?;
        let entries = object.iter().map(|(key, value)| {
            Ok((
                MapKey::String(key.clone()),
                build_field(&of.kind(), value, raw)?,
            ))
        });
        return Ok(Field::Map(entries.collect::<Result<_, String>>()?));
    }
    if field.is_list() {
        let items = value
            .as_array()
            .ok_or_else(|| format!("not a list: {value}"))?;
        let items = items
            .iter()
            .map(|item| build_field(&field.kind(), item, raw));
        return Ok(Field::List(items.collect::<Result<_, String>>()?));
    }
    build_field(&field.kind(), value, raw)
}

fn build_field(kind: &Kind, value: &Value, raw: bool) -> Result<Field, String> {
    let wrong = || format!("not a {kind:?}: {value}");
    Ok(match kind {
        Kind::Bool => Field::Bool(value.as_bool().ok_or_else(wrong)?),
        Kind::String => Field::String(text::to_string(value)?),
        Kind::Bytes => Field::Bytes(text::to_bytes(value)?.into()),
        Kind::Message(of) => Field::Message(build(of, value, raw)?),
        Kind::Enum(names) => Field::EnumNumber(match value.as_str() {
            Some(name) => names.get_value_by_name(name).ok_or_else(wrong)?.number(),
            None => value.as_i64().ok_or_else(wrong)? as i32,
        }),
        Kind::Double => Field::F64(value.as_f64().ok_or_else(wrong)?),
        Kind::Float => Field::F32(value.as_f64().ok_or_else(wrong)? as f32),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            Field::I32(value.as_i64().ok_or_else(wrong)? as i32)
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            Field::I64(value.as_i64().ok_or_else(wrong)?)
        }
        Kind::Uint32 | Kind::Fixed32 => Field::U32(value.as_u64().ok_or_else(wrong)? as u32),
        Kind::Uint64 | Kind::Fixed64 => Field::U64(value.as_u64().ok_or_else(wrong)?),
    })
}

fn build_struct(
    of: &MessageDescriptor,
    value: &Value,
    raw: bool,
) -> Result<DynamicMessage, String> {
    let mut message = DynamicMessage::new(of.clone());
    let fields = of
        .get_field_by_name("fields")
        .ok_or("a struct without fields")?;
    message.set_field(&fields, build_any(&fields, value, raw)?);
    Ok(message)
}

fn build_value(of: &MessageDescriptor, value: &Value, raw: bool) -> Result<DynamicMessage, String> {
    let mut message = DynamicMessage::new(of.clone());
    let (name, list);
    let value = match value {
        Value::Null => return Ok(message),
        Value::Bool(_) => {
            name = "bool_value";
            value
        }
        Value::Number(_) => {
            name = "number_value";
            value
        }
        Value::String(_) => {
            name = "string_value";
            value
        }
        Value::Object(_) => {
            name = "struct_value";
            value
        }
        Value::Array(_) => {
            name = "list_value";
            list = json!({ "values": value });
            &list
        }
    };
    let field = of
        .get_field_by_name(name)
        .ok_or("a value without its kinds")?;
    message.set_field(&field, build_field(&field.kind(), value, raw)?);
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_keeps_its_content() {
        let of = descriptor("envoy.service.ext_proc.v3.ProcessingResponse");
        let reply = json!({
            "request_headers": { "response": { "header_mutation": {
                "set_headers": ["x-a: 1", { "header": "x-b: 2", "append": true }],
            } } },
            "dynamic_metadata": { "ns": { "k": "v", "n": 1.5, "l": [true] } },
            "override_message_timeout": "0.5s",
        });
        let shown = decode(&of, &encode(&of, &reply, true).unwrap()).unwrap();
        let set = &shown["request_headers"]["response"]["header_mutation"]["set_headers"];
        assert_eq!(
            set[1],
            json!({ "header": { "key": "x-b", "raw_value": "2" }, "append": true })
        );
        assert_eq!(shown["dynamic_metadata"], reply["dynamic_metadata"]);
        assert_eq!(
            shown["override_message_timeout"],
            reply["override_message_timeout"]
        );
    }

    #[test]
    fn a_misspelt_field_is_an_error() {
        let of = descriptor("envoy.service.auth.v3.CheckResponse");
        assert!(encode(&of, &json!({ "statuss": {} }), false).is_err());
    }
}
