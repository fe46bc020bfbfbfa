//! The innermost service: does what the route says. Behind all policies.

mod head;
mod innermost;
mod late;
mod replies;

use std::{pin::pin, sync::Arc};

use attache_filter::{
    Body, LocalReply, RequestContext,
    context::{ResponseFlag, UpstreamAttempt, UpstreamConnection},
    reply::ReplyForm,
    tap::tapped,
};
use attache_service::trace::SpanId;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
    request,
};
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

pub(crate) use head::{EXPECTED_TIMEOUT, fit, millis, say_empty};
pub(crate) use innermost::{Innermost, Rerouted};
pub(crate) use late::Late;

use crate::{
    attempts::{Attempts, Sent},
    body::ReplyBody,
    hygiene,
    internal_redirect::Restart,
    mirror::Mirrors,
    plan::ListenerPlan,
    route::{Action, Changes, Forward, RouteEntry, RouteTable},
    tunnel::{self, Side},
    upstream::{
        Cluster, Ended, Endpoint, Lifetime, LifetimeOf, Limits, UploadBody, UpstreamBody,
        UpstreamError, Waited, exchange, within,
    },
};
use head::prepare;
use late::Changed;
use replies::{
    direct_response, failed, lasted, local, overflowed, redirect, silent, timed_out, unavailable,
};

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
            body = tapped(body, tap, |tap| &tap.sent);
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
                let details = match timeout {
                    Waited::AttemptTimeout => "upstream_per_try_timeout",
                    Waited::AttemptIdle => "upstream_per_try_idle_timeout",
                    _ => "response_timeout",
                };
                return timed_out(details, context, form);
            }
            Waited::Lifetime(of) => {
                cluster.stats.failed.inc();
                let complete = upload.is_none_or(|upload| upload.done().is_some());
                return lasted(of, complete, context, form);
            }
            Waited::Idle => {
                let complete = upload.is_none_or(|upload| upload.done().is_some());
                return silent(complete, context, form);
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
                    let body = tapped(Body::new(body), tap, |tap| &tap.answered);
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
    let made = match ended {
        Waited::Done(Ok((_, lease))) => endpoint.own.made(lease),
        _ => None,
    };
    let now = context.started.elapsed();
    let waited = match ended {
        Waited::Done(Err(UpstreamError::Connect(_) | UpstreamError::ConnectTimeout(_))) => {
            Some(begun.elapsed())
        }
        _ => made.map(|made| made.ready.saturating_duration_since(begun)),
    };
    context.record_attempt(UpstreamAttempt {
        endpoint: endpoint.endpoint.to_string(),
        begun: begun.into_std().saturating_duration_since(context.started),
        answered: status.map(|_| now),
        ended: now,
        status,
        span,
        waited,
        connection: made.map(|made| UpstreamConnection {
            begun: made.begun.into_std(),
            connected: made.connected.into_std(),
            secured: made.secured.map(Instant::into_std),
        }),
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

/// Keeps the head of a request for who asks for it.
fn remember(remembered: Option<&mut Option<Box<request::Parts>>>, parts: &mut request::Parts) {
    if let Some(remembered) = remembered {
        *remembered = Some(Box::new(parts.clone()));
    }
}
