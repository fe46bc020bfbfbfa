//! The tower layer and its service.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use attache_filter::{
    Body, BoxError, Channels, LocalReply, RequestContext,
    context::IdleTimeout,
    reply::{self, ReplyForm},
};
use attache_service::{Channel, HttpClient, Method, Metrics};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, request};
use http_body::Body as _;
use tower::{Layer, Service};

use super::{
    Side,
    body::{Local, Processed},
    drive::{Callee, Interruption, Shared, now},
    exchange::{Exchange, Head, Outcome, Terms},
    http::HttpLink,
    plan::{Filter, PerRoute},
    stats::Stats,
};

const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// Shows requests and responses to a processor on their way through a service.
///
/// Failures of the processor become responses, as the filter's settings say; errors of the inner
/// service pass as they are.
#[derive(Clone)]
pub struct ExtProcLayer {
    shared: Arc<Fixed>,
}

/// What all requests of one layer share.
struct Fixed {
    filter: Arc<Filter>,
    channels: Channels,
    channel: Option<Channel>,
    http: Option<HttpClient>,
    stats: Arc<Stats>,
    method: Method,
}

impl ExtProcLayer {
    /// A layer for `filter`. A cluster that is not among `channels` counts as unreachable.
    pub fn new(filter: Arc<Filter>, channels: &Channels, metrics: &Metrics) -> Self {
        let channel = channels.get(&filter.cluster.value).cloned();
        let http = filter.http.as_ref();
        let http = http.and_then(|call| channels.http(&call.cluster.value).cloned());
        let mut stats = Stats::new(metrics, &filter.name, &filter.label());
        if filter.http.is_some() {
            stats = stats.without_streams();
        }
        let stats = Arc::new(stats);
        Self {
            shared: Arc::new(Fixed {
                filter,
                channels: channels.clone(),
                channel,
                http,
                stats,
                method: Method::new(PROCESS),
            }),
        }
    }
}

impl<S> Layer<S> for ExtProcLayer {
    type Service = ExtProc<S>;

    fn layer(&self, inner: S) -> ExtProc<S> {
        ExtProc {
            inner,
            shared: self.shared.clone(),
        }
    }
}

/// The service of [`ExtProcLayer`].
#[derive(Clone)]
pub struct ExtProc<S> {
    inner: S,
    shared: Arc<Fixed>,
}

type ResponseFuture<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S, B> Service<Request<B>> for ExtProc<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut request = request.map(Body::new);
        // The clone may not be ready; the one that was polled is.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let context = RequestContext::of(&mut request);
        let (parts, body) = request.into_parts();
        let begun = self.shared.begin(&parts, context.clone());
        let request = Request::from_parts(parts, body);
        match begun {
            None => Box::pin(inner.call(request)),
            Some((exchange, callee)) => {
                let method = self.shared.method.clone();
                let shared = Shared::new(exchange, callee, method);
                Box::pin(run(shared, inner, request, context))
            }
        }
    }
}

