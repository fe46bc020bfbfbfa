//! The `CheckRequest`, written straight from the request head into one buffer.
//!
//! A check costs one allocation: nothing is collected into a message first. The three outer
//! messages are long, so their lengths are only known at the end; room for them is kept in front
//! of the buffer instead of moving the content. Protobuf leaves the order of fields free.

use std::{
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use attache_filter::{
    MessageHead, RequestContext, context::TlsInfo, head, matcher::ForwardedHeaders,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Version, header, request};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint},
};

/// Tells the auth service whether the attached body was cut.
pub const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// What of a filter's settings decides the content of a check.
#[derive(Debug, Clone, Copy, Default)]
pub struct Content<'a> {
    /// `encode_raw_headers`: `header_map` with order, duplicates and bytes kept, not `headers`.
    pub raw_headers: bool,
    /// `include_peer_certificate`.
    pub peer_certificate: bool,
    /// `include_tls_session`.
    pub tls_session: bool,
    /// `pack_as_bytes`: the body as `raw_body`, not `body`.
    pub raw_body: bool,
    /// Encoded `context_extensions` entries; see [`context_extensions`].
    pub extensions: &'a [u8],
    /// `metadata_context_namespaces`: dynamic metadata to show.
    pub metadata_namespaces: &'a [String],
}

/// The request body as far as it goes to the auth service.
#[derive(Debug, Clone, Copy)]
pub struct CheckBody<'a> {
    /// The bytes; not empty.
    pub data: &'a [u8],
    /// Whether there is more of it.
    pub partial: bool,
    /// How much of the body has arrived; not less than what is shown.
    pub received: usize,
}

/// An encoded `CheckRequest`.
#[derive(Debug)]
pub struct EncodedCheck {
    buffer: Vec<u8>,
    start: usize,
}

impl AsRef<[u8]> for EncodedCheck {
    fn as_ref(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }
}

/// Room for three tags and three lengths of at most five bytes.
const GAP: usize = 18;

/// Encodes the check of one request.
pub fn check_request(
    parts: &request::Parts,
    context: &RequestContext,
    body: Option<CheckBody<'_>>,
    content: Content<'_>,
    show: &ForwardedHeaders,
) -> EncodedCheck {
    let body_len = body.map_or(0, |body| body.data.len());
    let mut out = Vec::with_capacity(1024 + 48 * parts.headers.len() + body_len);
    out.resize(GAP, 0);

    http_request(&mut out, parts, context, body, content, show);
    let http_len = out.len() - GAP;

    let before_time = out.len();
    timestamp(&mut out, 1, context.start_time());
    let request_len = field_len(http_len) + out.len() - before_time;

    let before_rest = out.len();
    let connection = &*context.connection;
    let tls = connection.tls.as_ref();
    message(&mut out, 1, |out| {
        address(out, connection.peer);
        if let Some(service) = parts.headers.get("x-envoy-downstream-service-cluster") {
            text(out, 2, service.as_bytes());
        }
        if let Some(principal) = tls.and_then(|tls| tls.peer_principal.as_deref()) {
            text(out, 4, principal.as_bytes());
        }
        if content.peer_certificate {
            certificate(out, 5, tls);
        }
    });
    message(&mut out, 2, |out| {
        address(out, connection.local);
        if let Some(principal) = tls.and_then(|tls| tls.local_principal.as_deref()) {
            text(out, 4, principal.as_bytes());
        }
    });
    out.extend_from_slice(content.extensions);
    message(&mut out, 11, |out| {
        for namespace in content.metadata_namespaces {
            let Some(fields) = context.metadata(namespace) else {
                continue;
            };
            message(out, 1, |out| {
                text(out, 1, namespace.as_bytes());
                message(out, 2, |out| fields.encode_raw(out));
            });
        }
    });
    if let (true, Some(tls)) = (content.tls_session, tls) {
        message(&mut out, 12, |out| {
            text(out, 1, tls.sni.as_deref().unwrap_or_default().as_bytes());
        });
    }
    message(&mut out, 13, |_| {});
    let attributes_len = field_len(request_len) + out.len() - before_rest;

    let mut prefix = Vec::with_capacity(GAP);
    for (tag, len) in [(1, attributes_len), (4, request_len), (2, http_len)] {
        encode_key(tag, WireType::LengthDelimited, &mut prefix);
        encode_varint(len as u64, &mut prefix);
    }
    let start = GAP.saturating_sub(prefix.len());
    if let Some(gap) = out.get_mut(start..GAP) {
        gap.copy_from_slice(&prefix);
    }
    EncodedCheck { buffer: out, start }
}

