//! Regular expressions: those of RE2, in the words of our library.

use std::{cell::RefCell, collections::HashMap};

use regex::Regex;
use regorus::Value;

use super::{Answer, text, texts};

/// Patterns kept by each thread; as many as policies have, and a bound for the rest.
const MAX_PATTERNS: usize = 256;

thread_local! {
    static PATTERNS: RefCell<HashMap<String, Regex>> = RefCell::default();
}

fn pattern(text: &str) -> Result<Regex, String> {
    compiled(text, || translated(text))
}

/// The pattern that is kept as `key`.
pub(super) fn compiled(
    key: &str,
    pattern: impl FnOnce() -> Result<String, String>,
) -> Result<Regex, String> {
    PATTERNS.with_borrow_mut(|patterns| {
        if let Some(regex) = patterns.get(key) {
            return Ok(regex.clone());
        }
        let regex = pattern()
            .and_then(|text| Regex::new(&text).map_err(|error| error.to_string()))
            .map_err(|problem| format!("the pattern `{key}` cannot be used: {problem}"))?;
        if patterns.len() >= MAX_PATTERNS {
            patterns.clear();
        }
        patterns.insert(key.to_owned(), regex.clone());
        Ok(regex)
    })
}

/// A pattern of RE2 in the words of our library, where some of them mean more than ASCII.
fn translated(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut class = false;
    while let Some(c) = chars.next() {
        match (c, class) {
            ('\\', _) => {
                let escaped = chars.next().ok_or("it ends with `\\`")?;
                match (escaped, class) {
                    ('d', false) => out.push_str("[0-9]"),
                    ('w', false) => out.push_str("[0-9A-Za-z_]"),
                    ('s', false) => out.push_str(r"[\t\n\f\r ]"),
                    ('d', true) => out.push_str("0-9"),
                    ('w', true) => out.push_str("0-9A-Za-z_"),
                    ('s', true) => out.push_str(r"\t\n\f\r "),
                    ('D', _) => out.push_str("[^0-9]"),
                    ('W', _) => out.push_str("[^0-9A-Za-z_]"),
                    ('S', _) => out.push_str(r"[^\t\n\f\r ]"),
                    ('b', false) => out.push_str(r"(?-u:\b)"),
                    ('B' | 'Q' | 'E' | 'C' | 'u' | 'U' | '<' | '>', _) => {
                        return Err(format!("there is no `\\{escaped}` here"));
                    }
                    _ => out.extend(['\\', escaped]),
                }
            }
            ('[', false) => {
                class = true;
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                if chars.next_if_eq(&']').is_some() {
                    out.push_str(r"\]");
                }
            }
            ('[', true) if chars.peek() == Some(&':') => {
                out.push('[');
                for c in chars.by_ref() {
                    out.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            ('[' | '&' | '~', true) => out.extend(['\\', c]),
            ('-', true) if chars.peek() == Some(&'-') => {
                return Err("there is no `--` here".to_owned());
            }
            (']', true) => {
                class = false;
                out.push(']');
            }
            ('(', false) if chars.next_if_eq(&'?').is_some() => {
                out.push_str("(?");
                let flags = chars.peek().copied();
                if flags.is_some_and(|flag| "xuR".contains(flag)) {
                    return Err("there is no such flag here".to_owned());
                }
            }
            (c, _) => out.push(c),
        }
    }
    Ok(out)
}

pub(super) fn matches(arguments: &[Value]) -> Answer {
    let Some((regex, text)) = texts(arguments) else {
        return Ok(None);
    };
    Ok(Some(Value::from(pattern(regex)?.is_match(text))))
}

pub(super) fn replace(arguments: &[Value]) -> Answer {
    let [of, regex, with] = arguments else {
        return Ok(None);
    };
    let (Some(of), Some(regex), Some(with)) = (text(of), text(regex), text(with)) else {
        return Ok(None);
    };
    let replaced = pattern(regex)?.replace_all(of, with);
    Ok(Some(Value::from(replaced.as_ref())))
}

pub(super) fn split(arguments: &[Value]) -> Answer {
    let Some((regex, text)) = texts(arguments) else {
        return Ok(None);
    };
    let regex = pattern(regex)?;
    if regex.is_match("") {
        return Err("the pattern matches nothing at all".to_owned());
    }
    Ok(Some(Value::from(
        regex.split(text).map(Value::from).collect::<Vec<_>>(),
    )))
}

/// Pattern, text and how many are wanted.
fn search(arguments: &[Value]) -> Option<(&str, &str, usize)> {
    let [regex, of, most] = arguments else {
        return None;
    };
    let most = usize::try_from(most.as_i64().ok()?).unwrap_or(usize::MAX);
    Some((text(regex)?, text(of)?, most))
}

pub(super) fn find(arguments: &[Value]) -> Answer {
    let Some((regex, text, most)) = search(arguments) else {
        return Ok(None);
    };
    let regex = pattern(regex)?;
    let found = regex.find_iter(text).take(most);
    let found = found.map(|found| Value::from(found.as_str()));
    Ok(Some(Value::from(found.collect::<Vec<_>>())))
}

pub(super) fn find_submatches(arguments: &[Value]) -> Answer {
    let Some((regex, text, most)) = search(arguments) else {
        return Ok(None);
    };
    let regex = pattern(regex)?;
    let found = regex.captures_iter(text).take(most).map(|groups| {
        let groups = groups.iter();
        let groups = groups.map(|group| Value::from(group.map_or("", |group| group.as_str())));
        Value::from(groups.collect::<Vec<_>>())
    });
    Ok(Some(Value::from(found.collect::<Vec<_>>())))
}
