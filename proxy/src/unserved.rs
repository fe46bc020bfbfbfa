//! Requests that end before anything here could serve them: refused by the codec, given up by
//! the client in the middle of their head, or too slow. They are counted and logged all the same.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use attache_filter::{RequestContext, context::ResponseFlag};
use http::{StatusCode, Version};

use crate::{
    activity::Activity,
    connection::Listening,
    edge::{Downstream, Edge},
    framing::Fault,
    header_blocks::Excess,
};

/// Why nobody served a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// HTTP/1: it is none, or cannot be read in one way only.
    Malformed,
    /// HTTP/1: it has both `content-length` and `transfer-encoding`.
    BothLengths,
    /// HTTP/1: it has another transfer coding than `chunked`, or several.
    UnknownCoding,
    /// HTTP/1: its target has a fragment.
    Fragment,
    /// HTTP/1: it has more headers than may be.
    TooManyHeaders,
    /// HTTP/1: its head is larger than may be.
    HeadTooLarge,
    /// HTTP/1: its target is longer than any may be.
    TargetTooLong,
    /// An HTTP/2 client on a connection of HTTP/1, which hears nothing that it could not read.
    OtherVersion,
    /// HTTP/2: its stream was reset, as its headers make no request.
    MalformedStream,
    /// HTTP/2: its headers are larger than may be; whether the client was told, or the connection
    /// ended with it.
    HeadersTooLarge {
        /// A response was written.
        answered: bool,
    },
    /// HTTP/2: the connection ended with it, as its frames or its header block make no sense.
    BrokenConnection,
    /// HTTP/2: the connection ended with it, as the client had reset too many requests at once.
    TooManyResets,
    /// HTTP/2: the connection ended with it, as the client floods it with frames.
    Flood,
    /// Its head did not end in time; whether the client was told.
    Late {
        /// A response was written.
        answered: bool,
    },
    /// The client was gone before its head had ended.
    Left,
}

impl From<Fault> for Cause {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::BothLengths => Self::BothLengths,
            Fault::UnknownCoding => Self::UnknownCoding,
            Fault::Fragment => Self::Fragment,
            Fault::BareLineFeed
            | Fault::BareLineFeedInChunks
            | Fault::RepeatedLength
            | Fault::UnreadableLength => Self::Malformed,
        }
    }
}

impl Cause {
    /// Why the codec of HTTP/2 ended a connection with `ENHANCE_YOUR_CALM`, and with it what had
    /// come on it.
    pub(crate) fn of_calm(activity: &Activity) -> Self {
        match activity.calmed.get() {
            Some(Excess::Headers) => Self::HeadersTooLarge { answered: false },
            Some(Excess::Resets) => Self::TooManyResets,
            Some(Excess::Errors) => Self::MalformedStream,
            Some(Excess::Other) => Self::Flood,
            // What it says is not written yet.
            None if activity.in_head.load(Ordering::Relaxed) => {
                Self::HeadersTooLarge { answered: false }
            }
            None => Self::Flood,
        }
    }

    /// The status of the answer, if there was one.
    pub(crate) fn status(self) -> Option<StatusCode> {
        Some(match self {
            Self::Malformed | Self::BothLengths | Self::UnknownCoding | Self::Fragment => {
                StatusCode::BAD_REQUEST
            }
            Self::TooManyHeaders
            | Self::HeadTooLarge
            | Self::HeadersTooLarge { answered: true } => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::Late { answered: true } => StatusCode::REQUEST_TIMEOUT,
            Self::OtherVersion
            | Self::MalformedStream
            | Self::HeadersTooLarge { answered: false }
            | Self::BrokenConnection
            | Self::TooManyResets
            | Self::Flood
            | Self::Late { answered: false }
            | Self::Left => return None,
        })
    }

    /// The response code details, in Envoy's words where it has them.
    pub(crate) fn details(self) -> &'static str {
        match self {
            Self::Malformed | Self::OtherVersion => "http1.codec_error",
            Self::BothLengths => "http1.content_length_and_chunked_not_allowed",
            Self::UnknownCoding => "http1.invalid_transfer_encoding",
            Self::Fragment => "path_normalization_failed",
            Self::TooManyHeaders => "http1.too_many_headers",
            Self::HeadTooLarge | Self::TargetTooLong => "http1.headers_too_large",
            Self::MalformedStream => "http2.violation.of.messaging.rule",
            Self::HeadersTooLarge { .. } => "http2.header_list_size_too_large",
            Self::BrokenConnection => "http2.codec_error",
            Self::TooManyResets => "too_many_premature_resets",
            Self::Flood => "http2.inbound_empty_frames_flood",
            Self::Late { .. } => "request_header_timeout",
            Self::Left => "downstream_remote_disconnect",
        }
    }

    fn flag(self) -> Option<ResponseFlag> {
        match self {
            Self::Late { .. } => None,
            Self::Left => Some(ResponseFlag::DownstreamConnectionTermination),
            _ => Some(ResponseFlag::DownstreamProtocolError),
        }
    }
}

/// Notes the requests of one connection that nobody served.
pub(crate) struct Unserved<'c> {
    listening: &'c Listening,
    downstream: &'c Downstream,
    version: Version,
}

impl<'c> Unserved<'c> {
    pub(crate) fn of(
        version: Version,
        listening: &'c Listening,
        downstream: &'c Downstream,
    ) -> Self {
        Self {
            listening,
            downstream,
            version,
        }
    }

    /// Notes one, `since` after its begin.
    pub(crate) fn note(&self, cause: Cause, since: Duration) {
        let edge = self.listening.edge.load();
        note(&edge, self.downstream, self.version, cause, since);
    }

    /// The codec of HTTP/2 has done with what has come, for `cause` where it took offence.
    pub(crate) fn settle(&self, cause: Cause) {
        let refused = self.downstream.activity.settle();
        for _ in 0..refused.malformed {
            self.note(cause, Duration::ZERO);
        }
        for _ in 0..refused.too_large {
            self.note(Cause::HeadersTooLarge { answered: true }, Duration::ZERO);
        }
    }

    /// The connection has ended, for `refused` where the codec could not go on.
    pub(crate) fn end(&self, refused: Option<Cause>, failed: bool) {
        let activity = &self.downstream.activity;
        let begun = activity.in_head.load(Ordering::Relaxed);
        if self.version == Version::HTTP_2 {
            // What was malformed before is settled; of the last bytes the codec tells nothing.
            self.settle(refused.unwrap_or(Cause::Left));
            if begun {
                self.note(refused.unwrap_or(Cause::Left), Duration::ZERO);
            }
            return;
        }
        // A head behind a request that is not over would not be read yet.
        let begun = begun && failed && activity.requests.load(Ordering::Relaxed) == 0;
        if let Some(cause) = refused.or(begun.then_some(Cause::Left)) {
            self.note(cause, Duration::ZERO);
        }
    }
}

/// Counts and logs a request that nobody served, `since` after its begin.
fn note(edge: &Edge, downstream: &Downstream, version: Version, cause: Cause, since: Duration) {
    tracing::debug!(listener = %edge.plan.name, ?cause, "request refused");
    let status = cause.status();
    if cause != Cause::Left {
        edge.stats.count_unserved(status);
    }
    let Some(log) = &edge.log else { return };
    let mut context = RequestContext::new(downstream.info.clone(), version);
    context.started = context
        .started
        .checked_sub(since)
        .unwrap_or(context.started);
    context.set_details(cause.details());
    if let Some(flag) = cause.flag() {
        context.add_flag(flag);
    }
    log.unserved(Arc::new(context), status);
}
