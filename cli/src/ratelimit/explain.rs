//! `attache ratelimit explain`: which rules a request's descriptors get, and why.

use std::fmt;

use attache_ratelimit::{
    Limit, Rules,
    config::{
        Algorithm, Allowance, Explanation, Merge, Rule,
        explain::{Applies, Found, Outcome, Step},
    },
    limiter::{Clock as _, SystemClock, UnixTime},
    store::{Meter, Outage, Rejected, Sharing},
};
use serde_json::{Value, json};

use crate::{
    Failure,
    args::ratelimit::{Entries, RatelimitExplainArgs},
    output,
};

/// Prints what each descriptor gets, and why.
pub(crate) fn run(args: &RatelimitExplainArgs) -> Result<(), Failure> {
    let merge = match args.merge_domain_configs {
        true => Merge::Domains,
        false => Merge::Refuse,
    };
    let rules = Rules::load_merging(&args.config, merge)?;
    let explained = Explained::of(&rules, &args.domain, &args.descriptors, SystemClock.now());
    match args.json {
        true => output(&format!("{:#}\n", explained.json())),
        false => output(&explained.to_string()),
    }
}

/// What becomes of the descriptors of a request.
struct Explained<'r> {
    domain: &'r str,
    descriptors: Vec<Descriptor<'r>>,
}

/// What becomes of one of them.
struct Descriptor<'r> {
    entries: &'r Entries,
    explanation: Explanation,
    applies: Option<Applied<'r>>,
}

/// The rule of a descriptor.
struct Applied<'r> {
    rule: &'r Rule,
    counter: Option<Counter>,
    /// The descriptors whose rules replace this one, by number from 1.
    replaced_by: Vec<usize>,
    /// What the reference service does otherwise.
    reference: Vec<String>,
}

/// The counter of a rule with a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counter {
    limit: Limit,
    /// In a shared store, without the prefix that may be set there.
    key: String,
    /// Seconds until the present window ends, where there are windows.
    window_ends_in: Option<u64>,
    /// Another descriptor with the same counter, by number from 1.
    same_as: Option<usize>,
}

impl<'r> Explained<'r> {
    fn of(rules: &'r Rules, domain: &'r str, descriptors: &'r [Entries], now: UnixTime) -> Self {
        let mut explained: Vec<Descriptor<'r>> = Vec::with_capacity(descriptors.len());
        for entries in descriptors {
            let pairs: Vec<(&str, &str)> = entries
                .0
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect();
            let explanation = rules.explain(domain, &pairs);
            let applies = match &explanation.outcome {
                Outcome::Rule(applies) => Applied::of(rules, applies, now),
                _ => None,
            };
            explained.push(Descriptor {
                entries,
                explanation,
                applies,
            });
        }
        let replaced: Vec<Vec<usize>> = explained
            .iter()
            .map(|descriptor| descriptor.replaced_by(&explained))
            .collect();
        let same: Vec<Option<usize>> = (0..explained.len())
            .map(|number| same_counter(&explained, number))
            .collect();
        for ((descriptor, replaced_by), same_as) in explained.iter_mut().zip(replaced).zip(same) {
            if let Some(applies) = &mut descriptor.applies {
                applies.replaced_by = replaced_by;
                if let Some(counter) = &mut applies.counter {
                    counter.same_as = same_as;
                }
            }
        }
        Self {
            domain,
            descriptors: explained,
        }
    }

    fn json(&self) -> Value {
        let descriptors: Vec<_> = self.descriptors.iter().map(Descriptor::json).collect();
        json!({ "domain": self.domain, "descriptors": descriptors })
    }
}

/// The first descriptor before this one that has the same counter, by number from 1.
fn same_counter(descriptors: &[Descriptor<'_>], number: usize) -> Option<usize> {
    let key = |descriptor: &Descriptor<'_>| {
        let counter = descriptor.applies.as_ref()?.counter.as_ref();
        counter.map(|counter| counter.key.clone())
    };
    let wanted = key(descriptors.get(number)?)?;
    let before = descriptors.get(..number)?.iter();
    let mut before = before.map(key);
    let found = before.position(|found| found.as_ref() == Some(&wanted));
    found.map(|found| found + 1)
}

