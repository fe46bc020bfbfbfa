//! The innermost service: does what the route says. Behind all policies.

use std::{convert::Infallible, future::poll_fn, pin::pin, sync::Arc, task::Poll};

use attache_filter::{
    Body, LocalReply, RequestContext,
    context::ResponseFlag,
    head::{self, Scheme},
    reply::ReplyForm,
};
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request,
    uri::{Authority, PathAndQuery},
};
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;
use tower::Service;

use crate::{
    attempts::{Attempts, Sent},
    body::ReplyBody,
    filters::{Handle, PolicyFuture, Stack},
    hygiene,
    internal_redirect::Restart,
    plan::{ListenerPlan, Protocol},
    route::{Action, DirectResponse, Forward, Redirect, RouteEntry, RouteTable},
    tunnel::{self, Side},
    upstream::{
        Cluster, Endpoint, Limits, UploadBody, UpstreamBody, UpstreamError, Waited, exchange,
        within,
    },
};

pub(crate) const EXPECTED_TIMEOUT: HeaderName =
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// Routes and upstreams of one worker.
pub(crate) struct Router {
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) clusters: Vec<Cluster>,
    /// Some listener logs accesses: say which endpoint answered.
    pub(crate) notes_upstream: bool,
}

/// A request on its way to the upstream. Boxed by those who pass it on: the steps of its way are
/// futures within futures, each with room for what it is given.
pub(crate) struct Received {
    pub(crate) parts: request::Parts,
    pub(crate) body: Body,
}

/// The route that was picked for the request on its way through the policies; an extension of
/// the request.
#[derive(Clone)]
pub(crate) struct Picked(pub(crate) Option<Arc<RouteEntry>>);

/// Which endpoint answered and how fast, for the access log; an extension of the response.
#[derive(Debug, Clone)]
pub(crate) struct Answered {
    pub(crate) endpoint: String,
    pub(crate) after: std::time::Duration,
}

impl Router {
    /// Picks the route and tells the context.
    pub(crate) fn pick(
        &self,
        parts: &request::Parts,
        context: &RequestContext,
    ) -> Option<Arc<RouteEntry>> {
        let entry = self.routes.pick(parts).cloned();
        context.set_route(entry.as_ref().map(|entry| entry.route.clone()));
        entry
    }

    /// Counts what a layer has decided as a response of the cluster, where the layer says so.
    fn charge(&self, context: &RequestContext) {
        let Some(status) = context.cluster_charge() else {
            return;
        };
        let route = context.route();
        let name = route.as_ref().and_then(|route| route.cluster.as_ref());
        let mut clusters = self.clusters.iter();
        if let Some(cluster) = name.and_then(|name| clusters.find(|c| c.plan.name == *name)) {
            cluster.stats.count(status);
        }
    }

    /// Answers a request as `entry` says, for `listener`.
    pub(crate) async fn answer(
        &self,
        listener: &ListenerPlan,
        entry: Option<Arc<RouteEntry>>,
        context: Arc<RequestContext>,
        received: Box<Received>,
    ) -> Response<ReplyBody> {
        let form = ReplyForm::of(&received.parts.method, &received.parts.headers);
        let Some(entry) = entry else {
            context.add_flag(ResponseFlag::NoRouteFound);
            return local(
                &context,
                form,
                LocalReply::new(StatusCode::NOT_FOUND, "route_not_found"),
            );
        };
        match &entry.action {
            Action::Forward(forward) => {
                let route_limit = entry.route.buffer_limit;
                let limit = route_limit.unwrap_or(listener.buffer_limit);
                self.forward(&entry, forward, &context, form, received, limit)
                    .await
            }
            Action::Direct(direct) => direct_response(direct, &context, form),
            Action::Redirect(to) => redirect(to, &entry, &received.parts, &context, form),
        }
    }

