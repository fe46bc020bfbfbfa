//! The tower layer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use attache_filter::{
    Body, BoxError, Channels, RequestContext, Route,
    attributes::Facts,
    calls::{CallEnd, CallRecorder, CallResult, Changes, FilterKind, Phase},
    changes::Snapshot,
    context::ResponseFlag,
    format::Exchange,
    fraction::Fraction,
    grpc_service::call_unary,
    reply::{self, ReplyForm},
};
use attache_proto::ratelimit::RateLimitResponse;
use attache_service::{Channel, Method, Metrics, channel::FRAME_HEADER};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, request::Parts};
use prost::Message as _;
use tokio::sync::Semaphore;
use tonic::Status;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    action::{Entry, Subject},
    answer::{self, Effect},
    ending::{Ending, MAX_ENDING},
    filter::Filter,
    headers,
    policy::{Policy, Settings},
    raw::RequestType,
    request::RequestEncoder,
    stats::{Answer, Stats},
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

pub(super) struct Inner {
    filter: Arc<Filter>,
    pub(super) name: Arc<str>,
    /// Absent when there is no such cluster: every call fails then.
    channel: Option<Channel>,
    method: Method,
    pub(super) stats: Stats,
    pub(super) calls: CallRecorder,
    /// Room for calls at the end of exchanges.
    pub(super) ending: Arc<Semaphore>,
}

impl RateLimitLayer {
    /// A layer that calls the filter's cluster through one of `channels`.
    pub fn new(filter: Arc<Filter>, channels: &Channels, metrics: &Metrics) -> Self {
        let name: Arc<str> = filter.name.as_str().into();
        Self {
            inner: Arc::new(Inner {
                channel: channels.get(&filter.service.cluster.value).cloned(),
                method: Method::new(METHOD),
                stats: Stats::new(&filter, channels.http_clusters(), metrics),
                calls: CallRecorder::new(name.clone(), FilterKind::Ratelimit, metrics),
                ending: Arc::new(Semaphore::new(MAX_ENDING)),
                name,
                filter,
            }),
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

        let engaged = match context.is_answered() {
            true => None,
            false => filter.engage(&parts, &context),
        };
        let Some(engaged) = engaged else {
            return Box::pin(service.call(Request::from_parts(parts, body)));
        };
        Box::pin(async move {
            let form = ReplyForm::of(&parts.method, &parts.headers);
            let effect = match engaged.question {
                Some(question) => {
                    let route = engaged.route.as_deref();
                    filter.decide(question, &parts, &context, route).await
                }
                None => Effect::Continue {
                    request: HeaderMap::new(),
                    response: HeaderMap::new(),
                },
            };
            // From here on: who leaves while the answer is awaited is not asked about again.
            let ending = |parts: &Parts| {
                let (filter, context) = (filter.clone(), context.clone());
                engaged
                    .ends
                    .then(|| Ending::new(filter, context, engaged.route, parts.clone()))
            };
            let (ending, response) = match effect {
                Effect::Reply(reply) => {
                    context.set_details(reply.details.clone());
                    let ending = ending(&parts);
                    let request = Request::from_parts(parts, Body::empty());
                    let response = reply.into_response(form);
                    (
                        ending,
                        reply::inward(&mut service, request, response).await?,
                    )
                }
                Effect::Continue { request, response } => {
                    headers::append_all(&mut parts.headers, &request);
                    let ending = ending(&parts);
                    let body = match &ending {
                        Some(ending) => ending.count(body),
                        None => body,
                    };
                    let mut answer = service.call(Request::from_parts(parts, body)).await?;
                    if !context.is_direct() {
                        headers::append_all(answer.headers_mut(), &response);
                    }
                    (ending, answer)
                }
            };
            Ok(match ending {
                Some(ending) => ending.with_response(response),
                None => response,
            })
        })
    }
}

/// What the filter has to do with a request.
struct Engaged {
    /// What the service is asked before the request goes on, if anything.
    question: Option<Question>,
    /// Whether there are policies for the end of the exchange.
    ends: bool,
    route: Option<Arc<Route>>,
}

/// What the service is asked, and for each descriptor whether its limit may show.
pub(super) struct Question {
    /// Framed.
    message: Bytes,
    pub(super) metadata: HeaderMap,
    shown: Vec<bool>,
}

impl Question {
    /// The size of the message, gRPC framing included.
    pub(super) fn bytes(&self) -> u64 {
        self.message.len() as u64
    }
}

impl Inner {
    /// What the filter has to do with a request; `None` for nothing.
    fn engage(&self, head: &Parts, context: &RequestContext) -> Option<Engaged> {
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
        let settings = self.settings(route.as_deref());
        let facts = Facts {
            context,
            request: Some(head),
            response: None,
        };
        let subject = Subject {
            head,
            context,
            exchange: facts.into(),
            route: route.as_deref(),
            source_cluster: &filter.source_cluster,
        };
        let Settings { domain, before, .. } = settings;
        let question = self.question(domain, before, &subject, &subject.exchange);
        let ends = !settings.at_end.is_empty();
        (question.is_some() || ends).then_some(Engaged {
            question,
            ends,
            route,
        })
    }

