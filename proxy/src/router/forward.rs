//! The forwarding of a request to an upstream.

use std::{pin::pin, sync::Arc, time::Duration};

use attache_filter::{Body, RequestContext, context::ResponseFlag, reply::ReplyForm, tap::tapped};
use attache_service::{cluster::breakers::Permit, trace::SpanId};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
    request,
};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{
    Received, Router,
    attempt::{note_attempt, note_upstream, propagate, timed},
    connect::Connecting,
    head::{millis, prepare, say_empty},
    remember,
    replies::{failed, lasted, overflowed, silent, timed_out, unavailable},
};
use crate::{
    attempts::{Attempts, Sent},
    body::ReplyBody,
    hygiene,
    internal_redirect::{InternalRedirect, Restart},
    plan::ListenerPlan,
    route::{Forward, RouteEntry},
    tunnel::{self, Side},
    upstream::{
        Cluster, Endpoint, Lease, Lifetime, LifetimeOf, Limits, Upload, UploadBody, UpstreamBody,
        Waited, exchange, within,
    },
};

const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

/// Which endpoint answered and how fast, for the access log; an extension of the response.
#[derive(Debug, Clone)]
pub(crate) struct Answered {
    pub(crate) endpoint: String,
    pub(crate) after: Duration,
}

/// What a request is forwarded by: the same for all of its attempts.
pub(super) struct Forwarding<'r> {
    pub(super) listener: &'r ListenerPlan,
    pub(super) entry: &'r RouteEntry,
    pub(super) forward: &'r Forward,
    pub(super) context: &'r Arc<RequestContext>,
    pub(super) form: ReplyForm,
}

/// What is kept for the answer while a request is with its upstream.
struct Kept<'r> {
    cluster: &'r Arc<Cluster>,
    /// Where the cluster limits requests.
    permit: Option<Permit>,
    /// Says which endpoint the client's next request goes to.
    cookie: Option<Box<HeaderValue>>,
    limits: Limits,
    /// What the client sends through the tunnel that it asks for.
    through: Option<Body>,
}

impl Router {
    /// Forwards a request. `remembered` gets its head as the upstream sees it.
    pub(super) async fn forward(
        &self,
        by: &Forwarding<'_>,
        mut received: Box<Received>,
        remembered: Option<&mut Option<Box<request::Parts>>>,
    ) -> Response<ReplyBody> {
        let hashed = by.forward.hashed(&received.parts, by.context);
        let picked = self.clusters.get(by.forward.cluster).and_then(|cluster| {
            let wanted = cluster.wanted(hashed.key, &received.parts.headers, by.context);
            let endpoint = cluster.pick(&wanted, 0)?;
            Some((cluster, endpoint, wanted))
        });
        let Some((cluster, mut endpoint, wanted)) = picked else {
            by.context.add_flag(ResponseFlag::NoHealthyUpstream);
            let details = "no_healthy_upstream";
            return unavailable(by.context, by.form, details, "no upstream is available");
        };
        let permit = match cluster.admit() {
            Ok(permit) => permit,
            Err(overflow) => return overflowed(overflow, by.context, by.form),
        };
        let limits = by.limits(cluster, &mut received.parts);
        if received.parts.method == Method::CONNECT {
            let connecting = Connecting {
                received,
                endpoint,
                permit,
                limits,
            };
            // Boxed: others need not carry its state.
            return Box::pin(self.connect(by, cluster, connecting)).await;
        }
        let upgrading = received.parts.headers.contains_key(header::UPGRADE);
        let redirects = by.redirects(upgrading);
        let original = redirects.map(|_| Box::new(received.parts.clone()));
        let through = self.prepare(by, (cluster, &endpoint), &mut received, remembered);
        let kept = Kept {
            cluster,
            permit,
            cookie: hashed.cookie,
            limits,
            through,
        };
        let sent = if by.may_repeat() && !upgrading {
            let attempts = Attempts {
                cluster,
                wanted,
                retry: by.forward.retry.as_deref(),
                buffer_limit: by.buffer_limit(),
                context: by.context,
            };
            let Received { parts, body } = *received;
            // Boxed: others need not carry its state.
            Box::pin(attempts.send(endpoint, parts, body, kept.limits)).await
        } else {
            let begun = Instant::now();
            let (mut request, upload, span) = by.request(received);
            let ended = {
                let exchange = pin!(exchange(&endpoint.own, &mut request));
                within(exchange, kept.limits, upload.as_deref()).await
            };
            cluster.note(&mut endpoint, &ended);
            note_attempt(by.context, &endpoint, begun, span, &ended);
            Sent {
                endpoint,
                begun,
                ended,
                upload,
                replay: None,
            }
        };
        match self.answered(by, redirects.zip(original), kept, sent) {
            Some(response) => response,
            // It goes elsewhere: who is told drops this.
            None => std::future::pending().await,
        }
    }

