//! The place of a call in a trace, as W3C Trace Context has it (`traceparent`).

use std::{fmt, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};

/// Names the trace and the caller's span.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems tell each other.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The trace that a caller says its call belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace<'a> {
    /// 32 hexadecimal digits.
    pub trace_id: &'a str,
    /// The caller's span: 16 hexadecimal digits.
    pub parent_id: &'a str,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl<'a> Trace<'a> {
    /// The trace that the metadata of a call name, if they do.
    pub fn of_call(metadata: &'a HeaderMap) -> Option<Self> {
        Self::parse(metadata.get("traceparent")?.to_str().ok()?)
    }

    /// Reads a `traceparent`.
    pub fn parse(header: &'a str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace_id, parent_id, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hexadecimal = |text: &str, length| {
            text.len() == length && text.bytes().all(|digit| digit.is_ascii_hexdigit())
        };
        let known = match version {
            "00" => parts.next().is_none(),
            _ => hexadecimal(version, 2) && version != "ff",
        };
        let id =
            |text, length| hexadecimal(text, length) && text.bytes().any(|digit| digit != b'0');
        let whole = id(trace_id, 32) && id(parent_id, 16);
        let flags = hexadecimal(flags, 2).then(|| u8::from_str_radix(flags, 16).ok())??;
        (known && whole).then_some(Self {
            trace_id,
            parent_id,
            sampled: flags & 1 == 1,
        })
    }

    /// The same as numbers.
    pub fn ids(&self) -> Option<(TraceId, SpanId)> {
        let trace = u128::from_str_radix(self.trace_id, 16).ok()?;
        let parent = u64::from_str_radix(self.parent_id, 16).ok()?;
        Some((TraceId(trace), SpanId(parent)))
    }
}

/// A trace; not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(pub(super) u128);

/// A span; not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanId(pub(super) u64);

impl TraceId {
    /// One of its own.
    pub fn random() -> Self {
        Self(rand::random_range(1..=u128::MAX))
    }

    /// A number that is spread evenly over the traces, for stable choices among them.
    pub fn spread(self) -> u64 {
        self.0 as u64
    }
}

impl SpanId {
    /// One of its own.
    pub fn random() -> Self {
        Self(rand::random_range(1..=u64::MAX))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Where a request stands in a trace.
#[derive(Debug, Clone)]
pub struct RequestTrace {
    /// The trace.
    pub trace: TraceId,
    /// The request's span.
    pub span: SpanId,
    /// The span that it is a part of, of another program.
    pub parent: Option<SpanId>,
    /// Whether the trace is recorded.
    pub sampled: bool,
    /// `tracestate`, as it came; may be empty.
    pub state: Arc<str>,
}

impl RequestTrace {
    /// Writes `traceparent` and `tracestate` for a call that is made on behalf of the request,
    /// and gives the span that stands for it, if there is to be one and it will be recorded.
    pub fn propagate(&self, headers: &mut HeaderMap, has_span: bool) -> Option<SpanId> {
        let span = (self.sampled && has_span).then(SpanId::random);
        let (trace, parent) = (self.trace, span.unwrap_or(self.span));
        let flags = u8::from(self.sampled);
        // Hexadecimal digits and hyphens fit a header; so does what came in one.
        if let Ok(value) = HeaderValue::try_from(format!("00-{trace}-{parent}-{flags:02x}")) {
            headers.insert(TRACEPARENT, value);
        }
        if !self.state.is_empty()
            && let Ok(value) = HeaderValue::from_str(&self.state)
        {
            headers.insert(TRACESTATE, value);
        }
        span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_one_or_none() {
        let (trace_id, parent_id) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let header = format!("00-{trace_id}-{parent_id}-01");
        let trace = Trace {
            trace_id,
            parent_id,
            sampled: true,
        };
        assert_eq!(Trace::parse(&header), Some(trace));
        let later = format!("01-{trace_id}-{parent_id}-00-more");
        assert!(!Trace::parse(&later).unwrap().sampled);
        let more = format!("{header}-more");
        let no_trace = format!("00-{}-{parent_id}-01", "0".repeat(32));
        let no_parent = format!("00-{trace_id}-{}-01", "0".repeat(16));
        let bad = [
            "",
            "00-1-2-3",
            "ff-x",
            &header[..50],
            &more,
            &no_trace,
            &no_parent,
        ];
        for bad in bad {
            assert_eq!(Trace::parse(bad), None, "{bad}");
        }
    }
}
