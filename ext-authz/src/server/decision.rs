//! Decisions: said in verbs, sent in the form that Envoy honours.

mod allow;
mod field;
mod reply;

#[cfg(test)]
mod tests;

use attache_filter::json;
use attache_proto::auth::CheckResponse;
use prost_types::Struct;
use serde::Serialize;

pub use crate::client::apply::HeaderLimits;
pub use allow::Allow;
pub(crate) use reply::unavailable;
pub use reply::{Deny, Fail};

use super::request::CheckRequestView;

/// Whether a request may pass. Made by [`Decision::allow`], [`Decision::deny`] or
/// [`Decision::error`]; there is no default, so none is made by accident.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision(Kind);

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Allow(Allow),
    Deny(Deny),
    Fail(Fail),
}

impl Decision {
    /// Let the request pass.
    pub fn allow() -> Allow {
        Allow::default()
    }

    /// Answer the client with this HTTP status, 200 to 599.
    pub fn deny(status: u16) -> Deny {
        Deny::new(status)
    }

    /// Say that no decision could be reached, so that the failure mode of the proxy decides: with
    /// `failure_mode_allow` the request passes unchanged, else the client is answered with this
    /// HTTP status, 400 to 599.
    ///
    /// Envoy knows this since 1.37; earlier ones take it for a denial with status 403.
    pub fn error(status: u16) -> Fail {
        Fail::new(status)
    }

    /// Whether the request may pass.
    pub fn is_allow(&self) -> bool {
        matches!(self.0, Kind::Allow(_))
    }

    /// Whether no decision was reached.
    pub fn is_error(&self) -> bool {
        matches!(self.0, Kind::Fail(_))
    }

    /// The status that the client is answered with, unless the request may pass.
    pub fn status(&self) -> Option<u16> {
        match &self.0 {
            Kind::Allow(_) => None,
            Kind::Deny(deny) => Some(deny.status()),
            Kind::Fail(fail) => Some(fail.status()),
        }
    }

    /// The reason for a denial or an error, as the proxy's debug log has it.
    pub fn reason(&self) -> Option<&str> {
        match &self.0 {
            Kind::Allow(_) => None,
            Kind::Deny(deny) => Some(deny.why()),
            Kind::Fail(fail) => Some(fail.why()),
        }
        .filter(|reason| !reason.is_empty())
    }

    /// Adds a field to the dynamic metadata; errors have none.
    pub(crate) fn add_metadata(&mut self, name: &str, value: prost_types::Value) {
        let metadata = match &mut self.0 {
            Kind::Allow(allow) => &mut allow.metadata,
            Kind::Deny(deny) => &mut deny.metadata,
            Kind::Fail(_) => return,
        };
        let fields = &mut metadata.get_or_insert_default().fields;
        fields.insert(name.to_owned(), value);
    }

    /// The message to send, or why it cannot be sent, by Envoy's default limits.
    ///
    /// # Errors
    /// When a name, value or status would be lost or mangled on the way.
    pub fn into_response(self, request: &CheckRequestView) -> Result<CheckResponse, DecisionError> {
        self.into_response_within(request, HeaderLimits::default())
    }

    /// The same by the limits that the proxy is known to have.
    ///
    /// # Errors
    /// As [`Decision::into_response`].
    pub fn into_response_within(
        self,
        request: &CheckRequestView,
        limits: HeaderLimits,
    ) -> Result<CheckResponse, DecisionError> {
        match self.0 {
            Kind::Allow(allow) => allow.into_response(request, limits),
            Kind::Deny(deny) => deny.into_response(request, limits),
            Kind::Fail(fail) => fail.into_response(limits),
        }
    }
}

impl From<Allow> for Decision {
    fn from(allow: Allow) -> Self {
        Self(Kind::Allow(allow))
    }
}

impl From<Deny> for Decision {
    fn from(deny: Deny) -> Self {
        Self(Kind::Deny(deny))
    }
}

impl From<Fail> for Decision {
    fn from(fail: Fail) -> Self {
        Self(Kind::Fail(fail))
    }
}

/// What of a decision cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecisionError {
    /// Not a header name.
    #[error("`{0}` is not a header name")]
    Name(String),
    /// A line break or other byte that a header value cannot have.
    #[error("the value of `{0}` has characters that a header cannot have")]
    Value(String),
    /// The proxy sets this header itself, or ignores it here.
    #[error("`{0}` cannot be changed here")]
    Reserved(String),
    /// Envoy removes last: what is set would be lost.
    #[error("`{0}` is both set and removed")]
    SetAndRemoved(String),
    /// Not a status that a client could be answered with.
    #[error("{0} is not an HTTP status from 200 to 599")]
    Status(u16),
    /// Not a status that says that something failed.
    #[error("{0} is not an HTTP status from 400 to 599")]
    ErrorStatus(u16),
    /// A status whose responses have no body.
    #[error("a response with status {0} has no body")]
    Body(u16),
    /// A body larger than what a proxy should hold for a denial.
    #[error("a body of {0} bytes is more than 1 MiB")]
    BodySize(usize),
    /// Envoy answers 500 when a request has more headers than its limit, by default 100.
    #[error("{0} headers are more than the {1} that the proxy accepts")]
    TooMany(usize, usize),
    /// Envoy answers 500 when the headers of a request are larger than its limit, by default
    /// 60 KiB.
    #[error("{0} bytes of headers are more than the {1} that the proxy accepts")]
    TooLarge(usize, usize),
    /// Dynamic metadata that is no object.
    #[error("dynamic metadata is not an object: {0}")]
    Metadata(String),
}

/// A type of the author as dynamic metadata.
fn metadata(fields: &(impl Serialize + ?Sized)) -> Result<Struct, DecisionError> {
    let value =
        serde_json::to_value(fields).map_err(|error| DecisionError::Metadata(error.to_string()))?;
    json::to_object(value)
        .ok_or_else(|| DecisionError::Metadata("it is another kind of value".to_owned()))
}
