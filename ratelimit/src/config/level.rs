//! The descriptors of one list, and how an entry of a request finds its own.

use super::{names::Names, rules::RuleId, wildcard::Wildcard};

/// The descriptors of one list.
///
/// They are found by the composite `<key>_<value>`, as in the reference service, so that a rule
/// for `a` and `b_c` also holds for `a_b` and `c`. The composite costs nothing: it is a part of
/// the counter's key, which is put together anyway.
#[derive(Debug, Default)]
pub(super) struct Level {
    /// By composite name, wildcards included.
    nodes: Names<Node>,
    /// Whether any name could be a composite.
    composites: bool,
    /// Wildcards in the order of the file, with the positions of their nodes.
    wildcards: Vec<(Wildcard, usize)>,
}

/// One descriptor.
#[derive(Debug)]
pub(super) struct Node {
    rule: Option<RuleId>,
    value_to_metric: bool,
    share_threshold: bool,
    children: Level,
}

/// How an entry found its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match<'r> {
    /// By key and value.
    Exact,
    /// By this wildcard.
    Wildcard(&'r str),
    /// By its key alone.
    Key,
}

impl Level {
    /// Exact name, else the first wildcard in file order, else the rule without a value.
    #[inline]
    pub(super) fn find(&self, composite: &str, key: &str) -> Option<(Match<'_>, &Node)> {
        if self.composites
            && let Some(node) = self.nodes.get(composite)
        {
            return Some((Match::Exact, node));
        }
        let mut wildcards = self.wildcards.iter();
        if let Some((wildcard, at)) = wildcards.find(|(wildcard, _)| wildcard.matches(composite)) {
            return Some((Match::Wildcard(wildcard.text()), self.nodes.at(*at)?));
        }
        Some((Match::Key, self.nodes.get(key)?))
    }

    /// The names of its descriptors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|(name, _)| name)
    }

    /// Adds a descriptor; false when there is one of this name already.
    pub(super) fn insert(&mut self, name: &str, node: Node) -> bool {
        let at = self.nodes.len();
        if !self.nodes.insert(name, node) {
            return false;
        }
        self.composites |= name.contains('_');
        if let Some(wildcard) = Wildcard::parse(name) {
            self.wildcards.push((wildcard, at));
        }
        true
    }
}

impl Node {
    pub(super) fn new(rule: Option<RuleId>, value_to_metric: bool, share_threshold: bool) -> Self {
        Self {
            rule,
            value_to_metric,
            share_threshold,
            children: Level::default(),
        }
    }

    pub(super) fn rule(&self) -> Option<RuleId> {
        self.rule
    }

    pub(super) fn children(&self) -> &Level {
        &self.children
    }

    pub(super) fn children_mut(&mut self) -> &mut Level {
        &mut self.children
    }

    /// Whether statistics tell the values of this level apart.
    pub(super) fn value_to_metric(&self) -> bool {
        self.value_to_metric
    }

    /// What stands for the value in the counter's key, when all values share a counter.
    pub(super) fn shared<'r>(&self, how: Match<'r>, key: &str) -> Option<&'r str> {
        match how {
            Match::Wildcard(pattern) if self.share_threshold => Some(value_of(pattern, key)),
            _ => None,
        }
    }
}

/// The pattern of the value in the pattern of a composite: what is behind the key, or all of it
/// when the key too is matched by a `*`.
pub(super) fn value_of<'p>(pattern: &'p str, key: &str) -> &'p str {
    let behind_key = pattern.strip_prefix(key);
    behind_key
        .and_then(|rest| rest.strip_prefix('_'))
        .unwrap_or(pattern)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The reference's way, as its specification has it: composites, one list after another.
    fn naive<'n>(names: &'n [String], key: &str, value: &str) -> Option<&'n str> {
        let composite = format!("{key}_{value}");
        let matches = |pattern: &str| {
            let literals: Vec<&str> = pattern.split('*').collect();
            let (Some(first), Some(last)) = (literals.first(), literals.last()) else {
                return false;
            };
            let length: usize = literals.iter().map(|literal| literal.len()).sum();
            if composite.len() < length
                || !composite.starts_with(first)
                || !composite.ends_with(last)
            {
                return false;
            }
            let mut from = first.len();
            let end = composite.len() - last.len();
            for literal in &literals[1..literals.len() - 1] {
                match composite[from..end].find(literal) {
                    Some(at) => from += at + literal.len(),
                    None => return false,
                }
            }
            true
        };
        let names = || names.iter().map(String::as_str);
        names()
            .find(|name| *name == composite)
            .or_else(|| names().find(|name| name.contains('*') && matches(name)))
            .or_else(|| names().find(|name| *name == key))
    }

    proptest! {
        #[test]
        fn entries_find_what_they_find_by_comparing_one_after_another(
            names in proptest::collection::vec("[ab_*]{1,5}", 0..12),
            key in "[ab_*]{1,3}",
            value in "[ab_*]{0,4}",
        ) {
            let mut level = Level::default();
            let mut kept: Vec<String> = Vec::new();
            for (number, name) in names.into_iter().enumerate() {
                let node = Node::new(Some(RuleId(number)), false, false);
                let is_new = !kept.contains(&name);
                prop_assert_eq!(level.insert(&name, node), is_new);
                if is_new {
                    kept.push(name);
                }
            }
            let found = level.find(&format!("{key}_{value}"), &key);
            let name = found.and_then(|(_, node)| {
                let mut nodes = level.nodes.iter();
                nodes.find_map(|(name, other)| (other.rule == node.rule).then_some(name))
            });
            prop_assert_eq!(name, naive(&kept, &key, &value));
        }
    }
}
