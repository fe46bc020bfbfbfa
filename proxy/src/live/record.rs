//! What is shown of one request.

use std::{sync::Arc, time::Duration};

use attache_filter::{
    RequestContext, Route,
    calls::{PolicyCall, Recording},
    changes::Snapshot,
    context::{ResponseFlag, UpstreamAttempt},
    head::{self, Scheme},
    tap::Tap,
};
use http::{HeaderMap, StatusCode, request, response};
use serde_json::{Value, json};

use super::{
    Live,
    ring::Stage,
    show::{self, Showing},
    tap,
};

/// A request that is noted for the live page.
pub(crate) struct Watched {
    live: Live,
    /// Its head as the client sent it.
    sent: request::Parts,
    /// A log wants to know of its head as it went on.
    log_reads_head: bool,
    /// When the head of its response went to the client, since it began.
    responded: Option<Duration>,
}

/// A request that is over, as far as that is known elsewhere.
pub(crate) struct Over<'r> {
    pub(crate) context: &'r RequestContext,
    /// Its head when it was let in.
    pub(crate) arrived: &'r request::Parts,
    /// Its head as it went on.
    pub(crate) went: Option<&'r request::Parts>,
    pub(crate) response: Option<&'r response::Parts>,
    pub(crate) trailers: Option<&'r HeaderMap>,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) duration: Duration,
    /// When its body had come, since it began.
    pub(crate) received: Option<Duration>,
    /// The response's body failed.
    pub(crate) cut_off: bool,
}

impl Watched {
    pub(super) fn new(live: &Live, parts: &request::Parts) -> Self {
        Self {
            live: live.clone(),
            sent: head::copy(parts),
            log_reads_head: false,
            responded: None,
        }
    }

    /// The request begins its way: everything about it is noted from here on. `route` is looked
    /// for when somebody waits for a request of some route.
    pub(crate) fn begin(
        &mut self,
        listener: &str,
        scheme: Scheme,
        context: &mut RequestContext,
        route: impl FnOnce() -> Option<Arc<Route>>,
    ) {
        self.sent.extensions.insert(scheme);
        self.log_reads_head = context.keeps_head;
        context.recording = Recording::Changes;
        context.keeps_head = true;
        if self.live.state().taps.claim(&self.sent, route).is_some() {
            context.tap = Some(Arc::default());
        }
        let masks = self.live.0.masks.load();
        let mut showing = Showing::new(&masks, show::BRIEF);
        let mut record = self.start(context, &mut showing);
        record["listener"] = listener.into();
        self.live
            .show(context.id, Stage::Running, record.to_string());
    }

    /// Whether a log wants to know of the request's head as it went on.
    pub(crate) fn log_reads_head(&self) -> bool {
        self.log_reads_head
    }

    /// The response's head goes out.
    pub(crate) fn responds(&mut self, after: Duration) {
        self.responded = Some(after);
    }

    /// The request is over.
    pub(crate) fn end(self: Box<Self>, over: &Over<'_>) {
        let masks = self.live.0.masks.load();
        let tap = over.context.tap.as_deref();
        let (stage, bounds) = match tap {
            None => (Stage::Over, show::BRIEF),
            Some(_) => (Stage::Tapped, show::FULL),
        };
        let mut record = self.record(over, &mut Showing::new(&masks, bounds));
        if let Some(tap) = tap {
            record["bodies"] = bodies(tap);
        }
        self.live.show(over.context.id, stage, record.to_string());
    }

    /// What is known from the beginning.
    fn start(&self, context: &RequestContext, showing: &mut Showing<'_>) -> Value {
        let sent = &self.sent;
        let path = sent.uri.path_and_query().map(|path| path.as_str());
        let path = path.unwrap_or_default();
        let host = head::authority(sent).unwrap_or_default();
        json!({
            "n": context.id,
            "at": millis(context),
            "state": "running",
            "method": showing.text(sent.method.as_str().as_bytes()),
            "host": showing.text(host.as_bytes()),
            "path": showing.text(path.as_bytes()),
            "protocol": format!("{:?}", context.protocol),
            "client": client(context),
        })
    }

