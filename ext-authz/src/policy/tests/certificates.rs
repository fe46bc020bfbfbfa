//! Client certificates.

use std::sync::Arc;

use attache_filter::{ConnectionInfo, context::TlsInfo};
use http::Request;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    IsCa, KeyPair, SanType, date_time_ymd,
};

use super::{Fixture, errors_of, get};
use crate::testing::{Harness, Outcome};

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate with these URIs and a DNS name, good until this year.
fn issue(issuer: &CertifiedIssuer<'static, KeyPair>, uris: &[&str], until: i32) -> Certificate {
    let mut params = CertificateParams::new(vec!["front.example.com".to_owned()]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Acme");
    params.distinguished_name.push(DnType::CommonName, "front");
    for uri in uris {
        let uri = SanType::URI((*uri).try_into().unwrap());
        params.subject_alt_names.push(uri);
    }
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    params
        .signed_by(&KeyPair::generate().unwrap(), issuer)
        .unwrap()
}

/// A connection of whoever the proxy says, with the certificate that it shows.
fn connection(principal: Option<&str>, certificate: Option<&Certificate>) -> ConnectionInfo {
    ConnectionInfo {
        tls: Some(TlsInfo {
            peer_principal: principal.map(str::to_owned),
            peer_certificate: certificate.map(|certificate| Arc::from(&**certificate.der())),
            ..TlsInfo::default()
        }),
        ..ConnectionInfo::default()
    }
}

async fn status(fixture: &Fixture, connection: ConnectionInfo) -> u16 {
    let harness = Harness::new(fixture.service.clone()).connection(connection);
    match harness.check(get("/").body("").unwrap()).await {
        Outcome::Allowed(_) => 200,
        Outcome::Denied(response) => response.status().as_u16(),
        Outcome::Failed(_) => 503,
    }
}

fn config(settings: &str) -> String {
    format!(
        "
identity:
- name: mesh
  mtls: {{ {settings} }}
rules:
- {{ action: allow }}
upstream_headers:
  x-sub: {{ claim: sub }}
  x-id: {{ claim: spiffe_id }}
  x-domain: {{ claim: trust_domain }}
  x-subject: {{ claim: subject }}
  x-dns: {{ claim: dns }}
  x-uri: {{ claim: uri }}
  x-serial: {{ claim: serial }}
  x-fingerprint: {{ claim: fingerprint }}
"
    )
}

const FRONT: &str = "spiffe://a.example/ns/web/sa/front";

#[tokio::test]
async fn callers_are_accepted_by_what_their_certificate_says() {
    let authority = authority("a");
    let front = issue(&authority, &[FRONT], 2999);
    let two_uris = issue(&authority, &[FRONT, "https://a.example"], 2999);
    let elsewhere = issue(&authority, &["spiffe://b.example/ns/web/sa/front"], 2999);
    let malformed = issue(&authority, &["spiffe://a.example/ns/web/../sa/front"], 2999);
    for (accept, certificate, expected) in [
        ("spiffe: { trust_domain: a.example }", &front, 200),
        ("spiffe: { trust_domain: a.example }", &elsewhere, 401),
        ("spiffe: { trust_domain: a.example }", &two_uris, 401),
        ("spiffe: { trust_domain: a.example }", &malformed, 401),
        (
            "spiffe: { trust_domain: a.example, paths: [{ prefix: /ns/web }] }",
            &front,
            200,
        ),
        (
            "spiffe: { trust_domain: a.example, paths: [{ prefix: /ns/we }] }",
            &front,
            401,
        ),
        (
            "spiffe: { trust_domain: a.example, paths: [{ exact: /ns/web }, { regex: '.*front' }] }",
            &front,
            200,
        ),
        ("uri: { prefix: 'https://' }", &two_uris, 200),
        ("uri: { prefix: 'https://' }", &front, 401),
        ("dns: '*.example.com'", &front, 200),
        ("dns: front.example.com", &front, 200),
        ("dns: example.com", &front, 401),
        ("subject: { exact: 'CN=front,O=Acme' }", &front, 200),
        ("subject: { exact: 'CN=front' }", &front, 401),
        ("any: {}", &malformed, 200),
    ] {
        let fixture = Fixture::new(&config(&format!("accept: [{{ {accept} }}]")));
        let connection = connection(None, Some(certificate));
        assert_eq!(status(&fixture, connection).await, expected, "{accept}");
    }
}

#[tokio::test]
async fn a_certificate_tells_the_upstream_all_it_says() {
    let front = issue(&authority("a"), &[FRONT], 2999);
    let fixture = Fixture::new(&config("accept: [{ any: {} }]"));
    let harness = Harness::new(fixture.service.clone()).connection(connection(None, Some(&front)));
    // Remembered, it says the same.
    for _ in 0..2 {
        let request = get("/").header("x-sub", "root").body("").unwrap();
        let Outcome::Allowed(allowed) = harness.check(request).await else {
            panic!()
        };
        let headers = allowed.request.headers();
        let fingerprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, front.der());
        let hex: String = fingerprint
            .as_ref()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        for (name, expected) in [
            ("x-sub", FRONT),
            ("x-id", FRONT),
            ("x-domain", "a.example"),
            ("x-subject", "CN=front,O=Acme"),
            ("x-dns", "front.example.com"),
            ("x-uri", FRONT),
            ("x-fingerprint", &hex),
        ] {
            assert_eq!(headers[name], expected, "{name}");
        }
        assert!(headers.contains_key("x-serial"));
    }
}

