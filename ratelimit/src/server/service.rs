//! The server: rules, store, reload, gRPC.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use attache_proto::ratelimit::{
    RateLimitRequest, RateLimitResponse, rate_limit_response::DescriptorStatus,
    rate_limit_service_server,
};
use attache_proto::ratelimit_config::RateLimitConfig;
use attache_service::{
    Metrics, Unary, UnaryMethod,
    config::Errors,
    trace::{Ended, Span, Tracer},
};
use http::HeaderMap;
use tonic::{Status, service::Routes};

use super::{
    Answers, RuleSource,
    response::response,
    statistics::{RuleStatistics, Statistics, StatisticsSource},
};
use crate::{
    config::{Merge, RuleId, Rules},
    limiter::{
        Applied, Clock, Decision, DescriptorDecision, LimitError, Limiter, Modes, SystemClock,
    },
    store::{AnyStore, Store},
};

/// How often counters of past windows are cleared away.
const SWEEP: Duration = Duration::from_secs(5);

/// What the reference answers when there are no rules.
const NO_RULES: &str = "no rate limit configuration loaded";

/// A rate limit service. Cheap to clone: clones share rules, counters and statistics.
pub struct RateLimitServer<S = AnyStore, C = SystemClock> {
    inner: Arc<Inner<S, C>>,
    tracer: Tracer,
}

/// The method, as spans name it.
const METHOD: &str = "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// How a server decides and answers.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Where the rules come from.
    pub rules: RuleSource,
    /// How is decided, whatever the rules say.
    pub modes: Modes,
    /// What responses say beside the statuses. Default: nothing.
    pub answers: Answers,
    /// Measure how long calls take, for statistics. Default false.
    pub time_calls: bool,
}

impl ServerSettings {
    /// Settings with defaults.
    pub fn new(rules: RuleSource) -> Self {
        Self {
            rules,
            modes: Modes::default(),
            answers: Answers::default(),
            time_calls: false,
        }
    }
}

struct Inner<S, C> {
    limiter: Limiter<S, C>,
    /// `None` until rules were loaded for the first time.
    current: ArcSwapOption<Snapshot>,
    settings: ServerSettings,
    statistics: Statistics,
    /// Somebody clears counters of past windows away.
    swept: AtomicBool,
}

/// Rules and what is counted of them; they change together.
struct Snapshot {
    rules: Rules,
    statistics: RuleStatistics,
}

impl<S: Store> RateLimitServer<S> {
    /// A server with the rules of a file or of all files of a directory.
    ///
    /// # Errors
    /// All faults of all files.
    pub fn load(rules: &Path, store: S, metrics: &Metrics) -> Result<Self, Errors> {
        Self::with_clock(rules, store, SystemClock, metrics)
    }

    /// A server without rules: those of its source are read with [`RateLimitServer::reload`].
    pub fn new(settings: ServerSettings, store: S, metrics: &Metrics) -> Self {
        Self::build(settings, store, SystemClock, metrics)
    }
}

impl<S: Store, C: Clock> RateLimitServer<S, C> {
    /// A server with a clock of its own.
    ///
    /// # Errors
    /// As for [`RateLimitServer::load`].
    pub fn with_clock(rules: &Path, store: S, clock: C, metrics: &Metrics) -> Result<Self, Errors> {
        let settings = ServerSettings::new(RuleSource::path(rules));
        let server = Self::build(settings, store, clock, metrics);
        server.reload()?;
        Ok(server)
    }

    /// Like [`RateLimitServer::new`], with a clock of its own.
    pub fn build(settings: ServerSettings, store: S, clock: C, metrics: &Metrics) -> Self {
        let limiter = Limiter::with_clock(Rules::default(), store, clock);
        Self {
            inner: Arc::new(Inner {
                limiter: limiter.modes(settings.modes),
                current: ArcSwapOption::empty(),
                settings,
                statistics: Statistics::new(metrics),
                swept: AtomicBool::new(false),
            }),
            tracer: Tracer::default(),
        }
    }

    /// Makes a span of each call. Default: none.
    #[must_use]
    pub fn tracer(mut self, tracer: &Tracer) -> Self {
        self.tracer = tracer.clone();
        self
    }