    /// The question that these policies make of a request; `None` when there is nothing to ask.
    pub(super) fn question(
        &self,
        domain: &str,
        policies: &[Arc<Policy>],
        subject: &Subject<'_>,
        hits: &Exchange<'_>,
    ) -> Option<Question> {
        if policies.is_empty() {
            return None;
        }
        let mut encoder = RequestEncoder::new(domain);
        let mut shown = Vec::new();
        let mut entries: Vec<Entry<'_>> = Vec::new();
        for policy in policies {
            entries.clear();
            if let Some(terms) = policy.descriptor(subject, hits, &mut entries) {
                encoder.descriptor(&entries, terms);
                shown.push(policy.is_shown(self.filter.ratelimit_headers));
            }
        }
        let metadata = &self.filter.service.metadata;
        (!encoder.is_empty()).then(|| Question {
            message: encoder.finish(),
            metadata: metadata.of(subject.head, subject.context),
            shown,
        })
    }

    /// What holds on a route.
    pub(super) fn settings<'a>(&'a self, route: Option<&'a Route>) -> &'a Settings {
        route
            .and_then(|route| route.resolved.get::<Settings>(&self.name))
            .unwrap_or(&self.filter.settings)
    }

    pub(super) fn source_cluster(&self) -> &str {
        &self.filter.source_cluster
    }

    /// Bound on a call, if there is one.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.filter.timeout
    }

    async fn decide(
        &self,
        mut question: Question,
        head: &Parts,
        context: &RequestContext,
        route: Option<&Route>,
    ) -> Effect {
        let filter = &*self.filter;
        let cluster = route.and_then(|route| route.cluster.as_deref());
        let shown = std::mem::take(&mut question.shown);
        let mut asking = self.calls.begin(context, Phase::ShouldRateLimit);
        if let Some(trace) = &context.trace {
            asking.span = trace.propagate(&mut question.metadata, true);
        }
        let sent_bytes = question.bytes();
        let answered = self.call(question, filter.timeout).await;
        let latency = asking.begun().elapsed();
        let (effect, end) = match answered {
            Ok((answer, bytes)) => {
                let effect = self.act(answer, &shown, head, context, cluster);
                let result = match effect {
                    Effect::Continue { .. } => CallResult::Continued,
                    Effect::Reply(_) => CallResult::Answered,
                };
                let end = CallEnd {
                    result,
                    status: 0,
                    latency,
                    sent_bytes,
                    received_bytes: bytes as u64,
                    changes: added(head, &effect, context),
                };
                (effect, end)
            }
            Err(status) => {
                let effect = self.fail(&status, context, cluster);
                let goes_on = matches!(effect, Effect::Continue { .. });
                let end = CallEnd {
                    result: CallResult::failure(is_timeout(&status), goes_on),
                    status: status.code().into(),
                    latency,
                    sent_bytes,
                    received_bytes: 0,
                    changes: None,
                };
                (effect, end)
            }
        };
        asking.end(end);
        effect
    }

