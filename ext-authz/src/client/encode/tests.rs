//! What a check says, and that all of it arrives.

use std::sync::Arc;

use attache_filter::{ConnectionInfo, context::TlsInfo};
use attache_proto::{
    auth::{
        CheckRequest,
        attribute_context::{HttpRequest, Peer},
    },
    core,
};
use http::{HeaderValue, Method, Request, Version};
use proptest::prelude::*;
use prost::Message as _;

use super::{wire::sanitized, *};
use crate::client::shown::PARTIAL_BODY;

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
    CheckRequest::decode(encoded.slice(FRAME_HEADER..))
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
        ..ConnectionInfo::default()
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
        namespaces: Namespaces {
            dynamic: &namespaces,
            ..Namespaces::default()
        },
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