    /// Reads the rules of the source again. Counters go on; requests in flight finish by the rules
    /// they began with. Rules that somebody gives stay as they are.
    ///
    /// # Errors
    /// All faults of all files; the rules in force stay in force then.
    pub fn reload(&self) -> Result<(), Errors> {
        match self.inner.settings.rules.load() {
            Some(rules) => self.set_rules(rules),
            None => Ok(()),
        }
    }

    /// Puts these rules in force, as [`RateLimitServer::reload`] does, or counts that there are
    /// none.
    ///
    /// # Errors
    /// Those that it was given.
    pub fn set_rules(&self, rules: Result<Rules, Errors>) -> Result<(), Errors> {
        let inner = &self.inner;
        let service = inner.statistics.service();
        match rules {
            Ok(rules) => {
                service.config_load_success.inc();
                let statistics = inner.statistics.of(&rules);
                let snapshot = Snapshot { rules, statistics };
                inner.current.store(Some(Arc::new(snapshot)));
                Ok(())
            }
            Err(errors) => {
                service.config_load_error.inc();
                Err(errors)
            }
        }
    }

    /// Looks at the rules in force; `None` when there were never any.
    pub fn with_rules<T>(&self, look: impl FnOnce(&Rules) -> T) -> Option<T> {
        let current = self.inner.current.load();
        current.as_ref().map(|current| look(&current.rules))
    }

    /// The counters.
    pub fn store(&self) -> &S {
        self.inner.limiter.store()
    }

    /// The time that is counted by.
    pub fn now(&self) -> crate::limiter::UnixTime {
        let limiter = &self.inner.limiter;
        limiter.store().time(limiter.clock().now())
    }

    /// The statistics, by the reference's names.
    pub fn statistics(&self) -> StatisticsSource {
        self.inner.statistics.source()
    }

    /// The files and directories to be watched for changes of the rules.
    pub fn watched(&self) -> Vec<PathBuf> {
        self.inner.settings.rules.watched()
    }

    /// The gRPC service, for a [`Host`](attache_service::Host).
    pub fn service(&self) -> Unary<Self> {
        Unary::new(self.clone())
    }

    /// The gRPC service, for a server of your own.
    pub fn routes(&self) -> Routes {
        Routes::new(self.service())
    }

    /// Answers one request.
    ///
    /// # Errors
    /// `UNKNOWN` with the reference's texts: no domain, no descriptors, no rules, or the store
    /// failed, so that the caller's failure mode applies.
    pub async fn decide(&self, request: &RateLimitRequest) -> Result<RateLimitResponse, Status> {
        let (current, decision) = self.decision(request).await?;
        let answers = &self.inner.settings.answers;
        Ok(response(answers, &current.rules, request, decision))
    }

    /// The status of a request's first descriptor, without statistics: for requests that only
    /// look. `None` when there are no rules.
    ///
    /// # Errors
    /// As for [`Limiter::decide`].
    pub(super) async fn peek(
        &self,
        request: &RateLimitRequest,
    ) -> Result<Option<DescriptorStatus>, LimitError> {
        let Some(current) = self.inner.current.load_full() else {
            return Ok(None);
        };
        let limiter = &self.inner.limiter;
        let decision = limiter.decide_by(&current.rules, request).await?;
        let answers = Answers::default();
        let response = response(&answers, &current.rules, request, decision);
        Ok(response.statuses.into_iter().next())
    }

    async fn decision(
        &self,
        request: &RateLimitRequest,
    ) -> Result<(Arc<Snapshot>, Decision), Status> {
        let inner = &self.inner;
        let current = inner.current.load_full();
        let Some(current) = current else {
            // The reference looks at the request first.
            let error = if request.domain.is_empty() {
                LimitError::EmptyDomain.to_string()
            } else if request.descriptors.is_empty() {
                LimitError::NoDescriptors.to_string()
            } else {
                NO_RULES.to_owned()
            };
            inner.statistics.service().service_error.inc();
            return Err(Status::unknown(error));
        };
        match inner.limiter.decide_by(&current.rules, request).await {
            Ok(decision) => {
                current.statistics.note(&request.domain, &decision);
                Ok((current, decision))
            }
            Err(error) => {
                self.failed(&current, request, &error);
                Err(Status::unknown(error.to_string()))
            }
        }
    }

