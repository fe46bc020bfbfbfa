//! Credentials and headers that say one thing to the policy and another to the upstream.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::request::Builder;
use serde_json::json;

use super::{Fixture, SECRET, Signer, claims, get};
use crate::testing::Outcome;

// Of "secret".
const ADA: &str = "ada:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW";

fn config() -> String {
    format!(
        "
identity:
- name: keys
  api_key:
    from: [{{ header: x-api-key }}, {{ query: key }}, {{ cookie: key }}]
    keys: [{{ id: acme, hash: '{SECRET}' }}]
- name: users
  jwt: {{ issuer: https://issuer, audiences: [shop], jwks_file: jwks.json }}
- name: staff
  basic: {{ htpasswd_file: users }}
- name: mesh
  mtls: {{ accept: [{{ any: {{}} }}] }}
- name: anyone
  anonymous: {{}}
rules:
- {{ action: allow, paths: [{{ prefix: /open }}], identity: [anyone] }}
- {{ action: allow, hosts: [shop.example.com] }}
upstream_headers: {{ x-user: {{ claim: sub }} }}
"
    )
}

fn fixture(signer: &Signer) -> Fixture {
    let keys = json!({ "keys": [signer.jwk()] }).to_string();
    Fixture::with_files(&config(), &[("jwks.json", &keys), ("users", ADA)])
}

async fn status(fixture: &Fixture, request: Builder) -> u16 {
    match fixture.check(request).await {
        Outcome::Allowed(_) => 200,
        Outcome::Denied(response) => response.status().as_u16(),
        Outcome::Failed(status) => panic!("{status}"),
    }
}

#[tokio::test]
async fn of_several_credentials_in_one_place_none_counts() {
    let signer = Signer::new("k1");
    let fixture = fixture(&signer);
    let token = signer.sign(&claims(json!({})));
    let good = format!("Bearer {token}");
    let ada = format!("Basic {}", STANDARD.encode("ada:secret"));
    for (what, request) in [
        (
            "two keys",
            get("/")
                .header("x-api-key", "secret")
                .header("x-api-key", "x"),
        ),
        (
            "wrong key first",
            get("/")
                .header("x-api-key", "x")
                .header("x-api-key", "secret"),
        ),
        (
            "the same key",
            get("/")
                .header("x-api-key", "secret")
                .header("x-api-key", "secret"),
        ),
        ("keys in one line", get("/").header("x-api-key", "secret,x")),
        ("parameters", get("/?key=secret&key=x")),
        ("parameters, encoded", get("/?key=x&%6bey=secret")),
        ("cookies", get("/").header("cookie", "key=secret; key=x")),
        (
            "cookie lines",
            get("/")
                .header("cookie", "key=x")
                .header("cookie", "key=secret"),
        ),
        (
            "tokens",
            get("/")
                .header("authorization", &good)
                .header("authorization", "Bearer x"),
        ),
        (
            "tokens, the good one last",
            get("/")
                .header("authorization", "Bearer x")
                .header("authorization", &good),
        ),
        (
            "tokens in one line",
            get("/").header("authorization", format!("{good}, {good}")),
        ),
        (
            "schemes",
            get("/")
                .header("authorization", &ada)
                .header("authorization", &good),
        ),
        (
            "passwords",
            get("/")
                .header("authorization", &ada)
                .header("authorization", "Basic x"),
        ),
    ] {
        assert_eq!(status(&fixture, request).await, 401, "{what}");
    }
}

#[tokio::test]
async fn a_bad_credential_is_not_anonymous_wherever_it_is() {
    let fixture = fixture(&Signer::new("k1"));
    assert_eq!(status(&fixture, get("/open")).await, 200);
    for request in [
        get("/open").header("x-api-key", "x"),
        get("/open?key=x"),
        get("/open").header("cookie", "key=x"),
        get("/open").header("authorization", "Bearer x"),
        get("/open").header("authorization", "Basic x"),
    ] {
        let shown = format!("{request:?}");
        assert_eq!(status(&fixture, request).await, 401, "{shown}");
    }
}

#[tokio::test]
async fn headers_that_speak_for_a_caller_come_from_the_policy_alone() {
    let fixture = fixture(&Signer::new("k1"));
    for spoof in ["root", "acme,root", ""] {
        let request = get("/")
            .header("x-api-key", "secret")
            .header("x-user", spoof)
            .header("X-User", "root");
        let allowed = fixture.allowed(request).await;
        let user: Vec<_> = allowed.request.headers().get_all("x-user").iter().collect();
        assert_eq!(user, ["acme"], "{spoof}");
    }
    // Nobody is known, so nobody is named.
    let allowed = fixture.allowed(get("/open").header("x-user", "root")).await;
    assert!(!allowed.request.headers().contains_key("x-user"));
    // Not configured, `x-forwarded-client-cert` is nobody's certificate.
    let xfcc = get("/").header("x-forwarded-client-cert", "URI=spiffe://a/b;Hash=00");
    assert_eq!(status(&fixture, xfcc).await, 401);
}

#[tokio::test]
async fn hosts_are_the_authority_and_nothing_that_looks_like_it() {
    let fixture = fixture(&Signer::new("k1"));
    let ask = |uri: &str| {
        let request = http::Request::get(uri).header("x-api-key", "secret");
        (uri.to_owned(), request)
    };
    for (uri, request) in [
        ask("http://shop.example.com.evil.example/"),
        ask("http://evilshop.example.com/"),
        ask("http://evil.example/shop.example.com"),
        ask("http://evil.example/?host=shop.example.com"),
        ask("http://shop.example.com@evil.example/"),
    ] {
        assert_eq!(status(&fixture, request).await, 403, "{uri}");
    }
    let elsewhere = ask("http://evil.example/").1;
    let elsewhere = elsewhere
        .header("host", "shop.example.com")
        .header("x-forwarded-host", "shop.example.com")
        .header("x-original-host", "shop.example.com");
    assert_eq!(status(&fixture, elsewhere).await, 403);
    for (uri, request) in [
        ask("http://SHOP.example.com:8080/"),
        ask("http://shop.example.com./"),
    ] {
        assert_eq!(status(&fixture, request).await, 200, "{uri}");
    }
}

#[tokio::test]
async fn the_upstream_sees_no_credential_believed_or_not() {
    let signer = Signer::new("k1");
    let fixture = fixture(&signer);
    let request = get("/a?key=secret&b=1&%6bey=secret")
        .header("x-api-key", "secret")
        .header("authorization", "Bearer not.verified.here")
        .header("cookie", "a=1; key=forged; b=2")
        .header("x-other", "stays");
    // Twice in the query: not believed, yet taken out.
    let allowed = fixture.allowed(request).await;
    let headers = allowed.request.headers();
    assert!(!headers.contains_key("x-api-key"));
    assert!(!headers.contains_key("authorization"));
    assert_eq!(headers["cookie"], "a=1; b=2");
    assert_eq!(headers["x-other"], "stays");
    assert_eq!(allowed.request.uri().path_and_query().unwrap(), "/a?b=1");
}

#[tokio::test]
async fn a_source_may_let_its_credential_through() {
    let forward = config().replace("- name: users\n", "- name: users\n  forward: true\n");
    // `staff` looks into the same header.
    let forward = forward.replace("- name: staff\n", "- name: staff\n  forward: true\n");
    let signer = Signer::new("k1");
    let keys = json!({ "keys": [signer.jwk()] }).to_string();
    let fixture = Fixture::with_files(&forward, &[("jwks.json", &keys), ("users", ADA)]);
    let bearer = format!("Bearer {}", signer.sign(&claims(json!({}))));
    let request = get("/")
        .header("authorization", &bearer)
        .header("x-api-key", "secret");
    let allowed = fixture.allowed(request).await;
    assert_eq!(allowed.request.headers()["authorization"], bearer);
    assert!(!allowed.request.headers().contains_key("x-api-key"));

    // A header that the policy itself gives is not taken away.
    let given = format!(
        "{}  authorization: {{ value: internal }}\n",
        config().replace(
            "upstream_headers: { x-user: { claim: sub } }\n",
            "upstream_headers:\n",
        )
    );
    let fixture = Fixture::with_files(&given, &[("jwks.json", &keys), ("users", ADA)]);
    let allowed = fixture
        .allowed(get("/").header("x-api-key", "secret"))
        .await;
    assert_eq!(allowed.request.headers()["authorization"], "internal");
}
