//! What upstream, client and proxy are told of a decision.

use prost_types::value::Kind;

use super::*;

fn users(more: &str) -> String {
    format!(
        "
identity:
- name: partners
  api_key:
    from: [{{ header: x-key }}, {{ query: key }}, {{ cookie: key }}]
    keys: [{{ id: acme, hash: '{SECRET}', claims: {{ tier: gold }} }}]
- {{ name: anyone, anonymous: {{}} }}
{more}
"
    )
}

/// A policy that answers with this object.
fn answering(answer: &str, more: &str) -> Fixture {
    Fixture::new(&users(&format!(
        "policies:
- name: main
  rego:
    inline: |
      package envoy.authz
      allow := {answer}
{more}"
    )))
}

async fn denied(fixture: &Fixture, request: Builder) -> http::Response<bytes::Bytes> {
    match fixture.check(request).await {
        Outcome::Denied(response) => response,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn later_filters_and_logs_get_metadata() {
    let fixture = Fixture::new(&users(
        r#"
rules: [{ action: allow, identity: [anyone, partners] }]
dynamic_metadata:
  who: { claim: sub }
  from: { source: {} }
  fixed: { value: { list: [1, true, null] } }
  path: { expression: request.path }
  none: { claim: none }
  odd: { expression: 'request.headers["x-none"]' }
"#,
    ));
    let allowed = fixture.allowed(get("/a").header("x-key", "secret")).await;
    let fields = allowed.metadata.unwrap().fields;
    let names: Vec<_> = fields.keys().map(String::as_str).collect();
    assert_eq!(names, ["fixed", "from", "path", "who"]);
    let text = |name: &str| match &fields[name].kind {
        Some(Kind::StringValue(text)) => text.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (text("who"), text("from"), text("path")),
        ("acme".into(), "partners".into(), "/a".into())
    );
    let Some(Kind::StructValue(fixed)) = &fields["fixed"].kind else {
        panic!()
    };
    let Some(Kind::ListValue(list)) = &fixed.fields["list"].kind else {
        panic!()
    };
    assert_eq!(list.values.len(), 3);

    let anonymous = fixture.allowed(get("/a")).await;
    assert!(!anonymous.metadata.unwrap().fields.contains_key("who"));
}

#[tokio::test]
async fn what_stands_in_the_settings_wins_over_what_a_policy_says() {
    let fixture = answering(
        r#"{
        "allowed": true,
        "headers": {"x-tier": ["made", "up"], "X-None": "made", "x-own": "kept"},
        "request_headers_to_remove": ["x-user"],
        "response_headers_to_add": {"x-client": "policy", "x-more": "policy"},
        "dynamic_metadata": {"a": 1, "b": 1}
      }"#,
        "
upstream_headers:
  x-tier: { claim: tier }
  x-none: { claim: none }
  x-user: { claim: sub }
client_headers: { x-client: { value: settings } }
dynamic_metadata: { a: { value: 2 } }",
    );
    let request = get("/").header("x-key", "secret").header("x-none", "fake");
    let allowed = fixture.allowed(request).await;
    let headers = allowed.request.headers();
    let values = |name: &str| headers.get_all(name).iter().collect::<Vec<_>>();
    assert_eq!(values("x-tier"), ["gold"]);
    assert_eq!(values("x-user"), ["acme"]);
    assert_eq!(values("x-own"), ["kept"]);
    assert!(values("x-none").is_empty());

    let response = allowed.response(http::Response::new(()));
    let values = |name: &str| response.headers().get_all(name).iter().collect::<Vec<_>>();
    assert_eq!(values("x-client"), ["settings"]);
    assert_eq!(values("x-more"), ["policy"]);
    let fields = allowed.metadata.unwrap().fields;
    assert_eq!(fields["a"].kind, Some(Kind::NumberValue(2.0)));
    assert_eq!(fields["b"].kind, Some(Kind::NumberValue(1.0)));
}

#[tokio::test]
async fn credentials_go_whatever_a_policy_does_to_the_same_parts() {
    let fixture = answering(
        r#"{
        "allowed": true,
        "request_headers_to_remove": ["cookie", "X-Key"],
        "query_parameters_to_set": {"key": "new"}
      }"#,
        "",
    );
    let request = get("/?a=1&key=secret&k%65y=secret")
        .header("x-key", "secret")
        .header("cookie", "key=secret; a=1");
    let allowed = fixture.allowed(request).await;
    let request = format!("{:?}", allowed.request);
    assert!(!request.contains("secret"), "{request}");
    assert_eq!(allowed.request.uri().query(), Some("a=1&key=new"));
}

