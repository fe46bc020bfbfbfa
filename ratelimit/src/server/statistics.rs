//! Counters per rule.

use std::collections::HashMap;

use attache_service::{Metrics, metrics::Counter};

use crate::{
    config::{RuleId, Rules},
    limiter::{Applied, Decision, Tally},
};

/// Counters of one set of rules. Their labels come from the rules alone, never from requests, so
/// there are as many as there are rules.
#[derive(Debug)]
pub(super) struct Statistics {
    rules: Vec<RuleCounters>,
    /// Limits that requests brought themselves, by domain.
    overrides: HashMap<Box<str>, RuleCounters>,
    domain_not_found: Counter,
}

#[derive(Debug)]
struct RuleCounters {
    total_hits: Counter,
    over_limit: Counter,
    near_limit: Counter,
    within_limit: Counter,
}

/// The `rule` of limits that requests bring themselves; no rule can be called so.
const OVERRIDE: &str = "(request)";

impl Statistics {
    pub(super) fn new(rules: &Rules, metrics: &Metrics) -> Self {
        let domains = rules.domains();
        Self {
            rules: rules
                .iter()
                .map(|(_, rule)| RuleCounters::new(metrics, &rule.domain, &rule.path))
                .collect(),
            overrides: domains
                .map(|domain| (domain.into(), RuleCounters::new(metrics, domain, OVERRIDE)))
                .collect(),
            domain_not_found: metrics.counter(
                "attache_ratelimit_domain_not_found",
                "Requests for a domain without rules.",
                &[],
            ),
        }
    }

    /// Counts one request of `domain`.
    pub(super) fn note(&self, domain: &str, decision: &Decision) {
        if !decision.domain_known {
            self.domain_not_found.inc();
            return;
        }
        for descriptor in &decision.descriptors {
            let Applied::Limit { rule, .. } = &descriptor.applied else {
                continue;
            };
            let counters = match rule {
                Some(RuleId(number)) => self.rules.get(*number),
                None => self.overrides.get(domain),
            };
            if let Some(counters) = counters {
                counters.note(descriptor.tally);
            }
        }
    }
}

impl RuleCounters {
    fn new(metrics: &Metrics, domain: &str, rule: &str) -> Self {
        let counter = |name: &str, help: &str| {
            let name = format!("attache_ratelimit_{name}");
            metrics.counter(&name, help, &[("domain", domain), ("rule", rule)])
        };
        Self {
            total_hits: counter("hits", "Hits counted."),
            over_limit: counter("over_limit", "Hits beyond the limit."),
            near_limit: counter("near_limit", "Hits in the last fifth of the limit."),
            within_limit: counter("within_limit", "Hits within the limit."),
        }
    }

    fn note(&self, tally: Tally) {
        let add = |counter: &Counter, hits: u64| {
            if hits > 0 {
                counter.inc_by(hits);
            }
        };
        add(&self.total_hits, tally.total);
        add(&self.over_limit, tally.over);
        add(&self.near_limit, tally.near);
        add(&self.within_limit, tally.within);
    }
}
