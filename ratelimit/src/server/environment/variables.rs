//! Reading variables in the syntax of Go, which the reference service is written in.

use std::time::Duration;

/// A variable that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}={}: {problem}", .value.as_deref().unwrap_or("(not shown)"))]
pub struct VariableError {
    /// Its name.
    pub name: String,
    /// Its value, unless it may be secret.
    pub value: Option<String>,
    /// What is wrong.
    pub problem: String,
}

/// A variable of the reference service that is accepted and has no effect here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Its name.
    pub name: &'static str,
    /// Why it has none.
    pub reason: &'static str,
}

/// Reads variables one by one and collects what is wrong with them.
pub(super) struct Variables<'e> {
    lookup: &'e dyn Fn(&str) -> Option<String>,
    pub(super) errors: Vec<VariableError>,
    pub(super) notes: Vec<Note>,
}

impl<'e> Variables<'e> {
    pub(super) fn new(lookup: &'e dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            lookup,
            errors: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The value, if it is set.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        (self.lookup)(name)
    }

    /// The value, if it is set to anything.
    pub(super) fn filled(&self, name: &str) -> Option<String> {
        self.get(name).filter(|value| !value.is_empty())
    }

    pub(super) fn text(&self, name: &str, default: &str) -> String {
        self.get(name).unwrap_or_else(|| default.to_owned())
    }

    pub(super) fn flag(&mut self, name: &str, default: bool) -> bool {
        self.parsed(name, default, parse_bool, "not `true` or `false`")
    }

    pub(super) fn duration(&mut self, name: &str, default: Duration) -> Duration {
        let problem = "not a duration such as `10s`, `150us` or `1h30m`";
        self.parsed(name, default, parse_duration, problem)
    }

    /// A whole number that fits into `T`.
    pub(super) fn number<T: TryFrom<i128>>(&mut self, name: &str, default: T) -> T {
        let parse = |text: &str| parse_integer(text).and_then(|number| T::try_from(number).ok());
        self.parsed(name, default, parse, "not a whole number, or out of range")
    }

    /// A number from 0 to 1.
    pub(super) fn share(&mut self, name: &str, default: f64) -> f64 {
        let parse = |text: &str| {
            let number: f64 = text.parse().ok()?;
            (0.0..=1.0).contains(&number).then_some(number)
        };
        self.parsed(name, default, parse, "not a number from 0 to 1")
    }

    /// One of these words, whatever the case of its letters.
    pub(super) fn choice<T: Copy>(&mut self, name: &str, words: &[(&str, T)], default: T) -> T {
        let find = |text: &str| {
            let found = words
                .iter()
                .find(|(word, _)| word.eq_ignore_ascii_case(text));
            found.map(|(_, choice)| *choice)
        };
        let list: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        let problem = format!("none of {}", list.join(", "));
        self.parsed(name, default, find, &problem)
    }

    /// Items between commas.
    pub(super) fn list(&self, name: &str) -> Vec<String> {
        let items = self.filled(name).unwrap_or_default();
        let items = items.split(',').map(str::trim);
        items
            .filter(|item| !item.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// Pairs `key:value` between commas, by key.
    pub(super) fn pairs(&mut self, name: &str) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        for item in self.list(name) {
            match item.split_once(':') {
                Some((key, value)) => pairs.push((key.to_owned(), value.to_owned())),
                None => self.refuse_hidden(name, "not pairs `key:value` between commas"),
            }
        }
        pairs.sort();
        pairs
    }

    /// Tells that a variable has no effect, if it is set.
    pub(super) fn no_effect(&mut self, name: &'static str, reason: &'static str) {
        if self.filled(name).is_some() {
            self.notes.push(Note { name, reason });
        }
    }

    pub(super) fn refuse(&mut self, name: &str, problem: impl Into<String>) {
        let value = Some(self.get(name).unwrap_or_default());
        self.push(name, value, problem.into());
    }

    /// Like [`Variables::refuse`], of a value that may be secret.
    pub(super) fn refuse_hidden(&mut self, name: &str, problem: impl Into<String>) {
        self.push(name, None, problem.into());
    }

    fn push(&mut self, name: &str, value: Option<String>, problem: String) {
        self.errors.push(VariableError {
            name: name.to_owned(),
            value,
            problem,
        });
    }

    fn parsed<T>(
        &mut self,
        name: &str,
        default: T,
        parse: impl Fn(&str) -> Option<T>,
        problem: &str,
    ) -> T {
        let Some(text) = self.get(name) else {
            return default;
        };
        match parse(&text) {
            Some(value) => value,
            None => {
                self.refuse(name, problem);
                default
            }
        }
    }
}

/// Go's `strconv.ParseBool`.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Go's `strconv.ParseInt` with base 0: `0x`, `0o`, `0b` and a leading 0 name the base, digits may
/// be parted by `_` where one is named.
fn parse_integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = if let Some(digits) = lower.strip_prefix("0x") {
        (16, digits)
    } else if let Some(digits) = lower.strip_prefix("0b") {
        (2, digits)
    } else if let Some(digits) = lower.strip_prefix("0o") {
        (8, digits)
    } else if let Some(digits) = lower.strip_prefix('0').filter(|rest| !rest.is_empty()) {
        (8, digits)
    } else {
        (10, lower.as_str())
    };
    let digits = match base {
        10 => digits.to_owned(),
        _ => digits.replace('_', ""),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let number = i128::from_str_radix(&digits, base).ok()?;
    Some(if negative { -number } else { number })
}

/// Go's `time.ParseDuration`, without negative ones.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at_checked(end)?;
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at_checked(unit_end)?;
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        sum = sum.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = next;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        let table = [
            ("0", Some(Duration::ZERO)),
            ("150us", Some(Duration::from_micros(150))),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("1h30m", Some(Duration::from_secs(5400))),
            (".5h", Some(Duration::from_secs(1800))),
            ("+3m", Some(Duration::from_secs(180))),
            ("2µs", Some(Duration::from_micros(2))),
            ("10", None),
            ("s", None),
            ("", None),
            ("-1s", None),
            ("1s ", None),
            ("1d", None),
            ("9e9s", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_duration(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_are_those_of_go() {
        let table = [
            ("8080", Some(8080)),
            ("-1", Some(-1)),
            ("0x1F", Some(31)),
            ("010", Some(8)),
            ("0b1_0", Some(2)),
            ("0", Some(0)),
            ("", None),
            ("1_0", None),
            ("0x", None),
            ("--1", None),
            ("8080 ", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_integer(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_by_name_and_value() {
        let environment = |name: &str| match name {
            "PORT" => Some("high".to_owned()),
            "FLAG" => Some("yes".to_owned()),
            "TAGS" => Some("a:1,secret".to_owned()),
            _ => None,
        };
        let mut variables = Variables::new(&environment);
        assert_eq!(variables.number("PORT", 1_u16), 1);
        assert!(!variables.flag("FLAG", false));
        assert_eq!(variables.pairs("TAGS"), [("a".to_owned(), "1".to_owned())]);
        let told: Vec<_> = variables.errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "PORT=high: not a whole number, or out of range",
                "FLAG=yes: not `true` or `false`",
                "TAGS=(not shown): not pairs `key:value` between commas"
            ]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,20}") {
            let _ = parse_duration(&text);
            let _ = parse_integer(&text);
        }
    }
}
