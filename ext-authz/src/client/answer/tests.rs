//! What answers over gRPC mean.

use attache_proto::{
    auth::{CheckResponse, DeniedHttpResponse, OkHttpResponse, check_response::HttpResponse},
    core::{self, HeaderValueOption},
    rpc, types,
};

use super::{check_response::read, *};

pub(crate) const FAITHFUL: Reading = Reading {
    validate: false,
    status_on_error: StatusCode::SERVICE_UNAVAILABLE,
    max_denied_body: 0,
};
const VALIDATING: Reading = Reading {
    validate: true,
    ..FAITHFUL
};

pub(crate) fn option(
    key: &str,
    value: &str,
    append: Option<bool>,
    action: i32,
) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(core::HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            raw_value: Bytes::new(),
        }),
        append,
        append_action: action,
        keep_empty_value: false,
    }
}

pub(crate) fn hv(key: &str, value: &str) -> HeaderValueOption {
    option(key, value, None, 0)
}

fn response(code: i32, http: Option<HttpResponse>) -> CheckResponse {
    CheckResponse {
        status: Some(rpc::Status {
            code,
            ..rpc::Status::default()
        }),
        http_response: http,
        dynamic_metadata: None,
    }
}

fn denied(code: i32, headers: Vec<HeaderValueOption>, body: &str) -> DeniedHttpResponse {
    DeniedHttpResponse {
        status: Some(types::HttpStatus { code }),
        headers,
        body: body.to_owned(),
    }
}

fn ok(ok: OkHttpResponse, reading: Reading) -> Verdict {
    read(response(0, Some(HttpResponse::OkResponse(ok))), reading).verdict
}

fn deny(code: i32, headers: Vec<HeaderValueOption>, body: &str) -> Verdict {
    let denied = HttpResponse::DeniedResponse(denied(code, headers, body));
    read(response(7, Some(denied)), FAITHFUL).verdict
}

fn allowed() -> Verdict {
    Verdict::Allow(Effects::default())
}