    /// Does what the service answered.
    fn act(
        &self,
        mut answer: RateLimitResponse,
        shown: &[bool],
        head: &Parts,
        context: &RequestContext,
        cluster: Option<&str>,
    ) -> Effect {
        let filter = &*self.filter;
        if let Some(metadata) = answer
            .dynamic_metadata
            .take()
            .filter(|m| !m.fields.is_empty())
        {
            context.merge_metadata(&filter.metadata_namespace, metadata);
        }
        let over = answer::is_over_limit(&answer);
        if over {
            // As in Envoy, also when the request passes all the same.
            context.charge_cluster(filter.rate_limited_status);
            self.stats.count(Answer::OverLimit, cluster);
        } else {
            self.stats.count(Answer::Ok, cluster);
        }
        let enforced = over && filter.enforced.sample();
        let shown = |position: usize| {
            let shown = shown.get(position).copied();
            shown.unwrap_or(filter.ratelimit_headers)
        };
        let facts = Facts {
            context,
            request: Some(head),
            response: None,
        };
        let effect = answer::effect(filter, &answer, enforced, shown, &facts.into());
        if enforced {
            context.add_flag(ResponseFlag::RateLimited);
        }
        effect
    }

    /// Asks the service; with its answer comes the size of that, gRPC framing included.
    pub(super) async fn call(
        &self,
        question: Question,
        timeout: Option<Duration>,
    ) -> Result<(RateLimitResponse, usize), Status> {
        let service = &self.filter.service;
        let Some(channel) = &self.channel else {
            let cluster = &service.cluster.value;
            return Err(Status::unavailable(format!(
                "there is no cluster `{cluster}`"
            )));
        };
        let retry = service.retry.as_ref();
        let answer = call_unary(
            channel,
            &self.method,
            question.message,
            question.metadata,
            timeout,
            retry,
        )
        .await?;
        let bytes = answer.len() + FRAME_HEADER;
        RateLimitResponse::decode(answer)
            .map(|answer| (answer, bytes))
            .map_err(|error| Status::internal(format!("the answer is not valid: {error}")))
    }

    fn fail(&self, status: &Status, context: &RequestContext, cluster: Option<&str>) -> Effect {
        self.stats.count(Answer::Error, cluster);
        tracing::debug!(filter = %self.name, %status, "the rate limit service failed");
        if self.filter.deny_on_error.is_some_and(Fraction::sample) {
            context.add_flag(ResponseFlag::RateLimitServiceError);
            return Effect::Reply(Box::new(answer::failure(&self.filter)));
        }
        self.stats.count(Answer::FailureModeAllowed, cluster);
        Effect::Continue {
            request: HeaderMap::new(),
            response: HeaderMap::new(),
        }
    }
}

/// Whether a call failed for want of time.
pub(super) fn is_timeout(status: &Status) -> bool {
    status.code() == tonic::Code::DeadlineExceeded
}

/// What goes on with other headers than it came with, where somebody watches.
fn added(head: &Parts, effect: &Effect, context: &RequestContext) -> Option<Box<Changes>> {
    let Effect::Continue { request, response } = effect else {
        return None;
    };
    if !context.records_changes() || request.is_empty() && response.is_empty() {
        return None;
    }
    let before = Snapshot::of_map(&head.headers);
    let mut headers = head.headers.clone();
    headers::append_all(&mut headers, request);
    Some(Box::new(Changes {
        request: before.changes_to(&Snapshot::of_map(&headers)),
        response: Snapshot::default().changes_to(&Snapshot::of_map(response)),
    }))
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
