//! Texts, by character.

use regorus::Value;

use super::{Answer, number, text, texts};

pub(super) fn upper(arguments: &[Value]) -> Answer {
    each_character(arguments, |c| match c {
        // What has no capital letter of its own stays.
        'ß' | 'ŉ' | 'ǰ' | '\u{fb00}'..='\u{fb06}' => Some(c),
        c => single(c.to_uppercase()),
    })
}

pub(super) fn lower(arguments: &[Value]) -> Answer {
    each_character(arguments, |c| match c {
        'İ' => Some('i'),
        c => single(c.to_lowercase()),
    })
}

pub(super) fn single(mut letters: impl Iterator<Item = char>) -> Option<char> {
    let first = letters.next();
    first.filter(|_| letters.next().is_none())
}

fn each_character(arguments: &[Value], change: impl Fn(char) -> Option<char>) -> Answer {
    let Some(text) = arguments.first().and_then(text) else {
        return Ok(None);
    };
    let changed: Option<String> = text.chars().map(change).collect();
    match changed {
        Some(text) => Ok(Some(Value::from(text))),
        None => Err("a letter has no single counterpart".to_owned()),
    }
}

pub(super) fn indexof(arguments: &[Value]) -> Answer {
    let Some((text, part)) = texts(arguments).filter(|(_, part)| !part.is_empty()) else {
        return Ok(None);
    };
    Ok(Some(match text.find(part) {
        Some(at) => number(text.get(..at).unwrap_or_default().chars().count()),
        None => Value::from(-1i64),
    }))
}

pub(super) fn count(arguments: &[Value]) -> Answer {
    let Some((text, part)) = texts(arguments) else {
        return Ok(None);
    };
    Ok(Some(number(text.matches(part).count())))
}

pub(super) fn replace_n(arguments: &[Value]) -> Answer {
    let [Value::Object(changes), of] = arguments else {
        return Ok(None);
    };
    let pairs: Option<Vec<(&str, &str)>> = changes
        .iter()
        .map(|(from, to)| Some((text(from)?, text(to)?)))
        .collect();
    let (Some(pairs), Some(mut rest)) = (pairs, text(of)) else {
        return Ok(None);
    };
    if pairs.iter().any(|(from, _)| from.is_empty()) {
        return Err("nothing cannot be replaced".to_owned());
    }
    let mut replaced = String::new();
    while let Some(first) = rest.chars().next() {
        let found = pairs.iter().find_map(|(from, to)| {
            let rest = rest.strip_prefix(from)?;
            Some((*to, rest))
        });
        match found {
            Some((to, after)) => {
                replaced.push_str(to);
                rest = after;
            }
            None => {
                replaced.push(first);
                rest = rest.get(first.len_utf8()..).unwrap_or_default();
            }
        }
    }
    Ok(Some(Value::from(replaced)))
}