fn replied(status: u16, body: &str) -> Reply {
    Reply {
        status: StatusCode::from_u16(status).unwrap(),
        headers: HeaderMap::new(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

#[test]
fn the_status_decides_and_what_does_not_fit_it_is_ignored() {
    let denial = || HttpResponse::DeniedResponse(denied(401, vec![], "no"));
    let failure = |code| HttpResponse::ErrorResponse(denied(code, vec![], "oops"));
    let mutation = || {
        HttpResponse::OkResponse(OkHttpResponse {
            headers: vec![hv("x-a", "1")],
            ..OkHttpResponse::default()
        })
    };
    for (answer, expected) in [
        // An empty answer allows.
        (CheckResponse::default(), allowed()),
        (response(0, None), allowed()),
        (response(0, Some(denial())), allowed()),
        (response(0, Some(failure(502))), allowed()),
        (response(7, None), Verdict::Deny(replied(403, ""))),
        (response(14, None), Verdict::Deny(replied(403, ""))),
        (
            response(7, Some(mutation())),
            Verdict::Deny(replied(403, "")),
        ),
        (
            response(16, Some(denial())),
            Verdict::Deny(replied(401, "no")),
        ),
        (
            response(13, Some(failure(502))),
            Verdict::Error(Some(replied(502, "oops"))),
        ),
        (
            response(13, Some(failure(0))),
            Verdict::Error(Some(replied(503, "oops"))),
        ),
        (response(13, Some(failure(99))), Verdict::Error(None)),
    ] {
        assert_eq!(
            read(answer.clone(), FAITHFUL).verdict,
            expected,
            "{answer:?}"
        );
    }
}

#[test]
fn denials_keep_their_headers_but_framing_and_server() {
    let verdict = deny(
        401,
        vec![
            hv("WWW-Authenticate", "Basic"),
            hv("set-cookie", "a=1"),
            hv("set-cookie", "b=2"),
            hv("content-length", "77"),
            hv("transfer-encoding", "chunked"),
            hv("connection", "close"),
            hv("server", "evil"),
            hv(":status", "200"),
            hv("host", "evil"),
            option("x-lost", "1", Some(true), 0),
            option("x-a", "1", Some(false), 3),
            option("x-a", "2", None, 1),
        ],
        "{}",
    );
    let Verdict::Deny(reply) = verdict else {
        panic!("{verdict:?}")
    };
    let mut lines: Vec<_> = reply
        .headers
        .iter()
        .map(|(k, v)| (k.as_str(), v.to_str().unwrap()))
        .collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("www-authenticate", "Basic"),
            ("x-a", "1"),
            ("x-a", "2"),
        ]
    );
}

#[test]
fn statuses_that_no_client_could_read_are_refused() {
    for code in [99, 100, 199, 600, 700, 999, -1, 70_000] {
        assert_eq!(
            deny(code, vec![], ""),
            Verdict::Invalid(Invalid::Answer),
            "{code}"
        );
    }
    for (code, expected) in [(0, 403), (200, 200), (302, 302), (418, 418), (599, 599)] {
        assert_eq!(deny(code, vec![], ""), Verdict::Deny(replied(expected, "")));
    }
    // These never have a body.
    assert_eq!(deny(204, vec![], "x"), Verdict::Deny(replied(204, "")));
    assert_eq!(deny(304, vec![], "x"), Verdict::Deny(replied(304, "")));
}

#[test]
fn what_would_split_a_message_is_refused_even_without_validation() {
    for bad in [
        hv("x-a", "a\r\nevil: 1"),
        hv("x b", "1"),
        hv("", "1"),
        hv("a\n", "1"),
    ] {
        assert_eq!(
            deny(401, vec![bad.clone()], ""),
            Verdict::Invalid(Invalid::Answer)
        );
        let to_client = OkHttpResponse {
            response_headers_to_add: vec![bad.clone()],
            ..OkHttpResponse::default()
        };
        assert_eq!(ok(to_client, FAITHFUL), Verdict::Invalid(Invalid::Answer));
        let upstream = OkHttpResponse {
            headers: vec![bad.clone()],
            ..OkHttpResponse::default()
        };
        assert_eq!(
            ok(upstream.clone(), FAITHFUL),
            Verdict::Invalid(Invalid::Request)
        );
        assert_eq!(ok(upstream, VALIDATING), Verdict::Invalid(Invalid::Answer));
        let error = HttpResponse::ErrorResponse(denied(502, vec![bad], "x"));
        assert_eq!(
            read(response(13, Some(error)), FAITHFUL).verdict,
            Verdict::Error(None)
        );
    }
}

#[test]
fn framing_headers_are_left_out_of_requests_and_responses() {
    let framing = || {
        vec![
            hv("Content-Length", "0"),
            hv("transfer-encoding", "chunked"),
            hv("connection", "close"),
            hv("upgrade", "x"),
        ]
    };
    let mut response = framing();
    response.push(hv(":status", "201"));
    let verdict = ok(
        OkHttpResponse {
            headers: framing(),
            response_headers_to_add: response,
            ..OkHttpResponse::default()
        },
        FAITHFUL,
    );
    let expected = Effects {
        omitted: 9,
        ..Effects::default()
    };
    assert_eq!(verdict, Verdict::Allow(expected));
}

#[test]
fn only_append_counts_for_request_headers() {
    let options = [
        (None, 0, false),
        (None, 1, false),
        (None, 3, false),
        (None, 9, false),
        (Some(false), 0, false),
        (Some(true), 0, true),
        (Some(true), 2, true),
    ];
    for (append, action, appends) in options {
        let headers = vec![option("X-A", "1", append, action)];
        let verdict = ok(
            OkHttpResponse {
                headers,
                ..OkHttpResponse::default()
            },
            FAITHFUL,
        );
        let Verdict::Allow(effects) = verdict else {
            panic!("{verdict:?}")
        };
        assert_eq!(
            (effects.set.len(), effects.append.len()),
            if appends { (0, 1) } else { (1, 0) },
            "{append:?} {action}"
        );
    }
}

#[test]
fn raw_values_are_ignored_and_empty_ones_kept() {
    let raw = HeaderValueOption {
        header: Some(core::HeaderValue {
            key: "x-a".into(),
            value: String::new(),
            raw_value: Bytes::from_static(b"1"),
        }),
        ..HeaderValueOption::default()
    };
    let verdict = ok(
        OkHttpResponse {
            headers: vec![raw],
            ..OkHttpResponse::default()
        },
        FAITHFUL,
    );
    let Verdict::Allow(effects) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(effects.set[0].1, "");
}

#[test]
fn response_headers_follow_append_then_append_action_in_order_of_verbs() {
    let verdict = ok(
        OkHttpResponse {
            response_headers_to_add: vec![
                option("x-r", "replace", None, 3),
                option("x-i", "absent", None, 1),
                option("x-s", "set", None, 2),
                option("x-f", "set", Some(false), 0),
                option("x-a", "add", None, 0),
                option("x-t", "add", Some(true), 2),
                option("x-u", "dropped", None, 9),
            ],
            ..OkHttpResponse::default()
        },
        FAITHFUL,
    );
    let Verdict::Allow(effects) = verdict else {
        panic!("{verdict:?}")
    };
    let order: Vec<_> = effects
        .response
        .iter()
        .map(|(verb, name, _)| (*verb, name.as_str()))
        .collect();
    assert_eq!(
        order,
        [
            (ResponseVerb::Add, "x-a"),
            (ResponseVerb::Add, "x-t"),
            (ResponseVerb::Set, "x-s"),
            (ResponseVerb::Set, "x-f"),
            (ResponseVerb::AddIfAbsent, "x-i"),
            (ResponseVerb::ReplaceIfPresent, "x-r"),
        ]
    );
    assert_eq!(effects.omitted, 1);
}

#[test]
fn validation_refuses_unknown_actions_and_queries_that_need_encoding() {
    let unknown_response = OkHttpResponse {
        response_headers_to_add: vec![option("x-a", "1", None, 9)],
        ..OkHttpResponse::default()
    };
    let query = |value: &str| OkHttpResponse {
        query_parameters_to_set: vec![core::QueryParameter {
            key: "a".into(),
            value: value.into(),
        }],
        ..OkHttpResponse::default()
    };
    for refused in [
        unknown_response,
        query("e&f"),
        query("c d"),
        query("c%20d"),
        query("a+b"),
        query("~"),
    ] {
        assert_eq!(
            ok(refused.clone(), VALIDATING),
            Verdict::Invalid(Invalid::Answer)
        );
        assert!(matches!(ok(refused, FAITHFUL), Verdict::Allow(_)));
    }
    assert!(matches!(
        ok(query("aZ09*-._"), VALIDATING),
        Verdict::Allow(_)
    ));
    // Request headers have only `append`.
    let ignored = OkHttpResponse {
        headers: vec![option("x-a", "1", None, 9)],
        ..OkHttpResponse::default()
    };
    assert!(matches!(ok(ignored, VALIDATING), Verdict::Allow(_)));
    // A name that no header can have is merely not there.
    let removal = OkHttpResponse {
        headers_to_remove: vec!["x b".into()],
        ..OkHttpResponse::default()
    };
    assert!(matches!(ok(removal, VALIDATING), Verdict::Allow(_)));
}

#[test]
fn bodies_are_cut_and_metadata_of_the_ok_part_wins() {
    let cut = Reading {
        max_denied_body: 4,
        ..FAITHFUL
    };
    let answer = response(
        7,
        Some(HttpResponse::DeniedResponse(denied(403, vec![], "12345"))),
    );
    assert_eq!(
        read(answer, cut).verdict,
        Verdict::Deny(replied(403, "1234"))
    );

    let named = |name: &str| prost_types::Struct {
        fields: [(name.to_owned(), prost_types::Value::default())].into(),
    };
    let answer = CheckResponse {
        dynamic_metadata: Some(named("outer")),
        ..response(
            0,
            Some(HttpResponse::OkResponse(OkHttpResponse {
                dynamic_metadata: Some(named("inner")),
                ..OkHttpResponse::default()
            })),
        )
    };
    assert_eq!(read(answer, FAITHFUL).metadata, Some(named("inner")));
}
