//! No answer, no check, and settings that make no sense.

use super::*;

#[tokio::test]
async fn a_failed_call_is_an_error_whatever_its_status() {
    for status in [
        Status::permission_denied("no"),
        Status::unauthenticated("no"),
        Status::unavailable("down"),
    ] {
        let code = status.code() as i32;
        let fixture = Fixture::new("", Err(status));
        let outcome = fixture.get().await;
        assert_eq!(outcome.response.status(), 403);
        assert!(outcome.response.body().is_empty());
        assert_eq!(
            outcome.context.details().as_deref(),
            Some("ext_authz_error")
        );
        let call = &outcome.context.calls()[0];
        assert_eq!(call.status, code);
        assert_eq!(call.result, CallResult::FailedClosed);
        assert_eq!(fixture.counted(), counts(&["error"]));
    }
}

#[tokio::test]
async fn an_error_answer_is_given_to_the_client_unless_failures_are_let_through() {
    let outcome = Fixture::new("", failed(502, "oops")).get().await;
    assert_eq!(outcome.response.status(), 502);
    assert_eq!(outcome.response.headers()["x-d"], "1");
    assert_eq!(outcome.response.body(), "oops");
    assert_eq!(
        outcome.context.details().as_deref(),
        Some("ext_authz_error")
    );
    let config = "status_on_error: { code: ServiceUnavailable }";
    assert_eq!(
        Fixture::new(config, failed(0, "x"))
            .get()
            .await
            .response
            .status(),
        503
    );
    assert_eq!(
        Fixture::new(config, failed(99, "x"))
            .get()
            .await
            .response
            .status(),
        503
    );
    let open = Fixture::new("failure_mode_allow: true", failed(502, "oops"));
    assert_eq!(open.get().await.response.status(), 200);
    assert_eq!(open.counted(), counts(&["error", "failure_mode_allowed"]));
}

#[tokio::test]
async fn failures_that_are_let_through_can_be_marked() {
    let mark = "x-envoy-auth-failure-mode-allowed";
    let lines = |outcome: &Outcome| {
        let headers = &outcome.upstream.as_ref().unwrap().headers;
        headers.get_all(mark).iter().cloned().collect::<Vec<_>>()
    };
    let open = "failure_mode_allow: true";
    let marked = format!("{open}\nfailure_mode_allow_header_add: true");
    let down = || Err(Status::unavailable("down"));
    assert_eq!(lines(&Fixture::new(open, down()).get().await), [""; 0]);
    let fixture = Fixture::new(&marked, down());
    assert_eq!(lines(&fixture.get().await), ["true"]);
    let spoofed = fixture
        .send(get().header(mark, "spoof"), Body::empty())
        .await;
    assert_eq!(lines(&spoofed), ["spoof", "true"]);
}

#[tokio::test]
async fn a_cluster_that_does_not_exist_is_an_error() {
    let mut fixture = Fixture::new("", Ok(CheckResponse::default()));
    fixture.channels = Channels::default();
    assert_eq!(fixture.get().await.response.status(), 403);
    assert_eq!(fixture.counted(), counts(&["error"]));
}

#[tokio::test(start_paused = true)]
async fn a_check_takes_200_ms_at_most_unless_told_otherwise() {
    let slow = || async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        Ok(CheckResponse::default())
    };
    let timed = |timeout: &str| {
        let config = format!("grpc_service: {{ envoy_grpc: {{ cluster_name: auth }}{timeout} }}");
        Fixture::answering(&config, slow)
    };
    let began = Instant::now();
    let outcome = timed("").get().await;
    assert_eq!(outcome.response.status(), 403);
    let took = began.elapsed();
    assert!((200..210).contains(&took.as_millis()), "{took:?}");
    for timeout in [", timeout: 1s", ", timeout: 0s"] {
        assert_eq!(timed(timeout).get().await.response.status(), 200);
    }
}

#[tokio::test]
async fn a_check_that_nobody_waits_for_is_cancelled() {
    struct OnDrop(Option<tokio::sync::oneshot::Sender<()>>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.take().map(|sender| sender.send(()));
        }
    }
    let (sender, dropped) = tokio::sync::oneshot::channel();
    let sender = Mutex::new(Some(sender));
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let fixture = Fixture::answering("", move || {
        let guard = OnDrop(sender.lock().unwrap().take());
        begun.send(()).unwrap();
        async move {
            let _guard = guard;
            std::future::pending::<Answer>().await
        }
    });
    tokio::select! {
        _ = fixture.get() => panic!("answered"),
        _ = begins.recv() => {}
    }
    tokio::time::timeout(Duration::from_secs(5), dropped)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(fixture.counted(), []);
}

