//! A span: something that takes time, while it does.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use attache_proto::{
    otlp_common::{AnyValue, KeyValue, any_value},
    otlp_trace::{self, Status, span::SpanKind, status::StatusCode},
};
use bytes::Bytes;
use http::HeaderValue;
use pin_project_lite::pin_project;
use tonic::Code;

use super::{
    context::{SpanId, TraceId},
    tracer::Inner,
};

/// Most attributes of a span, OpenTelemetry's default; further ones are counted.
const MAX_ATTRIBUTES: usize = 128;
/// Longest text of an attribute in bytes; the rest is cut off.
const MAX_TEXT: usize = 1024;
/// The trace is recorded.
pub(super) const SAMPLED: u32 = 1;
/// It is known whether the parent is of another program.
pub(super) const KNOWS_REMOTE: u32 = 0x100;
/// The parent is of another program.
pub(super) const REMOTE: u32 = 0x200;

/// Something that takes time. It ends when its last clone is dropped.
///
/// A span that is not recorded, as the default one, is nothing and costs nothing.
#[derive(Clone, Default)]
pub struct Span(Option<Arc<Recorded>>);

/// Where a span stands.
pub(super) struct Place {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
    pub(super) parent: Option<SpanId>,
    /// The parent is of another program.
    pub(super) remote: bool,
    pub(super) state: Arc<str>,
}

struct Recorded {
    tracer: Arc<Inner>,
    place: Place,
    name: &'static str,
    kind: SpanKind,
    begun: Begun,
    said: Mutex<Said>,
}

/// What is said of a span while it lasts.
#[derive(Default)]
struct Said {
    attributes: Vec<KeyValue>,
    left_out: u32,
    status: Option<Status>,
}

/// When something began, by both clocks.
#[derive(Clone, Copy)]
pub(super) struct Begun {
    time: SystemTime,
    clock: Instant,
}

impl Begun {
    fn now() -> Self {
        Self {
            time: SystemTime::now(),
            clock: Instant::now(),
        }
    }
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text.
    Text(Cow<'static, str>),
    /// A number.
    Number(i64),
    /// A truth value.
    Flag(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(Cow::Owned(cut(text).to_owned()))
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

/// As much of a text as an attribute holds.
pub(super) fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_TEXT))
        .unwrap_or(text)
}

/// An attribute as it is sent.
pub(super) fn key_value(name: &'static str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text.into_owned()),
        Value::Number(number) => any_value::Value::IntValue(number),
        Value::Flag(flag) => any_value::Value::BoolValue(flag),
    };
    KeyValue {
        key: name.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
    }
}

impl Span {
    pub(super) fn begin(
        tracer: Arc<Inner>,
        place: Place,
        name: &'static str,
        kind: SpanKind,
        begun: Option<Begun>,
    ) -> Self {
        Self(Some(Arc::new(Recorded {
            tracer,
            place,
            name,
            kind,
            begun: begun.unwrap_or_else(Begun::now),
            said: Mutex::default(),
        })))
    }

    /// Whether it will be sent.
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Says something about it. What was said under the same name counts no more.
    pub fn set(&self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = &self.0 {
            span.said().set(name, value.into());
        }
    }

    /// Says that what it stands for failed, and why.
    pub fn fail(&self, reason: &str) {
        if let Some(span) = &self.0 {
            span.said().status = Some(Status {
                message: cut(reason).to_owned(),
                code: StatusCode::Error.into(),
            });
        }
    }

    /// Says how the gRPC call that it stands for was answered. The codes that say that the
    /// service failed make the span one that failed, by OpenTelemetry's conventions for servers.
    pub fn answered(&self, code: Code) {
        if self.0.is_none() {
            return;
        }
        let name = code_name(code);
        self.set("rpc.response.status_code", name);
        if is_failure(code) {
            self.set("error.type", name);
            self.fail("");
        }
    }

    /// A part of it within this program.
    #[must_use]
    pub fn child(&self, name: &'static str) -> Self {
        self.child_since(name, None)
    }

