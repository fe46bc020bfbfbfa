//! JSON, written and read as Go does.

use std::fmt::Write as _;

use regorus::Value;

use super::{Answer, text};
use crate::policy::engine::json;

pub(super) fn marshal(arguments: &[Value]) -> Answer {
    let Some(value) = arguments.first() else {
        return Ok(None);
    };
    let plain = serde_json::to_string(value).map_err(|error| error.to_string())?;
    let mut text = String::with_capacity(plain.len());
    for c in plain.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                write!(text, "\\u{:04x}", u32::from(c)).map_err(|error| error.to_string())?;
            }
            c => text.push(c),
        }
    }
    Ok(Some(Value::from(text)))
}

pub(super) fn unmarshal(arguments: &[Value]) -> Answer {
    Ok(arguments.first().and_then(text).and_then(json::parse))
}

pub(super) fn is_json(arguments: &[Value]) -> Answer {
    if arguments.first().and_then(text).is_none() {
        return Ok(None);
    }
    Ok(Some(Value::from(unmarshal(arguments)?.is_some())))
}
