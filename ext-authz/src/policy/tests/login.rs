//! Sign-ins as configured. What browsers see of them is in the workspace's end-to-end tests.

use std::fs;

use aws_lc_rs::aead::{AES_256_GCM, Aad, RandomizedNonceKey};
use base64::Engine as _;
use http::HeaderValue;

use super::{AuthService, B64, Builder, Fixture, Metrics, errors_of, get, json, now};
use crate::testing::{Harness, Outcome};

#[test]
fn mistakes_of_a_sign_in_are_told_with_their_place() {
    let text = errors_of(
        "
identity:
- name: people
  oidc_login:
    issuer: login.example.com
    client_id: ''
    client_authentication: client_secret_post
    callback_path: /a//b
    logout_path: logout
    after_logout: https://elsewhere.example/
    authorization_parameters: { state: x }
    session: { keys_file: none.keys, cookie: __Host-a, lifetime: 0s, idle_timeout: 0.5s }
- name: others
  oidc_login:
    issuer: https://login.example.com
    client_id: a
    callback_path: /same
    logout_path: /same
    session: { keys_file: empty.json, cookie: 'a b' }
rules: [{ action: allow }]
",
    );
    for expected in [
        "auth.yaml:5:13: `login.example.com/.well-known/openid-configuration`: not a URL",
        "auth.yaml:6:16: a client has an identifier",
        "auth.yaml:7:28: there is no `client_secret` to show to the provider",
        "auth.yaml:8:20: expected a path of plain segments",
        "auth.yaml:9:18: expected a path of plain segments",
        "auth.yaml:10:19: expected a path of plain segments",
        "auth.yaml:11:40: `state` is set by the sign-in itself",
        "auth.yaml:12:27: cannot read",
        "auth.yaml:12:46: `__Host-` is put before it where browsers take it",
        "auth.yaml:12:66: expected a second at least",
        "auth.yaml:12:84: expected a second at least, or 0",
        "auth.yaml:18:18: `callback_path` and `logout_path` must differ",
        "auth.yaml:19:27: `empty.json`: line 1 is no key",
        "auth.yaml:19:47: expected 1 to 64 letters, digits",
    ] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
    // Neither what is in a file of keys.
    assert!(!text.contains("c2VjcmV0"), "{text}");
}

#[test]
fn the_example_of_the_book_loads() {
    let book = include_str!("../../../../docs/src/login.md");
    let example = book
        .split("```yaml\n# auth.yaml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        file
    };
    write("client.secret", "secret");
    write(
        "session.keys",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    );
    let file = write("auth.yaml", example);
    let service = AuthService::load(&file, &Metrics::default());
    let service = service.unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(service.waits_for().len(), 1);
}

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Signs people in at a provider that nobody needs to reach, and knows partners below `/api`.
fn signing_in(more: &str) -> Fixture {
    let config = format!(
        "
identity:
- name: people
  oidc_login:
    issuer: http://127.0.0.1:1
    client_id: shop
    session: {{ keys_file: session.keys }}
    forward_access_token: true
- name: partners
  api_key:
    keys: [{{ id: acme, hash: '{}' }}]
rules: [{{ action: allow }}]
pipelines:
- name: api
  paths: [{{ prefix: /api }}]
  identity: [partners]
  rules: [{{ action: allow }}]
upstream_headers: {{ x-user: {{ claim: sub }} }}
{more}",
        super::SECRET
    );
    Fixture::with_files(&config, &[("session.keys", KEY)])
}

/// A request with the cookie of Alice's session, made without the code that reads it.
fn as_alice(path: &str, access_token: Option<&str>) -> Builder {
    let mut sealed = json!({
        "id": "s1", "began": now(), "seen": now(), "claims": { "sub": "alice" },
        "access_token": access_token,
    })
    .to_string()
    .into_bytes();
    let key: Vec<u8> = (0..32).collect();
    let nonce = RandomizedNonceKey::new(&AES_256_GCM, &key)
        .unwrap()
        .seal_in_place_append_tag(
            Aad::from("session attache_session http://127.0.0.1:1 shop"),
            &mut sealed,
        )
        .unwrap();
    let sealed = B64.encode([&nonce.as_ref()[..], &sealed].concat());
    get(path).header("cookie", format!("a=1; attache_session=1.{sealed}; b=2"))
}

#[tokio::test]
async fn no_upstream_of_any_pipeline_sees_a_session() {
    let fixture = signing_in("");
    let at_home = fixture.allowed(as_alice("/", None)).await;
    assert_eq!(at_home.request.headers()["x-user"], "alice");
    assert_eq!(at_home.request.headers()["cookie"], "a=1; b=2");

    let partner = as_alice("/api", None).header("x-api-key", "secret");
    let elsewhere = fixture.allowed(partner).await;
    assert_eq!(elsewhere.request.headers()["cookie"], "a=1; b=2");
}

#[tokio::test]
async fn a_cookie_that_is_no_text_neither_ends_nor_shows_a_session() {
    let fixture = signing_in("");
    let mut request = as_alice("/", None).body("").unwrap();
    // What any page of the host can make a browser send.
    let cookies = [request.headers()["cookie"].as_bytes(), b"; c=\xff"].concat();
    let cookies = HeaderValue::from_bytes(&cookies).unwrap();
    request.headers_mut().insert("cookie", cookies);
    let harness = Harness::new(fixture.service.clone()).raw_headers();
    let Outcome::Allowed(allowed) = harness.check(request).await else {
        panic!()
    };
    assert_eq!(allowed.request.headers()["x-user"], "alice");
    assert!(!allowed.request.headers().contains_key("cookie"));
}

#[tokio::test]
async fn no_access_token_but_that_of_the_session_is_forwarded() {
    let fixture = signing_in("");
    for (token, expected) in [(Some("t1"), Some("Bearer t1")), (None, None)] {
        let request = as_alice("/", token).header("authorization", "Bearer made-up");
        let allowed = fixture.allowed(request).await;
        let forwarded = allowed.request.headers().get("authorization");
        assert_eq!(forwarded.map(|value| value.to_str().unwrap()), expected);
    }
}

#[tokio::test]
async fn a_kept_decision_ends_when_its_user_signs_out() {
    let fixture = signing_in("decision_cache: { ttl: 1h }");
    let alice = as_alice("/", Some("t1"));
    let cookie = alice.headers_ref().unwrap()["cookie"].clone();
    let with_it = |path: &str| get(path).header("cookie", cookie.clone());
    for _ in 0..2 {
        assert_eq!(fixture.status(with_it("/")).await, 200);
    }
    let text = fixture.metrics.render();
    let hit = r#"attache_auth_decision_cache_total{pipeline="default",result="hit"} 1"#;
    assert!(text.contains(hit), "{text}");

    fixture.status(with_it("/oauth2/logout")).await;
    assert_eq!(fixture.status(with_it("/")).await, 401);
}

#[tokio::test]
async fn no_other_site_signs_anybody_out() {
    let fixture = signing_in("");
    let signs_out = |from: &str| as_alice("/oauth2/logout", None).header("sec-fetch-site", from);
    assert_eq!(fixture.status(signs_out("cross-site")).await, 403);
    assert_eq!(fixture.status(as_alice("/", None)).await, 200);
    assert_eq!(fixture.status(signs_out("same-origin")).await, 200);
    assert_eq!(fixture.status(as_alice("/", None)).await, 401);
}
