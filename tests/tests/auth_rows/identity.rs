//! Who is calling.

use attache_tests::{
    proxies::ask,
    tls::{Tls, through},
};
use serde_json::json;

use crate::{
    stage::{Settings, Stage, eventually, upstream},
    tokens::Signer,
    web::{Web, nothing, ok},
};

#[tokio::test]
async fn keys_of_issuers_are_discovered_and_taken_over_when_they_change() {
    let web = Web::start().await;
    let issuer = web.origin.clone();
    let publish = |signer: &Signer| {
        let described = json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/keys") });
        let jwks = signer.jwks();
        web.answers(move |asked| match asked.path() {
            "/.well-known/openid-configuration" => ok(described.to_string()),
            "/keys" => ok(jwks.clone()),
            _ => nothing(),
        });
    };
    let mut signer = Signer::new("first");
    publish(&signer);
    let stage = Stage::new(&format!(
        "
identity:
- name: users
  jwt:
    issuer: {issuer}
    audiences: [shop]
    discovery: {{}}
    refresh: {{ unknown_key_interval: 100ms, unknown_key_wait: 10s }}
rules: [{{ action: allow }}]
upstream_headers: {{ x-user: {{ claim: sub }} }}
"
    ))
    .await;
    for (proxy, address) in stage.proxies() {
        let get =
            async |bearer: String| ask(*address, "GET", "/", &[("authorization", &bearer)]).await;
        let old = signer.bearer(&issuer, json!({ "sub": "ada" }));
        let answer = get(old.clone()).await;
        assert_eq!(answer.status, 200, "{proxy}");
        assert_eq!(upstream(&answer, "x-user"), ["ada"], "{proxy}");
        let elsewhere = signer.bearer(&issuer, json!({ "sub": "ada", "aud": "other" }));
        assert_eq!(get(elsewhere).await.status, 401, "{proxy}");

        // A token of a key that nobody knows yet has the keys fetched; not at once when they
        // were fetched just now.
        signer = Signer::new(&format!("after {proxy}"));
        publish(&signer);
        let bearer = signer.bearer(&issuer, json!({ "sub": "bob" }));
        eventually("the next key is known", async || {
            let answer = get(bearer.clone()).await;
            upstream(&answer, "x-user") == ["bob"]
        })
        .await;
        assert_eq!(get(old).await.status, 401, "{proxy}: its key is gone");
    }
}

#[tokio::test]
async fn issuers_are_asked_about_opaque_tokens_once() {
    let web = Web::start().await;
    web.answers(|asked| {
        let active = asked.body.contains("good");
        ok(json!({ "active": active, "sub": "partner", "scope": "read" }).to_string())
    });
    let stage = Stage::with(
        &format!(
            "
identity:
- name: partners
  introspection:
    endpoint: {}/introspect
    client_id: shop
    client_secret: {{ file: secret.txt }}
rules: [{{ action: allow }}]
upstream_headers: {{ x-user: {{ claim: sub }}, x-scope: {{ claim: scope }} }}
",
            web.origin
        ),
        Settings {
            files: &[("secret.txt", "hushed\n")],
            ..Settings::default()
        },
    )
    .await;
    for (proxy, address) in stage.proxies() {
        let before = web.asked("/introspect").len();
        for (token, expected) in [("good", 200), ("bad", 401)] {
            let bearer = format!("Bearer {token}-{proxy}");
            for _ in 0..2 {
                let answer = ask(*address, "GET", "/", &[("authorization", &bearer)]).await;
                assert_eq!(answer.status, expected, "{token} through {proxy}");
                if expected == 200 {
                    assert_eq!(upstream(&answer, "x-user"), ["partner"], "{proxy}");
                    assert_eq!(upstream(&answer, "x-scope"), ["read"], "{proxy}");
                    assert!(!answer.body.contains("good"), "{proxy}: {}", answer.body);
                }
            }
        }
        let asked = web.asked("/introspect").len() - before;
        assert_eq!(asked, 2, "{proxy}: each token once");
    }
}

const CERTIFICATES: &str = "
identity:
- name: mesh
  mtls: { accept: [{ spiffe: { trust_domain: attache.test, paths: [{ prefix: /client }] } }], ca_file: <tls>/ca.pem }
- name: batch
  mtls: { accept: [{ subject: { exact: CN=subject } }] }
- name: elsewhere
  mtls: { accept: [{ spiffe: { trust_domain: other.test } }, { dns: '*.other.test' }] }
pipelines:
- name: elsewhere
  paths: [{ prefix: /elsewhere }]
  identity: [elsewhere]
  rules: [{ action: allow }]
