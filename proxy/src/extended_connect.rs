//! Upgrades over HTTP/2: the extended `CONNECT` of RFC 8441.
//!
//! It goes through the proxy as the HTTP/1.1 upgrade that it stands for: `GET` with `upgrade`, as
//! in Envoy. So policies and origins see one form of it.

use http::{HeaderValue, Method, Response, StatusCode, header, request};
use hyper::ext::Protocol;

use crate::body::ClientBody;

/// Whether a request is an upgrade that came as an extended `CONNECT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it is in its version of HTTP.
    Ordinary,
    /// An extended `CONNECT`, which success opens.
    Extended,
}

impl Form {
    /// Makes the upgrade of an extended `CONNECT`. They come only where the listener takes them.
    pub(crate) fn of(parts: &mut request::Parts) -> Self {
        if parts.method != Method::CONNECT {
            return Self::Ordinary;
        }
        let Some(protocol) = parts.extensions.remove::<Protocol>() else {
            return Self::Ordinary;
        };
        // What is no header value is no protocol that a listener lets through.
        let protocol =
            HeaderValue::from_str(protocol.as_str()).unwrap_or(HeaderValue::from_static("unknown"));
        parts.method = Method::GET;
        parts.headers.insert(header::UPGRADE, protocol);
        let upgrade = HeaderValue::from_static("upgrade");
        parts.headers.insert(header::CONNECTION, upgrade);
        Self::Extended
    }

    /// The response as the client of such a request understands it: 200 opens the tunnel. What is
    /// successful otherwise would open one, too, with nobody at its end.
    pub(crate) fn answer(self, mut response: Response<ClientBody>) -> Response<ClientBody> {
        if self == Self::Ordinary {
            return response;
        }
        let status = response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            *response.status_mut() = StatusCode::OK;
        } else if status.is_success() {
            let mut refused = Response::new(ClientBody::empty());
            *refused.status_mut() = StatusCode::BAD_GATEWAY;
            return refused;
        }
        response.headers_mut().remove(header::CONNECTION);
        response.headers_mut().remove(header::UPGRADE);
        response
    }
}
