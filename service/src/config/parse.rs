//! From YAML (and so JSON) text to a tree of [`Node`]s.

use std::collections::HashMap;
use std::sync::Arc;

use granit_parser::{Event, Marker, Parser, ScalarStyle, Tag, options};

use super::core_schema::plain;
use super::environment::{self, Substitution};
use super::error::Errors;
use super::limits::Cost;
use super::node::{Entry, Key, Node, Source, Span, Value, quote};
use super::syntax;

/// How `${NAME}` finds its value.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Parses one document. `None` when the text has no usable structure; otherwise `errors` may
/// still have got some, and the tree has invalid nodes in their place.
pub(crate) fn parse(source: &Arc<Source>, env: Lookup<'_>, errors: &mut Errors) -> Option<Node> {
    let mut builder = Builder {
        source,
        env,
        errors,
        stack: Vec::new(),
        anchors: HashMap::new(),
        cost: Cost::default(),
        root: None,
        documents: 0,
    };
    builder.run().ok()?;
    Some(builder.root.unwrap_or_else(|| {
        let mut span = Span::none();
        span.source = Some(source.clone());
        span.start = (1, 1);
        span.end = (1, 1);
        Node::at(Value::Null, span)
    }))
}

/// How much of a list's name its items are called by.
const MAX_LABEL: usize = 60;

/// The structure is broken and the error is reported; nothing more can be read.
struct Broken;

struct Builder<'a> {
    source: &'a Arc<Source>,
    env: Lookup<'a>,
    errors: &'a mut Errors,
    stack: Vec<Frame>,
    /// Anchored nodes; `None` while the node is still being read.
    anchors: HashMap<usize, Option<(Node, Cost)>>,
    cost: Cost,
    root: Option<Node>,
    documents: usize,
}

/// A list or map that is being read.
struct Frame {
    kind: Kind,
    start: Marker,
    anchor: usize,
    label: Option<Key>,
}

enum Kind {
    Seq(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        /// Keys so far, with their lines.
        seen: HashMap<Arc<str>, u32>,
        /// The key whose value comes next.
        key: Option<Key>,
        /// That key was refused; its value is read and dropped.
        refused: bool,
    },
}

