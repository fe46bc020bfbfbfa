//! The rules of all domains, compiled for look-up.

use std::{collections::HashMap, num::NonZeroU32, sync::Arc};

use super::wildcard::Wildcard;
use crate::limiter::Unit;

/// How many hits fit into a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Hits that one window allows; 0 allows none.
    pub requests_per_unit: u32,
    /// The unit of the window.
    pub unit: Unit,
    /// How many units long the window is.
    pub unit_multiplier: NonZeroU32,
    /// Shown to callers in `current_limit.name`; may be empty.
    pub name: Arc<str>,
}

impl Limit {
    /// A limit of `requests_per_unit` in each `unit`.
    pub fn new(requests_per_unit: u32, unit: Unit) -> Self {
        Self {
            requests_per_unit,
            unit,
            unit_multiplier: NonZeroU32::MIN,
            name: Arc::from(""),
        }
    }

    /// The window's length in seconds.
    pub fn window_seconds(&self) -> u64 {
        self.unit.window_seconds(self.unit_multiplier)
    }
}

/// What a descriptor that matches a rule gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowance {
    /// `unlimited`: never counted.
    Unlimited,
    /// Counted against a limit.
    Limited(Limit),
}

/// One `rate_limit` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The domain it belongs to.
    pub domain: Arc<str>,
    /// The names of the descriptors that lead to it, joined by dots: `key1_value1.subkey1`.
    pub path: String,
    /// What it allows.
    pub allowance: Allowance,
}

/// Number of a rule in its [`Rules`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RuleId(pub(crate) usize);

/// The rules of all domains: an immutable snapshot.
#[derive(Debug, Default)]
pub struct Rules {
    domains: HashMap<Arc<str>, Level>,
    rules: Vec<Rule>,
}

/// The descriptors of one list.
#[derive(Debug, Default)]
struct Level {
    /// Positions in `nodes` by composite name, wildcards included.
    names: HashMap<Box<str>, usize>,
    /// Wildcards in file order.
    wildcards: Vec<(Wildcard, usize)>,
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    rule: Option<RuleId>,
    children: Level,
}

impl Rules {
    /// Whether there is a domain of this name.
    pub fn has_domain(&self, domain: &str) -> bool {
        self.domains.contains_key(domain)
    }

    /// All rules, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (RuleId, &Rule)> {
        self.rules
            .iter()
            .enumerate()
            .map(|(number, rule)| (RuleId(number), rule))
    }

    /// The rule of this number.
    pub fn get(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(id.0)
    }

    /// The names of all domains.
    pub fn domains(&self) -> impl Iterator<Item = &str> {
        self.domains.keys().map(|domain| &**domain)
    }

    /// Starts a look-up in `domain`; `None` when the domain is unknown.
    pub(crate) fn start(&self, domain: &str) -> Option<LookUp<'_>> {
        self.domains.get(domain).map(|level| LookUp {
            level: Some(level),
            rule: None,
        })
    }

    /// Adds an empty domain; false when it is already there.
    pub(crate) fn add_domain(&mut self, domain: &str) -> bool {
        if self.domains.contains_key(domain) {
            return false;
        }
        self.domains.insert(domain.into(), Level::default());
        true
    }

    /// Adds the descriptor at the end of `way` (composite names, outermost first); false when its
    /// list has one of this name already.
    pub(crate) fn add_descriptor(
        &mut self,
        domain: &Arc<str>,
        way: &[String],
        allowance: Option<Allowance>,
    ) -> bool {
        let Some((name, parents)) = way.split_last() else {
            return false;
        };
        let Some(mut level) = self.domains.get_mut(domain) else {
            return false;
        };
        for parent in parents {
            let Some(at) = level.names.get(parent.as_str()) else {
                return false;
            };
            let Some(node) = level.nodes.get_mut(*at) else {
                return false;
            };
            level = &mut node.children;
        }
        if level.names.contains_key(name.as_str()) {
            return false;
        }
        let rule = allowance.map(|allowance| {
            self.rules.push(Rule {
                domain: domain.clone(),
                path: way.join("."),
                allowance,
            });
            RuleId(self.rules.len() - 1)
        });
        let at = level.nodes.len();
        level.names.insert(name.as_str().into(), at);
        if let Some(wildcard) = Wildcard::parse(name) {
            level.wildcards.push((wildcard, at));
        }
        level.nodes.push(Node {
            rule,
            children: Level::default(),
        });
        true
    }
}

impl Level {
    /// Exact name, else the first wildcard in file order, else the rule without a value.
    fn find(&self, composite: &str, key: &str) -> Option<&Node> {
        let at = self
            .names
            .get(composite)
            .or_else(|| {
                self.wildcards
                    .iter()
                    .find(|(wildcard, _)| wildcard.matches(composite))
                    .map(|(_, at)| at)
            })
            .or_else(|| self.names.get(key))?;
        self.nodes.get(*at)
    }
}

/// A walk from a domain down its descriptors, one entry at a time. What was once left is not
/// gone back to: a more general sibling is no way out of a branch that leads nowhere.
#[derive(Debug, Clone)]
pub(crate) struct LookUp<'r> {
    level: Option<&'r Level>,
    rule: Option<RuleId>,
}

impl LookUp<'_> {
    /// Takes the next entry: its composite name (`key_value`) and its key.
    pub(crate) fn entry(&mut self, composite: &str, key: &str) {
        let node = self.level.and_then(|level| level.find(composite, key));
        self.rule = node.and_then(|node| node.rule);
        self.level = node.map(|node| &node.children);
    }

    /// The rule at the end of the walk. A limit on the way there does not count.
    pub(crate) fn rule(&self) -> Option<RuleId> {
        self.rule
    }
}
