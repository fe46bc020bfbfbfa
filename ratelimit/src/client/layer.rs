//! The tower layer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use attache_filter::{
    Body, BoxError, Channels, RequestContext, Route,
    context::{PolicyCall, ResponseFlag},
    fraction::Fraction,
    reply::{self, ReplyForm},
};
use attache_proto::ratelimit::RateLimitResponse;
use attache_service::{Channel, Method, Metrics, metrics::Counter};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, request::Parts};
use prost::Message as _;
use tonic::Status;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    action::{Entry, Outcome},
    answer::{self, Effect},
    filter::{Filter, PerRoute, Policy},
    headers,
    raw::RequestType,
    request::RequestEncoder,
};

const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// Puts a rate limit filter in front of a service.
#[derive(Clone)]
pub struct RateLimitLayer {
    inner: Arc<Inner>,
}

/// A service behind a rate limit filter.
#[derive(Clone)]
pub struct RateLimitService<S> {
    filter: Arc<Inner>,
    service: S,
}

struct Inner {
    filter: Arc<Filter>,
    name: Arc<str>,
    /// Absent when there is no such cluster: every call fails then.
    channel: Option<Channel>,
    method: Method,
    counters: Counters,
}

struct Counters {
    ok: Counter,
    error: Counter,
    over_limit: Counter,
    failure_mode_allowed: Counter,
}

impl RateLimitLayer {
    /// A layer that calls the filter's cluster through one of `channels`.
    pub fn new(filter: Arc<Filter>, channels: &Channels, metrics: &Metrics) -> Self {
        let name: Arc<str> = filter.name.as_str().into();
        Self {
            inner: Arc::new(Inner {
                channel: channels.get(&filter.service.cluster.value).cloned(),
                method: Method::new(METHOD),
                counters: Counters::new(&filter, metrics),
                name,
                filter,
            }),
        }
    }
}

impl Counters {
    fn new(filter: &Filter, metrics: &Metrics) -> Self {
        let label = match &filter.stat_prefix {
            Some(prefix) => format!("{}.{prefix}", filter.name),
            None => filter.name.clone(),
        };
        let counter = |name: &str, help: &str| {
            let name = format!("attache_ratelimit_filter_{name}");
            metrics.counter(&name, help, &[("filter", &label)])
        };
        Self {
            ok: counter("ok", "Requests that the service found within their limits."),
            error: counter("error", "Calls to the service that failed."),
            over_limit: counter(
                "over_limit",
                "Requests that the service found over a limit.",
            ),
            failure_mode_allowed: counter(
                "failure_mode_allowed",
                "Requests let through because the service failed.",
            ),
        }
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimitService<S>;

    fn layer(&self, service: S) -> Self::Service {
        RateLimitService {
            filter: self.inner.clone(),
            service,
        }
    }
}

impl fmt::Debug for RateLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RateLimitLayer")
            .field(&self.inner.name)
            .finish()
    }
}

impl<S: fmt::Debug> fmt::Debug for RateLimitService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitService")
            .field("filter", &self.filter.name)
            .field("service", &self.service)
            .finish()
    }
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<S, B> Service<Request<B>> for RateLimitService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let context = RequestContext::of(&mut request);
        let (mut parts, body) = request.into_parts();
        let body = Body::new(body);
        // The instance that was polled ready is the one to use.
        let clone = self.service.clone();
        let mut service = std::mem::replace(&mut self.service, clone);
        let filter = self.filter.clone();

        let asked = match context.is_answered() {
            true => None,
            false => filter.ask(&parts, &context),
        };
        let Some(question) = asked else {
            return Box::pin(service.call(Request::from_parts(parts, body)));
        };
        Box::pin(async move {
            let form = ReplyForm::of(&parts.method, &parts.headers);
            match filter.decide(&question, &context).await {
                Effect::Reply(reply) => {
                    context.set_details(reply.details.clone());
                    let request = Request::from_parts(parts, Body::empty());
                    reply::inward(&mut service, request, reply.into_response(form)).await
                }
                Effect::Continue { request, response } => {
                    headers::append_all(&mut parts.headers, &request);
                    let mut answer = service.call(Request::from_parts(parts, body)).await?;
                    if !context.is_direct() {
                        headers::append_all(answer.headers_mut(), &response);
                    }
                    Ok(answer)
                }
            }
        })
    }
}

/// What the service is asked, and for each descriptor whether its limit may show.
struct Question {
    message: Vec<u8>,
    metadata: HeaderMap,
    shown: Vec<bool>,
}

