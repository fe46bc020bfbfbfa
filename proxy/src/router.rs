//! The innermost service: does what the route says. Behind all policies.

use std::{convert::Infallible, future::poll_fn, pin::pin, sync::Arc, task::Poll};

use attache_filter::{
    Body, LocalReply, RequestContext,
    attributes::Facts,
    context::{ResponseFlag, UpstreamAttempt},
    head::{self, Scheme},
    reply::ReplyForm,
    tap::Tapped,
};
use attache_service::{cluster::breakers::Overflow, trace::SpanId};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header, request,
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
    mirror::Mirrors,
    plan::{ListenerPlan, Protocol},
    route::{
        Action, Changes, DirectResponse, Forward, HostRewrite, Redirect, RouteEntry, RouteTable,
        append_forwarded_host,
    },
    tunnel::{self, Side},
    upstream::{
        Cluster, Ended, Endpoint, Lifetime, LifetimeOf, Limits, UploadBody, UpstreamBody,
        UpstreamError, Waited, exchange, within,
    },
};

pub(crate) const EXPECTED_TIMEOUT: HeaderName =
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// Routes and upstreams of one worker.
pub(crate) struct Router {
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) clusters: Vec<Arc<Cluster>>,
    pub(crate) mirrors: Mirrors,
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

/// The changes of the route have been made; an extension of the response.
#[derive(Clone, Copy)]
struct Changed;

/// What has to be known to make the changes of a route to an answer of its policies.
pub(crate) struct Late {
    entry: Arc<RouteEntry>,
    asked: Option<Box<request::Parts>>,
}

impl Late {
    /// Nothing where the route changes no responses.
    pub(crate) fn of(entry: Option<&Arc<RouteEntry>>, parts: &request::Parts) -> Option<Self> {
        let entry = entry?;
        let changes = entry.changes.as_deref()?;
        let asked = || Box::new(parts.clone());
        (!changes.response.is_empty()).then(|| Self {
            entry: entry.clone(),
            asked: changes.remembers_request().then(asked),
        })
    }

    /// Makes the changes, unless the router has made them, the response came from an upstream or
    /// the request has another route by then.
    pub(crate) fn change(&self, response: &mut Response<Body>, context: &RequestContext) {
        let made = response.extensions().get::<Changed>().is_some();
        let upstream = context.details().is_none_or(|at| at == "via_upstream");
        let route = context.route();
        let same = route.is_some_and(|route| Arc::ptr_eq(&route, &self.entry.route));
        if made || upstream || !same {
            return;
        }
        if let Some(changes) = &self.entry.changes {
            let (mut parts, body) = std::mem::take(response).into_parts();
            changes.response(&mut parts, self.asked.as_deref(), context);
            *response = Response::from_parts(parts, body);
        }
    }
}

impl Router {
    /// Picks the route and tells the context.
    pub(crate) fn pick(
        &self,
        parts: &request::Parts,
        context: &RequestContext,
    ) -> Option<Arc<RouteEntry>> {
        let entry = self.routes.pick(parts, context.id).cloned();
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
        let Some(entry) = entry else {
            let form = ReplyForm::of(&received.parts.method, &received.parts.headers);
            context.add_flag(ResponseFlag::NoRouteFound);
            return local(
                &context,
                form,
                LocalReply::new(StatusCode::NOT_FOUND, "route_not_found"),
            );
        };
        match entry.changes.as_deref() {
            Some(changes) if !changes.response.is_empty() => {
                let act = self.act_and_change(listener, &entry, changes, &context, received);
                // Boxed: others need not carry its state.
                Box::pin(act).await
            }
            _ => self.act(listener, &entry, &context, received, None).await,
        }
    }

    /// Answers a request, and makes the changes of its route to the response.
    async fn act_and_change(
        &self,
        listener: &ListenerPlan,
        entry: &RouteEntry,
        changes: &Changes,
        context: &Arc<RequestContext>,
        received: Box<Received>,
    ) -> Response<ReplyBody> {
        let mut sent = None;
        let remembered = changes.remembers_request().then_some(&mut sent);
        let response = self
            .act(listener, entry, context, received, remembered)
            .await;
        let (mut parts, body) = response.into_parts();
        changes.response(&mut parts, sent.as_deref(), context);
        parts.extensions.insert(Changed);
        Response::from_parts(parts, body)
    }

