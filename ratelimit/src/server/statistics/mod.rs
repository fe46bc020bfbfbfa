//! What is counted, by the reference's names and by ours.
//!
//! - [`cells`]: counters of paths that the rules alone name.
//! - [`paths`]: counters of paths that requests have a part in.
//! - [`times`]: how long calls took.

mod cells;
mod paths;
mod times;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use attache_service::{Metrics, metrics::Counter};

use super::sink::{Sample, SampleValue};
use crate::{
    config::{RuleId, Rules, metric_path::sanitised},
    limiter::{Applied, Decision, Hits},
};
use cells::{Cells, Counts, Stat, add, counts, growth};
use paths::Paths;
use times::Times;

/// Paths at once that requests have a part in: limits of requests, `value_to_metric`,
/// `detailed_metric`, unknown domains. The latest are kept; the rest counts as `other`.
const MAX_PATHS: usize = 10_000;

/// Everything that one server counts. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Statistics {
    inner: Arc<Inner>,
}

struct Inner {
    /// Those of the rules in force, and of limits that requests bring themselves.
    rules: Mutex<Vec<Arc<RuleCells>>>,
    paths: Paths,
    service: Service,
    calls: Counter,
    times: Times,
    /// What has been sent of `service` and `calls`, by name.
    sent: Mutex<HashMap<&'static str, u64>>,
}

/// The counters of one rule.
#[derive(Debug)]
struct RuleCells {
    domain: Arc<str>,
    rule: String,
    /// Its path, which other rules may have too.
    path: Arc<str>,
    /// What counts there.
    by_path: Cells,
    /// What counts on a path that the request had a part in.
    elsewhere: OnceLock<Cells>,
    /// What has been sent of `by_path`.
    sent: Mutex<Counts>,
}

/// What is counted of the service as a whole.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) config_load_success: Counter,
    pub(super) config_load_error: Counter,
    pub(super) service_error: Counter,
    pub(super) store_error: Counter,
    pub(super) global_shadow_mode: Counter,
}

/// Where decisions by one set of rules are counted.
#[derive(Debug)]
pub(super) struct RuleStatistics {
    rules: Vec<Arc<RuleCells>>,
    /// By domain.
    overrides: HashMap<Arc<str>, Arc<RuleCells>>,
    all: Statistics,
}

/// What sinks read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StatisticsSource {
    statistics: Statistics,
}

/// The `rule` of limits that requests bring themselves; no rule can be called so.
const OVERRIDE: &str = "(request)";

/// What is counted of each rule, by our names.
const BY_RULE: [(Stat, &str, &str); 6] = [
    (Stat::TotalHits, "hits", "Hits counted."),
    (Stat::OverLimit, "over_limit", "Hits beyond the limit."),
    (
        Stat::NearLimit,
        "near_limit",
        "Hits in the last part of the limit.",
    ),
    (Stat::WithinLimit, "within_limit", "Hits within the limit."),
    (
        Stat::ShadowMode,
        "shadow_mode",
        "Hits beyond the limit of a rule in shadow mode, which refuses nothing.",
    ),
    (
        Stat::OverLimitWithLocalCache,
        "over_limit_with_local_cache",
        "Hits beyond the limit that the store was not asked about.",
    ),
];

