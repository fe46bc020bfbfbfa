//! The types of unquoted scalars, by the core schema of YAML 1.2.

use super::node::{Node, Span, Value};

/// Gives an unquoted scalar its type: `yes`, `on` and `no` are text, `0123` is a number.
pub(crate) fn plain(text: &str, span: Span) -> Node {
    let value = match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Value::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Value::Float(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => Value::Float(f64::NAN),
        _ => match number(text) {
            Some(value) => value,
            None => return Node::at(Value::String(text.into()), span),
        },
    };
    let mut node = Node::at(value, span);
    node.written = Some(text.into());
    node
}

fn number(text: &str) -> Option<Value> {
    let radix = |digits: &str, radix| {
        let valid = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
        valid.then(|| i128::from_str_radix(digits, radix).ok().map(Value::Int))?
    };
    if let Some(digits) = text.strip_prefix("0x") {
        return radix(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return radix(digits, 8);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if unsigned.bytes().all(|c| c.is_ascii_digit())
        && let Ok(value) = text.parse()
    {
        return Some(Value::Int(value));
    }
    // Rust reads more than YAML writes, but nothing more with these characters alone.
    let numeric = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-');
    if unsigned.chars().all(numeric) {
        return text.parse().ok().map(Value::Float);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_follow_the_core_schema() {
        let value = |text: &str| plain(text, Span::none()).value;
        assert_eq!(value("null"), Value::Null);
        assert_eq!(value("~"), Value::Null);
        assert_eq!(value("true"), Value::Bool(true));
        assert_eq!(value("FALSE"), Value::Bool(false));
        assert_eq!(value("0123"), Value::Int(123));
        assert_eq!(value("-5"), Value::Int(-5));
        assert_eq!(value("+5"), Value::Int(5));
        assert_eq!(value("0x1f"), Value::Int(31));
        assert_eq!(value("0o17"), Value::Int(15));
        assert_eq!(value("1.0"), Value::Float(1.0));
        assert_eq!(value(".5"), Value::Float(0.5));
        assert_eq!(value("1e3"), Value::Float(1000.0));
        assert_eq!(value("-.inf"), Value::Float(f64::NEG_INFINITY));
        assert_eq!(value(&"9".repeat(40)), Value::Float(1e40));
        for text in [
            "yes",
            "on",
            "No",
            "inf",
            "nan",
            "1_000",
            "0x",
            "0xg",
            "0x-1",
            "1.2.3",
            "127.0.0.1",
            "12:30",
            "-",
            "+",
            ".",
            "e5",
            "1e",
            "--1",
            "5s",
            "tRUE",
        ] {
            assert_eq!(value(text), Value::String(text.into()), "{text}");
        }
    }

    #[test]
    fn scalars_are_kept_as_written() {
        for text in ["0123", "1.0", "true", "~", "0x1f", "1e3", "text", "1.10"] {
            assert_eq!(plain(text, Span::none()).text(), Some(text));
        }
    }
}
