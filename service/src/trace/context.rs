//! The place of a call in a trace, as W3C Trace Context has it (`traceparent`).

use http::HeaderMap;

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

    pub(super) fn ids(&self) -> Option<(TraceId, SpanId)> {
        let trace = u128::from_str_radix(self.trace_id, 16).ok()?;
        let parent = u64::from_str_radix(self.parent_id, 16).ok()?;
        Some((TraceId(trace), SpanId(parent)))
    }
}

/// A trace; not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TraceId(pub(super) u128);

/// A span; not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SpanId(pub(super) u64);

impl TraceId {
    pub(super) fn random() -> Self {
        Self(rand::random_range(1..=u128::MAX))
    }
}

impl SpanId {
    pub(super) fn random() -> Self {
        Self(rand::random_range(1..=u64::MAX))
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
