//! Requests in, decisions out.

use std::{num::NonZeroU32, sync::Arc};

use arc_swap::ArcSwap;
use attache_proto::{
    common_ratelimit::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    ratelimit::RateLimitRequest,
};

use super::{Clock, SystemClock, Tally, Unit, judgement::judge};
use crate::{
    config::{Allowance, Limit, RuleId, Rules, rules::LookUp},
    store::{Amount, Batch, MemoryStore, Store, StoreError},
};

/// Decides requests by rules, counting in a store.
///
/// ```
/// use attache_ratelimit::{Limiter, Rules, limiter::{Code, descriptor}};
/// use attache_proto::ratelimit::RateLimitRequest;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let rules = Rules::parse("limits.yaml", "
/// domain: shop
/// descriptors:
/// - key: user
///   rate_limit: { unit: hour, requests_per_unit: 2 }
/// ")?;
/// let limiter = Limiter::in_memory(rules);
/// let request = RateLimitRequest {
///     domain: "shop".into(),
///     descriptors: vec![descriptor([("user", "alice")])],
///     ..Default::default()
/// };
/// assert_eq!(limiter.decide(&request).await?.code, Code::Ok);
/// assert_eq!(limiter.decide(&request).await?.code, Code::Ok);
/// assert_eq!(limiter.decide(&request).await?.code, Code::OverLimit);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Limiter<S = MemoryStore, C = SystemClock> {
    rules: ArcSwap<Rules>,
    store: S,
    clock: C,
}

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
    /// Over if any descriptor is.
    pub code: Code,
    /// One decision per descriptor, in the request's order.
    pub descriptors: Vec<DescriptorDecision>,
    /// Whether the request's domain has rules at all.
    pub domain_known: bool,
}

/// What became of one descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescriptorDecision {
    /// Whether its hits fit.
    pub code: Code,
    /// What they were held against.
    pub applied: Applied,
    /// Hits left in the window: `u32::MAX` when unlimited, 0 when no rule applies.
    pub remaining: u32,
    /// What the hits add to the rule's statistics.
    pub tally: Tally,
}

/// What a descriptor was held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// No rule applies.
    Nothing,
    /// A rule without limit.
    Unlimited,
    /// A limit.
    Limit {
        /// The rule; `None` when the request brought the limit itself.
        rule: Option<RuleId>,
        /// The limit.
        limit: Limit,
        /// Whole seconds until the counter starts anew, from 1 to the window's length.
        resets_in: u64,
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
    /// The counters cannot be reached.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Limiter {
    /// A limiter that counts in this process.
    pub fn in_memory(rules: Rules) -> Self {
        Self::new(rules, MemoryStore::default())
    }
}

impl<S: Store> Limiter<S> {
    /// A limiter that counts in `store`.
    pub fn new(rules: Rules, store: S) -> Self {
        Self::with_clock(rules, store, SystemClock)
    }
}

/// What is known of a descriptor before its counter is charged.
enum Pending {
    Nothing,
    Unlimited,
    Charged {
        rule: Option<RuleId>,
        limit: Limit,
        amount: Amount,
    },
}

