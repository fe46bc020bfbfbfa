//! `sprintf`.

use regorus::Value;

use super::{Answer, text};

/// What formats see of a value: numbers and texts as such, all else as it is written in Rego.
enum Argument {
    Integer(i128),
    Float(f64),
    Text(String),
}

impl Argument {
    fn of(value: &Value) -> Self {
        match value {
            Value::String(text) => Self::Text(text.as_ref().to_owned()),
            Value::Number(_) => match (value.as_i128(), value.as_f64()) {
                (Ok(number), _) => Self::Integer(number),
                (Err(_), Ok(number)) => Self::Float(number),
                _ => Self::Text(value.to_string()),
            },
            other => Self::Text(written(other)),
        }
    }
}

/// A value as it is written in Rego.
fn written(value: &Value) -> String {
    let all = |items: Vec<String>| items.join(", ");
    match value {
        Value::Array(items) => format!("[{}]", all(items.iter().map(written).collect())),
        Value::Set(items) if items.is_empty() => "set()".to_owned(),
        Value::Set(items) => format!("{{{}}}", all(items.iter().map(written).collect())),
        Value::Object(fields) => {
            let fields = fields.iter();
            let fields =
                fields.map(|(name, value)| format!("{}: {}", written(name), written(value)));
            format!("{{{}}}", all(fields.collect()))
        }
        other => other.to_string(),
    }
}

pub(super) fn sprintf(arguments: &[Value]) -> Answer {
    let [format, Value::Array(values)] = arguments else {
        return Ok(None);
    };
    let Some(format) = text(format) else {
        return Ok(None);
    };
    let mut values = values.iter();
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (mut left, mut zero) = (false, false);
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '0')) {
            match flag {
                '-' => left = true,
                _ => zero = true,
            }
        }
        let width = digits(&mut chars)?.unwrap_or(0);
        let precision = match chars.next_if_eq(&'.') {
            Some(_) => Some(digits(&mut chars)?.unwrap_or(0)),
            None => None,
        };
        let verb = chars.next().ok_or("the format ends with `%`")?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let value = values
            .next()
            .ok_or("the format has more places than there are values")?;
        let said = formatted(&Argument::of(value), verb, precision)?;
        let missing = width.saturating_sub(said.chars().count());
        match (left, zero) {
            (true, _) => {
                out.push_str(&said);
                out.extend(std::iter::repeat_n(' ', missing));
            }
            (false, true) => {
                let (sign, digits) = match said.strip_prefix('-') {
                    Some(digits) => ("-", digits),
                    None => ("", said.as_str()),
                };
                out.push_str(sign);
                out.extend(std::iter::repeat_n('0', missing));
                out.push_str(digits);
            }
            (false, false) => {
                out.extend(std::iter::repeat_n(' ', missing));
                out.push_str(&said);
            }
        }
    }
    if values.next().is_some() {
        return Err("there are more values than the format has places".to_owned());
    }
    Ok(Some(Value::from(out)))
}

/// A width or precision; bounded, since so is memory.
fn digits(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Option<usize>, String> {
    let mut number = None;
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        let digit = digit.to_digit(10).unwrap_or(0) as usize;
        let longer = number.unwrap_or(0usize) * 10 + digit;
        if longer > 1000 {
            return Err("a width in the format is too large".to_owned());
        }
        number = Some(longer);
    }
    Ok(number)
}

fn formatted(value: &Argument, verb: char, precision: Option<usize>) -> Result<String, String> {
    if precision.is_some() && !matches!((value, verb), (Argument::Float(_), 'f')) {
        return Err(format!("there is no precision for `%{verb}` here"));
    }
    Ok(match (value, verb) {
        (Argument::Integer(number), 'd' | 'v') => number.to_string(),
        (Argument::Integer(number), 'x' | 'X' | 'o' | 'b') => {
            let sign = if *number < 0 { "-" } else { "" };
            let number = number.unsigned_abs();
            match verb {
                'x' => format!("{sign}{number:x}"),
                'X' => format!("{sign}{number:X}"),
                'o' => format!("{sign}{number:o}"),
                _ => format!("{sign}{number:b}"),
            }
        }
        (Argument::Float(number), 'f') => format!("{number:.*}", precision.unwrap_or(6)),
        (Argument::Float(number), 'v') if (1e-4..1e21).contains(&number.abs()) => {
            number.to_string()
        }
        (Argument::Text(text), 's' | 'v') => text.clone(),
        _ => return Err(format!("there is no `%{verb}` for such a value here")),
    })
}
