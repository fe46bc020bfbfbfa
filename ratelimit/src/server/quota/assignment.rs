//! From what is left of a limit to what one subscriber may let through.

use std::time::Duration;

use attache_proto::{
    rate_limit_quota::rate_limit_quota_response::bucket_action::{
        AbandonAction, BucketAction as Action, QuotaAssignmentAction,
    },
    types::{
        RateLimitStrategy, TokenBucket,
        rate_limit_strategy::{BlanketRule, Strategy},
    },
};
use tokio::time::Instant;

/// How a bucket stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// No rule matches it.
    NoRule,
    /// Its rule has no limit, or only observes one.
    Unlimited,
    /// There is something left of its limit.
    Open(Rate),
    /// Nothing is left of its limit until then.
    UsedUp {
        /// The limit.
        rate: Rate,
        /// When the window ends.
        until: Instant,
    },
}

/// So many requests in so many seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) requests: u32,
    pub(super) seconds: u64,
    /// So many of them may come all at once.
    pub(super) burst: u32,
}

/// What is done with a bucket that no rule matches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unmatched {
    /// The proxy forgets the bucket; its `no_assignment_behavior` decides the next request, and
    /// that request is reported again.
    #[default]
    Abandon,
    /// All requests pass, as for a rate limit request that no rule matches.
    Allow,
    /// No request passes.
    Deny,
}

/// What one subscriber is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Assignment {
    Abandon,
    AllowAll,
    /// Until then, where it is known.
    DenyAll(Option<Instant>),
    /// A part of a limit; at least one request.
    Share(Rate),
}

/// How much longer than to its end a refusal holds: so much time has the assignment that follows
/// it.
const GRACE: Duration = Duration::from_secs(2);

impl Standing {
    /// What the subscriber at `place` (from 0) of `count` gets. The shares of all add up to the
    /// limit; when there are more subscribers than requests, the first ones get one each.
    pub(super) fn assignment(self, place: usize, count: usize, unmatched: Unmatched) -> Assignment {
        match (self, unmatched) {
            (Self::NoRule, Unmatched::Abandon) => Assignment::Abandon,
            (Self::NoRule, Unmatched::Allow) | (Self::Unlimited, _) => Assignment::AllowAll,
            (Self::NoRule, Unmatched::Deny) => Assignment::DenyAll(None),
            (Self::UsedUp { until, .. }, _) => Assignment::DenyAll(Some(until)),
            (Self::Open(rate), _) => {
                let requests = share(rate.requests, place, count);
                let burst = share(rate.burst, place, count);
                match requests.min(burst) {
                    0 => Assignment::DenyAll(None),
                    _ => Assignment::Share(Rate {
                        requests,
                        burst,
                        ..rate
                    }),
                }
            }
        }
    }
}

/// An equal part; what does not divide goes to the first ones.
fn share(whole: u32, place: usize, count: usize) -> u32 {
    let count = u32::try_from(count).unwrap_or(u32::MAX).max(1);
    let first = u32::try_from(place).is_ok_and(|place| place < whole % count);
    whole / count + u32::from(first)
}

impl Assignment {
    /// As it is sent. It holds for `ttl`, a refusal not much longer than its reason.
    pub(super) fn to_wire(self, now: Instant, ttl: Duration) -> Action {
        let (strategy, holds) = match self {
            Self::Abandon => return Action::AbandonAction(AbandonAction {}),
            Self::AllowAll => (Strategy::BlanketRule(BlanketRule::AllowAll.into()), ttl),
            Self::DenyAll(until) => {
                let left = until.map(|until| until.saturating_duration_since(now) + GRACE);
                let holds = left.map_or(ttl, |left| left.min(ttl));
                (Strategy::BlanketRule(BlanketRule::DenyAll.into()), holds)
            }
            Self::Share(rate) => (Strategy::TokenBucket(rate.token_bucket()), ttl),
        };
        Action::QuotaAssignmentAction(QuotaAssignmentAction {
            assignment_time_to_live: Some(prost_types::Duration {
                seconds: i64::try_from(holds.as_secs()).unwrap_or(i64::MAX),
                nanos: i32::try_from(holds.subsec_nanos()).unwrap_or_default(),
            }),
            rate_limit_strategy: Some(RateLimitStrategy {
                strategy: Some(strategy),
            }),
        })
    }
}

