//! Dynamic metadata and attributes (`google.protobuf.Struct`) as JSON, both ways.

use prost_types::{ListValue, Struct, Value, value::Kind};

/// A struct as a JSON object.
pub fn object(object: &Struct) -> serde_json::Value {
    let fields = object.fields.iter();
    serde_json::Value::Object(
        fields
            .map(|(name, field)| (name.clone(), value(field)))
            .collect(),
    )
}

/// A value as JSON. Numbers that are whole are written as such: protobuf has one kind only.
pub fn value(from: &Value) -> serde_json::Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match &from.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() < EXACT => {
            (*value as i64).into()
        }
        Some(Kind::NumberValue(value)) => (*value).into(),
        Some(Kind::StringValue(value)) => value.as_str().into(),
        Some(Kind::StructValue(value)) => object(value),
        Some(Kind::ListValue(list)) => list.values.iter().map(value).collect(),
    }
}

/// The fields of a JSON object as a struct; `None` when the value is no object.
pub fn to_object(from: serde_json::Value) -> Option<Struct> {
    match to_value(from).kind {
        Some(Kind::StructValue(object)) => Some(object),
        _ => None,
    }
}

/// JSON as a value.
pub fn to_value(from: serde_json::Value) -> Value {
    let kind = match from {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        serde_json::Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        serde_json::Value::String(value) => Kind::StringValue(value),
        serde_json::Value::Array(values) => Kind::ListValue(ListValue {
            values: values.into_iter().map(to_value).collect(),
        }),
        serde_json::Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .into_iter()
                .map(|(name, value)| (name, to_value(value)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_comes_back_as_it_went() {
        let given = json!({"a": [1, "x", null, true, 0.5], "b": {"c": {}}});
        assert_eq!(object(&to_object(given.clone()).unwrap()), given);
        assert_eq!(to_object(json!([1])), None);
    }
}
