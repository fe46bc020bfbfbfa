//! The whole service: file in, outcome for client and upstream out.

mod bundles;
mod cached;
mod certificates;
mod introspection;
mod logged;
mod login;
mod metadata;
mod passwords;
mod paths;
mod policies;
mod response;
mod signatures;
mod smuggling;
mod tokens;
mod web;
mod wristband;

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use attache_service::Metrics;
use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use http::{Request, request::Builder};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{AuthService, Reload};
use crate::{
    server::CheckRequestView,
    testing::{Allowed, Harness, Outcome},
};

/// Signs without the library that verifies.
struct Signer {
    id: &'static str,
    key: EcdsaKeyPair,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        Self {
            id,
            key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
        }
    }

    fn jwk(&self) -> Value {
        let point = self.key.public_key().as_ref();
        json!({
            "kty": "EC", "crv": "P-256", "kid": self.id, "use": "sig",
            "x": B64.encode(&point[1..33]), "y": B64.encode(&point[33..65]),
        })
    }

    fn sign_with_header(&self, header: &Value, claims: &Value) -> String {
        let signed = signing_input(header, claims);
        let random = SystemRandom::new();
        let signature = self.key.sign(&random, signed.as_bytes()).unwrap();
        format!("{signed}.{}", B64.encode(signature))
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_with_header(&json!({ "alg": "ES256", "kid": self.id }), claims)
    }
}

fn signing_input(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| B64.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// Claims that hold, with some replaced; `null` takes one away.
fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "iss": "https://issuer", "aud": ["other", "shop"], "sub": "alice",
        "exp": now() + 600, "roles": ["user"],
    });
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
        .as_object_mut()
        .unwrap()
        .retain(|_, value| !value.is_null());
    claims
}

struct Fixture {
    directory: TempDir,
    metrics: Metrics,
    service: AuthService,
}

impl Fixture {
    fn with_keys(config: &str, keys: &[Value]) -> Self {
        let set = json!({ "keys": keys }).to_string();
        Self::with_files(config, &[("jwks.json", &set)])
    }

    /// With these files beside the configuration.
    fn with_files(config: &str, files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let path = directory.path().join("auth.yaml");
        fs::write(&path, config).unwrap();
        let metrics = Metrics::default();
        let service = AuthService::load(&path, &metrics).unwrap_or_else(|e| panic!("{e}"));
        Self {
            directory,
            metrics,
            service,
        }
    }

    fn new(config: &str) -> Self {
        Self::with_keys(config, &[])
    }

    async fn check(&self, request: Builder) -> Outcome {
        let request = request.body("").unwrap();
        let harness = Harness::new(self.service.clone());
        // Behind a pointer, for the compiler looks only so deep into futures.
        Box::pin(harness.check(request)).await
    }

    /// 200 for allowed, else the status the client gets.
    async fn status(&self, request: Builder) -> u16 {
        match self.check(request).await {
            Outcome::Allowed(_) => 200,
            Outcome::Denied(response) => response.status().as_u16(),
            Outcome::Failed(status) => panic!("{status}"),
        }
    }

    async fn allowed(&self, request: Builder) -> Allowed {
        match self.check(request).await {
            Outcome::Allowed(allowed) => allowed,
            other => panic!("{other:?}"),
        }
    }
}

fn write_keys(directory: &TempDir, keys: &[Value]) {
    let set = json!({ "keys": keys }).to_string();
    fs::write(directory.path().join("jwks.json"), set).unwrap();
}

fn get(path: &str) -> Builder {
    Request::get(format!("http://shop.example.com{path}"))
}

fn bearer(token: &str) -> Builder {
    get("/").header("authorization", format!("Bearer {token}"))
}

