//! The walk from a domain down to the rule of a descriptor.

use super::{
    level::{Level, Match, value_of},
    metric_path::sanitised,
    rules::{RuleId, Rules},
};

/// A walk from a domain down its descriptors, one entry at a time. What was once left is not
/// gone back to: a more general sibling is no way out of a branch that leads nowhere.
#[derive(Debug, Clone)]
pub(crate) struct LookUp<'r> {
    level: Option<&'r Level>,
    rule: Option<RuleId>,
    /// The path in statistics depends on the request.
    named_by_request: bool,
}

impl<'r> LookUp<'r> {
    pub(super) fn start(level: &'r Level) -> Self {
        Self {
            level: Some(level),
            rule: None,
            named_by_request: false,
        }
    }

    /// Takes the next entry, of which `composite` is `<key>_<value>`. Returns what stands for the
    /// value in the counter's key, when many values share a counter.
    #[inline]
    pub(crate) fn entry(&mut self, composite: &str, key: &str) -> Option<&'r str> {
        let found = self.level.and_then(|level| level.find(composite, key));
        let Some((how, node)) = found else {
            self.level = None;
            self.rule = None;
            return None;
        };
        self.rule = node.rule();
        self.level = Some(node.children());
        let shared = node.shared(how, key);
        self.named_by_request |= match how {
            // A rule for the key `k_`, found by the key `k` without a value.
            Match::Exact => composite.len() == key.len() + 1,
            Match::Wildcard(pattern) => {
                (node.value_to_metric() && shared.is_none()) || value_of(pattern, key) == pattern
            }
            Match::Key => node.value_to_metric(),
        };
        shared
    }

    /// The rule at the end of the walk. A limit on the way there does not count.
    pub(crate) fn rule(&self) -> Option<RuleId> {
        self.rule
    }

    /// Whether the rule's path in statistics depends on the request, as far as the levels say.
    pub(crate) fn named_by_request(&self) -> bool {
        self.named_by_request
    }
}

impl Rules {
    /// The path in statistics of a rule that was found by these entries, for rules whose path
    /// depends on them.
    pub(crate) fn metric_path<'e>(
        &self,
        domain: &str,
        entries: impl Iterator<Item = (&'e str, &'e str)>,
        detailed: bool,
    ) -> Box<str> {
        let mut walk = self.level(domain);
        let mut composite = String::new();
        let mut steps = Vec::new();
        let mut shares = false;
        for (key, value) in entries {
            composite.clear();
            composite.extend([key, "_", value]);
            let found = walk.and_then(|level| level.find(&composite, key));
            walk = found.map(|(_, node)| node.children());
            let shared = found.and_then(|(how, node)| node.shared(how, key));
            shares |= shared.is_some();
            steps.push((key, value, found, shared));
        }
        let mut path = domain.to_owned();
        for (key, value, found, shared) in steps {
            path.extend([".", key]);
            let shown = match (shared, found) {
                (Some(pattern), _) => pattern,
                (None, _) if detailed => value,
                (None, Some((Match::Exact, _))) => value,
                (None, Some((Match::Wildcard(_), node))) if node.value_to_metric() => value,
                (None, Some((Match::Wildcard(pattern), _))) => value_of(pattern, key),
                (None, Some((Match::Key, node))) if node.value_to_metric() => value,
                (None, Some((Match::Key, _)) | None) => "",
            };
            if !shown.is_empty() || (detailed && !shares) {
                path.extend(["_", shown]);
            }
        }
        sanitised(&path)
    }
}
