//! How an answer or a failure becomes a gRPC status.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use tonic::{Code, Status};

use crate::cluster::breakers::Overflow;

/// Why a call came to no answer of the service: the source of its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransportFailure {
    /// There is no connection.
    #[error("no connection")]
    Unreachable,
    /// The connection or the stream ended.
    #[error("broken off")]
    Broken,
    /// The cluster's `circuit_breakers` leave no room for the call.
    #[error("no room")]
    Overflow,
    /// The time is over.
    #[error("out of time")]
    Timeout,
}

impl TransportFailure {
    /// Why there was no answer; `None` for a status that the service itself gave.
    pub fn of(status: &Status) -> Option<Self> {
        std::error::Error::source(status)?.downcast_ref().copied()
    }

    fn status(self, mut status: Status) -> Status {
        status.set_source(Arc::new(self));
        status
    }
}

/// A broken connection or stream is `Unavailable`, as Envoy reports it.
pub(super) fn broken(error: &h2::Error) -> Status {
    let status = Status::unavailable(format!("the call was broken off: {error}"));
    TransportFailure::Broken.status(status)
}

pub(super) fn unreachable(why: &str) -> Status {
    TransportFailure::Unreachable.status(Status::unavailable(why))
}

pub(super) fn overflow(cluster: &str, overflow: Overflow) -> Status {
    let message = format!("{overflow} `{cluster}`");
    TransportFailure::Overflow.status(Status::unavailable(message))
}

pub(super) fn too_late(cluster: &str, timeout: Duration) -> Status {
    let message = format!("no answer from cluster `{cluster}` within {timeout:?}");
    TransportFailure::Timeout.status(Status::deadline_exceeded(message))
}

pub(super) fn invalid_metadata(error: &h2::Error) -> Status {
    Status::internal(format!(
        "the call has metadata that HTTP/2 forbids: {error}"
    ))
}

pub(super) fn no_answer() -> Status {
    Status::internal("the service answered OK without a message")
}

pub(super) fn second_answer() -> Status {
    Status::internal("the service sent two messages where one was due")
}

/// The end of the call, if the head of the answer says that it is one.
pub(super) fn of_head(head: &http::response::Parts) -> Option<Result<(), Status>> {
    match Status::from_header_map(&head.headers) {
        Some(status) if status.code() != Code::Ok => return Some(Err(status)),
        Some(_) if head.status == StatusCode::OK => return Some(Ok(())),
        Some(_) | None => {}
    }
    if head.status != StatusCode::OK {
        return Some(Err(of_http(head.status)));
    }
    let content_type = head.headers.get(CONTENT_TYPE);
    if content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
        return None;
    }
    Some(Err(Status::unknown(format!(
        "the service answered with content-type {content_type:?}, which is not gRPC"
    ))))
}

/// The end of the call, by the trailers of the answer.
pub(super) fn of_trailers(trailers: Option<&HeaderMap>) -> Result<(), Status> {
    if trailers.is_some_and(is_ok) {
        return Ok(());
    }
    match trailers.and_then(Status::from_header_map) {
        Some(status) if status.code() == Code::Ok => Ok(()),
        Some(status) => Err(status),
        None => Err(Status::unknown("the call ended without a grpc-status")),
    }
}

/// Whether these say no more than that the call went well, as nearly all do.
fn is_ok(trailers: &HeaderMap) -> bool {
    trailers
        .get(Status::GRPC_STATUS)
        .is_some_and(|code| code == "0")
        && !trailers.contains_key(Status::GRPC_MESSAGE)
}

/// What a non-200 HTTP answer means, by gRPC's mapping.
fn of_http(status: StatusCode) -> Status {
    let code = match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(code, format!("the service answered with HTTP {status}"))
}
