//! Circuit breakers: how much of a cluster may be in use at a time, over all workers (Envoy's
//! `config.cluster.v3.CircuitBreakers`), and the budget of its retries.
//!
//! Without `circuit_breakers` nothing is bounded but retries, unlike in Envoy, whose limit of
//! 1024 requests is the first thing that long calls to a policy service run into.

mod settings;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
};

use serde::Serialize;

use crate::{
    Metrics,
    metrics::{Counter, Gauge},
};

pub use settings::{
    BreakersPlan, CircuitBreakers, Percent, RETRIES_ALWAYS, RETRY_PERCENT, RetryBudget, RetryLimit,
    RoutingPriority, Thresholds,
};

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// `max_connections`.
    Connections,
    /// `max_pending_requests`.
    PendingRequests,
    /// `max_requests`.
    Requests,
}

impl Resource {
    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::PendingRequests => "pending_requests",
            Self::Requests => "requests",
        }
    }
}

/// The circuit breakers of one cluster, shared by all its clients.
#[derive(Debug)]
pub struct Breakers {
    plan: BreakersPlan,
    limits: Option<Limits>,
    /// Requests that count for the budget of retries.
    active: Arc<AtomicU32>,
    retries: Arc<AtomicU32>,
    retried: Counter,
    retries_overflowed: Counter,
}

#[derive(Debug)]
struct Limits {
    connections: Arc<Limit>,
    pending: Arc<Limit>,
    requests: Arc<Limit>,
}

/// One limit, and how much of it is used.
#[derive(Debug)]
struct Limit {
    cluster: Arc<str>,
    resource: Resource,
    most: u32,
    used: AtomicU32,
    warned: AtomicBool,
    overflowed: Counter,
    /// Sum over all that live: a reload may leave one behind until its requests have ended.
    remaining: Option<Gauge>,
}

/// The right to use some of a limited resource, given back when dropped.
#[derive(Debug)]
pub struct Permit(Right);

#[derive(Debug)]
enum Right {
    Limited(Arc<Limit>),
    Counted(Arc<AtomicU32>),
    Unlimited,
}

/// How much of a cluster is in use, by the names of Envoy's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BreakersSnapshot {
    /// Connections, where they are limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<Usage>,
    /// Requests that wait for a connection, where they are limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending_requests: Option<Usage>,
    /// Requests on their way, where they are limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<Usage>,
    /// Requests that are sent again.
    pub max_retries: Usage,
}

/// How much of a limit is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// So much is.
    pub used: u32,
    /// So much may be.
    pub limit: u32,
}

/// A limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many {} of the cluster", .0.name())]
pub struct Overflow(pub Resource);

impl Breakers {
    /// Breakers of the cluster `name`.
    pub fn new(plan: BreakersPlan, name: &str, metrics: &Metrics) -> Arc<Self> {
        let cluster: Arc<str> = name.into();
        let limits = plan.limits.map(|limits| {
            let limit = |resource, most| {
                Arc::new(Limit::new(
                    cluster.clone(),
                    resource,
                    most,
                    limits.tracked,
                    metrics,
                ))
            };
            Limits {
                connections: limit(Resource::Connections, limits.connections),
                pending: limit(Resource::PendingRequests, limits.pending),
                requests: limit(Resource::Requests, limits.requests),
            }
        });
        Arc::new(Self {
            plan,
            limits,
            active: Arc::default(),
            retries: Arc::default(),
            retried: metrics.counter(
                "attache_upstream_retries",
                "Requests and calls sent again, as their `retry_policy` says, by cluster.",
                &[("cluster", name)],
            ),
            retries_overflowed: metrics.counter(
                "attache_upstream_retries_overflowed",
                "Requests and calls not sent again, as too many others were at that time.",
                &[("cluster", name)],
            ),
        })
    }

