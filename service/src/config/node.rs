//! A configuration file as a tree in which every value knows where it stands.

use std::fmt;
use std::sync::Arc;

use super::core_schema::plain;

/// A file (or other text) that values were read from.
#[derive(Debug)]
pub struct Source {
    name: String,
    text: String,
    /// Where lines begin.
    lines: Vec<usize>,
}

impl Source {
    /// Names a text for messages.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let mut lines = vec![0];
        let bytes = text.as_bytes();
        for (at, byte) in bytes.iter().enumerate() {
            // As in YAML: LF, CR LF, or CR alone.
            if *byte == b'\n' || (*byte == b'\r' && bytes.get(at + 1) != Some(&b'\n')) {
                lines.push(at + 1);
            }
        }
        Self {
            name: name.into(),
            text,
            lines,
        }
    }

    /// One line, from 1, without its line break.
    pub fn line(&self, number: u32) -> Option<&str> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        let from = *self.lines.get(index)?;
        let to = self.lines.get(index + 1).copied();
        let line = self.text.get(from..to.unwrap_or(self.text.len()))?;
        Some(line.trim_end_matches(['\n', '\r']))
    }

    /// The name as the user gave it, usually a path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// A place in a file. Lines and columns count from 1, columns in characters.
///
/// A span carries its source, so that errors of several files can be collected together and a
/// plan built long after parsing can still show the offending line.
#[derive(Clone, Default)]
pub struct Span {
    pub(crate) source: Option<Arc<Source>>,
    pub(crate) start: (u32, u32),
    pub(crate) end: (u32, u32),
}

impl Span {
    /// The span of a value that was not written anywhere, such as a default.
    pub fn none() -> Self {
        Self::default()
    }

    /// A whole line of a text, by its number from 1.
    pub fn of_line(source: &Arc<Source>, line: u32) -> Self {
        let text = source.line(line).unwrap_or_default();
        let indented = text.chars().take_while(|c| *c == ' ').count();
        let column = |chars: usize| u32::try_from(chars).unwrap_or(u32::MAX).saturating_add(1);
        Self {
            source: Some(source.clone()),
            start: (line, column(indented)),
            end: (line, column(text.chars().count())),
        }
    }

    /// Whether this is a real place.
    pub fn is_known(&self) -> bool {
        self.source.is_some()
    }

    /// Name of the file, if the place is known.
    pub fn file(&self) -> Option<&str> {
        self.source.as_deref().map(Source::name)
    }

    /// The text this place is in.
    pub fn source(&self) -> Option<&Arc<Source>> {
        self.source.as_ref()
    }

    /// First line, from 1; 0 when unknown.
    pub fn line(&self) -> u32 {
        self.start.0
    }

    /// First column in characters, from 1; 0 when unknown.
    pub fn column(&self) -> u32 {
        self.start.1
    }

    /// Line and column just behind the last character.
    pub fn end(&self) -> (u32, u32) {
        self.end
    }
}

impl PartialEq for Span {
    fn eq(&self, other: &Self) -> bool {
        self.start == other.start && self.end == other.end && self.file() == other.file()
    }
}

impl Eq for Span {}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file() {
            Some(file) => write!(f, "{file}:{}:{}", self.line(), self.column()),
            None => f.write_str("(nowhere)"),
        }
    }
}

/// Anything an error can point at.
pub trait Spanned {
    /// Where it stands.
    fn span(&self) -> &Span;
}

impl Spanned for Span {
    fn span(&self) -> &Span {
        self
    }
}

impl<T: Spanned + ?Sized> Spanned for &T {
    fn span(&self) -> &Span {
        T::span(self)
    }
}

/// One value of a configuration file.
///
/// Equality compares values, not places.
#[derive(Clone)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it stands.
    pub span: Span,
    /// A scalar as written, where that differs from [`Value::String`].
    pub(crate) written: Option<Box<str>>,
    /// What to show in messages instead of a value taken from the environment.
    pub(crate) shown: Option<Box<str>>,
    /// The key or list position this value stands under.
    pub(crate) label: Option<Key>,
    /// An error was already reported for this value; stay quiet about it.
    pub(crate) invalid: bool,
}

