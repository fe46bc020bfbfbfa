//! The gRPC service around an authorizer.

use std::{
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use attache_proto::auth::{
    CheckRequest, CheckResponse,
    authorization_server::{Authorization, SERVICE_NAME},
};
use attache_service::{
    Unary, UnaryMethod,
    trace::{Ended, Tracer},
};
use futures_util::FutureExt as _;
use http::HeaderMap;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Request, Response, Status};
use tracing::Instrument as _;

use super::{
    authorizer::Authorizer,
    deadline::deadline,
    decision::{Decision, HeaderLimits},
    failure::OnFailure,
    metrics::{CheckMetrics, Outcome},
    request::CheckRequestView,
};

/// How an authorizer is served.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) on_failure: OnFailure,
    pub(super) handler_timeout: Duration,
    pub(super) max_in_flight: usize,
    pub(super) max_message: usize,
    pub(super) limits: HeaderLimits,
    pub(super) metrics: Option<Arc<CheckMetrics>>,
    pub(super) tracer: Tracer,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            on_failure: OnFailure::default(),
            handler_timeout: Duration::from_secs(10),
            max_in_flight: 1024,
            max_message: 16 << 20,
            limits: HeaderLimits::default(),
            metrics: None,
            tracer: Tracer::default(),
        }
    }
}

/// The method, as spans name it.
const METHOD: &str = "envoy.service.auth.v3.Authorization/Check";

/// An [`Authorizer`] as the gRPC service `envoy.service.auth.v3.Authorization`.
#[derive(Debug, Clone)]
pub struct AuthorizerService<A> {
    authorizer: A,
    settings: Settings,
    in_flight: Arc<AtomicUsize>,
}

impl<A: Authorizer> AuthorizerService<A> {
    /// Wraps an authorizer, with the defaults of a [`Server`](super::Server).
    pub fn new(authorizer: A) -> Self {
        Self::with(authorizer, Settings::default())
    }

    /// What the proxy is told of a check that came to no decision.
    #[must_use]
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.settings.on_failure = on_failure;
        self
    }

    pub(super) fn with(authorizer: A, settings: Settings) -> Self {
        Self {
            authorizer,
            settings,
            in_flight: Arc::default(),
        }
    }

    pub(super) fn into_unary(self) -> Unary<Self> {
        let most = self.settings.max_message;
        Unary::new(self).max_message(most)
    }

    /// Decides within `deadline`; everything but a well-formed decision is what failures are told
    /// as.
    pub(crate) async fn decide(
        &self,
        view: &CheckRequestView,
        deadline: Duration,
    ) -> Result<CheckResponse, Status> {
        let settings = &self.settings;
        let mut check = Check::begin(self, view);
        if check.over >= settings.max_in_flight {
            check.end(Outcome::Shed);
            return settings.on_failure.told();
        }
        // Whatever state a panic leaves behind is the authorizer's own, as in any server.
        let handler = AssertUnwindSafe(async { self.authorizer.check(view).await }).catch_unwind();
        // Pinned before it is passed on: large futures are dear to move.
        let handler = pin!(handler);
        let decided = match check.begun.checked_add(deadline) {
            Some(until) => timeout_at(until, handler).await,
            // Too far away for a clock.
            None => Ok(handler.await),
        };
        let decision = match decided {
            Ok(Ok(Ok(decision))) => decision,
            Ok(Ok(Err(error))) => {
                tracing::warn!(%error, "a check failed");
                check.end(Outcome::Error);
                return settings.on_failure.told();
            }
            Ok(Err(_panic)) => {
                tracing::error!("the authorizer panicked");
                check.end(Outcome::Panic);
                return settings.on_failure.told();
            }
            Err(_elapsed) => {
                tracing::warn!(?deadline, "a check took too long");
                check.end(Outcome::Deadline);
                return settings.on_failure.told();
            }
        };
        let outcome = outcome(&decision);
        match decision.into_response_within(view, settings.limits) {
            Ok(response) => {
                check.end(outcome);
                Ok(response)
            }
            Err(error) => {
                tracing::error!(%error, "a decision cannot be sent");
                check.end(Outcome::Error);
                settings.on_failure.told()
            }
        }
    }
}

fn outcome(decision: &Decision) -> Outcome {
    if decision.is_allow() {
        Outcome::Allowed
    } else if decision.is_error() {
        Outcome::Error
    } else {
        Outcome::Denied
    }
}

/// A check under way. It is counted and logged however it ends.
struct Check<'a> {
    view: &'a CheckRequestView,
    metrics: Option<&'a CheckMetrics>,
    in_flight: &'a AtomicUsize,
    /// Checks that were under way before it.
    over: usize,
    begun: Instant,
    outcome: Outcome,
}

impl<'a> Check<'a> {
    fn begin<A>(service: &'a AuthorizerService<A>, view: &'a CheckRequestView) -> Self {
        let metrics = service.settings.metrics.as_deref();
        if let Some(metrics) = metrics {
            metrics.in_flight.inc();
        }
        Self {
            view,
            metrics,
            in_flight: &service.in_flight,
            over: service.in_flight.fetch_add(1, Ordering::Relaxed),
            begun: Instant::now(),
            outcome: Outcome::Cancelled,
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Check<'_> {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let took = self.begun.elapsed();
        self.view.span().set("attache.outcome", self.outcome.name());
        if let Some(metrics) = self.metrics {
            metrics.in_flight.dec();
            metrics.record(self.outcome, took);
        }
        tracing::debug!(
            outcome = self.outcome.name(),
            method = self.view.method(),
            host = self.view.host(),
            path = self.view.path(),
            ?took,
            "checked"
        );
    }
}

/// Says in the span what is asked about, by OpenTelemetry's conventions. Queries may be secret.
fn describe(view: &CheckRequestView) {
    let span = view.span();
    if !span.is_recorded() {
        return;
    }
    let known = [
        ("http.request.method", view.method()),
        ("server.address", view.host()),
        ("url.path", view.path()),
    ];
    for (name, value) in known {
        if let Some(value) = value {
            span.set(name, value);
        }
    }
}

impl<A: Authorizer> UnaryMethod for AuthorizerService<A> {
    type Request = CheckRequest;
    type Answer = CheckResponse;
    const SERVICE: &'static str = SERVICE_NAME;
    const METHOD: &'static str = "Check";

    async fn answer(
        &self,
        headers: HeaderMap,
        message: CheckRequest,
    ) -> Result<CheckResponse, Status> {
        let deadline = deadline(&headers, self.settings.handler_timeout);
        let span = self.settings.tracer.call(METHOD, &headers);
        let view = CheckRequestView::new(message, headers).with_span(span.clone());
        describe(&view);
        let call = Ended::of(span);
        let deciding = pin!(self.decide(&view, deadline));
        let answer = match view.trace() {
            None => deciding.await,
            Some(trace) => {
                let span = tracing::info_span!(
                    "check",
                    trace_id = trace.trace_id,
                    parent_id = trace.parent_id
                );
                deciding.instrument(span).await
            }
        };
        call.with(answer.as_ref().map_or_else(Status::code, |_| Code::Ok));
        answer
    }
}

/// For a server of tonic's own: see [`AuthorizationServer`](attache_proto::auth::authorization_server::AuthorizationServer).
#[tonic::async_trait]
impl<A: Authorizer> Authorization for AuthorizerService<A> {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let answer = self.answer(metadata.into_headers(), message).await;
        answer.map(Response::new)
    }
}
