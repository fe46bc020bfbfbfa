use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use attache_service::tls::{AlternativeName, Certificate};
use http::{Request, Response, Version};
use prost::Message as _;
use prost_types::{Struct, value::Kind};

use super::*;
use crate::{ConnectionInfo, RequestContext, Route, context::TlsInfo};

fn context() -> RequestContext {
    let connection = ConnectionInfo {
        peer: Some("10.0.0.1:4000".parse().unwrap()),
        local: Some("10.0.0.2:80".parse().unwrap()),
        tls: None,
        ..ConnectionInfo::default()
    };
    let context = RequestContext::new(Arc::new(connection), Version::HTTP_11);
    context.set_route(Some(Arc::new(Route {
        name: "home".to_owned(),
        cluster: Some("web".into()),
        ..Route::default()
    })));
    context
}

/// What a service is shown of these expressions in the request phase.
fn shown(expressions: &[&str]) -> BTreeMap<String, Kind> {
    let request = Request::post("/p/a?q=1&r")
        .header("host", "h.test")
        .header("x-a", "1")
        .header("x-m", "a")
        .header("x-m", "b")
        .header("content-length", "5")
        .body(())
        .unwrap();
    let (request, ()) = request.into_parts();
    let context = context();
    show(expressions, &context, Some(&request), None)
}

fn show(
    expressions: &[&str],
    context: &RequestContext,
    request: Option<&http::request::Parts>,
    response: Option<&http::response::Parts>,
) -> BTreeMap<String, Kind> {
    let raw: Vec<_> = expressions
        .iter()
        .map(|text| Located::nowhere((*text).to_owned()))
        .collect();
    let mut errors = Errors::new();
    let attributes = Attributes::plan(&raw, &mut errors);
    assert!(errors.is_empty(), "{errors}");
    let facts = Facts {
        context,
        request,
        response,
    };
    let shown = Struct::decode(attributes.encode(&facts).as_slice()).unwrap();
    let kind = |(name, value): (String, prost_types::Value)| (name, value.kind.unwrap());
    shown.fields.into_iter().map(kind).collect()
}

fn text(text: &str) -> Option<Kind> {
    Some(Kind::StringValue(text.to_owned()))
}

fn number(number: f64) -> Option<Kind> {
    Some(Kind::NumberValue(number))
}

fn truth(value: bool) -> Option<Kind> {
    Some(Kind::BoolValue(value))
}

#[test]
fn attributes_and_headers_have_envoys_values() {
    let table = [
        ("request.path", text("/p/a?q=1&r")),
        ("request['path']", text("/p/a?q=1&r")),
        ("request.url_path", text("/p/a")),
        ("request.query", text("q=1&r")),
        ("request.host", text("h.test")),
        ("request.scheme", text("http")),
        ("request.method", text("POST")),
        ("request.protocol", text("HTTP/1.1")),
        ("request.size", number(5.0)),
        ("request.headers['x-a']", text("1")),
        ("request.headers['X-A']", text("1")),
        ("request.headers['x-m']", text("a,b")),
        ("request.headers[':path']", text("/p/a?q=1&r")),
        ("request.headers.host", text("h.test")),
        ("request.headers['x-none']", None),
        ("request.referer", None),
        ("request.duration", None),
        ("request.headers", text("CelMap value")),
        ("request", text("CelMap value")),
        ("response.code", None),
        ("response.flags", number(0.0)),
        ("source.address", text("10.0.0.1:4000")),
        ("source.port", number(4000.0)),
        ("destination.port", number(80.0)),
        ("connection.mtls", truth(false)),
        ("connection.requested_server_name", text("")),
        ("xds.cluster_name", text("web")),
        ("xds.route_name", text("home")),
        ("upstream.address", None),
        ("upstream.request_attempt_count", number(0.0)),
    ];
    let shown = shown(&table.clone().map(|(expression, _)| expression));
    for (expression, expected) in table {
        assert_eq!(shown.get(expression).cloned(), expected, "{expression}");
    }
}

