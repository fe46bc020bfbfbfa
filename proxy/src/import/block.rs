//! A block of Envoy's that is read field by field, so that nothing in it is overlooked.

use attache_service::config::{Entry, Node};

use super::dropped::{Effect, Findings};

/// A map that is being read.
pub(super) struct Block<'n> {
    entries: &'n [Entry],
    used: Vec<bool>,
}

impl<'n> Block<'n> {
    /// Begins; what is no map is dropped.
    pub(super) fn open(node: &'n Node, found: &mut Findings) -> Option<Self> {
        let Some(entries) = node.as_map() else {
            if !node.is_null() {
                found.push(node, Effect::Behaviour, "expected a map");
            }
            return None;
        };
        let used = entries
            .iter()
            .map(|entry| &*entry.key.name == "@type" || entry.value.is_null())
            .collect();
        Some(Self { entries, used })
    }

    /// Reads a field.
    pub(super) fn take(&mut self, name: &str) -> Option<&'n Node> {
        self.entry(name).map(|entry| &entry.value)
    }

    /// Whether a field is there, read or not.
    pub(super) fn has(&self, name: &str) -> bool {
        let mut entries = self.entries.iter();
        entries.any(|entry| &*entry.key.name == name && !entry.value.is_null())
    }

    fn entry(&mut self, name: &str) -> Option<&'n Entry> {
        let at = self.entries.iter().position(|e| &*e.key.name == name)?;
        let used = self.used.get_mut(at)?;
        *used = true;
        self.entries.get(at).filter(|entry| !entry.value.is_null())
    }

    /// Reads a block within this one.
    pub(super) fn block(&mut self, name: &str, found: &mut Findings) -> Option<Block<'n>> {
        Block::open(self.take(name)?, found)
    }

    /// Reads a list; no list is an empty one.
    pub(super) fn list(&mut self, name: &str) -> &'n [Node] {
        self.take(name).and_then(Node::as_seq).unwrap_or_default()
    }

    /// Reads a text.
    pub(super) fn text(&mut self, name: &str) -> Option<&'n str> {
        self.take(name).and_then(Node::text)
    }

    /// Reads a switch, also in the form of `BoolValue`.
    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        match self.text(name)? {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// Leaves a field out, if it is there.
    pub(super) fn drop(&mut self, name: &str, effect: Effect, why: &str, found: &mut Findings) {
        if let Some(entry) = self.entry(name) {
            found.push(&entry.key, effect, why);
        }
    }

    /// Leaves fields out that change nothing.
    pub(super) fn nothing(&mut self, names: &[&str], why: &str, found: &mut Findings) {
        for name in names {
            self.drop(name, Effect::Nothing, why, found);
        }
    }

    /// The fields that nobody has asked for, which count as read from then on.
    pub(super) fn rest(&mut self) -> impl Iterator<Item = &'n Entry> {
        let entries = self.entries;
        let unread: Vec<_> = self.used.iter().map(|used| !used).collect();
        self.used.fill(true);
        entries
            .iter()
            .zip(unread)
            .filter_map(|(entry, unread)| unread.then_some(entry))
    }

    /// Ends: what nobody has asked for is dropped.
    pub(super) fn finish(&mut self, effect: Effect, found: &mut Findings) {
        for entry in self.rest() {
            let why = format!("`{}` has no counterpart here", entry.key.name);
            found.push(&entry.key, effect, why);
        }
    }
}