impl Fixed {
    /// The exchange of a request; `None` when the processor has no part in it.
    fn begin(
        &self,
        request: &request::Parts,
        context: Arc<RequestContext>,
    ) -> Option<(Exchange, Callee)> {
        let mut modes = self.filter.modes;
        let mut failure_mode_allow = self.filter.failure_mode_allow;
        let mut initial_metadata = &self.filter.initial_metadata;
        let mut channel = self.channel.as_ref();
        let mut http = self.filter.http.as_ref();
        let route = context.route();
        let per_route = route
            .as_ref()
            .and_then(|route| route.filters.get::<PerRoute>(&self.filter.name));
        if let Some(overrides) = per_route {
            if overrides.disabled {
                return None;
            }
            modes = overrides.modes.unwrap_or(modes);
            failure_mode_allow = overrides.failure_mode_allow.unwrap_or(failure_mode_allow);
            if let Some(service) = &overrides.service {
                channel = self.channels.get(&service.cluster.value);
                initial_metadata = &service.metadata;
                http = None;
            }
        }
        if http.is_some() {
            // Asked over plain HTTP, a processor is shown heads only, whatever the route says.
            modes = modes.heads_only();
        }
        if modes.is_off() {
            return None;
        }
        let emit_span = per_route
            .and_then(|route| route.emit_client_span)
            .unwrap_or(self.filter.emit_client_span);
        let propagate = |headers: &mut HeaderMap| {
            let trace = context.trace.as_ref()?;
            trace.propagate(headers, emit_span)
        };
        let (callee, span) = if let Some(call) = http {
            let mut headers = call.headers(request);
            let span = propagate(&mut headers);
            let link = HttpLink::new(call, self.http.clone(), headers);
            (Callee::Http(Box::new(link)), span)
        } else {
            let mut metadata = initial_metadata.of(request, &context);
            if let Some(overrides) = per_route {
                let theirs = &overrides.initial_metadata;
                theirs.override_in(&mut metadata, request, &context);
            }
            let span = propagate(&mut metadata);
            let channel = channel.cloned();
            (Callee::Grpc { channel, metadata }, span)
        };
        let form = ReplyForm::of(&request.method, &request.headers);
        let terms = Terms {
            filter: self.filter.clone(),
            stats: self.stats.clone(),
            modes,
            failure_mode_allow,
            buffer_limit: route
                .as_ref()
                .and_then(|route| route.buffer_limit)
                .map_or(self.filter.buffer_limit, |limit| {
                    limit.max(self.filter.buffer_limit)
                }),
            idle_timeout: route
                .as_ref()
                .map_or(IdleTimeout::Inherited, |route| route.idle_timeout)
                .or(self.filter.idle_timeout),
            extras: self.filter.extras(per_route),
            span,
        };
        Some((Exchange::new(terms, context, form, now()), callee))
    }
}

/// What the request phase or the upstream came to.
enum Answer {
    /// A response for the response phase.
    Response(Response<Body>),
    /// The exchange ended; the caller gets this.
    Final(Response<Body>),
}

impl Answer {
    fn of(response: Response<Body>, is_final: bool) -> Self {
        match is_final {
            true => Self::Final(response),
            false => Self::Response(response),
        }
    }

    /// The response, and whether it is final.
    fn split(self) -> (Response<Body>, bool) {
        match self {
            Self::Response(response) => (response, false),
            Self::Final(response) => (response, true),
        }
    }
}

async fn run<S>(
    shared: Shared,
    inner: S,
    request: Request<Body>,
    context: Arc<RequestContext>,
) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    match ask(&shared, inner, request, &context).await? {
        Answer::Response(response) if !context.is_direct() => {
            Ok(respond(&shared, response, &context).await)
        }
        Answer::Response(response) | Answer::Final(response) => Ok(response),
    }
}

/// The request phase, and the inner service's answer.
async fn ask<S>(
    shared: &Shared,
    mut inner: S,
    request: Request<Body>,
    context: &Arc<RequestContext>,
) -> Result<Answer, S::Error>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    if context.is_answered() {
        shared.with(Exchange::skip_request);
        return inner.call(request).await.map(Answer::Response);
    }
    let (parts, mut body) = request.into_parts();
    let end = body.is_end_stream();
    shared.with(|x| x.headers(Side::Request, Head::Request(parts), end, now()));
    let head = poll_fn(|cx| match context.is_answered() {
        true => Poll::Ready(None),
        false => shared.poll_head(Side::Request, &mut body, cx).map(Some),
    })
    .await;
    let parts = match head {
        Some(Ok(Head::Request(parts))) => parts,
        Some(Ok(Head::Response(parts))) => {
            return Ok(Answer::Final(Response::from_parts(parts, Body::empty())));
        }
        Some(Err(Interruption::Outcome(Outcome::Local(parts)))) => {
            // Its head may be all there is, which is told by an empty body.
            let body = match shared.with(|x| x.has_ended(Side::Response)) {
                true => Body::empty(),
                false => Body::new(Local::new(shared.clone(), body)),
            };
            let answer = Answer::Final(Response::from_parts(*parts, body));
            return inward(shared, inner, answer, context).await;
        }
        Some(Err(interruption)) => {
            let answer = interrupted(shared, interruption, StatusCode::BAD_REQUEST);
            return inward(shared, inner, answer, context).await;
        }
        // A layer further outside answers while the processor is waited for.
        None => {
            let request = reclaimed(shared, context);
            return inner.call(request).await.map(Answer::Response);
        }
    };
    shared.with(|x| x.request_goes_on(&parts));
    let body = processed(shared, Side::Request, body);
    let mut response = pin!(inner.call(Request::from_parts(parts, body)));
    let mut is_final = None;
    poll_fn(|cx| {
        // The processor first: what it says while the upstream is waited for acts at once.
        if is_final.is_none()
            && let Poll::Ready(outcome) = shared.poll_outcome(cx)
        {
            let outcome = Interruption::Outcome(outcome);
            let (response, last) =
                interrupted(shared, outcome, StatusCode::INTERNAL_SERVER_ERROR).split();
            // The innermost service notices when it is asked again, below.
            match context.hand_inward(response) {
                Ok(()) => is_final = Some(last),
                Err(response) => return Poll::Ready(Ok(Answer::of(*response, last))),
            }
        }
        response
            .as_mut()
            .poll(cx)
            .map_ok(|response| Answer::of(response, is_final.unwrap_or(false)))
    })
    .await
}