    /// Those of a new plan: `self` where nothing has changed, so that what is in use counts on.
    #[must_use]
    pub fn renewed(
        self: &Arc<Self>,
        plan: BreakersPlan,
        name: &str,
        metrics: &Metrics,
    ) -> Arc<Self> {
        match self.plan == plan {
            true => self.clone(),
            false => Self::new(plan, name, metrics),
        }
    }

    /// Whether anything but retries is limited; the others need not be asked for.
    pub fn limit(&self) -> bool {
        self.limits.is_some()
    }

    /// How much is in use.
    pub fn snapshot(&self) -> BreakersSnapshot {
        let usage = |limit: &Arc<Limit>| Usage {
            used: limit.used.load(Relaxed),
            limit: limit.most,
        };
        let limits = self.limits.as_ref();
        BreakersSnapshot {
            max_connections: limits.map(|limits| usage(&limits.connections)),
            max_pending_requests: limits.map(|limits| usage(&limits.pending)),
            max_requests: limits.map(|limits| usage(&limits.requests)),
            max_retries: Usage {
                used: self.retries.load(Relaxed),
                limit: self.most_retries(),
            },
        }
    }

    /// Room for one of these.
    ///
    /// # Errors
    /// When there is none.
    pub fn acquire(&self, resource: Resource) -> Result<Permit, Overflow> {
        self.try_acquire(resource).ok_or_else(|| {
            self.overflow(resource);
            Overflow(resource)
        })
    }

    /// The same, for those who ask again when there is none.
    pub fn try_acquire(&self, resource: Resource) -> Option<Permit> {
        match self.limit_of(resource) {
            Some(limit) => limit.acquire(),
            None => Some(Permit(Right::Unlimited)),
        }
    }

    /// Counts that there was no room.
    pub fn overflow(&self, resource: Resource) {
        if let Some(limit) = self.limit_of(resource) {
            limit.overflowed.inc();
        }
    }

    fn limit_of(&self, resource: Resource) -> Option<&Arc<Limit>> {
        let limits = self.limits.as_ref()?;
        Some(match resource {
            Resource::Connections => &limits.connections,
            Resource::PendingRequests => &limits.pending,
            Resource::Requests => &limits.requests,
        })
    }

    /// Counts a request that may be sent again, for the budget of those that are. Where requests
    /// are limited they count already.
    pub fn count(&self) -> Permit {
        if self.limits.is_some() {
            return Permit(Right::Unlimited);
        }
        self.active.fetch_add(1, Relaxed);
        Permit(Right::Counted(self.active.clone()))
    }

    /// Room for one request more that is sent again, if there is any; either is counted.
    pub fn retry(&self) -> Option<Permit> {
        match increase(&self.retries, self.most_retries()) {
            true => {
                self.retried.inc();
                Some(Permit(Right::Counted(self.retries.clone())))
            }
            false => {
                self.retries_overflowed.inc();
                None
            }
        }
    }

    /// Requests that may be sent again at the same time, as it is now.
    fn most_retries(&self) -> u32 {
        match self.plan.retries {
            RetryLimit::Count(most) => most,
            RetryLimit::Budget { percent, least } => {
                let active = match &self.limits {
                    Some(limits) => {
                        let pending = limits.pending.used.load(Relaxed);
                        limits.requests.used.load(Relaxed).saturating_add(pending)
                    }
                    None => self.active.load(Relaxed),
                };
                least.max((f64::from(active) * percent / 100.0) as u32)
            }
        }
    }
}

impl Limit {
    fn new(
        cluster: Arc<str>,
        resource: Resource,
        most: u32,
        tracked: bool,
        metrics: &Metrics,
    ) -> Self {
        let labels = [("cluster", &*cluster), ("resource", resource.name())];
        let remaining = tracked.then(|| {
            let gauge = metrics.gauge(
                "attache_upstream_remaining",
                "What is left of `circuit_breakers`, by cluster and resource.",
                &labels,
            );
            gauge.inc_by(most.into());
            gauge
        });
        Self {
            overflowed: metrics.counter(
                "attache_upstream_overflowed",
                "Requests that `circuit_breakers` did not let through, by cluster and resource.",
                &labels,
            ),
            cluster,
            resource,
            most,
            used: AtomicU32::new(0),
            warned: AtomicBool::new(false),
            remaining,
        }
    }

