//! One request from its arrival to its response: check, route, policies, upstream.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use attache_filter::{
    Body, ConnectionInfo, LocalReply, RequestContext, calls::Recording, context::ResponseFlag,
    head::Scheme, reply::ReplyForm, tap::tapped,
};
use http::{
    HeaderValue, Request, Response, StatusCode, Uri, Version, header, request, uri::PathAndQuery,
};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::{
    access_log::{AccessLogPlan, AccessLogs, Record},
    activity::Activity,
    body::{Active, ClientBody, ReplyBody, counted},
    connection::Counted,
    extended_connect,
    filters::Stack,
    hygiene::{self, Admitted, Peer, Tunnels},
    internal_redirect::Restart,
    live::Live,
    overload::{self, Gate},
    path::Normalized,
    plan::ListenerPlan,
    router::{Late, Picked, Received, Router},
    silence,
    stats::ListenerStats,
    tcp::TcpStats,
    trace::Tracing,
    tunnel, unread,
};

/// What a listener does with requests, in one worker, under one plan.
pub(crate) struct Edge {
    pub(crate) plan: Arc<ListenerPlan>,
    pub(crate) router: Arc<Router>,
    /// The policies around the router; nothing when the listener has none.
    pub(crate) stack: Option<Stack>,
    pub(crate) log: Option<AccessLogs>,
    /// What is noted of the requests.
    pub(crate) notes: Notes,
    pub(crate) tracing: Option<Tracing>,
    pub(crate) live: Live,
    pub(crate) gate: Gate,
    pub(crate) stats: ListenerStats,
    /// Counts of connections that are passed on.
    pub(crate) tcp_stats: Option<TcpStats>,
    pub(crate) everywhere: Arc<Everywhere>,
    /// Most connections of all listeners.
    pub(crate) max_everywhere: Option<usize>,
}

/// The connections of all listeners of the process.
#[derive(Debug, Default)]
pub(crate) struct Everywhere {
    connections: AtomicUsize,
}

impl Everywhere {
    /// Whether there is room for one more.
    pub(crate) fn enter(&self, limit: Option<usize>) -> bool {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let room = limit.is_none_or(|limit| before < limit);
        if !room {
            self.leave();
        }
        room
    }

    /// How many there are.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn leave(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is noted of the requests of a listener.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Notes {
    /// Of the calls of policies.
    pub(crate) recording: Recording,
    /// Their heads as they went on.
    pub(crate) heads: bool,
    /// Points in their time.
    pub(crate) times: bool,
}

impl Notes {
    /// What the logs of a listener ask for.
    pub(crate) fn of(listener: &ListenerPlan) -> Self {
        let logs = &listener.access_logs;
        Self {
            recording: match logs.is_empty() {
                true => Recording::Nothing,
                false => Recording::Calls,
            },
            heads: logs.iter().any(AccessLogPlan::reads_request),
            times: logs.iter().any(AccessLogPlan::reads_times),
        }
    }
}

/// The downstream connection that a request came in on. It counts until the last of its requests
/// is over, also where that is a tunnel, which outlives HTTP on the connection.
pub(crate) struct Downstream {
    pub(crate) info: Arc<ConnectionInfo>,
    pub(crate) peer: Peer,
    pub(crate) activity: Arc<Activity>,
    pub(crate) counted: Arc<Counted>,
}

impl Downstream {
    fn scheme(&self) -> Scheme {
        match self.peer.tls {
            true => Scheme::Https,
            false => Scheme::Http,
        }
    }
}

