//! What the importer left out, where it stands, and what that means.

use std::{collections::HashMap, fmt};

use attache_service::config::{Errors, Node, Span, Spanned, Value};

/// What leaving something out means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Requests are treated as before: names of statistics, runtime keys, what is so here anyway.
    Nothing,
    /// Something is done in another way, or not done.
    Behaviour,
    /// Something that protects is gone: a policy, a check of a certificate.
    Protection,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "without effect",
            Self::Behaviour => "behaves otherwise",
            Self::Protection => "PROTECTION LOST",
        })
    }
}

/// One thing that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Where it stands in the file.
    pub at: Span,
    /// The way to it: `static_resources.listeners[0].name`.
    pub path: String,
    /// Why, in a sentence.
    pub why: String,
    /// What that means.
    pub effect: Effect,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} ({}): {}",
            self.at, self.path, self.effect, self.why
        )
    }
}

/// What has been found so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    list: Vec<(Span, String, Effect)>,
}

impl Findings {
    /// Something has no counterpart.
    pub(crate) fn push(&mut self, at: &impl Spanned, effect: Effect, why: impl Into<String>) {
        self.list.push((at.span().clone(), why.into(), effect));
    }

    /// What our own types refused of a block of Envoy's that begins at `at`. `gone` is what is
    /// left out because of it, if it is more than that.
    pub(super) fn refused(
        &mut self,
        errors: &Errors,
        at: &impl Spanned,
        gone: Option<&str>,
        effect: Effect,
    ) {
        for error in errors {
            let span = Some(error.span()).filter(|span| span.is_known());
            let why = match gone {
                Some(gone) => format!("{}: {gone} is left out", error.message()),
                None => error.message().to_owned(),
            };
            self.push(span.unwrap_or(at.span()), effect, why);
        }
        if let (Some(gone), true) = (gone, errors.is_empty()) {
            self.push(at, effect, format!("{gone} is left out"));
        }
    }

    /// How much has been found so far.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether something that protects was left out after so much had been found.
    pub(super) fn lost_protection_since(&self, len: usize) -> bool {
        let mut later = self.list.iter().skip(len);
        later.any(|(.., effect)| *effect == Effect::Protection)
    }

    /// All of it, by place, each with the way to it.
    pub(crate) fn sorted(mut self, root: &Node) -> Vec<Dropped> {
        let paths = paths(root);
        self.list.sort_by_key(|(at, ..)| (at.line(), at.column()));
        let mut dropped: Vec<_> = self
            .list
            .into_iter()
            .map(|(at, why, effect)| Dropped {
                path: paths
                    .get(&(at.line(), at.column()))
                    .cloned()
                    .unwrap_or_default(),
                at,
                why,
                effect,
            })
            .collect();
        dropped.dedup();
        dropped
    }
}

/// The ways to all keys and values, by where they begin.
pub(super) fn paths(root: &Node) -> HashMap<(u32, u32), String> {
    let mut paths = HashMap::new();
    collect(root, String::new(), &mut paths);
    paths
}

/// The ways to all keys and values, by where they begin. A list or map begins where its first
/// item does, and is found by its key.
fn collect(node: &Node, path: String, paths: &mut HashMap<(u32, u32), String>) {
    let at = |span: &Span| (span.line(), span.column());
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                let name = &entry.key.name;
                let inner = match path.is_empty() {
                    true => name.to_string(),
                    false => format!("{path}.{name}"),
                };
                paths.insert(at(&entry.key.span), inner.clone());
                collect(&entry.value, inner, paths);
            }
        }
        Value::Seq(items) => {
            for (index, item) in items.iter().enumerate() {
                collect(item, format!("{path}[{index}]"), paths);
            }
        }
        _ => {}
    }
    paths.entry(at(&node.span)).or_insert(path);
}
