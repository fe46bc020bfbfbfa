//! What becomes of a request.

use super::{Tally, judgement::Judgement};
use crate::{
    config::{Limit, RuleId},
    store::StoreError,
};

/// Whether hits fit their limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Within the limit, or no limit applies.
    Ok,
    /// Over the limit.
    OverLimit,
}

/// What became of one request.
#[derive(Debug)]
pub struct Decision {
    /// Over if any descriptor is that is not of a quota, or if there are quotas and all are used
    /// up.
    pub code: Code,
    /// The request is over, but passes since the limiter is in shadow mode.
    pub shadowed: bool,
    /// One decision per descriptor, in the request's order.
    pub descriptors: Vec<DescriptorDecision>,
    /// Whether the request's domain has rules at all.
    pub domain_known: bool,
}

/// What became of one descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescriptorDecision {
    /// Whether its hits fit. Those that a rule in shadow mode has no room for do.
    pub code: Code,
    /// It counts as a quota, of which one that is not used up lets the request pass.
    pub quota: bool,
    /// What they were held against.
    pub applied: Applied,
    /// Hits left: `u32::MAX` when unlimited, 0 when no rule applies.
    pub remaining: u32,
    /// What the hits add to the rule's statistics.
    pub tally: Tally,
}

/// What a descriptor was held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// No rule applies.
    Nothing,
    /// A rule that another descriptor's rule replaces: nothing.
    Replaced(RuleId),
    /// A rule without limit.
    Unlimited(RuleId),
    /// A limit.
    Limit {
        /// The rule; `None` when the request brought the limit itself.
        rule: Option<RuleId>,
        /// The limit.
        limit: Limit,
        /// Whole seconds until the counter is as if it had never been charged; at least 1.
        resets_in: u64,
        /// The path in statistics, if it is not the rule's `metric_path`.
        metric_path: Option<Box<str>>,
    },
}

/// Why a request gets no decision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The request names no domain.
    #[error("rate limit domain must not be empty")]
    EmptyDomain,
    /// The request has no descriptors.
    #[error("rate limit descriptor list must not be empty")]
    NoDescriptors,
    /// The counters cannot be reached. [`Limiter::hits`](super::Limiter::hits) says what was to be
    /// counted.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Hits that were to be counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hits {
    /// The rule; `None` when the request brought the limit itself.
    pub rule: Option<RuleId>,
    /// The path in statistics, if it is not the rule's `metric_path`.
    pub metric_path: Option<Box<str>>,
    /// How many.
    pub hits: u32,
}

impl Code {
    pub(super) fn over_if(over: bool) -> Self {
        if over { Self::OverLimit } else { Self::Ok }
    }
}

impl Decision {
    pub(super) fn of(
        descriptors: Vec<DescriptorDecision>,
        domain_known: bool,
        shadow_mode: bool,
    ) -> Self {
        let over = is_over(&descriptors);
        Self {
            code: Code::over_if(over && !shadow_mode),
            shadowed: over && shadow_mode,
            descriptors,
            domain_known,
        }
    }
}

fn is_over(descriptors: &[DescriptorDecision]) -> bool {
    let (mut quotas, mut used_up) = (0, 0);
    for descriptor in descriptors {
        let over = descriptor.code == Code::OverLimit;
        if descriptor.quota {
            quotas += 1;
            used_up += u32::from(over);
        } else if over {
            return true;
        }
    }
    quotas > 0 && used_up == quotas
}

impl DescriptorDecision {
    /// Nothing is counted.
    pub(super) fn free(applied: Applied, quota: bool) -> Self {
        let remaining = match applied {
            Applied::Unlimited(_) => u32::MAX,
            Applied::Nothing | Applied::Replaced(_) | Applied::Limit { .. } => 0,
        };
        Self {
            code: Code::Ok,
            quota,
            applied,
            remaining,
            tally: Tally::default(),
        }
    }

    pub(super) fn judged(
        judgement: Judgement,
        shadow: bool,
        quota: bool,
        applied: Applied,
    ) -> Self {
        let mut tally = judgement.tally;
        if shadow {
            tally.shadow = tally.over;
        }
        Self {
            code: Code::over_if(judgement.over && !shadow),
            quota,
            applied,
            remaining: judgement.remaining,
            tally,
        }
    }
}
