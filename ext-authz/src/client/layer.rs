//! The layer: asks before each request, and acts on the answer.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use attache_filter::{
    Body, BoxError, Channels, LocalReply, RequestContext,
    calls::{CallRecorder, FilterKind, Phase},
    reply::{self, ReplyForm},
};
use attache_service::{Method, Metrics};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Version, header, request};
use tower::{Layer, Service};

use super::{
    answer,
    ask::{Link, Question},
    body::{self, Held, Shown},
    log,
    plan::{Filter, PerRoute},
    stats::Stats,
};

/// Asks an auth service about each request before the inner service sees it.
#[derive(Clone)]
pub struct ExtAuthzLayer(Arc<Shared>);

pub(super) struct Shared {
    pub(super) filter: Arc<Filter>,
    pub(super) stats: Stats,
    pub(super) calls: CallRecorder,
    /// To the filter's own service.
    link: Link,
    /// To those that routes bring in.
    channels: Channels,
    method: Method,
}

impl ExtAuthzLayer {
    /// A layer of one worker. A cluster that `channels` does not have makes every check an
    /// error, which the filter's failure mode then decides.
    pub fn new(filter: Arc<Filter>, channels: &Channels, metrics: &Metrics) -> Self {
        Self(Arc::new(Shared {
            link: Link::to(&filter.service, channels),
            channels: channels.clone(),
            method: Method::new("/envoy.service.auth.v3.Authorization/Check"),
            stats: Stats::new(&filter, channels.http_clusters(), metrics),
            calls: CallRecorder::new(filter.name.clone(), FilterKind::ExtAuthz, metrics),
            filter,
        }))
    }
}

impl<S> Layer<S> for ExtAuthzLayer {
    type Service = ExtAuthz<S>;

    fn layer(&self, inner: S) -> ExtAuthz<S> {
        ExtAuthz {
            inner,
            shared: self.0.clone(),
        }
    }
}

/// A service behind an [`ExtAuthzLayer`].
#[derive(Clone)]
pub struct ExtAuthz<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, B> Service<Request<B>> for ExtAuthz<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The clone takes the place of the service that was polled ready.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let shared = self.shared.clone();
        let mut request = request.map(Body::new);
        let context = RequestContext::of(&mut request);
        if context.is_answered() {
            return Box::pin(inner.call(request));
        }
        Box::pin(async move {
            let changes = match shared.decide(request, &context).await {
                Decision::Answer(parts, response) => {
                    let request = Request::from_parts(*parts, Body::empty());
                    return reply::inward(&mut inner, request, response).await;
                }
                Decision::Pass(request, changes) => {
                    let response = inner.call(request).await?;
                    if changes.is_empty() || context.is_direct() {
                        return Ok(response);
                    }
                    (response, changes)
                }
            };
            let (response, changes) = changes;
            Ok(shared.change_response(response, changes, &context))
        })
    }
}

pub(crate) type ResponseChanges = Vec<(answer::ResponseVerb, HeaderName, HeaderValue)>;

/// What becomes of a request.
pub(crate) enum Decision {
    Pass(Request<Body>, ResponseChanges),
    /// With the head of the request that was denied.
    Answer(Box<request::Parts>, Response<Body>),
}

impl Shared {
    async fn decide(&self, request: Request<Body>, context: &RequestContext) -> Decision {
        let filter = &*self.filter;
        let route = context.route();
        let per_route = route
            .as_ref()
            .and_then(|route| route.filters.get::<PerRoute>(&filter.name));
        if per_route.and_then(|route| route.disabled) == Some(true) || context.has_no_route() {
            return Decision::Pass(request, Vec::new());
        }
        let about = filter.enabled_metadata.as_ref();
        if !filter.enabled.sample() || !about.is_none_or(|test| test.matches(context)) {
            return self.unchecked(request, context);
        }

        let (parts, body) = request.into_parts();
        let bound = route.as_ref().and_then(|route| route.buffer_limit);
        let bound = filter.buffer_limit.max(bound.unwrap_or(0));
        let plan = per_route
            .and_then(|route| route.body)
            .unwrap_or(filter.body);
        let (shown, body) = match plan {
            Some(plan) if !context.tunnels_in_body() && body::has_body(&parts, &body) => {
                match body::hold(body, plan, bound).await {
                    Ok(Held::Shown(shown, body)) => (shown, body),
                    Ok(Held::TooLarge) => return too_large(parts, context),
                    // The client went away or broke the protocol; nobody waits for this answer.
                    Err(_) => {
                        let reply = LocalReply::new(StatusCode::BAD_REQUEST, "request_body_error");
                        return answer_with(reply, parts, context);
                    }
                }
            }
            _ => (Shown::default(), body),
        };
        let question = Question {
            filter,
            per_route,
            parts: &parts,
            context,
            shown: &shown,
            body_plan: plan,
        };
        let mut asking = self.calls.begin(context, Phase::Check);
        let asked = match per_route.and_then(|route| route.service.as_ref()) {
            None => question.ask(&self.link, &self.method).await,
            Some(service) => {
                let link = Link::to(service, &self.channels);
                question.ask(&link, &self.method).await
            }
        };
        log::check(filter, &asked, context, &self.stats);
        asking.span = asked.span;
        let outcome = log::Outcome::of(&asked, &parts, context);
        let decision = self.act(Request::from_parts(parts, body), asked, context);
        let (end, decision) = outcome.end(decision);
        asking.end(end);
        decision
    }
}

pub(super) fn answer_with(
    reply: LocalReply,
    parts: request::Parts,
    context: &RequestContext,
) -> Decision {
    context.set_details(reply.details.clone());
    let form = ReplyForm::of(&parts.method, &parts.headers);
    Decision::Answer(Box::new(parts), reply.into_response(form))
}

/// The body is larger than the auth service is to see; no check is made.
fn too_large(parts: request::Parts, context: &RequestContext) -> Decision {
    let mut reply = LocalReply::new(StatusCode::PAYLOAD_TOO_LARGE, "request_payload_too_large")
        .with_body("Payload Too Large");
    if parts.version < Version::HTTP_2 {
        // The rest of the body is on its way and nobody is going to read it.
        reply
            .headers
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer_with(reply, parts, context)
}
