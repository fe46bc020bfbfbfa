//! Text for URLs with expressions in braces.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::{condition::Expression, facts::Facts};

/// Everything but what RFC 3986 leaves unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A part of a URL, checked.
#[derive(Debug)]
pub(super) struct Template(Vec<Piece>);

#[derive(Debug)]
enum Piece {
    Text(String),
    Expression(Expression),
}

impl Template {
    /// Reads a text with expressions in braces; a brace itself is written twice.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, brace) = rest.split_at(at);
            plain.push_str(before);
            let twice = |brace: &str, one: &str| brace.starts_with(&one.repeat(2));
            if twice(brace, "{") || twice(brace, "}") {
                let (kept, after) = brace.split_at(2);
                plain.push_str(kept.get(..1).unwrap_or_default());
                rest = after;
                continue;
            }
            let inside = brace
                .strip_prefix('{')
                .ok_or("a `}` without its `{`; a brace itself is written twice")?;
            let (expression, after) = inside
                .split_once('}')
                .ok_or("a `{` without its `}`; a brace itself is written twice")?;
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Expression(Expression::new(expression)?));
            rest = after;
        }
        plain.push_str(rest);
        if let Some(wrong) = plain.chars().chain(text_of(&pieces)).find(|c| !in_url(*c)) {
            return Err(format!("{wrong:?} cannot stand in a URL"));
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }

    /// The text with the expressions filled in, percent-encoded. In the path a value is one
    /// segment, whatever is in it.
    ///
    /// # Errors
    /// When an expression has no value, or one that would make another path of it.
    pub(super) fn fill(&self, facts: &Facts<'_>) -> Result<String, String> {
        let mut filled = String::new();
        let mut in_path = true;
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => {
                    in_path &= !text.contains(['?', '#']);
                    filled.push_str(text);
                }
                Piece::Expression(expression) => {
                    let value = match expression.value(facts)? {
                        Value::String(text) => text,
                        Value::Number(number) => number.to_string(),
                        Value::Bool(value) => value.to_string(),
                        _ => return Err("a list or a map cannot stand in a URL".to_owned()),
                    };
                    if in_path && leads_elsewhere(&value) {
                        return Err("a value with `.` or `..` or none cannot be in a path".into());
                    }
                    // Writing to a string cannot fail.
                    let _ = write!(filled, "{}", utf8_percent_encode(&value, ENCODED));
                }
            }
        }
        Ok(filled)
    }
}

/// Whether a value would mean another path, for those that resolve dots, or that take an encoded
/// slash for a slash.
fn leads_elsewhere(value: &str) -> bool {
    let mut segments = value.split(['/', '\\']);
    value.is_empty() || segments.any(|segment| matches!(segment, "." | ".."))
}

fn text_of(pieces: &[Piece]) -> impl Iterator<Item = char> + '_ {
    pieces.iter().flat_map(|piece| match piece {
        Piece::Text(text) => text.chars(),
        Piece::Expression(_) => "".chars(),
    })
}

fn in_url(character: char) -> bool {
    character.is_ascii_graphic() && !matches!(character, '"' | '<' | '>' | '\\' | '^' | '`')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::facts::testing::with_facts;

    fn filled(template: &str) -> Result<String, String> {
        let template = Template::new(template).unwrap();
        with_facts(|facts| template.fill(facts))
    }

    #[test]
    fn expressions_are_filled_in_and_encoded() {
        for (template, expected) in [
            ("/users", "/users"),
            ("/users/{identity.claims.sub}", "/users/alice"),
            ("/u?q={request.path}&n={1 + 1}", "/u?q=%2Fa%20b%2Fc&n=2"),
            ("/{{{identity.claims.sub}}}/x", "/{alice}/x"),
            (r#"/u/{"a/b.c..d"}"#, "/u/a%2Fb.c..d"),
            (
                r#"/u?q={""}&r={".."}&s={"&t=1#"}"#,
                "/u?q=&r=..&s=%26t%3D1%23",
            ),
        ] {
            assert_eq!(filled(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn values_that_would_change_the_url_are_refused() {
        for template in [
            "/users/{identity.claims.none}/x",
            r#"/users/{".."}/x"#,
            r#"/users/{""}/x"#,
            r#"/users/{"../admin"}"#,
            r#"/users/{"a/./b"}"#,
            r#"/users/{"..\\admin"}"#,
            "/users/{identity.claims.roles}",
        ] {
            assert!(filled(template).is_err(), "{template}");
        }
    }

    #[test]
    fn mistakes_are_found_at_once() {
        for (template, expected) in [
            ("/{identity.claims.sub", "without its `}`"),
            ("/a}b", "without its `{`"),
            ("/{user}", "there is no `user` here"),
            ("/a b", "cannot stand in a URL"),
            ("/ä", "cannot stand in a URL"),
        ] {
            let error = Template::new(template).unwrap_err();
            assert!(error.contains(expected), "{template}: {error}");
        }
    }
}