impl Descriptor<'_> {
    fn replaced_by(&self, all: &[Descriptor<'_>]) -> Vec<usize> {
        let Some(applied) = &self.applies else {
            return Vec::new();
        };
        // A rule without limit is replaced by none.
        if applied.rule.name.is_empty() || applied.counter.is_none() {
            return Vec::new();
        }
        let replaces = |other: &Descriptor<'_>| {
            let other = other.applies.as_ref();
            other.is_some_and(|other| other.rule.replaces.contains(&applied.rule.name))
        };
        let all = all.iter().zip(1..);
        let replacing = all.filter(|(other, _)| replaces(other));
        replacing.map(|(_, number)| number).collect()
    }

    fn json(&self) -> Value {
        let steps: Vec<_> = self.explanation.steps.iter().map(step_json).collect();
        let mut told = json!({ "descriptor": self.entries.to_string(), "steps": steps });
        told["outcome"] = match (&self.explanation.outcome, &self.applies) {
            (Outcome::UnknownDomain { nearest }, _) => {
                told["nearest"] = json!(nearest);
                "unknown_domain"
            }
            (Outcome::NoMatch, _) => "no_match",
            (Outcome::NoLimit { .. }, _) => "no_limit",
            (Outcome::Rule(_), Some(applied)) if !applied.replaced_by.is_empty() => "replaced",
            (Outcome::Rule(applies), _) => match applies.allowance {
                Allowance::Unlimited => "unlimited",
                Allowance::Limited(_) => "limit",
            },
        }
        .into();
        if let (Outcome::Rule(applies), Some(applied)) = (&self.explanation.outcome, &self.applies)
        {
            told["rule"] = applied.json(applies);
        }
        told
    }
}

impl<'r> Applied<'r> {
    fn of(rules: &'r Rules, applies: &Applies, now: UnixTime) -> Option<Self> {
        let rule = rules.get(applies.rule)?;
        let counter = match applies.allowance {
            Allowance::Unlimited => None,
            Allowance::Limited(limit) => Some(Counter::of(limit, &applies.counter, now)),
        };
        let limit = counter.as_ref().map(|counter| counter.limit);
        Some(Self {
            rule,
            reference: differences(rule, limit, &applies.metric_path),
            counter,
            replaced_by: Vec::new(),
        })
    }

    fn json(&self, applies: &Applies) -> Value {
        let limit = self.counter.as_ref().map(|counter| {
            let limit = counter.limit;
            let mut told = json!({
                "text": limit.to_string(),
                "requests_per_unit": limit.requests_per_unit,
                "unit": limit.unit.name(),
                "unit_multiplier": limit.unit_multiplier,
                "algorithm": match limit.algorithm {
                    Algorithm::FixedWindow => "fixed_window",
                    Algorithm::CalendarWindow(_) => "calendar_window",
                    Algorithm::SlidingWindow => "sliding_window",
                    Algorithm::TokenBucket { .. } => "token_bucket",
                },
                "key": counter.key,
                "window_ends_in_s": counter.window_ends_in,
                "same_counter_as": counter.same_as,
            });
            if let Algorithm::TokenBucket { burst } = limit.algorithm {
                told["burst"] = burst.into();
            }
            told
        });
        json!({
            "path": applies.path,
            "name": &*self.rule.name,
            "limit": limit,
            "shadow_mode": applies.shadow_mode,
            "quota_mode": applies.quota_mode,
            "metric_path": applies.metric_path,
            "replaced_by": self.replaced_by,
            "reference": self.reference,
        })
    }
}

impl Counter {
    fn of(limit: Limit, counter: &str, now: UnixTime) -> Self {
        let (key, window_ends_in) = match limit.terms(now).meter {
            Meter::FixedWindow(window) => (
                format!("{counter}{}", window.start),
                Some(window.resets_in(now.seconds())),
            ),
            Meter::SlidingWindow(window) => (format!("{counter}sliding_{}s", window.length), None),
            Meter::TokenBucket { period, .. } => (format!("{counter}bucket_{period}s"), None),
        };
        Self {
            limit,
            key,
            window_ends_in,
            same_as: None,
        }
    }
}

/// What the reference service does otherwise with a rule.
fn differences(rule: &Rule, limit: Option<Limit>, metric_path: &str) -> Vec<String> {
    let mut differences = Vec::new();
    let unknown = limit.map(unknown_to_the_reference).unwrap_or_default();
    if !unknown.is_empty() {
        differences.push(format!("refuses the file: it {}", unknown.join(", and ")));
    }
    if rule.metadata.is_some() && *rule.metric_path != *metric_path {
        let why = "requests have a part in the name of its statistics";
        differences.push(format!("loses the metadata of this rule, since {why}"));
    }
    differences
}

/// Why a limit cannot be said in the reference's language.
fn unknown_to_the_reference(limit: Limit) -> Vec<&'static str> {
    let policy = limit.policy;
    let counted_in_windows = !matches!(limit.algorithm, Algorithm::TokenBucket { .. });
    let extensions = [
        (
            limit.algorithm != Algorithm::FixedWindow,
            "has only fixed windows, aligned to the Unix epoch",
        ),
        (limit.unit_multiplier.get() > 1, "has no `unit_multiplier`"),
        (
            policy.rejected == Rejected::Free && counted_in_windows,
            "keeps rejected hits counted",
        ),
        (
            policy.sharing == Sharing::Leased,
            "asks its store about each hit",
        ),
        (
            policy.on_store_outage != Outage::Fail,
            "answers with an error while its store is away",
        ),
    ];
    let used = extensions.into_iter().filter(|(is_used, _)| *is_used);
    used.map(|(_, what)| what).collect()
}

