//! Parts of a text replaced by a regular expression: Envoy's `RegexMatchAndSubstitute`.

use attache_service::{
    config::{Errors, Located},
    config_struct,
};
use regex::Regex;

use crate::matcher::RegexMatcher;

config_struct! {
    /// Envoy's `type.matcher.v3.RegexMatchAndSubstitute`: every match of the pattern is replaced.
    pub struct RegexMatchAndSubstitute {
        /// What is replaced; it need not match the whole text.
        pub pattern: Located<RegexMatcher>,
        /// What stands instead: `\1` to `\9` are the groups of the match, `\0` is all of it, and
        /// `\\` is a backslash. Default: nothing.
        pub substitution: Option<Located<String>>,
    }
}

/// A compiled [`RegexMatchAndSubstitute`].
#[derive(Debug, Clone)]
pub struct Substitution {
    pattern: Regex,
    replacement: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Group(usize),
}

impl Substitution {
    /// Compiles a substitution; faults are reported at their place.
    pub fn plan(raw: &RegexMatchAndSubstitute, errors: &mut Errors) -> Option<Self> {
        let pattern = Regex::new(&raw.pattern.regex)
            .map_err(|error| errors.push(&raw.pattern, error.to_string()))
            .ok()?;
        let Some(text) = &raw.substitution else {
            return Some(Self {
                pattern,
                replacement: Vec::new(),
            });
        };
        match pieces(text, pattern.captures_len()) {
            Ok(replacement) => Some(Self {
                pattern,
                replacement,
            }),
            Err(fault) => {
                errors.push(text, fault);
                None
            }
        }
    }

    /// The text with every match replaced.
    pub fn apply(&self, text: &str) -> String {
        let mut result = String::with_capacity(text.len());
        let mut done = 0;
        for groups in self.pattern.captures_iter(text) {
            let Some(whole) = groups.get(0) else { continue };
            result.push_str(text.get(done..whole.start()).unwrap_or_default());
            for piece in &self.replacement {
                result.push_str(match piece {
                    Piece::Text(text) => text,
                    Piece::Group(nth) => groups.get(*nth).map_or("", |group| group.as_str()),
                });
            }
            done = whole.end();
        }
        result.push_str(text.get(done..).unwrap_or_default());
        result
    }
}

fn pieces(text: &str, groups: usize) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        if next != '\\' {
            literal.push(next);
            continue;
        }
        match rest.next() {
            Some('\\') => literal.push('\\'),
            Some(digit) if digit.is_ascii_digit() => {
                let nth = digit.to_digit(10).map_or(0, |digit| digit as usize);
                if nth >= groups {
                    return Err(format!("`\\{nth}`: the pattern has no such group"));
                }
                if !literal.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut literal)));
                }
                pieces.push(Piece::Group(nth));
            }
            _ => {
                return Err("behind a backslash stands a digit or another backslash".to_owned());
            }
        }
    }
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use attache_service::config::Document;

    use super::*;

    fn plan(pattern: &str, substitution: &str) -> Result<Substitution, Errors> {
        let text = serde_json::json!({
            "pattern": { "regex": pattern },
            "substitution": substitution,
        });
        let raw = Document::parse("test.yaml", text.to_string())?.decode()?;
        let mut errors = Errors::new();
        let plan = Substitution::plan(&raw, &mut errors);
        errors.into_result(plan)
    }

    #[test]
    fn every_match_is_replaced_and_groups_are_filled_in() {
        for (pattern, substitution, text, wanted) in [
            ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
            (
                "^/service/([^/]+)(/.*)$",
                r"\2/instance/\1",
                "/service/foo/v1/api",
                "/v1/api/instance/foo",
            ),
            ("(a)(b)?", r"[\0|\2]", "axab", "[a|]x[ab|b]"),
            ("x*", "-", "ab", "-a-b-"),
            ("/", r"\\", "/a", r"\a"),
            ("one", "two", "/three", "/three"),
            ("ö", "o", "/möp", "/mop"),
        ] {
            let substitution = plan(pattern, substitution).unwrap();
            assert_eq!(substitution.apply(text), wanted, "{substitution:?} {text}");
        }
    }

    #[test]
    fn a_group_that_is_not_there_is_a_fault_of_the_configuration() {
        for (pattern, substitution) in [("(a)", r"\2"), ("a", r"\1"), ("a", r"\x"), ("a", r"a\")] {
            assert!(plan(pattern, substitution).is_err(), "{substitution}");
        }
        assert!(plan("(", "a").is_err());
    }
}
