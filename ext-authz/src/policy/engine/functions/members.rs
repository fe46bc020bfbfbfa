//! What is in an array, a set or an object.

use regorus::Value;

use super::{Answer, number};

pub(super) fn member(arguments: &[Value]) -> Answer {
    let [value, of] = arguments else {
        return Ok(None);
    };
    Ok(Some(Value::from(match of {
        Value::Array(items) => items.iter().any(|item| item == value),
        Value::Set(items) => items.contains(value),
        Value::Object(fields) => fields.iter().any(|(_, field)| field == value),
        _ => false,
    })))
}

pub(super) fn member_at(arguments: &[Value]) -> Answer {
    let [key, value, of] = arguments else {
        return Ok(None);
    };
    Ok(Some(Value::from(match of {
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.any(|(index, item)| item == value && number(index) == *key)
        }
        Value::Set(items) => key == value && items.contains(value),
        Value::Object(fields) => fields.get(key) == Some(value),
        _ => false,
    })))
}

pub(super) fn subset(arguments: &[Value]) -> Answer {
    let [of, part] = arguments else {
        return Ok(None);
    };
    Ok(match (of, part) {
        (Value::Object(_), Value::Object(_)) => Some(Value::from(has_fields(of, part))),
        (Value::Set(of), Value::Set(part)) => {
            Some(Value::from(part.iter().all(|item| of.contains(item))))
        }
        (Value::Array(of), Value::Array(part)) => {
            let of: Vec<_> = of.iter().collect();
            let part: Vec<_> = part.iter().collect();
            let found = part.is_empty() || of.windows(part.len()).any(|some| some == part);
            Some(Value::from(found))
        }
        (Value::Array(of), Value::Set(part)) => {
            let found = part.iter().all(|item| of.iter().any(|one| one == item));
            Some(Value::from(found))
        }
        _ => None,
    })
}

/// Whether an object has the fields of another one, the objects in it too.
fn has_fields(of: &Value, part: &Value) -> bool {
    match (of, part) {
        (Value::Object(of), Value::Object(part)) => part.iter().all(|(name, part)| {
            let of = of.get(name);
            of.is_some_and(|of| match (of, part) {
                (Value::Object(_), Value::Object(_)) => has_fields(of, part),
                (Value::Set(of), Value::Set(part)) => part.iter().all(|item| of.contains(item)),
                (Value::Array(_), Value::Array(_)) => matches!(
                    subset(&[of.clone(), part.clone()]),
                    Ok(Some(Value::Bool(true)))
                ),
                _ => of == part,
            })
        }),
        _ => of == part,
    }
}