#[tokio::test]
async fn what_the_proxy_says_alone_is_enough_unless_authorities_are_given() {
    let believing = Fixture::new(&config("accept: [{ spiffe: { trust_domain: a.example } }]"));
    assert_eq!(status(&believing, connection(Some(FRONT), None)).await, 200);
    for other in [
        "spiffe://b.example/x",
        "front.example.com",
        "CN=spiffe://a.example/x",
    ] {
        assert_eq!(
            status(&believing, connection(Some(other), None)).await,
            401,
            "{other}"
        );
    }
    assert_eq!(status(&believing, connection(None, None)).await, 401);

    let [ours, strangers] = [authority("a"), authority("a")];
    let config = config("accept: [{ spiffe: { trust_domain: a.example } }], ca_file: ca.pem");
    let verifying = Fixture::with_files(&config, &[("ca.pem", &ours.pem())]);
    let status = async |principal, certificate: Option<&Certificate>| {
        status(&verifying, connection(principal, certificate)).await
    };
    assert_eq!(status(None, Some(&issue(&ours, &[FRONT], 2999))).await, 200);
    let strange = issue(&strangers, &[FRONT], 2999);
    assert_eq!(status(Some(FRONT), Some(&strange)).await, 401);
    let expired = issue(&ours, &[FRONT], 2021);
    assert_eq!(status(Some(FRONT), Some(&expired)).await, 401);
    // Somebody is there, but who it is cannot be verified.
    assert_eq!(status(Some(FRONT), None).await, 503);
    assert_eq!(status(None, None).await, 401);
}

#[tokio::test]
async fn an_expired_certificate_is_refused_whoever_verified_it() {
    let fixture = Fixture::new(&config("accept: [{ any: {} }]"));
    let expired = issue(&authority("a"), &[FRONT], 2021);
    assert_eq!(
        status(&fixture, connection(Some(FRONT), Some(&expired))).await,
        401
    );
}

fn shown(certificate: &Certificate) -> String {
    utf8_percent_encode(&certificate.pem(), NON_ALPHANUMERIC).to_string()
}

async fn forwarded(fixture: &Fixture, header: &str) -> u16 {
    let request = Request::get("http://h/").header("x-forwarded-client-cert", header);
    match fixture.check(request).await {
        Outcome::Allowed(_) => 200,
        Outcome::Denied(response) => response.status().as_u16(),
        Outcome::Failed(_) => 503,
    }
}

