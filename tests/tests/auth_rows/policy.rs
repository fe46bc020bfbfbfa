//! May they: conditions and policies.

use attache_tests::proxies::{ask, send};
use aws_lc_rs::{digest, hmac};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use crate::{
    stage::{Settings, Stage, eventually, upstream, witnessed},
    web::{Web, nothing},
};

const OBJECT: &str = "
package envoy.authz

allow := {
  \"allowed\": true,
  \"headers\": {\"x-one\": \"1\", \"x-list\": [\"a\", \"b\"], \"x-old\": \"new\"},
  \"request_headers_to_remove\": [\"x-gone\"],
  \"response_headers_to_add\": {\"x-answer\": [\"yes\", \"and yes\"]},
  \"query_parameters_to_set\": {\"tenant\": \"acme\"},
  \"query_parameters_to_remove\": [\"debug\"],
  \"dynamic_metadata\": {\"level\": 3, \"tags\": [\"a\"]},
} if input.parsed_path == [\"in\"]

allow := {
  \"allowed\": false,
  \"http_status\": 418,
  \"body\": \"no coffee\",
  \"headers\": {\"x-why\": \"teapot\", \"set-cookie\": [\"a=1\", \"b=2\"]},
} if input.parsed_path == [\"out\"]

allow := input.parsed_query.pass == [\"yes\"] if input.parsed_path == [\"bare\"]

allow := \"yes\" if input.parsed_path == [\"mistake\"]
";

const REGO: &str = "
identity: [{ name: anyone, anonymous: {} }]
policies: [{ name: main, time_limit: 5s, rego: { files: [policy.rego] } }]
";

#[tokio::test]
async fn the_object_that_a_policy_answers_with_takes_effect() {
    let settings = Settings {
        files: &[("policy.rego", OBJECT)],
        ..Settings::default()
    };
    let stage = Stage::with(REGO, settings).await;
    for (proxy, address) in stage.proxies() {
        let sent = [("x-old", "old"), ("x-gone", "1"), ("x-kept", "1")];
        let answer = ask(*address, "GET", "/in?a=1&debug=2&tenant=other", &sent).await;
        assert_eq!(answer.status, 200, "{proxy}");
        for (name, lines) in [
            ("x-one", &["1"][..]),
            ("x-old", &["new"]),
            ("x-kept", &["1"]),
            ("x-gone", &[]),
        ] {
            assert_eq!(upstream(&answer, name), lines, "{name} through {proxy}");
        }
        // All values of a list arrive, in one line or in several.
        assert_eq!(upstream(&answer, "x-list").join(","), "a,b", "{proxy}");
        let line = answer.body.lines().next();
        assert_eq!(line, Some("GET /in?a=1&tenant=acme HTTP/1.1"), "{proxy}");
        assert_eq!(answer.header("x-answer"), Some("yes"), "{proxy}");
        let shown = json!({ "level": 3, "tags": ["a"] });
        assert_eq!(witnessed(&answer), shown, "{proxy}");

        let denied = ask(*address, "GET", "/out", &[]).await;
        assert_eq!(
            (denied.status, &*denied.body),
            (418, "no coffee"),
            "{proxy}"
        );
        assert_eq!(denied.header("x-why"), Some("teapot"), "{proxy}");
        assert_eq!(denied.header("set-cookie"), Some("a=1"), "{proxy}");

        for (path, status) in [
            ("/bare?pass=yes", 200),
            ("/bare?pass=no", 403),
            ("/undefined", 403),
            // No answer of the contract: the check fails.
            ("/mistake", 503),
        ] {
            let answer = ask(*address, "GET", path, &[]).await;
            assert_eq!(answer.status, status, "{path} through {proxy}");
        }
    }
}

#[tokio::test]
async fn a_policy_decides_by_what_the_body_says() {
    let policy = "
package envoy.authz
allow if {
  input.attributes.request.http.method == \"POST\"
  input.parsed_body.amount <= 100
  not input.truncated_body
}
";
    let settings = Settings {
        files: &[("policy.rego", policy)],
        ..Settings::default()
    };
    let stage = Stage::with(REGO, settings).await;
    for (proxy, address) in stage.proxies() {
        for (kind, body, status) in [
            ("application/json", r#"{"amount":100}"#, 200),
            ("application/json", r#"{"amount":101}"#, 403),
            ("application/json; charset=utf-8", r#"{"amount":1}"#, 200),
            ("application/json", "", 403),
            // Nothing that says what it is.
            ("text/plain", r#"{"amount":100}"#, 403),
            ("application/json", r#"{"amount":"#, 503),
        ] {
            let length = body.len().to_string();
            let headers = [
                ("host", "attache.test"),
                ("content-type", kind),
                ("content-length", &length),
            ];
            let answer = send(*address, "POST /pay HTTP/1.1", &headers, body.as_bytes()).await;
            assert_eq!(answer.status, status, "{kind} {body} through {proxy}");
        }
    }
}

#[tokio::test]
async fn conditions_decide_by_request_and_caller() {
    let stage = Stage::new(
        r#"
identity:
- name: keys
  # printf %s demo-key | sha256sum
  api_key: { keys: [{ id: ada, hash: 'sha256:c48a01f49fd0f2cc404bc3cbbc80e91457a3d41bb429a695243de4c61794155c', claims: { tier: gold } }] }
rules:
- { action: deny, when: 'request.headers["x-blocked"] == "yes"', paths: [{ prefix: /strict }] }
- { action: allow, methods: [GET], when: 'identity.claims.tier == "gold" && "eu" in request.parameters["region"]' }
- { action: allow, methods: [POST], when: 'request.body.startsWith("{") && request.cookies["csrf"] == request.headers["x-csrf"]' }
"#,
    )
    .await;
    for (proxy, address) in stage.proxies() {
        for (line, more, body, status) in [
            ("GET /?region=eu", &[][..], "", 200),
            ("GET /?region=us&region=e%75", &[], "", 200),
            ("GET /?region=us", &[], "", 403),
            ("GET /", &[], "", 403),
            // A condition without a value denies where it is to deny.
            ("GET /strict?region=eu", &[], "", 403),
            ("GET /strict?region=eu", &[("x-blocked", "no")], "", 200),
            (
                "POST /",
                &[
                    ("cookie", "csrf=7"),
                    ("x-csrf", "7"),
                    ("content-length", "2"),
                ],
                "{}",
                200,
            ),
            (
                "POST /",
                &[
                    ("cookie", "csrf=7"),
                    ("x-csrf", "8"),
                    ("content-length", "2"),
                ],
                "{}",
                403,
            ),
            (
                "POST /",
                &[
                    ("cookie", "csrf=7"),
                    ("x-csrf", "7"),
                    ("content-length", "2"),
                ],
                "[]",
                403,
            ),
        ] {
            let line = format!("{line} HTTP/1.1");
            let mut headers = vec![("host", "attache.test"), ("x-api-key", "demo-key")];
            headers.extend(more);
            let answer = send(*address, &line, &headers, body.as_bytes()).await;
            assert_eq!(
                answer.status, status,
                "{line} {more:?} {body} through {proxy}"
            );
        }
    }
}

/// A bundle that opens one path.
fn bundle(revision: &str, open: &str) -> Vec<u8> {
    pack(&contents(revision, open))
}

/// The same, signed as `opa sign` does.
fn signed_bundle(revision: &str, open: &str, secret: &str) -> Vec<u8> {
    let mut files = contents(revision, open);
    let digest = |text: &str| {
        let digest = digest::digest(&digest::SHA256, text.as_bytes());
        let digits = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<String>()
    };
    let digests: Vec<_> = files
        .iter()
        .map(|(path, text)| json!({ "name": path, "hash": digest(text), "algorithm": "SHA-256" }))
        .collect();
    let part = |value: Value| BASE64.encode(value.to_string());
    let header = part(json!({ "alg": "HS256" }));
    let token = format!("{header}.{}", part(json!({ "files": digests })));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = BASE64.encode(hmac::sign(&key, token.as_bytes()));
    let signatures = json!({ "signatures": [format!("{token}.{tag}")] });
    files.push((".signatures.json", signatures.to_string()));
    pack(&files)
}

/// Files whose JSON is written as it is signed: sorted and without blanks.
fn contents(revision: &str, open: &str) -> Vec<(&'static str, String)> {
    let policy = "package envoy.authz\nallow if input.parsed_path[0] in data.shop.open\n";
    let manifest = format!(r#"{{"revision":"{revision}","roots":["envoy/authz","shop"]}}"#);
    vec![
        (".manifest", manifest),
        ("envoy/authz/policy.rego", policy.to_owned()),
        ("shop/data.json", format!(r#"{{"open":["{open}"]}}"#)),
    ]
}

fn pack(files: &[(&str, String)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        archive
            .append_data(&mut header, path, text.as_bytes())
            .unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

/// Has the service give this bundle from now on.
fn publish(web: &Web, revision: &'static str, packed: Vec<u8>) {
    web.answers(move |asked| match asked.path() {
        "/shop.tar.gz" => {
            let tag = ("etag", format!("\"{revision}\""));
            (200, vec![tag], packed.clone())
        }
        _ => nothing(),
    });
}

#[tokio::test]
async fn policies_come_as_bundles_and_decisions_tell_their_revision() {
    let web = Web::start().await;
    let publish = |revision, packed| publish(&web, revision, packed);
    publish("r0", bundle("r0", "zero"));
    let stage = Stage::new(&format!(
        "
identity: [{{ name: anyone, anonymous: {{}} }}]
policies:
- {{ name: shop, time_limit: 5s, rego: {{ bundle: {{ url: {}/shop.tar.gz, refresh: 100ms }} }} }}
decision_log: {{ file: {{ path: decisions.log }} }}
",
        web.origin
    ))
    .await;
    let revisions = ["r1", "r2"];
    for ((proxy, address), revision) in stage.proxies().iter().zip(revisions) {
        publish(revision, bundle(revision, revision));
        let path = format!("/{revision}");
        eventually("the next bundle is in use", async || {
            ask(*address, "GET", &path, &[]).await.status == 200
        })
        .await;
        let old = ask(*address, "GET", "/zero", &[]).await;
        assert_eq!(old.status, 403, "{proxy}");

        // What is no bundle changes nothing.
        let before = web.asked("/shop.tar.gz").len();
        publish("broken", b"not a bundle".to_vec());
        eventually("the broken one was fetched", async || {
            web.asked("/shop.tar.gz").len() > before + 1
        })
        .await;
        assert_eq!(
            ask(*address, "GET", &path, &[]).await.status,
            200,
            "{proxy}"
        );

        stage
            .service
            .flush(std::time::Duration::from_secs(10))
            .await;
        let log = std::fs::read_to_string(stage.folder.path().join("decisions.log")).unwrap();
        let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert_eq!(last["policy_revision"], *revision, "{proxy}");
    }
}

#[tokio::test]
async fn only_a_bundle_with_a_good_signature_takes_the_place_of_the_last() {
    let web = Web::start().await;
    publish(&web, "r0", signed_bundle("r0", "zero", "secret"));
    let auth = format!(
        "
identity: [{{ name: anyone, anonymous: {{}} }}]
policies:
- name: shop
  time_limit: 5s
  rego:
    bundle:
      url: {}/shop.tar.gz
      refresh: 100ms
      signature: {{ keys: [{{ algorithm: HS256, key_file: secret }}] }}
",
        web.origin
    );
    let settings = Settings {
        files: &[("secret", "secret")],
        ..Settings::default()
    };
    let stage = Stage::with(&auth, settings).await;
    for ((proxy, address), revision) in stage.proxies().iter().zip(["r1", "r2"]) {
        publish(&web, revision, signed_bundle(revision, revision, "secret"));
        let path = format!("/{revision}");
        eventually("the next bundle is in use", async || {
            ask(*address, "GET", &path, &[]).await.status == 200
        })
        .await;

        for (bad, packed) in [
            ("forged", signed_bundle("forged", "stolen", "guessed")),
            ("unsigned", bundle("unsigned", "stolen")),
        ] {
            let before = web.asked("/shop.tar.gz").len();
            publish(&web, bad, packed);
            eventually("the bad one was fetched", async || {
                web.asked("/shop.tar.gz").len() > before + 1
            })
            .await;
            let stolen = ask(*address, "GET", "/stolen", &[]).await;
            assert_eq!(stolen.status, 403, "{bad} through {proxy}");
            let kept = ask(*address, "GET", &path, &[]).await;
            assert_eq!(kept.status, 200, "{bad} through {proxy}");
        }
    }
}

#[tokio::test]
async fn a_candidate_is_asked_beside_the_policy_and_differences_are_counted() {
    let stage = Stage::new(
        r#"
identity: [{ name: anyone, anonymous: {} }]
policies:
- name: main
  time_limit: 5s
  rego:
    inline: |
      package envoy.authz
      allow if input.attributes.request.http.method == "GET"
  candidate:
    rego:
      inline: |
        package envoy.authz
        allow if input.parsed_path == ["next"]
"#,
    )
    .await;
    let counted = |result: &str| {
        stage.counted(&format!(
            "attache_auth_candidate_decisions_total{{policy=\"main\",result=\"{result}\"}}"
        ))
    };
    for (proxy, address) in stage.proxies() {
        let before = (counted("same"), counted("different"));
        for (line, status) in [
            ("GET /next", 200),
            ("GET /now", 200),
            ("POST /next", 403),
            ("POST /now", 403),
        ] {
            let (method, path) = line.split_once(' ').unwrap();
            let answer = ask(*address, method, path, &[]).await;
            assert_eq!(answer.status, status, "{line} through {proxy}");
        }
        eventually("all four were compared", async || {
            (counted("same"), counted("different")) == (before.0 + 2, before.1 + 2)
        })
        .await;
    }
}