    /// Makes of a request what its upstream shall see. Gives what the client sends through the
    /// tunnel that it asks for.
    fn prepare(
        &self,
        by: &Forwarding<'_>,
        to: (&Cluster, &Endpoint),
        received: &mut Received,
        remembered: Option<&mut Option<Box<request::Parts>>>,
    ) -> Option<Body> {
        let Received { parts, body } = received;
        let upgrading = parts.headers.contains_key(header::UPGRADE);
        prepare(parts, by.entry, by.forward, to, by.context);
        by.context.keep_head(parts);
        remember(remembered, parts);
        let mut through = None;
        if upgrading || by.context.tunnels_in_body() {
            through = tunnel::sent(&mut parts.extensions, body, by.context);
        }
        if let Some(tap) = &by.context.tap {
            *body = tapped(std::mem::take(body), tap, |tap| &tap.sent);
        }
        if !by.forward.mirrors.is_empty() && !upgrading {
            let whole = std::mem::take(body);
            let mirrors = &self.mirrors;
            *body = mirrors.copy(by.forward, &self.clusters, parts, whole, by.context);
        }
        // A policy may have thought better of it.
        through.filter(|_| upgrading)
    }

    /// The request that follows where the upstream redirects to, if that is followed here.
    fn redirected(
        &self,
        by: &Forwarding<'_>,
        (policy, original): (&InternalRedirect, Box<request::Parts>),
        cluster: &Cluster,
        sent: &Sent,
    ) -> Option<(Restart, Box<Received>)> {
        let Waited::Done(Ok((response, _))) = &sent.ended else {
            return None;
        };
        let status = response.status();
        let replay = sent.replay.as_ref()?;
        if !policy.statuses.contains(&status) {
            return None;
        }
        let restart = original.extensions.get::<Restart>().cloned();
        let next = policy
            .follow(*original, replay, status, response.headers())
            .filter(|next| self.routes.pick(&next.parts, by.context.id).is_some());
        let Some(followed) = restart.zip(next) else {
            cluster.stats.redirects_failed.inc();
            return None;
        };
        cluster.stats.count(status);
        cluster.stats.redirects_followed.inc();
        Some(followed)
    }

    /// The answer to a request that was sent, or what stands in its place; nothing where it is
    /// sent elsewhere, as the upstream's answer is a redirect that is followed here.
    fn answered(
        &self,
        by: &Forwarding<'_>,
        redirects: Option<(&InternalRedirect, Box<request::Parts>)>,
        kept: Kept<'_>,
        sent: Sent,
    ) -> Option<Response<ReplyBody>> {
        let redirected =
            redirects.and_then(|redirects| self.redirected(by, redirects, kept.cluster, &sent));
        if let Some((restart, next)) = redirected {
            drop(sent);
            restart.with(next);
            return None;
        }
        let Sent {
            endpoint,
            begun,
            ended,
            upload,
            replay,
        } = sent;
        drop(replay);
        note_upstream(&endpoint, by.context);
        let (context, form) = (by.context, by.form);
        let complete = upload.as_ref().is_none_or(|upload| upload.done().is_some());
        let reply = match ended {
            Waited::Done(Ok(answer)) => {
                return Some(self.pass_on(by, kept, endpoint, begun, answer, upload));
            }
            Waited::Idle => return Some(silent(complete, context, form)),
            Waited::Lifetime(of) => lasted(of, complete, context, form),
            Waited::Done(Err(error)) => failed(&error, context, form),
            Waited::Timeout => timed_out("response_timeout", context, form),
            Waited::AttemptTimeout => timed_out("upstream_per_try_timeout", context, form),
            Waited::AttemptIdle => timed_out("upstream_per_try_idle_timeout", context, form),
        };
        kept.cluster.stats.failed.inc();
        Some(reply)
    }

