//! What an answer means: allowed with effects, denied, or an error. Pure.
//!
//! [`check_response`] reads those that come over gRPC, [`super::http::answer`] those over plain
//! HTTP. These are the rules of Envoy 1.40 as observed on the binary, odd as some are. What would
//! break the wire (line breaks in values, impossible status codes, message framing) is refused
//! whether or not `validate_mutations` is set.

pub mod check_response;

use attache_filter::head::header_name;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

/// How answers are read.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// `validate_mutations`: also refuse what Envoy lets through unless told not to.
    pub validate: bool,
    /// `status_on_error`, for error answers without a status of their own.
    pub status_on_error: StatusCode,
    /// `max_denied_response_body_bytes`; 0 is no limit.
    pub max_denied_body: usize,
}

/// A decided check.
#[derive(Debug)]
pub struct Answer {
    /// What to do with the request.
    pub verdict: Verdict,
    /// Dynamic metadata that came with the decision.
    pub metadata: Option<prost_types::Struct>,
}

/// What to do with the request.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// Let it pass, with these changes.
    Allow(Effects),
    /// Answer with this.
    Deny(Reply),
    /// The service reports that it failed, perhaps with the answer to give.
    Error(Option<Reply>),
    /// The answer cannot be carried out.
    Invalid(Invalid),
}

/// Why an answer cannot be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalid {
    /// The answer itself is refused: 500, `ext_authz_invalid`.
    Answer,
    /// The request it makes could not be sent upstream: 503, flag `DPE`.
    Request,
    /// The request it makes is over the header limits: 500, `ext_authz_invalid`.
    RequestLimits,
}

/// An answer to the client.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// HTTP status, 200 to 599.
    pub status: StatusCode,
    /// Headers, framing ones left out.
    pub headers: HeaderMap,
    /// Body; empty for statuses that have none.
    pub body: Bytes,
}

/// The name of a header to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldName {
    /// `:path` and the like; also `host`, which means `:authority`.
    Pseudo(String),
    /// An ordinary header.
    Header(HeaderName),
}

impl Reply {
    /// The plain refusal.
    pub fn forbidden() -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    /// A reply that can be written: its body within the limit, and none where the status has
    /// none.
    pub(crate) fn within(mut self, max_body: usize) -> Self {
        if max_body > 0 {
            self.body.truncate(max_body);
        }
        if self.status == StatusCode::NO_CONTENT || self.status == StatusCode::NOT_MODIFIED {
            self.body.clear();
        }
        self
    }
}

/// Whether a header of the service may stand in a reply: framing and `server` are the proxy's.
pub(crate) fn is_for_client(name: &HeaderName) -> bool {
    !is_framing(name) && name != header::SERVER
}

/// A status that a client can be given: 200 to 599.
pub(crate) fn final_status(code: i32) -> Option<StatusCode> {
    u16::try_from(code)
        .ok()
        .filter(|code| (200..600).contains(code))
        .and_then(|code| StatusCode::from_u16(code).ok())
}

impl FieldName {
    /// The lower-case name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pseudo(name) => name,
            Self::Header(name) => name.as_str(),
        }
    }

    fn parse(name: &str) -> Option<Self> {
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            return Some(Self::Pseudo(name.to_ascii_lowercase()));
        }
        header_name(name).map(Self::Header)
    }
}

/// How a response header is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResponseVerb {
    /// Another line.
    Add,
    /// All lines replaced by one, or added.
    Set,
    /// Only where there is none.
    AddIfAbsent,
    /// Only where there is one.
    ReplaceIfPresent,
}

/// What an allowing answer changes, in the order in which it is applied.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// Request headers to set.
    pub set: Vec<(FieldName, HeaderValue)>,
    /// Request headers to add as lines of their own; only plain HTTP has such.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Request headers to join to an existing line.
    pub append: Vec<(FieldName, HeaderValue)>,
    /// Request headers to remove, as named by the service.
    pub remove: Vec<String>,
    /// Query parameters to set.
    pub query_set: Vec<(String, String)>,
    /// Query parameters to remove.
    pub query_remove: Vec<String>,
    /// Response headers, sorted by verb as they are applied.
    pub response: Vec<(ResponseVerb, HeaderName, HeaderValue)>,
    /// Entries that were left out since they would break the message's framing.
    pub omitted: usize,
}

impl Effects {
    /// Whether the request's headers or query are touched.
    pub fn touches_request(&self) -> bool {
        !self.set.is_empty()
            || !self.add.is_empty()
            || !self.append.is_empty()
            || !self.remove.is_empty()
            || self.touches_query()
    }

    /// Whether the query is touched.
    pub fn touches_query(&self) -> bool {
        !self.query_set.is_empty() || !self.query_remove.is_empty()
    }
}

/// Headers that belong to one hop or frame the message; a policy never sets them.
pub(crate) fn is_framing(name: &HeaderName) -> bool {
    [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
    ]
    .contains(name)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

#[cfg(test)]
pub(crate) mod tests;
