//! Tokens whose keys are fetched, and what attackers make of tokens.

use std::{path::Path, time::Duration};

use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    rsa,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;

use super::{
    web::{Reply, Web, eventually},
    *,
};

const RULES: &str = "rules: [{ action: allow }]\nupstream_headers: { x-user: { claim: sub } }\n";

/// A source of tokens from the issuer of [`claims`] with these lines about its keys.
fn jwt(keys: &str) -> String {
    format!(
        "identity:\n- name: users\n  jwt: {{ issuer: 'https://issuer', audiences: [shop], {keys} }}\n{RULES}"
    )
}

fn key_set(signers: &[&Signer]) -> String {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    json!({ "keys": keys }).to_string()
}

fn serve_keys(web: &Web, signers: &[&Signer]) {
    let set = key_set(signers);
    web.answers(move |_| Reply::ok(&set));
}

impl Fixture {
    /// The answer to a request with this token: the status, or `None` when the check failed.
    async fn outcome(&self, token: &str) -> Option<StatusCode> {
        match self.check(bearer(token)).await {
            Outcome::Allowed(_) => Some(StatusCode::OK),
            Outcome::Denied(response) => Some(response.status()),
            Outcome::Failed(_) => None,
        }
    }

    fn counts(&self, line: &str) -> bool {
        self.metrics.render().contains(line)
    }

    fn rewrite(&self, config: &str) {
        fs::write(self.directory.path().join("auth.yaml"), config).unwrap();
    }
}

fn good(signer: &Signer) -> String {
    signer.sign(&claims(json!({})))
}