#[test]
fn certificates_have_envoys_values() {
    let certificate = |subject: &str, names: Vec<AlternativeName>| {
        Arc::new(Certificate {
            subject: subject.to_owned(),
            issuer: String::new(),
            serial: String::new(),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
            alternative_names: names,
        })
    };
    let names = ["a.test", "b.test"].map(|name| AlternativeName::Dns(name.to_owned()));
    let uri = AlternativeName::Uri("spiffe://a/b".to_owned());
    let mut tls = TlsInfo {
        version: Some("TLSv1.3"),
        peer_certificate: Some(Arc::from(&b"abc"[..])),
        peer: Some(certificate("CN=them", [&names[..], &[uri]].concat())),
        local: Some(certificate("CN=us", Vec::new())),
        ..TlsInfo::default()
    };
    let read = |tls: Option<&TlsInfo>| {
        let connection = ConnectionInfo {
            tls: tls.cloned(),
            ..ConnectionInfo::default()
        };
        let context = RequestContext::new(Arc::new(connection), Version::HTTP_11);
        let names = [
            "connection.tls_version",
            "connection.subject_peer_certificate",
            "connection.uri_san_peer_certificate",
            "connection.dns_san_peer_certificate",
            "connection.sha256_peer_certificate_digest",
            "connection.subject_local_certificate",
            "connection.uri_san_local_certificate",
            "connection.dns_san_local_certificate",
        ];
        let shown = show(&names, &context, None, None);
        names.map(|name| shown.get(name).cloned())
    };
    // printf abc | sha256sum
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    assert_eq!(
        read(Some(&tls)),
        [
            text("TLSv1.3"),
            text("CN=them"),
            text("spiffe://a/b"),
            text("a.test"),
            text(digest),
            text("CN=us"),
            None,
            None,
        ]
    );
    (tls.peer, tls.peer_certificate) = (None, None);
    let without = [
        text("TLSv1.3"),
        text(""),
        None,
        None,
        None,
        text("CN=us"),
        None,
        None,
    ];
    assert_eq!(read(Some(&tls)), without);
    assert_eq!(read(None), [const { None }; 8]);
}

#[test]
fn expressions_have_envoys_values() {
    let table = [
        ("request.path.startsWith('/p')", truth(true)),
        ("request.path.matches('^/[a-p]/')", truth(true)),
        ("request.path.matches('^/q')", truth(false)),
        ("request.method == 'POST' ? 'a' : 'b'", text("a")),
        ("has(request.headers.foo)", truth(false)),
        ("'x-a' in request.headers", truth(true)),
        ("size(request.headers)", number(8.0)),
        ("request.size > 3 && source.port == 4000", truth(true)),
        ("request.headers['x-none'] == 'a'", None),
        ("1/0", None),
        ("request.path + 5", None),
        ("1", number(1.0)),
        ("1u", number(1.0)),
        ("1.5", text("1.5")),
        ("null", text("NULL")),
        ("b'ab'", text("ab")),
        ("[1, 2]", text("CelList value")),
        ("{'a': 1}", text("CelMap value")),
        ("type(1)", text("CelType value")),
        ("duration('1.5s')", text("1.5s")),
        ("duration('-90m')", text("-1h30m")),
        ("duration('0.0005924s')", text("592.4us")),
        (
            "timestamp('2020-01-01T00:00:00.25Z')",
            text("2020-01-01T00:00:00.25+00:00"),
        ),
        ("request.time.getFullYear() > 2000", truth(true)),
    ];
    let shown = shown(&table.clone().map(|(expression, _)| expression));
    for (expression, expected) in table {
        assert_eq!(shown.get(expression).cloned(), expected, "{expression}");
    }
}

#[test]
fn the_response_phase_sees_both_heads() {
    let (response, ()) = Response::builder()
        .status(404)
        .header("x-r", "1")
        .body(())
        .unwrap()
        .into_parts();
    let (request, ()) = Request::get("/p").body(()).unwrap().into_parts();
    let context = context();
    context.set_details("via_upstream");
    context.set_upstream("10.0.0.9:81".parse().unwrap());
    let expressions = [
        "request.path",
        "response.code",
        "response.code_details",
        "response.grpc_status",
        "response.headers['x-r']",
        "response.code >= 400",
        "upstream.address",
    ];
    let shown = show(&expressions, &context, Some(&request), Some(&response));
    let expected = [
        text("/p"),
        number(404.0),
        text("via_upstream"),
        number(12.0),
        text("1"),
        truth(true),
        text("10.0.0.9:81"),
    ];
    for (expression, expected) in expressions.into_iter().zip(expected) {
        assert_eq!(shown.get(expression).cloned(), expected, "{expression}");
    }
}