rules: [{ action: allow }]
upstream_headers: { x-source: { source: {} }, x-user: { claim: sub }, x-domain: { claim: trust_domain } }
";
const MUTUAL: &str = ", tls: { certificate: <tls>/server.pem, private_key: <tls>/server.key, client_ca: <tls>/ca.pem }";

#[tokio::test]
async fn callers_are_known_by_the_certificate_of_their_connection() {
    let settings = Settings {
        listener: MUTUAL,
        ..Settings::default()
    };
    let stage = Stage::with(CERTIFICATES, settings).await;
    for (proxy, address) in stage.proxies() {
        let get = async |identity: &str, path: &str| {
            let tls = Tls {
                identity: Some(identity.to_owned()),
                sni: Some("server.test".to_owned()),
            };
            let way = through(*address, &tls, "http/1.1").await.unwrap();
            ask(way, "GET", path, &[]).await
        };
        let named = get("named", "/").await;
        assert_eq!(named.status, 200, "{proxy}");
        assert_eq!(upstream(&named, "x-source"), ["mesh"], "{proxy}");
        let id = "spiffe://attache.test/client";
        assert_eq!(upstream(&named, "x-user"), [id], "{proxy}");
        assert_eq!(upstream(&named, "x-domain"), ["attache.test"], "{proxy}");

        let subject = get("subject", "/").await;
        assert_eq!(subject.status, 200, "{proxy}");
        assert_eq!(upstream(&subject, "x-source"), ["batch"], "{proxy}");
        assert_eq!(upstream(&subject, "x-user"), ["CN=subject"], "{proxy}");

        for identity in ["named", "subject"] {
            let refused = get(identity, "/elsewhere").await;
            assert_eq!(refused.status, 401, "{identity} through {proxy}");
        }
    }
}

#[tokio::test]
async fn callers_are_known_by_the_certificate_that_the_proxy_tells_of_in_a_header() {
    let auth = "
identity:
- name: forwarded
  mtls:
    accept: [{ spiffe: { trust_domain: attache.test } }]
    x_forwarded_client_cert: { proxy_strips_it_from_clients: true }
rules: [{ action: allow }]
upstream_headers: { x-user: { claim: sub } }
";
    let told = format!(
        "{MUTUAL}, forward_client_cert_details: SANITIZE_SET, set_current_client_cert_details: {{ uri: true }}"
    );
    let settings = Settings {
        listener: &told,
        ..Settings::default()
    };
    let stage = Stage::with(auth, settings).await;
    let forged = [("x-forwarded-client-cert", "URI=spiffe://attache.test/root")];
    for (proxy, address) in stage.proxies() {
        for headers in [&[][..], &forged] {
            let tls = Tls {
                identity: Some("named".to_owned()),
                sni: None,
            };
            let way = through(*address, &tls, "http/1.1").await.unwrap();
            let answer = ask(way, "GET", "/", headers).await;
            assert_eq!(answer.status, 200, "{headers:?} through {proxy}");
            let user = upstream(&answer, "x-user");
            assert_eq!(user, ["spiffe://attache.test/client"], "{proxy}");
        }
    }
}

#[tokio::test]
async fn upstreams_are_told_of_certificates_as_the_listener_says() {
    let auth = "
identity: [{ name: anyone, anonymous: {} }]
rules: [{ action: allow, identity: [anyone] }]
";
    let all = "{ subject: true, cert: true, dns: true, uri: true }";
    for how in [
        "SANITIZE",
        "FORWARD_ONLY",
        "APPEND_FORWARD",
        "SANITIZE_SET",
        "ALWAYS_FORWARD_ONLY",
    ] {
        let listener = format!(
            "{MUTUAL}, forward_client_cert_details: {how}, set_current_client_cert_details: {all}"
        );
        let settings = Settings {
            listener: &listener,
            ..Settings::default()
        };
        let stage = Stage::with(auth, settings).await;
        let claim = [("x-forwarded-client-cert", "URI=spiffe://attache.test/root")];
        for identity in ["named", "subject"] {
            let mut told = Vec::new();
            for (_, address) in stage.proxies() {
                let tls = Tls {
                    identity: Some(identity.to_owned()),
                    sni: Some("server.test".to_owned()),
                };
                let way = through(*address, &tls, "http/1.1").await.unwrap();
                let answer = ask(way, "GET", "/", &claim).await;
                assert_eq!(answer.status, 200, "{how}");
                told.push(upstream(&answer, "x-forwarded-client-cert").join(" "));
            }
            assert_eq!(told[0], told[1], "{how}, {identity}: {:?}", stage.proxies());
            let writes = ["APPEND_FORWARD", "SANITIZE_SET"].contains(&how);
            assert_eq!(told[0].contains("Hash="), writes, "{how}: {}", told[0]);
        }
    }
}