#[tokio::test]
async fn keys_come_from_a_url_and_checks_fail_until_they_are_there() {
    let web = Web::start().await;
    let signer = Signer::new("k1");
    let url = format!("{}/keys", web.origin);
    let fixture = Fixture::new(&jwt(&format!("jwks_url: '{url}'")));

    assert_eq!(fixture.outcome(&good(&signer)).await, None);
    let waits_for = format!("the keys of `users` from {url}");
    assert_eq!(fixture.service.waits_for(), [waits_for]);

    serve_keys(&web, &[&signer]);
    fixture.service.ready().await;

    assert_eq!(fixture.status(bearer(&good(&signer))).await, 200);
    assert_eq!(fixture.service.waits_for(), [""; 0]);
    assert!(fixture.counts(r#"attache_auth_fetches_total{source="users",result="changed"} 1"#));
}

#[tokio::test]
async fn keys_come_from_where_the_issuer_says() {
    let web = Web::start().await;
    let signer = Signer::new("k1");
    let issuer = format!("{}/realm/", web.origin);
    let description = json!({
        "issuer": issuer, "jwks_uri": format!("{}/keys", web.origin), "token_endpoint": "x",
    });
    let set = key_set(&[&signer]);
    web.answers(move |seen| match seen.path() {
        "/realm/.well-known/openid-configuration" => Reply::ok(&description),
        "/keys" => Reply::ok(&set),
        _ => Reply::status(404),
    });
    let config = jwt("discovery: {}").replace("https://issuer", &issuer);
    let fixture = Fixture::new(&config);
    fixture.service.ready().await;

    let token = signer.sign(&claims(json!({ "iss": issuer })));
    assert_eq!(fixture.status(bearer(&token)).await, 200);
    // Of another issuer, though signed with the same key.
    assert_eq!(fixture.status(bearer(&good(&signer))).await, 401);
}

#[tokio::test]
async fn a_rotated_key_is_accepted_at_once_and_the_old_one_no_longer() {
    let web = Web::start().await;
    let (old, new) = (Signer::new("k1"), Signer::new("k2"));
    serve_keys(&web, &[&old]);
    let fixture = Fixture::new(&jwt(&format!("jwks_url: '{}'", web.origin)));
    fixture.service.ready().await;
    let (old_token, new_token) = (good(&old), good(&new));
    for _ in 0..2 {
        assert_eq!(fixture.status(bearer(&old_token)).await, 200);
    }

    serve_keys(&web, &[&new]);

    assert_eq!(fixture.status(bearer(&new_token)).await, 200);
    // Remembered as verified, with a key that is no longer one.
    assert_eq!(fixture.status(bearer(&old_token)).await, 401);
}

#[tokio::test]
async fn decisions_that_are_kept_do_not_outlive_the_keys_they_rest_on() {
    let web = Web::start().await;
    let (old, new) = (Signer::new("k1"), Signer::new("k2"));
    serve_keys(&web, &[&old]);
    let config = jwt(&format!("jwks_url: '{}'", web.origin)) + "decision_cache: {}\n";
    let fixture = Fixture::new(&config);
    fixture.service.ready().await;
    let (old_token, new_token) = (good(&old), good(&new));
    for _ in 0..2 {
        assert_eq!(fixture.status(bearer(&old_token)).await, 200);
    }
    assert_eq!(fixture.service.reload(), Ok(Reload::Done));
    assert_eq!(fixture.status(bearer(&old_token)).await, 200);

    serve_keys(&web, &[&new]);

    assert_eq!(fixture.status(bearer(&new_token)).await, 200);
    assert_eq!(fixture.status(bearer(&old_token)).await, 401);
}

#[tokio::test]
async fn a_key_that_is_taken_away_counts_no_longer_than_the_interval() {
    let web = Web::start().await;
    let (old, new) = (Signer::new("k1"), Signer::new("k2"));
    serve_keys(&web, &[&old, &new]);
    let url = &web.origin;
    let fixture = Fixture::new(&jwt(&format!(
        "jwks_url: '{url}', refresh: {{ interval: 0.1s }}"
    )));
    fixture.service.ready().await;
    let token = good(&old);
    assert_eq!(fixture.status(bearer(&token)).await, 200);

    serve_keys(&web, &[&new]);
    eventually(|| {
        fixture.counts(r#"attache_auth_fetches_total{source="users",result="changed"} 2"#)
    })
    .await;

    assert_eq!(fixture.status(bearer(&token)).await, 401);
}

#[tokio::test]
async fn unknown_keys_have_the_set_fetched_once_however_many_come() {
    let web = Web::start().await;
    let signer = Signer::new("k1");
    serve_keys(&web, &[&signer]);
    let fixture = Fixture::new(&jwt(&format!("jwks_url: '{}'", web.origin)));
    fixture.service.ready().await;
    let stranger = Signer::new("k9");
    let tokens: Vec<String> = (0..50)
        .map(|number| stranger.sign(&claims(json!({ "sub": number.to_string() }))))
        .collect();

    let outcomes = tokens.iter().map(|token| fixture.outcome(token));
    let outcomes = futures_util::future::join_all(outcomes).await;

    let refused = Some(StatusCode::UNAUTHORIZED);
    assert!(outcomes.iter().all(|outcome| *outcome == refused));
    // At the start, and because of the strangers.
    assert_eq!(web.seen().len(), 2);
    assert!(fixture.counts(
        r#"attache_auth_credentials_refused_total{source="users",reason="unknown_key"} 50"#
    ));
}

#[tokio::test]
async fn tokens_of_one_issuer_are_no_reason_to_fetch_the_keys_of_another() {
    let (web, other_web) = (Web::start().await, Web::start().await);
    let (signer, other) = (Signer::new("k1"), Signer::new("k2"));
    serve_keys(&web, &[&signer]);
    serve_keys(&other_web, &[&other]);
    let config = jwt(&format!("jwks_url: '{}'", web.origin)).replace(
        "rules:",
        &format!(
            "- name: others\n  jwt: {{ issuer: 'https://other', any_audience: true, jwks_url: '{}' }}\nrules:",
            other_web.origin
        ),
    );
    let fixture = Fixture::new(&config);
    fixture.service.ready().await;

    let token = other.sign(&claims(json!({ "iss": "https://other" })));

    assert_eq!(fixture.status(bearer(&token)).await, 200);
    assert_eq!(fixture.status(bearer(&good(&signer))).await, 200);
    assert_eq!((web.seen().len(), other_web.seen().len()), (1, 1));
}

#[tokio::test]
async fn an_unknown_key_is_not_waited_for_long() {
    let web = Web::start().await;
    let signer = Signer::new("k1");
    serve_keys(&web, &[&signer]);
    let url = &web.origin;
    let fixture = Fixture::new(&jwt(&format!(
        "jwks_url: '{url}', refresh: {{ unknown_key_wait: 0.05s }}"
    )));
    fixture.service.ready().await;

    web.answers(|_| Reply::Hang);

    let token = good(&Signer::new("k2"));
    let refused = tokio::time::timeout(Duration::from_secs(3), fixture.outcome(&token)).await;
    assert_eq!(refused.unwrap(), Some(StatusCode::UNAUTHORIZED));
    assert_eq!(fixture.status(bearer(&good(&signer))).await, 200);
}

#[tokio::test]
async fn keys_outlast_an_outage_but_not_their_greatest_age() {
    let web = Web::start().await;
    let signer = Signer::new("k1");
    serve_keys(&web, &[&signer]);
    let url = &web.origin;
    let config = |age: &str| {
        jwt(&format!(
            "jwks_url: '{url}', refresh: {{ interval: 0.1s, {age} }}"
        ))
    };
    let lasting = Fixture::new(&config(""));
    let aging = Fixture::new(&config("max_age: 0.3s"));
    lasting.service.ready().await;
    aging.service.ready().await;
    let token = good(&signer);
    assert_eq!(aging.status(bearer(&token)).await, 200);

    web.answers(|_| Reply::status(500));
    let failed = |n| format!(r#"attache_auth_fetches_total{{source="users",result="failed"}} {n}"#);
    eventually(|| (3..20).any(|n| lasting.counts(&failed(n)))).await;
    assert_eq!(lasting.status(bearer(&token)).await, 200);
    let mut outcome = Some(StatusCode::OK);
    for _ in 0..1000 {
        outcome = aging.outcome(&token).await;
        if outcome.is_none() {
            break;
        }
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(outcome, None);

    serve_keys(&web, &[&signer]);
    for _ in 0..1000 {
        outcome = aging.outcome(&token).await;
        if outcome.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(outcome, Some(StatusCode::OK));
}

#[tokio::test]
async fn a_hostile_endpoint_makes_no_keys() {
    let signer = Signer::new("k1");
    let set = key_set(&[&signer]);
    let elsewhere = Web::start().await;
    serve_keys(&elsewhere, &[&signer]);
    let keys: Vec<Value> = (0..101).map(|_| signer.jwk()).collect();
    let redirect = vec![("location", elsewhere.origin.clone())];
    let evil = json!({ "issuer": "https://evil", "jwks_uri": elsewhere.origin });
    for (what, key, reply) in [
        (
            "huge",
            "jwks_url",
            Reply::ok(format!("{set}{}", " ".repeat(2 << 20))),
        ),
        ("garbage", "jwks_url", Reply::ok("\u{0}<html>")),
        ("no keys", "jwks_url", Reply::ok("{}")),
        ("many keys", "jwks_url", Reply::ok(json!({ "keys": keys }))),
        (
            "redirect",
            "jwks_url",
            Reply::Status(302, redirect.clone(), set.clone()),
        ),
        ("error", "jwks_url", Reply::Status(500, vec![], set.clone())),
        (
            "partial",
            "jwks_url",
            Reply::Status(206, vec![], set.clone()),
        ),
        ("unasked 304", "jwks_url", Reply::status(304)),
        ("drip", "jwks_url", Reply::Drip),
        ("hang", "jwks_url", Reply::Hang),
        ("other issuer", "url", Reply::ok(&evil)),
        ("a set for a description", "url", Reply::ok(&set)),
    ] {
        let web = Web::start().await;
        web.answers(move |_| reply.clone());
        let url = &web.origin;
        let keys = match key {
            "url" => format!("discovery: {{ url: '{url}', timeout: 0.2s }}"),
            _ => format!("jwks_url: {{ url: '{url}', timeout: 0.2s }}"),
        };
        let fixture = Fixture::new(&jwt(&keys));

        let failed = r#"attache_auth_fetches_total{source="users",result="failed"} 1"#;
        eventually(|| fixture.counts(failed)).await;

        assert_eq!(fixture.outcome(&good(&signer)).await, None, "{what}");
        assert_eq!(fixture.service.waits_for().len(), 1, "{what}");
    }
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn a_reload_keeps_what_was_fetched_and_verified() {
    let web = Web::start().await;
    let signer = Signer::new("k1");
    serve_keys(&web, &[&signer]);
    let config = jwt(&format!("jwks_url: '{}'", web.origin));
    let fixture = Fixture::new(&config);
    fixture.service.ready().await;
    let token = good(&signer);
    assert_eq!(fixture.status(bearer(&token)).await, 200);

    web.answers(|_| Reply::status(500));
    fixture.rewrite(&config.replace("allow", "deny"));
    assert_eq!(fixture.service.reload(), Ok(Reload::Done));
    assert_eq!(fixture.status(bearer(&token)).await, 403);
    fixture.rewrite(&config);
    assert_eq!(fixture.service.reload(), Ok(Reload::Done));
    assert_eq!(fixture.status(bearer(&token)).await, 200);

    assert_eq!(web.seen().len(), 1);
    assert!(fixture.counts(r#"attache_auth_token_cache_total{source="users",result="hit"} 2"#));
}

#[tokio::test]
async fn the_old_policy_decides_until_the_new_one_has_its_keys() {
    let (old_web, new_web) = (Web::start().await, Web::start().await);
    let (old, new) = (Signer::new("k1"), Signer::new("k2"));
    serve_keys(&old_web, &[&old]);
    let config = |web: &Web| jwt(&format!("jwks_url: '{}'", web.origin));
    let fixture = Fixture::new(&config(&old_web));
    fixture.service.ready().await;

    fixture.rewrite(&config(&new_web));
    let reload = fixture.service.reload().unwrap();
    let what = format!("the keys of `users` from {}/", new_web.origin);
    assert_eq!(reload, Reload::WaitsFor(vec![what]));
    assert_eq!(fixture.status(bearer(&good(&old))).await, 200);

    serve_keys(&new_web, &[&new]);
    eventually(|| fixture.counts(r#"attache_auth_reloads_total{result="ok"} 1"#)).await;
    assert_eq!(fixture.status(bearer(&good(&new))).await, 200);
    assert_eq!(fixture.status(bearer(&good(&old))).await, 401);
}

#[tokio::test]
async fn a_policy_that_never_gets_its_keys_is_given_up() {
    let (web, silent) = (Web::start().await, Web::start().await);
    let signer = Signer::new("k1");
    serve_keys(&web, &[&signer]);
    let config = |web: &Web| jwt(&format!("jwks_url: '{}'", web.origin));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("auth.yaml");
    fs::write(&path, config(&web)).unwrap();
    let metrics = Metrics::default();
    let patience = Duration::from_millis(50);
    let service = AuthService::load_patiently(&path, &metrics, patience).unwrap();
    let fixture = Fixture {
        directory,
        metrics,
        service,
    };
    fixture.service.ready().await;

    fixture.rewrite(&config(&silent));
    assert!(matches!(fixture.service.reload(), Ok(Reload::WaitsFor(_))));
    eventually(|| fixture.counts(r#"attache_auth_reloads_total{result="given_up"} 1"#)).await;

    assert_eq!(fixture.status(bearer(&good(&signer))).await, 200);
    assert_eq!(fixture.service.files().len(), 1);
}

#[tokio::test]
async fn validation_fetches_nothing() {
    let web = Web::start().await;
    let fixture = Fixture::new(RULES_ONLY);
    let path = fixture.directory.path().join("auth.yaml");
    fixture.rewrite(&jwt(&format!("jwks_url: '{}'", web.origin)));

    AuthService::validate(&path).unwrap();

    tokio::task::yield_now().await;
    assert!(web.seen().is_empty());
}

const RULES_ONLY: &str = "identity: [{ name: all, anonymous: {} }]\n";

/// An RSA key, signing without the library that verifies.
struct Rsa(RsaKeyPair);

impl Rsa {
    fn new() -> Self {
        Self(rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap())
    }

    fn jwk(&self) -> Value {
        let key = self.0.public_key();
        let part = |bytes: &[u8]| B64.encode(bytes);
        json!({
            "kty": "RSA", "kid": "r1",
            "n": part(key.modulus().big_endian_without_leading_zero()),
            "e": part(key.exponent().big_endian_without_leading_zero()),
        })
    }

    fn sign(&self, header: &Value, claims: &str) -> String {
        let signed = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims));
        let mut signature = vec![0; self.0.public_modulus_len()];
        let random = SystemRandom::new();
        let message = signed.as_bytes();
        self.0
            .sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
            .unwrap();
        format!("{signed}.{}", B64.encode(signature))
    }

    /// All that could be taken for a shared secret.
    fn public_forms(&self) -> Vec<Vec<u8>> {
        let key = self.0.public_key();
        let der: PublicKeyX509Der<'_> = key.as_der().unwrap();
        let text = STANDARD.encode(der.as_ref());
        let lines: Vec<&str> = text
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----",
            lines.join("\n")
        );
        vec![
            key.as_ref().to_vec(),
            der.as_ref().to_vec(),
            text.clone().into_bytes(),
            format!("{pem}\n").into_bytes(),
            pem.into_bytes(),
            self.jwk().to_string().into_bytes(),
            self.jwk()["n"].as_str().unwrap().as_bytes().to_vec(),
        ]
    }
}

fn with_secret(secret: &[u8], algorithm: hmac::Algorithm, header: &Value) -> String {
    let input = signing_input(header, &claims(json!({})));
    let key = hmac::Key::new(algorithm, secret);
    format!("{input}.{}", B64.encode(hmac::sign(&key, input.as_bytes())))
}

#[tokio::test]
async fn a_public_key_is_no_shared_secret() {
    let (signer, rsa) = (Signer::new("k1"), Rsa::new());
    // Even where shared secrets are accepted, a key verifies what its type can.
    let secret =
        json!({ "kty": "oct", "kid": "s1", "k": B64.encode(b"a secret of 32 bytes, or longer") });
    let keys = [signer.jwk(), rsa.jwk(), secret];
    let lax = TOKENS.replace("jwks_file", "algorithms: [RS256, ES256, HS256], jwks_file");
    for config in [TOKENS, &lax] {
        let fixture = Fixture::with_keys(config, &keys);
        let claims = claims(json!({})).to_string();
        let header = json!({ "alg": "RS256", "kid": "r1" });
        assert_eq!(
            fixture.status(bearer(&rsa.sign(&header, &claims))).await,
            200
        );

        let mut forms = rsa.public_forms();
        forms.push(signer.key.public_key().as_ref().to_vec());
        forms.push(Vec::new());
        for secret in forms {
            for (name, algorithm) in [
                ("HS256", hmac::HMAC_SHA256),
                ("HS384", hmac::HMAC_SHA384),
                ("HS512", hmac::HMAC_SHA512),
            ] {
                for kid in [json!("r1"), json!("k1"), json!("s1"), Value::Null] {
                    let mut header = json!({ "alg": name, "kid": kid });
                    if kid.is_null() {
                        header.as_object_mut().unwrap().remove("kid");
                    }
                    let token = with_secret(&secret, algorithm, &header);
                    assert_eq!(fixture.status(bearer(&token)).await, 401, "{header}");
                }
            }
        }
    }
}

#[tokio::test]
async fn what_a_token_says_of_its_own_key_does_not_count() {
    let web = Web::start().await;
    let signer = Signer::new("k1");
    let fixture = Fixture::with_keys(TOKENS, &[signer.jwk()]);
    for kid in ["k1", "evil"] {
        let attacker = Signer::new(kid);
        serve_keys(&web, &[&attacker]);
        for (name, value) in [
            ("jwk", attacker.jwk()),
            ("jku", json!(web.origin)),
            ("x5u", json!(web.origin)),
            ("x5c", json!(["MIIB"])),
            ("kid", json!("../../../dev/null")),
            ("kid", json!("k1' OR '1'='1")),
        ] {
            let mut header = json!({ "alg": "ES256", "kid": kid });
            header[name] = value;
            let token = attacker.sign_with_header(&header, &claims(json!({})));
            assert_eq!(fixture.status(bearer(&token)).await, 401, "{header}");
        }
    }
    assert!(web.seen().is_empty());
}

#[tokio::test]
async fn unsigned_and_oddly_named_algorithms_are_refused() {
    let signer = Signer::new("k1");
    let fixture = Fixture::with_keys(TOKENS, &[signer.jwk()]);
    for algorithm in [
        "none", "None", "NONE", "nOnE", "", "es256", "ES256 ", "ES512", "HS256",
    ] {
        let header = json!({ "alg": algorithm, "kid": "k1" });
        let input = signing_input(&header, &claims(json!({})));
        let signed = signer.sign_with_header(&header, &claims(json!({})));
        for token in [format!("{input}."), format!("{input}.AA"), input, signed] {
            assert_eq!(fixture.status(bearer(&token)).await, 401, "{header}");
        }
    }
}

#[tokio::test]
async fn claims_and_header_fields_stand_there_once() {
    let rsa = Rsa::new();
    let fixture = Fixture::with_keys(TOKENS, &[rsa.jwk()]);
    let header = json!({ "alg": "RS256", "kid": "r1" });
    let exp = now() + 600;
    let text = |more: &str| {
        format!(r#"{{"iss":"https://issuer","aud":"shop","sub":"alice","exp":{exp}{more}}}"#)
    };
    assert_eq!(
        fixture.status(bearer(&rsa.sign(&header, &text("")))).await,
        200
    );
    for more in [
        r#","sub":"root""#,
        r#","roles":["user"],"roles":["admin"]"#,
        r#","aud":"other""#,
        r#","iss":"https://evil""#,
        r#","exp":1"#,
    ] {
        let token = rsa.sign(&header, &text(more));
        assert_eq!(fixture.status(bearer(&token)).await, 401, "{more}");
    }
    for claims in ["[]", "null", "\"sub\"", "{", ""] {
        let token = rsa.sign(&header, claims);
        assert_eq!(fixture.status(bearer(&token)).await, 401, "{claims}");
    }
}

#[tokio::test]
async fn tokens_that_are_too_long_are_refused_unread() {
    let signer = Signer::new("k1");
    let fixture = Fixture::with_keys(TOKENS, &[signer.jwk()]);
    let padded = |length: usize| signer.sign(&claims(json!({ "pad": "x".repeat(length) })));

    assert_eq!(fixture.status(bearer(&padded(8_000))).await, 200);
    assert_eq!(fixture.status(bearer(&padded(20_000))).await, 401);

    assert!(
        fixture.counts(
            r#"attache_auth_credentials_refused_total{source="users",reason="too_long"} 1"#
        )
    );
}

#[test]
fn files_are_watched_where_they_are() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let folder = Path::new(directory.path().file_name().unwrap());
    let at = |name: &str| folder.join(name);
    write_keys(&directory, &[Signer::new("k1").jwk()]);
    fs::write(at("token"), "s3cret").unwrap();
    let config = TOKENS.replace(
        "rules:",
        "- name: others
  introspection:
    endpoint: { url: 'http://127.0.0.1:1/', headers: { x-token: { file: token } } }
    client_id: me
    client_secret: { file: token }
rules:",
    );
    fs::write(at("auth.yaml"), config).unwrap();

    let service = AuthService::load(&at("auth.yaml"), &Metrics::default()).unwrap();

    let files = service.files();
    assert_eq!(files, [at("auth.yaml"), at("jwks.json"), at("token")]);
}

#[tokio::test]
async fn mistakes_about_fetched_keys_are_told_with_their_place() {
    for (keys, said) in [
        ("jwks_url: 'ftp://a/'", "expected `http://` or `https://`"),
        (
            "discovery: { url: nonsense }",
            "expected `http://` or `https://`",
        ),
        (
            "jwks_url: 'http://a/', refresh: { interval: 1ms }",
            "expected 100ms to 86400s",
        ),
        (
            "jwks_url: 'http://a/', refresh: { interval: 1m, max_age: 30s }",
            "must be longer than `interval`",
        ),
        (
            "jwks: { keys: [] }, refresh: {}",
            "only keys that are fetched are refreshed",
        ),
        ("jwks_url: 'http://a/', jwks_file: a", "jwks_file"),
    ] {
        let fixture = Fixture::new(RULES_ONLY);
        fixture.rewrite(&jwt(keys));
        let path = fixture.directory.path().join("auth.yaml");
        let errors = AuthService::validate(&path).unwrap_err().to_string();
        assert!(
            errors.contains(said) && errors.contains("auth.yaml:3:"),
            "{keys}: {errors}"
        );
    }
}
