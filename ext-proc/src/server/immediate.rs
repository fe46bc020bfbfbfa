//! Answers that a processor gives itself.

use attache_proto::{core, ext_proc, types};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode};
use prost::Message as _;

use super::headers::{HeaderError, Headers, IntoName};

/// An answer to the caller, instead of the upstream's.
///
/// ```
/// use attache_ext_proc::server::{Immediate, Result};
///
/// fn check(token: Option<&str>) -> Result {
///     match token {
///         Some(_) => Ok(()),
///         None => Err(Immediate::new(401).body("who are you?").into()),
///     }
/// }
/// # assert!(check(None).is_err());
/// ```
#[derive(Debug)]
pub struct Immediate {
    status: u16,
    headers: Headers,
    body: Bytes,
    grpc_status: Option<u32>,
    details: String,
}

impl Immediate {
    /// An empty answer with this status: a number or an [`http::StatusCode`]. What is not a
    /// final status becomes 500.
    pub fn new(status: impl IntoStatus) -> Self {
        Self {
            status: status.into_status(),
            headers: Headers::default(),
            body: Bytes::new(),
            grpc_status: None,
            details: String::new(),
        }
    }

    /// The body; `text/plain` unless a content type is set, the message for gRPC callers.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// A header of the answer.
    ///
    /// # Errors
    /// When Envoy would refuse the name or the value.
    pub fn header<V>(mut self, name: impl IntoName, value: V) -> Result<Self, HeaderError>
    where
        V: TryInto<HeaderValue>,
    {
        self.headers.append(name, value)?;
        Ok(self)
    }

    /// The gRPC status for gRPC callers; mapped from the HTTP status unless given.
    #[must_use]
    pub fn grpc_status(mut self, status: tonic::Code) -> Self {
        self.grpc_status = Some(status as u32);
        self
    }

    /// Why, for the proxy's access log (`%RESPONSE_CODE_DETAILS%`).
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    fn mutation(&mut self) -> Option<ext_proc::HeaderMutation> {
        // Too many headers are dropped rather than the answer: it matters more.
        let changes = self.headers.take_changes().ok()?;
        let mut encoded = BytesMut::with_capacity(changes.encoded_len());
        changes.encode(&mut encoded);
        (!encoded.is_empty()).then(|| ext_proc::HeaderMutation::decode(encoded).ok())?
    }

    /// The head of a streamed answer, and what there is of a body.
    pub(super) fn into_streamed(mut self) -> (core::HeaderMap, Bytes) {
        let status = core::HeaderValue {
            key: ":status".to_owned(),
            raw_value: self.status.to_string().into(),
            ..core::HeaderValue::default()
        };
        let set = self.mutation().unwrap_or_default().set_headers;
        let set = set.into_iter().filter_map(|option| option.header);
        let headers = std::iter::once(status).chain(set).collect();
        (core::HeaderMap { headers }, self.body)
    }

    pub(super) fn into_message(mut self) -> ext_proc::ImmediateResponse {
        ext_proc::ImmediateResponse {
            status: Some(types::HttpStatus {
                code: i32::from(self.status),
            }),
            headers: self.mutation(),
            body: self.body,
            grpc_status: self
                .grpc_status
                .map(|status| ext_proc::GrpcStatus { status }),
            details: self.details,
        }
    }
}

/// An HTTP status, or its number.
pub trait IntoStatus {
    /// The number of a final status.
    fn into_status(self) -> u16;
}

impl IntoStatus for u16 {
    fn into_status(self) -> u16 {
        if (200..600).contains(&self) {
            self
        } else {
            500
        }
    }
}

impl IntoStatus for StatusCode {
    fn into_status(self) -> u16 {
        self.as_u16().into_status()
    }
}