    fn failed(&self, current: &Snapshot, request: &RateLimitRequest, error: &LimitError) {
        let inner = &self.inner;
        let service = inner.statistics.service();
        match error {
            LimitError::Store(_) => {
                service.store_error.inc();
                let hits = inner.limiter.hits(&current.rules, request);
                current.statistics.note_hits(&request.domain, &hits);
            }
            LimitError::EmptyDomain | LimitError::NoDescriptors => {
                service.service_error.inc();
            }
        }
    }
}

/// What other services of this crate need: rules from elsewhere, and decisions without their
/// wire form.
impl<S: Store, C: Clock> RateLimitServer<S, C> {
    /// Puts the rules of these resources in force, in the place of all others, as
    /// [`RateLimitServer::reload`] does with files.
    ///
    /// # Errors
    /// All faults of all resources; the rules in force stay in force then.
    pub fn apply(&self, resources: &[RateLimitConfig], merge: Merge) -> Result<(), Errors> {
        self.set_rules(Rules::from_resources(resources, merge))
    }

    /// How often rules were put in force.
    pub(crate) fn loads(&self) -> u64 {
        self.inner.statistics.service().config_load_success.get()
    }

    /// Decides about a request of one descriptor. The second value: its limit is only observed.
    pub(crate) async fn decide_one(
        &self,
        request: &RateLimitRequest,
    ) -> Result<Option<(DescriptorDecision, bool)>, Status> {
        let (current, decision) = self.decision(request).await?;
        let shadow = |rule: &RuleId| {
            current
                .rules
                .get(*rule)
                .is_some_and(|rule| rule.shadow_mode)
        };
        let first = decision.descriptors.into_iter().next();
        Ok(first.map(|first| {
            let observed = self.inner.limiter.only_observes()
                || matches!(&first.applied, Applied::Limit { rule: Some(rule), .. } if shadow(rule));
            (first, observed)
        }))
    }
}

impl<S, C> Clone for RateLimitServer<S, C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            tracer: self.tracer.clone(),
        }
    }
}

impl<S, C> fmt::Debug for RateLimitServer<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitServer")
            .field("settings", &self.inner.settings)
            .finish_non_exhaustive()
    }
}

impl<S: Store, C: Clock> UnaryMethod for RateLimitServer<S, C> {
    type Request = RateLimitRequest;
    type Answer = RateLimitResponse;
    const SERVICE: &'static str = rate_limit_service_server::SERVICE_NAME;
    const METHOD: &'static str = "ShouldRateLimit";

    async fn answer(
        &self,
        headers: HeaderMap,
        request: RateLimitRequest,
    ) -> Result<RateLimitResponse, Status> {
        let inner = &self.inner;
        // Only here there is a runtime for sure.
        if !inner.swept.load(Ordering::Relaxed) && !inner.swept.swap(true, Ordering::Relaxed) {
            tokio::spawn(sweep(Arc::downgrade(inner)));
        }
        let begun = inner.settings.time_calls.then(Instant::now);
        let call = Ended::of(self.tracer.call(METHOD, &headers));
        let answer = self.decide(&request).await;
        describe(call.span(), &request, &answer);
        call.with(
            answer
                .as_ref()
                .map_or_else(Status::code, |_| tonic::Code::Ok),
        );
        if let Some(begun) = begun {
            inner.statistics.call(begun.elapsed());
        }
        answer
    }
}

/// Says in the span what was asked and answered. Values of descriptors may be secret.
fn describe(span: &Span, request: &RateLimitRequest, answer: &Result<RateLimitResponse, Status>) {
    if !span.is_recorded() {
        return;
    }
    let descriptors = i64::try_from(request.descriptors.len()).unwrap_or(i64::MAX);
    span.set("attache.ratelimit.domain", request.domain.as_str());
    span.set("attache.ratelimit.descriptors", descriptors);
    if let Ok(answer) = answer {
        let code = answer.overall_code().as_str_name();
        span.set("attache.ratelimit.code", code);
    }
}

/// Clears counters of past windows away for as long as the server lives.
async fn sweep<S: Store, C: Clock>(inner: Weak<Inner<S, C>>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(inner) = inner.upgrade() else { return };
        // Never ahead of the time that decisions are made by.
        if !inner.limiter.store().sweep(inner.limiter.clock().second()) {
            return;
        }
    }
}
