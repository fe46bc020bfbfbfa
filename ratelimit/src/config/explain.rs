//! Why a rule applies to a descriptor, or none does.

use std::fmt;

use super::{
    level::{Level, Match},
    rules::{Allowance, RuleId, Rules},
};
use crate::store::key::KeyText;

/// Names that are told of when nothing matched.
const NEAREST: usize = 3;

/// How alike a name must be to be told of, from 0 to 1.
const ALIKE: f64 = 0.7;

/// How a descriptor found its rule, or lost its way. Shown as text for people, one line for each
/// entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// What was looked for in which domain.
    pub domain: String,
    /// What became of each entry, in order.
    pub steps: Vec<Step>,
    /// What the descriptor gets.
    pub outcome: Outcome,
}

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The entry's key.
    pub key: String,
    /// The entry's value.
    pub value: String,
    /// What it matched.
    pub found: Found,
}

/// What an entry matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The rule of this key and value.
    Exact {
        /// `<key>_<value>`, as the rule has it.
        name: String,
    },
    /// The first wildcard in file order that matches, since there is no rule of key and value.
    Wildcard {
        /// `<key>_<value>`, as the rule has it.
        name: String,
        /// What stands in the counter's key instead of the value, if values share a counter.
        shared: Option<String>,
    },
    /// The rule of this key without a value, since nothing else matches.
    Key {
        /// The key.
        name: String,
    },
    /// Nothing.
    Nothing {
        /// The most similar names of this level, best first; none when it has no descriptors.
        nearest: Vec<String>,
    },
    /// It was not looked for: the walk ended before.
    Unreached,
}

/// What a descriptor gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// No limit: there is no such domain.
    UnknownDomain {
        /// The most similar names of domains, best first.
        nearest: Vec<String>,
    },
    /// No limit: an entry matched nothing, or there was none.
    NoMatch,
    /// No limit: the descriptor that matched has none of its own.
    NoLimit {
        /// There are descriptors below, so that more entries would go on.
        has_children: bool,
    },
    /// A rule.
    Rule(Box<Applies>),
}

/// The rule that applies.
#[derive(Debug, Clone, PartialEq)]
pub struct Applies {
    /// The rule.
    pub rule: RuleId,
    /// Its place: the names of the descriptors that lead to it, joined by dots.
    pub path: String,
    /// What it allows.
    pub allowance: Allowance,
    /// The key of the counter, without the store's prefix and without the window.
    pub counter: String,
    /// The path in statistics.
    pub metric_path: String,
    /// Being over the limit refuses nothing.
    pub shadow_mode: bool,
    /// It refuses only when all quotas of the request are used up.
    pub quota_mode: bool,
}

impl Rules {
    /// How a descriptor of these entries finds its rule in `domain`, or why it does not.
    pub fn explain(&self, domain: &str, entries: &[(&str, &str)]) -> Explanation {
        let mut explanation = Explanation {
            domain: domain.to_owned(),
            steps: Vec::new(),
            outcome: Outcome::NoMatch,
        };
        let Some(mut level) = self.level(domain) else {
            let nearest = nearest(domain, self.domains());
            explanation.outcome = Outcome::UnknownDomain { nearest };
            return explanation;
        };
        let mut counter = KeyText::default();
        counter.begin(domain);
        let mut last = None;
        let mut lost = false;
        for (key, value) in entries {
            let composite = counter.entry(key, value).to_owned();
            let found = if lost {
                Found::Unreached
            } else if let Some((how, node)) = level.find(&composite, key) {
                let shared = node.shared(how, key);
                if let Some(shared) = shared {
                    counter.share(shared);
                }
                last = Some(node);
                level = node.children();
                match how {
                    Match::Exact => Found::Exact { name: composite },
                    Match::Wildcard(pattern) => Found::Wildcard {
                        name: pattern.to_owned(),
                        shared: shared.map(str::to_owned),
                    },
                    Match::Key => Found::Key {
                        name: (*key).to_owned(),
                    },
                }
            } else {
                lost = true;
                let nearest = nearest(&composite, level.names());
                Found::Nothing { nearest }
            };
            explanation.steps.push(Step {
                key: (*key).to_owned(),
                value: (*value).to_owned(),
                found,
            });
        }
        if let Some(node) = last.filter(|_| !lost) {
            let rule = node.rule().and_then(|id| Some((id, self.get(id)?)));
            explanation.outcome = match rule {
                None => Outcome::NoLimit {
                    has_children: !level.is_empty(),
                },
                Some((id, rule)) => Outcome::Rule(Box::new(Applies {
                    rule: id,
                    path: rule.path.clone(),
                    allowance: rule.allowance.clone(),
                    counter: counter.key().to_owned(),
                    metric_path: {
                        let entries = entries.iter().copied();
                        self.metric_path(domain, entries, rule.detailed_metric)
                            .into()
                    },
                    shadow_mode: rule.shadow_mode,
                    quota_mode: rule.quota_mode,
                })),
            };
        }
        explanation
    }
}