#[tokio::test]
async fn routes_can_turn_checks_off() {
    let fixture = Fixture::new("", denied(403, "")).route(per_route("disabled: true"));
    assert_eq!(fixture.get().await.response.status(), 200);
    assert_eq!((fixture.checks(), fixture.counted()), (0, vec![]));
    let fixture = Fixture::new("", denied(403, "")).route(per_route("disabled: false"));
    assert_eq!(fixture.get().await.response.status(), 403);
}

#[tokio::test]
async fn unchecked_requests_pass_or_are_denied() {
    let off = "filter_enabled: { default_value: { numerator: 0 } }";
    let fixture = Fixture::new(off, denied(403, ""));
    assert_eq!(fixture.get().await.response.status(), 200);
    assert_eq!(
        (fixture.checks(), fixture.counted()),
        (0, counts(&["disabled"]))
    );

    let deny = format!(
        "{off}\ndeny_at_disable: {{ default_value: true, runtime_key: deny.all }}\nstatus_on_error: {{ code: 429 }}"
    );
    let fixture = Fixture::new(&deny, denied(403, ""));
    let outcome = fixture.get().await;
    assert_eq!(outcome.response.status(), 429);
    assert_eq!(
        outcome.context.details().as_deref(),
        Some("ext_authz_error")
    );
    assert_eq!(flags(&outcome), ["UAEX"]);
    assert_eq!(
        (fixture.checks(), fixture.counted()),
        (0, counts(&["disabled"]))
    );
    let fixture = fixture.route(per_route("disabled: true"));
    assert_eq!(fixture.get().await.response.status(), 200);
}

#[test]
fn what_is_not_supported_or_makes_no_sense_is_an_error_with_its_place() {
    let service = "grpc_service: { envoy_grpc: { cluster_name: auth } }";
    let all = |config: &str, expected: &[&str]| {
        let text = planned(&format!("{service}\n{config}"))
            .unwrap_err()
            .to_string();
        for expected in expected {
            assert!(text.contains(expected), "{expected}\n---\n{text}");
        }
    };
    all(
        "status_on_error: { code: 418 }\nfalure_mode_allow: true",
        &[
            "an HTTP status that Envoy lists",
            "did you mean `failure_mode_allow`?",
        ],
    );
    all(
        "with_request_body: { max_request_bytes: 0 }\nallowed_headers: { patterns: [] }",
        &[
            "filter.yaml:2:41: `max_request_bytes` must be greater than 0",
            "at least one pattern",
        ],
    );
    let address = "server_uri: { uri: http://auth, cluster: auth, timeout: 1s }";
    let list = "{ patterns: [{ exact: x-a }] }";
    let http = format!(
        "allowed_headers: {list}\nhttp_service: {{ {address}, authorization_request: {{ allowed_headers: {list} }} }}"
    );
    let error = planned(&http).unwrap_err().to_string();
    assert!(error.contains("`allowed_headers` already"), "{error}");

    let both = "check_settings: { disable_request_body_buffering: true, with_request_body: { max_request_bytes: 1 } }";
    let mut errors = Errors::new();
    assert!(PerRoute::plan(&decode(both), &mut errors).is_none());
    assert_eq!(errors.len(), 1);
}

#[test]
fn the_table_of_failures_says_how_a_change_that_cannot_be_made_is_answered() {
    let http = "http_service: { server_uri: { uri: \"http://a\", cluster: auth, timeout: 1s } }";
    for (config, status, notes) in [
        ("", 503, ["status of its own", "are answered with 500"]),
        (
            "validate_mutations: true",
            500,
            ["status of its own", "answered with 503"],
        ),
        (http, 500, ["from 500 to 599", "in any failure mode"]),
    ] {
        let told = plan(config).on_failure();

        let outcome = told.impossible_change.map(|outcome| outcome.to_string());
        assert_eq!(outcome, Some(status.to_string()), "{config}");
        assert_eq!(told.notes.len(), notes.len(), "{config}: {told:#?}");
        for (note, words) in told.notes.iter().zip(notes) {
            assert!(note.contains(words), "{config}: {note}");
        }
    }
}