    fn acquire(self: &Arc<Self>) -> Option<Permit> {
        if !increase(&self.used, self.most) {
            return None;
        }
        if let Some(remaining) = &self.remaining {
            remaining.dec();
        }
        let used = u64::from(self.used.load(Relaxed));
        if used * 5 >= u64::from(self.most) * 4 && !self.warned.swap(true, Relaxed) {
            tracing::warn!(
                cluster = %self.cluster, resource = self.resource.name(), used, most = self.most,
                "four fifths of a limit of the circuit breakers are used"
            );
        }
        Some(Permit(Right::Limited(self.clone())))
    }

    fn release(&self) {
        let before = u64::from(self.used.fetch_sub(1, Relaxed));
        if let Some(remaining) = &self.remaining {
            remaining.inc();
        }
        // Half of it is used: the next warning says something.
        if before * 2 <= u64::from(self.most) && self.warned.load(Relaxed) {
            self.warned.store(false, Relaxed);
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Some(remaining) = &self.remaining {
            remaining.dec_by(self.most.into());
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match &self.0 {
            Right::Limited(limit) => limit.release(),
            Right::Counted(count) => {
                count.fetch_sub(1, Relaxed);
            }
            Right::Unlimited => {}
        }
    }
}

/// One more, if there are fewer than `most`.
fn increase(count: &AtomicU32, most: u32) -> bool {
    let more = |now: u32| (now < most).then(|| now.saturating_add(1));
    count.fetch_update(Relaxed, Relaxed, more).is_ok()
}

#[cfg(test)]
mod tests {
    use super::{settings::tests::planned, *};

    fn breakers(text: &str) -> (Arc<Breakers>, Metrics) {
        let metrics = Metrics::default();
        let breakers = Breakers::new(planned(text).unwrap(), "web", &metrics);
        (breakers, metrics)
    }

    #[test]
    fn each_resource_has_its_limit_and_gets_it_back() {
        let (breakers, metrics) = breakers(
            "{ thresholds: [{ max_connections: 1, max_pending_requests: 2, max_requests: 3 }] }",
        );
        for (resource, most) in [
            (Resource::Connections, 1),
            (Resource::PendingRequests, 2),
            (Resource::Requests, 3),
        ] {
            let mut held: Vec<_> = (0..most)
                .map(|_| breakers.acquire(resource).unwrap())
                .collect();
            let over = breakers.acquire(resource).unwrap_err();
            assert_eq!(over, Overflow(resource));
            held.pop();
            assert!(breakers.acquire(resource).is_ok());
            let line = format!(
                "attache_upstream_overflowed_total{{cluster=\"web\",resource=\"{}\"}} 1",
                resource.name()
            );
            assert!(metrics.render().contains(&line), "{}", metrics.render());
        }
    }

    #[test]
    fn nothing_is_limited_unless_written_and_then_at_1024_as_in_envoy() {
        let (open, _) = breakers("{}");
        assert!(!open.limit());
        let held: Vec<_> = (0..5000)
            .map(|_| open.acquire(Resource::Requests))
            .collect();
        assert!(held.iter().all(Result::is_ok));

        let (written, _) = breakers("{ thresholds: [{ max_retries: 1 }] }");
        let held: Vec<_> = (0..1025)
            .map(|_| written.acquire(Resource::Requests))
            .collect();
        assert_eq!(held.iter().filter(|held| held.is_ok()).count(), 1024);
    }

    /// How many may be sent again while as many requests are on their way.
    fn retries(breakers: &Breakers, requests: usize) -> usize {
        let active: Vec<_> = (0..requests)
            .map(|_| (breakers.count(), breakers.acquire(Resource::Requests)))
            .collect();
        let mut held = Vec::new();
        while let Some(permit) = breakers.retry() {
            held.push(permit);
            assert!(held.len() < 10_000);
        }
        drop(active);
        held.len()
    }

    #[test]
    fn retries_have_a_budget_or_a_number() {
        let budget = "retry_budget: { budget_percent: { value: 50 }, min_retry_concurrency: 1 }";
        for (text, requests, allowed) in [
            ("{}".to_owned(), 0, 3),
            ("{}".to_owned(), 15, 3),
            ("{}".to_owned(), 100, 20),
            ("{ thresholds: [{}] }".to_owned(), 100, 20),
            ("{ thresholds: [{ max_retries: 0 }] }".to_owned(), 100, 0),
            ("{ thresholds: [{ max_retries: 7 }] }".to_owned(), 0, 7),
            (format!("{{ thresholds: [{{ {budget} }}] }}"), 0, 1),
            (format!("{{ thresholds: [{{ {budget} }}] }}"), 9, 4),
        ] {
            let (breakers, _) = breakers(&text);
            assert_eq!(retries(&breakers, requests), allowed, "{text}");
            // All are given back.
            assert_eq!(retries(&breakers, requests), allowed, "{text}");
        }
    }

    #[test]
    fn what_remains_is_shown_on_demand_and_right_after_a_change() {
        let text = "{ thresholds: [{ max_requests: 5, track_remaining: true }] }";
        let (breakers, metrics) = breakers(text);
        let remaining = || {
            let text = metrics.render();
            let line = text
                .lines()
                .find(|l| l.contains("remaining{") && l.contains("\"requests\""));
            line.unwrap().rsplit(' ').next().unwrap().to_owned()
        };
        let held = breakers.acquire(Resource::Requests);
        assert_eq!(remaining(), "4");

        let same = breakers.renewed(planned(text).unwrap(), "web", &metrics);
        assert!(Arc::ptr_eq(&breakers, &same));
        let other = text.replace('5', "7");
        let other = same.renewed(planned(&other).unwrap(), "web", &metrics);
        drop((breakers, same));
        drop(held);
        assert_eq!(remaining(), "7");
        drop(other);
    }

    /// What is logged, by this thread.
    #[derive(Clone, Default)]
    struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_warning_comes_at_four_fifths_and_again_when_half_was_free_in_between() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let warnings = || {
            let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            text.matches("four fifths").count()
        };
        let (breakers, _) = breakers("{ thresholds: [{ max_requests: 10 }] }");
        let mut held: Vec<_> = (0..7)
            .map(|_| breakers.acquire(Resource::Requests).unwrap())
            .collect();
        assert_eq!(warnings(), 0);
        held.push(breakers.acquire(Resource::Requests).unwrap());
        assert_eq!(warnings(), 1);
        held.push(breakers.acquire(Resource::Requests).unwrap());
        held.truncate(7);
        held.push(breakers.acquire(Resource::Requests).unwrap());
        assert_eq!(warnings(), 1, "it stays above half");
        held.truncate(3);
        held.extend((0..5).map(|_| breakers.acquire(Resource::Requests).unwrap()));
        assert_eq!(warnings(), 2);
    }

    #[test]
    fn what_is_in_use_can_be_looked_at() {
        let usage = |used, limit| Usage { used, limit };
        let (none, _) = breakers("{}");
        let retries = usage(0, 3);
        let nothing = none.snapshot();
        assert_eq!((nothing.max_requests, nothing.max_retries), (None, retries));

        let (some, _) = breakers("{ thresholds: [{ max_requests: 5, max_retries: 2 }] }");
        let _held = (some.acquire(Resource::Requests), some.retry());
        let snapshot = some.snapshot();
        assert_eq!(snapshot.max_requests, Some(usage(1, 5)));
        assert_eq!(snapshot.max_connections, Some(usage(0, 1024)));
        assert_eq!(snapshot.max_retries, usage(1, 2));
    }
}
