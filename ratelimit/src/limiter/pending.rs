//! What is known of a descriptor before its counter is charged.

use super::{Applied, DescriptorDecision, Hits, UnixTime, engine::Modes, judgement::judge};
use crate::{
    config::{Allowance, Limit, LookUp, RuleId, Rules, metric_path, rules::Domain},
    store::{Amount, Reading, Terms, key::KeyText},
};

/// What is known of a descriptor before its counter is charged.
#[derive(Debug)]
pub(super) enum Pending {
    /// It needs no counter.
    Free(Applied),
    /// Its counter is charged.
    Charged(Charged),
}

/// A descriptor whose counter is charged.
#[derive(Debug)]
pub(super) struct Charged {
    rule: Option<RuleId>,
    limit: Limit,
    /// How its counter counts.
    pub(super) terms: Terms,
    /// What to do with its counter.
    pub(super) amount: Amount,
    shadow: bool,
    quota: bool,
    metric_path: Option<Box<str>>,
}

/// A request's domain and its rules.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) rules: &'a Rules,
    pub(super) name: &'a str,
    pub(super) domain: &'a Domain,
}

impl Scope<'_> {
    /// Puts the key of a descriptor that brings its limit itself together.
    pub(super) fn by_limit<'e>(
        self,
        entries: impl Iterator<Item = (&'e str, &'e str)> + Clone,
        limit: Limit,
        amount: Amount,
        keys: &mut KeyText,
        now: UnixTime,
    ) -> Pending {
        keys.begin(self.name);
        for (key, value) in entries.clone() {
            keys.entry(key, value);
        }
        let limit = Limit {
            policy: self.domain.policy(),
            ..limit
        };
        Pending::Charged(Charged {
            rule: None,
            limit,
            terms: limit.terms(now),
            amount,
            shadow: false,
            quota: false,
            metric_path: Some(metric_path::of_request(self.name, entries)),
        })
    }

    /// Finds the rule of a descriptor, and puts the key of its counter together. Rules of the
    /// names `replaced` do not apply.
    #[inline]
    pub(super) fn by_rule<'e>(
        self,
        entries: impl Iterator<Item = (&'e str, &'e str)> + Clone,
        amount: Amount,
        replaced: &[&str],
        keys: &mut KeyText,
        now: UnixTime,
    ) -> Pending {
        let look_up = self.look_up(entries.clone(), keys);
        let found = look_up.rule();
        let Some((id, rule)) = found.and_then(|id| Some((id, self.rules.get(id)?))) else {
            return Pending::NOTHING;
        };
        let limit = match rule.allowance {
            Allowance::Unlimited => return Pending::Free(Applied::Unlimited(id)),
            Allowance::Limited(limit) => limit,
        };
        if !replaced.is_empty() && !rule.name.is_empty() && replaced.contains(&&*rule.name) {
            return Pending::Free(Applied::Replaced(id));
        }
        let named_by_request = rule.detailed_metric || look_up.named_by_request();
        Pending::Charged(Charged {
            rule: Some(id),
            limit,
            terms: limit.terms(now),
            amount,
            shadow: rule.shadow_mode,
            quota: rule.quota_mode,
            metric_path: named_by_request.then(|| {
                let detailed = rule.detailed_metric;
                self.rules.metric_path(self.name, entries, detailed)
            }),
        })
    }

    /// Walks down the rules, and puts the counter's key together on the way.
    #[inline]
    pub(super) fn look_up<'e>(
        &self,
        entries: impl Iterator<Item = (&'e str, &'e str)>,
        keys: &mut KeyText,
    ) -> LookUp<'_> {
        keys.begin(self.name);
        let mut look_up = self.domain.start();
        for (key, value) in entries {
            let composite = keys.entry(key, value);
            if let Some(shared) = look_up.entry(composite, key) {
                keys.share(shared);
            }
        }
        look_up
    }
}

impl Pending {
    /// No rule applies.
    pub(super) const NOTHING: Self = Self::Free(Applied::Nothing);

    /// Whether its counter is charged.
    #[inline]
    pub(super) fn charged(&self) -> Option<&Charged> {
        match self {
            Self::Free(_) => None,
            Self::Charged(charged) => Some(charged),
        }
    }

    /// What becomes of it, with the reading of its counter if that was charged.
    #[inline]
    pub(super) fn decide(
        self,
        modes: &Modes,
        reading: impl FnOnce() -> Option<Reading>,
    ) -> DescriptorDecision {
        let charged = match self {
            Self::Free(Applied::Unlimited(rule)) => {
                return DescriptorDecision::free(Applied::Unlimited(rule), false);
            }
            Self::Free(applied) => return DescriptorDecision::free(applied, modes.quota),
            Self::Charged(charged) => charged,
        };
        let Some(reading) = reading() else {
            // A store answers for each charge; if one does not, nothing is known.
            return DescriptorDecision::free(Applied::Nothing, modes.quota);
        };
        let hits = charged.hits().into();
        let judgement = judge(
            charged.terms.capacity(),
            hits,
            &reading,
            modes.near_limit_ratio,
        );
        let applied = Applied::Limit {
            rule: charged.rule,
            limit: charged.limit,
            resets_in: reading.resets_in,
            metric_path: charged.metric_path,
        };
        let quota = charged.quota || modes.quota;
        DescriptorDecision::judged(judgement, charged.shadow, quota, applied)
    }

    /// What is to be counted, for when that fails.
    pub(super) fn into_hits(self) -> Option<Hits> {
        match self {
            Self::Free(_) => None,
            Self::Charged(charged) => Some(Hits {
                hits: charged.hits(),
                rule: charged.rule,
                metric_path: charged.metric_path,
            }),
        }
    }
}

impl Charged {
    /// Whether nothing is refused for it.
    pub(super) fn shadow(&self) -> bool {
        self.shadow
    }

    fn hits(&self) -> u32 {
        match self.amount {
            Amount::Add(hits) => hits,
            // Giving back is not a hit.
            Amount::Refund(_) => 0,
        }
    }
}
