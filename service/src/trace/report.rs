//! Spans of what is over already, told as a whole.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use attache_proto::otlp_trace::{self, Status, span::SpanKind, status::StatusCode};
use bytes::Bytes;

use super::{
    context::{SpanId, TraceId},
    span::{KNOWS_REMOTE, REMOTE, SAMPLED, Value, cut, key_value},
    tracer::Tracer,
};

/// On which side of a call a span stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanSide {
    /// It answers the call.
    Server,
    /// It makes the call.
    Client,
    /// There is no call to another program.
    Internal,
}

/// A span that is over.
#[derive(Debug, Clone)]
pub struct FinishedSpan {
    /// Its trace.
    pub trace: TraceId,
    /// Itself.
    pub span: SpanId,
    /// The span that it is a part of.
    pub parent: Option<SpanId>,
    /// That is of another program.
    pub remote: bool,
    /// `tracestate`.
    pub state: Arc<str>,
    /// What it is called.
    pub name: Cow<'static, str>,
    /// On which side it stands.
    pub side: SpanSide,
    /// When it began.
    pub begun: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// What is said of it; few.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it failed, if it did; may be empty.
    pub failed: Option<String>,
}

impl Tracer {
    /// Sends a span that is over.
    pub fn report(&self, span: FinishedSpan) {
        let Some(tracer) = self.inner() else { return };
        let since = span.begun.duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanoseconds = |since: Duration| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let remote = match span.remote && span.parent.is_some() {
            true => REMOTE,
            false => 0,
        };
        let attributes = span.attributes.into_iter();
        tracer.take(otlp_trace::Span {
            trace_id: Bytes::copy_from_slice(&span.trace.0.to_be_bytes()),
            span_id: Bytes::copy_from_slice(&span.span.0.to_be_bytes()),
            trace_state: span.state.to_string(),
            parent_span_id: span.parent.map_or_else(Bytes::new, |parent| {
                Bytes::copy_from_slice(&parent.0.to_be_bytes())
            }),
            name: span.name.into_owned(),
            kind: match span.side {
                SpanSide::Server => SpanKind::Server,
                SpanSide::Client => SpanKind::Client,
                SpanSide::Internal => SpanKind::Internal,
            }
            .into(),
            start_time_unix_nano: nanoseconds(since),
            end_time_unix_nano: nanoseconds(since.saturating_add(span.took)),
            attributes: attributes
                .map(|(name, value)| key_value(name, value))
                .collect(),
            status: span.failed.map(|reason| Status {
                message: cut(&reason).to_owned(),
                code: StatusCode::Error.into(),
            }),
            flags: SAMPLED | KNOWS_REMOTE | remote,
            ..otlp_trace::Span::default()
        });
    }
}
