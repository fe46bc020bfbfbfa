//! What upstream, client and proxy are told.

use attache_tests::proxies::ask;
use serde_json::json;

use crate::{
    stage::{Settings, Stage, upstream, witnessed},
    tokens::{Signer, now, verified},
    web::{Web, nothing, ok},
};

const ISSUER: &str = "https://issuer";
const USERS: &str = "
identity:
- name: users
  jwt: { issuer: https://issuer, audiences: [shop], jwks_file: jwks.json }
- name: anyone
  anonymous: {}
";

/// A stage that knows the tokens of this signer.
async fn stage(signer: &Signer, more: &str) -> Stage {
    let jwks = signer.jwks();
    let settings = Settings {
        files: &[("jwks.json", &jwks)],
        ..Settings::default()
    };
    Stage::with(&format!("{USERS}{more}"), settings).await
}

#[tokio::test]
async fn what_is_looked_up_about_the_caller_decides_and_is_told() {
    let web = Web::start().await;
    web.answers(|asked| match asked.path() {
        "/users/alice" => ok(json!({ "plan": "gold", "limits": { "seats": 7 } }).to_string()),
        "/users/b%2Fob" => ok(json!({ "plan": "free" }).to_string()),
        "/users/broken" => (500, Vec::new(), Vec::new()),
        _ => nothing(),
    });
    let signer = Signer::new("a");
    let stage = stage(
        &signer,
        &format!(
            "
metadata:
- {{ name: account, http: '{}', path: '/users/{{identity.claims.sub}}', when: 'identity.source == \"users\"' }}
rules:
- {{ action: allow, when: 'metadata.account.plan == \"gold\"' }}
upstream_headers: {{ x-seats: {{ expression: 'metadata.account.limits.seats' }} }}
",
            web.origin
        ),
    )
    .await;
    for (proxy, address) in stage.proxies() {
        for (user, status) in [
            ("alice", 200),
            ("b/ob", 403),
            ("carol", 403),
            ("broken", 503),
        ] {
            let bearer = signer.bearer(ISSUER, json!({ "sub": user }));
            for _ in 0..2 {
                let answer = ask(*address, "GET", "/", &[("authorization", &bearer)]).await;
                assert_eq!(answer.status, status, "{user} through {proxy}");
                if status == 200 {
                    assert_eq!(upstream(&answer, "x-seats"), ["7"], "{proxy}");
                }
            }
        }
        assert_eq!(ask(*address, "GET", "/", &[]).await.status, 401, "{proxy}");
    }
    assert_eq!(web.asked("/users/alice").len(), 1, "documents are kept");
}

#[tokio::test]
async fn claims_and_expressions_are_told_to_upstream_client_and_later_filters() {
    let signer = Signer::new("a");
    let stage = stage(
        &signer,
        "
rules: [{ action: allow, identity: [users, anyone] }]
upstream_headers:
  x-user: { claim: sub }
  x-groups: { claim: groups }
  x-source: { source: {} }
  x-static: { value: 'yes' }
  x-what: { expression: 'request.method + \" by \" + identity.claims.sub' }
client_headers: { x-served-by: { value: shop }, x-you: { claim: sub } }
dynamic_metadata:
  user: { claim: sub }
  groups: { claim: groups }
  limits: { value: { seats: 7 } }
  first: { expression: 'identity.claims.groups[0]' }
",
    )
    .await;
    let claims = json!({ "sub": "alice", "groups": ["a", "b"] });
    let bearer = signer.bearer(ISSUER, claims);
    for (proxy, address) in stage.proxies() {
        let spoofed = [
            ("authorization", &*bearer),
            ("x-user", "root"),
            ("x-what", "root"),
        ];
        let answer = ask(*address, "GET", "/", &spoofed).await;
        assert_eq!(answer.status, 200, "{proxy}");
        for (name, value) in [
            ("x-user", "alice"),
            ("x-groups", "a,b"),
            ("x-source", "users"),
            ("x-static", "yes"),
            ("x-what", "GET by alice"),
        ] {
            assert_eq!(upstream(&answer, name), [value], "{name} through {proxy}");
        }
        assert_eq!(answer.header("x-served-by"), Some("shop"), "{proxy}");
        assert_eq!(answer.header("x-you"), Some("alice"), "{proxy}");
        assert_eq!(
            witnessed(&answer),
            json!({ "user": "alice", "groups": ["a", "b"], "limits": { "seats": 7 }, "first": "a" }),
            "{proxy}"
        );

        // Of whom nothing is known, nothing is told; what was made up does not get through.
        let answer = ask(*address, "GET", "/", &spoofed[1..]).await;
        assert_eq!(upstream(&answer, "x-source"), ["anyone"], "{proxy}");
        assert!(!answer.body.contains("root"), "{proxy}: {}", answer.body);
        assert_eq!(answer.header("x-you"), None, "{proxy}");
        assert_eq!(
            witnessed(&answer),
            json!({ "limits": { "seats": 7 } }),
            "{proxy}"
        );
    }
}

#[tokio::test]
async fn the_upstream_can_verify_who_called_with_keys_that_it_gets_through_the_proxy() {
    let signer = Signer::new("a");
    let jwks = signer.jwks();
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let settings = Settings {
        files: &[("jwks.json", &jwks), ("wristband.pem", &key)],
        ..Settings::default()
    };
    let auth = format!(
        "{USERS}
rules: [{{ action: allow, identity: [users, anyone] }}]
wristband: {{ issuer: https://edge.test, audience: upstream, ttl: 60s, keys: [wristband.pem] }}
"
    );
    let stage = Stage::with(&auth, settings).await;
    let bearer = signer.bearer(ISSUER, json!({ "sub": "alice", "groups": ["a"] }));
    for (proxy, address) in stage.proxies() {
        let keys = ask(*address, "GET", "/.well-known/wristband/jwks.json", &[]).await;
        assert_eq!(keys.status, 200, "{proxy}");
        let kind = Some("application/jwk-set+json");
        assert_eq!(keys.header("content-type"), kind, "{proxy}");

        let sent = [("authorization", &*bearer), ("x-wristband", "forged")];
        let answer = ask(*address, "GET", "/", &sent).await;
        assert_eq!(answer.status, 200, "{proxy}");
        let [token] = upstream(&answer, "x-wristband")[..] else {
            panic!("{proxy}: {}", answer.body);
        };
        let claims = verified(token, &keys.body).unwrap();
        for (name, expected) in [
            ("iss", json!("https://edge.test")),
            ("aud", json!("upstream")),
            ("sub", json!("alice")),
            ("groups", json!(["a"])),
        ] {
            assert_eq!(claims[name], expected, "{name} through {proxy}");
        }
        let left = claims["exp"].as_u64().unwrap() - now();
        assert!((1..=60).contains(&left), "{proxy}: {left}");

        let nobody = ask(*address, "GET", "/", &sent[1..]).await;
        assert_eq!(nobody.status, 200, "{proxy}");
        assert_eq!(upstream(&nobody, "x-wristband"), [""; 0], "{proxy}");
    }
}

#[tokio::test]
async fn who_is_not_let_in_gets_an_answer_for_the_reason() {
    let signer = Signer::new("a");
    let stage = stage(
        &signer,
        "
pipelines:
- name: pages
  paths: [{ prefix: /pages }]
  rules: [{ action: allow, claims: { groups: staff } }]
  unauthenticated: { redirect: 'https://login.test/?to={request.path}' }
  denied: { status: 303, redirect: 'https://shop.test/upgrade' }
rules:
- { action: deny, paths: [{ prefix: /gone }], response: { status: 410, body: gone, headers: { x-why: closed } } }
- { action: allow, claims: { groups: staff } }
unauthenticated: { status: 401, body: '{\"error\":\"who\"}', headers: { content-type: application/json } }
denied: { status: 404, body: nothing here }
",
    )
    .await;
    let user = signer.bearer(ISSUER, json!({ "sub": "alice", "groups": ["users"] }));
    let user = [("authorization", &*user)];
    let staff = signer.bearer(ISSUER, json!({ "sub": "bob", "groups": ["staff"] }));
    let staff = [("authorization", &*staff)];
    for (proxy, address) in stage.proxies() {
        for path in ["/", "/pages/a"] {
            assert_eq!(
                ask(*address, "GET", path, &staff).await.status,
                200,
                "{proxy}"
            );
        }
        for (headers, path, status, header, value, body) in [
            (
                &[][..],
                "/",
                401,
                "content-type",
                Some("application/json"),
                "{\"error\":\"who\"}",
            ),
            (&user, "/", 404, "location", None, "nothing here"),
            (&user, "/gone", 410, "x-why", Some("closed"), "gone"),
            (
                &[],
                "/pages/a%20b",
                302,
                "location",
                Some("https://login.test/?to=%2Fpages%2Fa%20b"),
                "",
            ),
            (
                &user,
                "/pages/a",
                303,
                "location",
                Some("https://shop.test/upgrade"),
                "",
            ),
        ] {
            let answer = ask(*address, "GET", path, headers).await;
            let case = format!("{path} {headers:?} through {proxy}");
            assert_eq!((answer.status, &*answer.body), (status, body), "{case}");
            assert_eq!(answer.header(header), value, "{case}");
        }
    }
}
