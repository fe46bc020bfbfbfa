//! A `CheckRequest` to read: the same whichever way the proxy encoded it.

mod body;
mod forwarded;
mod metadata;
mod peer;
mod spiffe;

#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use attache_proto::auth::{AttributeContext, CheckRequest, attribute_context::HttpRequest};
use attache_service::{
    tls::{Certificate, CertificateError},
    trace::Span,
};
use http::HeaderMap;
use percent_encoding::percent_decode_str;

pub use body::{Body, BodyError};
pub use forwarded::{ForwardedCertificate, ForwardedError};
pub use spiffe::{SpiffeError, SpiffeId};

/// One check: the request that waits for a decision, and what is known of its connection.
///
/// Checks of TCP connections have no HTTP part; the accessors of that part then give `None` or
/// nothing.
#[derive(Debug, Clone, Default)]
pub struct CheckRequestView {
    attributes: AttributeContext,
    call: HeaderMap,
    span: Span,
    parsed: Parsed,
}

/// What is read at most once, and only if somebody asks.
#[derive(Debug, Clone, Default)]
struct Parsed {
    certificate: OnceLock<Result<Certificate, CertificateError>>,
    forwarded: OnceLock<Result<Vec<ForwardedCertificate>, ForwardedError>>,
}

impl From<CheckRequest> for CheckRequestView {
    fn from(request: CheckRequest) -> Self {
        Self::new(request, HeaderMap::new())
    }
}

impl CheckRequestView {
    /// A check and the metadata of its gRPC call.
    pub fn new(request: CheckRequest, call: HeaderMap) -> Self {
        Self {
            attributes: request.attributes.unwrap_or_default(),
            call,
            span: Span::default(),
            parsed: Parsed::default(),
        }
    }

    /// The message as it came.
    pub fn attributes(&self) -> &AttributeContext {
        &self.attributes
    }

    fn http(&self) -> Option<&HttpRequest> {
        self.attributes.request.as_ref()?.http.as_ref()
    }

    /// Whether this is about an HTTP request, not a TCP connection.
    pub fn is_http(&self) -> bool {
        self.http().is_some()
    }

    /// The proxy's id of the request.
    pub fn id(&self) -> Option<&str> {
        self.http().map(|http| http.id.as_str())
    }

    /// The method.
    pub fn method(&self) -> Option<&str> {
        self.http().map(|http| http.method.as_str())
    }

    /// Path and query as the proxy passes them on; empty for `CONNECT`.
    pub fn path_and_query(&self) -> Option<&str> {
        self.http().map(|http| http.path.as_str())
    }

    /// The path without the query, still percent-encoded; empty for `CONNECT`.
    pub fn path(&self) -> Option<&str> {
        let path = self.path_and_query()?;
        Some(path.split(['?', '#']).next().unwrap_or(path))
    }

    /// The query without `?`, still percent-encoded.
    pub fn query(&self) -> Option<&str> {
        let (_, query) = self.path_and_query()?.split_once('?')?;
        Some(query.split('#').next().unwrap_or(query))
    }

    /// The values of a query parameter, percent-decoded, `+` being a space.
    pub fn query_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        self.query()
            .unwrap_or_default()
            .split('&')
            .map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
            .filter(move |(key, _)| form_decoded(key) == name)
            .map(|(_, value)| form_decoded(value))
    }

    /// The authority: host, and port if one was given.
    pub fn host(&self) -> Option<&str> {
        self.http().map(|http| http.host.as_str())
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> Option<&str> {
        self.http().map(|http| http.scheme.as_str())
    }

    /// `HTTP/1.1`, `HTTP/2`, ...
    pub fn protocol(&self) -> Option<&str> {
        self.http().map(|http| http.protocol.as_str())
    }

    /// All headers that the proxy shows, pseudo-headers included; names are lower case.
    /// Repeated headers are either joined by the proxy or come one after the other.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let http = self.http();
        let joined = http.into_iter().flat_map(|http| &http.headers);
        let lines = http
            .and_then(|http| http.header_map.as_ref())
            .into_iter()
            .flat_map(|map| &map.headers);
        joined
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .chain(lines.map(|line| {
                let value = if line.raw_value.is_empty() {
                    line.value.as_bytes()
                } else {
                    &line.raw_value
                };
                (line.key.as_str(), value)
            }))
    }

    /// The lines of a header; one, joined with commas, unless the proxy sends headers raw.
    pub fn header_lines<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers()
            .filter(move |(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The value of a header as text, repeated lines joined with commas. `None` when it is
    /// absent or not UTF-8.
    pub fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        // The usual encoding without a walk over all headers.
        if let Some(value) = self.http().and_then(|http| http.headers.get(name)) {
            return Some(Cow::Borrowed(value));
        }
        let mut found: Option<Cow<'_, str>> = None;
        for (key, value) in self.headers() {
            if key.eq_ignore_ascii_case(name) {
                let value = std::str::from_utf8(value).ok()?;
                found = Some(match found {
                    None => value.into(),
                    Some(before) => format!("{before},{value}").into(),
                });
            }
        }
        found
    }

    /// Whether a header is shown.
    pub fn has_header(&self, name: &str) -> bool {
        self.headers()
            .any(|(key, _)| key.eq_ignore_ascii_case(name))
    }

    /// Whether the client speaks gRPC (not gRPC-Web): denials reach it as a gRPC status.
    pub fn is_grpc(&self) -> bool {
        let kind = self.header("content-type");
        let rest = kind
            .as_deref()
            .and_then(|kind| kind.strip_prefix("application/grpc"));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
    }

    /// All cookies. Repeated `cookie` lines arrive joined with commas, so both `;` and `,`
    /// separate; values that are not UTF-8 are left out.
    pub fn cookies(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers()
            .filter(|(name, _)| name.eq_ignore_ascii_case("cookie"))
            .flat_map(|(_, value)| value.split(|byte| matches!(byte, b';' | b',')))
            // One that is no text is no reason to lose the others.
            .filter_map(|cookie| std::str::from_utf8(cookie).ok()?.split_once('='))
            .map(|(name, value)| (name.trim(), value.trim()))
    }

    /// The first cookie of this name.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// When the request arrived at the proxy.
    pub fn time(&self) -> Option<SystemTime> {
        let time = self.attributes.request.as_ref()?.time?;
        let seconds = u64::try_from(time.seconds).ok()?;
        let nanos = u32::try_from(time.nanos).ok()?;
        UNIX_EPOCH.checked_add(Duration::new(seconds, nanos.min(999_999_999)))
    }
}

/// Names and values of a query or form, percent-decoded, `+` being a space.
pub(crate) fn form_pairs(text: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (form_decoded(name), form_decoded(value)))
}

/// Percent-decoding with `+` as space.
fn form_decoded(text: &str) -> Cow<'_, str> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8_lossy();
        return Cow::Owned(decoded.into_owned());
    }
    percent_decode_str(text).decode_utf8_lossy()
}
