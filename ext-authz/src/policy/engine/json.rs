//! JSON of requests, as values of policies.
//!
//! The engine's own reader takes an object with a certain name in it for a number, and has whole
//! numbers of any length: a few bytes of a request would cost it minutes and gigabytes.

use regorus::Value;
use serde_json::{Number, Value as Json};

/// The value of a text in JSON; `None` when it is none.
pub(super) fn parse(text: &str) -> Option<Value> {
    let json: Json = serde_json::from_str(text).ok()?;
    Some(value(&json))
}

pub(super) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::from(*value),
        Json::Number(written) => number(written),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(value).collect::<Vec<_>>()),
        Json::Object(fields) => {
            let fields = fields.iter();
            let fields = fields.map(|(name, field)| (Value::from(name.as_str()), value(field)));
            Value::from(std::collections::BTreeMap::from_iter(fields))
        }
    }
}

fn number(written: &Number) -> Value {
    match (written.as_i64(), written.as_u64()) {
        (Some(number), _) => Value::from(number),
        (None, Some(number)) => Value::from(number),
        (None, None) => fraction(written.as_f64().unwrap_or(f64::NAN)),
    }
}

/// A number that may be a fraction; JSON has no infinite ones.
pub(super) fn fraction(number: f64) -> Value {
    if number.is_finite() {
        Value::from(number)
    } else {
        Value::Null
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_the_values_that_the_engine_gives_them() {
        for text in [
            "null",
            "true",
            "\"a\\u00e9\"",
            "[1, -1, 0, -0, 1.5, 1e2, 1E+2, 1e-2, 18446744073709551615]",
            "123456789012345678901234567890",
            r#"{"a": {"b": [{}]}, "a": 1, "": null}"#,
        ] {
            let expected = Value::from_json_str(text).unwrap();
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        for text in ["", "{", "nul", "01", "1 2", "1e1000000000"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn no_name_makes_a_number_of_an_object() {
        for text in [
            r#"{"$serde_json::private::Number": "1e5000"}"#,
            r#"{"\u0024serde_json::private::Number": "1e5000"}"#,
        ] {
            assert!(matches!(parse(text), Some(Value::Object(_))), "{text}");
        }
    }
}
