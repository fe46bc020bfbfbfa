//! Requests of all kinds, read.

use attache_proto::{
    auth::attribute_context::{self, Peer},
    core::{self, HeaderMap, HeaderValue, address, socket_address::PortSpecifier},
};
use bytes::Bytes;

use super::*;

fn of(attributes: AttributeContext) -> CheckRequestView {
    CheckRequest {
        attributes: Some(attributes),
    }
    .into()
}

fn view(http: HttpRequest) -> CheckRequestView {
    of(AttributeContext {
        request: Some(attribute_context::Request {
            http: Some(http),
            ..attribute_context::Request::default()
        }),
        ..AttributeContext::default()
    })
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
    assert_eq!(body(&[], "ab", -1).body(), Body::Partial(b"ab"));
}

#[test]
fn a_body_that_is_announced_and_not_shown_is_known_to_be_withheld() {
    for (headers, withheld) in [
        (&[("content-length", "3")][..], true),
        (&[("transfer-encoding", "chunked")], true),
        (&[("content-length", "0")], false),
        (&[], false),
    ] {
        assert_eq!(joined(headers).withholds_body(), withheld, "{headers:?}");
    }
    let counted = view(HttpRequest {
        size: 3,
        ..HttpRequest::default()
    });
    assert!(counted.withholds_body());
    let shown = view(HttpRequest {
        size: 3,
        body: "abc".into(),
        ..HttpRequest::default()
    });
    assert!(!shown.withholds_body());
}

#[test]
fn a_forwarded_certificate_that_cannot_be_read_is_not_an_absent_one() {
    const NAME: &str = "x-forwarded-client-cert";
    assert_eq!(joined(&[]).forwarded_certificates(), Ok(&[][..]));
    assert!(
        joined(&[(NAME, "nonsense")])
            .forwarded_certificates()
            .is_err()
    );
    let binary = raw(&[(NAME, b"Hash=\xff")]);
    assert_eq!(
        binary.forwarded_certificates(),
        Err(ForwardedError::NotText)
    );
    let lines = raw(&[(NAME, b"Hash=1"), (NAME, b"Hash=2")]);
    assert_eq!(lines.forwarded_certificates().unwrap().len(), 2);
}

#[test]
fn tcp_checks_have_peers_but_no_request() {
    let view = of(AttributeContext {
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
    });
    assert!(!view.is_http());
    assert_eq!(
        (view.method(), view.path(), view.header("a")),
        (None, None, None)
    );
    assert_eq!(view.body(), Body::Absent);
    assert_eq!(view.source_address(), Some("10.0.0.1:7".parse().unwrap()));
    let id = view.spiffe_id().unwrap();
    assert_eq!((id.trust_domain(), id.path()), ("a", "/b"));
    assert!(view.peer_certificate().is_err());
    assert_eq!(
        view.peer_certificate_der().as_deref(),
        Some(&[0xfb, 0xff, 0xfe, 0x00][..])
    );
    assert_eq!(view.destination_address(), None);
}