impl<S: Store, C: Clock> Limiter<S, C> {
    /// A limiter with a clock of its own.
    pub fn with_clock(rules: Rules, store: S, clock: C) -> Self {
        Self {
            rules: ArcSwap::from_pointee(rules),
            store,
            clock,
        }
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// Puts other rules in force. Counters go on: they do not depend on the limits.
    pub fn set_rules(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
    }

    /// The counters.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The clock.
    pub fn clock(&self) -> &C {
        &self.clock
    }

    /// Charges every descriptor of the request and says whether all of them fit.
    ///
    /// Descriptors that are over do not keep the others from being charged, and hits that do not
    /// fit stay counted.
    ///
    /// # Errors
    /// When the request has no domain or no descriptors, or the store fails. The store may have
    /// charged some descriptors then.
    pub async fn decide(&self, request: &RateLimitRequest) -> Result<Decision, LimitError> {
        self.decide_by(&self.rules.load_full(), request).await
    }

    /// Like [`Limiter::decide`], by these rules instead of those in force.
    ///
    /// # Errors
    /// As for [`Limiter::decide`].
    pub async fn decide_by(
        &self,
        rules: &Rules,
        request: &RateLimitRequest,
    ) -> Result<Decision, LimitError> {
        if request.domain.is_empty() {
            return Err(LimitError::EmptyDomain);
        }
        if request.descriptors.is_empty() {
            return Err(LimitError::NoDescriptors);
        }
        let now = self.clock.now();
        let mut batch = Batch::new(now);
        let start = rules.start(&request.domain);
        let domain_known = start.is_some();
        let pending = prepare(rules, start, request, &mut batch);

        let mut counts = Vec::with_capacity(batch.len());
        if !batch.is_empty() {
            self.store.charge(&batch, &mut counts).await?;
        }

        let mut charged = batch.iter().zip(counts);
        let mut code = Code::Ok;
        let mut descriptors = Vec::with_capacity(pending.len());
        for pending in pending {
            let decision = match pending {
                Pending::Nothing => DescriptorDecision::free(Applied::Nothing, 0),
                Pending::Unlimited => DescriptorDecision::free(Applied::Unlimited, u32::MAX),
                Pending::Charged {
                    rule,
                    limit,
                    amount,
                } => match charged.next() {
                    Some(((_, charge), count)) => {
                        let resets_in = charge.window.resets_in(now);
                        DescriptorDecision::charged(rule, limit, resets_in, amount, count)
                    }
                    // A store answers for each charge; if one does not, nothing is known.
                    None => DescriptorDecision::free(Applied::Nothing, 0),
                },
            };
            if decision.code == Code::OverLimit {
                code = Code::OverLimit;
            }
            descriptors.push(decision);
        }
        Ok(Decision {
            code,
            descriptors,
            domain_known,
        })
    }
}

/// Looks up every descriptor and puts the counters to charge into `batch`.
fn prepare(
    rules: &Rules,
    start: Option<LookUp<'_>>,
    request: &RateLimitRequest,
    batch: &mut Batch,
) -> Vec<Pending> {
    let mut pending = Vec::with_capacity(request.descriptors.len());
    for descriptor in &request.descriptors {
        let Some(mut look_up) = start.clone() else {
            pending.push(Pending::Nothing);
            continue;
        };
        batch.begin(&request.domain);
        for entry in &descriptor.entries {
            let composite = batch.entry(&entry.key, &entry.value);
            look_up.entry(composite, &entry.key);
        }
        let (rule, limit) = match limit_of_request(descriptor) {
            Some(limit) => (None, limit),
            None => match look_up.rule().and_then(|id| Some((id, rules.get(id)?))) {
                None => {
                    pending.push(Pending::Nothing);
                    continue;
                }
                Some((id, rule)) => match &rule.allowance {
                    Allowance::Unlimited => {
                        pending.push(Pending::Unlimited);
                        continue;
                    }
                    Allowance::Limited(limit) => (Some(id), limit.clone()),
                },
            },
        };
        let amount = amount(descriptor, request.hits_addend);
        batch.charge(limit.window_seconds(), amount);
        pending.push(Pending::Charged {
            rule,
            limit,
            amount,
        });
    }
    pending
}

/// The limit that a descriptor brings itself. One with a unit that does not exist is passed over.
fn limit_of_request(descriptor: &RateLimitDescriptor) -> Option<Limit> {
    let limit = descriptor.limit.as_ref()?;
    let mut planned = Limit::new(limit.requests_per_unit, Unit::from_wire(limit.unit)?);
    if let Some(multiplier) = limit.unit_multiplier.and_then(NonZeroU32::new) {
        planned.unit_multiplier = multiplier;
    }
    Some(planned)
}

/// The descriptor's own number of hits, else the request's, of which 0 means 1.
fn amount(descriptor: &RateLimitDescriptor, of_request: u32) -> Amount {
    let hits = match descriptor.hits_addend {
        // Limits are 32 bits wide, so more hits than that are over any limit all the same.
        Some(hits) => u32::try_from(hits).unwrap_or(u32::MAX),
        None => of_request.max(1),
    };
    if descriptor.is_negative_hits {
        Amount::Refund(hits)
    } else {
        Amount::Add(hits)
    }
}

impl DescriptorDecision {
    fn free(applied: Applied, remaining: u32) -> Self {
        Self {
            code: Code::Ok,
            applied,
            remaining,
            tally: Tally::default(),
        }
    }

    fn charged(
        rule: Option<RuleId>,
        limit: Limit,
        resets_in: u64,
        amount: Amount,
        count: u64,
    ) -> Self {
        let judgement = match amount {
            Amount::Add(hits) => judge(limit.requests_per_unit, count, hits.into()),
            // Giving back is not a hit.
            Amount::Refund(_) => judge(limit.requests_per_unit, count, 0),
        };
        Self {
            code: if judgement.over {
                Code::OverLimit
            } else {
                Code::Ok
            },
            applied: Applied::Limit {
                rule,
                limit,
                resets_in,
            },
            remaining: judgement.remaining,
            tally: judgement.tally,
        }
    }
}

/// A descriptor of these entries, with nothing else set.
pub fn descriptor<'a>(
    entries: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> RateLimitDescriptor {
    RateLimitDescriptor {
        entries: entries
            .into_iter()
            .map(|(key, value)| Entry {
                key: key.to_owned(),
                value: value.to_owned(),
            })
            .collect(),
        ..RateLimitDescriptor::default()
    }
}

#[cfg(test)]
mod tests;
