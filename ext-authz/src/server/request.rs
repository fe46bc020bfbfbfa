//! A `CheckRequest` to read: the same whichever way the proxy encoded it.

use std::{
    borrow::Cow,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use attache_proto::{
    auth::{
        AttributeContext, CheckRequest,
        attribute_context::{HttpRequest, Peer},
    },
    core::{address, socket_address::PortSpecifier},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use percent_encoding::percent_decode_str;

/// One check: the request that waits for a decision, and what is known of its connection.
///
/// Checks of TCP connections have no HTTP part; the accessors of that part then give `None` or
/// nothing.
#[derive(Debug, Clone, Default)]
pub struct CheckRequestView {
    attributes: AttributeContext,
}

impl From<CheckRequest> for CheckRequestView {
    fn from(request: CheckRequest) -> Self {
        Self {
            attributes: request.attributes.unwrap_or_default(),
        }
    }
}

/// The request body as far as the proxy shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// Nothing is shown: the request has no body, or the proxy does not send it.
    Absent,
    /// All of it.
    Whole(&'a [u8]),
    /// The beginning of a longer one.
    Partial(&'a [u8]),
}

impl CheckRequestView {
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

    /// All cookies. Repeated `cookie` lines arrive joined with commas, so both `;` and `,`
    /// separate; values that are not UTF-8 are left out.
    pub fn cookies(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers()
            .filter(|(name, _)| name.eq_ignore_ascii_case("cookie"))
            .filter_map(|(_, value)| std::str::from_utf8(value).ok())
            .flat_map(|value| value.split([';', ',']))
            .filter_map(|cookie| cookie.split_once('='))
            .map(|(name, value)| (name.trim(), value.trim()))
    }

    /// The first cookie of this name.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// The body as far as it is shown.
    pub fn body(&self) -> Body<'_> {
        let Some(http) = self.http() else {
            return Body::Absent;
        };
        let data = if http.raw_body.is_empty() {
            http.body.as_bytes()
        } else {
            &http.raw_body
        };
        if data.is_empty() {
            return Body::Absent;
        }
        let marked = self.header_lines("x-envoy-auth-partial-body").next();
        let longer = usize::try_from(http.size).is_ok_and(|size| size > data.len());
        if marked == Some(b"true") || longer {
            Body::Partial(data)
        } else {
            Body::Whole(data)
        }
    }

    fn source(&self) -> Option<&Peer> {
        self.attributes.source.as_ref()
    }

    /// The address of the proxy's peer; not what `x-forwarded-for` says.
    pub fn source_address(&self) -> Option<SocketAddr> {
        socket_address(self.source()?)
    }

    /// The proxy's side of the connection.
    pub fn destination_address(&self) -> Option<SocketAddr> {
        socket_address(self.attributes.destination.as_ref()?)
    }

    /// Who the TLS client is: first URI SAN, else first DNS SAN, else the subject.
    pub fn principal(&self) -> Option<&str> {
        let principal = self.source()?.principal.as_str();
        (!principal.is_empty()).then_some(principal)
    }

    /// The TLS client's SPIFFE ID, when that is who it is.
    pub fn spiffe_id(&self) -> Option<&str> {
        self.principal().filter(|p| p.starts_with("spiffe://"))
    }

    /// The TLS client's certificate, DER, when the proxy sends it.
    pub fn peer_certificate(&self) -> Option<Bytes> {
        let pem = percent_decode_str(&self.source()?.certificate)
            .decode_utf8()
            .ok()?;
        let base64: String = pem
            .trim()
            .strip_prefix("-----BEGIN CERTIFICATE-----")?
            .split("-----END CERTIFICATE-----")
            .next()?
            .split_ascii_whitespace()
            .collect();
        STANDARD.decode(base64).ok().map(Bytes::from)
    }

    /// The server name that the TLS client asked for.
    pub fn sni(&self) -> Option<&str> {
        let sni = self.attributes.tls_session.as_ref()?.sni.as_str();
        (!sni.is_empty()).then_some(sni)
    }

    /// A value from the route's `context_extensions`.
    pub fn context_extension(&self, key: &str) -> Option<&str> {
        self.attributes
            .context_extensions
            .get(key)
            .map(String::as_str)
    }

    /// Dynamic metadata of a namespace, when the proxy sends it.
    pub fn metadata(&self, namespace: &str) -> Option<&prost_types::Struct> {
        let metadata = self.attributes.metadata_context.as_ref()?;
        metadata.filter_metadata.get(namespace)
    }

    /// When the request arrived at the proxy.
    pub fn time(&self) -> Option<SystemTime> {
        let time = self.attributes.request.as_ref()?.time?;
        let seconds = u64::try_from(time.seconds).ok()?;
        let nanos = u32::try_from(time.nanos).ok()?;
        UNIX_EPOCH.checked_add(Duration::new(seconds, nanos.min(999_999_999)))
    }
}

fn socket_address(peer: &Peer) -> Option<SocketAddr> {
    let address::Address::SocketAddress(socket) = peer.address.as_ref()?.address.as_ref()? else {
        return None;
    };
    let port = match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port).ok()?,
        _ => 0,
    };
    Some(SocketAddr::new(socket.address.parse().ok()?, port))
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

#[cfg(test)]
mod tests {
    use attache_proto::{
        auth::attribute_context,
        core::{self, HeaderMap, HeaderValue},
    };

    use super::*;

    fn view(http: HttpRequest) -> CheckRequestView {
        CheckRequestView {
            attributes: AttributeContext {
                request: Some(attribute_context::Request {
                    http: Some(http),
                    ..attribute_context::Request::default()
                }),
                ..AttributeContext::default()
            },
        }
    }

    fn joined(headers: &[(&str, &str)]) -> CheckRequestView {
        view(HttpRequest {
            headers: headers
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
            ..HttpRequest::default()
        })
    }

    fn raw(headers: &[(&str, &'static [u8])]) -> CheckRequestView {
        let line = |(key, value): &(&str, &'static [u8])| HeaderValue {
            key: (*key).to_owned(),
            value: String::new(),
            raw_value: Bytes::from_static(value),
        };
        view(HttpRequest {
            header_map: Some(HeaderMap {
                headers: headers.iter().map(line).collect(),
            }),
            ..HttpRequest::default()
        })
    }

    #[test]
    fn headers_read_the_same_in_both_encodings() {
        for view in [
            joined(&[("x-a", "1,2"), ("x-b", "3")]),
            raw(&[("x-a", b"1"), ("x-b", b"3"), ("x-a", b"2")]),
        ] {
            assert_eq!(view.header("X-A").as_deref(), Some("1,2"));
            assert_eq!(view.header("x-b").as_deref(), Some("3"));
            assert_eq!(view.header("x-c"), None);
            assert!(view.has_header("X-B") && !view.has_header("x-c"));
        }
        assert_eq!(raw(&[("x-a", b"\xff")]).header("x-a"), None);
    }

    #[test]
    fn cookies_are_split_at_semicolons_and_commas() {
        for view in [
            joined(&[("cookie", "a=1; b=x=y,c=3 ;broken; a=2")]),
            raw(&[("cookie", b"a=1; b=x=y"), ("cookie", b"c=3; a=2")]),
        ] {
            let cookies: Vec<_> = view.cookies().collect();
            assert_eq!(cookies, [("a", "1"), ("b", "x=y"), ("c", "3"), ("a", "2")]);
            assert_eq!(view.cookie("a"), Some("1"));
        }
    }

    #[test]
    fn path_and_query_are_apart() {
        for (both, path, query) in [
            ("/a?b=1", "/a", Some("b=1")),
            ("/a", "/a", None),
            ("/a#/admin?x", "/a", Some("x")),
            ("", "", None),
        ] {
            let view = view(HttpRequest {
                path: both.into(),
                ..HttpRequest::default()
            });
            assert_eq!((view.path(), view.query()), (Some(path), query), "{both}");
        }
        let view = view(HttpRequest {
            path: "/a?k=1&%6b=a+b%2F&kk=3&k".into(),
            ..HttpRequest::default()
        });
        assert_eq!(
            view.query_values("k").collect::<Vec<_>>(),
            ["1", "a b/", ""]
        );
    }

    #[test]
    fn bodies_are_absent_whole_or_partial() {
        let body = |mark: &[(&str, &str)], body: &str, size| {
            let mut view = joined(mark);
            let http = view
                .attributes
                .request
                .as_mut()
                .unwrap()
                .http
                .as_mut()
                .unwrap();
            http.body = body.into();
            http.size = size;
            view
        };
        let mark = "x-envoy-auth-partial-body";
        assert_eq!(body(&[], "", 0).body(), Body::Absent);
        assert_eq!(body(&[(mark, "false")], "ab", 2).body(), Body::Whole(b"ab"));
        assert_eq!(
            body(&[(mark, "true")], "ab", 2).body(),
            Body::Partial(b"ab")
        );
        assert_eq!(body(&[], "ab", 3).body(), Body::Partial(b"ab"));
    }

    #[test]
    fn tcp_checks_have_peers_but_no_request() {
        let view = CheckRequestView {
            attributes: AttributeContext {
                source: Some(Peer {
                    address: Some(core::Address {
                        address: Some(address::Address::SocketAddress(core::SocketAddress {
                            address: "10.0.0.1".into(),
                            port_specifier: Some(PortSpecifier::PortValue(7)),
                            ..core::SocketAddress::default()
                        })),
                    }),
                    principal: "spiffe://a/b".into(),
                    certificate:
                        "-----BEGIN%20CERTIFICATE-----%0A%2B%2F%2F%2BAA%3D%3D%0A-----END%20CERTIFICATE-----%0A"
                            .into(),
                    ..Peer::default()
                }),
                ..AttributeContext::default()
            },
        };
        assert!(!view.is_http());
        assert_eq!(
            (view.method(), view.path(), view.header("a")),
            (None, None, None)
        );
        assert_eq!(view.body(), Body::Absent);
        assert_eq!(view.source_address(), Some("10.0.0.1:7".parse().unwrap()));
        assert_eq!(view.spiffe_id(), Some("spiffe://a/b"));
        assert_eq!(
            view.peer_certificate().as_deref(),
            Some(&[0xfb, 0xff, 0xfe, 0x00][..])
        );
        assert_eq!(view.destination_address(), None);
    }
}