fn nearest<'n>(wanted: &str, names: impl Iterator<Item = &'n str>) -> Vec<String> {
    let mut alike: Vec<(f64, &str)> = names
        .map(|name| (strsim::jaro_winkler(wanted, name), name))
        .filter(|(score, _)| *score >= ALIKE)
        .collect();
    alike.sort_by(|(a, first), (b, second)| b.total_cmp(a).then(first.cmp(second)));
    let nearest = alike.into_iter().take(NEAREST);
    nearest.map(|(_, name)| name.to_owned()).collect()
}

impl Level {
    fn is_empty(&self) -> bool {
        self.names().next().is_none()
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "domain {}", self.domain)?;
        for step in &self.steps {
            writeln!(f, "  {}={}: {}", step.key, step.value, step.found)?;
        }
        write!(f, "{}", self.outcome)
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact { name } => write!(f, "matches `{name}` exactly"),
            Self::Wildcard { name, shared } => {
                write!(f, "matches the wildcard `{name}`")?;
                match shared {
                    Some(shared) => write!(f, "; all its values share the counter of `{shared}`"),
                    None => Ok(()),
                }
            }
            Self::Key { name } => write!(f, "matches the key `{name}`, whatever the value"),
            Self::Nothing { nearest } => {
                f.write_str("matches nothing")?;
                did_you_mean(f, nearest)
            }
            Self::Unreached => f.write_str("not looked for"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownDomain { nearest } => {
                f.write_str("no limit: there is no such domain")?;
                did_you_mean(f, nearest)
            }
            Self::NoMatch => f.write_str("no limit: no rule matches"),
            Self::NoLimit { has_children } => {
                f.write_str("no limit: what matches has no `rate_limit`")?;
                if *has_children {
                    f.write_str(", only descriptors below it")?;
                }
                Ok(())
            }
            Self::Rule(applies) => applies.fmt(f),
        }
    }
}

impl fmt::Display for Applies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rule {}", self.path)?;
        match &self.allowance {
            Allowance::Unlimited => writeln!(f, "  limit: none, nothing is counted")?,
            Allowance::Limited(limit) => {
                writeln!(f, "  limit: {limit}")?;
                writeln!(f, "  counter: {}", self.counter)?;
            }
        }
        if self.shadow_mode {
            writeln!(f, "  in shadow mode: refuses nothing")?;
        }
        if self.quota_mode {
            writeln!(
                f,
                "  a quota: refuses when all quotas of the request are used up"
            )?;
        }
        write!(f, "  statistics: {}", self.metric_path)
    }
}

fn did_you_mean(f: &mut fmt::Formatter<'_>, names: &[String]) -> fmt::Result {
    if names.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    write!(f, "; similar: {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "
domain: shop
descriptors:
- key: tenant
  value: gold
  descriptors:
  - { key: path, value: /api/*, share_threshold: true, rate_limit: { unit: minute, requests_per_unit: 60 } }
  - { key: path, value_to_metric: true, shadow_mode: true, rate_limit: { unit: day, requests_per_unit: 9, algorithm: token_bucket, burst: 3 } }
- { key: free, rate_limit: { unlimited: true } }
";

    fn explain(domain: &str, entries: &[(&str, &str)]) -> String {
        let rules = Rules::parse("limits.yaml", RULES).unwrap();
        rules.explain(domain, entries).to_string()
    }

    #[test]
    fn the_way_to_a_rule_is_told() {
        assert_eq!(
            explain("shop", &[("tenant", "gold"), ("path", "/api/cart")]),
            "domain shop
  tenant=gold: matches `tenant_gold` exactly
  path=/api/cart: matches the wildcard `path_/api/*`; all its values share the counter of `/api/*`
rule tenant_gold.path_/api/*
  limit: 60 per minute
  counter: shop_tenant_gold_path_/api/*_
  statistics: shop.tenant_gold.path_/api/*"
        );
        assert_eq!(
            explain("shop", &[("tenant", "gold"), ("path", "/cart")]),
            "domain shop
  tenant=gold: matches `tenant_gold` exactly
  path=/cart: matches the key `path`, whatever the value
rule tenant_gold.path
  limit: 9 per day, token bucket of 3, rejected hits are free
  counter: shop_tenant_gold_path_/cart_
  in shadow mode: refuses nothing
  statistics: shop.tenant_gold.path_/cart"
        );
        assert_eq!(
            explain("shop", &[("free", "x")]),
            "domain shop
  free=x: matches the key `free`, whatever the value
rule free
  limit: none, nothing is counted
  statistics: shop.free"
        );
    }

    #[test]
    fn where_the_way_ends_is_told() {
        assert_eq!(
            explain("shop", &[("tenant", "golf"), ("path", "/")]),
            "domain shop
  tenant=golf: matches nothing; similar: `tenant_gold`
  path=/: not looked for
no limit: no rule matches"
        );
        assert_eq!(
            explain("shop", &[("tenant", "gold")]),
            "domain shop
  tenant=gold: matches `tenant_gold` exactly
no limit: what matches has no `rate_limit`, only descriptors below it"
        );
        assert_eq!(
            explain("shops", &[("tenant", "gold")]),
            "domain shops
no limit: there is no such domain; similar: `shop`"
        );
        assert_eq!(
            explain("shop", &[]),
            "domain shop
no limit: no rule matches"
        );
    }
}
