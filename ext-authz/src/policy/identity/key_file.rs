//! Files with one key a line.

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::SystemTime};

use prost_types::Timestamp;
use serde_json::{Map, Value};

/// A line: whose key, the key, and what else is said of it.
#[derive(Debug, PartialEq)]
pub(super) struct Line<'a> {
    pub(super) number: usize,
    pub(super) id: &'a str,
    pub(super) key: &'a str,
    pub(super) expires: Option<SystemTime>,
    pub(super) claims: Map<String, Value>,
}

/// The lines that say something. `#` begins a comment. Mistakes are told without the line
/// itself: it may hold a secret.
pub(super) fn lines(text: &str) -> impl Iterator<Item = Result<Line<'_>, String>> {
    text.lines().enumerate().filter_map(|(index, line)| {
        let line = line.split('#').next().unwrap_or_default().trim();
        let number = index + 1;
        let wrong = |problem: String| format!("line {number}: {problem}");
        (!line.is_empty()).then(|| parse(number, line).map_err(wrong))
    })
}

fn parse(number: usize, line: &str) -> Result<Line<'_>, String> {
    let mut words = line.split_whitespace();
    let (Some(id), Some(key)) = (words.next(), words.next()) else {
        return Err("expected an id and a key".to_owned());
    };
    let mut parsed = Line {
        number,
        id,
        key,
        expires: None,
        claims: Map::new(),
    };
    for (nth, word) in words.enumerate() {
        match word.split_once('=') {
            Some(("expires", time)) => parsed.expires = Some(moment(time)?),
            Some((name, value)) if !name.is_empty() => {
                parsed.claims.insert(name.to_owned(), value.into());
            }
            _ => {
                let place = nth + 3;
                return Err(format!("word {place} is not `<name>=<value>`"));
            }
        }
    }
    Ok(parsed)
}

/// A time as RFC 3339 writes it.
pub(super) fn moment(text: &str) -> Result<SystemTime, String> {
    let time: Option<Timestamp> = text.parse().ok();
    time.and_then(|time| SystemTime::try_from(time).ok())
        .ok_or_else(|| format!("`{text}` is not a time such as `2027-01-31T00:00:00Z`"))
}

/// Warns when everybody on the machine may read a file with secrets.
pub(super) fn warn_if_readable_by_all(path: &Path) {
    // What cannot be read at all is an error elsewhere.
    if let Ok(file) = path.metadata()
        && file.permissions().mode() & 0o004 != 0
    {
        tracing::warn!(file = %path.display(), "a file with secrets is readable by everybody");
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_has_an_id_a_key_and_what_else_is_said_of_it() {
        let text = "# keys\n\nacme k1 # ours\n bob\tk2 expires=1970-01-01T00:01:00Z tier=gold x=\n";
        let lines: Vec<_> = lines(text).map(Result::unwrap).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            (lines[0].number, lines[0].id, lines[0].key),
            (3, "acme", "k1")
        );
        assert_eq!((lines[0].expires, lines[0].claims.len()), (None, 0));
        assert_eq!(
            (lines[1].number, lines[1].id, lines[1].key),
            (4, "bob", "k2")
        );
        let minute = UNIX_EPOCH + Duration::from_secs(60);
        assert_eq!(lines[1].expires, Some(minute));
        assert_eq!(
            Value::from(lines[1].claims.clone()),
            json!({ "tier": "gold", "x": "" })
        );
    }

    #[test]
    fn mistakes_are_told_by_line_and_without_the_key() {
        for (text, problem) in [
            ("\nsecret", "line 2: expected an id and a key"),
            ("a secret gold", "line 1: word 3 is not `<name>=<value>`"),
            ("a secret =gold", "line 1: word 3 is not `<name>=<value>`"),
            (
                "a secret expires=tomorrow",
                "line 1: `tomorrow` is not a time such as `2027-01-31T00:00:00Z`",
            ),
        ] {
            let told = lines(text).next().unwrap().unwrap_err();
            assert_eq!(told, problem);
        }
    }
}