    async fn forward(
        &self,
        entry: &RouteEntry,
        forward: &Forward,
        context: &Arc<RequestContext>,
        form: ReplyForm,
        mut received: Box<Received>,
        buffer_limit: usize,
    ) -> Response<ReplyBody> {
        let endpoint = self
            .clusters
            .get(forward.cluster)
            .and_then(|cluster| Some((cluster, cluster.pick()?)));
        let Some((cluster, endpoint)) = endpoint else {
            context.add_flag(ResponseFlag::NoHealthyUpstream);
            return unavailable(
                context,
                form,
                "no_healthy_upstream",
                "no upstream is available",
            );
        };
        if received.parts.method == Method::CONNECT {
            note_upstream(endpoint, context);
            // Boxed: others need not carry its state.
            let connecting = connect(cluster, endpoint, forward, context, form, received);
            return Box::pin(connecting).await;
        }
        let upgrading = received.parts.headers.contains_key(header::UPGRADE);
        let restart = received.parts.extensions.get::<Restart>();
        let started = restart.map_or(Instant::from_std(context.started), |restart| restart.since);
        let internal = forward.internal_redirect.as_deref().filter(|_| !upgrading);
        let original = internal.map(|_| Box::new(received.parts.clone()));
        prepare(&mut received.parts, entry, forward, cluster, context);
        let Received {
            mut parts,
            mut body,
        } = *received;
        let tunnelled = (upgrading && context.tunnels_in_body()).then(|| std::mem::take(&mut body));
        let limits = Limits {
            started,
            timeout: forward.timeout,
            idle: forward.idle_timeout,
            attempt: started,
            attempt_timeout: None,
        };
        let mut downstream = None;
        let repeats = forward.retry.is_some() || forward.internal_redirect.is_some();
        let sent = if repeats && !upgrading {
            let attempts = Attempts {
                cluster,
                retry: forward.retry.as_deref(),
                buffer_limit,
                context,
            };
            // Boxed: others need not carry its state.
            Box::pin(attempts.send(endpoint, parts, body, limits)).await
        } else {
            let (body, upload) = UploadBody::new(body);
            if upload.is_none() {
                say_empty(&mut parts);
            }
            let mut request = Request::from_parts(parts, body);
            downstream = upgrading.then(|| hyper::upgrade::on(&mut request));
            let exchange = pin!(exchange(endpoint, &mut request));
            Sent {
                endpoint,
                ended: within(exchange, limits, upload.as_deref()).await,
                upload,
                replay: None,
            }
        };
        let Sent {
            endpoint,
            ended,
            upload,
            replay,
        } = sent;
        if let (Some(policy), Some(original), Some(replay)) = (internal, original, &replay)
            && let Waited::Done(Ok((response, _))) = &ended
            && policy.statuses.contains(&response.status())
        {
            let status = response.status();
            let restart = original.extensions.get::<Restart>().cloned();
            let next = policy
                .follow(*original, replay, status, response.headers())
                .filter(|next| self.routes.pick(&next.parts).is_some());
            if let (Some(next), Some(restart)) = (next, restart) {
                cluster.stats.count(status);
                cluster.stats.redirects_followed.inc();
                drop(ended);
                restart.with(next);
                // Who is told drops this.
                return std::future::pending().await;
            }
            cluster.stats.redirects_failed.inc();
        }
        drop(replay);
        note_upstream(endpoint, context);
        let (mut response, lease) = match ended {
            Waited::Done(Ok(answer)) => answer,
            Waited::Done(Err(error)) => {
                cluster.stats.failed.inc();
                return failed(&error, context, form);
            }
            timeout @ (Waited::Timeout | Waited::AttemptTimeout) => {
                cluster.stats.failed.inc();
                context.add_flag(ResponseFlag::UpstreamRequestTimeout);
                let details = match timeout {
                    Waited::AttemptTimeout => "upstream_per_try_timeout",
                    _ => "response_timeout",
                };
                let reply = LocalReply::new(StatusCode::GATEWAY_TIMEOUT, details);
                return local(
                    context,
                    form,
                    reply.with_body("the upstream did not answer in time"),
                );
            }
            Waited::Idle => {
                context.add_flag(ResponseFlag::StreamIdleTimeout);
                let complete = upload.is_none_or(|upload| upload.done().is_some());
                let status = match complete {
                    true => StatusCode::GATEWAY_TIMEOUT,
                    false => StatusCode::REQUEST_TIMEOUT,
                };
                let reply = LocalReply::new(status, "stream_idle_timeout");
                return local(
                    context,
                    form,
                    reply.with_body("the stream was silent for too long"),
                );
            }
        };
        let after = started.elapsed();
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let mut tunnel = None;
        if switched {
            let upstream = Side::Switching(hyper::upgrade::on(&mut response));
            match (tunnelled, downstream) {
                (Some(body), _) => {
                    tunnel = Some(tunnel::open(upstream, body, forward.idle_timeout));
                }
                (None, Some(downstream)) => {
                    let downstream = Side::Switching(downstream);
                    tokio::spawn(tunnel::run(downstream, upstream, forward.idle_timeout));
                }
                (None, None) => {
                    context.add_flag(ResponseFlag::UpstreamConnectionTermination);
                    return unavailable(
                        context,
                        form,
                        "upstream_reset_before_response_started{protocol_error}",
                        "the upstream broke the protocol",
                    );
                }
            }
        }
        context.set_details("via_upstream");
        *response.version_mut() = Version::HTTP_11;
        let headers = response.headers_mut();
        hygiene::clean_response(headers, switched);
        if !switched {
            headers.insert(SERVICE_TIME, millis(after.as_millis()));
        }
        if upgrading && !switched {
            // What the client sent behind its request may not be HTTP.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let deadline = limits.deadline(upload.as_deref());
        if self.notes_upstream {
            response.extensions_mut().insert(Answered {
                endpoint: endpoint.name(),
                after,
            });
        }
        cluster.stats.count(response.status());
        if let Some(tunnel) = tunnel {
            return response.map(|_| ReplyBody::Local(tunnel));
        }
        response.map(|incoming| {
            ReplyBody::Upstream(UpstreamBody::new(
                incoming,
                lease,
                upload,
                deadline,
                forward.idle_timeout,
                context.clone(),
            ))
        })
    }
}

/// Tells the context where the request went.
fn note_upstream(endpoint: &Endpoint, context: &RequestContext) {
    if let Some(address) = endpoint.address {
        context.set_upstream(address);
    }
}

/// Ends a `CONNECT` here: what comes through the tunnel goes to a connection of its own.
async fn connect(
    cluster: &Cluster,
    endpoint: &Endpoint,
    forward: &Forward,
    context: &RequestContext,
    form: ReplyForm,
    received: Box<Received>,
) -> Response<ReplyBody> {
    let Received { mut parts, body } = *received;
    let in_body = context.tunnels_in_body();
    let downstream = parts.extensions.remove::<OnUpgrade>();
    if !forward.connect || !in_body && downstream.is_none() {
        let reply = LocalReply::new(StatusCode::FORBIDDEN, "connect_not_allowed");
        return local(context, form, reply);
    }
    let io = match endpoint.connect_plain().await {
        Ok(io) => Side::Open(io),
        Err(error) => {
            cluster.stats.failed.inc();
            return failed(&error, context, form);
        }
    };
    context.set_details("via_upstream");
    let tunnel = match downstream.filter(|_| !in_body) {
        Some(downstream) => {
            let downstream = Side::Switching(downstream);
            tokio::spawn(tunnel::run(downstream, io, forward.idle_timeout));
            Body::empty()
        }
        None => tunnel::open(io, body, forward.idle_timeout),
    };
    cluster.stats.count(StatusCode::OK);
    Response::new(ReplyBody::Local(tunnel))
}

/// Turns a request into what the upstream shall see.
fn prepare(
    parts: &mut request::Parts,
    entry: &RouteEntry,
    forward: &Forward,
    cluster: &Cluster,
    context: &RequestContext,
) {
    if let Some(expected) = forward.expected_ms() {
        parts.headers.insert(EXPECTED_TIMEOUT, expected.clone());
    }
    let rewritten = parts
        .uri
        .path_and_query()
        .and_then(|target| forward.rewritten(&entry.matches, target));
    if rewritten.is_some()
        && let Some(old) = parts.uri.path_and_query()
        && let Ok(old) = HeaderValue::from_str(old.as_str())
    {
        parts.headers.insert(ORIGINAL_PATH, old);
    }
    if forward.host_rewrite.is_some()
        && let Some(old) = head::authority(parts)
        && let Ok(old) = HeaderValue::from_str(old)
    {
        parts.headers.insert(ORIGINAL_HOST, old);
    }
    match cluster.plan.protocol {
        Protocol::Http1 => {
            let host = forward.host_rewrite.clone().or_else(|| {
                let authority = parts.uri.authority()?;
                HeaderValue::from_str(authority.as_str()).ok()
            });
            if let Some(host) = host {
                parts.headers.insert(header::HOST, host);
            }
            if rewritten.is_some() || parts.uri.authority().is_some() {
                let target = rewritten.or_else(|| parts.uri.path_and_query().cloned());
                parts.uri = target.map_or_else(|| Uri::from_static("/"), Uri::from);
            }
            parts.version = Version::HTTP_11;
        }
        Protocol::Http2 => {
            let host = parts.headers.remove(header::HOST);
            let host = forward.host_rewrite.as_ref().or(host.as_ref());
            let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
            let mut uri = std::mem::take(&mut parts.uri).into_parts();
            uri.authority = authority
                .or(uri.authority)
                .or_else(|| Authority::try_from(&*cluster.plan.name).ok());
            uri.scheme = Some(match scheme(parts, context) {
                "https" => http::uri::Scheme::HTTPS,
                _ => http::uri::Scheme::HTTP,
            });
            uri.path_and_query = rewritten
                .or(uri.path_and_query)
                .or_else(|| Some(PathAndQuery::from_static("/")));
            parts.uri = Uri::from_parts(uri).unwrap_or_default();
            parts.version = Version::HTTP_2;
            parts.headers.remove(header::CONNECTION);
            parts.headers.remove(header::UPGRADE);
        }
    }
}

/// RFC 9110 §8.6: methods that usually carry content say so when there is none.
pub(crate) fn say_empty(parts: &mut request::Parts) {
    let usually = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
    if usually && parts.version == Version::HTTP_11 {
        parts
            .headers
            .entry(header::CONTENT_LENGTH)
            .or_insert(HeaderValue::from_static("0"));
    }
}

fn scheme(parts: &request::Parts, context: &RequestContext) -> &'static str {
    match parts.extensions.get::<Scheme>() {
        Some(Scheme::Https) => "https",
        Some(Scheme::Http) => "http",
        None if context.connection.tls.is_some() => "https",
        None => "http",
    }
}