impl Builder<'_> {
    fn run(&mut self) -> Result<(), Broken> {
        // A copy of the handle, so that the parser does not borrow `self`.
        let source = self.source.clone();
        let options = options! { emit_unresolved_aliases: true, emit_comments: false };
        for next in Parser::new_from_str_with_options(source.text(), options) {
            match next {
                Ok((event, at)) => self.event(event, at)?,
                Err(error) => {
                    let mut at = self.point(*error.marker());
                    let line = source.line(at.line()).unwrap_or_default();
                    at.start.1 = position(syntax::column(&error, line)).saturating_add(1);
                    at.end = at.start;
                    self.errors.push(&at, syntax::explain(&error, line));
                    return Err(Broken);
                }
            }
        }
        Ok(())
    }

    fn event(&mut self, event: Event<'_>, at: granit_parser::Span) -> Result<(), Broken> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return self.broken(at.start, "a file holds one document; a second one begins");
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                // A value that was left out is announced as `~`, at a place of no width.
                let left_out = style == ScalarStyle::Plain && at.is_empty();
                let text = if left_out { "".into() } else { text };
                let span = self.span(at.start, at.end);
                if self.at_key() {
                    return self.key(&text, style, span);
                }
                let node = self.scalar(&text, style, tag.as_deref(), span);
                self.count(at.start, Cost::of(&node))?;
                self.complete(node, anchor)
            }
            Event::Alias(id) => {
                if self.at_key() {
                    return self.broken(at.start, "an alias cannot be a key");
                }
                let cost = match self.anchors.get(&id) {
                    Some(Some((_, cost))) => *cost,
                    Some(None) => {
                        return self.broken(at.start, "an alias inside its own anchor never ends");
                    }
                    None => return self.broken(at.start, "an alias of a key; anchor a value"),
                };
                // Counted before the copy is made, so that a bomb never unfolds.
                self.count(at.start, cost)?;
                if let Some(Some((node, _))) = self.anchors.get(&id) {
                    let mut node = node.clone();
                    node.label = self.next_label(&node.span);
                    self.complete(node, 0)?;
                }
                Ok(())
            }
            Event::UnresolvedAlias(name) => {
                if self.at_key() {
                    return self.broken(at.start, "an alias cannot be a key");
                }
                let span = self.span(at.start, at.end);
                let anchor = quote(&format!("&{name}"));
                self.errors.push(
                    &span,
                    format!("alias of an anchor {anchor} that is not above"),
                );
                let node = self.invalid(span);
                self.complete(node, 0)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.open(Kind::Seq(Vec::new()), at, anchor, tag.as_deref(), "seq")
            }
            Event::MappingStart(_, anchor, tag) => {
                let kind = Kind::Map {
                    entries: Vec::new(),
                    seen: HashMap::new(),
                    key: None,
                    refused: false,
                };
                self.open(kind, at, anchor, tag.as_deref(), "map")
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(frame) = self.stack.pop() {
                    let span = self.span(frame.start, at.end);
                    let mut node = match frame.kind {
                        Kind::Seq(items) => Node::at(Value::Seq(items), span),
                        Kind::Map { entries, .. } => Node::at(Value::Map(entries), span),
                    };
                    node.label = frame.label;
                    self.complete(node, frame.anchor)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Begins a list or map.
    fn open(
        &mut self,
        kind: Kind,
        at: granit_parser::Span,
        anchor: usize,
        tag: Option<&Tag>,
        expected: &str,
    ) -> Result<(), Broken> {
        if self.at_key() {
            return self.broken(at.start, "a key has to be plain text");
        }
        let span = self.span(at.start, at.end);
        if let Some(tag) = tag
            && tag.core_suffix() != Some(expected)
        {
            self.unsupported_tag(tag, &span);
        }
        let label = self.next_label(&span);
        let cost = Cost {
            nodes: 1,
            text: 0,
            depth: 1,
        };
        self.count(at.start, cost)?;
        if anchor != 0 {
            self.anchors.insert(anchor, None);
        }
        self.stack.push(Frame {
            kind,
            start: at.start,
            anchor,
            label,
        });
        Ok(())
    }

    /// Puts a finished node where it belongs.
    fn complete(&mut self, node: Node, anchor: usize) -> Result<(), Broken> {
        if anchor != 0 {
            // The copy kept for aliases takes its room, too.
            let cost = Cost::of(&node);
            self.count_at(&node.span, cost)?;
            self.anchors.insert(anchor, Some((node.clone(), cost)));
        }
        match self.stack.last_mut().map(|frame| &mut frame.kind) {
            None => self.root = Some(node),
            Some(Kind::Seq(items)) => items.push(node),
            Some(Kind::Map {
                entries,
                key,
                refused,
                ..
            }) => {
                if let Some(key) = key.take()
                    && !std::mem::take(refused)
                {
                    entries.push(Entry { key, value: node });
                }
            }
        }
        Ok(())
    }

    /// Whether the innermost open collection is a map that waits for a key.
    fn at_key(&self) -> bool {
        matches!(
            self.stack.last().map(|frame| &frame.kind),
            Some(Kind::Map { key: None, .. })
        )
    }

    fn key(&mut self, text: &str, style: ScalarStyle, span: Span) -> Result<(), Broken> {
        let cost = Cost {
            nodes: 1,
            text: text.len(),
            depth: 0,
        };
        self.count_at(&span, cost)?;
        let Some(Frame {
            kind: Kind::Map {
                seen, key, refused, ..
            },
            ..
        }) = self.stack.last_mut()
        else {
            return Ok(());
        };
        let name: Arc<str> = Arc::from(text);
        let plain = style == ScalarStyle::Plain;
        let problem = if let Some(line) = seen.get(&name) {
            Some(format!(
                "duplicate key {}, already on line {line}",
                quote(text)
            ))
        } else if plain && text.is_empty() {
            Some("a key is missing before this `:`".into())
        } else if plain && text == "<<" {
            Some("merge keys (`<<`) are not supported: write the fields out, or use `*alias` for a whole value".into())
        } else {
            None
        };
        *refused = problem.is_some();
        seen.entry(name.clone()).or_insert(span.line());
        *key = Some(Key {
            name,
            span: span.clone(),
        });
        if let Some(problem) = problem {
            self.errors.push(&span, problem);
        }
        Ok(())
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Node {
        let block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
        let substitution = if block {
            Substitution::None
        } else {
            environment::substitute(text, self.env)
        };
        let mut node = match substitution {
            Substitution::Value(value) => {
                // Quotes are needed around `${…}` in JSON, so they say nothing about the type.
                // A variable never means `null`: that would silently unset the field.
                let mut node = plain(&value, span.clone());
                if node.is_null() {
                    node = Node::at(Value::String(value), span);
                }
                node.shown = Some(text.into());
                node
            }
            Substitution::Refused(problem) => {
                self.errors.push(&span, problem);
                self.invalid(span)
            }
            Substitution::Literal(text) => Node::at(Value::String(text), span),
            Substitution::None if style == ScalarStyle::Plain && tag.is_none() => plain(text, span),
            Substitution::None => match tag.map(|tag| (tag, tag.core_suffix())) {
                None | Some((_, Some("str"))) => Node::at(Value::String(text.into()), span),
                Some((_, Some("int" | "float" | "bool" | "null"))) => plain(text, span),
                Some((tag, _)) => {
                    self.unsupported_tag(tag, &span);
                    self.invalid(span)
                }
            },
        };
        node.label = self.next_label(&node.span);
        node
    }

    fn unsupported_tag(&mut self, tag: &Tag, span: &Span) {
        let tag = quote(&tag.original());
        self.errors
            .push(span, format!("the tag {tag} is not supported"));
    }

    fn invalid(&self, span: Span) -> Node {
        let mut node = Node::at(Value::Null, span);
        node.label = self.next_label(&node.span);
        node.invalid = true;
        node
    }

    /// What the next value will be called in messages.
    fn next_label(&self, span: &Span) -> Option<Key> {
        let frame = self.stack.last()?;
        match &frame.kind {
            Kind::Map { key, .. } => key.clone(),
            Kind::Seq(items) => {
                // Bounded, since every item of a list carries a copy.
                let list = frame.label.as_ref().map_or("", |key| &key.name);
                let list: String = list.chars().take(MAX_LABEL).collect();
                Some(Key {
                    name: format!("{list}[{}]", items.len()).into(),
                    span: span.clone(),
                })
            }
        }
    }

    fn count(&mut self, at: Marker, cost: Cost) -> Result<(), Broken> {
        let span = self.point(at);
        self.count_at(&span, cost)
    }

    fn count_at(&mut self, span: &Span, cost: Cost) -> Result<(), Broken> {
        self.cost.add(cost, self.stack.len());
        match self.cost.exceeded() {
            None => Ok(()),
            Some(problem) => {
                self.errors.push(span, problem);
                Err(Broken)
            }
        }
    }

    fn broken(&mut self, at: Marker, problem: &str) -> Result<(), Broken> {
        let at = self.point(at);
        self.errors.push(&at, problem);
        Err(Broken)
    }

    fn point(&self, at: Marker) -> Span {
        self.span(at, at)
    }

    fn span(&self, start: Marker, end: Marker) -> Span {
        let place = |at: Marker| {
            let line = position(at.line()).max(1);
            (line, position(at.col()).saturating_add(1))
        };
        Span {
            source: Some(self.source.clone()),
            start: place(start),
            end: place(end),
        }
    }
}

fn position(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
