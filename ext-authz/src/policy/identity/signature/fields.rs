//! Structured fields (RFC 8941), as far as signatures and digests need them: dictionaries whose
//! members are items or lists of items.
//!
//! Stricter than the RFC in one thing: a key that is there twice is an error, since of two
//! values different programs take different ones.

use std::fmt::{self, Write as _};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

/// Longer fields are refused unread.
const MAX_LENGTH: usize = 16 << 10;
/// More members, items of a list, or parameters of one item.
const MAX_ITEMS: usize = 64;

/// Base64 with or without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The text is no dictionary, or a longer one than anybody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// A value by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bare {
    Integer(i64),
    String(String),
    Token(String),
    Bytes(Vec<u8>),
    Boolean(bool),
}

/// Parameters, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Params(pub(super) Vec<(String, Bare)>);

/// A value with parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) bare: Bare,
    pub(super) params: Params,
}

/// A member of a dictionary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Member {
    Item(Item),
    List(Vec<Item>, Params),
}

impl Params {
    pub(super) fn get(&self, name: &str) -> Option<&Bare> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value)
    }
}

/// Reads a dictionary.
pub(super) fn dictionary(text: &str) -> Result<Vec<(String, Member)>, Malformed> {
    if text.len() > MAX_LENGTH {
        return Err(Malformed);
    }
    let mut input = Input(text.trim_matches(' '));
    let mut members: Vec<(String, Member)> = Vec::new();
    if input.0.is_empty() {
        return Ok(members);
    }
    loop {
        let key = input.key()?;
        let member = match (input.take('='), input.peek()) {
            (true, Some('(')) => input.list()?,
            (true, _) => Member::Item(input.item()?),
            (false, _) => Member::Item(Item {
                bare: Bare::Boolean(true),
                params: input.params()?,
            }),
        };
        if members.len() == MAX_ITEMS || members.iter().any(|(other, _)| *other == key) {
            return Err(Malformed);
        }
        members.push((key, member));
        input.skip([' ', '\t']);
        if input.0.is_empty() {
            return Ok(members);
        }
        input.expect(',')?;
        input.skip([' ', '\t']);
    }
}

/// What is left to read.
struct Input<'a>(&'a str);

impl<'a> Input<'a> {
    fn peek(&self) -> Option<char> {
        self.0.chars().next()
    }

    fn take(&mut self, wanted: char) -> bool {
        match self.0.strip_prefix(wanted) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, wanted: char) -> Result<(), Malformed> {
        self.take(wanted).then_some(()).ok_or(Malformed)
    }

    fn skip<const N: usize>(&mut self, blanks: [char; N]) {
        self.0 = self.0.trim_start_matches(blanks);
    }

    /// The longest beginning of such characters.
    fn run(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.0.find(|c| !wanted(c)).unwrap_or(self.0.len());
        let (run, rest) = self.0.split_at_checked(end).unwrap_or((self.0, ""));
        self.0 = rest;
        run
    }

    fn key(&mut self) -> Result<String, Malformed> {
        let key = self.run(is_key);
        let first = key.chars().next();
        match first {
            Some('a'..='z' | '*') => Ok(key.to_owned()),
            _ => Err(Malformed),
        }
    }

    fn list(&mut self) -> Result<Member, Malformed> {
        self.expect('(')?;
        let mut items = Vec::new();
        loop {
            self.skip([' ']);
            if self.take(')') {
                return Ok(Member::List(items, self.params()?));
            }
            if items.len() == MAX_ITEMS {
                return Err(Malformed);
            }
            items.push(self.item()?);
            if !matches!(self.peek(), Some(' ' | ')')) {
                return Err(Malformed);
            }
        }
    }

    fn item(&mut self) -> Result<Item, Malformed> {
        Ok(Item {
            bare: self.bare()?,
            params: self.params()?,
        })
    }

    fn params(&mut self) -> Result<Params, Malformed> {
        let mut params: Vec<(String, Bare)> = Vec::new();
        while self.take(';') {
            self.skip([' ']);
            let key = self.key()?;
            let value = match self.take('=') {
                true => self.bare()?,
                false => Bare::Boolean(true),
            };
            if params.len() == MAX_ITEMS || params.iter().any(|(other, _)| *other == key) {
                return Err(Malformed);
            }
            params.push((key, value));
        }
        Ok(Params(params))
    }

    fn bare(&mut self) -> Result<Bare, Malformed> {
        match self.peek().ok_or(Malformed)? {
            '-' | '0'..='9' => self.integer(),
            '"' => self.string(),
            ':' => self.bytes(),
            '?' => {
                self.expect('?')?;
                let value = self.take('1');
                if !value {
                    self.expect('0')?;
                }
                Ok(Bare::Boolean(value))
            }
            'a'..='z' | 'A'..='Z' | '*' => Ok(Bare::Token(self.run(is_token).to_owned())),
            _ => Err(Malformed),
        }
    }

