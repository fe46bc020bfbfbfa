//! Bytes in scenario files and in observations.
//!
//! Bytes that are UTF-8 are written as text. Others are `{hex: fffe}`, and a
//! long run of the same text may be written `{repeat: x, times: 200}`.

use serde_json::{Value, json};

/// The value that stands for `bytes`.
pub fn from_bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            json!({ "hex": hex })
        }
    }
}

/// The bytes that `value` stands for.
pub fn to_bytes(value: &Value) -> Result<Vec<u8>, String> {
    match value {
        Value::String(text) => Ok(text.clone().into_bytes()),
        Value::Number(number) => Ok(number.to_string().into_bytes()),
        Value::Array(parts) => {
            let mut whole = Vec::new();
            for part in parts {
                whole.extend(to_bytes(part)?);
            }
            Ok(whole)
        }
        Value::Object(map) => {
            if let Some(hex) = map.get("hex").and_then(Value::as_str) {
                return unhex(hex);
            }
            let text = map.get("repeat").and_then(Value::as_str);
            let times = map.get("times").and_then(Value::as_u64);
            match (text, times) {
                (Some(text), Some(times)) => Ok(text.repeat(times as usize).into_bytes()),
                _ => Err(format!("not bytes: {value}")),
            }
        }
        _ => Err(format!("not bytes: {value}")),
    }
}

/// The text that `value` stands for.
pub fn to_string(value: &Value) -> Result<String, String> {
    String::from_utf8(to_bytes(value)?).map_err(|_| format!("not text: {value}"))
}

fn unhex(hex: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    if digits.len() != hex.len() || !digits.len().is_multiple_of(2) {
        return Err(format!("not hexadecimal: {hex}"));
    }
    Ok(digits
        .chunks(2)
        .map(|pair| (pair[0] * 16 + pair[1]) as u8)
        .collect())
}

/// Splits `name: value`; a name may start with a colon.
pub fn split_header(line: &str) -> Option<(&str, &str)> {
    let colon = line.char_indices().skip(1).find(|(_, c)| *c == ':')?.0;
    let value = &line[colon + 1..];
    Some((&line[..colon], value.strip_prefix(' ').unwrap_or(value)))
}

/// A header as a scenario writes it: `name: value` in one string, or
/// `[name, value]` where the value is bytes.
pub fn to_header(value: &Value) -> Result<(String, Vec<u8>), String> {
    match value {
        Value::String(line) => {
            let (name, value) =
                split_header(line).ok_or_else(|| format!("not a header: {line}"))?;
            Ok((name.to_owned(), value.as_bytes().to_vec()))
        }
        Value::Array(pair) if pair.len() == 2 => Ok((to_string(&pair[0])?, to_bytes(&pair[1])?)),
        _ => Err(format!("not a header: {value}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_split_after_their_name() {
        assert_eq!(split_header("x-a: 1: 2"), Some(("x-a", "1: 2")));
        assert_eq!(split_header(":path: /p"), Some((":path", "/p")));
        assert_eq!(split_header("x-empty:"), Some(("x-empty", "")));
        assert_eq!(split_header("nothing"), None);
    }

    #[test]
    fn bytes_survive_the_round_trip() {
        for bytes in [&b"text"[..], &[0xff, 0xfe], &[]] {
            assert_eq!(to_bytes(&from_bytes(bytes)).unwrap(), bytes);
        }
        assert_eq!(
            to_bytes(&json!({ "repeat": "ab", "times": 2 })).unwrap(),
            b"abab"
        );
    }
}
