//! The server: rules, store, reload, gRPC.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use attache_proto::ratelimit::{
    RateLimitRequest, RateLimitResponse,
    rate_limit_response::{Code as WireCode, DescriptorStatus, RateLimit},
    rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
};
use attache_service::{
    Metrics,
    config::Errors,
    metrics::Counter,
    trace::{Ended, Span, Tracer},
};
use tonic::{Request, Response, Status, service::Routes};

use super::statistics::Statistics;
use crate::{
    config::Rules,
    limiter::{
        Applied, Clock, Code, Decision, DescriptorDecision, LimitError, Limiter, SystemClock,
    },
    store::{AnyStore, Store},
};

/// How often counters of past windows are cleared away.
const SWEEP: Duration = Duration::from_secs(5);

/// A rate limit service. Cheap to clone: clones share rules, counters and statistics.
pub struct RateLimitServer<S = AnyStore, C = SystemClock> {
    inner: Arc<Inner<S, C>>,
    tracer: Tracer,
}

/// The method, as spans name it.
const METHOD: &str = "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

struct Inner<S, C> {
    limiter: Limiter<S, C>,
    current: ArcSwap<Snapshot>,
    path: PathBuf,
    metrics: Metrics,
    counters: Counters,
    /// Somebody clears counters of past windows away.
    swept: AtomicBool,
}

/// Rules and what is counted of them; they change together.
struct Snapshot {
    rules: Rules,
    statistics: Statistics,
}

struct Counters {
    config_load_success: Counter,
    config_load_error: Counter,
    service_error: Counter,
    store_error: Counter,
}

impl<S: Store> RateLimitServer<S> {
    /// A server with the rules of a file or of all files of a directory.
    ///
    /// # Errors
    /// All faults of all files.
    pub fn load(rules: &Path, store: S, metrics: &Metrics) -> Result<Self, Errors> {
        Self::with_clock(rules, store, SystemClock, metrics)
    }
}

impl<S: Store, C: Clock> RateLimitServer<S, C> {
    /// A server with a clock of its own.
    ///
    /// # Errors
    /// As for [`RateLimitServer::load`].
    pub fn with_clock(rules: &Path, store: S, clock: C, metrics: &Metrics) -> Result<Self, Errors> {
        let counters = Counters::new(metrics);
        let snapshot = counters.load(rules, metrics)?;
        Ok(Self {
            inner: Arc::new(Inner {
                limiter: Limiter::with_clock(Rules::default(), store, clock),
                current: ArcSwap::from_pointee(snapshot),
                path: rules.to_path_buf(),
                metrics: metrics.clone(),
                counters,
                swept: AtomicBool::new(false),
            }),
            tracer: Tracer::default(),
        })
    }

    /// Makes a span of each call. Default: none.
    #[must_use]
    pub fn tracer(mut self, tracer: &Tracer) -> Self {
        self.tracer = tracer.clone();
        self
    }

    /// Reads the rules again. Counters go on; requests in flight finish by the rules they began
    /// with.
    ///
    /// # Errors
    /// All faults of all files; the rules in force stay in force then.
    pub fn reload(&self) -> Result<(), Errors> {
        let inner = &self.inner;
        let snapshot = inner.counters.load(&inner.path, &inner.metrics)?;
        inner.current.store(Arc::new(snapshot));
        Ok(())
    }

    /// The counters.
    pub fn store(&self) -> &S {
        self.inner.limiter.store()
    }

    /// The file or directory that the rules come from, to be watched for changes.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The gRPC service, to be hosted.
    pub fn routes(&self) -> Routes {
        Routes::new(RateLimitServiceServer::new(self.clone()))
    }

    /// Answers one request.
    ///
    /// # Errors
    /// `UNKNOWN` with the reference's texts: no domain, no descriptors, or the store failed, so
    /// that the caller's failure mode applies.
    pub async fn decide(&self, request: &RateLimitRequest) -> Result<RateLimitResponse, Status> {
        let inner = &self.inner;
        let current = inner.current.load_full();
        match inner.limiter.decide_by(&current.rules, request).await {
            Ok(decision) => {
                current.statistics.note(&request.domain, &decision);
                Ok(response(decision))
            }
            Err(error) => {
                match error {
                    LimitError::Store(_) => inner.counters.store_error.inc(),
                    LimitError::EmptyDomain | LimitError::NoDescriptors => {
                        inner.counters.service_error.inc()
                    }
                };
                Err(Status::unknown(error.to_string()))
            }
        }
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
            .field("path", &self.inner.path)
            .finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl<S: Store, C: Clock> RateLimitService for RateLimitServer<S, C> {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let inner = &self.inner;
        // Only here there is a runtime for sure.
        if !inner.swept.load(Ordering::Relaxed) && !inner.swept.swap(true, Ordering::Relaxed) {
            tokio::spawn(sweep(Arc::downgrade(inner)));
        }
        let call = Ended::of(self.tracer.call(METHOD, request.metadata().as_ref()));
        let request = request.get_ref();
        let answer = self.decide(request).await;
        describe(call.span(), request, &answer);
        call.with(
            answer
                .as_ref()
                .map_or_else(Status::code, |_| tonic::Code::Ok),
        );
        answer.map(Response::new)
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
        if !inner.limiter.store().sweep(inner.limiter.clock().now()) {
            return;
        }
    }
}

impl Counters {
    fn new(metrics: &Metrics) -> Self {
        let counter = |name: &str, help: &str| {
            metrics.counter(&format!("attache_ratelimit_{name}"), help, &[])
        };
        Self {
            config_load_success: counter(
                "config_load_success",
                "Loads of the rules that went well.",
            ),
            config_load_error: counter(
                "config_load_error",
                "Loads of the rules that were refused.",
            ),
            service_error: counter("service_error", "Requests without domain or descriptors."),
            store_error: counter("store_error", "Requests that failed since the store did."),
        }
    }

    fn load(&self, path: &Path, metrics: &Metrics) -> Result<Snapshot, Errors> {
        match Rules::load(path) {
            Ok(rules) => {
                self.config_load_success.inc();
                Ok(Snapshot {
                    statistics: Statistics::new(&rules, metrics),
                    rules,
                })
            }
            Err(errors) => {
                self.config_load_error.inc();
                Err(errors)
            }
        }
    }
}

fn response(decision: Decision) -> RateLimitResponse {
    RateLimitResponse {
        overall_code: wire_code(decision.code),
        statuses: decision.descriptors.into_iter().map(status).collect(),
        ..RateLimitResponse::default()
    }
}

fn status(decision: DescriptorDecision) -> DescriptorStatus {
    let (current_limit, resets_in) = match decision.applied {
        Applied::Nothing | Applied::Unlimited => (None, None),
        Applied::Limit {
            limit, resets_in, ..
        } => {
            let multiplier = limit.unit_multiplier.get();
            let current = RateLimit {
                requests_per_unit: limit.requests_per_unit,
                unit: limit.unit.to_wire(),
                name: limit.name.as_ref().to_owned(),
                unit_multiplier: (multiplier > 1).then_some(multiplier),
            };
            (Some(current), Some(resets_in))
        }
    };
    DescriptorStatus {
        code: wire_code(decision.code),
        current_limit,
        limit_remaining: decision.remaining,
        duration_until_reset: resets_in.map(|seconds| prost_types::Duration {
            seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
            nanos: 0,
        }),
        ..DescriptorStatus::default()
    }
}

fn wire_code(code: Code) -> i32 {
    match code {
        Code::Ok => WireCode::Ok,
        Code::OverLimit => WireCode::OverLimit,
    }
    .into()
}