/// `AttributeContext.context_extensions`, encoded once when the route is planned.
pub fn context_extensions<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in entries {
        map_entry(&mut out, 10, key, value.as_bytes());
    }
    out
}

fn http_request(
    out: &mut Vec<u8>,
    parts: &request::Parts,
    context: &RequestContext,
    body: Option<CheckBody<'_>>,
    content: Content<'_>,
    show: &ForwardedHeaders,
) {
    let mut id = [0; 20];
    text(out, 1, decimal(context.id, &mut id));
    text(out, 2, parts.method.as_str().as_bytes());
    let partial = body.map(|body| if body.partial { "true" } else { "false" });
    if content.raw_headers {
        header_map(out, parts, partial, show);
    } else {
        headers(out, parts, context.protocol, partial, show);
    }
    if let Some(path) = parts.pseudo(":path") {
        text(out, 4, path.as_bytes());
    }
    if let Some(host) = head::authority(parts) {
        text(out, 5, host.as_bytes());
    }
    if let Some(scheme) = parts.pseudo(":scheme") {
        text(out, 6, scheme.as_bytes());
    }
    let protocol = match context.protocol {
        Version::HTTP_09 | Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    };
    text(out, 10, protocol.as_bytes());
    if let Some(body) = body {
        encode_key(9, WireType::Varint, out);
        encode_varint(body.received as u64, out);
        if content.raw_body {
            bytes(out, 12, body.data);
        } else {
            text(out, 11, body.data);
        }
    }
}

/// `HttpRequest.headers`: one entry a name, repeated headers joined.
fn headers(
    out: &mut Vec<u8>,
    parts: &request::Parts,
    protocol: Version,
    partial: Option<&str>,
    show: &ForwardedHeaders,
) {
    // HTTP/2 splits cookies into crumbs, which are one header again; repeated `cookie` lines of
    // HTTP/1 are joined like any other header.
    let cookie: &[u8] = if protocol == Version::HTTP_2 {
        b"; "
    } else {
        b","
    };
    pseudo_headers(parts, show, &mut |name, value| {
        map_entry(out, 3, name, value);
    });
    let mut previous = None;
    for (name, value) in &parts.headers {
        // A name's values come one after the other; the first wrote them all.
        if previous == Some(name) {
            continue;
        }
        previous = Some(name);
        if name == header::HOST || name == PARTIAL_BODY || !show.shows(name.as_str()) {
            continue;
        }
        let mut rest = parts.headers.get_all(name).iter().skip(1).peekable();
        if rest.peek().is_none() {
            map_entry(out, 3, name.as_str(), value.as_bytes());
        } else {
            let comma: &[u8] = if name == header::COOKIE { cookie } else { b"," };
            let mut joined = value.as_bytes().to_vec();
            for value in rest {
                joined.extend_from_slice(comma);
                joined.extend_from_slice(value.as_bytes());
            }
            map_entry(out, 3, name.as_str(), &joined);
        }
    }
    if let Some(partial) = partial {
        map_entry(out, 3, PARTIAL_BODY, partial.as_bytes());
    }
}

/// `HttpRequest.header_map`: every line as it is, values in `raw_value`.
fn header_map(
    out: &mut Vec<u8>,
    parts: &request::Parts,
    partial: Option<&str>,
    show: &ForwardedHeaders,
) {
    let line = |out: &mut Vec<u8>, name: &str, value: &[u8]| {
        let len = field_len(name.len())
            + if value.is_empty() {
                0
            } else {
                field_len(value.len())
            };
        encode_key(1, WireType::LengthDelimited, out);
        encode_varint(len as u64, out);
        bytes(out, 1, name.as_bytes());
        bytes(out, 3, value);
    };
    message(out, 13, |out| {
        pseudo_headers(parts, show, &mut |name, value| line(out, name, value));
        for (name, value) in &parts.headers {
            if name != header::HOST && name != PARTIAL_BODY && show.shows(name.as_str()) {
                line(out, name.as_str(), value.as_bytes());
            }
        }
        if let Some(partial) = partial {
            line(out, PARTIAL_BODY, partial.as_bytes());
        }
    });
}

fn pseudo_headers(
    parts: &request::Parts,
    show: &ForwardedHeaders,
    visit: &mut dyn FnMut(&str, &[u8]),
) {
    for name in [":authority", ":path", ":method", ":scheme"] {
        if let Some(value) = parts.pseudo(name)
            && show.shows(name)
        {
            visit(name, value.as_bytes());
        }
    }
}