pub(crate) fn millis(millis: u128) -> HeaderValue {
    const SMALL: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let small = usize::try_from(millis).ok().and_then(|i| SMALL.get(i));
    match small {
        Some(text) => HeaderValue::from_static(text),
        None => HeaderValue::from(u64::try_from(millis).unwrap_or(u64::MAX)),
    }
}

fn direct_response(
    direct: &DirectResponse,
    context: &RequestContext,
    form: ReplyForm,
) -> Response<ReplyBody> {
    let reply = LocalReply::new(direct.status, "direct_response");
    local(context, form, reply.with_body(direct.body.clone()))
}

fn redirect(
    to: &Redirect,
    entry: &RouteEntry,
    parts: &request::Parts,
    context: &RequestContext,
    form: ReplyForm,
) -> Response<ReplyBody> {
    let mut reply = LocalReply::new(to.status, "direct_response");
    match to.location(&entry.matches, parts, scheme(parts, context)) {
        Some(location) => {
            reply.headers.insert(header::LOCATION, location);
        }
        None => reply.status = StatusCode::BAD_REQUEST,
    }
    local(context, form, reply)
}

fn failed(error: &UpstreamError, context: &RequestContext, form: ReplyForm) -> Response<ReplyBody> {
    tracing::debug!(%error, "no answer from the upstream");
    use ResponseFlag::{
        DownstreamProtocolError, UpstreamConnectionFailure, UpstreamConnectionTermination,
    };
    let (status, flag, details, body) = match error {
        UpstreamError::Connect(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            UpstreamConnectionFailure,
            "upstream_reset_before_response_started{remote_connection_failure}",
            "the upstream cannot be reached",
        ),
        UpstreamError::ConnectTimeout(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            UpstreamConnectionFailure,
            "upstream_reset_before_response_started{connection_timeout}",
            "the upstream cannot be reached",
        ),
        UpstreamError::Reset(error) if error.is_parse() => (
            StatusCode::BAD_GATEWAY,
            UpstreamConnectionTermination,
            "upstream_reset_before_response_started{protocol_error}",
            "the upstream broke the protocol",
        ),
        // The request ended the exchange: its body broke off or is not what it says.
        UpstreamError::Reset(error) if error.is_user() => (
            StatusCode::BAD_REQUEST,
            DownstreamProtocolError,
            "http1.codec_error",
            "the request body is malformed",
        ),
        UpstreamError::Reset(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            UpstreamConnectionTermination,
            "upstream_reset_before_response_started{connection_termination}",
            "the upstream ended the connection before it answered",
        ),
    };
    context.add_flag(flag);
    local(
        context,
        form,
        LocalReply::new(status, details).with_body(body),
    )
}

