//! From a call to its span.

use std::{fmt, sync::Arc};

use attache_proto::otlp_trace::{self, span::SpanKind};
use http::HeaderMap;
use tokio::sync::mpsc;

use super::{
    context::{SpanId, Trace, TraceId},
    sampler::Sampler,
    span::{Place, Span},
};
use crate::metrics::Counter;

/// Longest `tracestate` that is passed on, in bytes: what W3C Trace Context asks for at least.
const MAX_STATE: usize = 512;

/// Makes the spans of one program. Cheap to clone; the default one is off and makes none.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

pub(super) struct Inner {
    pub(super) sampler: Sampler,
    pub(super) queue: mpsc::Sender<otlp_trace::Span>,
    /// Spans that found the queue full, or nobody to take them.
    pub(super) dropped: Counter,
}

impl Inner {
    pub(super) fn take(&self, span: otlp_trace::Span) {
        if self.queue.try_send(span).is_err() {
            self.dropped.inc();
        }
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_on() { "Tracer" } else { "Tracer off" })
    }
}

impl Tracer {
    pub(super) fn new(inner: Inner) -> Self {
        Self(Some(Arc::new(inner)))
    }

    pub(super) fn inner(&self) -> Option<&Inner> {
        self.0.as_deref()
    }

    /// Whether it makes spans at all.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The span of a gRPC call that was received, `package.Service/Method`. It belongs to the
    /// trace that the call's metadata name (`traceparent`, `tracestate`), else to one of its own.
    pub fn call(&self, method: &'static str, metadata: &HeaderMap) -> Span {
        let Some(tracer) = &self.0 else {
            return Span::default();
        };
        let parent = Trace::of_call(metadata);
        let sampled = parent.map(|parent| parent.sampled);
        let ids = parent.and_then(|parent| parent.ids());
        let (trace, parent) = match ids {
            Some((trace, parent)) => (trace, Some(parent)),
            None => (TraceId::random(), None),
        };
        if !tracer.sampler.records(trace, sampled) {
            return Span::default();
        }
        let place = Place {
            trace,
            span: SpanId::random(),
            parent,
            remote: true,
            state: parent.and(state(metadata)).unwrap_or_default(),
        };
        let span = Span::begin(tracer.clone(), place, method, SpanKind::Server, None);
        span.set("rpc.system.name", "grpc");
        span.set("rpc.method", method);
        span
    }
}

/// The `tracestate` of a call. One that is too long counts as none.
fn state(metadata: &HeaderMap) -> Option<Arc<str>> {
    let mut state = String::new();
    for part in metadata.get_all("tracestate") {
        if !state.is_empty() {
            state.push(',');
        }
        state.push_str(part.to_str().ok()?);
    }
    (state.len() <= MAX_STATE).then(|| state.into())
}