#[test]
fn expressions_look_into_dynamic_metadata() {
    let value = |kind| prost_types::Value { kind };
    let user = Struct {
        fields: BTreeMap::from([("name".to_owned(), value(text("ann")))]),
    };
    let context = context();
    context.merge_metadata("jwt", user);
    let by_field = "metadata.filter_metadata.jwt.name";
    let by_key = "metadata.filter_metadata['jwt']['name'] == 'ann'";
    let absent = "metadata.filter_metadata.other.name";
    let shown = show(&[by_field, by_key, absent], &context, None, None);
    assert_eq!(shown.get(by_field).cloned(), text("ann"));
    assert_eq!(shown.get(by_key).cloned(), truth(true));
    assert_eq!(shown.get(absent), None);
}

#[test]
fn the_time_of_the_request_is_written_as_envoy_does() {
    let context = context();
    let shown = show(&["request.time"], &context, None, None);
    let Some(Kind::StringValue(time)) = shown.get("request.time") else {
        panic!("{shown:?}");
    };
    let parsed = chrono::DateTime::parse_from_rfc3339(time).unwrap();
    let age = SystemTime::now().duration_since(parsed.into()).unwrap();
    assert!(age < Duration::from_secs(60), "{time}");
    assert!(time.ends_with("+00:00"), "{time}");
}

#[test]
fn a_client_behind_proxies_has_no_port() {
    let mut context = context();
    context.client_ip = Some("192.0.2.7".parse().unwrap());
    let shown = show(&["source.address", "source.port"], &context, None, None);
    assert_eq!(shown.get("source.address").cloned(), text("192.0.2.7:0"));
    assert_eq!(shown.get("source.port").cloned(), number(0.0));
}

#[test]
fn what_does_not_exist_is_refused_with_the_reason() {
    for (expression, reason) in [
        ("1 +", "not a CEL expression"),
        ("request.headers['x", "not a CEL expression"),
        ("request.pth", "no attribute `request.pth`"),
        ("request.pth == 'a'", "no attribute `request.pth`"),
        ("reqest.path", "attributes begin with request"),
        ("filter_state['a']", "no filter state"),
        ("xds.node", "no xDS node"),
        ("string(request.size)", "switched off"),
        ("request.headers.all(k, k != 'z')", "switched off"),
        ("request.path.split('/')", "no function `split`"),
        ("nonsense()", "no function `nonsense`"),
        ("request.path.matches('(')", "pattern of `matches`"),
        ("request.path.matches(request.host)", "written out"),
        ("google.protobuf.Struct{}", "messages cannot be made"),
    ] {
        let error = Expression::compile(expression).unwrap_err();
        assert!(error.contains(reason), "{expression}: {error}");
    }
}

#[test]
fn only_what_names_the_request_reads_it() {
    let reads = |text: &str| Expression::compile(text).unwrap().reads_request();
    assert!(reads("request.path"));
    assert!(reads("response.code == 200 && request.method == 'GET'"));
    assert!(!reads("response.code"));
    assert!(!reads("request.time"));
    assert!(!reads("response.headers['x'] == 'a'"));
}

proptest::proptest! {
    #[test]
    fn no_expression_panics(text: String) {
        let _ = Expression::compile(&text);
    }

    #[test]
    fn no_header_value_panics(bytes: Vec<u8>) {
        if let Ok(value) = http::HeaderValue::from_bytes(&bytes) {
            let (mut request, ()) = Request::get("/").body(()).unwrap().into_parts();
            request.headers.insert("x", value);
            let context = context();
            let names = ["request.headers['x']", "request.headers['x'].contains('a')"];
            let shown = show(&names, &context, Some(&request), None);
            assert_eq!(shown.len(), 2);
        }
    }
}
