//! Traces of the proxy: which requests are traced, and the spans of one that is over.
//!
//! A request's span has a child for each policy call and for each time that it was sent to an
//! upstream. All of them are made when the request is over, from what its context noted.

use std::{sync::Arc, time::Duration};

use attache_filter::{
    RequestContext,
    calls::{FilterKind, PolicyCall},
    context::{ResponseFlag, UpstreamAttempt},
};
use attache_service::trace::{
    FinishedSpan, RequestTrace, SpanId, SpanSide, TRACESTATE, Trace, TraceId, TraceSettings,
    Tracer, Value, code_name,
};
use http::{HeaderMap, StatusCode, request};
use tonic::Code;

/// Longest `tracestate` that is passed on, in bytes: what W3C Trace Context asks for at least.
const MAX_STATE: usize = 512;
/// A client asks for a trace with this header, as in Envoy.
const CLIENT_TRACE_ID: &str = "x-client-trace-id";

/// Where traces go, and which requests have one.
#[derive(Clone)]
pub struct TracePlan {
    /// The collector, and how spans are sent there.
    pub settings: TraceSettings,
    /// The cluster of the collector, in the place of the one in `settings`.
    pub cluster: Option<Arc<str>>,
    /// Which requests are traced.
    pub sampling: Sampling,
    /// The configuration as text: where two are the same, the sending goes on over a reload.
    pub written: String,
}

impl std::fmt::Debug for TracePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TracePlan")
            .field("sampling", &self.sampling)
            .finish_non_exhaustive()
    }
}

/// Which requests without a trace of their own are traced: shares from 0 to 1. Of others, the
/// caller's word counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Of those that ask for it with `x-client-trace-id`. Default 1.
    pub client: f64,
    /// Of the others. Default 1.
    pub random: f64,
    /// Of what the other two let through. Default 1.
    pub overall: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            client: 1.0,
            random: 1.0,
            overall: 1.0,
        }
    }
}

impl Sampling {
    fn takes(self, asked: bool) -> bool {
        let share = if asked { self.client } else { self.random };
        let among = |share: f64| share >= 1.0 || rand::random::<f64>() < share;
        among(share) && among(self.overall)
    }
}

/// Traces requests. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Tracing {
    pub(crate) tracer: Tracer,
    pub(crate) sampling: Sampling,
}

impl Tracing {
    /// Where a request that has come stands in a trace: in the one that it names, else in one of
    /// its own.
    pub(crate) fn place(&self, headers: &HeaderMap) -> Box<RequestTrace> {
        let parent = Trace::of_call(headers);
        let ids = parent.as_ref().and_then(Trace::ids);
        let (trace, parent_span) = match ids {
            Some((trace, span)) => (trace, Some(span)),
            None => (TraceId::random(), None),
        };
        let sampled = match parent {
            Some(parent) => parent.sampled,
            None => self.sampling.takes(headers.contains_key(CLIENT_TRACE_ID)),
        };
        let state = match parent_span {
            Some(_) => state(headers).unwrap_or_default(),
            None => Arc::default(),
        };
        Box::new(RequestTrace {
            trace,
            span: SpanId::random(),
            parent: parent_span,
            sampled,
            state,
        })
    }

    /// Sends the spans of a request that is over.
    pub(crate) fn report(
        &self,
        context: &RequestContext,
        head: &request::Parts,
        status: Option<StatusCode>,
        duration: Duration,
    ) {
        let Some(trace) = context.trace.as_ref().filter(|trace| trace.sampled) else {
            return;
        };
        let one = Spans {
            tracer: &self.tracer,
            context,
            trace,
        };
        for call in groups(context.calls()) {
            one.policy(&call);
        }
        for attempt in context.attempts() {
            one.upstream(&attempt, head);
        }
        one.request(head, status, duration);
    }
}

fn state(headers: &HeaderMap) -> Option<Arc<str>> {
    let mut state = String::new();
    for part in headers.get_all(TRACESTATE) {
        if !state.is_empty() {
            state.push(',');
        }
        state.push_str(part.to_str().ok()?);
    }
    (state.len() <= MAX_STATE).then(|| state.into())
}

/// The calls that share a span: those of one exchange with a processor.
fn groups(calls: Vec<PolicyCall>) -> Vec<Vec<PolicyCall>> {
    let mut groups: Vec<Vec<PolicyCall>> = Vec::new();
    for call in calls {
        let Some(span) = call.span else { continue };
        let same = |group: &&mut Vec<PolicyCall>| {
            group.first().is_some_and(|first| first.span == Some(span))
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(call),
            None => groups.push(vec![call]),
        }
    }
    groups
}

struct Spans<'r> {
    tracer: &'r Tracer,
    context: &'r RequestContext,
    trace: &'r RequestTrace,
}