fn step_json(step: &Step) -> Value {
    let mut told = json!({ "key": step.key, "value": step.value });
    let matched = match &step.found {
        Found::Exact { name } => {
            told["name"] = json!(name);
            "exact"
        }
        Found::Wildcard { name, shared } => {
            told["name"] = json!(name);
            told["shared"] = json!(shared);
            "wildcard"
        }
        Found::Key { name } => {
            told["name"] = json!(name);
            "key"
        }
        Found::Nothing { nearest } => {
            told["nearest"] = json!(nearest);
            "nothing"
        }
        Found::Unreached => "unreached",
    };
    told["matched"] = matched.into();
    told
}

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = self.descriptors.len() > 1;
        for (descriptor, number) in self.descriptors.iter().zip(1..) {
            if many {
                let gap = if number > 1 { "\n" } else { "" };
                writeln!(f, "{gap}Descriptor {number}: {}", descriptor.entries)?;
            }
            descriptor.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Descriptor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.explanation)?;
        match &self.applies {
            Some(applied) => applied.fmt(f),
            None => Ok(()),
        }
    }
}

/// What the explanation does not say.
impl fmt::Display for Applied<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.rule.name.is_empty() {
            writeln!(f, "  name: {}", self.rule.name)?;
        }
        if let Some(counter) = &self.counter {
            writeln!(f, "  key in the store: {}", counter.key)?;
            if let Some(seconds) = counter.window_ends_in {
                writeln!(f, "  window: ends in {seconds} s")?;
            }
            if let Some(other) = counter.same_as {
                writeln!(f, "  the same counter as descriptor {other}, charged twice")?;
            }
        }
        for number in &self.replaced_by {
            let rule = "the rule of descriptor";
            writeln!(
                f,
                "  replaced by {rule} {number}: does not apply to this request"
            )?;
        }
        for difference in &self.reference {
            writeln!(f, "  envoyproxy/ratelimit {difference}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(rules: &str, descriptors: &[&[(&str, &str)]]) -> String {
        let rules = Rules::parse("limits.yaml", rules).unwrap();
        let entries = |entries: &&[(&str, &str)]| {
            let entries = entries.iter();
            let entries = entries.map(|(key, value)| (key.to_string(), value.to_string()));
            Entries(entries.collect())
        };
        let descriptors: Vec<_> = descriptors.iter().map(entries).collect();
        let now = UnixTime::from_seconds(1000);
        Explained::of(&rules, "shop", &descriptors, now).to_string()
    }

    #[test]
    fn a_counter_is_named_as_in_the_store() {
        let limit = |fields: &str| {
            let limit = format!("unit: minute, requests_per_unit: 5{fields}");
            let rules =
                format!("domain: shop\ndescriptors: [{{ key: a, rate_limit: {{ {limit} }} }}]");
            explained(&rules, &[&[("a", "x")]])
        };
        let said = limit("");
        for expected in ["key in the store: shop_a_x_960\n", "window: ends in 20 s\n"] {
            assert!(said.contains(expected), "{expected}\n{said}");
        }
        assert!(!said.contains("envoyproxy"), "{said}");
        for (fields, key) in [
            (", unit_multiplier: 3", "shop_a_x_900\n"),
            (", algorithm: sliding_window", "shop_a_x_sliding_60s\n"),
            (
                ", algorithm: token_bucket, burst: 2",
                "shop_a_x_bucket_60s\n",
            ),
        ] {
            let said = limit(fields);
            assert!(said.contains(key), "{key}\n{said}");
            assert!(
                said.contains("envoyproxy/ratelimit refuses the file"),
                "{said}"
            );
        }
    }

    #[test]
    fn rules_replaced_by_those_of_other_descriptors_are_named() {
        let rules = "
domain: shop
descriptors:
- { key: all, rate_limit: { name: wide, unit: day, requests_per_unit: 9 } }
- { key: one, rate_limit: { unit: day, requests_per_unit: 1, replaces: [{ name: wide }] } }
";
        let said = explained(rules, &[&[("all", "")], &[("one", "")]]);
        let replaced = "replaced by the rule of descriptor 2";
        assert_eq!(said.matches(replaced).count(), 1, "{said}");
        assert!(!explained(rules, &[&[("all", "")]]).contains("replaced"));
    }

    #[test]
    fn a_counter_that_is_charged_twice_is_told() {
        let rules = "
domain: shop
descriptors:
- { key: path, value: /api/*, share_threshold: true, rate_limit: { unit: day, requests_per_unit: 9 } }
";
        let said = explained(rules, &[&[("path", "/api/a")], &[("path", "/api/b")]]);
        let same = "the same counter as descriptor 1, charged twice";
        assert_eq!(said.matches(same).count(), 1, "{said}");
    }

    #[test]
    fn metadata_that_the_reference_loses_is_told() {
        let rules = "
domain: shop
descriptors:
- { key: a, value_to_metric: true, metadata: { x: y }, rate_limit: { unit: day } }
- { key: b, metadata: { x: y }, rate_limit: { unit: day } }
";
        let said = explained(rules, &[&[("a", "1")], &[("b", "1")]]);
        assert_eq!(said.matches("loses the metadata").count(), 1, "{said}");
    }
}