impl Statistics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let counter = |name: &str, help: &str| {
            metrics.counter(&format!("attache_ratelimit_{name}"), help, &[])
        };
        let service = Service {
            config_load_success: counter(
                "config_load_success",
                "Loads of the rules that went well.",
            ),
            config_load_error: counter(
                "config_load_error",
                "Loads of the rules that were refused.",
            ),
            service_error: counter("service_error", "Requests that could not be decided."),
            store_error: counter("store_error", "Requests that failed since the store did."),
            global_shadow_mode: counter(
                "global_shadow_mode",
                "Requests over a limit that passed since the service refuses none.",
            ),
        };
        let statistics = Self {
            inner: Arc::new(Inner {
                rules: Mutex::default(),
                paths: Paths::new(MAX_PATHS),
                service,
                calls: counter("requests", "Calls of ShouldRateLimit."),
                times: Times::new(),
                sent: Mutex::default(),
            }),
        };
        statistics.describe(metrics);
        statistics
    }

    pub(super) fn service(&self) -> &Service {
        &self.inner.service
    }

    /// Counts a call.
    pub(super) fn call(&self, time: Duration) {
        self.inner.calls.inc();
        self.inner.times.add(time);
    }

    pub(super) fn source(&self) -> StatisticsSource {
        StatisticsSource {
            statistics: self.clone(),
        }
    }

    /// Counters for these rules. A rule that was there before goes on counting; what those counted
    /// that are gone counts on by its path.
    pub(super) fn of(&self, rules: &Rules) -> RuleStatistics {
        let mut in_force = lock(&self.inner.rules);
        let mut before: HashMap<_, _> = in_force.drain(..).map(|rule| (rule.key(), rule)).collect();
        let mut cells = |domain: &Arc<str>, rule: &str, path: &Arc<str>| {
            let new = RuleCells::new(domain, rule, path);
            let cells = before.remove(&new.key()).unwrap_or_else(|| Arc::new(new));
            in_force.push(cells.clone());
            cells
        };
        let overrides = rules.domains().map(|domain| {
            let domain = Arc::from(domain);
            let cells = cells(&domain, OVERRIDE, &Arc::from(""));
            (domain, cells)
        });
        let overrides = overrides.collect();
        let rules = rules.iter();
        let rules = rules
            .map(|(_, rule)| cells(&rule.domain, &rule.path, &rule.metric_path))
            .collect();
        for gone in before.into_values() {
            let sum = gone.by_path.sum();
            if sum.iter().any(|count| *count > 0) {
                self.inner
                    .paths
                    .take_over(&gone.path, &sum, &lock(&gone.sent));
            }
        }
        RuleStatistics {
            rules,
            overrides,
            all: self.clone(),
        }
    }

    /// Our own metrics, by domain and rule.
    fn describe(&self, metrics: &Metrics) {
        for (stat, name, help) in BY_RULE {
            let inner = Arc::downgrade(&self.inner);
            let name = format!("attache_ratelimit_{name}");
            metrics.read_counter(&name, help, move |put| {
                let Some(inner) = inner.upgrade() else {
                    return false;
                };
                for rule in lock(&inner.rules).iter() {
                    let labels = [("domain", &*rule.domain), ("rule", rule.rule.as_str())];
                    put(
                        &labels,
                        rule.sum().get(stat as usize).copied().unwrap_or_default(),
                    );
                }
                true
            });
        }
        let inner = Arc::downgrade(&self.inner);
        let help = "Requests for a domain without rules.";
        metrics.read_counter("attache_ratelimit_domain_not_found", help, move |put| {
            let Some(inner) = inner.upgrade() else {
                return false;
            };
            let mut sum = 0_u64;
            inner.paths.totals(&mut |_, counts| {
                let count = counts.get(Stat::DomainNotFound as usize);
                sum = sum.saturating_add(count.copied().unwrap_or_default());
            });
            put(&[], sum);
            true
        });
    }
}

impl RuleCells {
    fn new(domain: &Arc<str>, rule: &str, path: &Arc<str>) -> Self {
        Self {
            domain: domain.clone(),
            rule: rule.to_owned(),
            path: path.clone(),
            by_path: Cells::new(),
            elsewhere: OnceLock::new(),
            sent: Mutex::default(),
        }
    }

    fn key(&self) -> (Arc<str>, String, Arc<str>) {
        (self.domain.clone(), self.rule.clone(), self.path.clone())
    }

    /// Whatever the path.
    fn sum(&self) -> Counts {
        let mut sum = self.by_path.sum();
        if let Some(elsewhere) = self.elsewhere.get() {
            add(&mut sum, &elsewhere.sum());
        }
        sum
    }
}

impl RuleStatistics {
    /// Counts one request of `domain`.
    pub(super) fn note(&self, domain: &str, decision: &Decision) {
        if !decision.domain_known {
            let mut counts = Counts::default();
            if let Some(count) = counts.get_mut(Stat::DomainNotFound as usize) {
                *count = 1;
            }
            let path = sanitised(domain);
            self.all.inner.paths.add(&path, &counts);
            return;
        }
        if decision.shadowed {
            self.all.inner.service.global_shadow_mode.inc();
        }
        for descriptor in &decision.descriptors {
            if let Applied::Limit {
                rule, metric_path, ..
            } = &descriptor.applied
            {
                let counts = counts(descriptor.tally);
                self.add(domain, *rule, metric_path.as_deref(), &counts);
            }
        }
    }

    /// Counts hits that the store did not answer for.
    pub(super) fn note_hits(&self, domain: &str, hits: &[Hits]) {
        for Hits {
            rule,
            metric_path,
            hits,
        } in hits
        {
            let mut counts = Counts::default();
            if let Some(count) = counts.get_mut(Stat::TotalHits as usize) {
                *count = (*hits).into();
            }
            self.add(domain, *rule, metric_path.as_deref(), &counts);
        }
    }

