//! Tokens that tell the upstream who is calling.

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaSigningAlgorithm};
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};

use super::*;
use crate::testing::view;

const JWKS: &str = "/.well-known/wristband/jwks.json";

/// A private key as OpenSSL writes it.
fn pem(algorithm: &'static EcdsaSigningAlgorithm) -> String {
    let key = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
    let text = STANDARD.encode(key.as_ref());
    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
}

fn key() -> String {
    pem(&ECDSA_P256_SHA256_FIXED_SIGNING)
}

fn config(keys: &str, more: &str, rest: &str) -> String {
    format!(
        "
identity:
- name: users
  jwt: {{ issuer: https://issuer, audiences: [shop], jwks_file: jwks.json }}
- {{ name: anyone, anonymous: {{}} }}
wristband:
  issuer: https://edge
  audience: upstreams
  keys: [{keys}]
{more}
rules:
- {{ action: allow, identity: [users] }}
- {{ action: allow, identity: [anyone], paths: [{{ prefix: /pub }}] }}
{rest}
"
    )
}

struct Edge {
    fixture: Fixture,
    signer: Signer,
}

impl Edge {
    fn new(more: &str, rest: &str) -> Self {
        let signer = Signer::new("k1");
        let set = json!({ "keys": [signer.jwk()] }).to_string();
        let files = [("jwks.json", set), ("one.pem", key()), ("two.pem", key())];
        let files: Vec<_> = files
            .iter()
            .map(|(name, text)| (*name, text.as_str()))
            .collect();
        let config = config("one.pem, two.pem", more, rest);
        Self {
            fixture: Fixture::with_files(&config, &files),
            signer,
        }
    }

    fn request(&self, changes: Value) -> Builder {
        bearer(&self.signer.sign(&claims(changes)))
    }

    /// What the upstream gets in a header.
    async fn token(&self, request: Builder, header: &str) -> String {
        let allowed = self.fixture.allowed(request).await;
        let mut values = allowed.request.headers().get_all(header).iter();
        let token = values.next().unwrap().to_str().unwrap().to_owned();
        assert_eq!(values.next(), None);
        token
    }

    async fn key_set(&self) -> JwkSet {
        let Outcome::Denied(answer) = self.fixture.check(get(JWKS)).await else {
            panic!()
        };
        assert_eq!(answer.status(), 200);
        serde_json::from_slice(answer.body()).unwrap()
    }
}

/// What a token says, verified as an upstream would.
fn verified(token: &str, set: &JwkSet) -> Value {
    let head = jsonwebtoken::decode_header(token).unwrap();
    let key = set.find(&head.kid.unwrap()).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&["upstreams"]);
    validation.set_issuer(&["https://edge"]);
    let key = DecodingKey::from_jwk(key).unwrap();
    let token = jsonwebtoken::decode::<Value>(token, &key, &validation);
    token.unwrap().claims
}

#[tokio::test]
async fn the_upstream_gets_a_token_that_the_key_set_verifies() {
    let edge = Edge::new("", "");
    let request = edge.request(json!({ "jti": "7", "nonce": "n", "team": "red" }));
    let token = edge
        .token(request.header("x-wristband", "forged"), "x-wristband")
        .await;
    let mut said = verified(&token, &edge.key_set().await);
    let issued = said["iat"].as_i64().unwrap();
    assert!((now() - issued).abs() < 30);
    assert_eq!(said["exp"].as_i64().unwrap() - issued, 60);
    for name in ["iat", "exp"] {
        said.as_object_mut().unwrap().remove(name);
    }
    // What the caller's token says of itself says nothing about this one.
    assert_eq!(
        said,
        json!({
            "iss": "https://edge", "aud": "upstreams", "sub": "alice", "roles": ["user"],
            "team": "red",
        })
    );
}

#[tokio::test]
async fn it_says_what_the_settings_say_where_they_do() {
    let edge = Edge::new(
        "  header: Authorization
  ttl: 5m
  claims:
    team: { claim: org.team }
    from: { source: {} }
    at: { expression: request.path }
    none: { claim: none }
    fixed: { value: [1, { a: true }] }",
        "",
    );
    let token = edge
        .token(
            edge.request(json!({ "org": { "team": "red" } })),
            "authorization",
        )
        .await;
    let mut said = verified(&token, &edge.key_set().await);
    assert_eq!(
        said["exp"].as_i64().unwrap() - said["iat"].as_i64().unwrap(),
        300
    );
    for name in ["iat", "exp", "iss", "aud"] {
        said.as_object_mut().unwrap().remove(name).unwrap();
    }
    assert_eq!(
        said,
        json!({
            "sub": "alice", "team": "red", "from": "users", "at": "/", "fixed": [1, { "a": true }],
        })
    );
}

#[tokio::test]
async fn without_an_identity_there_is_none_and_nobody_brings_one_along() {
    let edge = Edge::new("", "");
    let request = get("/pub").header("x-wristband", "forged");
    let allowed = edge.fixture.allowed(request).await;
    assert!(!allowed.request.headers().contains_key("x-wristband"));
}

#[tokio::test]
async fn what_a_policy_says_in_its_header_does_not_count() {
    for said in [
        r#""headers": {"X-Wristband": ["forged", "more"]}"#,
        r#""request_headers_to_remove": ["x-wristband"]"#,
    ] {
        let policy = format!(
            "policies:
- name: main
  rego:
    inline: |
      package envoy.authz
      allow := {{\"allowed\": true, {said}}}
"
        );
        let edge = Edge::new("", "");
        let config = config("one.pem", "", "");
        let (before, _) = config.split_once("rules:").unwrap();
        let path = edge.fixture.directory.path().join("auth.yaml");
        fs::write(path, format!("{before}{policy}")).unwrap();
        assert_eq!(edge.fixture.service.reload().unwrap(), Reload::Done);

        let token = edge.token(edge.request(json!({})), "x-wristband").await;
        assert_eq!(verified(&token, &edge.key_set().await)["sub"], "alice");
        let anonymous = edge.fixture.allowed(get("/")).await;
        assert!(!anonymous.request.headers().contains_key("x-wristband"));
    }
}

#[tokio::test]
async fn the_next_key_is_known_before_it_signs() {
    let edge = Edge::new("", "");
    let before = edge.key_set().await;
    assert_eq!(before.keys.len(), 2);
    let old = edge.token(edge.request(json!({})), "x-wristband").await;

    let path = edge.fixture.directory.path().join("auth.yaml");
    fs::write(path, config("two.pem, one.pem", "", "")).unwrap();
    assert_eq!(edge.fixture.service.reload().unwrap(), Reload::Done);
    let new = edge.token(edge.request(json!({})), "x-wristband").await;

    let key = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
    assert_ne!(key(&old), key(&new));
    for set in [before, edge.key_set().await] {
        for token in [&old, &new] {
            assert_eq!(verified(token, &set)["sub"], "alice");
        }
    }
}

#[tokio::test]
async fn a_kept_decision_hands_out_no_token_that_is_about_to_end() {
    let edge = Edge::new("  ttl: 20s", "decision_cache: {}");
    let token = edge.signer.sign(&claims(json!({})));
    let first = edge.token(bearer(&token), "x-wristband").await;
    assert_eq!(edge.token(bearer(&token), "x-wristband").await, first);

    let request = view(&bearer(&token).body(()).unwrap());
    let explained = edge.fixture.service.explain(&request).await.to_string();
    let kept = explained
        .lines()
        .find_map(|line| line.strip_prefix("Kept: for "));
    let seconds: f64 = kept.unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((1.0..=10.0).contains(&seconds), "{explained}");
}

#[tokio::test]
async fn the_key_set_is_for_everybody() {
    let edge = Edge::new(
        "",
        "decision_cache: {}
pipelines: [{ name: other, hosts: [other.example.com], rules: [{ action: deny }] }]",
    );
    let other = Request::get(format!("http://other.example.com{JWKS}?v=1"));
    for request in [get(JWKS), get(JWKS), get(JWKS).method("HEAD"), other] {
        let Outcome::Denied(answer) = edge.fixture.check(request).await else {
            panic!()
        };
        assert_eq!(answer.status(), 200);
        let headers = answer.headers();
        assert_eq!(headers["content-type"], "application/jwk-set+json");
        assert_eq!(headers["cache-control"], "max-age=300");
        let text = std::str::from_utf8(answer.body()).unwrap();
        assert!(!text.contains("\"d\""), "{text}");
    }
    for request in [
        get(JWKS).method("POST"),
        get(&format!("{JWKS}/")),
        get("/.well-known/wristband/JWKS.json"),
    ] {
        assert_eq!(edge.fixture.status(request).await, 401);
    }
    let text = edge.fixture.metrics.render();
    for (pipeline, count) in [("default", 3), ("other", 1)] {
        let line = format!(
            r#"attache_auth_decisions_total{{pipeline="{pipeline}",source="none",decision="answer"}} {count}"#
        );
        assert!(text.contains(&line), "{line}\n{text}");
    }
}

#[test]
fn mistakes_are_reported_with_their_places() {
    let with = |wristband: &str| {
        let config = format!(
            "
identity: [{{ name: anyone, anonymous: {{}} }}]
rules: []
wristband: {wristband}
"
        );
        let large = pem(&ECDSA_P384_SHA384_FIXED_SIGNING);
        errors_with(&config, &[("large.pem", &large), ("none.pem", "hushed")])
    };
    let text = with("{ issuer: i }");
    assert!(
        text.contains("auth.yaml:4:22: a wristband needs `keys`"),
        "{text}"
    );
    let text = with(
        "{ issuer: i, keys: [large.pem, none.pem, gone.pem], ttl: 2h, header: content-length, jwks_path: '/a/../b', claims: { exp: { value: 1 }, x: { expression: nothing } } }",
    );
    for expected in [
        "auth.yaml:4:32: `large.pem`: not a P-256 key; `openssl genpkey",
        "auth.yaml:4:43: `none.pem`: no private key in PEM form",
        "auth.yaml:4:53: cannot read `",
        "expected from 1 s to 1 h",
        "`content-length` cannot be set by a policy",
        "expected a plain path that starts with a slash",
        "`exp` is about the token itself",
        "there is no `nothing` here",
    ] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
    assert!(!text.contains("hushed"), "{text}");
}
