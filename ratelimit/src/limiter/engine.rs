//! Requests in, decisions out.

use std::sync::Arc;

use arc_swap::ArcSwap;
use attache_proto::{
    common_ratelimit::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    ratelimit::RateLimitRequest,
};

use super::{
    Clock, Decision, DescriptorDecision, Hits, LimitError, SystemClock, UnixTime,
    judgement::NearLimitRatio,
    pending::{Charged, Pending, Scope},
    work::{Work, with_key},
};
use crate::{
    config::{Rules, rules::Domain},
    store::{Amount, Charging, ImmediateStore, MemoryStore, Store},
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
    modes: Modes,
    store: S,
    clock: C,
}

/// How a limiter decides, whatever the rules say.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Modes {
    /// No request is over, though descriptors may be. Default: false.
    pub shadow: bool,
    /// Every limit is a quota: a request is over when all of its descriptors are. Default: false.
    pub quota: bool,
    /// All domains charge as with `charging: all_or_nothing`: what is refused counts nowhere.
    /// Without effect together with `quota`. Default: false.
    pub all_or_nothing: bool,
    /// How far a limit may be used before hits count as near it. Default: 0.8.
    pub near_limit_ratio: NearLimitRatio,
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

impl<S: Store, C: Clock> Limiter<S, C> {
    /// A limiter with a clock of its own.
    pub fn with_clock(rules: Rules, store: S, clock: C) -> Self {
        Self {
            rules: ArcSwap::from_pointee(rules),
            modes: Modes::default(),
            store,
            clock,
        }
    }

    /// Decides in these modes instead of the default ones.
    #[must_use]
    pub fn modes(mut self, modes: Modes) -> Self {
        self.modes = modes;
        self
    }

    /// Whether no request is over, whatever its descriptors are.
    pub(crate) fn only_observes(&self) -> bool {
        self.modes.shadow
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
    /// fit stay counted, as in the reference service, unless the rules say otherwise.
    ///
    /// # Errors
    /// When the request has no domain or no descriptors, or the store fails. The store may have
    /// charged some descriptors then.
    pub async fn decide(&self, request: &RateLimitRequest) -> Result<Decision, LimitError> {
        let rules = self.rules.load();
        self.decide_by(&rules, request).await
    }

    /// Like [`Limiter::decide`], by these rules instead of those in force: for callers who look
    /// the decision's rules up.
    ///
    /// # Errors
    /// As for [`Limiter::decide`].
    pub async fn decide_by(
        &self,
        rules: &Rules,
        request: &RateLimitRequest,
    ) -> Result<Decision, LimitError> {
        let Some(mut work) = self.prepare(rules, request)? else {
            return Ok(self.decision_without_rules(request));
        };
        match work.without_shadow() {
            None if work.batch.is_empty() => {}
            None => {
                let Work {
                    batch, readings, ..
                } = &mut *work;
                self.store.charge(batch, readings).await?;
            }
            Some((binding, mut shadows)) => {
                let (mut bound, mut shadowed) = (Vec::new(), Vec::new());
                if !binding.is_empty() {
                    self.store.charge(&binding, &mut bound).await?;
                }
                if bound.iter().any(|reading| !reading.charged) {
                    shadows.only_look();
                }
                self.store.charge(&shadows, &mut shadowed).await?;
                work.join(bound, shadowed);
            }
        }
        Ok(work.decide(&self.modes))
    }

    /// What a request counts, for the statistics of one that the store did not answer.
    pub fn hits(&self, rules: &Rules, request: &RateLimitRequest) -> Vec<Hits> {
        match self.prepare(rules, request) {
            Ok(Some(work)) => work.into_hits(),
            Ok(None) | Err(_) => Vec::new(),
        }
    }

    /// The charges of a request; `None` when its domain has no rules.
    fn prepare(
        &self,
        rules: &Rules,
        request: &RateLimitRequest,
    ) -> Result<Option<Box<Work>>, LimitError> {
        if request.domain.is_empty() {
            return Err(LimitError::EmptyDomain);
        }
        if request.descriptors.is_empty() {
            return Err(LimitError::NoDescriptors);
        }
        let Some(domain) = rules.domain(&request.domain) else {
            return Ok(None);
        };
        let scope = Scope {
            rules,
            name: &request.domain,
            domain,
        };
        let mut work = Work::take(self.now(rules), self.charging(domain));
        work.prepare(scope, request);
        Ok(Some(work))
    }

    /// The time to decide by. One clock for all rules: the store holds the counters of all, and
    /// frees those that are over.
    #[inline]
    fn now(&self, rules: &Rules) -> UnixTime {
        match self.store.ahead() {
            0 if !rules.split_seconds() => self.clock.second(),
            _ => self.store.time(self.clock.now()),
        }
    }

    fn charging(&self, domain: &Domain) -> Charging {
        // Of quotas, one that is used up refuses nothing.
        if self.modes.quota {
            Charging::Each
        } else if self.modes.all_or_nothing {
            Charging::AllOrNothing
        } else {
            domain.charging()
        }
    }

    fn decision_without_rules(&self, request: &RateLimitRequest) -> Decision {
        let descriptors = request.descriptors.iter();
        let nothing = descriptors.map(|_| Pending::NOTHING.decide(&self.modes, || None));
        Decision::of(nothing.collect(), false, false)
    }
}

impl<S: ImmediateStore, C: Clock> Limiter<S, C> {
    /// Charges one descriptor of these entries with `hits` (0 only looks) and says whether they
    /// fit. This is the way for callers who have no request of the protocol at hand: nothing is
    /// waited for, and nothing is allocated unless the rule's statistics are kept by value.
    ///
    /// ```
    /// use attache_ratelimit::{Limiter, Rules, limiter::Code};
    ///
    /// let rules = Rules::parse("limits.yaml", "
    /// domain: shop
    /// descriptors:
    /// - key: user
    ///   rate_limit: { unit: hour, requests_per_unit: 2 }
    /// ")?;
    /// let limiter = Limiter::in_memory(rules);
    /// let decision = limiter.check("shop", &[("user", "alice")], 1);
    /// assert_eq!((decision.code, decision.remaining), (Code::Ok, 1));
    /// # Ok::<(), attache_service::config::Errors>(())
    /// ```
    pub fn check(&self, domain: &str, entries: &[(&str, &str)], hits: u32) -> DescriptorDecision {
        let rules = self.rules.load();
        let Some(found) = rules.domain(domain) else {
            return Pending::NOTHING.decide(&self.modes, || None);
        };
        let scope = Scope {
            rules: &rules,
            name: domain,
            domain: found,
        };
        let now = self.now(&rules);
        with_key(|keys| {
            let entries = entries.iter().copied();
            let pending = scope.by_rule(entries, Amount::Add(hits), &[], keys, now);
            let reading = pending.charged().map(|Charged { terms, amount, .. }| {
                self.store.charge_one(keys.key(), terms, *amount, now)
            });
            pending.decide(&self.modes, || reading)
        })
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
