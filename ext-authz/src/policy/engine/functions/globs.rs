//! Globs, as regular expressions.

use regorus::Value;

use super::{Answer, patterns::compiled, text, texts::single};

pub(super) fn glob(arguments: &[Value]) -> Answer {
    let [glob, delimiters, of] = arguments else {
        return Ok(None);
    };
    let (Some(glob), Some(of)) = (text(glob), text(of)) else {
        return Ok(None);
    };
    let mut separators = String::new();
    match delimiters {
        Value::Null => {}
        Value::Array(delimiters) if delimiters.is_empty() => separators.push('.'),
        Value::Array(delimiters) => {
            for delimiter in delimiters.iter() {
                let delimiter = text(delimiter).and_then(|text| single(text.chars()));
                separators.push(delimiter.ok_or("a delimiter is one character")?);
            }
        }
        _ => return Ok(None),
    }
    // No pattern has a null character in it.
    let key = format!("{glob}\0{separators}");
    let regex = compiled(&key, || glob_pattern(glob, &separators))?;
    Ok(Some(Value::from(regex.is_match(of))))
}

/// A glob as a regular expression. `*` and `?` stand for what is no separator, `**` for all.
fn glob_pattern(glob: &str, separators: &str) -> Result<String, String> {
    let other = match separators {
        "" => ".".to_owned(),
        separators => {
            let escaped = separators
                .chars()
                .map(|c| format!("\\x{{{:x}}}", u32::from(c)));
            format!("[^{}]", escaped.collect::<String>())
        }
    };
    let mut out = String::from("(?s)^");
    let mut depth = 0usize;
    let mut chars = glob.chars().peekable();
    while let Some(c) = chars.next() {
        // Versions of the reference differ in both.
        if c == '?' || depth > 0 && matches!(c, '*' | '[' | '{') {
            return Err(format!("`{c}` cannot stand there"));
        }
        match c {
            '*' => {
                let mut all = false;
                while chars.next_if_eq(&'*').is_some() {
                    all = true;
                }
                out.push_str(if all { "." } else { &other });
                out.push('*');
            }
            '{' => {
                depth = depth.saturating_add(1);
                out.push_str("(?:");
            }
            '}' if depth > 0 => {
                depth = depth.saturating_sub(1);
                out.push(')');
            }
            ',' if depth > 0 => out.push('|'),
            '[' => {
                out.push_str(if chars.next_if_eq(&'!').is_some() {
                    "[^"
                } else {
                    "["
                });
                loop {
                    match chars.next().ok_or("`[` is not closed")? {
                        ']' => break,
                        '-' => out.push('-'),
                        '\\' => {
                            let c = chars.next().ok_or("it ends with `\\`")?;
                            out.push_str(&format!("\\x{{{:x}}}", u32::from(c)));
                        }
                        c => out.push_str(&format!("\\x{{{:x}}}", u32::from(c))),
                    }
                }
                out.push(']');
            }
            '\\' => {
                let c = chars.next().ok_or("it ends with `\\`")?;
                out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
            }
            c => out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    if depth > 0 {
        return Err("`{` is not closed".to_owned());
    }
    out.push('$');
    Ok(out)
}