impl Spans<'_> {
    /// A part of the request, told from its begin to its end since the request began.
    fn part(&self, parent: SpanId, span: SpanId, begun: Duration, ended: Duration) -> FinishedSpan {
        FinishedSpan {
            trace: self.trace.trace,
            span,
            parent: Some(parent),
            remote: false,
            state: self.trace.state.clone(),
            name: "".into(),
            side: SpanSide::Client,
            begun: self.context.start_time() + begun,
            took: ended.saturating_sub(begun),
            attributes: Vec::new(),
            failed: None,
        }
    }

    fn request(&self, head: &request::Parts, status: Option<StatusCode>, duration: Duration) {
        let context = self.context;
        let mut attributes = vec![
            ("http.request.method", Value::from(head.method.as_str())),
            ("url.path", Value::from(head.uri.path())),
        ];
        let mut put = |name, value: Option<&str>| {
            attributes.extend(value.map(|value| (name, Value::from(value))));
        };
        put("server.address", attache_filter::head::authority(head));
        let client = context.client_ip.map(|ip| ip.to_string());
        put("client.address", client.as_deref());
        let route = context.route();
        let route = route.as_ref();
        put(
            "attache.route",
            route
                .map(|r| r.name.as_str())
                .filter(|name| !name.is_empty()),
        );
        put("attache.cluster", route.and_then(|r| r.cluster.as_deref()));
        let id = head.headers.get("x-request-id");
        put("attache.request_id", id.and_then(|id| id.to_str().ok()));
        put("attache.details", context.details().as_deref());
        let flags = context.flags().into_iter();
        let flags: Vec<_> = flags.map(ResponseFlag::short).collect();
        put(
            "attache.response_flags",
            Some(&*flags.join(",")).filter(|flags| !flags.is_empty()),
        );
        let number = status.map_or(0, |status| status.as_u16());
        attributes.push(("http.response.status_code", Value::from(i64::from(number))));
        let failed = status.is_none_or(|status| status.is_server_error());
        let name = match route
            .map(|r| r.name.as_str())
            .filter(|name| !name.is_empty())
        {
            Some(route) => format!("{} {route}", head.method),
            None => head.method.to_string(),
        };
        self.tracer.report(FinishedSpan {
            parent: self.trace.parent,
            remote: true,
            name: name.into(),
            side: SpanSide::Server,
            attributes,
            failed: failed.then(String::new),
            ..self.part(self.trace.span, self.trace.span, Duration::ZERO, duration)
        });
    }

    fn policy(&self, calls: &[PolicyCall]) {
        let [first, ..] = calls else { return };
        let Some(span) = first.span else { return };
        if first.kind != FilterKind::ExtProc {
            self.tracer.report(FinishedSpan {
                name: format!("{} {}", first.kind.name(), first.filter).into(),
                attributes: of_call(first),
                failed: failure(first),
                ..self.part(self.trace.span, span, first.begun, first.ended)
            });
            return;
        }
        // One stream, and on it the calls.
        let begun = calls.iter().map(|call| call.begun).min();
        let ended = calls.iter().map(|call| call.ended).max();
        self.tracer.report(FinishedSpan {
            name: format!("{} {}", first.kind.name(), first.filter).into(),
            attributes: vec![("attache.filter", Value::from(&*first.filter))],
            failed: calls.iter().find_map(failure),
            ..self.part(
                self.trace.span,
                span,
                begun.unwrap_or(first.begun),
                ended.unwrap_or(first.ended),
            )
        });
        for call in calls {
            self.tracer.report(FinishedSpan {
                name: call.phase.name().into(),
                side: SpanSide::Internal,
                attributes: of_call(call),
                failed: failure(call),
                ..self.part(span, SpanId::random(), call.begun, call.ended)
            });
        }
    }

    fn upstream(&self, attempt: &UpstreamAttempt, head: &request::Parts) {
        let Some(span) = attempt.span else { return };
        let mut attributes = vec![
            ("http.request.method", Value::from(head.method.as_str())),
            ("attache.endpoint", Value::from(&*attempt.endpoint)),
        ];
        if let Some(status) = attempt.status {
            let number = i64::from(status.as_u16());
            attributes.push(("http.response.status_code", Value::from(number)));
        }
        let failed = attempt.status.is_none_or(|status| status.is_server_error());
        self.tracer.report(FinishedSpan {
            name: "upstream".into(),
            attributes,
            failed: failed.then(String::new),
            ..self.part(self.trace.span, span, attempt.begun, attempt.ended)
        });
    }
}

fn of_call(call: &PolicyCall) -> Vec<(&'static str, Value)> {
    let number = |number: u64| Value::from(i64::try_from(number).unwrap_or(i64::MAX));
    vec![
        ("attache.filter", Value::from(&*call.filter)),
        ("attache.phase", Value::from(call.phase.name())),
        ("attache.result", Value::from(call.result.name())),
        ("attache.calls", number(call.count.into())),
        ("attache.bytes_sent", number(call.sent_bytes)),
        ("attache.bytes_received", number(call.received_bytes)),
        (
            "rpc.response.status_code",
            Value::from(code_name(Code::from_i32(call.status))),
        ),
    ]
}

fn failure(call: &PolicyCall) -> Option<String> {
    call.result
        .is_failure()
        .then(|| call.result.name().to_owned())
}
