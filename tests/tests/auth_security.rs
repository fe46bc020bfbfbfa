//! What the auth service decided on, and what the origin got: through real Envoy and through our
//! proxy no request is allowed as one thing and served as another.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use attache_ext_authz::{policy::AuthService, server as ext_authz_server};
use attache_service::{Host, Metrics, Shutdown};
use attache_tests::proxies::{Proxies, ask, send};
use aws_lc_rs::{digest, hmac};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;

/// Both proxies with an auth service of this configuration.
async fn proxies(folder: &Path, auth: &str, listener: &str) -> Proxies {
    std::fs::write(folder.join("auth.yaml"), auth).unwrap();
    let service = AuthService::load(&folder.join("auth.yaml"), &Metrics::default());
    let service = service.unwrap_or_else(|errors| panic!("{errors}"));
    let host = Host::new(ext_authz_server::routes(service)).workers(1);
    let bound = host.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = bound.address().to_string();
    tokio::spawn(bound.serve(Shutdown::new()));
    let filter = "{ ext_authz: { transport_api_version: V3, include_peer_certificate: true, \
                  with_request_body: { max_request_bytes: 65536, pack_as_bytes: true }, \
                  grpc_service: { envoy_grpc: { cluster_name: service }, timeout: 10s } } }";
    Proxies::start(filter, listener, &address).await
}

/// Whether some application could take this target for `/admin`: whatever it decodes, cuts off
/// or follows.
fn may_be_read_as_admin(target: &str) -> bool {
    let mut text = target.to_owned();
    if let Some((_, rest)) = text.split_once("://") {
        text = rest
            .find('/')
            .map_or("/", |slash| &rest[slash..])
            .to_owned();
    }
    let mut readings = vec![text.clone()];
    for _ in 0..3 {
        let cut = text.split(['?', '#']).next().unwrap_or_default().to_owned();
        text = percent_decode_str(&cut).decode_utf8_lossy().into_owned();
        readings.push(text.clone());
    }
    readings.iter().any(|text| {
        let text = text.split(['?', '#', '\0']).next().unwrap_or_default();
        let mut segments: Vec<&str> = Vec::new();
        for segment in text.split(['/', '\\']) {
            match segment.split(';').next().unwrap_or_default() {
                "" | "." => {}
                ".." => drop(segments.pop()),
                name => segments.push(name),
            }
        }
        segments.first() == Some(&"admin")
    })
}

#[test]
fn the_careless_application_is_careless() {
    for target in [
        "/admin",
        "//admin",
        "/%61dmin",
        "/x/..%2fadmin",
        "/x/..;/admin",
        "/%2561dmin",
        "/x\\..\\admin",
        "/admin%00.png",
        "http://h/admin",
        "/./admin;x?y",
    ] {
        assert!(may_be_read_as_admin(target), "{target}");
    }
    for target in ["/", "/x", "/administrators", "/x?/admin", "/x/admin"] {
        assert!(!may_be_read_as_admin(target), "{target}");
    }
}

const PATHS: &str = "
identity: [{ name: anyone, anonymous: {} }]
rules:
- { action: deny, paths: [{ prefix: /admin }] }
- { action: allow, identity: [anyone] }
";

#[tokio::test]
async fn no_spelling_of_a_denied_path_reaches_the_origin() {
    let folder = tempfile::tempdir().unwrap();
    for listener in ["", ", normalize_path: false", ", merge_slashes: true"] {
        let proxies = proxies(folder.path(), PATHS, listener).await;
        for (proxy, address) in &proxies.addresses {
            for target in [
                "/admin",
                "/admin/",
                "/admin?x",
                "/admin#x",
                "/admin#/../public",
                "/%61dmin",
                "/%61%64%6d%69%6e",
                "//admin",
                "///admin",
                "/.//admin",
                "/./admin",
                "/public/../admin",
                "/public/%2e%2e/admin",
                "/public/.%2e/admin",
                "/public/%2E%2E/admin",
                "/public//../admin",
                "/public/..//admin",
                "/public/..;/admin",
                "/public/..;a=b/admin",
                "/public/.;/../admin",
                "/admin;x",
                "/admin;x/y",
                "/admin%3bx",
                "/admin%00",
                "/admin%00.png",
                "/%00/../admin",
                "/admin%0a",
                "/admin%0d%0ax",
                "/admin%09",
                "/\\admin",
                "/public\\..\\admin",
                "/public/..%5cadmin",
                "/public%2f..%2fadmin",
                "/%2fadmin",
                "/%2Fadmin",
                "/admin%2fusers",
                "/%2561dmin",
                "/%252fadmin",
                "/public/%252e%252e/admin",
                "/public/..%c0%afadmin",
                "/public/%c0%ae%c0%ae/admin",
                "/%61%ffdmin",
                "/public/%e0%80%af../admin",
                "/%",
                "/%6",
                "/%zzadmin",
                "http://attache.test/admin",
                "http://other.test/admin",
                "HTTP://attache.test/%61dmin",
                "http://attache.test//admin",
                "http://attache.test/x/../admin",
            ] {
                let headers = [("host", "attache.test")];
                let line = format!("GET {target} HTTP/1.1");
                let answer = send(*address, &line, &headers, b"").await;
                let case = format!("{target} through {proxy}{listener}");
                if answer.status == 200 {
                    let got = answer.body.split(' ').nth(1).unwrap_or_default();
                    assert!(!may_be_read_as_admin(got), "{case}: the origin got {got}");
                } else {
                    assert!(
                        (400..500).contains(&answer.status),
                        "{case}: {}",
                        answer.status
                    );
                }
            }
            for target in ["/", "/public", "/administrators?/admin", "/x/admin"] {
                let answer = ask(*address, "GET", target, &[]).await;
                assert_eq!(answer.status, 200, "{target} through {proxy}{listener}");
            }
        }
    }
}