    fn child_since(&self, name: &'static str, begun: Option<Begun>) -> Self {
        let Some(parent) = &self.0 else {
            return Self::default();
        };
        let place = Place {
            trace: parent.place.trace,
            span: SpanId::random(),
            parent: Some(parent.place.span),
            remote: false,
            state: parent.place.state.clone(),
        };
        let tracer = parent.tracer.clone();
        Self::begin(tracer, place, name, SpanKind::Internal, begun)
    }

    /// Runs `future`, with a child span if it has to wait. What is there at once is not worth one.
    /// `attributes` are said of the child.
    pub fn waits<'a, F: Future>(
        &'a self,
        name: &'static str,
        attributes: &'a [(&'static str, &'a str)],
        future: F,
    ) -> Waits<'a, F> {
        Waits {
            future,
            name,
            attributes,
            parent: self,
            child: None,
        }
    }

    /// The `traceparent` of calls that are made on its behalf.
    pub fn traceparent(&self) -> Option<HeaderValue> {
        let place = &self.0.as_ref()?.place;
        let text = format!("00-{:032x}-{:016x}-01", place.trace.0, place.span.0);
        HeaderValue::from_str(&text).ok()
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("Span"),
            Some(span) => write!(f, "Span {} {:016x}", span.name, span.place.span.0),
        }
    }
}

impl Said {
    fn set(&mut self, name: &'static str, value: Value) {
        let KeyValue { key, value } = key_value(name, value);
        if let Some(known) = self.attributes.iter_mut().find(|known| known.key == name) {
            known.value = value;
        } else if self.attributes.len() < MAX_ATTRIBUTES {
            self.attributes.push(KeyValue { key, value });
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
    }
}

impl Recorded {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let said = std::mem::take(&mut *self.said());
        let since = self.begun.time.duration_since(UNIX_EPOCH);
        let begun = since.unwrap_or_default();
        let nanoseconds =
            |since: std::time::Duration| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let place = &self.place;
        let remote = if place.remote && place.parent.is_some() {
            REMOTE
        } else {
            0
        };
        self.tracer.take(otlp_trace::Span {
            trace_id: Bytes::copy_from_slice(&place.trace.0.to_be_bytes()),
            span_id: Bytes::copy_from_slice(&place.span.0.to_be_bytes()),
            trace_state: place.state.to_string(),
            parent_span_id: place.parent.map_or_else(Bytes::new, |parent| {
                Bytes::copy_from_slice(&parent.0.to_be_bytes())
            }),
            name: self.name.to_owned(),
            kind: self.kind.into(),
            start_time_unix_nano: nanoseconds(begun),
            end_time_unix_nano: nanoseconds(begun.saturating_add(self.begun.clock.elapsed())),
            attributes: said.attributes,
            dropped_attributes_count: said.left_out,
            status: said.status,
            flags: SAMPLED | KNOWS_REMOTE | remote,
            ..otlp_trace::Span::default()
        });
    }
}

pin_project! {
    /// See [`Span::waits`].
    #[must_use = "futures do nothing unless awaited"]
    pub struct Waits<'a, F> {
        #[pin]
        future: F,
        name: &'static str,
        attributes: &'a [(&'static str, &'a str)],
        parent: &'a Span,
        child: Option<Span>,
    }
}

impl<F: Future> Future for Waits<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if !this.parent.is_recorded() || this.child.is_some() {
            return this.future.poll(cx);
        }
        let begun = Begun::now();
        let polled = this.future.poll(cx);
        if polled.is_pending() {
            let child = this.parent.child_since(this.name, Some(begun));
            for (name, value) in *this.attributes {
                child.set(name, *value);
            }
            *this.child = Some(child);
        }
        polled
    }
}

/// How a call ended, for a span that has to be told even when its call is dropped before.
#[derive(Debug)]
pub struct Ended(Span);

impl Ended {
    /// The call of `span`; dropped, it was cancelled.
    pub fn of(span: Span) -> Self {
        Self(span)
    }

    /// The span.
    pub fn span(&self) -> &Span {
        &self.0
    }

    /// It was answered: see [`Span::answered`].
    pub fn with(mut self, code: Code) {
        std::mem::take(&mut self.0).answered(code);
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.answered(Code::Cancelled);
    }
}

/// The name of a code, as gRPC writes it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Whether a code says that the server failed, and not that it was asked for the wrong thing.
fn is_failure(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}
