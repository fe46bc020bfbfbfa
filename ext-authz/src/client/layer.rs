//! The layer: asks before each request, and acts on the answer.

use std::{
    borrow::Cow,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use attache_filter::{
    Body, BoxError, Channels, LocalReply, RequestContext,
    context::{PolicyCall, ResponseFlag},
    reply::{self, ReplyForm},
};
use attache_proto::auth::CheckResponse;
use attache_service::{Channel, Method, Metrics};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version, header, request,
};
use prost::Message as _;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::{
    answer::{self, Answer, Effects, Invalid, Reply, Verdict},
    apply::{self, ResponseOutcome},
    body::{self, Held, Shown},
    encode::{self, CheckBody, Content},
    plan::{ClearRoute, Filter, PerRoute},
    stats::Stats,
};

/// The namespace of dynamic metadata that answers go to.
pub const METADATA_NAMESPACE: &str = "envoy.filters.http.ext_authz";

const FAILURE_MODE_ALLOWED: HeaderName =
    HeaderName::from_static("x-envoy-auth-failure-mode-allowed");

/// Asks an auth service about each request before the inner service sees it.
#[derive(Clone)]
pub struct ExtAuthzLayer(Arc<Shared>);

struct Shared {
    filter: Arc<Filter>,
    channel: Option<Channel>,
    method: Method,
    stats: Stats,
}

