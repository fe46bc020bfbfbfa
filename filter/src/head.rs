//! Message heads as the policy protocols see them: pseudo-headers beside ordinary ones.

use std::borrow::Cow;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request, response,
};

/// A value that a pseudo-header cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} cannot be set to {value:?}")]
pub struct InvalidPseudo {
    /// The pseudo-header's name.
    pub name: String,
    /// The refused value.
    pub value: String,
}

/// A head whose headers and pseudo-headers (`:path`, `:status`, ...) are read and set by name.
pub trait MessageHead {
    /// The ordinary headers.
    fn headers(&self) -> &HeaderMap;
    /// The ordinary headers, to change.
    fn headers_mut(&mut self) -> &mut HeaderMap;
    /// The value of a pseudo-header (`host` counts as `:authority` in requests).
    fn pseudo(&self, name: &str) -> Option<Cow<'_, str>>;
    /// Sets a pseudo-header.
    ///
    /// # Errors
    /// When the head has no such pseudo-header or the value does not fit it.
    fn set_pseudo(&mut self, name: &str, value: &[u8]) -> Result<(), InvalidPseudo>;
    /// Calls `visit` for every field in Envoy's order: pseudo-headers first. In requests the
    /// `host` header is shown as `:authority` only.
    fn for_each(&self, visit: &mut dyn FnMut(&str, &[u8]));
}

fn invalid(name: &str, value: &[u8]) -> InvalidPseudo {
    InvalidPseudo {
        name: name.to_owned(),
        value: String::from_utf8_lossy(value).into_owned(),
    }
}

/// A copy of a request's head, without what only this process knows of it but the scheme.
pub fn copy(head: &request::Parts) -> request::Parts {
    let (mut copy, ()) = http::Request::new(()).into_parts();
    copy.method = head.method.clone();
    copy.uri = head.uri.clone();
    copy.version = head.version;
    copy.headers = head.headers.clone();
    if let Some(scheme) = head.extensions.get::<Scheme>() {
        copy.extensions.insert(*scheme);
    }
    copy
}

/// `:authority` of a request: from the URI, else the `host` header.
pub fn authority(parts: &request::Parts) -> Option<&str> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => parts
            .headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok()),
    }
}

impl MessageHead for request::Parts {
    fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    fn pseudo(&self, name: &str) -> Option<Cow<'_, str>> {
        match name {
            ":authority" | "host" => authority(self).map(Cow::Borrowed),
            ":path" if self.method == Method::CONNECT => None,
            ":path" => Some(Cow::Borrowed(
                self.uri.path_and_query().map_or("/", |path| path.as_str()),
            )),
            ":method" => Some(Cow::Borrowed(self.method.as_str())),
            ":scheme" => Some(Cow::Borrowed(scheme(self))),
            _ => None,
        }
    }

    fn set_pseudo(&mut self, name: &str, value: &[u8]) -> Result<(), InvalidPseudo> {
        let refused = || invalid(name, value);
        match name {
            ":authority" | "host" => {
                let host = HeaderValue::from_bytes(value).map_err(|_| refused())?;
                if self.uri.authority().is_some() {
                    let mut uri = std::mem::take(&mut self.uri).into_parts();
                    let authority = http::uri::Authority::try_from(value);
                    let result = authority
                        .map(|a| uri.authority = Some(a))
                        .map_err(|_| refused());
                    self.uri = Uri::from_parts(uri).map_err(|_| refused())?;
                    result?;
                    if self.headers.contains_key(header::HOST) {
                        self.headers.insert(header::HOST, host);
                    }
                } else {
                    self.headers.insert(header::HOST, host);
                }
            }
            ":path" => {
                let path = http::uri::PathAndQuery::try_from(value).map_err(|_| refused())?;
                let mut uri = std::mem::take(&mut self.uri).into_parts();
                uri.path_and_query = Some(path);
                self.uri = Uri::from_parts(uri).map_err(|_| refused())?;
            }
            ":method" => self.method = Method::from_bytes(value).map_err(|_| refused())?,
            ":scheme" => {
                let scheme = match value {
                    b"http" => Scheme::Http,
                    b"https" => Scheme::Https,
                    _ => return Err(refused()),
                };
                self.extensions.insert(scheme);
            }
            _ => return Err(refused()),
        }
        Ok(())
    }

    fn for_each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        for name in [":authority", ":path", ":method", ":scheme"] {
            if let Some(value) = self.pseudo(name) {
                visit(name, value.as_bytes());
            }
        }
        for (name, value) in &self.headers {
            if name != header::HOST {
                visit(name.as_str(), value.as_bytes());
            }
        }
    }
}

/// The scheme of a request that its URI does not tell (HTTP/1.1 origin form); an extension of
/// the request, set by the listener or by a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `http`
    Http,
    /// `https`
    Https,
}

fn scheme(parts: &request::Parts) -> &str {
    match parts.extensions.get::<Scheme>() {
        Some(Scheme::Https) => "https",
        Some(Scheme::Http) => "http",
        None => parts.uri.scheme_str().unwrap_or("http"),
    }
}

impl MessageHead for response::Parts {
    fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    fn pseudo(&self, name: &str) -> Option<Cow<'_, str>> {
        (name == ":status").then(|| Cow::Borrowed(self.status.as_str()))
    }

    fn set_pseudo(&mut self, name: &str, value: &[u8]) -> Result<(), InvalidPseudo> {
        let status = StatusCode::from_bytes(value)
            .ok()
            .filter(|status| name == ":status" && status.as_u16() >= 200)
            .ok_or_else(|| invalid(name, value))?;
        self.status = status;
        Ok(())
    }

    fn for_each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        visit(":status", self.status.as_str().as_bytes());
        for (name, value) in &self.headers {
            visit(name.as_str(), value.as_bytes());
        }
    }
}

/// Trailers have no pseudo-headers.
impl MessageHead for HeaderMap {
    fn headers(&self) -> &HeaderMap {
        self
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        self
    }

    fn pseudo(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }

    fn set_pseudo(&mut self, name: &str, value: &[u8]) -> Result<(), InvalidPseudo> {
        Err(invalid(name, value))
    }

    fn for_each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        for (name, value) in self {
            visit(name.as_str(), value.as_bytes());
        }
    }
}

/// Whether a request comes from a gRPC client: `application/grpc` or `application/grpc+...`.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// A header name from a policy service: lower-cased and checked.
pub fn header_name(name: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(name.as_bytes()).ok()
}
