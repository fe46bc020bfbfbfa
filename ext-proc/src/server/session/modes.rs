//! Which parts of an exchange a proxy shows, and how.

use attache_proto::ext_proc_filter::{
    ProcessingMode,
    processing_mode::{BodySendMode, HeaderSendMode},
};

/// How a proxy shows the body of a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BodyMode {
    /// Not at all.
    #[default]
    None,
    /// In one message, when all of it has come; the head waits for the reply.
    Buffered,
    /// As [`BodyMode::Buffered`], but no more than fits the proxy's buffer; the rest passes unseen.
    BufferedPartial,
    /// In pieces as they come, each of which wants a reply.
    Streamed,
    /// In pieces as they come, of which the proxy keeps none: what goes on is what is sent back,
    /// in pieces of any number.
    FullDuplexStreamed,
}

impl BodyMode {
    /// `GRPC` is not implemented by Envoy: no body is shown.
    pub(super) fn from_wire(mode: i32) -> Self {
        match BodySendMode::try_from(mode) {
            Ok(BodySendMode::Buffered) => Self::Buffered,
            Ok(BodySendMode::BufferedPartial) => Self::BufferedPartial,
            Ok(BodySendMode::Streamed) => Self::Streamed,
            Ok(BodySendMode::FullDuplexStreamed) => Self::FullDuplexStreamed,
            Ok(BodySendMode::None | BodySendMode::Grpc) | Err(_) => Self::None,
        }
    }

    fn to_wire(self) -> i32 {
        let mode = match self {
            Self::None => BodySendMode::None,
            Self::Buffered => BodySendMode::Buffered,
            Self::BufferedPartial => BodySendMode::BufferedPartial,
            Self::Streamed => BodySendMode::Streamed,
            Self::FullDuplexStreamed => BodySendMode::FullDuplexStreamed,
        };
        mode as i32
    }

    /// The head waits for the reply to the body, so its headers can still change.
    pub(in crate::server) fn holds_head(self) -> bool {
        matches!(self, Self::Buffered | Self::BufferedPartial)
    }

    /// The head goes on before the body is known, so its length is not.
    pub(in crate::server) fn hides_length(self) -> bool {
        matches!(
            self,
            Self::Streamed | Self::BufferedPartial | Self::FullDuplexStreamed
        )
    }
}

/// What is to be shown from now on, whatever the proxy's configuration says.
///
/// Both body modes always count: what is left at its default is not shown any more. Parts that
/// are `None` stay as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Modes {
    /// The body of the request.
    pub request_body: BodyMode,
    /// The body of the response.
    pub response_body: BodyMode,
    /// The head of the response.
    pub response_headers: Option<bool>,
    /// The trailers of the request; always, when its body is in full duplex.
    pub request_trailers: Option<bool>,
    /// The trailers of the response; always, when its body is in full duplex.
    pub response_trailers: Option<bool>,
}

impl Modes {
    /// These modes of the bodies, everything else as configured.
    pub fn bodies(request: BodyMode, response: BodyMode) -> Self {
        Self {
            request_body: request,
            response_body: response,
            ..Self::default()
        }
    }

    pub(super) fn to_wire(self) -> ProcessingMode {
        let send = |wanted: Option<bool>| match wanted {
            None => HeaderSendMode::Default as i32,
            Some(true) => HeaderSendMode::Send as i32,
            Some(false) => HeaderSendMode::Skip as i32,
        };
        let trailers = |wanted, body| match body {
            BodyMode::FullDuplexStreamed => send(Some(true)),
            _ => send(wanted),
        };
        ProcessingMode {
            request_header_mode: HeaderSendMode::Default as i32,
            response_header_mode: send(self.response_headers),
            request_body_mode: self.request_body.to_wire(),
            response_body_mode: self.response_body.to_wire(),
            request_trailer_mode: trailers(self.request_trailers, self.request_body),
            response_trailer_mode: trailers(self.response_trailers, self.response_body),
        }
    }
}

/// Why the processing mode cannot be changed here: the proxy would ignore the wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ModesRefused {
    /// The proxy does not listen to overrides, as far as is known.
    #[error(
        "the proxy ignores a mode override unless it has `allow_mode_override`; \
         if it does, say so with `Server::assume`"
    )]
    NotAllowed,
    /// A body is configured to be in full duplex.
    #[error("the proxy ignores a mode override when it has a body in FULL_DUPLEX_STREAMED mode")]
    FullDuplex,
    /// Bodies are sent before heads are answered.
    #[error(
        "the proxy ignores a mode override when it has `send_body_without_waiting_for_header_response`"
    )]
    WithoutWaiting,
    /// The proxy ignores all replies.
    #[error("the proxy only lets observe")]
    Observing,
    /// The request's body can be asked for early while its head is unanswered, not later.
    #[error("only the head of a request can have its body sent early")]
    NotARequest,
}
