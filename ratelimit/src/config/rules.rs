//! The rules of all domains, compiled for look-up.

use std::sync::Arc;

use prost_types::Struct;

use super::{
    level::Level,
    limit::{Limit, Policy},
    lookup::LookUp,
    names::Names,
    tree::Defaults,
};
use crate::store::{Charging, Rejected};

/// What a descriptor that matches a rule gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowance {
    /// `unlimited`: never counted.
    Unlimited,
    /// Counted against a limit.
    Limited(Limit),
}

impl Allowance {
    pub(super) fn splits_seconds(&self) -> bool {
        match self {
            Self::Unlimited => false,
            Self::Limited(limit) => limit.algorithm.splits_seconds(),
        }
    }
}

/// One `rate_limit` of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The domain it belongs to.
    pub domain: Arc<str>,
    /// The names of the descriptors that lead to it, joined by dots: `key1_value1.subkey1`.
    pub path: String,
    /// What it allows.
    pub allowance: Allowance,
    /// Shown to callers in `current_limit.name`, and what `replaces` refers to; may be empty.
    pub name: Arc<str>,
    /// Names of rules that do not apply to a request that this one applies to.
    pub replaces: Box<[Arc<str>]>,
    /// Being over the limit is counted, but no descriptor is over because of it.
    pub shadow_mode: bool,
    /// A request is only refused for it when all of the request's quotas are used up.
    pub quota_mode: bool,
    /// Statistics are kept for each value of each level.
    pub detailed_metric: bool,
    /// Given to callers with requests that the rule lets pass.
    pub metadata: Option<Arc<Struct>>,
    /// The path in statistics, unless the request has a part in it: the domain and `path`, without
    /// what metric systems take for separators.
    pub metric_path: Arc<str>,
}

/// Number of a rule in its [`Rules`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RuleId(pub(crate) usize);

/// The rules of all domains: an immutable snapshot.
#[derive(Debug, Default)]
pub struct Rules {
    pub(super) domains: Names<Domain>,
    pub(super) rules: Vec<Rule>,
    /// Some of them are counted by parts of seconds.
    pub(super) split_seconds: bool,
}

/// The rules of one domain.
#[derive(Debug, Default)]
pub(crate) struct Domain {
    pub(super) root: Level,
    /// Some of its rules replace others.
    pub(super) replaces: bool,
    pub(super) charging: Charging,
    pub(super) defaults: Defaults,
}

impl Domain {
    /// Starts a look-up.
    #[inline]
    pub(crate) fn start(&self) -> LookUp<'_> {
        LookUp::start(&self.root)
    }

    /// Whether any of its rules replaces another.
    pub(crate) fn has_replacing_rules(&self) -> bool {
        self.replaces
    }

    /// Whether the descriptors of a request are charged together.
    pub(crate) fn charging(&self) -> Charging {
        self.charging
    }

    /// For limits that requests bring themselves.
    pub(crate) fn policy(&self) -> Policy {
        Policy {
            rejected: match self.charging {
                Charging::Each => self.defaults.rejected.unwrap_or_default(),
                Charging::AllOrNothing => Rejected::Free,
            },
            sharing: self.defaults.sharing.unwrap_or_default(),
            on_store_outage: self.defaults.on_store_outage.unwrap_or_default(),
        }
    }
}

impl Rules {
    /// Whether there is a domain of this name.
    pub fn has_domain(&self, domain: &str) -> bool {
        self.domains.get(domain).is_some()
    }

    /// Whether there is no domain at all.
    pub fn is_empty(&self) -> bool {
        self.domains.len() == 0
    }

    /// All rules, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (RuleId, &Rule)> {
        self.rules
            .iter()
            .enumerate()
            .map(|(number, rule)| (RuleId(number), rule))
    }

    /// The rule of this number.
    #[inline]
    pub fn get(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(id.0)
    }

    /// Whether any limit is counted by parts of seconds.
    #[inline]
    pub(crate) fn split_seconds(&self) -> bool {
        self.split_seconds
    }

    /// The names of all domains.
    pub fn domains(&self) -> impl Iterator<Item = &str> {
        self.domains.iter().map(|(name, _)| name)
    }

    /// The rules of `domain`; `None` when the domain is unknown.
    #[inline]
    pub(crate) fn domain(&self, domain: &str) -> Option<&Domain> {
        self.domains.get(domain)
    }

    pub(super) fn level(&self, domain: &str) -> Option<&Level> {
        self.domains.get(domain).map(|domain| &domain.root)
    }
}