impl Edge {
    /// Answers one request.
    pub(crate) async fn serve(
        self: Arc<Self>,
        downstream: Arc<Downstream>,
        request: Request<Incoming>,
    ) -> Result<Response<ClientBody>, Infallible> {
        let (mut parts, body) = request.into_parts();
        let version = parts.version;
        let mut watched = self.live.begin(&parts);
        let mut active = Active::new(&downstream, version >= Version::HTTP_2);
        let form = extended_connect::Form::of(&mut parts);
        let version = parts.version;
        let mut context = RequestContext::new(downstream.info.clone(), parts.version);
        context.recording = self.notes.recording;
        context.keeps_head = self.notes.heads;
        context.keeps_times = self.notes.times;
        if let Some(tracing) = &self.tracing {
            let trace = tracing.place(&parts.headers);
            if trace.sampled {
                context.recording = context.recording.max(Recording::Calls);
            }
            context.trace = Some(trace);
        }
        let admitted = match self.gate.enter() {
            Ok(place) => {
                active.keep(place);
                self.admit(&mut parts, &downstream)
            }
            Err(overload::Refused) => Err(Refusal::Overloaded),
        };
        if let Ok(admitted) = &admitted {
            context.client_ip = admitted.client_ip;
        }
        if let Some(watched) = &mut watched {
            let (id, routes) = (context.id, &self.router.routes);
            let route = || Some(routes.pick(&parts, id)?.route.clone());
            let scheme = downstream.scheme();
            watched.begin(&self.plan.name, scheme, &mut context, route);
        }
        let context = Arc::new(context);
        let traced = context.trace.as_ref().is_some_and(|trace| trace.sampled);
        let tracing = self.tracing.as_ref().filter(|_| traced);
        let mut record = (self.log.is_some() || traced || watched.is_some())
            .then(|| Record::new(self.log.as_ref(), tracing, watched, &context, &parts));
        let mut body = Body::from(body);
        let tunnel = match &admitted {
            Ok(_) => tunnel::Wanted::of(&mut parts, &mut body, &context),
            Err(_) => None,
        };
        if let Some(record) = &record {
            let incoming = record.incoming.clone();
            let since = context.started;
            if body.is_end_stream() {
                incoming.end(since.elapsed());
            } else {
                if let Some(tap) = &context.tap {
                    body = tapped(body, tap, |tap| &tap.received);
                }
                body = counted(body, incoming.clone(), since);
            }
            if tunnel.is_some() {
                let watch = |sent| counted(sent, incoming, since);
                tunnel::watch_behind(&parts.extensions, watch);
            }
        }
        let mut lender = None;
        if !context.tunnels_in_body() && parts.version < Version::HTTP_2 && !body.is_end_stream() {
            let (lent, by) = unread::lend(body);
            body = lent;
            // To read on would ask the client for a body that nobody wants.
            let held_back = match &admitted {
                Ok(admitted) => admitted.holds_back,
                Err(_) => parts.headers.contains_key(header::EXPECT),
            };
            lender = Some((by, held_back));
        }
        let replies = self.plan.local_replies.as_ref();
        // Kept only where an answer may have to be shaped by it.
        let asked = replies.map(|replies| (replies, Box::new(parts.clone()), context.clone()));
        let mut response = match admitted {
            Ok(admitted) => {
                let received = Box::new(Received { parts, body });
                self.answer(&downstream, &admitted, context.clone(), received)
                    .await
            }
            Err(refusal) => {
                drop(body);
                // Boxed: refusals are rare, and others need not carry their state.
                Box::pin(self.refuse(refusal, context.clone(), parts)).await
            }
        };
        if let Some((replies, parts, context)) = asked {
            response = replies.shape(response, &parts, &context);
        }
        let opens = (tunnel.as_ref()).is_some_and(|tunnel| tunnel.opens(response.status()));
        if let Some((lender, held_back)) = lender
            && !opens
            && !lender.finish(!held_back).await
        {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        if opens {
            active.opens_tunnel();
        } else if downstream.activity.opaque.load(Ordering::Relaxed) {
            // What the client sent behind its request may not be HTTP.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        let leaves = downstream.activity.closing.load(Ordering::Relaxed)
            || downstream.activity.is_used_up(&self.plan.limits);
        if leaves && version < Version::HTTP_2 && !opens {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        self.stats.count(response.status());
        self.stats.duration.observe(context.started.elapsed());
        if let Some(record) = &mut record {
            let (head, body) = response.into_parts();
            record.responds(&head);
            response = Response::from_parts(head, body);
        }
        let response = response.map(|body| ClientBody::new(body, record, active));
        Ok(form.answer(match tunnel {
            None => response,
            Some(tunnel) => {
                let cut = async move { downstream.counted.listening.drain.cut_off().await };
                tunnel.begin(response, self.plan.limits.write_timeout, cut)
            }
        }))
    }

    fn admit(
        &self,
        parts: &mut request::Parts,
        downstream: &Downstream,
    ) -> Result<Admitted, Refusal> {
        let plan = &self.plan;
        // hyper sees to it in HTTP/1.1 only.
        if parts.headers.len() > plan.limits.max_headers {
            return Err(Refusal::Refused(hygiene::Refused {
                status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                details: "too_many_headers",
            }));
        }
        if !plan.underscores.let_in(&mut parts.headers) {
            return Err(Refusal::Refused(hygiene::Refused {
                status: StatusCode::BAD_REQUEST,
                details: "unexpected_underscore",
            }));
        }
        let routes = &self.router.routes;
        let tunnels = Tunnels {
            upgrades: &plan.upgrades,
            by_routes: routes.upgrades(),
            connect: routes.connects(),
        };
        let (peer, tls) = (&downstream.peer, downstream.info.tls.as_ref());
        let admitted =
            hygiene::admit(parts, peer, tls, &plan.forward, tunnels).map_err(Refusal::Refused)?;
        self.normalize(parts)?;
        Ok(admitted)
    }

    fn normalize(&self, parts: &mut request::Parts) -> Result<(), Refusal> {
        let Some(target) = parts.uri.path_and_query() else {
            return Ok(());
        };
        match self.plan.path.apply(target) {
            Normalized::Same => {}
            Normalized::Changed(target) => set_target(parts, target),
            Normalized::Redirect(target) => return Err(Refusal::Redirect(target)),
            Normalized::Refused => {
                return Err(Refusal::Refused(hygiene::Refused {
                    status: StatusCode::BAD_REQUEST,
                    details: "path_normalization_failed",
                }));
            }
        }
        Ok(())
    }

    /// Answers a request that is not let in. The policies do not see it, but the answer passes
    /// their response phase.
    async fn refuse(
        &self,
        refusal: Refusal,
        context: Arc<RequestContext>,
        parts: request::Parts,
    ) -> Response<ReplyBody> {
        // In HTTP/2 the stream ends, and the connection goes on.
        let closes = matches!(refusal, Refusal::Refused(_)) && parts.version < Version::HTTP_2;
        let overloaded = matches!(refusal, Refusal::Overloaded);
        if overloaded {
            self.stats.overloaded.inc();
        }
        let reply = refusal.reply(&context, &parts);
        // When overloaded, not even the answer is worth a call.
        let mut response = match self.stack.as_ref().filter(|_| !overloaded) {
            None => reply.map(ReplyBody::Local),
            Some(stack) => {
                context.take_replies_inward();
                let mut request = Request::from_parts(parts, Body::empty());
                request.extensions_mut().insert(context.clone());
                let answered = match context.hand_inward(reply) {
                    Ok(()) => stack.handle(request).await,
                    Err(reply) => Ok(*reply),
                };
                let response = answered.unwrap_or_else(|never| match never {});
                response.map(ReplyBody::Local)
            }
        };
        if closes {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }

    async fn answer(
        &self,
        downstream: &Downstream,
        admitted: &Admitted,
        context: Arc<RequestContext>,
        received: Box<Received>,
    ) -> Response<ReplyBody> {
        match self.router.routes.redirects_internally() {
            false => self.pass(downstream, admitted, context, received).await,
            // Boxed: others need not carry its state.
            true => Box::pin(self.follow(downstream, admitted, context, received)).await,
        }
    }

    /// Lets a request pass the policies, and again where a redirect of an upstream leads it.
    async fn follow(
        &self,
        downstream: &Downstream,
        admitted: &Admitted,
        context: Arc<RequestContext>,
        mut received: Box<Received>,
    ) -> Response<ReplyBody> {
        let mut since = Instant::from_std(context.started);
        let mut followed = 0;
        loop {
            let extensions = &mut received.parts.extensions;
            if followed == 0 {
                extensions.insert(downstream.scheme());
            }
            let (restart, told) = Restart::new(followed, since);
            extensions.insert(restart);
            let pass = self.pass(downstream, admitted, context.clone(), received);
            received = tokio::select! {
                biased;
                response = pass => return response,
                Ok(next) = told => next,
            };
            context.begin_again();
            since = Instant::now();
            followed += 1;
            if let Err(refusal) = self.normalize(&mut received.parts) {
                return self.refuse(refusal, context, received.parts).await;
            }
        }
    }

    async fn pass(
        &self,
        downstream: &Downstream,
        admitted: &Admitted,
        context: Arc<RequestContext>,
        received: Box<Received>,
    ) -> Response<ReplyBody> {
        let entry = self.router.pick(&received.parts, &context);
        if let (Some(protocol), Some(entry)) = (&admitted.upgrade, &entry)
            && !entry.upgrades_to(protocol, &self.plan.upgrades)
        {
            let refusal = Refusal::Refused(hygiene::UPGRADE_REFUSED);
            return Box::pin(self.refuse(refusal, context, received.parts)).await;
        }
        let Some(stack) = &self.stack else {
            let router = &self.router;
            return router.answer(&self.plan, entry, context, received).await;
        };
        context.take_replies_inward();
        let Received {
            mut parts,
            mut body,
        } = *received;
        if !body.is_end_stream() && !context.tunnels_in_body() {
            let limit = self.plan.limits.body_timeout;
            body = Body::new(silence::Bounded::new(body, limit, context.clone()));
        }
        if parts.extensions.get::<Scheme>().is_none() {
            parts.extensions.insert(downstream.scheme());
        }
        let late = Late::of(entry.as_ref(), &parts).map(|late| (late, context.clone()));
        parts.extensions.insert(context);
        parts.extensions.insert(Picked(entry));
        let answered = stack.handle(Request::from_parts(parts, body)).await;
        let mut response = answered.unwrap_or_else(|never| match never {});
        if let Some((late, context)) = late {
            late.change(&mut response, &context);
        }
        response.map(ReplyBody::Local)
    }
}

fn set_target(parts: &mut request::Parts, target: PathAndQuery) {
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = Some(target);
    // The other parts are those of a valid URI.
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
}

/// A request that is not let in.
enum Refusal {
    Refused(hygiene::Refused),
    Overloaded,
    Redirect(PathAndQuery),
}

impl Refusal {
    fn reply(self, context: &RequestContext, parts: &request::Parts) -> Response<Body> {
        let form = ReplyForm::of(&parts.method, &parts.headers);
        let (reply, form) = match self {
            Self::Refused(refused) => {
                context.add_flag(ResponseFlag::DownstreamProtocolError);
                let form = ReplyForm {
                    grpc: false,
                    ..form
                };
                (LocalReply::new(refused.status, refused.details), form)
            }
            Self::Overloaded => {
                let (flag, reply) = overload::reply();
                context.add_flag(flag);
                (reply, form)
            }
            Self::Redirect(target) => {
                let mut reply = LocalReply::new(
                    StatusCode::TEMPORARY_REDIRECT,
                    "path_normalization_redirect",
                );
                if let Ok(location) = HeaderValue::from_str(target.as_str()) {
                    reply.headers.insert(header::LOCATION, location);
                }
                (reply, form)
            }
        };
        context.set_details(reply.details.clone());
        reply.into_response(form)
    }
}