    fn record(&self, over: &Over<'_>, showing: &mut Showing<'_>) -> Value {
        let context = over.context;
        let mut record = self.start(context, showing);
        let mut put = |name: &str, value: Value| record[name] = value;
        put("state", "over".into());
        let route = context.route();
        if let Some(route) = &route {
            put("route", showing.text(tap::label(route).as_bytes()));
            let cluster = route.cluster.as_deref().unwrap_or_default();
            put("cluster", showing.text(cluster.as_bytes()));
        }
        put("status", over.response.map(|r| r.status.as_u16()).into());
        let details = context.details().unwrap_or_default();
        put("details", showing.text(details.as_bytes()));
        let flags = context.flags();
        let flag = |flag: &ResponseFlag| json!([flag.short(), flag.long()]);
        put("flags", flags.iter().map(flag).collect());
        put("duration", micros(over.duration));
        put("received", over.received.map(micros).into());
        put("responded", self.responded.map(micros).into());
        put("cut_off", over.cut_off.into());
        put("bytes_received", over.bytes_received.into());
        put("bytes_sent", over.bytes_sent.into());
        let attempts = context.attempts();
        put("attempts", attempts.iter().map(attempt).collect());
        // What tells the story comes first: it has room in any case.
        let calls = context.calls();
        let calls = calls.iter().map(|one| call(one, showing));
        put("calls", calls.collect());
        put("sent", showing.fields(&self.sent));
        let mut arrived = head::copy(over.arrived);
        if let Some(scheme) = self.sent.extensions.get::<Scheme>() {
            arrived.extensions.insert(*scheme);
        }
        let changed = Snapshot::of(&self.sent).changes_to(&Snapshot::of(&arrived));
        put("admitted", showing.changes(&changed));
        if let Some(went) = over.went {
            put("went", showing.fields(went));
        }
        if let Some(upstream) = context.take_upstream_head() {
            let (status, headers) = *upstream;
            put("answered", showing.fields(&response(status, headers)));
        }
        if let Some(head) = over.response {
            put("returned", showing.fields(head));
        }
        if let Some(trailers) = over.trailers {
            put("trailers", showing.fields(trailers));
        }
        put("left_out", showing.left_out().into());
        record
    }
}

fn response(status: StatusCode, headers: HeaderMap) -> response::Parts {
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = status;
    parts.headers = headers;
    parts
}

fn call(call: &PolicyCall, showing: &mut Showing<'_>) -> Value {
    json!({
        "filter": showing.text(call.filter.as_bytes()),
        "kind": call.kind.name(),
        "phase": call.phase.name(),
        "begun": micros(call.begun),
        "ended": micros(call.ended),
        "count": call.count,
        "latency": micros(call.latency),
        "slowest": micros(call.max_latency),
        "result": call.result.name(),
        "failed": call.result.is_failure(),
        "status": call.status,
        "bytes_sent": call.sent_bytes,
        "bytes_received": call.received_bytes,
        "request": showing.changes(call.request_changes()),
        "response": showing.changes(call.response_changes()),
    })
}

fn attempt(attempt: &UpstreamAttempt) -> Value {
    json!({
        "endpoint": attempt.endpoint,
        "begun": micros(attempt.begun),
        "answered": attempt.answered.map(micros),
        "ended": micros(attempt.ended),
        "status": attempt.status.map(|status| status.as_u16()),
    })
}

fn bodies(tap: &Tap) -> Value {
    json!({
        "received": show::body(&tap.received.beginning()),
        "sent": show::body(&tap.sent.beginning()),
        "answered": show::body(&tap.answered.beginning()),
        "returned": show::body(&tap.returned.beginning()),
    })
}

fn client(context: &RequestContext) -> String {
    let peer = context.connection.peer;
    match (context.client_ip, peer) {
        (Some(ip), Some(peer)) if ip == peer.ip() => peer.to_string(),
        (Some(ip), _) => ip.to_string(),
        (None, Some(peer)) => peer.to_string(),
        (None, None) => "unix".to_owned(),
    }
}

/// When the request began, in milliseconds since 1970.
fn millis(context: &RequestContext) -> u64 {
    let since = context
        .start_time()
        .duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// Microseconds.
fn micros(duration: Duration) -> Value {
    u64::try_from(duration.as_micros())
        .unwrap_or(u64::MAX)
        .into()
}
