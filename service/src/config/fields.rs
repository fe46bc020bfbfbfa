//! What the code written by `config_struct!` and `config_oneof!` calls: reading a map field by
//! field, and being sure that nothing in it was overlooked.

use serde_json::{Map, Value as Json};

use super::envoy;
use super::error::Errors;
use super::node::{Entry, Node, Span, quote};
use super::suggest;
use super::value::{ConfigOneof, ConfigValue};

/// A map that is being decoded.
#[derive(Debug)]
pub struct Fields<'n, 'e> {
    node: &'n Node,
    entries: &'n [Entry],
    used: Vec<bool>,
    known: Vec<&'static str>,
    elsewhere: Vec<(&'static str, &'static str)>,
    absent: Vec<Absent>,
    errors: &'e mut Errors,
}

/// A field or group that must be there and is not. Reported last, and only if no misspelt or
/// unsupported field explains it.
#[derive(Debug)]
struct Absent {
    names: &'static [&'static str],
    name: Option<&'static str>,
    elsewhere: &'static [(&'static str, &'static str)],
}

impl Absent {
    fn explained_by(&self, key: &str) -> bool {
        self.name == Some(key)
            || self.names.contains(&key)
            || self.elsewhere.iter().any(|(name, _)| *name == key)
    }
}

impl<'n, 'e> Fields<'n, 'e> {
    /// Begins; anything but a map is an error.
    pub fn open(node: &'n Node, errors: &'e mut Errors) -> Option<Self> {
        let Some(entries) = node.as_map() else {
            if node.is_null() && !node.is_invalid() && node.label().is_some() {
                errors.expected(node, "a map (`{}` for one with nothing set)");
            } else {
                errors.expected(node, "a map");
            }
            return None;
        };
        Some(Self {
            node,
            entries,
            used: vec![false; entries.len()],
            known: Vec::new(),
            elsewhere: Vec::new(),
            absent: Vec::new(),
            errors,
        })
    }

    /// Accepts `@type` if it names this message.
    pub fn envoy_type(&mut self, message: Option<&str>) {
        if let Some(message) = message
            && let Some(node) = self.take("@type")
        {
            envoy::check_type(node, message, self.errors);
        }
    }

    /// Reads one field.
    pub fn field<T: ConfigValue>(
        &mut self,
        name: &'static str,
        missing: impl FnOnce() -> Option<T>,
    ) -> Option<T> {
        self.known.push(name);
        match self.take(name) {
            Some(node) => {
                // `null` unsets a field, as in proto JSON.
                if node.is_explicit_null() {
                    return missing().or_else(|| T::decode(node, self.errors));
                }
                let value = T::decode(node, self.errors);
                // A wrong number or word where nothing need stand has been reported; going on
                // without it shows what else is wrong. A list or map with a mistake inside is
                // better not taken for an empty one: names that stand in it would be missed.
                let is_leaf = node.as_map().is_none() && node.as_seq().is_none();
                if is_leaf {
                    value.or_else(missing)
                } else {
                    value
                }
            }
            None => {
                let value = missing();
                if value.is_none() {
                    self.absent.push(Absent {
                        names: &[],
                        name: Some(name),
                        elsewhere: &[],
                    });
                }
                value
            }
        }
    }

    /// Reads a group of fields of which one may be there.
    pub fn oneof<T: ConfigOneof>(&mut self) -> Option<T> {
        let names = T::variants();
        self.known.extend_from_slice(names);
        self.elsewhere.extend_from_slice(T::elsewhere());
        let entries = self.entries;
        let mut found: Vec<(&Entry, Option<T>)> = Vec::new();
        for (entry, used) in entries.iter().zip(&mut self.used) {
            if names.contains(&&*entry.key.name) {
                *used = true;
                if !entry.value.is_explicit_null() {
                    let value = T::decode_variant(&entry.key.name, &entry.value, self.errors);
                    found.push((entry, value));
                }
            }
        }
        let mut found = found.into_iter();
        let Some((first, value)) = found.next() else {
            let value = T::absent();
            if value.is_none() {
                self.absent.push(Absent {
                    names,
                    name: None,
                    elsewhere: T::elsewhere(),
                });
            }
            return value;
        };
        let mut several = false;
        for (other, _) in found {
            several = true;
            let message = format!(
                "`{}` and `{}` (line {}) exclude each other{}; keep one",
                other.key.name,
                first.key.name,
                first.key.span.line(),
                self.place(),
            );
            self.errors.push(&other.key, message);
        }
        value.filter(|_| !several)
    }

