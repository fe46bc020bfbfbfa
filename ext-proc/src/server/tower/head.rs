//! Heads as `http` has them, and back: what a middleware changed.

use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header, request, response, uri};

use super::body::Body;
use crate::server::headers::{HeaderError, Headers};

/// A head that cannot be given to a middleware.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeadError {
    /// `forward_rules` leave it out.
    #[error("the proxy does not show `{0}` (forward_rules), which middleware needs")]
    Hidden(&'static str),
    /// Not what HTTP has there.
    #[error("`{0}` is not valid")]
    Invalid(&'static str),
}

/// The request as a server sees it over HTTP/2: an absolute URI, no `host`.
pub(super) fn request(headers: &Headers, body: Body) -> Result<Request<Body>, HeadError> {
    let method = pseudo(headers, ":method")?;
    let method = Method::from_bytes(method.as_bytes());
    let method = method.map_err(|_| HeadError::Invalid(":method"))?;
    let uri = uri(headers, &method)?;
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = HeaderMap::clone(headers);
    Ok(request)
}

fn pseudo<'a>(headers: &'a Headers, name: &'static str) -> Result<&'a str, HeadError> {
    headers.pseudo(name).ok_or(HeadError::Hidden(name))
}

fn uri(headers: &Headers, method: &Method) -> Result<Uri, HeadError> {
    let authority = headers.pseudo(":authority");
    if method == Method::CONNECT && headers.pseudo(":path").is_none() {
        let authority = authority.ok_or(HeadError::Hidden(":authority"))?;
        return authority
            .parse()
            .map_err(|_| HeadError::Invalid(":authority"));
    }
    let path = pseudo(headers, ":path")?;
    let path: uri::PathAndQuery = path.parse().map_err(|_| HeadError::Invalid(":path"))?;
    let mut parts = uri::Parts::default();
    // `*` stands alone: there is no absolute form of it.
    if path != "*"
        && let (Some(scheme), Some(authority)) = (headers.pseudo(":scheme"), authority)
        && let (Ok(scheme), Ok(authority)) = (scheme.parse(), authority.parse())
    {
        parts.scheme = Some(scheme);
        parts.authority = Some(authority);
    }
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).map_err(|_| HeadError::Invalid(":path"))
}

/// The response as a client sees it.
pub(super) fn response(headers: &Headers, body: Body) -> Result<Response<Body>, HeadError> {
    let status = pseudo(headers, ":status")?;
    let status = StatusCode::from_bytes(status.as_bytes());
    let mut response = Response::new(body);
    *response.status_mut() = status.map_err(|_| HeadError::Invalid(":status"))?;
    *response.headers_mut() = HeaderMap::clone(headers);
    Ok(response)
}

/// Notes what a middleware made of the request.
pub(super) fn note_request(
    headers: &mut Headers,
    sent_on: &request::Parts,
) -> Result<(), HeaderError> {
    let differs = |headers: &Headers, name, value: &str| headers.pseudo(name) != Some(value);
    let method = sent_on.method.as_str();
    if differs(headers, ":method", method) {
        headers.set_pseudo(":method", method.parse().map_err(|_| refused(":method"))?)?;
    }
    let uri = &sent_on.uri;
    if let Some(path) = uri.path_and_query()
        && differs(headers, ":path", path.as_str())
    {
        let path = path.as_str().parse().map_err(|_| refused(":path"))?;
        headers.set_pseudo(":path", path)?;
    }
    // Layers that know paths only drop the rest: it stays.
    if let Some(authority) = uri.authority()
        && differs(headers, ":authority", authority.as_str())
    {
        let authority = authority.as_str().parse();
        headers.set_pseudo(":authority", authority.map_err(|_| refused(":authority"))?)?;
    }
    headers.assign(&sent_on.headers)
}

fn refused(name: &str) -> HeaderError {
    HeaderError::Value(name.to_owned())
}

/// Notes what a middleware made of the response.
pub(super) fn note_response(
    headers: &mut Headers,
    answer: &response::Parts,
) -> Result<(), HeaderError> {
    if answer.status.is_informational() && answer.status != StatusCode::SWITCHING_PROTOCOLS {
        return Err(HeaderError::Status(answer.status));
    }
    if headers.pseudo(":status") != Some(answer.status.as_str()) {
        headers.set_pseudo(":status", answer.status.as_u16().into())?;
    }
    headers.assign(&answer.headers)
}

/// The `content-length`, when there is one valid.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}