const CREDENTIALS: &str = "
identity:
- name: keys
  # printf %s demo-key | sha256sum
  api_key:
    from: [{ header: x-api-key }, { query: key }, { cookie: key }]
    keys: [{ id: ada, hash: 'sha256:c48a01f49fd0f2cc404bc3cbbc80e91457a3d41bb429a695243de4c61794155c' }]
- name: staff
  basic: { htpasswd_file: users }
- name: mesh
  mtls: { accept: [{ any: {} }] }
- name: anyone
  anonymous: {}
rules:
- { action: allow, paths: [{ prefix: /open }], identity: [anyone] }
- { action: allow, hosts: [attache.test] }
upstream_headers: { x-user: { claim: sub } }
";
// Of "secret".
const USERS: &str = "grace:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";
const GRACE: &str = "Basic Z3JhY2U6c2VjcmV0";

#[tokio::test]
async fn credentials_said_twice_are_nobodys() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("users"), USERS).unwrap();
    let proxies = proxies(folder.path(), CREDENTIALS, "").await;
    for (proxy, address) in &proxies.addresses {
        let good = [("x-api-key", "demo-key")];
        assert_eq!(
            ask(*address, "GET", "/", &good).await.status,
            200,
            "{proxy}"
        );
        assert_eq!(
            ask(*address, "GET", "/open", &[]).await.status,
            200,
            "{proxy}"
        );
        for path in ["/", "/open"] {
            for headers in [
                &[("x-api-key", "demo-key"), ("x-api-key", "x")][..],
                &[("x-api-key", "x"), ("X-Api-Key", "demo-key")],
                &[("x-api-key", "demo-key,x")],
                &[("cookie", "key=demo-key"), ("cookie", "key=x")],
                &[("cookie", "key=x; key=demo-key")],
                &[("authorization", GRACE), ("authorization", "Basic x")],
                &[("authorization", "Bearer x"), ("authorization", GRACE)],
                &[("authorization", "Basic x"), ("authorization", GRACE)],
            ] {
                let answer = ask(*address, "GET", path, headers).await;
                let expected: &[u16] = match headers {
                    // Of two schemes none is a credential of any source.
                    [("authorization", "Bearer x"), _] if path == "/open" => &[200],
                    _ => &[400, 401],
                };
                assert!(
                    expected.contains(&answer.status),
                    "{path} {headers:?} through {proxy}: {}",
                    answer.status
                );
                assert!(
                    !answer.body.contains("x-user:"),
                    "{headers:?} through {proxy}"
                );
            }
            for query in ["?key=demo-key&key=x", "?key=x&%6bey=demo-key"] {
                let answer = ask(*address, "GET", &format!("{path}{query}"), &[]).await;
                assert_eq!(answer.status, 401, "{path}{query} through {proxy}");
            }
        }
    }
}

#[tokio::test]
async fn the_origin_gets_the_callers_name_and_not_the_callers_secrets() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("users"), USERS).unwrap();
    let proxies = proxies(folder.path(), CREDENTIALS, "").await;
    for (proxy, address) in &proxies.addresses {
        for (path, headers) in [
            ("/?a=1", &[("x-api-key", "demo-key")][..]),
            ("/?key=demo-key&a=1", &[]),
            ("/?a=1&%6bey=demo-key", &[]),
            ("/?a=1", &[("cookie", "b=2; key=demo-key; c=3")]),
            (
                "/?a=1",
                &[("cookie", "b=2; c=3"), ("cookie", "key=demo-key")],
            ),
            (
                "/?key=demo-key&a=1",
                &[("authorization", "Bearer forged"), ("x-user", "root")],
            ),
        ] {
            let case = format!("{path} {headers:?} through {proxy}");
            let answer = ask(*address, "GET", path, headers).await;
            assert_eq!(answer.status, 200, "{case}");
            let got = &answer.body;
            assert!(got.starts_with("GET /?a=1 HTTP/1.1\n"), "{case}: {got}");
            assert!(got.contains("x-user: ada\n"), "{case}: {got}");
            for secret in ["demo-key", "forged", "root"] {
                assert!(!got.contains(secret), "{case}: {got}");
            }
            if headers.iter().any(|(name, _)| *name == "cookie") {
                assert!(got.contains("cookie: b=2; c=3\n"), "{case}: {got}");
            }
        }
        let answer = ask(*address, "GET", "/", &[("authorization", GRACE)]).await;
        assert_eq!(answer.status, 200, "{proxy}");
        assert!(
            answer.body.contains("x-user: grace\n"),
            "{proxy}: {}",
            answer.body
        );
        assert!(
            !answer.body.contains("authorization"),
            "{proxy}: {}",
            answer.body
        );
    }
}