impl Inner {
    /// The question for a request; `None` when there is nothing to ask.
    fn ask(&self, head: &Parts, context: &RequestContext) -> Option<Question> {
        let filter = &*self.filter;
        if !filter.enabled.sample() || !applies(filter.request_type, &head.headers) {
            return None;
        }
        let route = context.route();
        let cluster = route.as_deref().and_then(|route| route.cluster.as_deref());
        if context.has_no_route() || (route.is_some() && cluster.is_none()) {
            // Answered by the proxy itself.
            return None;
        }
        let (domain, policies) = self.settings(route.as_deref());
        let mut encoder = RequestEncoder::new(domain);
        let mut shown = Vec::new();
        let mut entries: Vec<Entry<'_>> = Vec::new();
        'policies: for policy in policies {
            entries.clear();
            for action in &policy.actions {
                match action.apply(head, context, cluster) {
                    Outcome::Entry(entry) => entries.push(entry),
                    Outcome::Skip => {}
                    Outcome::Drop => continue 'policies,
                }
            }
            encoder.descriptor(&entries, policy.hits);
            shown.push(policy.is_shown(filter.ratelimit_headers));
        }
        (!encoder.is_empty()).then(|| Question {
            message: encoder.finish(),
            metadata: filter.service.metadata.of(head, context),
            shown,
        })
    }

    /// Domain and policies for a route: its own, else the filter's.
    fn settings<'a>(&'a self, route: Option<&'a Route>) -> (&'a str, &'a [Policy]) {
        let filter = &*self.filter;
        let per_route = route.and_then(|route| route.filters.get::<PerRoute>(&self.name));
        let Some(per_route) = per_route else {
            return (&filter.domain, &filter.policies);
        };
        let domain = per_route.domain.as_deref().unwrap_or(&filter.domain);
        let policies = if per_route.policies.is_empty() {
            &filter.policies
        } else {
            &per_route.policies
        };
        (domain, policies)
    }

    async fn decide(&self, question: &Question, context: &RequestContext) -> Effect {
        let filter = &*self.filter;
        let started = Instant::now();
        let result = self.call(question).await;
        let status = result.as_ref().err();
        context.record_call(PolicyCall::one(
            self.name.clone(),
            "should_rate_limit",
            started.elapsed(),
            status.map_or(0, |status| status.code().into()),
        ));
        let mut answer = match result {
            Ok(answer) => answer,
            Err(status) => return self.fail(&status, context),
        };
        if let Some(metadata) = answer
            .dynamic_metadata
            .take()
            .filter(|m| !m.fields.is_empty())
        {
            context.merge_metadata(&filter.metadata_namespace, metadata);
        }
        let over = answer::is_over_limit(&answer);
        if over {
            self.counters.over_limit.inc();
        } else {
            self.counters.ok.inc();
        }
        let enforced = over && filter.enforced.sample();
        let effect = answer::effect(filter, &answer, enforced, |position| {
            question
                .shown
                .get(position)
                .copied()
                .unwrap_or(filter.ratelimit_headers)
        });
        if enforced {
            context.add_flag(ResponseFlag::RateLimited);
        }
        effect
    }

    async fn call(&self, question: &Question) -> Result<RateLimitResponse, Status> {
        let service = &self.filter.service;
        let Some(channel) = &self.channel else {
            let cluster = &service.cluster.value;
            return Err(Status::unavailable(format!(
                "there is no cluster `{cluster}`"
            )));
        };
        let metadata = question.metadata.clone();
        let answer = channel
            .unary(
                &self.method,
                &question.message,
                metadata,
                self.filter.timeout,
            )
            .await?;
        RateLimitResponse::decode(answer)
            .map_err(|error| Status::internal(format!("the answer is not valid: {error}")))
    }

    fn fail(&self, status: &Status, context: &RequestContext) -> Effect {
        self.counters.error.inc();
        tracing::debug!(filter = %self.name, %status, "the rate limit service failed");
        if self.filter.deny_on_error.is_some_and(Fraction::sample) {
            context.add_flag(ResponseFlag::RateLimitServiceError);
            return Effect::Reply(Box::new(answer::failure(&self.filter)));
        }
        self.counters.failure_mode_allowed.inc();
        Effect::Continue {
            request: HeaderMap::new(),
            response: HeaderMap::new(),
        }
    }
}

/// Whether a filter for requests of this type applies.
fn applies(request_type: RequestType, headers: &HeaderMap) -> bool {
    let internal = || {
        headers
            .get("x-envoy-internal")
            .is_some_and(|value| value == "true")
    };
    match request_type {
        RequestType::Both | RequestType::Empty => true,
        RequestType::Internal => internal(),
        RequestType::External => !internal(),
    }
}
