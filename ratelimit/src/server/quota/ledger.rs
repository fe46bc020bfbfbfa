//! Where usage is counted.

use attache_proto::{common_ratelimit::RateLimitDescriptor, ratelimit::RateLimitRequest};
use tonic::Status;

use crate::{
    RateLimitServer,
    config::{Algorithm, Limit},
    limiter::{Applied, Clock, DescriptorDecision},
    store::Store,
};

/// Charges usage to counters and says what is left of their limits.
pub trait Ledger: Clone + Send + Sync + 'static {
    /// Adds the descriptor's hits to its counter; 0 only looks.
    ///
    /// # Errors
    /// When the counters cannot be reached.
    fn charge(
        &self,
        domain: &str,
        descriptor: RateLimitDescriptor,
    ) -> impl Future<Output = Result<Balance, Status>> + Send;

    /// Which rules are in force: another number after each change.
    fn generation(&self) -> u64;
}

/// What is left of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// No rule matches.
    NoRule,
    /// There is no limit, or one that is only observed.
    Unlimited,
    /// A limit.
    Limited {
        /// Requests of one window.
        requests: u32,
        /// Length of the window, in seconds.
        seconds: u64,
        /// Requests that may come all at once.
        burst: u32,
        /// What is left of the present window; `None` where limits have none.
        window: Option<Window>,
    },
}

/// The present window of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Whether nothing is left of it.
    pub used_up: bool,
    /// Seconds until it ends.
    pub ends_in: u64,
}

impl<S: Store, C: Clock> Ledger for RateLimitServer<S, C> {
    async fn charge(
        &self,
        domain: &str,
        descriptor: RateLimitDescriptor,
    ) -> Result<Balance, Status> {
        let request = RateLimitRequest {
            domain: domain.to_owned(),
            descriptors: vec![descriptor],
            hits_addend: 0,
        };
        Ok(match self.decide_one(&request).await? {
            None => Balance::NoRule,
            Some((_, true)) => Balance::Unlimited,
            Some((decision, false)) => Balance::of(decision),
        })
    }

    fn generation(&self) -> u64 {
        self.loads()
    }
}

impl Balance {
    fn of(decision: DescriptorDecision) -> Self {
        match decision.applied {
            Applied::Nothing | Applied::Replaced(_) => Self::NoRule,
            Applied::Unlimited(_) => Self::Unlimited,
            Applied::Limit {
                limit, resets_in, ..
            } => Self::of_limit(&limit, decision.remaining == 0, resets_in),
        }
    }

    fn of_limit(limit: &Limit, used_up: bool, resets_in: u64) -> Self {
        let requests = limit.requests_per_unit;
        let seconds = limit.window_seconds();
        let window = |ends_in| Some(Window { used_up, ends_in });
        let (burst, window) = match limit.algorithm {
            Algorithm::FixedWindow | Algorithm::CalendarWindow(_) => (requests, window(resets_in)),
            // What is used up now is free again one window later.
            Algorithm::SlidingWindow => (requests, window(resets_in.min(seconds))),
            // What flows in passes, however empty the bucket is.
            Algorithm::TokenBucket { burst } => (burst, None),
        };
        Self::Limited {
            requests,
            seconds,
            burst,
            window,
        }
    }
}
