//! Signed requests. The bases are written here by hand, not by the code that verifies.

use std::fs;

use aws_lc_rs::{digest, hmac};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Request, request::Builder};

use super::{Fixture, Reload, errors_with, get, now};
use crate::testing::{Harness, Outcome};

/// The shared secret of RFC 9421, B.1.5.
const SECRET: &str =
    "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";

const CONFIG: &str = "
identity:
- name: partners
  hmac: { keys_file: keys }
rules:
- { action: allow }
upstream_headers: { x-user: { claim: sub }, x-tier: { claim: tier } }
";

fn fixture(settings: &str) -> Fixture {
    let config = CONFIG.replace("keys_file: keys", &format!("keys_file: keys{settings}"));
    let keys = format!("acme {SECRET} tier=gold\nlate {SECRET} expires=2020-01-01T00:00:00Z\n");
    Fixture::with_files(&config, &[("keys", &keys)])
}

fn sign(base: &str) -> String {
    let secret = STANDARD.decode(SECRET).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
    STANDARD.encode(hmac::sign(&key, base.as_bytes()))
}

fn content_digest(body: &str) -> String {
    let digest = digest::digest(&digest::SHA256, body.as_bytes());
    format!("sha-256=:{}:", STANDARD.encode(digest))
}

/// A signed request; what it says can be changed before and after it is signed.
#[derive(Clone)]
struct Signed {
    method: &'static str,
    target: &'static str,
    params: String,
    digest: Option<String>,
}

impl Default for Signed {
    fn default() -> Self {
        Self {
            method: "GET",
            target: "/orders?page=1",
            params: format!(r#";created={};keyid="acme""#, now()),
            digest: None,
        }
    }
}

impl Signed {
    fn post(body: &'static str) -> Self {
        Self {
            method: "POST",
            digest: Some(content_digest(body)),
            ..Self::default()
        }
    }

    fn params(params: String) -> Self {
        Self {
            params,
            ..Self::default()
        }
    }