#[tokio::test]
async fn the_header_counts_only_when_it_is_asked_for_and_then_its_last_element() {
    let from_connection = Fixture::new(&config("accept: [{ any: {} }]"));
    let front = format!("URI={FRONT}");
    assert_eq!(forwarded(&from_connection, &front).await, 401);

    let header = |more: &str| {
        config(&format!(
            "accept: [{{ spiffe: {{ trust_domain: a.example }} }}], \
             x_forwarded_client_cert: {{ proxy_strips_it_from_clients: true{more} }}"
        ))
    };
    let last = Fixture::new(&header(""));
    for (value, expected) in [
        (front.clone(), 200),
        (format!("Hash=00;Subject=\"CN=x\";{front}"), 200),
        // Whoever sent the first element made it up; the proxy added the second.
        (format!("{front},URI=spiffe://evil.example/x"), 401),
        (format!("URI=spiffe://evil.example/x,{front}"), 200),
        // Quotes that hide a comma or do not end.
        (format!("Subject=\"x,{front}"), 401),
        (
            format!("Subject=\"x\\\",{front}\";URI=spiffe://evil.example/x"),
            401,
        ),
        (format!("URI=spiffe://evil.example/x;{front}"), 401),
        ("By=spiffe://a.example/proxy".to_owned(), 401),
        (String::new(), 401),
        (",".to_owned(), 401),
        (front.to_ascii_uppercase(), 401),
    ] {
        assert_eq!(forwarded(&last, &value).await, expected, "{value}");
    }
    let second_last = Fixture::new(&header(", trusted_hops: 1"));
    for (value, expected) in [
        (format!("{front},URI=spiffe://proxies.example/x"), 200),
        (
            format!("{front},URI=spiffe://evil.example/x,URI=spiffe://proxies.example/x"),
            401,
        ),
        (front, 401),
    ] {
        assert_eq!(forwarded(&second_last, &value).await, expected, "{value}");
    }
}

#[tokio::test]
async fn a_certificate_in_the_header_is_verified_through_its_chain() {
    let root = authority("root");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "middle");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let middle = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &root).unwrap();
    let settings = "accept: [{ any: {} }], ca_file: ca.pem, \
                    x_forwarded_client_cert: { proxy_strips_it_from_clients: true }";
    let fixture = Fixture::with_files(&config(settings), &[("ca.pem", &root.pem())]);
    let deep = shown(&issue(&middle, &[FRONT], 2999));
    let chain = format!("{deep}{}", shown(middle.as_ref()));
    let strange = shown(&issue(&authority("root"), &[FRONT], 2999));
    for (value, expected) in [
        (format!("Cert=\"{deep}\""), 401),
        (format!("Cert=\"{strange}\""), 401),
        (format!("Cert=\"{strange}\";Chain=\"{chain}\""), 401),
        (format!("Cert=\"{deep}\";Chain=\"{chain}\""), 200),
        (format!("Cert=\"{}\"", shown(&issue(&root, &[], 2999))), 200),
        (format!("Cert=\"{}\"", shown(&issue(&root, &[], 2021))), 401),
        ("Cert=\"x\"".to_owned(), 401),
        // The header has an identity, but not what it could be verified by.
        (format!("URI={FRONT}"), 503),
    ] {
        assert_eq!(forwarded(&fixture, &value).await, expected, "{value}");
    }
}

#[test]
fn mistakes_are_told() {
    let text = errors_of(
        "
identity:
- name: a
  mtls: {}
- name: b
  mtls:
    accept: [{ spiffe: { trust_domain: A.example, paths: [{ exact: /a/../b }] } }, { subject: { safe_regex: { regex: '(' } } }]
    x_forwarded_client_cert: { proxy_strips_it_from_clients: false }
- name: c
  mtls: { accept: [{ any: {} }], ca_file: none.pem }
rules: []
",
    );
    for expected in [
        "an `mtls` source says in `accept` whose certificates it takes",
        "a trust domain has",
        "not the path of a SPIFFE ID",
        "regex parse error",
        "clients can send this header too",
        "none.pem",
    ] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
}