/// The shapes of a [`Node`].
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, `~`, or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Any other number.
    Float(f64),
    /// Text.
    String(String),
    /// A list.
    Seq(Vec<Node>),
    /// A map, in file order, keys unique.
    Map(Vec<Entry>),
}

/// One `key: value` of a map.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The value.
    pub value: Node,
}

/// A map's key, as written. Equality compares names, not places.
#[derive(Clone, Debug)]
pub struct Key {
    /// The key's text.
    pub name: Arc<str>,
    /// Where it stands.
    pub span: Span,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Spanned for Key {
    fn span(&self) -> &Span {
        &self.span
    }
}

impl Spanned for Node {
    fn span(&self) -> &Span {
        &self.span
    }
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value && self.text() == other.text()
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl Node {
    /// A value that stands in no file.
    pub fn new(value: Value) -> Self {
        Self::at(value, Span::none())
    }

    pub(crate) fn at(value: Value, span: Span) -> Self {
        Self {
            value,
            span,
            written: None,
            shown: None,
            label: None,
            invalid: false,
        }
    }

    /// A scalar as it was written (`0123`, `1.0`, `true`), unquoted; `None` for lists and maps,
    /// `""` for a value that was left out.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            Value::Seq(_) | Value::Map(_) => None,
            _ => Some(self.written.as_deref().unwrap_or_default()),
        }
    }

    /// The text, if this was a string and not merely something that could be read as one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The items, if this is a list.
    pub fn as_seq(&self) -> Option<&[Node]> {
        match &self.value {
            Value::Seq(items) => Some(items),
            _ => None,
        }
    }

    /// The entries in file order, if this is a map.
    pub fn as_map(&self) -> Option<&[Entry]> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value of a key, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The entry of a key, if this is a map that has it.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        let entries = self.as_map()?;
        entries.iter().find(|entry| &*entry.key.name == key)
    }

    /// Whether this is `null`, written or implied.
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// Whether the user wrote `null` (or `~`), which unsets a field; a value that was merely
    /// left out is more likely a mistake.
    pub fn is_explicit_null(&self) -> bool {
        self.is_null() && !self.invalid && self.text().is_some_and(|text| !text.is_empty())
    }

    /// Whether an error was already reported for this value.
    pub fn is_invalid(&self) -> bool {
        self.invalid
    }

    /// The key or list position (`routes[2]`) this value stands under; `None` for the root.
    pub fn label(&self) -> Option<&str> {
        self.label.as_ref().map(|key| &*key.name)
    }

    /// Where errors about the value as a whole point: at its key where there is one, since the
    /// body of a map begins with an innocent field.
    pub fn head(&self) -> &Span {
        self.label.as_ref().map_or(&self.span, |key| &key.span)
    }

    /// The same value without its places.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Int(value) => u64::try_from(*value)
                .map(Json::from)
                .or_else(|_| i64::try_from(*value).map(Json::from))
                .unwrap_or_else(|_| Json::from(*value as f64)),
            Value::Float(value) => Json::from(*value),
            Value::String(text) => Json::String(text.clone()),
            Value::Seq(items) => Json::Array(items.iter().map(Node::to_json).collect()),
            Value::Map(entries) => Json::Object(
                entries
                    .iter()
                    .map(|entry| (entry.key.name.to_string(), entry.value.to_json()))
                    .collect(),
            ),
        }
    }

    /// How messages call this value.
    pub(crate) fn describe(&self) -> String {
        if let Some(shown) = &self.shown {
            return format!("the value of {}", quote(shown));
        }
        match &self.value {
            Value::Seq(_) => "a list".into(),
            Value::Map(_) => "a map".into(),
            Value::String(text) if text.is_empty() => "empty text".into(),
            // Quotes made text of it, which the value alone would not show.
            Value::String(text) if plain(text, Span::none()).as_str().is_none() => {
                format!("the text {}", quote(text))
            }
            _ => match self.text() {
                Some("") | None => "nothing".into(),
                Some(text) => quote(text),
            },
        }
    }
}

/// Puts outside text into a message: bounded, and without characters that would garble a terminal.
pub(crate) fn quote(text: &str) -> String {
    const LIMIT: usize = 80;
    let mut out = String::from("`");
    for (index, c) in text.chars().enumerate() {
        if index == LIMIT {
            out.push('…');
            break;
        }
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out.push('`');
    out
}
