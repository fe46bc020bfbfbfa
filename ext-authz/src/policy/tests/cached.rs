//! Decisions that are kept change nothing but the work.

use proptest::prelude::*;

use super::*;
use crate::{server::Decision, testing::view};

const CACHED: &str = "
identity:
- name: users
  jwt: { issuer: https://issuer, audiences: [shop], jwks_file: jwks.json }
- name: anyone
  anonymous: {}
rules:
- { action: allow, paths: [{ prefix: /pub }], identity: [anyone] }
- { action: allow, methods: [GET] }
upstream_headers: { x-user: { claim: sub } }
decision_cache: {}
";

fn looked_up(fixture: &Fixture, result: &str) -> u32 {
    let text = fixture.metrics.render();
    let name =
        format!(r#"attache_auth_decision_cache_total{{pipeline="default",result="{result}"}} "#);
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn a_decision_serves_all_requests_alike_in_what_it_looked_at() {
    let signer = Signer::new("k1");
    let fixture = Fixture::with_keys(CACHED, &[signer.jwk()]);
    let (alice, bob) = (
        signer.sign(&claims(json!({}))),
        signer.sign(&claims(json!({ "sub": "bob" }))),
    );
    let request = |token: &str, noise: u32| bearer(token).header("x-request-id", noise.to_string());
    for noise in 0..3 {
        for (token, user) in [(&alice, "alice"), (&bob, "bob")] {
            let allowed = fixture.allowed(request(token, noise)).await;
            assert_eq!(allowed.request.headers()["x-user"], user);
        }
        assert_eq!(
            fixture.status(request(&alice, noise).method("PUT")).await,
            403
        );
        assert_eq!(fixture.status(get("/pub")).await, 200);
        assert_eq!(fixture.status(get("/pub/x")).await, 200);
        assert_eq!(fixture.status(get("/")).await, 401);
    }
    assert_eq!(
        (looked_up(&fixture, "miss"), looked_up(&fixture, "hit")),
        (6, 12)
    );
    let text = fixture.metrics.render();
    // Each request counts, decided anew or not.
    let line =
        r#"attache_auth_decisions_total{pipeline="default",source="users",decision="allow"} 6"#;
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn a_reload_forgets_what_was_decided_on_the_old_policy() {
    let signer = Signer::new("k1");
    let fixture = Fixture::with_keys(CACHED, &[signer.jwk()]);
    let token = signer.sign(&claims(json!({})));
    for _ in 0..2 {
        assert_eq!(fixture.status(bearer(&token)).await, 200);
    }
    write_keys(&fixture.directory, &[Signer::new("k2").jwk()]);
    assert_eq!(fixture.service.reload(), Ok(Reload::Done));
    assert_eq!(fixture.status(bearer(&token)).await, 401);
}

#[tokio::test]
async fn no_decision_outlives_the_token_it_rests_on() {
    let signer = Signer::new("k1");
    let fixture = Fixture::with_keys(CACHED, &[signer.jwk()]);
    // Within the leeway: good for this request.
    let late = signer.sign(&claims(json!({ "exp": now() - 5 })));
    for _ in 0..3 {
        assert_eq!(fixture.status(bearer(&late)).await, 200);
    }
    assert_eq!(
        (looked_up(&fixture, "miss"), looked_up(&fixture, "hit")),
        (3, 0)
    );
}

#[tokio::test]
async fn a_pipeline_may_keep_other_decisions_or_none() {
    let fixture = Fixture::new(
        "
identity: [{ name: anyone, anonymous: {} }]
rules: [{ action: allow, identity: [anyone] }]
decision_cache: { ttl: 10s }
pipelines:
- { name: never, paths: [{ prefix: /never }], rules: [], decision_cache: { size: 0 } }
- { name: own, paths: [{ prefix: /own }], rules: [], decision_cache: { negative_ttl: 1s } }
- { name: same, paths: [{ prefix: /same }], rules: [] }
",
    );
    for path in ["/", "/never", "/own", "/same"] {
        for _ in 0..2 {
            fixture.status(get(path)).await;
        }
    }
    let text = fixture.metrics.render();
    for (pipeline, hits) in [("default", 1), ("own", 1), ("same", 1)] {
        let line = format!(
            r#"attache_auth_decision_cache_total{{pipeline="{pipeline}",result="hit"}} {hits}"#
        );
        assert!(text.contains(&line), "{line}\n{text}");
    }
    assert!(!text.contains(r#"cache_total{pipeline="never""#), "{text}");
}

/// One of a few values, so that requests are often alike.
fn few(values: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    proptest::sample::select(values)
}

const PATHS: &[&str] = &["/", "/a", "/a/b", "/b?x=1", "/b?x=2", "/c"];
const METHODS: &[&str] = &["GET", "PUT"];
const HOSTS: &[&str] = &["one.test", "two.test"];

prop_compose! {
    fn rule()(
        action in few(&["allow", "deny"]),
        method in proptest::option::of(few(METHODS)),
        prefix in proptest::option::of(few(&["/", "/a", "/a/b", "/b"])),
        host in proptest::option::of(few(HOSTS)),
        identity in proptest::option::of(few(&["anyone", "keys", "cookies"])),
        team in proptest::option::of(few(&["red", "blue"])),
        status in 400_u16..410,
    ) -> Value {
        let mut rule = json!({ "action": action });
        if let Some(method) = method { rule["methods"] = json!([method]); }
        if let Some(prefix) = prefix { rule["paths"] = json!([{ "prefix": prefix }]); }
        if let Some(host) = host { rule["hosts"] = json!([host]); }
        if let Some(identity) = identity { rule["identity"] = json!([identity]); }
        if let Some(team) = team { rule["claims"] = json!({ "team": team }); }
        if action == "deny" { rule["response"] = json!({ "status": status }); }
        rule
    }
}

fn pipeline() -> impl Strategy<Value = Value> {
    // `printf %s red | sha256sum`, and of `blue`.
    let key = |id: &str, hash: &str| json!({ "id": id, "hash": format!("sha256:{hash}"), "claims": { "team": id } });
    let red = key(
        "red",
        "b1f51a511f1da0cd348b8f8598db32e61cb963e5fc69e2b41485bf99590ed75a",
    );
    let blue = key(
        "blue",
        "16477688c0e00699c6cfa4497a3612d7e83c532062b64b250fed8908128ed548",
    );
    proptest::collection::vec(rule(), 0..5).prop_map(move |rules| {
        json!({
            "identity": [
                { "name": "keys", "api_key": { "keys": [red] } },
                { "name": "cookies", "api_key": { "from": [{ "cookie": "key" }, { "query": "x" }], "keys": [blue] } },
                { "name": "anyone", "anonymous": {} },
            ],
            "rules": rules,
            "upstream_headers": { "x-user": { "claim": "sub" }, "x-from": { "source": {} } },
        })
    })
}

prop_compose! {
    fn request()(
        path in few(PATHS),
        method in few(METHODS),
        host in few(HOSTS),
        key in proptest::option::of(few(&["red", "blue", ""])),
        cookie in proptest::option::of(few(&["key=blue", "key=red", "other=blue", "a=b; key=blue"])),
        noise in few(&["1", "2", "3"]),
    ) -> http::Request<()> {
        let mut request = Request::builder().method(method).uri(format!("http://{host}{path}"));
        if let Some(key) = key { request = request.header("x-api-key", key); }
        if let Some(cookie) = cookie { request = request.header("cookie", cookie); }
        request.header("x-noise", noise).body(()).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn with_kept_decisions_all_requests_are_decided_as_without(
        config in pipeline(),
        size in 1_u32..40,
        requests in proptest::collection::vec(request(), 1..60),
    ) {
        let mut cached = config.clone();
        cached["decision_cache"] = json!({ "size": size });
        let (with, without) = (Fixture::new(&cached.to_string()), Fixture::new(&config.to_string()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for request in requests {
            let view = view(&request);
            let decide = |fixture: &Fixture| -> Decision {
                runtime.block_on(fixture.service.decide(&view)).unwrap()
            };
            prop_assert_eq!(decide(&with), decide(&without), "{:?}", request);
        }
    }
}
