//! Why a stack of middleware cannot go on.

use std::time::Duration;

use ::tower::BoxError;

use super::{body::mode_name, head::HeadError};
use crate::server::{
    headers::HeaderError,
    session::{Direction, ReplyError},
};

/// What makes an exchange fail; the server's setting says what becomes of it then.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Reply(#[from] ReplyError),
    #[error("a middleware failed: {0}")]
    Service(#[source] BoxError),
    #[error("the {} body broke off: {source}", name(*direction))]
    Body {
        direction: Direction,
        source: BoxError,
    },
    #[error("the proxy does not show the {} headers, which middleware needs", name(*.0))]
    NoHead(Direction),
    #[error(
        "a middleware changes the {} body, which the proxy does not show: set {} to BUFFERED, \
         STREAMED or FULL_DUPLEX_STREAMED",
        name(*.0), mode_name(*.0)
    )]
    Hidden(Direction),
    #[error(
        "a middleware reads the {} body before it decides on the headers, and in STREAMED mode \
         the proxy waits for them: set {} to BUFFERED or FULL_DUPLEX_STREAMED, or \
         send_body_without_waiting_for_header_response",
        name(*.0), mode_name(*.0)
    )]
    Standstill(Direction),
    #[error(
        "the {} body is larger than the proxy's buffer, and a middleware changes it: set {} to \
         STREAMED or FULL_DUPLEX_STREAMED",
        name(*.0), mode_name(*.0)
    )]
    Partial(Direction),
    #[error(
        "the {} body ended with trailers, so that nothing carries what a middleware still has \
         of it: set {} to BUFFERED or FULL_DUPLEX_STREAMED",
        name(*.0), mode_name(*.0)
    )]
    Trailers(Direction),
    #[error("a body that must be sent at once is larger than {0} bytes")]
    TooLarge(usize),
    #[error("a middleware panicked: {0}")]
    Panicked(String),
    #[error("the middleware took longer than {0:?}")]
    TimedOut(Duration),
}

fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Request => "request",
        Direction::Response => "response",
    }
}