    /// Decimals are errors: nothing here has any.
    fn integer(&mut self) -> Result<Bare, Malformed> {
        let minus = self.take('-');
        let digits = self.run(|c| c.is_ascii_digit());
        if digits.len() > 15 || self.peek() == Some('.') {
            return Err(Malformed);
        }
        let number: i64 = digits.parse().map_err(|_| Malformed)?;
        Ok(Bare::Integer(if minus { -number } else { number }))
    }

    fn string(&mut self) -> Result<Bare, Malformed> {
        self.expect('"')?;
        let mut text = String::new();
        loop {
            text.push_str(self.run(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\')));
            if self.take('"') {
                return Ok(Bare::String(text));
            }
            self.expect('\\')?;
            let escaped = self.peek().filter(|c| matches!(c, '"' | '\\'));
            let escaped = escaped.ok_or(Malformed)?;
            self.expect(escaped)?;
            text.push(escaped);
        }
    }

    fn bytes(&mut self) -> Result<Bare, Malformed> {
        self.expect(':')?;
        let encoded = self.run(|c| c != ':');
        self.expect(':')?;
        BASE64
            .decode(encoded)
            .map(Bare::Bytes)
            .map_err(|_| Malformed)
    }
}

fn is_key(c: char) -> bool {
    matches!(c, 'a'..='z' | '0'..='9' | '_' | '-' | '.' | '*')
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/".contains(c)
}

impl fmt::Display for Bare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => write!(f, "{number}"),
            Self::String(text) => {
                f.write_char('"')?;
                for c in text.chars() {
                    if matches!(c, '"' | '\\') {
                        f.write_char('\\')?;
                    }
                    f.write_char(c)?;
                }
                f.write_char('"')
            }
            Self::Token(token) => f.write_str(token),
            Self::Bytes(bytes) => write!(f, ":{}:", BASE64.encode(bytes)),
            Self::Boolean(value) => f.write_str(if *value { "?1" } else { "?0" }),
        }
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, value) in &self.0 {
            match value {
                Bare::Boolean(true) => write!(f, ";{key}")?,
                value => write!(f, ";{key}={value}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.bare, self.params)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(members: &[(String, Member)]) -> String {
        let member = |(key, member): &(String, Member)| match member {
            Member::Item(item) => format!("{key}={item}"),
            Member::List(items, params) => {
                let items: Vec<_> = items.iter().map(Item::to_string).collect();
                format!("{key}=({}){params}", items.join(" "))
            }
        };
        members.iter().map(member).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn dictionaries_are_read_and_written_canonically() {
        for (text, canonical) in [
            ("", ""),
            (
                r#"sig1=("@method" "@path";a);created=1618884473;keyid="k\"\\" "#,
                r#"sig1=("@method" "@path";a);created=1618884473;keyid="k\"\\""#,
            ),
            ("a=( )\t,  b=:aGk=:", "a=(), b=:aGk=:"),
            ("a=:aGk:", "a=:aGk=:"),
            ("a,b;x", "a=?1, b=?1;x"),
            ("a=-12, b=tok/en, c=?0", "a=-12, b=tok/en, c=?0"),
            ("a=(  1   2 ); x=y", "a=(1 2);x=y"),
        ] {
            let read = dictionary(text).map(|members| written(&members));
            assert_eq!(read.as_deref(), Ok(canonical), "{text}");
        }
    }

    #[test]
    fn what_programs_could_read_in_different_ways_is_malformed() {
        for text in [
            "a=1,",
            ",a",
            "a=1 b=2",
            "A=1",
            "1a=1",
            "a=(1",
            "a=(1)x",
            "a=(1,2)",
            "a=(\"x\"\"y\")",
            "a=\"x",
            "a=\"\\n\"",
            "a=\"é\"",
            "a=:a*:",
            "a=:aGk=",
            "a=1.5",
            "a=--1",
            "a=?2",
            "a=?10",
            "a=@1",
            "a=1234567890123456",
            "a=1, a=2",
            "a;x=1;x=2",
            "a=",
            "a=(1 (2))",
            "a=1;",
            "a\n=1",
        ] {
            assert_eq!(dictionary(text), Err(Malformed), "{text}");
        }
        let many: Vec<_> = (0..65).map(|n| format!("k{n}")).collect();
        assert_eq!(dictionary(&many.join(",")), Err(Malformed));
        let long = format!("a=\"{}\"", "x".repeat(MAX_LENGTH));
        assert_eq!(dictionary(&long), Err(Malformed));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-c=();:\", \\\\?0-2*é]{0,24}") {
            if let Ok(members) = dictionary(&text) {
                let again = dictionary(&written(&members)).unwrap();
                prop_assert_eq!(again, members);
            }
        }
    }
}
