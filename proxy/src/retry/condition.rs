//! After what a request is sent again: the names of `retry_on`.

use attache_service::config::{Errors, Located};
use http::StatusCode;

/// After what a request is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    ServerError,
    GatewayError,
    Reset,
    ResetBeforeRequest,
    ConnectFailure,
    RefusedStream,
    RateLimited,
    Retriable4xx,
    RetriableHeaders,
    RetriableStatusCodes,
    /// A gRPC status, in a response that has no more than its head.
    Grpc(u8),
}

const CONDITIONS: [(&str, Condition); 15] = [
    ("5xx", Condition::ServerError),
    ("gateway-error", Condition::GatewayError),
    ("reset", Condition::Reset),
    ("reset-before-request", Condition::ResetBeforeRequest),
    ("connect-failure", Condition::ConnectFailure),
    ("refused-stream", Condition::RefusedStream),
    ("envoy-ratelimited", Condition::RateLimited),
    ("retriable-4xx", Condition::Retriable4xx),
    ("retriable-headers", Condition::RetriableHeaders),
    ("retriable-status-codes", Condition::RetriableStatusCodes),
    ("cancelled", Condition::Grpc(1)),
    ("deadline-exceeded", Condition::Grpc(4)),
    ("internal", Condition::Grpc(13)),
    ("resource-exhausted", Condition::Grpc(8)),
    ("unavailable", Condition::Grpc(14)),
];

/// How an attempt ended that may be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is no connection.
    Connect,
    /// The upstream says that it has not begun.
    RefusedStream,
    /// The connection or stream ended, or the attempt took too long.
    Reset,
    /// The upstream has answered with this.
    Answered(Answer),
}

/// What counts of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(super) status: StatusCode,
    /// The gRPC status in its head.
    pub(super) grpc: Option<u8>,
    /// The upstream limits rates and says so: asking again seldom helps.
    pub(super) limited: bool,
    /// It is one of `retriable_status_codes`.
    pub(super) named: bool,
    /// It has one of `retriable_headers`.
    pub(super) marked: bool,
}

impl Condition {
    /// The conditions that `written` names; others are reported.
    pub(super) fn all(written: &Located<String>, errors: &mut Errors) -> Vec<Self> {
        let mut conditions = Vec::new();
        let names = written.split(',').map(str::trim);
        for name in names.filter(|name| !name.is_empty()) {
            match CONDITIONS.iter().find(|(known, _)| *known == name) {
                Some((_, condition)) => conditions.push(*condition),
                None => {
                    let name = Located {
                        value: name.to_owned(),
                        span: written.span.clone(),
                    };
                    let known = CONDITIONS.iter().map(|(name, _)| *name);
                    errors.unknown_name(&name, "condition of `retry_on`", known);
                }
            }
        }
        conditions
    }

    /// Whether a request that failed so is sent again.
    pub(super) fn covers(self, failure: Failure) -> bool {
        let answer = match failure {
            Failure::Answered(answer) if answer.limited => return self == Self::RateLimited,
            Failure::Answered(answer) => answer,
            Failure::Connect | Failure::RefusedStream | Failure::Reset => {
                return match self {
                    Self::ServerError | Self::GatewayError | Self::Reset => true,
                    Self::ConnectFailure | Self::ResetBeforeRequest => failure == Failure::Connect,
                    Self::RefusedStream => failure == Failure::RefusedStream,
                    _ => false,
                };
            }
        };
        match self {
            Self::ServerError => answer.status.is_server_error(),
            Self::GatewayError => matches!(answer.status.as_u16(), 502..=504),
            Self::Retriable4xx => answer.status == StatusCode::CONFLICT,
            Self::RetriableStatusCodes => answer.named,
            Self::RetriableHeaders => answer.marked,
            Self::Grpc(status) => answer.grpc == Some(status),
            Self::Reset
            | Self::ResetBeforeRequest
            | Self::ConnectFailure
            | Self::RefusedStream
            | Self::RateLimited => false,
        }
    }
}
