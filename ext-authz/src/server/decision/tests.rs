//! Decisions as client and upstream see them.

use http::{Request, Response};
use proptest::prelude::*;

use attache_proto::auth::check_response::HttpResponse;

use super::*;
use crate::testing::{Harness, Outcome};

fn client() -> Request<&'static str> {
    Request::get("http://h/p?a=1&b=2")
        .header("x-e", "old")
        .header("cookie", "a=1")
        .body("")
        .unwrap()
}

async fn outcome(decision: Decision) -> Outcome {
    Harness::new(decision).check(client()).await
}

async fn allowed(decision: Allow) -> crate::testing::Allowed {
    match outcome(decision.into()).await {
        Outcome::Allowed(allowed) => allowed,
        other => panic!("{other:?}"),
    }
}

fn lines<'a>(headers: &'a http::HeaderMap, name: &str) -> Vec<&'a str> {
    headers
        .get_all(name)
        .iter()
        .map(|v| v.to_str().unwrap())
        .collect()
}

#[tokio::test]
async fn verbs_do_to_a_request_what_they_say() {
    let allowed = allowed(
        Decision::allow()
            .set("x-e", "new")
            .join("x-n", "1")
            .join("x-n", "2")
            .join("cookie", "b=2")
            .set(":path", "/other?b=2&z")
            .query_set("a", "x&y z")
            .query_remove("b")
            .remove("x-gone"),
    )
    .await;
    let headers = allowed.request.headers();
    assert_eq!(lines(headers, "x-e"), ["new"]);
    assert_eq!(lines(headers, "x-n"), ["1,2"]);
    assert_eq!(lines(headers, "cookie"), ["a=1; b=2"]);
    assert_eq!(
        allowed.request.uri().path_and_query().unwrap(),
        "/other?a=x%26y%20z&z="
    );
}

#[tokio::test]
async fn verbs_do_to_a_response_what_they_say() {
    let allowed = allowed(
        Decision::allow()
            .response_add("x-a", "2")
            .response_replace("x-b", "2")
            .response_add_if_absent("x-c", "2")
            .response_replace_if_present("x-d", "2"),
    )
    .await;
    let upstream = Response::builder()
        .header("x-a", "1")
        .header("x-b", "1")
        .header("x-c", "1")
        .body(())
        .unwrap();
    let response = allowed.response(upstream);
    let headers = response.headers();
    assert_eq!(lines(headers, "x-a"), ["1", "2"]);
    assert_eq!(lines(headers, "x-b"), ["2"]);
    assert_eq!(lines(headers, "x-c"), ["1"]);
    assert_eq!(lines(headers, "x-d"), [""; 0]);
}

#[tokio::test]
async fn a_denial_reaches_the_client_whole() {
    let denial = Decision::deny(401)
        .header("www-authenticate", "Bearer")
        .header("set-cookie", "a=1")
        .header("set-cookie", "b=2")
        .body("who are you?");
    let Outcome::Denied(response) = outcome(denial.into()).await else {
        panic!()
    };
    assert_eq!(response.status(), 401);
    assert_eq!(lines(response.headers(), "set-cookie"), ["a=1", "b=2"]);
    assert_eq!(lines(response.headers(), "www-authenticate"), ["Bearer"]);
    assert_eq!(response.body(), "who are you?");
}

#[test]
fn what_envoy_would_mangle_is_refused() {
    use DecisionError::{
        Body, BodySize, ErrorStatus, Name, Reserved, SetAndRemoved, Status, TooLarge, TooMany,
        Value,
    };
    let name = || "x-a".to_owned();
    let many = (0..101).fold(Decision::allow(), |d, i| d.set(format!("x-{i}"), "1"));
    let large = Decision::allow().set("x-a", "a".repeat(61 << 10));
    let cases: Vec<(Decision, DecisionError)> = vec![
        (Decision::allow().set("x-a", "a\r\nb").into(), Value(name())),
        (Decision::allow().join("x-a", "a\0").into(), Value(name())),
        (Decision::allow().set("x b", "1").into(), Name("x b".into())),
        (Decision::allow().set("", "1").into(), Name(String::new())),
        (
            Decision::allow().set("Content-Length", "1").into(),
            Reserved("Content-Length".into()),
        ),
        (
            Decision::allow().join(":path", "/x").into(),
            Reserved(":path".into()),
        ),
        (
            Decision::allow().set(":status", "1").into(),
            Reserved(":status".into()),
        ),
        (
            Decision::allow().remove("host").into(),
            Reserved("host".into()),
        ),
        (
            Decision::allow().response_replace(":status", "201").into(),
            Reserved(":status".into()),
        ),
        (
            Decision::allow()
                .response_add("transfer-encoding", "x")
                .into(),
            Reserved("transfer-encoding".into()),
        ),
        (many.into(), TooMany(101, 100)),
        (large.into(), TooLarge((61 << 10) + 3, 60 << 10)),
        (
            Decision::allow().set("X-A", "1").remove("x-a").into(),
            SetAndRemoved("x-a".into()),
        ),
        (
            Decision::allow()
                .query_set("a", "1")
                .query_remove("a")
                .into(),
            SetAndRemoved("a".into()),
        ),
        (Decision::deny(100).into(), Status(100)),
        (Decision::deny(600).into(), Status(600)),
        (Decision::deny(204).body("x").into(), Body(204)),
        (
            Decision::deny(403).body("a".repeat((1 << 20) + 1)).into(),
            BodySize((1 << 20) + 1),
        ),
        (
            Decision::deny(403).header("server", "mine").into(),
            Reserved("server".into()),
        ),
        (Decision::error(200).into(), ErrorStatus(200)),
        (
            Decision::error(503).header("retry-after", "\n").into(),
            Value("retry-after".into()),
        ),
        (
            Decision::deny(403).header("x-a", "a\nb").into(),
            Value(name()),
        ),
        (
            Decision::deny(403).header("content-length", "1").into(),
            Reserved("content-length".into()),
        ),
    ];
    for (decision, expected) in cases {
        let refused = decision.clone().into_response(&CheckRequestView::default());
        assert_eq!(refused.unwrap_err(), expected, "{decision:?}");
    }
}

