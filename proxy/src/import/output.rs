//! Our configuration as it is put together. Parts that are taken over keep their places, so that
//! what our own types say of them leads to where they stand in Envoy's file.

use attache_service::config::{
    ConfigValue, Entry, Errors, Key, Node, Span, Spanned, Value, json::Value as Json,
    schema::Schemas,
};

use super::dropped::{Effect, Findings};

/// A map of ours.
#[derive(Debug, Default)]
pub(super) struct Output {
    entries: Vec<Entry>,
}

impl Output {
    /// Puts a field in, once.
    pub(super) fn put(&mut self, name: &str, value: Node) {
        if self.entries.iter().all(|entry| &*entry.key.name != name) {
            let span = value.span.clone();
            let name = name.into();
            let key = Key { name, span };
            self.entries.push(Entry { key, value });
        }
    }

    /// What was put in under this name.
    pub(super) fn get(&self, name: &str) -> Option<&Node> {
        let mut entries = self.entries.iter();
        let entry = entries.find(|entry| &*entry.key.name == name)?;
        Some(&entry.value)
    }

    /// Puts a field into a map that is in here, which is made where it is missing.
    pub(super) fn put_in(&mut self, map: &str, name: &str, value: Node) {
        let mut inner = Output::default();
        let mut entries = self.entries.iter_mut();
        let known = entries.find(|entry| &*entry.key.name == map);
        if let Some(known) = &known
            && let Value::Map(entries) = &known.value.value
        {
            inner.entries.clone_from(entries);
        }
        inner.put(name, value);
        match known {
            Some(known) => known.value = inner.into_node(),
            None => self.map(map, inner),
        }
    }

    /// Puts all of another map in.
    pub(super) fn merge(&mut self, other: Output) {
        for entry in other.entries {
            self.put(&entry.key.name, entry.value);
        }
    }

    /// Puts a text in; `at` is where it comes from.
    pub(super) fn text(&mut self, name: &str, text: impl Into<String>, at: &Span) {
        self.put(name, text_at(text, at));
    }

    /// Puts a switch in.
    pub(super) fn flag(&mut self, name: &str, value: bool, at: &Span) {
        self.put(name, node(Value::Bool(value), at));
    }

    /// Puts a number in.
    pub(super) fn number(&mut self, name: &str, value: i128, at: &Span) {
        self.put(name, node(Value::Int(value), at));
    }

    /// Puts a map in, unless it is empty.
    pub(super) fn map(&mut self, name: &str, map: Output) {
        if !map.is_empty() {
            self.put(name, map.into_node());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn into_node(self) -> Node {
        Node::new(Value::Map(self.entries))
    }
}

/// A list.
pub(super) fn list(items: Vec<Node>) -> Node {
    Node::new(Value::Seq(items))
}

/// A text.
pub(super) fn text_at(text: impl Into<String>, at: &Span) -> Node {
    node(Value::String(text.into()), at)
}

fn node(value: Value, at: &Span) -> Node {
    let mut node = Node::new(value);
    node.span = at.clone();
    node
}

/// Decodes `what`, which begins at `at` in Envoy's file, with our own type; what that refuses is
/// dropped with `effect`. `None` when nothing can be made of it, which is said too.
pub(super) fn decode<T: ConfigValue>(
    node: &Node,
    at: &impl Spanned,
    what: &str,
    effect: Effect,
    found: &mut Findings,
) -> Option<Json> {
    let mut errors = Errors::new();
    let decoded = T::decode(node, &mut errors);
    let gone = decoded.is_none().then_some(what);
    found.refused(&errors, at, gone, effect);
    decoded.as_ref().and_then(T::encode)
}

/// Whether a type of ours has a field of this name.
pub(super) fn has_field<T: ConfigValue>(name: &str) -> bool {
    let mut schemas = Schemas::default();
    // A named schema, to be looked up among those that are collected.
    let reference = T::schema(&mut schemas);
    schemas
        .object(&reference)
        .and_then(|schema| schema.get("properties"))
        .is_some_and(|properties| properties.get(name).is_some())
}