    fn add(&self, domain: &str, rule: Option<RuleId>, path: Option<&str>, counts: &Counts) {
        let cells = match rule {
            Some(RuleId(number)) => self.rules.get(number),
            None => self.overrides.get(domain),
        };
        let Some(cells) = cells else { return };
        match path {
            None => cells.by_path.add(counts),
            Some(path) => {
                cells.elsewhere.get_or_init(Cells::new).add(counts);
                self.all.inner.paths.add(path, counts);
            }
        }
    }
}

impl StatisticsSource {
    /// Everything that was ever counted, by the reference's names.
    pub fn totals(&self) -> Vec<Sample> {
        let inner = &self.statistics.inner;
        let mut sums = Sums::default();
        for rule in lock(&inner.rules).iter() {
            sums.add(&rule.path, &rule.by_path.sum());
        }
        inner
            .paths
            .totals(&mut |path, counts| sums.add(path, counts));
        let mut samples = sums.samples();
        samples.extend(
            inner
                .service_counters()
                .into_iter()
                .filter(|(_, counter)| counter.get() > 0)
                .map(|(name, counter)| Sample::counter(name.to_owned(), counter.get())),
        );
        samples.extend(timer(inner.times.totals()));
        samples
    }

    /// What was counted since the last time. Only one may read this.
    pub fn flush(&self) -> Vec<Sample> {
        let inner = &self.statistics.inner;
        let mut sums = Sums::default();
        for rule in lock(&inner.rules).iter() {
            let sum = rule.by_path.sum();
            let mut sent = lock(&rule.sent);
            sums.add(&rule.path, &growth(&sum, &sent));
            *sent = sum;
        }
        inner
            .paths
            .flush(&mut |path, counts| sums.add(path, counts));
        let mut samples = sums.samples();
        let mut sent = lock(&inner.sent);
        for (name, counter) in inner.service_counters() {
            let sent = sent.entry(name).or_default();
            let grown = counter.get().wrapping_sub(*sent);
            *sent = counter.get();
            if grown > 0 {
                samples.push(Sample::counter(name.to_owned(), grown));
            }
        }
        samples.extend(timer(inner.times.flush()));
        samples
    }
}

impl Inner {
    fn service_counters(&self) -> [(&'static str, &Counter); 6] {
        let service = &self.service;
        [
            (
                "ratelimit.service.config_load_success",
                &service.config_load_success,
            ),
            (
                "ratelimit.service.config_load_error",
                &service.config_load_error,
            ),
            (
                "ratelimit.service.call.should_rate_limit.service_error",
                &service.service_error,
            ),
            (
                "ratelimit.service.call.should_rate_limit.redis_error",
                &service.store_error,
            ),
            (
                "ratelimit.service.global_shadow_mode",
                &service.global_shadow_mode,
            ),
            (
                "ratelimit_server.ShouldRateLimit.total_requests",
                &self.calls,
            ),
        ]
    }
}

fn timer(times: Vec<(u64, u64)>) -> Option<Sample> {
    (!times.is_empty()).then(|| Sample {
        name: "ratelimit_server.ShouldRateLimit.response_time".to_owned(),
        value: SampleValue::Timer(times),
    })
}

/// Counts by path.
#[derive(Default)]
struct Sums(BTreeMap<String, Counts>);

impl Sums {
    fn add(&mut self, path: &str, counts: &Counts) {
        if counts.iter().all(|count| *count == 0) {
            return;
        }
        match self.0.get_mut(path) {
            Some(sum) => add(sum, counts),
            None => {
                self.0.insert(path.to_owned(), *counts);
            }
        }
    }

    /// What is 0 is not told, as by the reference.
    fn samples(&self) -> Vec<Sample> {
        let paths = self.0.iter();
        let counts = paths.flat_map(|(path, counts)| {
            let stats = Stat::ALL.into_iter().zip(counts);
            stats.map(move |(stat, count)| (path, stat, *count))
        });
        counts
            .filter(|(.., count)| *count > 0)
            .map(|(path, stat, count)| {
                let stat = stat.name();
                Sample::counter(format!("ratelimit.service.rate_limit.{path}.{stat}"), count)
            })
            .collect()
    }
}

impl Sample {
    fn counter(name: String, count: u64) -> Self {
        Self {
            name,
            value: SampleValue::Counter(count),
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