#[test]
fn an_error_answer_never_has_the_status_that_allows() {
    for status in [400, 403, 500, 502, 503, 504, 599] {
        let error = Decision::from(Decision::error(status));
        let response = error.into_response(&CheckRequestView::default()).unwrap();
        assert_ne!(response.status.unwrap().code, 0, "{status}");
        let Some(HttpResponse::ErrorResponse(reply)) = response.http_response else {
            panic!("{status}");
        };
        assert_eq!(reply.status.unwrap().code, i32::from(status));
    }
    assert_ne!(unavailable().status.unwrap().code, 0);
}

#[test]
fn allowing_is_said_with_a_status_and_denying_with_another() {
    let view = CheckRequestView::default();
    let allow = Decision::from(Decision::allow())
        .into_response(&view)
        .unwrap();
    assert_eq!(allow.status.unwrap().code, 0);
    for (status, code) in [(401, 16), (403, 7), (429, 8), (302, 7), (200, 7)] {
        let deny = Decision::from(Decision::deny(status))
            .into_response(&view)
            .unwrap();
        assert_eq!(deny.status.unwrap().code, code);
    }
}

#[test]
fn changes_that_make_a_request_too_large_are_refused_before_the_proxy_does() {
    let request = |count: usize| {
        let headers = (0..count).map(|i| (format!("x-{i}"), "1"));
        let request = headers.fold(Request::get("http://h/"), |r, (k, v)| r.header(k, v));
        // With the four pseudo-headers.
        crate::testing::view(&request.body(()).unwrap())
    };
    let respond = |count, decision: Allow| Decision::from(decision).into_response(&request(count));
    let set = |name: &str| Decision::allow().set(name, "1");
    assert!(respond(95, set("x-new")).is_ok());
    assert_eq!(
        respond(96, set("x-new")).unwrap_err(),
        DecisionError::TooMany(101, 100)
    );
    // What replaces, joins or makes room adds no line.
    assert!(respond(96, set("X-1")).is_ok());
    assert!(respond(96, Decision::allow().join("x-1", "2")).is_ok());
    assert!(respond(96, set("x-new").remove("x-1")).is_ok());
    assert!(respond(96, Decision::allow().remove("x-1")).is_ok());
    // A proxy that lets such a request in has other limits.
    assert!(respond(120, set("x-new")).is_ok());
    let limits = HeaderLimits {
        count: 200,
        ..HeaderLimits::default()
    };
    let wide = Decision::from(set("x-new")).into_response_within(&request(96), limits);
    assert!(wide.is_ok());
}

#[test]
fn grpc_clients_are_told_a_status_of_theirs() {
    let status = |kind: &str| {
        let request = Request::post("http://h/").header("content-type", kind);
        let view = crate::testing::view(&request.body(()).unwrap());
        let denial = Decision::deny(404).grpc_status(tonic::Code::NotFound);
        let response = Decision::from(denial).into_response(&view).unwrap();
        let Some(HttpResponse::DeniedResponse(denied)) = response.http_response else {
            panic!();
        };
        let header = denied.headers.into_iter().next()?.header?;
        Some((header.key, header.value))
    };
    let told = Some(("grpc-status".to_owned(), "5".to_owned()));
    assert_eq!(status("application/grpc"), told);
    assert_eq!(status("application/grpc+proto"), told);
    assert_eq!(status("application/grpc-web"), None);
    assert_eq!(status("application/json"), None);
}

proptest! {
    #[test]
    fn what_can_be_sent_is_applied_and_what_cannot_is_refused(
        name in prop_oneof!["[a-zA-Z:][a-z-]{0,10}", any::<String>()],
        value in any::<String>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let decision = Decision::allow().join(name.clone(), value.clone());
        match runtime.block_on(outcome(decision.into())) {
            Outcome::Allowed(allowed) => {
                let applied = allowed.request.headers().get(&name).unwrap();
                prop_assert!(applied.as_bytes().ends_with(value.as_bytes()));
            }
            Outcome::Failed(_) => {}
            Outcome::Denied(response) => prop_assert!(false, "{:?}", response),
        }
    }
}
