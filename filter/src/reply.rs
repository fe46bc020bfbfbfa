//! Answers that a layer gives itself, in the form that the caller understands.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use tower::Service;

use crate::{Body, RequestContext, head::is_grpc};

/// What of the request decides the form of a local reply; taken before the request moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyForm {
    /// The caller speaks gRPC: HTTP 200 with `grpc-status`.
    pub grpc: bool,
    /// `HEAD`: headers only.
    pub head: bool,
}

impl ReplyForm {
    /// The form for a request with this method and these headers.
    pub fn of(method: &Method, headers: &HeaderMap) -> Self {
        Self {
            grpc: is_grpc(headers),
            head: method == Method::HEAD,
        }
    }
}

/// An answer made here, not by the upstream.
#[derive(Debug, Clone)]
pub struct LocalReply {
    /// HTTP status; mapped to a gRPC status for gRPC callers.
    pub status: StatusCode,
    /// Extra headers; `content-length` and `transfer-encoding` are ignored.
    pub headers: HeaderMap,
    /// The body; the `grpc-message` for gRPC callers.
    pub body: Bytes,
    /// gRPC status to use instead of the mapped one.
    pub grpc_status: Option<u32>,
    /// Why, for the access log.
    pub details: Cow<'static, str>,
}

const GRPC_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

impl LocalReply {
    /// An empty reply with this status.
    pub fn new(status: StatusCode, details: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            grpc_status: None,
            details: details.into(),
        }
    }

    /// The same with a body.
    pub fn with_body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// The response in the caller's form. A body gets `text/plain` unless a type is set.
    pub fn into_response(self, form: ReplyForm) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        let mut headers = self.headers;
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::TRANSFER_ENCODING);
        if form.grpc {
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/grpc"),
            );
            if !headers.contains_key("grpc-status") || self.grpc_status.is_some() {
                let status = self
                    .grpc_status
                    .unwrap_or_else(|| grpc_status_of(self.status));
                headers.insert("grpc-status", HeaderValue::from(status));
            }
            if !self.body.is_empty() {
                let message = String::from_utf8_lossy(&self.body);
                let message = utf8_percent_encode(&message, GRPC_MESSAGE).to_string();
                if let Ok(message) = HeaderValue::from_str(&message) {
                    headers.insert("grpc-message", message);
                }
            }
        } else {
            *response.status_mut() = self.status;
            if !self.body.is_empty() {
                // The length of an empty body is for the protocol to say.
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(self.body.len()));
                headers
                    .entry(header::CONTENT_TYPE)
                    .or_insert(HeaderValue::from_static("text/plain"));
                if !form.head {
                    *response.body_mut() = Body::from(self.body);
                }
            }
        }
        *response.headers_mut() = headers;
        response
    }
}

/// Envoy's mapping of an HTTP status to a gRPC status.
pub fn grpc_status_of(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// The way of a response that a layer gives instead of the service that it wraps: through the
/// response phase of the layers further inside, where the innermost service takes part in that
/// ([`RequestContext::hand_inward`]), else straight out.
///
/// `request` is what the layer would have passed on, as far as it still has it; its body is of
/// no use any more.
///
/// # Errors
/// Those of the inner service.
pub async fn inward<S>(
    inner: &mut S,
    mut request: Request<Body>,
    response: Response<Body>,
) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    match RequestContext::of(&mut request).hand_inward(response) {
        Ok(()) => inner.call(request).await,
        Err(response) => Ok(*response),
    }
}