    /// Does what the route says. `remembered` gets the head of the request as the upstream sees
    /// it.
    async fn act(
        &self,
        listener: &ListenerPlan,
        entry: &RouteEntry,
        context: &Arc<RequestContext>,
        mut received: Box<Received>,
        remembered: Option<&mut Option<Box<request::Parts>>>,
    ) -> Response<ReplyBody> {
        let form = ReplyForm::of(&received.parts.method, &received.parts.headers);
        match &entry.action {
            Action::Forward(forward) => {
                self.forward(
                    entry, forward, context, form, received, listener, remembered,
                )
                .await
            }
            Action::Direct(direct) => {
                context.keep_head(&received.parts);
                let response = direct_response(direct, entry, &received.parts, context, form);
                remember(remembered, &mut received.parts);
                response
            }
            Action::Redirect(to) => {
                context.keep_head(&received.parts);
                let response = redirect(to, entry, &received.parts, context, form);
                remember(remembered, &mut received.parts);
                response
            }
            Action::NoCluster(status) => {
                context.add_flag(ResponseFlag::NoClusterFound);
                local(context, form, LocalReply::new(*status, "cluster_not_found"))
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    async fn forward(
        &self,
        entry: &RouteEntry,
        forward: &Forward,
        context: &Arc<RequestContext>,
        form: ReplyForm,
        mut received: Box<Received>,
        listener: &ListenerPlan,
        remembered: Option<&mut Option<Box<request::Parts>>>,
    ) -> Response<ReplyBody> {
        let hashed = forward.hashed(&received.parts, context);
        let picked = self.clusters.get(forward.cluster).and_then(|cluster| {
            let wanted = cluster.wanted(hashed.key, &received.parts.headers, context);
            let endpoint = cluster.pick(&wanted, 0)?;
            Some((cluster, endpoint, wanted))
        });
        let Some((cluster, mut endpoint, wanted)) = picked else {
            context.add_flag(ResponseFlag::NoHealthyUpstream);
            return unavailable(
                context,
                form,
                "no_healthy_upstream",
                "no upstream is available",
            );
        };
        let mut permit = match cluster.admit() {
            Ok(permit) => permit,
            Err(overflow) => return overflowed(overflow, context, form),
        };
        let upgrading = received.parts.headers.contains_key(header::UPGRADE);
        let restart = received.parts.extensions.get::<Restart>();
        let started = restart.map_or(Instant::from_std(context.started), |restart| restart.since);
        let whole = lifetime(listener, forward, &mut received.parts.headers, started);
        if received.parts.method == Method::CONNECT {
            note_upstream(&endpoint, context);
            let held = tunnel::Held::new(cluster.lifetime(whole, Instant::now()), permit);
            // Boxed: others need not carry its state.
            let connecting = connect(cluster, endpoint, forward, context, form, (received, held));
            return Box::pin(connecting).await;
        }
        let internal = forward.internal_redirect.as_deref().filter(|_| !upgrading);
        let original = internal.map(|_| Box::new(received.parts.clone()));
        let to = (&**cluster, &endpoint);
        prepare(&mut received.parts, entry, forward, to, context);
        context.keep_head(&received.parts);
        remember(remembered, &mut received.parts);
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
            attempt_idle: None,
            lifetime: match cluster.plan.max_stream_duration {
                None => whole,
                Some(_) => cluster.lifetime(whole, Instant::now()),
            },
        };
        if let Some(tap) = &context.tap {
            body = Tapped::wrap(body, tap, |tap| &tap.sent);
        }
        if !forward.mirrors.is_empty() && !upgrading {
            let mirrors = &self.mirrors;
            body = mirrors.copy(forward, &self.clusters, &parts, body, context);
        }
        let mut downstream = None;
        let begun = Instant::now();
        let repeats = forward.retry.is_some() || forward.internal_redirect.is_some();
        let sent = if repeats && !upgrading {
            let attempts = Attempts {
                cluster,
                wanted,
                retry: forward.retry.as_deref(),
                buffer_limit: entry.route.buffer_limit.unwrap_or(listener.buffer_limit),
                context,
            };
            // Boxed: others need not carry its state.
            Box::pin(attempts.send(endpoint, parts, body, limits)).await
        } else {
            let (body, upload) = UploadBody::new(body);
            if upload.is_none() {
                say_empty(&mut parts);
            }
            let span = propagate(context, &mut parts);
            let mut request = Request::from_parts(parts, body);
            downstream = upgrading.then(|| hyper::upgrade::on(&mut request));
            let ended = {
                let exchange = pin!(exchange(&endpoint.own, &mut request));
                within(exchange, limits, upload.as_deref()).await
            };
            cluster.note(&mut endpoint, &ended);
            note_attempt(context, &endpoint, begun, span, &ended);
            Sent {
                endpoint,
                begun,
                ended,
                upload,
                replay: None,
            }
        };
        let Sent {
            endpoint,
            begun,
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
                .filter(|next| self.routes.pick(&next.parts, context.id).is_some());
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
        note_upstream(&endpoint, context);
        let (mut response, lease) = match ended {
            Waited::Done(Ok(answer)) => answer,
            Waited::Done(Err(error)) => {
                cluster.stats.failed.inc();
                return failed(&error, context, form);
            }
            timeout @ (Waited::Timeout | Waited::AttemptTimeout | Waited::AttemptIdle) => {
                cluster.stats.failed.inc();
                context.add_flag(ResponseFlag::UpstreamRequestTimeout);
                let details = match timeout {
                    Waited::AttemptTimeout => "upstream_per_try_timeout",
                    Waited::AttemptIdle => "upstream_per_try_idle_timeout",
                    _ => "response_timeout",
                };
                let reply = LocalReply::new(StatusCode::GATEWAY_TIMEOUT, details);
                return local(
                    context,
                    form,
                    reply.with_body("the upstream did not answer in time"),
                );
            }
            Waited::Lifetime(of) => {
                cluster.stats.failed.inc();
                let complete = upload.is_none_or(|upload| upload.done().is_some());
                return lasted(of, complete, context, form);
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
        let now = Instant::now();
        let after = now.saturating_duration_since(started);
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let mut tunnel = None;
        if switched {
            let upstream = Side::Switching(hyper::upgrade::on(&mut response));
            match (tunnelled, downstream) {
                (Some(body), _) => {
                    let held = tunnel::Held::new(limits.lifetime, permit.take());
                    tunnel = Some(tunnel::open(upstream, body, forward.idle_timeout, held));
                }
                (None, Some(downstream)) => {
                    let downstream = Side::Switching(downstream);
                    let held = tunnel::Held::new(limits.lifetime, permit.take());
                    tokio::spawn(held.hold(tunnel::run(
                        downstream,
                        upstream,
                        forward.idle_timeout,
                    )));
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
        context.keep_upstream_head(response.status(), response.headers());
        *response.version_mut() = Version::HTTP_11;
        let headers = response.headers_mut();
        hygiene::clean_response(headers, switched);
        if let Some(cookie) = hashed.cookie {
            headers.append(header::SET_COOKIE, *cookie);
        }
        if !switched {
            headers.insert(SERVICE_TIME, millis(after.as_millis()));
        }
        if upgrading && !switched {
            // What the client sent behind its request may not be HTTP.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.notes_upstream {
            response.extensions_mut().insert(Answered {
                endpoint: endpoint.endpoint.to_string(),
                after,
            });
        }
        cluster.stats.count(response.status());
        let took = now.saturating_duration_since(begun);
        cluster.stats.duration.observe(took);
        if let Some(tunnel) = tunnel {
            return response.map(|_| ReplyBody::Local(tunnel));
        }
        response.map(|incoming| {
            let body = UpstreamBody::new(
                incoming,
                endpoint,
                lease,
                permit,
                upload,
                &limits,
                context.clone(),
            );
            match &context.tap {
                None => ReplyBody::Upstream(body),
                Some(tap) => {
                    let body = Tapped::wrap(Body::new(body), tap, |tap| &tap.answered);
                    ReplyBody::Local(body)
                }
            }
        })
    }
}

/// Tells the upstream which trace its request belongs to; the span that stands for it.
pub(crate) fn propagate(context: &RequestContext, parts: &mut request::Parts) -> Option<SpanId> {
    let trace = context.trace.as_ref()?;
    trace.propagate(&mut parts.headers, true)
}

/// Notes an attempt that is over, if anybody wants to know.
pub(crate) fn note_attempt(
    context: &RequestContext,
    endpoint: &Endpoint,
    begun: Instant,
    span: Option<SpanId>,
    ended: &Ended,
) {
    if !context.records_calls() {
        return;
    }
    let status = match ended {
        Waited::Done(Ok((response, _))) => Some(response.status()),
        _ => None,
    };
    let now = context.started.elapsed();
    context.record_attempt(UpstreamAttempt {
        endpoint: endpoint.endpoint.to_string(),
        begun: begun.into_std().saturating_duration_since(context.started),
        answered: status.map(|_| now),
        ended: now,
        status,
        span,
    });
}

/// Tells the context where the request went.
fn note_upstream(endpoint: &Endpoint, context: &RequestContext) {
    if let Some(address) = endpoint.endpoint.address() {
        context.set_upstream(address);
    }
}

/// Ends a `CONNECT` here: what comes through the tunnel goes to a connection of its own.
async fn connect(
    cluster: &Cluster,
    endpoint: Endpoint,
    forward: &Forward,
    context: &RequestContext,
    form: ReplyForm,
    (received, held): (Box<Received>, tunnel::Held),
) -> Response<ReplyBody> {
    let Received { mut parts, body } = *received;
    let in_body = context.tunnels_in_body();
    let downstream = parts.extensions.remove::<OnUpgrade>();
    if !forward.connect || !in_body && downstream.is_none() {
        let reply = LocalReply::new(StatusCode::FORBIDDEN, "connect_not_allowed");
        return local(context, form, reply);
    }
    let io = match endpoint.own.connect_plain().await {
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
            tokio::spawn(held.hold(tunnel::run(downstream, io, forward.idle_timeout)));
            Body::empty()
        }
        None => tunnel::open(io, body, forward.idle_timeout, held),
    };
    cluster.stats.count(StatusCode::OK);
    Response::new(ReplyBody::Local(tunnel))
}

/// When the stream of a request that began at `started` ends, by its route or its listener.
fn lifetime(
    listener: &ListenerPlan,
    forward: &Forward,
    headers: &mut HeaderMap,
    started: Instant,
) -> Option<Lifetime> {
    let inherited = listener.max_stream_duration;
    let bound = match &forward.stream_duration {
        None => inherited,
        Some(duration) => duration.of(headers, inherited),
    };
    Some(Lifetime {
        until: started.checked_add(bound?)?,
        of: LifetimeOf::Downstream,
    })
}

/// The answer to a request for which too much of its cluster is in use.
fn overflowed(
    overflow: Overflow,
    context: &RequestContext,
    form: ReplyForm,
) -> Response<ReplyBody> {
    tracing::debug!(%overflow, "the request does not reach its upstream");
    context.add_flag(ResponseFlag::UpstreamOverflow);
    let details = "upstream_reset_before_response_started{overflow}";
    let mut response = unavailable(context, form, details, "the upstream is overloaded");
    let yes = HeaderValue::from_static("true");
    response.headers_mut().insert(OVERLOADED, yes);
    response
}

/// The answer to a request whose stream has lasted as long as it may; `complete` when the
/// request is.
fn lasted(
    of: LifetimeOf,
    complete: bool,
    context: &RequestContext,
    form: ReplyForm,
) -> Response<ReplyBody> {
    if let Some(flag) = of.flag() {
        context.add_flag(flag);
    }
    let status = match complete {
        true => StatusCode::GATEWAY_TIMEOUT,
        false => StatusCode::REQUEST_TIMEOUT,
    };
    let mut reply = LocalReply::new(status, of.details());
    reply.grpc_status = Some(tonic::Code::DeadlineExceeded as u32);
    let body = "the stream has lasted as long as it may";
    local(context, form, reply.with_body(body))
}

/// Keeps the head of a request for who asks for it.
fn remember(remembered: Option<&mut Option<Box<request::Parts>>>, parts: &mut request::Parts) {
    if let Some(remembered) = remembered {
        *remembered = Some(Box::new(parts.clone()));
    }
}

/// Turns a request into what the upstream shall see.
fn prepare(
    parts: &mut request::Parts,
    entry: &RouteEntry,
    forward: &Forward,
    (cluster, endpoint): (&Cluster, &Endpoint),
    context: &RequestContext,
) {
    if let Some(expected) = forward.expected_ms() {
        parts.headers.insert(EXPECTED_TIMEOUT, expected.clone());
    }
    if let Some(changes) = &entry.changes {
        changes.request(parts, context);
    }
    let host = forward
        .host_rewrite
        .as_ref()
        .and_then(|rewrite| rewrite.apply(parts, context, endpoint.endpoint.host_name()));
    let silent = matches!(forward.host_rewrite, Some(HostRewrite::OfCluster(_)));
    if host.is_some() && !silent {
        if forward.append_forwarded_host {
            append_forwarded_host(parts);
        }
        if let Some(old) = head::authority(parts)
            && let Ok(old) = HeaderValue::from_str(old)
        {
            parts.headers.insert(ORIGINAL_HOST, old);
        }
    }
    let path = forward
        .path_rewrite
        .as_ref()
        .and_then(|rewrite| rewrite.apply(&entry.matches, parts, context));
    if path.is_some()
        && let Some(old) = parts.uri.path_and_query()
        && let Ok(old) = HeaderValue::from_str(old.as_str())
    {
        parts.headers.insert(ORIGINAL_PATH, old);
    }
    fit(parts, cluster, context, host, path);
}

/// Puts a request into the form of the cluster's protocol, with another host and path where they
/// are given.
pub(crate) fn fit(
    parts: &mut request::Parts,
    cluster: &Cluster,
    context: &RequestContext,
    host: Option<HeaderValue>,
    path: Option<PathAndQuery>,
) {
    match cluster.plan.protocol {
        Protocol::Http1 => {
            let host = host.or_else(|| {
                let authority = parts.uri.authority()?;
                HeaderValue::from_str(authority.as_str()).ok()
            });
            if let Some(host) = host {
                parts.headers.insert(header::HOST, host);
            }
            if path.is_some() || parts.uri.authority().is_some() {
                let target = path.or_else(|| parts.uri.path_and_query().cloned());
                parts.uri = target.map_or_else(|| Uri::from_static("/"), Uri::from);
            }
            parts.version = Version::HTTP_11;
        }
        Protocol::Http2 => {
            let old = parts.headers.remove(header::HOST);
            let host = host.or(old);
            let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
            let mut uri = std::mem::take(&mut parts.uri).into_parts();
            uri.authority = authority
                .or(uri.authority)
                .or_else(|| Authority::try_from(&*cluster.plan.name).ok());
            uri.scheme = Some(match scheme(parts, context) {
                "https" => http::uri::Scheme::HTTPS,
                _ => http::uri::Scheme::HTTP,
            });
            uri.path_and_query = path
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
    entry: &RouteEntry,
    parts: &request::Parts,
    context: &RequestContext,
    form: ReplyForm,
) -> Response<ReplyBody> {
    let mut reply = LocalReply::new(direct.status, "direct_response");
    reply.body = direct.body.clone();
    // As Envoy: such statuses say where.
    if direct.status == StatusCode::CREATED || direct.status.is_redirection() {
        let here = Redirect::default();
        let location = here.location(&entry.matches, parts, scheme(parts, context), context);
        reply
            .headers
            .extend(location.map(|at| (header::LOCATION, at)));
    }
    if let Some(format) = &direct.format {
        // There is no response yet.
        let facts = Facts {
            context,
            request: Some(parts),
            response: None,
        };
        reply.body = format.around(&direct.body, &facts.into());
        let content_type = format.content_type.clone();
        reply.headers.insert(header::CONTENT_TYPE, content_type);
    }
    local(context, form, reply)
}

fn redirect(
    to: &Redirect,
    entry: &RouteEntry,
    parts: &request::Parts,
    context: &RequestContext,
    form: ReplyForm,
) -> Response<ReplyBody> {
    let mut reply = LocalReply::new(to.status, "direct_response");
    match to.location(&entry.matches, parts, scheme(parts, context), context) {
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
        UpstreamError::Overflow(overflow) => return overflowed(*overflow, context, form),
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
        if context.is_answered() {
            context.keep_head(&parts);
        }
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
