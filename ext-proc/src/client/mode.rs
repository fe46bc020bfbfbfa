//! Which parts of an exchange a processor is shown: as configured, as on the wire, as used.

use attache_proto::ext_proc_filter as wire;

use super::config::{BodySendMode, HeaderSendMode, ProcessingMode};

/// How much of a body the processor is shown (`ProcessingMode.BodySendMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyMode {
    /// Nothing.
    #[default]
    None,
    /// Each piece as it arrives.
    Streamed,
    /// All of it at once.
    Buffered,
    /// Its beginning at once, as far as the buffer goes; the rest passes unseen.
    BufferedPartial,
    /// Each piece as it arrives; the processor gives back a body of its own.
    FullDuplexStreamed,
    /// Nothing: as in Envoy, which has the name only.
    Grpc,
}

impl BodyMode {
    /// Whether the length of the body may change after its head went on.
    pub(super) fn resizes(self) -> bool {
        matches!(
            self,
            Self::Streamed | Self::BufferedPartial | Self::FullDuplexStreamed
        )
    }
}

/// Which parts of a request and its response the processor is shown (`ProcessingMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// Show the request headers. Default true.
    pub request_headers: bool,
    /// Show the response headers. Default true.
    pub response_headers: bool,
    /// Show the request body. Default `None`.
    pub request_body: BodyMode,
    /// Show the response body. Default `None`.
    pub response_body: BodyMode,
    /// Show request trailers. Default false.
    pub request_trailers: bool,
    /// Show response trailers. Default false.
    pub response_trailers: bool,
}

impl Default for Modes {
    fn default() -> Self {
        Self {
            request_headers: true,
            response_headers: true,
            request_body: BodyMode::None,
            response_body: BodyMode::None,
            request_trailers: false,
            response_trailers: false,
        }
    }
}

impl Modes {
    pub(super) fn plan(raw: &ProcessingMode) -> Self {
        Self::of_wire(&wire(raw))
    }

    /// What a mode on the wire says; unknown values count as unset.
    pub(super) fn of_wire(mode: &wire::ProcessingMode) -> Self {
        let body = |mode| match mode {
            wire::processing_mode::BodySendMode::None => BodyMode::None,
            wire::processing_mode::BodySendMode::Streamed => BodyMode::Streamed,
            wire::processing_mode::BodySendMode::Buffered => BodyMode::Buffered,
            wire::processing_mode::BodySendMode::BufferedPartial => BodyMode::BufferedPartial,
            wire::processing_mode::BodySendMode::FullDuplexStreamed => BodyMode::FullDuplexStreamed,
            wire::processing_mode::BodySendMode::Grpc => BodyMode::Grpc,
        };
        let headers = |mode| mode != wire::processing_mode::HeaderSendMode::Skip;
        let trailers = |mode| mode == wire::processing_mode::HeaderSendMode::Send;
        Self {
            request_headers: headers(mode.request_header_mode()),
            response_headers: headers(mode.response_header_mode()),
            request_body: body(mode.request_body_mode()),
            response_body: body(mode.response_body_mode()),
            request_trailers: trailers(mode.request_trailer_mode()),
            response_trailers: trailers(mode.response_trailer_mode()),
        }
    }

    /// The same without bodies and trailers.
    pub(super) fn heads_only(self) -> Self {
        Self {
            request_headers: self.request_headers,
            response_headers: self.response_headers,
            ..Self::default()
        }
    }

    /// Whether nothing at all is shown, so that no stream is needed.
    pub(super) fn is_off(&self) -> bool {
        let hidden = |mode| matches!(mode, BodyMode::None | BodyMode::Grpc);
        !(self.request_headers
            || self.response_headers
            || self.request_trailers
            || self.response_trailers)
            && hidden(self.request_body)
            && hidden(self.response_body)
    }
}

/// A configured mode as it is on the wire.
pub(super) fn wire(raw: &ProcessingMode) -> wire::ProcessingMode {
    use wire::processing_mode as m;
    let headers = |mode| match mode {
        None | Some(HeaderSendMode::Default) => m::HeaderSendMode::Default,
        Some(HeaderSendMode::Send) => m::HeaderSendMode::Send,
        Some(HeaderSendMode::Skip) => m::HeaderSendMode::Skip,
    };
    let body = |mode| match mode {
        None | Some(BodySendMode::None) => m::BodySendMode::None,
        Some(BodySendMode::Streamed) => m::BodySendMode::Streamed,
        Some(BodySendMode::Buffered) => m::BodySendMode::Buffered,
        Some(BodySendMode::BufferedPartial) => m::BodySendMode::BufferedPartial,
        Some(BodySendMode::FullDuplexStreamed) => m::BodySendMode::FullDuplexStreamed,
        Some(BodySendMode::Grpc) => m::BodySendMode::Grpc,
    };
    wire::ProcessingMode {
        request_header_mode: headers(raw.request_header_mode).into(),
        response_header_mode: headers(raw.response_header_mode).into(),
        request_body_mode: body(raw.request_body_mode).into(),
        response_body_mode: body(raw.response_body_mode).into(),
        request_trailer_mode: headers(raw.request_trailer_mode).into(),
        response_trailer_mode: headers(raw.response_trailer_mode).into(),
    }
}