impl Rate {
    /// A bucket that gets the requests of one window in one window. Not `requests_per_time_unit`:
    /// Envoy 1.40 passes that strategy over.
    fn token_bucket(self) -> TokenBucket {
        // Envoy 1.40 tells intervals apart by their nanoseconds alone, and goes by their whole
        // seconds: without the former it would not notice a window that changes.
        let nanos = i32::try_from(1 + self.seconds % 997).unwrap_or(1);
        TokenBucket {
            max_tokens: self.burst,
            tokens_per_fill: Some(self.requests),
            fill_interval: Some(prost_types::Duration {
                seconds: i64::try_from(self.seconds.max(1)).unwrap_or(i64::MAX),
                nanos,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PER_MINUTE: Rate = Rate {
        requests: 10,
        seconds: 60,
        burst: 10,
    };

    fn sent(assignment: Assignment) -> Action {
        assignment.to_wire(Instant::now(), Duration::from_secs(60))
    }

    #[test]
    fn shares_are_equal_and_the_first_get_what_is_left_over() {
        let shares = |whole, count| -> Vec<u32> {
            (0..count).map(|place| share(whole, place, count)).collect()
        };
        assert_eq!(shares(10, 1), [10]);
        assert_eq!(shares(10, 3), [4, 3, 3]);
        assert_eq!(shares(2, 4), [1, 1, 0, 0]);
        assert_eq!(shares(0, 2), [0, 0]);
    }

    #[test]
    fn a_share_of_nothing_is_a_refusal() {
        let standing = Standing::Open(Rate {
            requests: 1,
            ..PER_MINUTE
        });
        let second = standing.assignment(1, 2, Unmatched::default());
        assert_eq!(second, Assignment::DenyAll(None));
    }

    #[test]
    fn a_share_is_a_token_bucket_that_envoy_can_tell_from_those_of_other_windows() {
        let bucket = |seconds| {
            let rate = Rate {
                seconds,
                ..PER_MINUTE
            };
            rate.token_bucket()
        };
        let minute = bucket(60);
        assert_eq!((minute.max_tokens, minute.tokens_per_fill), (10, Some(10)));
        let burst = Rate {
            burst: 3,
            ..PER_MINUTE
        };
        let burst = burst.token_bucket();
        assert_eq!((burst.max_tokens, burst.tokens_per_fill), (3, Some(10)));
        let units = [1, 60, 3_600, 86_400, 604_800, 2_592_000, 31_536_000];
        let mut nanos: Vec<i32> = units
            .iter()
            .map(|seconds| bucket(*seconds).fill_interval.unwrap().nanos)
            .collect();
        nanos.sort_unstable();
        nanos.dedup();
        assert_eq!(nanos.len(), units.len());
    }

    #[test]
    fn refusals_end_soon_after_their_window() {
        let now = Instant::now();
        let holds = |assignment: Assignment| match assignment.to_wire(now, Duration::from_secs(60))
        {
            Action::QuotaAssignmentAction(action) => {
                action.assignment_time_to_live.unwrap().seconds
            }
            Action::AbandonAction(_) => panic!("abandoned"),
        };
        let soon = now + Duration::from_secs(5);
        assert_eq!(holds(Assignment::DenyAll(Some(soon))), 7);
        let late = now + Duration::from_secs(5000);
        assert_eq!(holds(Assignment::DenyAll(Some(late))), 60);
        assert_eq!(holds(Assignment::AllowAll), 60);
    }

    #[test]
    fn what_no_rule_matches_gets_what_the_settings_say() {
        for (unmatched, expected) in [
            (Unmatched::Abandon, Assignment::Abandon),
            (Unmatched::Allow, Assignment::AllowAll),
            (Unmatched::Deny, Assignment::DenyAll(None)),
        ] {
            assert_eq!(Standing::NoRule.assignment(0, 1, unmatched), expected);
        }
        assert!(matches!(
            sent(Assignment::Abandon),
            Action::AbandonAction(_)
        ));
    }

    proptest::proptest! {
        #[test]
        fn shares_add_up_to_the_limit_and_differ_by_one_at_most(whole: u32, count in 1usize..200) {
            let shares: Vec<u64> = (0..count)
                .map(|place| share(whole, place, count).into())
                .collect();
            proptest::prop_assert_eq!(shares.iter().sum::<u64>(), u64::from(whole));
            let least = shares.iter().min().copied().unwrap_or_default();
            let most = shares.iter().max().copied().unwrap_or_default();
            proptest::prop_assert!(most - least <= 1);
        }
    }
}