#[tokio::test]
async fn who_is_denied_can_be_sent_elsewhere() {
    let fixture = Fixture::new(&users(
        r#"
rules: [{ name: api, action: deny, paths: [{ prefix: /api }], response: { status: 307, redirect: "/other?of={request.headers['x-to']}", headers: { x-a: b } } }]
unauthenticated: { redirect: 'https://login.example.com/in?to={request.path}&q={request.query}' }
denied: { status: 303, redirect: '/sorry/{identity.claims.sub}' }
"#,
    ));
    let location = |response: &http::Response<bytes::Bytes>| {
        let location = response.headers()["location"].to_str().unwrap().to_owned();
        (response.status().as_u16(), location)
    };
    let to = "https://login.example.com/in?to=";
    for (request, status, expected) in [
        (
            get("/a%20b?c=d&e"),
            302,
            format!("{to}%2Fa%20b&q=c%3Dd%26e"),
        ),
        (get("/"), 302, format!("{to}%2F&q=")),
        (
            get("/").header("x-key", "secret"),
            303,
            "/sorry/acme".to_owned(),
        ),
        (
            get("/api").header("x-to", "//evil?\"&x"),
            307,
            "/other?of=%2F%2Fevil%3F%22%26x".to_owned(),
        ),
    ] {
        let response = denied(&fixture, request).await;
        assert_eq!(location(&response), (status, expected));
        assert!(!response.headers().contains_key("www-authenticate"));
    }
}

#[tokio::test]
async fn a_redirect_that_leads_nowhere_is_still_a_denial() {
    let fixture = Fixture::new(&users(
        r#"
rules: [{ action: deny, response: { redirect: "/{request.headers['x-to']}", headers: { x-a: b } } }]
"#,
    ));
    for request in [get("/"), get("/").header("x-to", "../a")] {
        let response = denied(&fixture, request).await;
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()["x-a"], "b");
        assert!(!response.headers().contains_key("location"));
    }
}

#[tokio::test]
async fn a_policy_that_denies_without_a_status_denies_as_the_settings_say() {
    for (answer, status, location) in [
        (r#"{"allowed": false}"#, 302, Some("/sorry")),
        (r#"{"allowed": false, "body": "no"}"#, 302, Some("/sorry")),
        (
            r#"{"allowed": false, "headers": {"Location": "/own"}}"#,
            302,
            Some("/own"),
        ),
        (r#"{"allowed": false, "http_status": 410}"#, 410, None),
    ] {
        let fixture = answering(answer, "denied: { redirect: /sorry }");
        let response = denied(&fixture, get("/")).await;
        let found = response.headers().get_all("location").iter();
        let found: Vec<_> = found.map(|value| value.to_str().unwrap()).collect();
        assert_eq!(response.status(), status, "{answer}");
        assert_eq!(found, location.into_iter().collect::<Vec<_>>(), "{answer}");
    }
}

#[tokio::test]
async fn every_check_is_counted() {
    let fixture = Fixture::new(&users(
        "
metadata: [{ name: nobody, http: { url: 'http://127.0.0.1:1', timeout: 0.1s }, when: 'request.path == \"/ask\"' }]
rules: [{ action: allow, identity: [anyone], paths: [{ exact: / }] }]
decision_cache: {}",
    ));
    assert_eq!(fixture.status(get("/")).await, 200);
    assert_eq!(fixture.status(get("/a/../b")).await, 400);
    assert_eq!(fixture.status(get("/none")).await, 401);
    assert!(matches!(
        fixture.check(get("/ask")).await,
        Outcome::Failed(_)
    ));
    let text = fixture.metrics.render();
    for (pipeline, source, decision) in [
        ("default", "anyone", "allow"),
        ("none", "none", "deny"),
        ("default", "anyone", "deny"),
        ("default", "none", "error"),
    ] {
        let line = format!(
            r#"attache_auth_decisions_total{{pipeline="{pipeline}",source="{source}",decision="{decision}"}} 1"#
        );
        assert!(text.contains(&line), "{line}\n{text}");
    }
}

#[test]
fn mistakes_are_reported_with_their_places() {
    let text = errors_of(
        "
identity: [{ name: anyone, anonymous: {} }]
rules: []
unauthenticated: { status: 200, redirect: /a }
denied: { redirect: '/{', headers: { Location: /b } }
upstream_headers: { host: { value: a }, x-a: { expression: nothing } }
client_headers: { x-b: { value: \"a\\nb\" } }
dynamic_metadata: { c: { expression: '1 +' } }
",
    );
    for expected in [
        "auth.yaml:4:43: an answer with status 200 redirects nobody",
        "auth.yaml:5:21: `location` is among the `headers` already",
        "auth.yaml:5:21: a `{` without its `}`",
        "auth.yaml:6:21: `host` cannot be set by a policy",
        "auth.yaml:6:41: there is no `nothing` here",
        "auth.yaml:7:19: the value of `x-b` cannot be a header's",
        "auth.yaml:8:21: ",
    ] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
}
