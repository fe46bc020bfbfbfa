//! The calls that filters make to their services: how each ended, how long it took, and what it
//! changed.
//!
//! A [`CallRecorder`] counts every call in a histogram. It notes the call in the request's context
//! too where a log, a trace or somebody who watches wants to know of it, see [`Recording`].

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use attache_service::{Metrics, metrics::Latency, trace::SpanId};

use crate::{RequestContext, changes::HeaderChange};

/// What is noted of the calls to policy services while a request is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Recording {
    /// Nothing.
    Nothing,
    /// Each call: when, how long, how it ended, how many bytes.
    #[default]
    Calls,
    /// The same, and what each has changed in headers.
    Changes,
}

/// What kind of policy a filter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FilterKind {
    /// External authorization.
    ExtAuthz,
    /// Rate limiting.
    Ratelimit,
    /// External processing.
    ExtProc,
}

impl FilterKind {
    /// The word of the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExtAuthz => "ext_authz",
            Self::Ratelimit => "ratelimit",
            Self::ExtProc => "ext_proc",
        }
    }
}

macro_rules! names {
    ($(#[$doc:meta])* $kind:ident { $($(#[$of:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $kind { $($(#[$of])* $variant,)+ }

        impl $kind {
            const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word of logs, metrics and traces.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

names! {
    /// What a service is asked about.
    Phase {
        /// A check of ext_authz.
        Check = "check",
        /// The question of a rate limit filter before a request goes on.
        ShouldRateLimit = "should_rate_limit",
        /// The question of a rate limit filter when an exchange is over.
        StreamDone = "stream_done",
        /// The headers of a request.
        RequestHeaders = "request_headers",
        /// The body of a request.
        RequestBody = "request_body",
        /// The trailers of a request.
        RequestTrailers = "request_trailers",
        /// The headers of a response.
        ResponseHeaders = "response_headers",
        /// The body of a response.
        ResponseBody = "response_body",
        /// The trailers of a response.
        ResponseTrailers = "response_trailers",
        /// All that a processor that only looks on is shown.
        Observability = "observability",
    }
}

names! {
    /// How a call ended.
    CallResult {
        /// The message goes on.
        Continued = "continued",
        /// The service answered in the place of the message: denied, limited, an immediate
        /// response.
        Answered = "answered",
        /// The call failed, and the message goes on all the same.
        FailedOpen = "failed_open",
        /// The call failed, and with it the message.
        FailedClosed = "failed_closed",
        /// There was no answer in time, and the message goes on all the same.
        TimedOutOpen = "timed_out_open",
        /// There was no answer in time, and the message failed.
        TimedOutClosed = "timed_out_closed",
        /// The service left without an answer and without an error: the message goes on.
        Skipped = "skipped",
        /// The request ended before the answer came.
        Abandoned = "abandoned",
    }
}

impl CallResult {
    /// How a call without a usable answer ended: whether for want of time, and whether the message
    /// goes on.
    pub fn failure(timed_out: bool, goes_on: bool) -> Self {
        match (timed_out, goes_on) {
            (false, true) => Self::FailedOpen,
            (false, false) => Self::FailedClosed,
            (true, true) => Self::TimedOutOpen,
            (true, false) => Self::TimedOutClosed,
        }
    }

    /// Whether the service failed.
    pub fn is_failure(self) -> bool {
        match self {
            Self::Continued | Self::Answered | Self::Skipped | Self::Abandoned => false,
            Self::FailedOpen | Self::FailedClosed | Self::TimedOutOpen | Self::TimedOutClosed => {
                true
            }
        }
    }
}

/// The calls of one kind to a policy service about one request. Most kinds have one call; the
/// pieces of a streamed body are summed up.
#[derive(Debug, Clone)]
pub struct PolicyCall {
    /// The filter's configured name.
    pub filter: Arc<str>,
    /// What kind of filter that is.
    pub kind: FilterKind,
    /// What was asked about.
    pub phase: Phase,
    /// When the first of them began, since the request did.
    pub begun: Duration,
    /// When the last of them ended, since the request began.
    pub ended: Duration,
    /// How many calls these are.
    pub count: u32,
    /// How long the answers took, all together.
    pub latency: Duration,
    /// How long the slowest answer took.
    pub max_latency: Duration,
    /// How the last call ended.
    pub result: CallResult,
    /// gRPC status of the last call as a number; 0 is OK.
    pub status: i32,
    /// Bytes of the messages sent, gRPC framing included; 0 where nobody counts.
    pub sent_bytes: u64,
    /// Bytes of the messages received, gRPC framing included; 0 where nobody counts.
    pub received_bytes: u64,
    /// The span that the service was told of. Calls on one stream share it.
    pub span: Option<SpanId>,
    /// What was changed in headers, where somebody watches.
    pub changes: Option<Box<Changes>>,
}

impl PolicyCall {
    /// What a filter's service has changed in the headers of the request.
    pub fn request_changes(&self) -> &[HeaderChange] {
        self.changes
            .as_ref()
            .map_or(&[], |changes| &changes.request)
    }

    /// What a filter's service has changed in the headers of the response.
    pub fn response_changes(&self) -> &[HeaderChange] {
        self.changes
            .as_ref()
            .map_or(&[], |changes| &changes.response)
    }
}

/// What a call has changed in headers or trailers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those of the request.
    pub request: Vec<HeaderChange>,
    /// Those of the response.
    pub response: Vec<HeaderChange>,
}

impl Changes {
    /// Changes of a request's headers; nothing for none.
    pub fn of_request(changes: Vec<HeaderChange>) -> Option<Box<Self>> {
        (!changes.is_empty()).then(|| {
            Box::new(Self {
                request: changes,
                response: Vec::new(),
            })
        })
    }

    /// Changes of a response's headers; nothing for none.
    pub fn of_response(changes: Vec<HeaderChange>) -> Option<Box<Self>> {
        (!changes.is_empty()).then(|| {
            Box::new(Self {
                request: Vec::new(),
                response: changes,
            })
        })
    }
}

/// Notes the calls of one filter, in one worker.
pub struct CallRecorder {
    /// The filter's configured name.
    pub filter: Arc<str>,
    kind: FilterKind,
    metrics: Metrics,
    /// By phase and result; made when there is something to count.
    latencies: Box<[OnceLock<Latency>]>,
}

impl CallRecorder {
    /// A recorder for the filter of this name and kind.
    pub fn new(filter: impl Into<Arc<str>>, kind: FilterKind, metrics: &Metrics) -> Self {
        let cells = Phase::ALL.len() * CallResult::ALL.len();
        Self {
            filter: filter.into(),
            kind,
            metrics: metrics.clone(),
            latencies: (0..cells).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Counts one call.
    pub fn count(&self, phase: Phase, result: CallResult, latency: Duration) {
        let cell = phase as usize * CallResult::ALL.len() + result as usize;
        let Some(cell) = self.latencies.get(cell) else {
            return;
        };
        cell.get_or_init(|| {
            self.metrics.latency(
                "attache_filter_call_duration_seconds",
                "How long services of filters took to answer, by filter, phase and result.",
                &[
                    ("filter", &self.filter),
                    ("kind", self.kind.name()),
                    ("phase", phase.name()),
                    ("result", result.name()),
                ],
            )
        })
        .observe(latency);
    }

    /// A call that begins. Dropped before its end, it counts as abandoned.
    pub fn begin<'c>(&'c self, context: &'c RequestContext, phase: Phase) -> Asking<'c> {
        Asking {
            recorder: self,
            context,
            phase,
            begun: Instant::now(),
            span: None,
            finished: false,
        }
    }

    /// Notes calls of one phase in the context of their request, which must want that (see
    /// [`RequestContext::records_calls`]). They are counted apart.
    pub fn note(&self, context: &RequestContext, phase: Phase, noted: Noted) {
        context.record_call(PolicyCall {
            filter: self.filter.clone(),
            kind: self.kind,
            phase,
            begun: noted.begun.saturating_duration_since(context.started),
            ended: noted.ended.saturating_duration_since(context.started),
            count: noted.count,
            latency: noted.latency,
            max_latency: noted.max_latency,
            result: noted.result,
            status: noted.status,
            sent_bytes: noted.sent_bytes,
            received_bytes: noted.received_bytes,
            span: noted.span,
            changes: noted.changes,
        });
    }
}

/// What is noted of the calls of one phase; see [`PolicyCall`].
#[derive(Debug)]
pub struct Noted {
    /// When the first began.
    pub begun: Instant,
    /// When the last ended.
    pub ended: Instant,
    /// How many there were.
    pub count: u32,
    /// How long they took together.
    pub latency: Duration,
    /// How long the slowest took.
    pub max_latency: Duration,
    /// How the last ended.
    pub result: CallResult,
    /// gRPC status of the last.
    pub status: i32,
    /// Bytes of the messages sent.
    pub sent_bytes: u64,
    /// Bytes of the messages received.
    pub received_bytes: u64,
    /// The span that the service was told of.
    pub span: Option<SpanId>,
    /// What was changed in headers.
    pub changes: Option<Box<Changes>>,
}

/// A call that a service has not answered.
pub struct Asking<'c> {
    recorder: &'c CallRecorder,
    context: &'c RequestContext,
    phase: Phase,
    begun: Instant,
    /// The span that the service is told of.
    pub span: Option<SpanId>,
    finished: bool,
}

/// How a call ended.
#[derive(Debug)]
pub struct CallEnd {
    /// How it ended.
    pub result: CallResult,
    /// Its gRPC status.
    pub status: i32,
    /// How long the answer took.
    pub latency: Duration,
    /// Bytes of the messages sent.
    pub sent_bytes: u64,
    /// Bytes of the messages received.
    pub received_bytes: u64,
    /// What was changed in headers.
    pub changes: Option<Box<Changes>>,
}

const CANCELLED: i32 = 1;

impl Asking<'_> {
    /// When the call began.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// The call is over.
    pub fn end(mut self, end: CallEnd) {
        self.finish(end);
    }

    fn finish(&mut self, end: CallEnd) {
        self.finished = true;
        self.recorder.count(self.phase, end.result, end.latency);
        if !self.context.records_calls() {
            return;
        }
        let noted = Noted {
            begun: self.begun,
            ended: self.begun + end.latency,
            count: 1,
            latency: end.latency,
            max_latency: end.latency,
            result: end.result,
            status: end.status,
            sent_bytes: end.sent_bytes,
            received_bytes: end.received_bytes,
            span: self.span,
            changes: end.changes,
        };
        self.recorder.note(self.context, self.phase, noted);
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.finish(CallEnd {
                result: CallResult::Abandoned,
                status: CANCELLED,
                latency: self.begun.elapsed(),
                sent_bytes: 0,
                received_bytes: 0,
                changes: None,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Version;

    use super::*;

    fn context(recording: Recording) -> RequestContext {
        let mut context = RequestContext::new(Arc::default(), Version::HTTP_11);
        context.recording = recording;
        context
    }

    fn end(result: CallResult) -> CallEnd {
        CallEnd {
            result,
            status: 0,
            latency: Duration::from_millis(3),
            sent_bytes: 10,
            received_bytes: 20,
            changes: None,
        }
    }

    #[test]
    fn a_call_is_counted_whether_or_not_anybody_wants_to_know_of_it() {
        let metrics = Metrics::default();
        let recorder = CallRecorder::new("auth", FilterKind::ExtAuthz, &metrics);
        let (logged, unseen) = (context(Recording::Calls), context(Recording::Nothing));
        for context in [&logged, &unseen] {
            recorder
                .begin(context, Phase::Check)
                .end(end(CallResult::Continued));
        }
        assert!(unseen.calls().is_empty());
        let calls = logged.calls();
        assert_eq!(calls.len(), 1);
        assert_eq!((&*calls[0].filter, calls[0].count), ("auth", 1));
        assert_eq!((calls[0].sent_bytes, calls[0].received_bytes), (10, 20));
        assert_eq!(calls[0].ended - calls[0].begun, Duration::from_millis(3));
        let text = metrics.render();
        let line = "attache_filter_call_duration_seconds_count{filter=\"auth\",kind=\"ext_authz\",\
                    phase=\"check\",result=\"continued\"} 2";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn a_call_that_nobody_waits_for_any_more_is_abandoned() {
        let recorder = CallRecorder::new("auth", FilterKind::ExtAuthz, &Metrics::default());
        let context = context(Recording::Calls);
        drop(recorder.begin(&context, Phase::Check));
        assert_eq!(context.calls()[0].result, CallResult::Abandoned);
    }
}