/// An entry of a `map<string, string>`; the value is made UTF-8.
fn map_entry(out: &mut Vec<u8>, tag: u32, key: &str, value: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint((field_len(key.len()) + field_len(value.len())) as u64, out);
    encode_key(1, WireType::LengthDelimited, out);
    encode_varint(key.len() as u64, out);
    out.extend_from_slice(key.as_bytes());
    encode_key(2, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    sanitized(out, value);
}

/// A `string` field; nothing when empty.
fn text(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    if value.is_empty() {
        return;
    }
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    sanitized(out, value);
}

/// A `bytes` field; nothing when empty.
fn bytes(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    if value.is_empty() {
        return;
    }
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// Copies `value`; every byte that is not part of valid UTF-8 becomes `!`, so the length stays.
fn sanitized(out: &mut Vec<u8>, value: &[u8]) {
    for chunk in value.utf8_chunks() {
        out.extend_from_slice(chunk.valid().as_bytes());
        out.resize(out.len() + chunk.invalid().len(), b'!');
    }
}

/// A nested message, written before its length is known and moved by the length's few bytes.
fn message(out: &mut Vec<u8>, tag: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    encode_key(tag, WireType::LengthDelimited, out);
    let start = out.len();
    fill(out);
    let len = (out.len() - start) as u64;
    encode_varint(len, out);
    if let Some(written) = out.get_mut(start..) {
        written.rotate_right(encoded_len_varint(len));
    }
}

/// Length of a field with a one-byte tag and `len` bytes of content.
fn field_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

fn address(out: &mut Vec<u8>, address: Option<SocketAddr>) {
    use std::io::Write as _;
    let Some(address) = address else { return };
    message(out, 1, |out| {
        message(out, 1, |out| {
            message(out, 2, |out| {
                // Writing to a Vec cannot fail.
                let _ = write!(out, "{}", address.ip().to_canonical());
            });
            encode_key(3, WireType::Varint, out);
            encode_varint(u64::from(address.port()), out);
        });
    });
}

fn timestamp(out: &mut Vec<u8>, tag: u32, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    message(out, tag, |out| {
        encode_key(1, WireType::Varint, out);
        encode_varint(since.as_secs(), out);
        encode_key(2, WireType::Varint, out);
        encode_varint(u64::from(since.subsec_nanos()), out);
    });
}

/// The client's leaf certificate: PEM, percent-encoded.
fn certificate(out: &mut Vec<u8>, tag: u32, tls: Option<&TlsInfo>) {
    let Some(der) = tls.and_then(|tls| tls.peer_certificate.as_deref()) else {
        return;
    };
    let base64 = STANDARD.encode(der);
    message(out, tag, |out| {
        out.extend_from_slice(b"-----BEGIN%20CERTIFICATE-----%0A");
        for line in base64.as_bytes().chunks(64) {
            for &byte in line {
                match byte {
                    b'+' => out.extend_from_slice(b"%2B"),
                    b'/' => out.extend_from_slice(b"%2F"),
                    b'=' => out.extend_from_slice(b"%3D"),
                    _ => out.push(byte),
                }
            }
            out.extend_from_slice(b"%0A");
        }
        out.extend_from_slice(b"-----END%20CERTIFICATE-----%0A");
    });
}

/// The decimal digits of `number`, without a `String`.
fn decimal(mut number: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut first = buffer.len();
    for (at, digit) in buffer.iter_mut().enumerate().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        first = at;
        if number == 0 {
            break;
        }
    }
    buffer.get(first..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use attache_filter::ConnectionInfo;
    use attache_proto::{
        auth::{
            CheckRequest,
            attribute_context::{HttpRequest, Peer},
        },
        core,
    };
    use http::{HeaderValue, Method, Request};
    use proptest::prelude::*;

    use super::*;

    fn head(method: Method, uri: &str, headers: &[(&str, &[u8])]) -> request::Parts {
        let mut request = Request::builder().method(method).uri(uri).body(()).unwrap();
        for (name, value) in headers {
            request.headers_mut().append(
                http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value).unwrap(),
            );
        }
        request.into_parts().0
    }

    fn plain() -> RequestContext {
        RequestContext::new(Arc::default(), Version::HTTP_11)
    }

    fn check(
        parts: &request::Parts,
        context: &RequestContext,
        body: Option<CheckBody<'_>>,
        content: Content<'_>,
    ) -> attache_proto::auth::AttributeContext {
        let encoded = check_request(parts, context, body, content, &ForwardedHeaders::default());
        CheckRequest::decode(encoded.as_ref())
            .unwrap()
            .attributes
            .unwrap()
    }

    fn http_of(attributes: attache_proto::auth::AttributeContext) -> HttpRequest {
        attributes.request.unwrap().http.unwrap()
    }

    #[test]
    fn a_check_shows_the_head_as_envoy_does() {
        let parts = head(
            Method::GET,
            "/p%20a?q=1",
            &[
                ("host", b"example.com"),
                ("x-e", b"1"),
                ("x-e", b"2"),
                ("cookie", b"a=1"),
                ("cookie", b"b=2"),
                ("x-bin", b"caf\xe9"),
                ("x-empty", b""),
                ("x-envoy-auth-partial-body", b"spoofed"),
                ("x-envoy-downstream-service-cluster", b"front"),
            ],
        );
        let context = plain();
        let attributes = check(&parts, &context, None, Content::default());
        assert_eq!(attributes.source.as_ref().unwrap().service, "front");
        // Present though empty.
        assert!(attributes.metadata_context.is_some());
        assert!(attributes.route_metadata_context.is_some());
        assert!(attributes.tls_session.is_none());
        assert!(attributes.request.as_ref().unwrap().time.is_some());
        let http = http_of(attributes);
        assert_eq!(http.id, context.id.to_string());
        assert_eq!(
            (&*http.method, &*http.path, &*http.host, &*http.scheme),
            ("GET", "/p%20a?q=1", "example.com", "http")
        );
        assert_eq!(
            (&*http.protocol, http.size, &*http.body),
            ("HTTP/1.1", 0, "")
        );
        let expected = [
            (":authority", "example.com"),
            (":method", "GET"),
            (":path", "/p%20a?q=1"),
            (":scheme", "http"),
            ("cookie", "a=1,b=2"),
            ("x-bin", "caf!"),
            ("x-e", "1,2"),
            ("x-empty", ""),
            ("x-envoy-downstream-service-cluster", "front"),
        ];
        let headers: Vec<_> = http.headers.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(headers, expected);
    }

    #[test]
    fn cookie_crumbs_of_http2_are_one_header_again() {
        let crumbs: &[(&str, &[u8])] = &[("cookie", b"a=1"), ("cookie", b"b=2")];
        let parts = head(Method::GET, "http://h/", crumbs);
        let context = RequestContext::new(Arc::default(), Version::HTTP_2);
        let http = http_of(check(&parts, &context, None, Content::default()));
        assert_eq!(http.headers["cookie"], "a=1; b=2");
        assert_eq!(http.protocol, "HTTP/2");
    }

    #[test]
    fn connect_has_no_path() {
        let parts = head(Method::CONNECT, "example.com:443", &[]);
        let http = http_of(check(&parts, &plain(), None, Content::default()));
        assert_eq!((&*http.method, &*http.path), ("CONNECT", ""));
        assert!(!http.headers.contains_key(":path"));
        assert_eq!(http.host, "example.com:443");
    }

    #[test]
    fn raw_headers_keep_order_duplicates_and_bytes() {
        let parts = head(
            Method::GET,
            "http://h/",
            &[("x-b", b"\xff"), ("x-a", b"1"), ("x-a", b"2"), ("x-n", b"")],
        );
        let content = Content {
            raw_headers: true,
            ..Content::default()
        };
        let body = CheckBody {
            data: b"ab",
            partial: true,
            received: 3,
        };
        let http = http_of(check(&parts, &plain(), Some(body), content));
        assert!(http.headers.is_empty());
        let map = http.header_map.unwrap().headers;
        let lines: Vec<_> = map.iter().map(|h| (&*h.key, &*h.raw_value)).collect();
        assert_eq!(
            lines,
            [
                (":authority", &b"h"[..]),
                (":path", b"/"),
                (":method", b"GET"),
                (":scheme", b"http"),
                ("x-b", b"\xff"),
                ("x-a", b"1"),
                ("x-a", b"2"),
                ("x-n", b""),
                ("x-envoy-auth-partial-body", b"true"),
            ]
        );
        assert!(map.iter().all(|h| h.value.is_empty()));
    }

    #[test]
    fn bodies_are_sanitised_text_or_exact_bytes() {
        let parts = head(Method::POST, "http://h/", &[]);
        let body = Some(CheckBody {
            data: b"\xff\xfea",
            partial: false,
            received: 3,
        });
        let text = http_of(check(&parts, &plain(), body, Content::default()));
        assert_eq!((&*text.body, text.size), ("!!a", 3));
        assert_eq!(text.headers[PARTIAL_BODY], "false");
        let content = Content {
            raw_body: true,
            ..Content::default()
        };
        let raw = http_of(check(&parts, &plain(), body, content));
        assert_eq!((&*raw.raw_body, &*raw.body), (&b"\xff\xfea"[..], ""));
    }

    #[test]
    fn peers_show_addresses_principals_and_the_certificate_when_asked() {
        let tls = TlsInfo {
            sni: None,
            peer_certificate: Some(Arc::from(&[0xfb, 0xff, 0xfe, 0x00][..])),
            peer_principal: Some("spiffe://a/b".into()),
            local_principal: Some("server".into()),
            ..TlsInfo::default()
        };
        let connection = ConnectionInfo {
            peer: Some("[::ffff:10.0.0.1]:1000".parse().unwrap()),
            local: Some("[2001:db8::1]:443".parse().unwrap()),
            tls: Some(tls),
        };
        let context = RequestContext::new(Arc::new(connection), Version::HTTP_11);
        let parts = head(Method::GET, "http://h/", &[]);
        let address = |peer: &Peer| match peer.address.as_ref().unwrap().address.as_ref().unwrap() {
            core::address::Address::SocketAddress(socket) => (
                socket.address.clone(),
                socket.port_specifier.clone().unwrap(),
            ),
            other => panic!("{other:?}"),
        };
        let port = core::socket_address::PortSpecifier::PortValue;

        let quiet = check(&parts, &context, None, Content::default());
        let source = quiet.source.unwrap();
        assert_eq!(address(&source), ("10.0.0.1".to_owned(), port(1000)));
        assert_eq!(
            (&*source.principal, &*source.certificate),
            ("spiffe://a/b", "")
        );
        let destination = quiet.destination.unwrap();
        assert_eq!(address(&destination), ("2001:db8::1".to_owned(), port(443)));
        assert_eq!(destination.principal, "server");
        assert!(quiet.tls_session.is_none());

        let content = Content {
            peer_certificate: true,
            tls_session: true,
            ..Content::default()
        };
        let full = check(&parts, &context, None, content);
        assert_eq!(
            full.source.unwrap().certificate,
            "-----BEGIN%20CERTIFICATE-----%0A%2B%2F%2F%2BAA%3D%3D%0A-----END%20CERTIFICATE-----%0A"
        );
        assert_eq!(full.tls_session.unwrap().sni, "");
        assert_eq!(full.destination.unwrap().certificate, "");
    }

    #[test]
    fn extensions_and_metadata_are_shown() {
        let extensions = context_extensions([("k", "route"), ("v", "")]);
        let context = plain();
        let user = prost_types::Struct {
            fields: [("user".to_owned(), prost_types::Value::default())].into(),
        };
        context.merge_metadata("jwt", user.clone());
        context.merge_metadata("hidden", user.clone());
        let namespaces = ["jwt".to_owned(), "absent".to_owned()];
        let content = Content {
            extensions: &extensions,
            metadata_namespaces: &namespaces,
            ..Content::default()
        };
        let parts = head(Method::GET, "http://h/", &[]);
        let attributes = check(&parts, &context, None, content);
        assert_eq!(
            attributes.context_extensions,
            [("k".into(), "route".into()), ("v".into(), String::new())].into()
        );
        assert_eq!(
            attributes.metadata_context.unwrap().filter_metadata,
            [("jwt".to_owned(), user)].into()
        );
    }

    proptest! {
        #[test]
        fn whatever_the_sizes_the_check_decodes_and_nothing_is_lost(
            headers in proptest::collection::vec(
                ("x-[a-d]{1,2}", proptest::collection::vec(0x20_u8..0x7f, 0..300)),
                0..30,
            ),
            body in proptest::collection::vec(any::<u8>(), 1..40_000),
        ) {
            let lines: Vec<_> = headers.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
            let parts = head(Method::POST, "http://h/p", &lines);
            let content = Content { raw_body: true, ..Content::default() };
            let shown = CheckBody { data: &body, partial: false, received: body.len() };
            let http = http_of(check(&parts, &plain(), Some(shown), content));
            prop_assert_eq!(&http.raw_body[..], &body[..]);
            for name in parts.headers.keys() {
                let values: Vec<&[u8]> = lines
                    .iter()
                    .filter(|(k, _)| *k == name.as_str())
                    .map(|(_, v)| *v)
                    .collect();
                // A header map trims nothing.
                prop_assert_eq!(http.headers[name.as_str()].as_bytes(), values.join(&b","[..]));
            }
        }

        #[test]
        fn sanitised_text_is_utf8_of_the_same_length(value in proptest::collection::vec(any::<u8>(), 0..50)) {
            let mut out = Vec::new();
            sanitized(&mut out, &value);
            prop_assert_eq!(out.len(), value.len());
            prop_assert!(String::from_utf8(out).is_ok());
        }
    }
}
