//! Values as `google.protobuf.Value`, the way Envoy writes them.
//!
//! | CEL | `Value` |
//! |---|---|
//! | text, bytes | string |
//! | whole numbers | number |
//! | other numbers | string |
//! | truth values | bool |
//! | `null` | the string `NULL` |
//! | times | string: `2026-11-22T06:42:17.65417+00:00` |
//! | durations | string: `1.5s`, `592.468us` |
//! | maps, lists, types | the strings `CelMap value`, `CelList value`, `CelType value` |

use std::borrow::Cow;

use bytes::BufMut;
use chrono::{DateTime, TimeDelta, Utc};
use prost::encoding::{encode_varint, encoded_len_varint};

use super::facts::Value;

/// `Value.number_value`, `string_value` and `bool_value` with their wire types.
const NUMBER: u8 = 2 << 3 | 1;
const STRING: u8 = 3 << 3 | 2;
const BOOL: u8 = 4 << 3;

/// Appends an entry of `Struct.fields` to an encoded `Struct`.
pub(super) fn put_field(key: &str, value: &Value<'_>, to: &mut Vec<u8>) {
    match value {
        Value::Bool(value) => put(key, &[BOOL, u8::from(*value)], None, to),
        // Structs have no other numbers.
        Value::Int(value) => put_number(key, *value as f64, to),
        Value::Uint(value) => put_number(key, *value as f64, to),
        value => {
            let text = text(value);
            put(key, &[STRING], Some(&text), to);
        }
    }
}

fn put_number(key: &str, value: f64, to: &mut Vec<u8>) {
    let mut bytes = [NUMBER; 9];
    if let Some(number) = bytes.get_mut(1..) {
        number.copy_from_slice(&value.to_le_bytes());
    }
    put(key, &bytes, None, to);
}

/// `head` is the value, or its tag when a text follows.
fn put(key: &str, head: &[u8], text: Option<&str>, to: &mut Vec<u8>) {
    let text_len = text.map_or(0, |text| encoded_len_varint(text.len() as u64) + text.len());
    let value = head.len() + text_len;
    let entry = 1
        + encoded_len_varint(key.len() as u64)
        + key.len()
        + 1
        + encoded_len_varint(value as u64)
        + value;
    to.put_u8(1 << 3 | 2);
    encode_varint(entry as u64, to);
    to.put_u8(1 << 3 | 2);
    encode_varint(key.len() as u64, to);
    to.put_slice(key.as_bytes());
    to.put_u8(2 << 3 | 2);
    encode_varint(value as u64, to);
    to.put_slice(head);
    if let Some(text) = text {
        encode_varint(text.len() as u64, to);
        to.put_slice(text.as_bytes());
    }
}

pub(super) fn text<'a>(value: &'a Value<'_>) -> Cow<'a, str> {
    match value {
        Value::Text(text) => Cow::Borrowed(text),
        Value::Bytes(bytes) => String::from_utf8_lossy(bytes),
        Value::Null => "NULL".into(),
        Value::Headers(_) | Value::Metadata(_) | Value::Map => "CelMap value".into(),
        Value::List => "CelList value".into(),
        Value::Type => "CelType value".into(),
        Value::Duration(duration) => self::duration(*duration).into(),
        Value::Time(time) => self::time((*time).into()).into(),
        Value::Bool(value) => value.to_string().into(),
        Value::Int(value) => value.to_string().into(),
        Value::Uint(value) => value.to_string().into(),
        Value::Double(value) => value.to_string().into(),
    }
}

/// RFC 3339 with as many digits as the microseconds need.
fn time(time: DateTime<Utc>) -> String {
    let micros = format!(".{:06}", time.timestamp_subsec_micros());
    let micros = micros.trim_end_matches('0').trim_end_matches('.');
    format!("{}{micros}+00:00", time.format("%Y-%m-%dT%H:%M:%S"))
}

/// `1h2m3.5s`; less than a second in the largest unit that fits: `592.468us`.
fn duration(duration: TimeDelta) -> String {
    let sign = if duration < TimeDelta::zero() {
        "-"
    } else {
        ""
    };
    let Ok(duration) = duration.abs().to_std() else {
        return "0".to_owned();
    };
    let nanos = duration.subsec_nanos();
    let decimal = |whole: u64, rest: u32, digits: usize| {
        let rest = format!(".{rest:0digits$}");
        format!(
            "{whole}{}",
            rest.trim_end_matches('0').trim_end_matches('.')
        )
    };
    let seconds = duration.as_secs();
    let magnitude = match (seconds, nanos) {
        (0, 0) => return "0".to_owned(),
        (0, 1..1_000) => format!("{nanos}ns"),
        (0, 1_000..1_000_000) => format!("{}us", decimal((nanos / 1_000).into(), nanos % 1_000, 3)),
        (0, _) => format!(
            "{}ms",
            decimal((nanos / 1_000_000).into(), nanos % 1_000_000, 6)
        ),
        _ => {
            let mut text = String::new();
            for (unit, count) in [("h", seconds / 3600), ("m", seconds / 60 % 60)] {
                if count > 0 {
                    text += &format!("{count}{unit}");
                }
            }
            if seconds % 60 > 0 || nanos > 0 {
                text += &format!("{}s", decimal(seconds % 60, nanos, 9));
            }
            text
        }
    };
    format!("{sign}{magnitude}")
}
