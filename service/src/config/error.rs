//! Errors of configuration files: all of them at once, each with its place.

use std::fmt::{self, Write as _};

use super::compound::Located;
use super::node::{Node, Span, Spanned, quote};
use super::suggest;

/// One thing wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    message: String,
    span: Span,
    file: Option<String>,
}

impl ConfigError {
    /// What is wrong, without the place.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The place; [`Span::is_known`] tells whether there is one.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The file, where known.
    pub fn file(&self) -> Option<&str> {
        self.span.file().or(self.file.as_deref())
    }

    /// The line, from 1, where known.
    pub fn line(&self) -> Option<u32> {
        self.span.is_known().then(|| self.span.line())
    }

    /// The column in characters, from 1, where known.
    pub fn column(&self) -> Option<u32> {
        self.span.is_known().then(|| self.span.column())
    }

    fn key(&self) -> (Option<&str>, (u32, u32), &str) {
        (self.file(), self.span.start, &self.message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = self.file() {
            write!(f, "{file}:")?;
            if self.span.is_known() {
                write!(f, "{}:{}:", self.span.line(), self.span.column())?;
            }
            f.write_char(' ')?;
        }
        f.write_str(&self.message)?;
        match excerpt(&self.span) {
            Some(excerpt) => write!(f, "\n{excerpt}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Widest part of a source line that is shown; a JSON file may be one long line.
const EXCERPT_WIDTH: usize = 100;

/// The offending line with a caret under the place.
fn excerpt(span: &Span) -> Option<String> {
    let number = span.line();
    let line = span.source()?.line(number)?;
    let width = line.chars().count();
    let start = (span.column().saturating_sub(1) as usize).min(width);
    let stop = match span.end() {
        (line, column) if line == number => (column.saturating_sub(1) as usize).min(width),
        // A value of several lines: mark what stands on the first.
        _ => width,
    };
    let from = if start > EXCERPT_WIDTH * 3 / 4 {
        start - EXCERPT_WIDTH / 2
    } else {
        0
    };
    let to = (from + EXCERPT_WIDTH).min(width);
    let shown: Vec<char> = line
        .chars()
        .skip(from)
        .take(EXCERPT_WIDTH)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    // The end of a plain value may lie behind spaces that do not belong to it.
    let marked = shown.get(start - from..stop.min(to).saturating_sub(from));
    let marked = marked.and_then(|marked| marked.iter().rposition(|c| *c != ' '));
    let (before, after) = (
        if from > 0 { "…" } else { "" },
        if to < width { "…" } else { "" },
    );
    let shown: String = shown.into_iter().collect();
    let shown = format!("{before}{shown}{after}");

    let margin = number.to_string();
    let gap = " ".repeat(margin.len());
    let pad = " ".repeat(start - from + before.chars().count());
    let carets = "^".repeat(marked.map_or(1, |last| last + 1));
    let source_line = format!("{margin} | {shown}");
    let source_line = source_line.trim_end();
    Some(format!("{gap} |\n{source_line}\n{gap} | {pad}{carets}"))
}

/// The errors of one or several files, ordered by place, without repetitions.
///
/// Decoding fills it and goes on; whoever builds a plan from the decoded values adds to the same
/// collection, so that a user sees everything at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    list: Vec<ConfigError>,
    dropped: usize,
}

/// More errors than anyone reads, and few enough to bound the memory a hostile file can take.
const MAX_ERRORS: usize = 1000;

impl Errors {
    /// No errors yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an error at a place: a [`Span`], [`Node`], [`Located`](super::Located) value or key.
    pub fn push(&mut self, at: &(impl Spanned + ?Sized), message: impl Into<String>) {
        self.insert(ConfigError {
            message: message.into(),
            span: at.span().clone(),
            file: None,
        });
    }

    /// Adds an error that concerns a file as a whole.
    pub fn push_file(&mut self, file: impl Into<String>, message: impl Into<String>) {
        self.insert(ConfigError {
            message: message.into(),
            span: Span::none(),
            file: Some(file.into()),
        });
    }

    /// Adds an error without any place.
    pub fn push_unlocated(&mut self, message: impl Into<String>) {
        self.push(&Span::none(), message);
    }

    /// Says that a value is not what its field takes: "expected `what` for `field`, found …".
    ///
    /// Quiet when an error was already reported for this value.
    pub fn expected(&mut self, node: &Node, what: &str) {
        if node.is_invalid() {
            return;
        }
        let found = node.describe();
        let message = match node.label() {
            Some(label) => format!("expected {what} for {}, found {found}", quote(label)),
            None => format!("expected {what}, found {found}"),
        };
        match node.text() {
            // Nothing to point at but the key.
            Some("") if node.is_null() => self.push(node.head(), message),
            _ => self.push(node, message),
        }
    }

    /// Says that a name refers to nothing: "there is no `what` named …", with the nearest known
    /// name.
    pub fn unknown_name<'n>(
        &mut self,
        name: &Located<String>,
        what: &str,
        known: impl IntoIterator<Item = &'n str>,
    ) {
        let mut known: Vec<&str> = known.into_iter().collect();
        known.sort_unstable();
        let hint = suggest::hint(name, &known);
        self.push(name, format!("there is no {what} `{}`{hint}", name.value));
    }

    /// Says what is wrong with a value of the right shape: "invalid value … for `field`: problem".
    ///
    /// Quiet when an error was already reported for this value.
    pub fn invalid(&mut self, node: &Node, problem: &str) {
        if node.is_invalid() {
            return;
        }
        let found = node.describe();
        let message = match node.label() {
            Some(label) => format!("invalid value {found} for {}: {problem}", quote(label)),
            None => format!("invalid value {found}: {problem}"),
        };
        self.push(node, message);
    }

    /// Takes over the errors of another collection.
    pub fn append(&mut self, other: Errors) {
        self.dropped += other.dropped;
        for error in other.list {
            self.insert(error);
        }
    }

    /// Whether all is well.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many errors there are.
    pub fn len(&self) -> usize {
        self.list.len() + self.dropped
    }

    /// The errors in order of file and position.
    pub fn iter(&self) -> std::slice::Iter<'_, ConfigError> {
        self.list.iter()
    }

    /// The value if there are no errors, else the errors. `None` without an error cannot come
    /// from this module; if it comes from elsewhere it is reported as a defect.
    pub fn into_result<T>(mut self, value: Option<T>) -> Result<T, Errors> {
        match value {
            Some(value) if self.is_empty() => Ok(value),
            None if self.is_empty() => {
                self.push_unlocated("the configuration was refused without a reason");
                Err(self)
            }
            _ => Err(self),
        }
    }

    fn insert(&mut self, error: ConfigError) {
        let at = self.list.partition_point(|old| old.key() < error.key());
        if self
            .list
            .get(at)
            .is_some_and(|old| old.key() == error.key())
        {
            return;
        }
        if self.list.len() >= MAX_ERRORS {
            self.dropped += 1;
            return;
        }
        self.list.insert(at, error);
    }
}

impl<'a> IntoIterator for &'a Errors {
    type Item = &'a ConfigError;
    type IntoIter = std::slice::Iter<'a, ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_char('\n')?;
            }
            write!(f, "{error}")?;
        }
        match self.dropped {
            0 => Ok(()),
            more => write!(f, "\nand {more} more errors"),
        }
    }
}

impl std::error::Error for Errors {}
