//! Requests that may not pass, and checks that failed: what the client is answered.

use attache_proto::{
    auth::{CheckResponse, DeniedHttpResponse, check_response::HttpResponse},
    rpc, types,
};
use http::header;
use prost_types::Struct;
use serde::Serialize;
use tonic::Code;

use super::{
    CheckRequestView, DecisionError, HeaderLimits,
    field::{Extent, option, ordinary},
    metadata,
};

/// Most bytes of a body: the proxy holds it whole.
const MAX_BODY: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Reply {
    fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: String::new(),
        }
    }

    fn into_message(self, limits: HeaderLimits) -> Result<DeniedHttpResponse, DecisionError> {
        if matches!(self.status, 204 | 304) && !self.body.is_empty() {
            return Err(DecisionError::Body(self.status));
        }
        if self.body.len() > MAX_BODY {
            return Err(DecisionError::BodySize(self.body.len()));
        }
        let mut headers = Vec::with_capacity(self.headers.len());
        for (name, value) in self.headers {
            if ordinary(&name)? == header::SERVER {
                return Err(DecisionError::Reserved(name));
            }
            headers.push(option(name, value)?);
        }
        Extent::of(&headers).within(limits)?;
        Ok(DeniedHttpResponse {
            status: Some(types::HttpStatus {
                code: i32::from(self.status),
            }),
            headers,
            body: self.body,
        })
    }
}

/// A request that may not pass, and what the client is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Deny {
    reply: Reply,
    reason: String,
    grpc_status: Option<Code>,
    pub(super) metadata: Option<Struct>,
}

impl Deny {
    pub(super) fn new(status: u16) -> Self {
        Self {
            reply: Reply::new(status),
            reason: String::new(),
            grpc_status: None,
            metadata: None,
        }
    }

    pub(super) fn status(&self) -> u16 {
        self.reply.status
    }

    /// Adds a header; repeated names become several lines.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.reply.headers.push((name.into(), value.into()));
        self
    }

    /// The body, at most 1 MiB; `text/plain` unless a `content-type` is added. gRPC clients get it
    /// as the message of their status.
    #[must_use]
    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.reply.body = body.into();
        self
    }

    /// The status for gRPC clients. Default: what belongs to the HTTP status (401
    /// `UNAUTHENTICATED`, 403 `PERMISSION_DENIED`, 404 `UNIMPLEMENTED`; 429, 502, 503 and 504
    /// `UNAVAILABLE`; 400 `INTERNAL`; else `UNKNOWN`).
    #[must_use]
    pub fn grpc_status(mut self, code: Code) -> Self {
        self.grpc_status = Some(code);
        self
    }

    pub(super) fn why(&self) -> &str {
        &self.reason
    }

    /// A reason for the proxy's debug log; clients do not see it.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Dynamic metadata for logs, in the namespace `envoy.filters.http.ext_authz`.
    #[must_use]
    pub fn metadata(mut self, fields: Struct) -> Self {
        self.metadata = Some(fields);
        self
    }

    /// The same from a type of yours.
    ///
    /// # Errors
    /// When it has no form as a JSON object.
    pub fn metadata_from<T: Serialize + ?Sized>(self, fields: &T) -> Result<Self, DecisionError> {
        Ok(self.metadata(metadata(fields)?))
    }

    pub(super) fn into_response(
        self,
        request: &CheckRequestView,
        limits: HeaderLimits,
    ) -> Result<CheckResponse, DecisionError> {
        let status = self.reply.status;
        if !(200..600).contains(&status) {
            return Err(DecisionError::Status(status));
        }
        let mut denied = self.reply.into_message(limits)?;
        if let Some(code) = self.grpc_status.filter(|_| request.is_grpc()) {
            let code = i32::from(code).to_string();
            denied.headers.push(option("grpc-status".to_owned(), code)?);
        }
        let code = match status {
            401 => Code::Unauthenticated,
            429 => Code::ResourceExhausted,
            _ => Code::PermissionDenied,
        };
        Ok(CheckResponse {
            status: Some(rpc::Status {
                code: code.into(),
                message: self.reason,
                details: Vec::new(),
            }),
            http_response: Some(HttpResponse::DeniedResponse(denied)),
            dynamic_metadata: self.metadata,
        })
    }
}

/// A check that came to no decision, and what the client is told unless the proxy lets requests
/// pass then.
#[derive(Debug, Clone, PartialEq)]
pub struct Fail {
    reply: Reply,
    reason: String,
}

impl Fail {
    pub(super) fn new(status: u16) -> Self {
        Self {
            reply: Reply::new(status),
            reason: String::new(),
        }
    }

    pub(super) fn status(&self) -> u16 {
        self.reply.status
    }

    /// Adds a header, such as `retry-after`; repeated names become several lines.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.reply.headers.push((name.into(), value.into()));
        self
    }

    /// The body, at most 1 MiB; `text/plain` unless a `content-type` is added.
    #[must_use]
    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.reply.body = body.into();
        self
    }

    pub(super) fn why(&self) -> &str {
        &self.reason
    }

    /// A reason for the proxy's debug log; clients do not see it.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    pub(crate) fn into_response(
        self,
        limits: HeaderLimits,
    ) -> Result<CheckResponse, DecisionError> {
        let status = self.reply.status;
        if !(400..600).contains(&status) {
            return Err(DecisionError::ErrorStatus(status));
        }
        let code = match status {
            503 => Code::Unavailable,
            504 => Code::DeadlineExceeded,
            _ => Code::Internal,
        };
        Ok(error_response(
            code,
            self.reason,
            self.reply.into_message(limits)?,
        ))
    }
}

/// The failure that needs no check: 503, empty.
pub(crate) fn unavailable() -> CheckResponse {
    let reply = DeniedHttpResponse {
        status: Some(types::HttpStatus { code: 503 }),
        ..DeniedHttpResponse::default()
    };
    error_response(Code::Unavailable, String::new(), reply)
}

/// The code must not be 0, with which Envoy lets the request pass.
fn error_response(code: Code, message: String, reply: DeniedHttpResponse) -> CheckResponse {
    CheckResponse {
        status: Some(rpc::Status {
            code: code.into(),
            message,
            details: Vec::new(),
        }),
        http_response: Some(HttpResponse::ErrorResponse(reply)),
        dynamic_metadata: None,
    }
}
