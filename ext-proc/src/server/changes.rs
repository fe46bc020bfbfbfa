//! Header changes in the form that Envoy applies as meant.

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::encoding::{encode_varint, encoded_len_varint};

use super::{headers::HeaderError, rules::Rules, session::Fieldset};

/// Checked changes to headers.
///
/// Envoy removes first and sets afterwards, knows `append` but no other action, and reads only
/// `raw_value`. So each name has one entry here, with the values it shall have in the end.
#[derive(Debug, Default)]
pub struct Changes {
    entries: Vec<Change>,
    pseudo: Vec<(&'static str, HeaderValue)>,
}

#[derive(Debug)]
struct Change {
    name: HeaderName,
    /// The values replace those received, else they are added.
    replaces: bool,
    /// The first value; without one the header is removed.
    value: Option<HeaderValue>,
    more: Vec<HeaderValue>,
}

impl Change {
    fn values(&self) -> impl Iterator<Item = &HeaderValue> {
        self.value.iter().chain(&self.more)
    }
}

const LEN: u8 = 2;

const fn tag(field: u8) -> u8 {
    (field << 3) | LEN
}

/// `HeaderValueOption.append = true`.
const APPEND: [u8; 4] = [tag(2), 2, 8, 1];

/// A length-delimited field: its tag, its length, its content.
fn field_len(content: usize) -> usize {
    1 + encoded_len_varint(content as u64) + content
}

fn header_len(name: &str, value: &HeaderValue) -> usize {
    field_len(name.len()) + field_len(value.len())
}

fn option_len(name: &str, value: &HeaderValue, append: bool) -> usize {
    field_len(header_len(name, value)) + if append { APPEND.len() } else { 0 }
}

fn put_field(number: u8, content: &[u8], buffer: &mut BytesMut) {
    put_prefix(number, content.len(), buffer);
    buffer.put_slice(content);
}

fn put_prefix(number: u8, length: usize, buffer: &mut BytesMut) {
    buffer.put_u8(tag(number));
    encode_varint(length as u64, buffer);
}

impl Changes {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.pseudo.is_empty()
    }

    pub(super) fn replace(&mut self, name: HeaderName, value: Option<HeaderValue>) {
        let change = self.change(name);
        change.replaces = true;
        change.value = value;
        change.more.clear();
    }

    pub(super) fn append(&mut self, name: HeaderName, value: HeaderValue) {
        let change = self.change(name);
        match &change.value {
            None => change.value = Some(value),
            Some(_) => change.more.push(value),
        }
    }

    /// The entry of a name; a new one adds nothing yet.
    fn change(&mut self, name: HeaderName) -> &mut Change {
        let mut entries = self.entries.iter();
        let at = entries.position(|change| change.name == name);
        let at = at.unwrap_or_else(|| {
            self.entries.push(Change {
                name,
                replaces: false,
                value: None,
                more: Vec::new(),
            });
            self.entries.len() - 1
        });
        &mut self.entries[at]
    }

    pub(super) fn pseudo(&mut self, name: &'static str, value: HeaderValue) {
        self.pseudo.retain(|(present, _)| *present != name);
        self.pseudo.push((name, value));
    }

    /// Whether `name` is removed and not set again.
    pub(super) fn removes(&self, name: &HeaderName) -> bool {
        let mut entries = self.entries.iter();
        entries.any(|change| change.name == *name && change.value.is_none())
    }

    pub(super) fn apply(&self, map: &mut HeaderMap) {
        for change in &self.entries {
            if change.replaces {
                map.remove(&change.name);
            }
            for value in change.values() {
                map.append(&change.name, value.clone());
            }
        }
    }

    /// Whether Envoy accepts so many changes, and what comes of them.
    pub(super) fn check(&self, received: &Fieldset, rules: Rules) -> Result<(), HeaderError> {
        if self.is_empty() {
            return Ok(());
        }
        let (set, removed) = self.counts();
        let changes = set.max(removed);
        if changes > rules.max_headers {
            let limit = rules.max_headers;
            return Err(HeaderError::TooManyChanges { changes, limit });
        }
        let (mut count, mut bytes) = (received.count() + set, received.bytes());
        for (name, value, _) in self.settings() {
            bytes += name.len() + value.len();
        }
        let replaced = self.entries.iter().filter(|change| change.replaces);
        let replaced = replaced.map(|change| change.name.as_str());
        for name in replaced.chain(self.pseudo.iter().map(|(name, _)| *name)) {
            for (_, value) in received.iter().filter(|(key, _)| *key == name) {
                count -= 1;
                bytes -= name.len() + value.len();
            }
        }
        if count > rules.max_headers {
            let limit = rules.max_headers;
            return Err(HeaderError::TooManyHeaders { count, limit });
        }
        if bytes > rules.max_header_bytes {
            let limit = rules.max_header_bytes;
            return Err(HeaderError::TooLarge { bytes, limit });
        }
        Ok(())
    }

    /// How many entries set, and how many remove.
    fn counts(&self) -> (usize, usize) {
        (self.settings().count(), self.removals().count())
    }

    /// What is set, in order, and whether it is added to what is there.
    fn settings(&self) -> impl Iterator<Item = (&str, &HeaderValue, bool)> {
        let pseudo = self
            .pseudo
            .iter()
            .map(|(name, value)| (*name, value, false));
        let ordinary = self.entries.iter().flat_map(|change| {
            let values = change.values().zip((0..).map(|index| index == 0));
            values.map(move |(value, first)| {
                (change.name.as_str(), value, !(first && change.replaces))
            })
        });
        pseudo.chain(ordinary)
    }

    fn removals(&self) -> impl Iterator<Item = &str> {
        let removed = |change: &&Change| change.replaces && change.value.is_none();
        self.entries
            .iter()
            .filter(removed)
            .map(|change| change.name.as_str())
    }

    /// Length of the `HeaderMutation`.
    pub(super) fn encoded_len(&self) -> usize {
        let set = self
            .settings()
            .map(|(name, value, append)| field_len(option_len(name, value, append)));
        let removed = self.removals().map(|name| field_len(name.len()));
        set.sum::<usize>() + removed.sum::<usize>()
    }

    /// Writes the `HeaderMutation`, of which [`Changes::encoded_len`] is the length.
    pub(super) fn encode(&self, buffer: &mut BytesMut) {
        for (name, value, append) in self.settings() {
            put_prefix(1, option_len(name, value, append), buffer);
            put_prefix(1, header_len(name, value), buffer);
            put_field(1, name.as_bytes(), buffer);
            put_field(3, value.as_bytes(), buffer);
            if append {
                buffer.put_slice(&APPEND);
            }
        }
        for name in self.removals() {
            put_field(2, name.as_bytes(), buffer);
        }
    }
}
