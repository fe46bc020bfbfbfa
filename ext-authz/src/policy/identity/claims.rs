//! What identities say.

use serde_json::Value;

/// The claim at a path: dots lead into maps, unless the name has dots itself.
pub(in crate::policy) fn claim<'a>(claims: &'a Value, path: &str) -> Option<&'a Value> {
    let map = claims.as_object()?;
    if let Some(value) = map.get(path) {
        return Some(value);
    }
    path.match_indices('.').find_map(|(dot, _)| {
        let (name, rest) = path.split_at_checked(dot)?;
        claim(map.get(name)?, rest.get(1..)?)
    })
}

/// Whether a claim is `wanted` or is a list with it.
pub(in crate::policy) fn says(claim: &Value, wanted: &str) -> bool {
    match claim {
        Value::Array(items) => items
            .iter()
            .any(|item| !item.is_array() && says(item, wanted)),
        Value::String(text) => text == wanted,
        Value::Number(number) => number.to_string() == wanted,
        Value::Bool(value) => wanted == if *value { "true" } else { "false" },
        Value::Null | Value::Object(_) => false,
    }
}

/// A claim as a header's value; `None` when it has none.
pub(in crate::policy) fn header_text(claim: &Value) -> Option<String> {
    let text = match claim {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Array(items) => {
            let texts: Option<Vec<_>> = items.iter().map(scalar).collect();
            texts?.join(",")
        }
        Value::Null | Value::Object(_) => return None,
    };
    // A claim is not ours: a line break in it must not become one in the request.
    http::HeaderValue::from_bytes(text.as_bytes()).ok()?;
    Some(text)
}

fn scalar(value: &Value) -> Option<String> {
    // A comma within an item would make one item look like two.
    match value {
        Value::Array(_) => None,
        other => header_text(other).filter(|text| !text.contains(',')),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_are_found_by_name_or_by_path() {
        let claims = json!({
            "sub": "u",
            "realm": { "roles": ["a", "b"], "x.y": 1 },
            "https://example.com/role": "admin",
        });
        for (path, expected) in [
            ("sub", Some(json!("u"))),
            ("realm.roles", Some(json!(["a", "b"]))),
            ("realm.x.y", Some(json!(1))),
            ("https://example.com/role", Some(json!("admin"))),
            ("realm.none", None),
            ("sub.x", None),
            ("", None),
        ] {
            assert_eq!(claim(&claims, path), expected.as_ref(), "{path}");
        }
    }

    #[test]
    fn claims_say_what_they_are_or_contain() {
        for (value, wanted, expected) in [
            (json!("admin"), "admin", true),
            (json!("administrator"), "admin", false),
            (json!(["user", "admin"]), "admin", true),
            (json!([["admin"]]), "admin", false),
            (json!(7), "7", true),
            (json!(true), "true", true),
            (json!(null), "null", false),
            (json!({"admin": true}), "admin", false),
        ] {
            assert_eq!(says(&value, wanted), expected, "{value} {wanted}");
        }
    }

    #[test]
    fn claims_that_no_header_can_have_are_none() {
        for (value, expected) in [
            (json!("u"), Some("u")),
            (json!(["a", 1, true]), Some("a,1,true")),
            (json!("a\r\nx: y"), None),
            (json!(["a,b"]), None),
            (json!({}), None),
            (json!([["a"]]), None),
        ] {
            assert_eq!(header_text(&value).as_deref(), expected, "{value}");
        }
    }
}