    /// Ends: every key must have been asked for.
    pub fn finish(&mut self, elsewhere: &[(&'static str, &'static str)]) {
        let place = self.place();
        let unread = self.entries.iter().zip(&self.used);
        for (entry, _) in unread.filter(|(_, used)| !**used) {
            let key = &*entry.key.name;
            let mut all = self.elsewhere.iter().chain(elsewhere);
            if let Some((name, reason)) = all.find(|(name, _)| *name == key) {
                let message = format!("`{name}`{place} is not supported: {reason}");
                self.errors.push(&entry.key, message);
                self.absent.retain(|absent| !absent.explained_by(key));
                continue;
            }
            if key == "@type" {
                let message = format!("no `@type` can stand{place}: this is not an Envoy message");
                self.errors.push(&entry.key, message);
                continue;
            }
            let hint = suggest::hint(key, &self.known);
            let message = format!("unknown field {}{place}{hint}", quote(key));
            self.errors.push(&entry.key, message);
            if let Some(meant) = suggest::nearest(key, &self.known) {
                self.absent.retain(|absent| !absent.explained_by(meant));
            }
        }
        let head: Span = self.node.head().clone();
        for absent in std::mem::take(&mut self.absent) {
            let message = match absent.name.or(single(absent.names)) {
                Some(name) => format!("missing field `{name}`{place}"),
                None => {
                    let names = suggest::listed(absent.names);
                    format!("missing one of {names}{place}")
                }
            };
            self.errors.push(&head, message);
        }
    }

    /// " in `match`", or nothing at the top level.
    fn place(&self) -> String {
        let label = self.node.label();
        label.map_or_else(String::new, |label| format!(" in {}", quote(label)))
    }

    fn take(&mut self, name: &str) -> Option<&'n Node> {
        let entries = self.entries;
        let mut pairs = entries.iter().zip(&mut self.used);
        let (entry, used) = pairs.find(|(entry, _)| &*entry.key.name == name)?;
        *used = true;
        Some(&entry.value)
    }
}

/// The only name of a list.
fn single(names: &[&'static str]) -> Option<&'static str> {
    match names {
        [name] => Some(name),
        _ => None,
    }
}

/// The value of an enumeration.
pub fn decode_name<T: Copy>(
    node: &Node,
    errors: &mut Errors,
    names: &[(&'static str, T)],
    elsewhere: &[(&str, &str)],
) -> Option<T> {
    let valid: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
    let text = match node.text() {
        Some(text) if !node.is_null() => text,
        _ => {
            errors.expected(node, &format!("one of {}", suggest::listed(&valid)));
            return None;
        }
    };
    if let Some((_, value)) = names.iter().find(|(name, _)| *name == text) {
        return Some(*value);
    }
    let place = node
        .label()
        .map_or_else(String::new, |label| format!(" for {}", quote(label)));
    let shown = node.describe();
    let message = match elsewhere.iter().find(|(name, _)| *name == text) {
        Some((_, reason)) => format!("{shown}{place} is not supported: {reason}"),
        None => format!(
            "unknown value {shown}{place}{}",
            suggest::hint(text, &valid)
        ),
    };
    errors.push(node, message);
    None
}

/// Adds a field to an object, if it has a value.
pub fn put(object: &mut Map<String, Json>, name: &str, value: Option<Json>) {
    if let Some(value) = value {
        object.insert(name.into(), value);
    }
}

/// The name of a field without the `r#` of Rust keywords.
pub fn name_of(written: &'static str) -> &'static str {
    written.strip_prefix("r#").unwrap_or(written)
}