impl ExtAuthzLayer {
    /// A layer of one worker. A cluster that `channels` does not have makes every check an
    /// error, which the filter's failure mode then decides.
    pub fn new(filter: Arc<Filter>, channels: &Channels, metrics: &Metrics) -> Self {
        Self(Arc::new(Shared {
            channel: channels.get(&filter.call.cluster).cloned(),
            method: Method::new("/envoy.service.auth.v3.Authorization/Check"),
            stats: Stats::new(&filter, metrics),
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

type ResponseChanges = Vec<(answer::ResponseVerb, HeaderName, HeaderValue)>;

enum Decision {
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
        if !filter.enabled.sample() {
            self.stats.disabled.inc();
            if !filter.deny_at_disable {
                return Decision::Pass(request, Vec::new());
            }
            let reply = LocalReply::new(filter.reading.status_on_error, "ext_authz_error");
            return deny(reply, request.into_parts().0, context);
        }

        let (parts, body) = request.into_parts();
        let plan = per_route
            .and_then(|route| route.body)
            .unwrap_or(filter.body);
        let (shown, body) = match plan {
            Some(plan) if body::has_body(&parts, &body) => match body::hold(body, plan).await {
                Ok(Held::Shown(shown, body)) => (shown, body),
                Ok(Held::TooLarge) => return too_large(parts, context),
                // The client went away or broke the protocol; nobody waits for this answer.
                Err(_) => {
                    let reply = LocalReply::new(StatusCode::BAD_REQUEST, "request_body_error");
                    return answer_with(reply, parts, context);
                }
            },
            _ => (Shown::default(), body),
        };
        let content = Content {
            raw_headers: filter.raw_headers,
            peer_certificate: filter.peer_certificate,
            tls_session: filter.tls_session,
            raw_body: plan.is_some_and(|plan| plan.as_bytes),
            extensions: per_route.map_or(&[], |route| &route.encoded_extensions),
            metadata_namespaces: &filter.metadata_namespaces,
        };
        let shown = (!shown.data.is_empty()).then_some(CheckBody {
            data: &shown.data,
            partial: shown.partial,
            received: shown.received,
        });
        let message = encode::check_request(&parts, context, shown, content, &filter.shown);

        let metadata = filter.call.metadata.of(&parts, context);
        let asked = Instant::now();
        let answered = self.ask(message.as_ref(), metadata).await;
        let latency = asked.elapsed();
        let status = answered.as_ref().err().map_or(0, |s| s.code() as i32);
        context.record_call(PolicyCall::one(
            filter.name.clone(),
            "check",
            latency,
            status,
        ));
        let request = Request::from_parts(parts, body);
        let answer = match answered {
            Ok(response) => answer::read(response, filter.reading),
            Err(status) => {
                tracing::debug!(filter = &*filter.name, %status, "the check failed");
                return self.failed(request, None, context);
            }
        };
        let Answer { verdict, metadata } = answer;
        if let Some(metadata) = metadata {
            let allowed = matches!(verdict, Verdict::Allow(_));
            self.keep_metadata(metadata, allowed.then_some(latency), context);
        }
        match verdict {
            Verdict::Allow(effects) => self.allowed(request, effects, context),
            Verdict::Deny(reply) => {
                self.stats.denied.inc();
                let reply = local_reply(reply, "ext_authz_denied");
                deny(reply, request.into_parts().0, context)
            }
            Verdict::Error(reply) => self.failed(request, reply, context),
            Verdict::Invalid(invalid) => self.invalid(invalid, request.into_parts().0, context),
        }
    }

    async fn ask(&self, message: &[u8], metadata: HeaderMap) -> Result<CheckResponse, Status> {
        let Some(channel) = &self.channel else {
            let cluster = &*self.filter.call.cluster;
            return Err(Status::unavailable(format!(
                "there is no cluster `{cluster}`"
            )));
        };
        let answer = channel
            .unary(&self.method, message, metadata, self.filter.timeout)
            .await?;
        CheckResponse::decode(answer)
            .map_err(|error| Status::new(Code::Internal, format!("malformed answer: {error}")))
    }

    fn allowed(
        &self,
        request: Request<Body>,
        mut effects: Effects,
        context: &RequestContext,
    ) -> Decision {
        let filter = &*self.filter;
        if effects.omitted > 0 {
            self.stats.omitted_headers.inc_by(effects.omitted as u64);
        }
        if !effects.touches_request() {
            self.stats.ok.inc();
            return Decision::Pass(request, effects.response);
        }
        let reroute = reroutes(&filter.clear_route, &effects);
        let (mut parts, body) = request.into_parts();
        let applied = apply::request(
            &mut parts,
            &mut effects,
            filter.rules.as_ref(),
            filter.limits,
        );
        if let Err(invalid) = applied {
            return self.invalid(invalid, parts, context);
        }
        self.stats.ok.inc();
        if reroute {
            context.clear_route();
        }
        Decision::Pass(Request::from_parts(parts, body), effects.response)
    }

    /// The check failed, or the service says that it did.
    fn failed(
        &self,
        mut request: Request<Body>,
        reply: Option<Reply>,
        context: &RequestContext,
    ) -> Decision {
        let filter = &*self.filter;
        self.stats.error.inc();
        if filter.failure_mode_allow {
            self.stats.failure_mode_allowed.inc();
            if filter.failure_mode_header {
                // A full header map only loses what upstreams should not trust anyway.
                let _ = request
                    .headers_mut()
                    .try_append(FAILURE_MODE_ALLOWED, HeaderValue::from_static("true"));
            }
            return Decision::Pass(request, Vec::new());
        }
        let reply = match reply {
            Some(reply) => local_reply(reply, "ext_authz_error"),
            None => LocalReply::new(filter.reading.status_on_error, "ext_authz_error"),
        };
        deny(reply, request.into_parts().0, context)
    }

    /// The answer cannot be carried out; the failure mode does not cover this.
    fn invalid(
        &self,
        invalid: Invalid,
        parts: request::Parts,
        context: &RequestContext,
    ) -> Decision {
        self.stats.invalid.inc();
        let status = match invalid {
            Invalid::Answer => StatusCode::INTERNAL_SERVER_ERROR,
            Invalid::Request => {
                context.add_flag(ResponseFlag::DownstreamProtocolError);
                StatusCode::SERVICE_UNAVAILABLE
            }
            Invalid::RequestLimits => {
                self.stats.request_header_limits_reached.inc();
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        deny(LocalReply::new(status, "ext_authz_invalid"), parts, context)
    }

    fn keep_metadata(
        &self,
        mut metadata: prost_types::Struct,
        took: Option<std::time::Duration>,
        context: &RequestContext,
    ) {
        if metadata.fields.is_empty() {
            return;
        }
        if !self.filter.ingest_metadata {
            self.stats.ignored_dynamic_metadata.inc();
            return;
        }
        if let Some(took) = took {
            let millis = prost_types::Value {
                kind: Some(prost_types::value::Kind::NumberValue(
                    took.as_millis() as f64
                )),
            };
            metadata
                .fields
                .insert("ext_authz_duration".to_owned(), millis);
        }
        context.merge_metadata(METADATA_NAMESPACE, metadata);
    }

    fn change_response(
        &self,
        response: Response<Body>,
        changes: ResponseChanges,
        context: &RequestContext,
    ) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        match apply::response(&mut parts, changes, self.filter.response_limit) {
            ResponseOutcome::Done => {}
            ResponseOutcome::Omitted => {
                self.stats.omitted_headers.inc();
            }
            ResponseOutcome::OverLimit => {
                self.stats.response_header_limits_reached.inc();
                context.set_details("ext_authz_invalid");
                context.answer_direct();
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                return response;
            }
        }
        Response::from_parts(parts, body)
    }
}

/// Whether the answer has the route picked again.
fn reroutes(clear: &ClearRoute, effects: &Effects) -> bool {
    let names = match clear {
        ClearRoute::Never => return false,
        ClearRoute::OnChange => return effects.touches_request(),
        ClearRoute::OnHeaders(names) => names,
    };
    let listed = |name: &str| names.iter().any(|listed| listed.eq_ignore_ascii_case(name));
    effects.touches_query()
        || effects.set.iter().any(|(name, _)| listed(name.as_str()))
        || effects.append.iter().any(|(name, _)| listed(name.as_str()))
        || effects.remove.iter().any(|name| listed(name))
}

fn local_reply(reply: Reply, details: impl Into<Cow<'static, str>>) -> LocalReply {
    LocalReply {
        headers: reply.headers,
        ..LocalReply::new(reply.status, details).with_body(reply.body)
    }
}

fn deny(reply: LocalReply, parts: request::Parts, context: &RequestContext) -> Decision {
    context.add_flag(ResponseFlag::UnauthorizedExternalService);
    answer_with(reply, parts, context)
}

fn answer_with(reply: LocalReply, parts: request::Parts, context: &RequestContext) -> Decision {
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
