//! What happens on the stream of one exchange.

use std::{fmt, time::Duration};

use attache_proto::ext_proc::{
    ProcessingRequest, ProcessingResponse, processing_request::Request,
    processing_response::Response,
};
use tonic::Code;

/// The two directions of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// From the caller to the upstream.
    Request,
    /// From the upstream to the caller.
    Response,
}

/// The part of an exchange that a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Headers of a direction.
    Headers(Side),
    /// Body of a direction, or a piece of it.
    Body(Side),
    /// Trailers of a direction.
    Trailers(Side),
    /// The stream itself.
    Stream,
}

impl Phase {
    /// The part that a message of the proxy shows.
    pub fn of_request(message: &ProcessingRequest) -> Self {
        match &message.request {
            Some(Request::RequestHeaders(_)) => Self::Headers(Side::Request),
            Some(Request::ResponseHeaders(_)) => Self::Headers(Side::Response),
            Some(Request::RequestBody(_)) => Self::Body(Side::Request),
            Some(Request::ResponseBody(_)) => Self::Body(Side::Response),
            Some(Request::RequestTrailers(_)) => Self::Trailers(Side::Request),
            Some(Request::ResponseTrailers(_)) => Self::Trailers(Side::Response),
            None => Self::Stream,
        }
    }

    /// The part that a message of the processor is a reply to; [`Phase::Stream`] for immediate
    /// responses and messages without a reply.
    pub fn of_response(message: &ProcessingResponse) -> Self {
        match &message.response {
            Some(Response::RequestHeaders(_)) => Self::Headers(Side::Request),
            Some(Response::ResponseHeaders(_)) => Self::Headers(Side::Response),
            Some(Response::RequestBody(_)) => Self::Body(Side::Request),
            Some(Response::ResponseBody(_)) => Self::Body(Side::Response),
            Some(Response::RequestTrailers(_)) => Self::Trailers(Side::Request),
            Some(Response::ResponseTrailers(_)) => Self::Trailers(Side::Response),
            Some(Response::ImmediateResponse(_) | Response::StreamedImmediateResponse(_))
            | None => Self::Stream,
        }
    }

    /// The direction that it belongs to.
    pub fn side(self) -> Option<Side> {
        match self {
            Self::Headers(side) | Self::Body(side) | Self::Trailers(side) => Some(side),
            Self::Stream => None,
        }
    }

    /// The field's name in the messages: `request_headers`, …; `stream`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Headers(Side::Request) => "request_headers",
            Self::Headers(Side::Response) => "response_headers",
            Self::Body(Side::Request) => "request_body",
            Self::Body(Side::Response) => "response_body",
            Self::Trailers(Side::Request) => "request_trailers",
            Self::Trailers(Side::Response) => "response_trailers",
            Self::Stream => "stream",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that happened on the stream, seen from the proxy.
#[derive(Debug, Clone)]
pub enum Event {
    /// The proxy sent this.
    Sent(Box<ProcessingRequest>),
    /// The processor sent this.
    Received(Box<ProcessingResponse>),
    /// The processor sent a message that is none.
    Undecodable(String),
    /// The proxy half-closed: no more messages come, and none are expected.
    HalfClosed,
    /// The proxy reset the stream, since the caller has gone.
    Left,
    /// The processor ended the stream.
    Ended(Code, String),
    /// The proxy waited for the processor for as long as it had patience.
    GaveUp,
    /// The processor did not take what the proxy had to send, for as long as it had patience.
    Stuck,
}

/// An event and when it happened, from the opening of the stream.
#[derive(Debug, Clone)]
pub struct Timed {
    /// Since the stream was opened.
    pub at: Duration,
    /// What happened.
    pub event: Event,
}