    fn request(&self) -> Builder {
        let (path, query) = self.target.split_once('?').unwrap_or((self.target, ""));
        let mut lines = vec![
            ("@method", self.method.to_owned()),
            ("@authority", "shop.example.com".to_owned()),
            ("@path", path.to_owned()),
            ("@query", format!("?{query}")),
        ];
        if let Some(digest) = &self.digest {
            lines.push(("content-digest", digest.clone()));
        }
        let names: Vec<_> = lines
            .iter()
            .map(|(name, _)| format!("\"{name}\""))
            .collect();
        let input = format!("({}){}", names.join(" "), self.params);
        let mut base = String::new();
        for (name, value) in &lines {
            base.push_str(&format!("\"{name}\": {value}\n"));
        }
        base.push_str(&format!("\"@signature-params\": {input}"));
        let mut request = Request::builder()
            .method(self.method)
            .uri(format!("http://shop.example.com{}", self.target))
            .header("signature-input", format!("sig={input}"))
            .header("signature", format!("sig=:{}:", sign(&base)));
        if let Some(digest) = &self.digest {
            request = request.header("content-digest", digest);
        }
        request
    }
}

async fn outcome(fixture: &Fixture, request: Builder, body: &str) -> Outcome {
    let request = request.body(body.to_owned()).unwrap();
    Harness::new(fixture.service.clone()).check(request).await
}

async fn status(fixture: &Fixture, request: Builder, body: &str) -> u16 {
    match outcome(fixture, request, body).await {
        Outcome::Allowed(_) => 200,
        Outcome::Denied(response) => response.status().as_u16(),
        Outcome::Failed(_) => 503,
    }
}

#[tokio::test]
async fn a_signed_request_is_its_signers_and_is_taken_once() {
    let fixture = fixture("");
    let request = || Signed::default().request();
    let Outcome::Allowed(allowed) = outcome(&fixture, request(), "").await else {
        panic!()
    };
    assert_eq!(allowed.request.headers()["x-user"], "acme");
    assert_eq!(allowed.request.headers()["x-tier"], "gold");

    let signed = Signed::params(format!(r#";created={};keyid="acme";nonce="1""#, now()));
    assert_eq!(status(&fixture, signed.request(), "").await, 200);
    assert_eq!(status(&fixture, signed.request(), "").await, 401);
    let again = Signed {
        target: "/other",
        ..signed
    };
    assert_eq!(
        status(&fixture, again.request(), "").await,
        401,
        "nonce used twice"
    );

    // Not even after the settings have been read anew.
    let signed = Signed::params(format!(r#";created={};keyid="acme";nonce="2""#, now()));
    assert_eq!(status(&fixture, signed.request(), "").await, 200);
    assert_eq!(fixture.service.reload().unwrap(), Reload::Done);
    assert_eq!(status(&fixture, signed.request(), "").await, 401);
}

/// RFC 9421, B.2.5, but for the time, which is long over.
#[tokio::test]
async fn the_standards_example_is_understood() {
    let config = ", components: [date, '@authority', content-type]";
    let fixture = fixture(config);
    let created = now();
    let input = format!(r#"("date" "@authority" "content-type");created={created};keyid="acme""#);
    let date = "Tue, 20 Apr 2021 02:07:55 GMT";
    let base = format!(
        "\"date\": {date}\n\"@authority\": example.com\n\"content-type\": application/json\n\"@signature-params\": {input}"
    );
    let request = || {
        Request::post("http://example.com/foo?param=Value&Pet=dog")
            .header("date", date)
            .header("content-type", "application/json")
    };
    let good = request()
        .header("signature-input", format!("sig-b25={input}"))
        .header("signature", format!("sig-b25=:{}:", sign(&base)));
    assert_eq!(status(&fixture, good, "{\"hello\": \"world\"}").await, 200);
    // The signature of the standard itself is one of these bytes, and too old.
    let standard = "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@authority\": example.com\n\"content-type\": application/json\n\"@signature-params\": (\"date\" \"@authority\" \"content-type\");created=1618884473;keyid=\"test-shared-secret\"";
    assert_eq!(
        sign(standard),
        "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8="
    );
}

#[tokio::test]
async fn what_is_changed_after_signing_does_not_hold() {
    let fixture = fixture("");
    let moved = |method: &str, uri: &str| {
        Signed::default()
            .request()
            .method(method)
            .uri(format!("http://{uri}"))
    };
    let mut other_key = Signed::default().request();
    let input = format!(
        r#"sig=("@method" "@authority" "@path" "@query");created={};keyid="late""#,
        now()
    );
    other_key
        .headers_mut()
        .unwrap()
        .insert("signature-input", input.parse().unwrap());
    for (what, request) in [
        ("method", moved("DELETE", "shop.example.com/orders?page=1")),
        ("path", moved("GET", "shop.example.com/admin?page=1")),
        ("query", moved("GET", "shop.example.com/orders?page=2")),
        ("no query", moved("GET", "shop.example.com/orders")),
        ("host", moved("GET", "bank.example.com/orders?page=1")),
        ("key", other_key),
    ] {
        assert_eq!(status(&fixture, request, "").await, 401, "{what}");
    }
}

#[tokio::test]
async fn signatures_have_a_time_a_known_key_and_cover_what_matters() {
    let fixture = fixture("");
    for (what, params, expected) in [
        (
            "in time",
            format!(r#";created={};keyid="acme""#, now() - 299),
            200,
        ),
        (
            "clock ahead",
            format!(r#";created={};keyid="acme""#, now() + 25),
            200,
        ),
        (
            "not over",
            format!(r#";created={};expires={};keyid="acme""#, now(), now() + 9),
            200,
        ),
        (
            "this algorithm",
            format!(r#";created={};keyid="acme";alg="hmac-sha256""#, now()),
            200,
        ),
        (
            "too old",
            format!(r#";created={};keyid="acme""#, now() - 302),
            401,
        ),
        (
            "too early",
            format!(r#";created={};keyid="acme""#, now() + 40),
            401,
        ),
        (
            "over",
            format!(r#";created={};expires={};keyid="acme""#, now(), now() - 1),
            401,
        ),
        ("no time", r#";keyid="acme""#.to_owned(), 401),
        ("odd time", r#";created="x";keyid="acme""#.to_owned(), 401),
        ("no key", format!(";created={}", now()), 401),
        (
            "unknown key",
            format!(r#";created={};keyid="eve""#, now()),
            401,
        ),
        (
            "expired key",
            format!(r#";created={};keyid="late""#, now()),
            401,
        ),
        (
            "algorithm",
            format!(r#";created={};keyid="acme";alg="ed25519""#, now()),
            401,
        ),
        (
            "odd nonce",
            format!(r#";created={};keyid="acme";nonce=1"#, now()),
            401,
        ),
    ] {
        let request = Signed::params(params).request();
        assert_eq!(status(&fixture, request, "").await, expected, "{what}");
    }
    let only_method = {
        let input = format!(r#"("@method");created={};keyid="acme""#, now());
        let base = format!("\"@method\": GET\n\"@signature-params\": {input}");
        Request::get("http://shop.example.com/")
            .header("signature-input", format!("sig={input}"))
            .header("signature", format!("sig=:{}:", sign(&base)))
    };
    assert_eq!(status(&fixture, only_method, "").await, 401);
    let whole_target = {
        let input = format!(
            r#"("@method" "@target-uri");created={};keyid="acme""#,
            now()
        );
        let target = "http://shop.example.com/a?b";
        let base =
            format!("\"@method\": GET\n\"@target-uri\": {target}\n\"@signature-params\": {input}");
        Request::get(target)
            .header("signature-input", format!("sig={input}"))
            .header("signature", format!("sig=:{}:", sign(&base)))
    };
    assert_eq!(status(&fixture, whole_target, "").await, 200);
    for (name, value) in [
        ("signature", "sig=:AAAA:"),
        (
            "signature-input",
            "sig=(\"@method\");created=1;keyid=\"acme\"",
        ),
    ] {
        let half = Request::get("http://shop.example.com/").header(name, value);
        assert_eq!(status(&fixture, half, "").await, 401, "{name} alone");
    }
}

#[tokio::test]
async fn the_body_is_what_its_signed_digest_says() {
    let strict = fixture("");
    assert_eq!(
        status(&strict, Signed::post("{}").request(), "{}").await,
        200
    );
    let other = Signed::post("{\"a\":1}");
    assert_eq!(status(&strict, other.request(), "{\"a\":2}").await, 401);
    let uncovered = Signed {
        digest: None,
        ..Signed::post("{}")
    };
    assert_eq!(status(&strict, uncovered.request(), "{}").await, 401);
    let foreign = Signed {
        digest: Some("md5=:AAAA:".to_owned()),
        ..Signed::post("{}")
    };
    assert_eq!(status(&strict, foreign.request(), "{}").await, 401);
    let empty = Signed::post("");
    assert_eq!(status(&strict, empty.request(), "").await, 200);

    // The proxy does not show what the request has.
    let unseen = || Signed::post("{ }").request().header("content-length", "3");
    assert_eq!(status(&strict, unseen(), "").await, 401);
    let lenient = fixture(", allow_unseen_body: true");
    assert_eq!(status(&lenient, unseen(), "").await, 200);
    let seen = Signed::post("{  }");
    assert_eq!(status(&lenient, seen.request(), "{}").await, 401);
}

#[tokio::test]
async fn a_full_memory_is_an_error_and_not_a_way_in() {
    let fixture = fixture(", replay_memory: 1, require_nonce: true");
    let signed = |nonce: &str| {
        Signed::params(format!(
            r#";created={};keyid="acme";nonce="{nonce}""#,
            now()
        ))
        .request()
    };
    assert_eq!(
        status(&fixture, Signed::default().request(), "").await,
        401,
        "no nonce"
    );
    assert_eq!(status(&fixture, signed("1"), "").await, 200);
    assert_eq!(status(&fixture, signed("2"), "").await, 503);
    assert_eq!(status(&fixture, signed("1"), "").await, 401);
    let text = fixture.metrics.render();
    assert!(
        text.contains(r#"attache_auth_replay_memory_full_total{source="partners"} 1"#),
        "{text}"
    );
}

#[test]
fn mistakes_are_told_and_secrets_are_not() {
    let keys = format!("short {}\nacme {SECRET}\nacme {SECRET}\n", &SECRET[..40]);
    let config = CONFIG.replace(
        "keys_file: keys",
        "keys_file: keys, components: ['@status', X-A], max_age: 2h, clock_skew: 10m, replay_memory: 0",
    );
    let text = errors_with(&config, &[("keys", &keys)]);
    for expected in [
        "`keys`: line 1 is not `<keyid> <base64 of 32 bytes or more>`",
        "`keys`: line 3: `acme` is there twice",
        "`@status` is neither",
        "`X-A` is neither",
        "more than 3600 s is too long",
        "more than 300 s is too long",
        "without a memory",
    ] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
    assert!(!text.contains(&SECRET[..8]), "{text}");
    let fixture = fixture("");
    let shown = format!("{:?}", fixture.service);
    assert!(!shown.contains(&SECRET[..8]), "{shown}");
    fs::remove_file(fixture.directory.path().join("keys")).unwrap();
    assert!(fixture.service.reload().is_err());
}

#[tokio::test]
async fn a_decision_on_a_signed_request_is_for_that_request() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("d.log");
    let fixture = Fixture::with_files(
        &format!(
            "
identity:
- name: partners
  hmac: {{ keys_file: keys.txt }}
- {{ name: anyone, anonymous: {{}} }}
rules:
- {{ action: allow, identity: [partners, anyone] }}
upstream_headers: {{ x-user: {{ claim: sub }} }}
decision_cache: {{}}
decision_log: {{ file: {{ path: {} }}, headers: ['*'] }}
",
            log.display()
        ),
        &[("keys.txt", &format!("acme {SECRET}\n"))],
    );
    let signed = Signed::default();
    assert_eq!(status(&fixture, signed.request(), "").await, 200);
    assert_eq!(status(&fixture, signed.request(), "").await, 401);
    // Those without a signature have nothing to do with that.
    for _ in 0..2 {
        assert_eq!(status(&fixture, get("/"), "").await, 200);
    }
    let text = fixture.metrics.render();
    let hit = r#"attache_auth_decision_cache_total{pipeline="default",result="hit"} 1"#;
    assert!(text.contains(hit), "{text}");

    fixture
        .service
        .flush(std::time::Duration::from_secs(10))
        .await;
    let text = fs::read_to_string(log).unwrap();
    let masked = r#""signature":"(masked)","signature-input":"(masked)""#;
    assert!(text.contains(masked), "{text}");
}