fn unavailable(
    context: &RequestContext,
    form: ReplyForm,
    details: &'static str,
    body: &'static str,
) -> Response<ReplyBody> {
    let reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, details);
    local(context, form, reply.with_body(body))
}

/// The answer to an upgrade that the route does not let through.
fn refuse_upgrade(context: &RequestContext, parts: &request::Parts) -> Response<ReplyBody> {
    let form = ReplyForm {
        grpc: false,
        ..ReplyForm::of(&parts.method, &parts.headers)
    };
    context.add_flag(ResponseFlag::DownstreamProtocolError);
    let refused = hygiene::UPGRADE_REFUSED;
    let reply = LocalReply::new(refused.status, refused.details);
    let mut response = local(context, form, reply);
    // What the client sent behind its request may not be HTTP.
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// A reply of our own, its details noted.
fn local(context: &RequestContext, form: ReplyForm, reply: LocalReply) -> Response<ReplyBody> {
    context.set_details(reply.details.clone());
    reply.into_response(form).map(ReplyBody::Local)
}

/// Between two policies: picks the route again when the one outside changed what it depends on,
/// so that those inside go by the settings of the new one.
pub(crate) struct Rerouted {
    pub(crate) router: Arc<Router>,
    pub(crate) inner: Stack,
}

impl Handle for Rerouted {
    fn call(&self, mut request: Request<Body>) -> PolicyFuture {
        let context = request.extensions().get::<Arc<RequestContext>>();
        if let Some(context) = context.filter(|context| context.is_route_cleared()) {
            let context = context.clone();
            let (mut parts, body) = request.into_parts();
            let entry = self.router.pick(&parts, &context);
            parts.extensions.insert(Picked(entry));
            request = Request::from_parts(parts, body);
        }
        self.inner.handle(request)
    }
}

/// The router as the innermost service of a policy stack.
#[derive(Clone)]
pub(crate) struct Innermost {
    pub(crate) router: Arc<Router>,
    pub(crate) listener: Arc<ListenerPlan>,
}

impl Innermost {
    pub(crate) fn stack(self) -> Stack {
        Stack::new(self)
    }
}

impl Service<Request<Body>> for Innermost {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = PolicyFuture;

    fn poll_ready(&mut self, _cx: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> PolicyFuture {
        let Self { router, listener } = self.clone();
        let context = RequestContext::of(&mut request);
        let (mut parts, body) = request.into_parts();
        router.charge(&context);
        Box::pin(async move {
            let entry = match parts.extensions.remove::<Picked>() {
                Some(Picked(entry)) if !context.is_route_cleared() => entry,
                _ => router.pick(&parts, &context),
            };
            let received = Box::new(Received { parts, body });
            let mut answer = pin!(async {
                // A policy may have led the request to a route with other rules.
                match &entry {
                    Some(entry)
                        if !entry.lets_upgrade(&received.parts.headers, &listener.upgrades) =>
                    {
                        refuse_upgrade(&context, &received.parts)
                    }
                    _ => {
                        let context = context.clone();
                        router.answer(&listener, entry, context, received).await
                    }
                }
            });
            let response = poll_fn(|cx| {
                // A layer answers: at once, or while the upstream is waited for.
                if let Some(reply) = context.take_reply() {
                    return Poll::Ready(reply);
                }
                answer.as_mut().poll(cx).map(|r| r.map(Body::new))
            })
            .await;
            context.begin_response();
            Ok(response)
        })
    }
}