/// Takes an answer of this layer through the response phase of those further inside.
async fn inward<S>(
    shared: &Shared,
    mut inner: S,
    answer: Answer,
    context: &Arc<RequestContext>,
) -> Result<Answer, S::Error>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    let request = reclaimed(shared, context);
    let (response, is_final) = answer.split();
    let response = reply::inward(&mut inner, request, response).await?;
    Ok(Answer::of(response, is_final))
}

/// The request that does not go on, for those who look at its head only.
fn reclaimed(shared: &Shared, context: &Arc<RequestContext>) -> Request<Body> {
    if let Some(parts) = shared.with(Exchange::reclaim_request) {
        return Request::from_parts(parts, Body::empty());
    }
    let mut request = Request::new(Body::empty());
    request.extensions_mut().insert(context.clone());
    request
}

/// The response phase.
async fn respond(
    shared: &Shared,
    response: Response<Body>,
    context: &RequestContext,
) -> Response<Body> {
    let (parts, mut body) = response.into_parts();
    let end = body.is_end_stream() || shared.with(|x| x.form().head);
    shared.with(|x| x.headers(Side::Response, Head::Response(parts), end, now()));
    match poll_fn(|cx| shared.poll_head(Side::Response, &mut body, cx)).await {
        Ok(Head::Response(parts)) => {
            Response::from_parts(parts, processed(shared, Side::Response, body))
        }
        // A request head cannot come out of the response direction.
        Ok(Head::Request(_)) => Response::new(Body::empty()),
        Err(interruption) => {
            context.answer_direct();
            interrupted(shared, interruption, StatusCode::BAD_GATEWAY)
                .split()
                .0
        }
    }
}

/// The body that goes on: as it is where the processor has no further part in it.
fn processed(shared: &Shared, side: Side, body: Body) -> Body {
    let (untouched, empty) = shared.with(|x| (x.is_untouched(side), x.is_empty(side)));
    if untouched {
        body
    } else {
        Body::new(Processed::new(shared.clone(), side, body, empty))
    }
}

fn interrupted(shared: &Shared, interruption: Interruption, on_body_error: StatusCode) -> Answer {
    let form = shared.with(|x| x.form());
    match interruption {
        Interruption::Outcome(Outcome::Reply(reply)) => Answer::Final(reply.into_response(form)),
        Interruption::Outcome(Outcome::Refuse(reply)) => {
            Answer::Response(reply.into_response(form))
        }
        // Only after the response head went on, when nobody waits here.
        Interruption::Outcome(Outcome::Reset | Outcome::Local(_)) => Answer::Final(
            LocalReply::new(StatusCode::INTERNAL_SERVER_ERROR, "ext_proc_reset")
                .into_response(form),
        ),
        Interruption::Body(error) => {
            tracing::debug!(%error, "a body ended early while it was held for the processor");
            let reply = LocalReply::new(on_body_error, "body_ended_early");
            Answer::Final(reply.into_response(form))
        }
    }
}