    /// Passes on what the upstream answered.
    fn pass_on(
        &self,
        by: &Forwarding<'_>,
        kept: Kept<'_>,
        endpoint: Endpoint,
        begun: Instant,
        (mut response, lease): (Response<Incoming>, Lease),
        upload: Option<Arc<Upload>>,
    ) -> Response<ReplyBody> {
        let now = Instant::now();
        let after = now.saturating_duration_since(kept.limits.started);
        let upgrading = kept.through.is_some();
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        kept.cluster.stats.count(response.status());
        let took = now.saturating_duration_since(begun);
        kept.cluster.stats.duration.observe(took);
        if switched && !upgrading {
            by.context
                .add_flag(ResponseFlag::UpstreamConnectionTermination);
            let details = "upstream_reset_before_response_started{protocol_error}";
            let body = "the upstream broke the protocol";
            return unavailable(by.context, by.form, details, body);
        }
        by.context.set_details("via_upstream");
        by.context
            .keep_upstream_head(response.status(), response.headers());
        *response.version_mut() = Version::HTTP_11;
        let headers = response.headers_mut();
        hygiene::clean_response(headers, switched);
        if let Some(cookie) = kept.cookie {
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
        if let Some(through) = kept.through.filter(|_| switched) {
            let upstream = tunnel::Upstream {
                side: Side::Switching(hyper::upgrade::on(&mut response)),
                idle: kept.limits.idle,
                lifetime: kept.limits.lifetime,
                endpoint,
                lease: Some(lease),
                permit: kept.permit,
                context: by.context.clone(),
            };
            return response.map(|_| ReplyBody::Local(upstream.open(through)));
        }
        response.map(|incoming| {
            let body = UpstreamBody::new(
                incoming,
                endpoint,
                lease,
                kept.permit,
                upload,
                &kept.limits,
                by.context.clone(),
            );
            match &by.context.tap {
                None => ReplyBody::Upstream(body),
                Some(tap) => {
                    let body = tapped(Body::new(body), tap, |tap| &tap.answered);
                    ReplyBody::Local(body)
                }
            }
        })
    }
}

impl<'r> Forwarding<'r> {
    /// What bounds the exchange. What the request itself says of that is taken from it.
    fn limits(&self, cluster: &Cluster, parts: &mut request::Parts) -> Limits {
        let restart = parts.extensions.get::<Restart>();
        let started = Instant::from_std(self.context.started);
        let started = restart.map_or(started, |restart| restart.since);
        let whole = lifetime(self.listener, self.forward, &mut parts.headers, started);
        Limits {
            started,
            timeout: self.forward.timeout,
            idle: self.forward.idle_timeout,
            attempt: started,
            attempt_timeout: None,
            attempt_idle: None,
            lifetime: match cluster.plan.max_stream_duration {
                None => whole,
                Some(_) => cluster.lifetime(whole, Instant::now()),
            },
        }
    }

    /// The request as it is sent once; what to watch its body by, and the span that stands for it.
    fn request(
        &self,
        received: Box<Received>,
    ) -> (Request<UploadBody>, Option<Arc<Upload>>, Option<SpanId>) {
        let Received { mut parts, body } = *received;
        let (body, upload) = UploadBody::new(body, timed(self.context));
        if upload.is_none() {
            say_empty(&mut parts);
        }
        let span = propagate(self.context, &mut parts);
        (Request::from_parts(parts, body), upload, span)
    }

    /// Which redirects of the upstream are followed here.
    fn redirects(&self, upgrading: bool) -> Option<&'r InternalRedirect> {
        let policy = self.forward.internal_redirect.as_deref();
        policy.filter(|_| !upgrading)
    }

    /// Whether the request may be needed again.
    fn may_repeat(&self) -> bool {
        self.forward.retry.is_some() || self.forward.internal_redirect.is_some()
    }

    /// Bytes of the body that may be kept for that.
    fn buffer_limit(&self) -> usize {
        let own = self.entry.route.buffer_limit;
        own.unwrap_or(self.listener.buffer_limit)
    }
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