#[tokio::test]
async fn attributes_tell_of_the_certificates_of_both_sides() {
    let auth = "
identity: [{ name: anyone, anonymous: {} }]
rules: [{ action: allow, identity: [anyone] }]
";
    let names = [
        "tls_version",
        "mtls",
        "subject_peer_certificate",
        "uri_san_peer_certificate",
        "dns_san_peer_certificate",
        "sha256_peer_certificate_digest",
        "subject_local_certificate",
        "uri_san_local_certificate",
        "dns_san_local_certificate",
    ];
    let headers = names.map(|name| {
        format!("{{ header: {{ key: x-{name}, value: '%CEL(connection.{name})%' }} }}")
    });
    let routes = format!(
        "[{{ match: {{ prefix: / }}, route: {{ cluster: web }}, request_headers_to_add: [{}] }}]",
        headers.join(", ")
    );
    let settings = Settings {
        listener: MUTUAL,
        routes: &routes,
        ..Settings::default()
    };
    let stage = Stage::with(auth, settings).await;
    for identity in ["named", "subject"] {
        let mut told = Vec::new();
        for (_, address) in stage.proxies() {
            let tls = Tls {
                identity: Some(identity.to_owned()),
                sni: Some("server.test".to_owned()),
            };
            let way = through(*address, &tls, "http/1.1").await.unwrap();
            let answer = ask(way, "GET", "/", &[]).await;
            assert_eq!(answer.status, 200);
            let header = |name| upstream(&answer, &format!("x-{name}")).join(" ");
            told.push(names.map(|name| (name, header(name))));
        }
        assert_eq!(told[0], told[1], "{identity}");
        let subject = &told[0][2].1;
        assert!(subject.contains(&format!("CN={identity}")), "{told:?}");
    }
}

// Of "secret".
const USERS: &str = "grace:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";

#[tokio::test]
async fn the_first_source_that_knows_the_caller_vouches_for_it() {
    let signer = Signer::new("a");
    let jwks = signer.jwks();
    let stage = Stage::with(
        "
identity:
- name: users
  jwt: { issuer: https://issuer, audiences: [shop], jwks_file: jwks.json }
- name: staff
  basic: { htpasswd_file: users }
- name: keys
  # printf %s demo-key | sha256sum
  api_key: { keys: [{ id: ada, hash: 'sha256:c48a01f49fd0f2cc404bc3cbbc80e91457a3d41bb429a695243de4c61794155c' }] }
- name: anyone
  anonymous: {}
rules: [{ action: allow, identity: [users, staff, keys, anyone] }]
upstream_headers: { x-source: { source: {} }, x-user: { claim: sub } }
",
        Settings {
            files: &[("jwks.json", &jwks), ("users", USERS)],
            ..Settings::default()
        },
    )
    .await;
    let token = signer.bearer("https://issuer", json!({ "sub": "alice" }));
    let forged = Signer::new("a").bearer("https://issuer", json!({ "sub": "alice" }));
    let basic = "Basic Z3JhY2U6c2VjcmV0";
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let expected: [(Headers<'_>, Option<[&str; 2]>); 8] = [
        (&[("authorization", &token)], Some(["users", "alice"])),
        (&[("authorization", basic)], Some(["staff", "grace"])),
        (&[("x-api-key", "demo-key")], Some(["keys", "ada"])),
        (
            &[("authorization", &token), ("x-api-key", "demo-key")],
            Some(["users", "alice"]),
        ),
        // What does not hold is in nobody's way but the anonymous.
        (
            &[("authorization", &forged), ("x-api-key", "demo-key")],
            Some(["keys", "ada"]),
        ),
        (&[("authorization", &forged)], None),
        (&[("x-api-key", "x")], None),
        (&[], Some(["anyone", ""])),
    ];
    for (proxy, address) in stage.proxies() {
        for (headers, expected) in expected {
            let answer = ask(*address, "GET", "/", headers).await;
            let case = format!("{headers:?} through {proxy}");
            let Some([source, user]) = expected else {
                assert_eq!(answer.status, 401, "{case}");
                continue;
            };
            assert_eq!(answer.status, 200, "{case}");
            assert_eq!(upstream(&answer, "x-source"), [source], "{case}");
            let users: Vec<&str> = Some(user).into_iter().filter(|u| !u.is_empty()).collect();
            assert_eq!(upstream(&answer, "x-user"), users, "{case}");
        }
    }
}