#[tokio::test]
async fn names_and_hosts_that_the_client_makes_up_count_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("users"), USERS).unwrap();
    let proxies = proxies(folder.path(), CREDENTIALS, "").await;
    for (proxy, address) in &proxies.addresses {
        for spoof in ["x-user", "X-User", "X-USER"] {
            let answer = ask(*address, "GET", "/open", &[(spoof, "root"), (spoof, "ada")]).await;
            assert_eq!(answer.status, 200, "{proxy}");
            assert!(!answer.body.contains("root"), "{proxy}: {}", answer.body);
        }
        let forwarded = [(
            "x-forwarded-client-cert",
            "Hash=00;URI=spiffe://a.example/x",
        )];
        assert_eq!(
            ask(*address, "GET", "/", &forwarded).await.status,
            401,
            "{proxy}"
        );
        // The origin must not believe it either.
        let answer = ask(*address, "GET", "/open", &forwarded).await;
        assert!(!answer.body.contains("spiffe"), "{proxy}: {}", answer.body);

        for (line, host) in [
            ("GET / HTTP/1.1", "other.test"),
            ("GET http://other.test/ HTTP/1.1", "attache.test"),
            ("GET / HTTP/1.1", "attache.test.other.test"),
            ("GET / HTTP/1.1", "attache.test@other.test"),
            ("GET / HTTP/1.1", "attache.test, other.test"),
        ] {
            let headers = [
                ("host", host),
                ("x-forwarded-host", "attache.test"),
                ("x-api-key", "demo-key"),
            ];
            let answer = send(*address, line, &headers, b"").await;
            assert!(
                matches!(answer.status, 400 | 403),
                "{line} {host} through {proxy}: {}",
                answer.status
            );
        }
        let twice = [
            ("host", "attache.test"),
            ("host", "other.test"),
            ("x-api-key", "demo-key"),
        ];
        let answer = send(*address, "GET / HTTP/1.1", &twice, b"").await;
        assert!(
            matches!(answer.status, 400 | 403),
            "{proxy}: {}",
            answer.status
        );
    }
}

const SIGNED: &str = "
identity: [{ name: partners, hmac: { keys_file: keys } }]
rules: [{ action: allow }]
upstream_headers: { x-user: { claim: sub } }
";
/// The shared secret of RFC 9421, B.1.5.
const SECRET: &str =
    "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";

#[tokio::test]
async fn a_signed_request_is_taken_once_and_as_it_was_signed() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("keys"), format!("acme {SECRET}\n")).unwrap();
    let proxies = proxies(folder.path(), SIGNED, "").await;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    for (proxy, address) in &proxies.addresses {
        // Bytes that are no text.
        let body = b"\x00\xff\xfe{}";
        let hash = digest::digest(&digest::SHA256, body);
        let content_digest = format!("sha-256=:{}:", STANDARD.encode(hash));
        let signed = |nonce: &str| {
            let input = format!(
                r#"("@method" "@authority" "@path" "@query" "content-digest");created={now};keyid="acme";nonce="{proxy}{nonce}""#
            );
            let base = format!(
                "\"@method\": POST\n\"@authority\": attache.test\n\"@path\": /orders\n\"@query\": ?a=1\n\"content-digest\": {content_digest}\n\"@signature-params\": {input}"
            );
            let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(SECRET).unwrap());
            let signature = STANDARD.encode(hmac::sign(&key, base.as_bytes()));
            (format!("sig={input}"), format!("sig=:{signature}:"))
        };
        let post = async |target: &str, (input, signature): &(String, String), body: &[u8]| {
            let length = body.len().to_string();
            let headers = [
                ("host", "attache.test"),
                ("content-length", length.as_str()),
                ("content-digest", content_digest.as_str()),
                ("signature-input", input.as_str()),
                ("signature", signature.as_str()),
            ];
            let line = format!("POST {target} HTTP/1.1");
            send(*address, &line, &headers, body).await
        };
        let first = signed("1");
        let answer = post("/orders?a=1", &first, body).await;
        assert_eq!(answer.status, 200, "{proxy}");
        assert!(
            answer.body.contains("x-user: acme\n"),
            "{proxy}: {}",
            answer.body
        );
        assert_eq!(
            post("/orders?a=1", &first, body).await.status,
            401,
            "{proxy}: replayed"
        );
        for (target, body) in [
            ("/orders?a=2", &body[..]),
            ("/orders", body),
            ("/orders/x?a=1", body),
            ("/orders?a=1", b"\x00\xff\xff{}"),
            ("/orders?a=1", b""),
        ] {
            let answer = post(target, &signed(target), body).await;
            assert_eq!(answer.status, 401, "{target} {body:?} through {proxy}");
        }
    }
}