const TOKENS: &str = "
identity:
- name: users
  jwt: { issuer: https://issuer, audiences: [shop], jwks_file: jwks.json }
rules:
- { action: allow }
upstream_headers:
  x-user: { claim: sub }
  x-roles: { claim: roles }
  x-from: { source: {} }
  x-static: { value: yes-it-is }
";

// printf %s secret | sha256sum
const SECRET: &str = "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

#[tokio::test]
async fn api_keys_are_taken_from_headers_queries_cookies_and_files() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.txt");
    let other = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    fs::write(&file, format!("# comment\n\nbob  {other} # abc\n")).unwrap();
    let fixture = Fixture::new(&format!(
        "
identity:
- name: partners
  api_key:
    from: [{{ header: x-key }}, {{ query: key }}, {{ cookie: key }}, {{ header: authorization, scheme: Key }}]
    keys: [{{ id: acme, hash: '{SECRET}', claims: {{ tier: gold }} }}]
    keys_file: {}
rules:
- {{ action: allow }}
upstream_headers: {{ x-user: {{ claim: sub }}, x-tier: {{ claim: tier }} }}
",
        file.display()
    ));
    for request in [
        get("/").header("x-key", "secret"),
        get("/?key=secret"),
        get("/").header("cookie", "a=1; key=secret"),
        get("/").header("authorization", "key secret"),
        get("/?key=wrong").header("cookie", "key=secret"),
    ] {
        let allowed = fixture.allowed(request).await;
        assert_eq!(allowed.request.headers()["x-user"], "acme");
        assert_eq!(allowed.request.headers()["x-tier"], "gold");
    }
    let bob = fixture.allowed(get("/").header("x-key", "abc")).await;
    assert_eq!(bob.request.headers()["x-user"], "bob");
    assert!(!bob.request.headers().contains_key("x-tier"));
    for request in [
        get("/"),
        get("/").header("x-key", "wrong"),
        get("/").header("x-key", SECRET),
        get("/").header("authorization", "secret"),
    ] {
        let Outcome::Denied(response) = fixture.check(request).await else {
            panic!()
        };
        assert_eq!(response.status(), 401);
        assert_eq!(response.headers()["www-authenticate"], "ApiKey");
    }
    let text = fixture.metrics.render();
    assert!(
        text.contains(r#"attache_auth_decisions_total{pipeline="default",source="partners",decision="allow"} 6"#),
        "{text}"
    );
    assert!(text.contains(
        r#"attache_auth_decisions_total{pipeline="default",source="none",decision="deny"} 4"#
    ));
    assert!(text.contains(
        r#"attache_auth_credentials_refused_total{source="partners",reason="unknown_key"} 2"#
    ));
}

#[tokio::test]
async fn api_keys_of_files_expire_have_claims_and_are_replaced_with_the_file() {
    let [abc, secret] = [
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        SECRET,
    ];
    let fixture = Fixture::with_files(
        "
identity:
- name: partners
  api_key: { keys_file: keys.txt }
rules:
- { action: allow, claims: { tier: gold } }
",
        &[(
            "keys.txt",
            &format!(
                "old {abc} expires=2020-01-01T00:00:00Z tier=gold\nnew {secret} expires=2999-01-01T00:00:00Z tier=gold\n"
            ),
        )],
    );
    let with = |key: &str| get("/").header("x-api-key", key);
    assert_eq!(fixture.status(with("abc")).await, 401);
    assert_eq!(fixture.status(with("secret")).await, 200);

    let file = fixture.directory.path().join("keys.txt");
    fs::write(
        file,
        format!("old {abc} tier=gold\nnew {secret} tier=silver\n"),
    )
    .unwrap();
    assert_eq!(fixture.service.reload().unwrap(), Reload::Done);

    assert_eq!(fixture.status(with("abc")).await, 200);
    assert_eq!(fixture.status(with("secret")).await, 403);
}

#[test]
fn mistakes_in_key_files_are_told_by_line_and_never_show_a_key() {
    let config = "
identity:
- name: partners
  api_key:
    keys: [{ id: a, hash: 'sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b', expires: soon }]
    keys_file: keys.txt
rules: []
";
    let keys = format!("hunter2\na hunter2\nb {SECRET}\nc {SECRET} expires=never\n");
    let text = errors_with(config, &[("keys.txt", &keys)]);
    for expected in [
        "`soon` is not a time such as",
        "`keys.txt`: line 1: expected an id and a key",
        "`keys.txt`: line 2 is not `<id> sha256:<64 hex digits>`",
        "`keys.txt`: the key of `b` is there twice",
        "`keys.txt`: line 4: `never` is not a time such as",
    ] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test]
async fn a_good_token_tells_the_upstream_who_it_is_and_spoofs_are_replaced() {
    let signer = Signer::new("k1");
    let fixture = Fixture::with_keys(TOKENS, &[signer.jwk()]);
    let token = signer.sign(&claims(json!({ "roles": null })));
    let request = bearer(&token)
        .header("x-user", "root")
        .header("x-user", "admin")
        .header("x-roles", "admin");
    let allowed = fixture.allowed(request).await;
    let headers = allowed.request.headers();
    let user: Vec<_> = headers.get_all("x-user").iter().collect();
    assert_eq!(user, ["alice"]);
    assert_eq!(headers["x-from"], "users");
    assert_eq!(headers["x-static"], "yes-it-is");
    // No claim, no header, whatever the client says.
    assert!(!headers.contains_key("x-roles"));
}

#[tokio::test]
async fn tokens_that_do_not_hold_are_refused() {
    let signer = Signer::new("k1");
    let stranger = Signer::new("k1");
    let mut pinned = Signer::new("k2").jwk();
    pinned["alg"] = "ES384".into();
    let fixture = Fixture::with_keys(TOKENS, &[signer.jwk(), pinned]);
    let good = claims(json!({}));
    assert_eq!(fixture.status(bearer(&signer.sign(&good))).await, 200);

    let es256 = |more: Value| {
        let mut header = json!({ "alg": "ES256", "kid": "k1" });
        for (name, value) in more.as_object().unwrap() {
            header[name] = value.clone();
        }
        signer.sign_with_header(&header, &good)
    };
    let unsigned = signing_input(&json!({ "alg": "none" }), &good);
    // The public key, taken for a shared secret.
    let confused = {
        let input = signing_input(&json!({ "alg": "HS256", "kid": "k1" }), &good);
        let key = hmac::Key::new(hmac::HMAC_SHA256, signer.key.public_key().as_ref());
        format!("{input}.{}", B64.encode(hmac::sign(&key, input.as_bytes())))
    };
    let tampered = {
        let token = signer.sign(&good);
        let (_, signature) = token.rsplit_once('.').unwrap();
        let admin = claims(json!({ "sub": "root" }));
        let header = json!({ "alg": "ES256", "kid": "k1" });
        format!("{}.{signature}", signing_input(&header, &admin))
    };
    let with = |changes| signer.sign(&claims(changes));
    for (what, token) in [
        ("another key", stranger.sign(&good)),
        ("no signature", format!("{unsigned}.")),
        ("two parts", unsigned.clone()),
        ("confusion", confused),
        ("tampered", tampered),
        ("unknown key id", es256(json!({ "kid": "k9" }))),
        ("pinned to another algorithm", es256(json!({ "kid": "k2" }))),
        ("another algorithm", es256(json!({ "alg": "ES384" }))),
        ("extension", es256(json!({ "crit": ["b64"], "b64": true }))),
        ("expired", with(json!({ "exp": now() - 60 }))),
        ("no expiry", with(json!({ "exp": null }))),
        ("expiry of the wrong type", with(json!({ "exp": "never" }))),
        ("not yet", with(json!({ "nbf": now() + 60 }))),
        ("issuer", with(json!({ "iss": "https://issuer.evil" }))),
        ("issuers", with(json!({ "iss": ["https://issuer"] }))),
        ("no issuer", with(json!({ "iss": null }))),
        ("audience", with(json!({ "aud": "other" }))),
        ("no audience", with(json!({ "aud": null }))),
        ("not a token", "x".to_owned()),
        ("too long", format!("{}.x", "a".repeat(20_000))),
    ] {
        let Outcome::Denied(response) = fixture.check(bearer(&token)).await else {
            panic!("{what}")
        };
        assert_eq!(response.status(), 401, "{what}");
        assert_eq!(response.headers()["www-authenticate"], "Bearer", "{what}");
    }
    // Clocks may differ a little.
    for fine in [json!({ "exp": now() - 5 }), json!({ "nbf": now() + 5 })] {
        assert_eq!(fixture.status(bearer(&with(fine))).await, 200);
    }
    // Without a key id all keys that fit are tried.
    let anonymous_key = signer.sign_with_header(&json!({ "alg": "ES256" }), &good);
    assert_eq!(fixture.status(bearer(&anonymous_key)).await, 200);
}

#[tokio::test]
async fn verified_tokens_are_remembered_while_they_hold() {
    let signer = Signer::new("k1");
    let fixture = Fixture::with_keys(TOKENS, &[signer.jwk()]);
    let token = signer.sign(&claims(json!({})));
    for _ in 0..3 {
        assert_eq!(fixture.status(bearer(&token)).await, 200);
    }
    // Past its time, within the leeway: verified each time.
    let late = signer.sign(&claims(json!({ "exp": now() - 5 })));
    for _ in 0..2 {
        assert_eq!(fixture.status(bearer(&late)).await, 200);
    }
    let bad = Signer::new("k1").sign(&claims(json!({})));
    for _ in 0..2 {
        assert_eq!(fixture.status(bearer(&bad)).await, 401);
    }
    let text = fixture.metrics.render();
    let count = |result: &str, n: u32| {
        let line =
            format!(r#"attache_auth_token_cache_total{{source="users",result="{result}"}} {n}"#);
        assert!(text.contains(&line), "{line}\n{text}");
    };
    count("hit", 2);
    count("miss", 5);
}

const MIXED: &str = "
identity:
- name: users
  jwt: { issuer: https://issuer, audiences: [shop], jwks_file: jwks.json }
- name: anyone
  anonymous: {}
rules:
- { name: health, action: allow, paths: [{ exact: /healthz }], identity: [anyone, users] }
- { name: hidden, action: deny, paths: [{ prefix: /internal }], response: { status: 404, body: nothing here } }
- { name: admins, action: allow, paths: [{ prefix: /admin }], claims: { realm.roles: [admin, root] } }
- { name: no admin, action: deny, paths: [{ prefix: /admin }] }
- { name: readers, action: allow, methods: [get], hosts: ['*.example.com'] }
- { name: near, action: allow, methods: [POST], sources: [10.0.0.0/8, '::1'] }
denied: { body: nope, headers: { x-why: policy } }
";

#[tokio::test]
async fn the_first_rule_that_matches_decides_and_without_one_it_is_denied() {
    let signer = Signer::new("k1");
    let fixture = Fixture::with_keys(MIXED, &[signer.jwk()]);
    let user = format!("Bearer {}", signer.sign(&claims(json!({}))));
    let admin = json!({ "realm": { "roles": ["x", "admin"] } });
    let admin = format!("Bearer {}", signer.sign(&claims(admin)));
    let bad = "Bearer nonsense".to_owned();
    for (token, method, path, expected) in [
        (None, "GET", "/healthz?x", 200),
        (Some(&user), "GET", "/healthz", 200),
        // A bad credential is not the same as none.
        (Some(&bad), "GET", "/healthz", 401),
        (None, "GET", "/healthz/", 401),
        // An allow rule without `identity` is not for the anonymous.
        (None, "GET", "/", 401),
        (Some(&user), "GET", "/", 200),
        (Some(&user), "DELETE", "/", 403),
        (None, "GET", "/internal/x", 404),
        (Some(&admin), "GET", "/internal", 404),
        (Some(&admin), "GET", "/internals", 200),
        (Some(&admin), "GET", "/admin/x", 200),
        (Some(&user), "GET", "/admin/x", 403),
        (Some(&user), "GET", "/%61dmin", 403),
        (Some(&user), "GET", "/x/../admin", 400),
        (Some(&user), "GET", "//admin", 400),
        (Some(&user), "GET", "/admin;x", 400),
        // The connection has no address here.
        (Some(&user), "POST", "/", 403),
    ] {
        let mut request = get(path).method(method);
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        assert_eq!(
            fixture.status(request).await,
            expected,
            "{method} {path} {token:?}"
        );
    }
    let elsewhere = Request::get("http://example.org/").header("authorization", &user);
    assert_eq!(fixture.status(elsewhere).await, 403);

    let near = attache_filter::ConnectionInfo {
        peer: Some("[::ffff:10.1.2.3]:5".parse().unwrap()),
        ..attache_filter::ConnectionInfo::default()
    };
    let request = get("/")
        .method("POST")
        .header("authorization", &user)
        .body("")
        .unwrap();
    let outcome = Harness::new(fixture.service.clone())
        .connection(near)
        .check(request)
        .await;
    assert!(matches!(outcome, Outcome::Allowed(_)), "{outcome:?}");

    let Outcome::Denied(denied) = fixture.check(get("/internal")).await else {
        panic!()
    };
    assert_eq!(denied.body(), "nothing here");
    let request = get("/").method("PUT").header("authorization", &user);
    let Outcome::Denied(denied) = fixture.check(request).await else {
        panic!()
    };
    assert_eq!(
        (denied.body().as_ref(), &denied.headers()["x-why"]),
        (&b"nope"[..], &"policy".parse().unwrap())
    );
}

#[tokio::test]
async fn connections_without_http_match_rules_that_do_not_ask_for_it() {
    let decide = async |rules: &str| {
        let config = format!("identity: [{{ name: anyone, anonymous: {{}} }}]\nrules: [{rules}]");
        let fixture = Fixture::new(&config);
        fixture
            .service
            .decide(&crate::server::CheckRequestView::default())
            .await
            .unwrap()
            .is_allow()
    };
    assert!(decide("{ action: allow, identity: [anyone] }").await);
    assert!(!decide("{ action: allow, identity: [anyone], paths: [{ prefix: / }] }").await);
    assert!(!decide("{ action: allow, identity: [anyone], methods: [GET] }").await);
    assert!(!decide("").await);
}

fn errors_of(config: &str) -> String {
    errors_with(config, &[])
}

/// With these files beside the configuration.
fn errors_with(config: &str, files: &[(&str, &str)]) -> String {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    fs::write(
        directory.path().join("empty.json"),
        r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#,
    )
    .unwrap();
    let path = directory.path().join("auth.yaml");
    fs::write(&path, config).unwrap();
    let errors = AuthService::load(&path, &Metrics::default())
        .unwrap_err()
        .to_string();
    errors.replace(&path.display().to_string(), "auth.yaml")
}

#[test]
fn all_mistakes_are_reported_with_their_places() {
    let text = errors_of(
        "
identity:
- name: users
  jwt: { issuer: i, jwks_file: empty.json, leeway: 2h }
- name: users
  api_key: { keys: [{ id: a, hash: secret }] }
- name: more
  api_key: {}
rules:
- { action: allow, identity: [nobody], paths: [{ prefix: admin }, { regex: '(' }] }
- { action: deny, sources: [10.0.0.0/40], response: { status: 99 } }
- { action: allow, response: {} }
upstream_headers: { content-length: { claim: x }, x y: { value: a } }
denied: { status: 204, body: x }
",
    );
    for expected in [
        "auth.yaml:4:18: a token source needs either `audiences` or `any_audience: true`",
        "auth.yaml:4:52: more than an hour",
        "`empty.json`: no key in it verifies signatures with an accepted algorithm",
        "auth.yaml:5:9: two identity sources are called `users`",
        "auth.yaml:6:36: expected `sha256:` and 64 hex digits",
        "auth.yaml:7:9: an `api_key` source needs `keys` or `keys_file`",
        "there is no identity source `nobody`",
        "a path starts with a slash",
        "regex parse error",
        "expected an address or a network",
        "99 is not a status from 200 to 599",
        "only `deny` rules have a response",
        "`content-length` cannot be set by a policy",
        "`x y` is not a header name",
        "an answer with status 204 has no body",
    ] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
    assert!(errors_of("identity: []\nrules: []\n").contains("at least one source of identity"));
}

#[tokio::test]
async fn a_reload_replaces_the_policy_or_keeps_the_old_one() {
    let old = Signer::new("k1");
    let new = Signer::new("k2");
    let fixture = Fixture::with_keys(TOKENS, &[old.jwk()]);
    let by_old = old.sign(&claims(json!({})));
    let by_new = new.sign(&claims(json!({})));
    assert_eq!(fixture.status(bearer(&by_old)).await, 200);
    assert_eq!(fixture.status(bearer(&by_new)).await, 401);

    write_keys(&fixture.directory, &[]);
    assert!(fixture.service.reload().is_err());
    assert_eq!(fixture.status(bearer(&by_old)).await, 200);

    write_keys(&fixture.directory, &[new.jwk()]);
    assert_eq!(fixture.service.reload(), Ok(Reload::Done));
    // Also forgets what was verified with keys that are gone.
    assert_eq!(fixture.status(bearer(&by_old)).await, 401);
    assert_eq!(fixture.status(bearer(&by_new)).await, 200);
    assert!(
        fixture
            .service
            .files()
            .iter()
            .any(|file| file.ends_with("jwks.json"))
    );
}

#[tokio::test]
async fn a_change_of_a_file_is_noticed() {
    let old = Signer::new("k1");
    let new = Signer::new("k2");
    let fixture = Fixture::with_keys(TOKENS, &[old.jwk()]);
    let watching = fixture.service.clone();
    let watch = tokio::spawn(async move { watching.watch().await });
    let by_new = new.sign(&claims(json!({})));
    let noticed = async {
        while fixture.status(bearer(&by_new)).await != 200 {
            // Written again until the watch has begun.
            write_keys(&fixture.directory, &[new.jwk()]);
            tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), noticed)
        .await
        .unwrap();
    watch.abort();
}

#[test]
fn the_future_of_a_check_has_no_room_for_what_few_checks_do() {
    let fixture = Fixture::new(
        "identity: [{ name: anyone, anonymous: {} }]\nrules: [{ action: allow, identity: [anyone] }]\n",
    );
    let request = CheckRequestView::default();
    let deciding = fixture.service.decide(&request);
    // It is moved several times on its way; what waits for others is boxed.
    assert!(size_of_val(&deciding) < 2048, "{}", size_of_val(&deciding));
}

#[test]
fn the_example_of_the_documentation_loads() {
    let text = include_str!("../policy.rs");
    let example: String = text
        .lines()
        .skip_while(|line| *line != "//! ```yaml")
        .skip(1)
        .take_while(|line| *line != "//! ```")
        .map(|line| {
            line.trim_start_matches("//!")
                .strip_prefix(' ')
                .unwrap_or_default()
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    assert!(example.contains("jwks_file"));
    Fixture::with_keys(&example, &[Signer::new("k").jwk()]);
}

#[tokio::test]
async fn the_first_pipeline_that_matches_takes_a_request() {
    let fixture = Fixture::new(
        r#"
        identity:
        - { name: anyone, anonymous: {} }
        - name: keys
          api_key: { keys: [{ id: a, hash: "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b" }] }
        pipelines:
        - name: internal
          hosts: ["*.internal"]
          paths: [{ prefix: /v1 }, { prefix: /v2 }]
          identity: [keys]
          rules: [{ action: allow }]
        - name: tenants
          context: { tenant: [acme, globex] }
          rules: [{ action: allow, identity: [anyone] }]
          upstream_headers: { x-pipeline: { value: tenants } }
        - name: closed
          paths: [{ exact: /closed }]
          denied: { status: 404 }
          rules: [{ action: deny }]
        denied: { status: 418 }
        rules: [{ action: deny }]
        "#,
    );
    let get = |uri: &str| Request::get(uri);
    for (request, expected) in [
        (get("http://a.internal/v1/x"), 401),
        (
            get("http://a.internal/v2").header("x-api-key", "secret"),
            200,
        ),
        (get("http://a.internal/v3"), 418),
        (get("http://example.com/closed"), 404),
        (get("http://example.com/"), 418),
    ] {
        let shown = format!("{request:?}");
        assert_eq!(fixture.status(request).await, expected, "{shown}");
    }
    let harness = Harness::new(fixture.service.clone()).context_extension("tenant", "globex");
    let request = get("http://example.com/closed").body("").unwrap();
    let Outcome::Allowed(allowed) = harness.check(request).await else {
        panic!("denied");
    };
    assert_eq!(allowed.request.headers()["x-pipeline"], "tenants");
}
