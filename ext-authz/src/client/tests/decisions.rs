//! What answers do to requests and responses.

use super::*;

#[tokio::test]
async fn an_allowed_request_goes_on_with_the_changes() {
    let fixture = Fixture::new(
        "",
        ok(OkHttpResponse {
            headers: vec![hv("x-e", "new")],
            headers_to_remove: vec!["authorization".into()],
            query_parameters_to_set: vec![QueryParameter {
                key: "a".into(),
                value: "1".into(),
            }],
            response_headers_to_add: vec![hv("x-r", "new")],
            ..OkHttpResponse::default()
        }),
    );
    let outcome = fixture
        .send(get().header("authorization", "x"), Body::empty())
        .await;
    let upstream = outcome.upstream.as_ref().unwrap();
    assert_eq!(upstream.headers["x-e"], "new");
    assert!(!upstream.headers.contains_key("authorization"));
    assert_eq!(upstream.path, "/p?a=1&z=1");
    let lines: Vec<_> = outcome.response.headers().get_all("x-r").iter().collect();
    assert_eq!(lines, ["u1", "u2", "new"]);
    assert_eq!(outcome.response.body(), "hello");
    assert_eq!(fixture.counted(), counts(&["ok"]));
    assert!(!outcome.context.is_route_cleared());
    let calls = outcome.context.calls();
    assert_eq!(
        (&*calls[0].filter, calls[0].phase.name(), calls[0].status),
        ("auth", "check", 0)
    );
    assert_eq!(calls[0].result, CallResult::Continued);
    let added = |name: &str, value: &str| HeaderChange::Added {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let of_request = calls[0].request_changes();
    let set = HeaderChange::Set {
        name: "x-e".to_owned(),
        old: vec!["old".to_owned()],
        new: vec!["new".to_owned()],
    };
    assert!(of_request.contains(&set), "{of_request:?}");
    let removed = HeaderChange::Removed {
        name: "authorization".to_owned(),
        old: vec!["x".to_owned()],
    };
    assert!(of_request.contains(&removed), "{of_request:?}");
    assert_eq!(calls[0].response_changes(), [added("x-r", "new")]);
}

#[tokio::test]
async fn a_denied_request_gets_the_answer_of_the_service() {
    let fixture = Fixture::new("", denied(401, "who?"));
    let outcome = fixture.get().await;
    assert!(outcome.upstream.is_none());
    assert_eq!(outcome.context.calls()[0].result, CallResult::Answered);
    assert_eq!(outcome.response.status(), 401);
    assert_eq!(outcome.response.headers()["x-d"], "1");
    assert_eq!(outcome.response.headers()["content-type"], "text/plain");
    assert_eq!(outcome.response.body(), "who?");
    assert_eq!(
        outcome.context.details().as_deref(),
        Some("ext_authz_denied")
    );
    assert_eq!(flags(&outcome), ["UAEX"]);
    assert_eq!(fixture.counted(), counts(&["denied"]));
}

#[tokio::test]
async fn a_grpc_caller_is_denied_in_its_own_terms() {
    let fixture = Fixture::new("", denied(401, "hello w%rld"));
    let request = post().header("content-type", "application/grpc");
    let outcome = fixture.send(request, Body::empty()).await;
    assert_eq!(outcome.response.status(), 200);
    let headers = outcome.response.headers();
    assert_eq!(
        (&headers["grpc-status"], &headers["grpc-message"]),
        (&"16".parse().unwrap(), &"hello w%25rld".parse().unwrap())
    );
    assert!(outcome.response.body().is_empty());
    let web = post().header("content-type", "application/grpc-web");
    assert_eq!(
        fixture.send(web, Body::empty()).await.response.status(),
        401
    );
}

#[tokio::test]
async fn an_answer_that_would_split_the_response_is_a_500() {
    let mut parts = denied_parts(401, "");
    parts.headers = vec![hv("x-a", "a\r\nevil: 1")];
    let answer = with_code(7, HttpResponse::DeniedResponse(parts));
    let fixture = Fixture::new("failure_mode_allow: true", answer);
    let outcome = fixture.get().await;
    assert_eq!(outcome.response.status(), 500);
    assert!(!outcome.response.headers().contains_key("evil"));
    assert_eq!(
        outcome.context.details().as_deref(),
        Some("ext_authz_invalid")
    );
    assert_eq!(fixture.counted(), counts(&["invalid"]));
}

#[tokio::test]
async fn requests_that_could_not_be_sent_upstream_are_a_503_or_under_validation_a_500() {
    let answer = || {
        ok(OkHttpResponse {
            headers: vec![hv("x b", "1")],
            ..OkHttpResponse::default()
        })
    };
    let outcome = Fixture::new("", answer()).get().await;
    assert_eq!(outcome.response.status(), 503);
    assert!(flags(&outcome).contains(&"DPE"));
    let validating = "validate_mutations: true\nfailure_mode_allow: true";
    let outcome = Fixture::new(validating, answer()).get().await;
    assert_eq!(outcome.response.status(), 500);
    let many = ok(OkHttpResponse {
        headers: (0..120).map(|i| hv(&format!("x-{i}"), "1")).collect(),
        ..OkHttpResponse::default()
    });
    let fixture = Fixture::new("", many);
    assert_eq!(fixture.get().await.response.status(), 500);
    assert_eq!(
        fixture.counted(),
        counts(&["invalid", "request_header_limits_reached"])
    );
}

#[tokio::test]
async fn the_route_is_cleared_when_what_it_depends_on_changes() {
    let header = |name: &str| OkHttpResponse {
        headers: vec![hv(name, "1")],
        ..OkHttpResponse::default()
    };
    let query = || OkHttpResponse {
        query_parameters_to_remove: vec!["absent".into()],
        ..OkHttpResponse::default()
    };
    let response = || OkHttpResponse {
        response_headers_to_add: vec![hv("x-route", "1")],
        ..OkHttpResponse::default()
    };
    let removal = || OkHttpResponse {
        headers_to_remove: vec!["X-Route".into()],
        ..OkHttpResponse::default()
    };
    let joined = || OkHttpResponse {
        headers: vec![option("x-route", "1", Some(true), 0)],
        ..OkHttpResponse::default()
    };
    let always = "clear_route_cache: true";
    let listed = "clear_route_cache: true\nclear_route_cache_headers: [x-route]";
    for (config, answer, cleared) in [
        ("", header("x-route"), false),
        (always, header("x-route"), true),
        (always, joined(), true),
        (always, removal(), true),
        (always, query(), true),
        (always, response(), false),
        (always, OkHttpResponse::default(), false),
        (listed, header("x-zzz"), false),
        (listed, header("x-route"), true),
        (listed, joined(), true),
        (listed, removal(), true),
        (listed, query(), true),
    ] {
        let outcome = Fixture::new(config, ok(answer.clone())).get().await;
        assert_eq!(
            outcome.context.is_route_cleared(),
            cleared,
            "{config} {answer:?}"
        );
    }
}

#[tokio::test]
async fn dynamic_metadata_is_kept_unless_told_otherwise() {
    let user = || {
        let value = prost_types::Value {
            kind: Some(prost_types::value::Kind::StringValue("u".into())),
        };
        prost_types::Struct {
            fields: [("user".to_owned(), value)].into(),
        }
    };
    let answer = |answer: Answer, fields: Option<prost_types::Struct>| {
        answer.map(|answer| CheckResponse {
            dynamic_metadata: fields,
            ..answer
        })
    };
    let keys = |outcome: &Outcome| {
        let metadata = outcome.context.metadata("envoy.filters.http.ext_authz");
        metadata
            .map(|m| m.fields.into_keys().collect::<Vec<_>>())
            .unwrap_or_default()
    };
    let allowing = answer(ok(OkHttpResponse::default()), Some(user()));
    assert_eq!(
        keys(&Fixture::new("", allowing.clone()).get().await),
        ["ext_authz_duration", "user"]
    );
    let denying = answer(denied(403, ""), Some(user()));
    assert_eq!(keys(&Fixture::new("", denying).get().await), ["user"]);
    let empty = answer(
        ok(OkHttpResponse::default()),
        Some(prost_types::Struct::default()),
    );
    assert_eq!(keys(&Fixture::new("", empty).get().await), [""; 0]);
    let fixture = Fixture::new("enable_dynamic_metadata_ingestion: false", allowing);
    assert_eq!(keys(&fixture.get().await), [""; 0]);
    assert_eq!(
        fixture.counted(),
        counts(&["ignored_dynamic_metadata", "ok"])
    );
}

#[tokio::test]
async fn response_header_limits_are_enforced_when_asked_for() {
    let many = || {
        ok(OkHttpResponse {
            response_headers_to_add: (0..120).map(|i| hv(&format!("x-{i}"), "1")).collect(),
            ..OkHttpResponse::default()
        })
    };
    let outcome = Fixture::new("", many()).get().await;
    assert_eq!(
        (
            outcome.response.status().as_u16(),
            outcome.response.headers().len()
        ),
        (200, 122)
    );
    let fixture = Fixture::new("enforce_response_header_limits: true", many());
    let outcome = fixture.get().await;
    assert_eq!(outcome.response.status(), 500);
    assert_eq!(
        fixture.counted(),
        counts(&["ok", "response_header_limits_reached"])
    );
}
