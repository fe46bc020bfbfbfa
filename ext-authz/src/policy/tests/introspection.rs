//! Tokens whose issuer is asked about them.

use std::time::Duration;

use http::StatusCode;

use super::{
    web::{Reply, Seen, Web},
    *,
};

fn config(web: &Web, more: &str) -> String {
    format!(
        "
identity:
- name: partners
  introspection:
    endpoint: {{ url: '{}/introspect', timeout: 0.3s }}
    client_id: 'me:&'
    client_secret: {{ value: 's3cr%t' }}
{more}
rules: [{{ action: allow }}]
upstream_headers: {{ x-user: {{ claim: sub }} }}
",
        web.origin
    )
}

/// Answers by the token, which is sent in a form.
fn issuer(seen: &Seen) -> Reply {
    let token = seen.body.split('&').next().unwrap();
    match token.strip_prefix("token=").unwrap() {
        "good" => {
            Reply::ok(json!({ "active": true, "sub": "alice", "iss": "i", "aud": ["a", "b"] }))
        }
        "old" => Reply::ok(json!({ "active": true, "sub": "alice", "exp": now() - 1 })),
        "early" => Reply::ok(json!({ "active": true, "sub": "alice", "nbf": now() + 60 })),
        "odd" => Reply::ok(json!({ "active": true, "sub": "alice", "exp": "never" })),
        "text" => Reply::ok(json!({ "active": "true", "sub": "alice" })),
        "array" => Reply::ok("[true]"),
        "html" => Reply::ok("<html>"),
        "error" => Reply::Status(500, vec![], r#"{"active":true}"#.to_owned()),
        "moved" => Reply::Status(302, vec![], r#"{"active":true}"#.to_owned()),
        "huge" => Reply::ok(format!(r#"{{"active":true}}{}"#, " ".repeat(2 << 20))),
        "drip" => Reply::Drip,
        "hang" => Reply::Hang,
        _ => Reply::ok(json!({ "active": false, "sub": "alice" })),
    }
}

async fn outcome(fixture: &Fixture, token: &str) -> Option<StatusCode> {
    match fixture.check(bearer(token)).await {
        Outcome::Allowed(_) => Some(StatusCode::OK),
        Outcome::Denied(response) => Some(response.status()),
        Outcome::Failed(_) => None,
    }
}

#[tokio::test]
async fn an_active_token_is_who_its_issuer_says() {
    let web = Web::start().await;
    web.answers(issuer);
    let fixture = Fixture::new(&config(&web, ""));

    let allowed = fixture.allowed(bearer("good")).await;

    assert_eq!(allowed.request.headers()["x-user"], "alice");
    let [asked] = web.seen().try_into().unwrap();
    assert!(
        asked.head.starts_with("POST /introspect "),
        "{}",
        asked.head
    );
    let credentials = base64::engine::general_purpose::STANDARD.encode("me%3A%26:s3cr%25t");
    let basic = format!("authorization: Basic {credentials}");
    assert!(asked.head.contains(&basic), "{}", asked.head);
    assert_eq!(asked.body, "token=good&token_type_hint=access_token");
}

#[tokio::test]
async fn client_credentials_can_go_in_the_form_and_tokens_are_encoded() {
    let web = Web::start().await;
    web.answers(issuer);
    let post = "    client_authentication: client_secret_post";
    let fixture = Fixture::new(&config(&web, post));

    assert_eq!(fixture.status(bearer("good&token=x")).await, 401);

    let [asked] = web.seen().try_into().unwrap();
    assert!(!asked.head.contains("authorization"), "{}", asked.head);
    assert_eq!(
        asked.body,
        "token=good%26token%3Dx&token_type_hint=access_token&client_id=me%3A%26&client_secret=s3cr%25t"
    );
}

#[tokio::test]
async fn inactive_tokens_are_refused_and_odd_answers_are_failures() {
    let web = Web::start().await;
    web.answers(issuer);
    let fixture = Fixture::new(&config(&web, ""));
    let refused = Some(StatusCode::UNAUTHORIZED);
    for (token, expected) in [
        ("unknown", refused),
        ("old", refused),
        ("early", refused),
        ("odd", refused),
        ("text", None),
        ("array", None),
        ("html", None),
        ("error", None),
        ("moved", None),
        ("huge", None),
        ("drip", None),
        ("hang", None),
    ] {
        assert_eq!(outcome(&fixture, token).await, expected, "{token}");
    }
    let long = "x".repeat(20_000);
    assert_eq!(outcome(&fixture, &long).await, refused);
    assert_eq!(web.seen().len(), 12);
}

#[tokio::test]
async fn issuer_and_audience_are_compared_when_given() {
    let web = Web::start().await;
    web.answers(issuer);
    for (more, expected) in [
        ("    issuer: i\n    audiences: [x, b]", 200),
        ("    issuer: j", 401),
        ("    audiences: [x]", 401),
    ] {
        let fixture = Fixture::new(&config(&web, more));
        assert_eq!(fixture.status(bearer("good")).await, expected, "{more}");
    }
}

#[tokio::test]
async fn answers_are_remembered_and_failures_are_not() {
    let web = Web::start().await;
    web.answers(issuer);
    let fixture = Fixture::new(&config(&web, ""));
    for (token, times) in [("good", 1), ("unknown", 1), ("html", 3)] {
        let before = web.seen().len();
        for _ in 0..3 {
            outcome(&fixture, token).await;
        }
        assert_eq!(web.seen().len() - before, times, "{token}");
    }
    let text = fixture.metrics.render();
    for line in [
        r#"attache_auth_token_cache_total{source="partners",result="hit"} 4"#,
        r#"attache_auth_token_cache_total{source="partners",result="miss"} 5"#,
        r#"attache_auth_introspection_failures_total{source="partners"} 3"#,
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[tokio::test]
async fn an_answer_is_not_remembered_past_its_time() {
    let web = Web::start().await;
    web.answers(issuer);
    let never = "    ttl: 0s\n    negative_ttl: 0s";
    let fixture = Fixture::new(&config(&web, never));
    for token in ["good", "unknown"] {
        let before = web.seen().len();
        for _ in 0..2 {
            outcome(&fixture, token).await;
        }
        assert_eq!(web.seen().len() - before, 2, "{token}");
    }
}

#[tokio::test]
async fn many_who_come_with_one_token_ask_once() {
    let web = Web::start().await;
    web.answers(issuer);
    let fixture = Fixture::new(&config(&web, ""));

    let outcomes = (0..50).map(|_| outcome(&fixture, "good"));
    let outcomes = futures_util::future::join_all(outcomes).await;

    assert!(
        outcomes
            .iter()
            .all(|outcome| *outcome == Some(StatusCode::OK))
    );
    assert_eq!(web.seen().len(), 1);
}

#[tokio::test]
async fn one_who_goes_away_does_not_leave_the_others_waiting() {
    let web = Web::start().await;
    web.answers(|_| Reply::Hang);
    let fixture = Fixture::new(&config(&web, ""));
    let first = tokio::time::timeout(Duration::from_millis(50), outcome(&fixture, "good"));
    assert!(first.await.is_err());
    web.answers(issuer);
    assert_eq!(outcome(&fixture, "good").await, Some(StatusCode::OK));
}

#[tokio::test]
async fn no_more_tokens_are_asked_about_at_a_time_than_allowed() {
    let web = Web::start().await;
    web.answers(|_| Reply::Hang);
    let fixture = Fixture::new(&config(&web, "    max_pending: 2"));

    let outcomes = ["a", "b", "c"].map(|token| outcome(&fixture, token));
    let outcomes = futures_util::future::join_all(outcomes).await;
    assert_eq!(outcomes, [None, None, None]);
    assert_eq!(web.seen().len(), 2);

    // Those who have gone make room.
    web.answers(issuer);
    assert_eq!(outcome(&fixture, "good").await, Some(StatusCode::OK));
}
