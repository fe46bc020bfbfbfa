use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;
use crate::config::Document;

/// A directory with a certificate authority and what it has signed.
pub(crate) struct Authority {
    pub(crate) directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Writes `ca.pem`.
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { directory, issuer }
    }

    /// Writes `<name>.crt` and `<name>.key` for these subject alternative names.
    pub(crate) fn issue(&self, name: &str, alternatives: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = alternatives;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Acme, Inc.");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        certificate.der().to_vec()
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    pub(crate) fn server(&self, name: &str, client_ca: bool) -> ServerFiles {
        ServerFiles {
            certificate: self.path(&format!("{name}.crt")),
            private_key: self.path(&format!("{name}.key")),
            client_ca: client_ca.then(|| self.path("ca.pem")),
            client_name: None,
            min_version: TlsVersion::Tls12,
            alpn: vec!["h2".into()],
        }
    }

    pub(crate) fn client(&self, identity: Option<&str>) -> ClientFiles {
        ClientFiles {
            ca: Some(self.path("ca.pem")),
            identity: identity.map(|name| {
                (
                    self.path(&format!("{name}.crt")),
                    self.path(&format!("{name}.key")),
                )
            }),
            sni: None,
            alpn: vec!["h2".into()],
        }
    }
}

pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

/// One handshake and one byte each way; what the server knows of the client.
async fn talk(server: &ServerTls, client: &ClientTls, host: &str) -> io::Result<Peer> {
    let (near, far) = duplex(1 << 16);
    let accept = async {
        let mut stream = server.accept(far).await?;
        stream.write_u8(1).await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(Peer::of(stream.get_ref().1))
    };
    let connect = async {
        let mut stream = client.connect(host, near).await?;
        // With TLS 1.3 a server's refusal of the client shows only after the handshake.
        stream.read_u8().await?;
        stream.write_u8(2).await?;
        stream.flush().await
    };
    let (peer, connected) = tokio::join!(accept, connect);
    connected?;
    peer
}

fn local_principal(server: &ServerTls, name: Option<&str>) -> Option<String> {
    let certificate = server.local_identity(name)?;
    Some(certificate.principal().to_owned())
}

#[tokio::test]
async fn a_client_with_a_certificate_is_known_by_its_uri() {
    let authority = Authority::new();
    authority.issue("server", vec![dns("web.test")]);
    let der = authority.issue("client", vec![dns("c.test"), uri("spiffe://test/c")]);
    let server = ServerTls::load(authority.server("server", true)).unwrap();
    let client = ClientTls::load(authority.client(Some("client"))).unwrap();

    let peer = talk(&server, &client, "web.test").await.unwrap();

    assert_eq!(peer.sni.as_deref(), Some("web.test"));
    assert_eq!(peer.alpn.as_deref(), Some("h2"));
    assert_eq!(peer.certificate.as_deref(), Some(&der[..]));
    assert_eq!(peer.version, Some("TLSv1.3"));
    assert_eq!(peer.principal(), Some("spiffe://test/c"));
    assert_eq!(local_principal(&server, None).as_deref(), Some("web.test"));
}

#[tokio::test]
async fn without_the_demanded_certificate_there_is_no_connection() {
    let authority = Authority::new();
    authority.issue("server", vec![dns("web.test")]);
    let server = ServerTls::load(authority.server("server", true)).unwrap();
    let client = ClientTls::load(authority.client(None)).unwrap();
    assert!(talk(&server, &client, "web.test").await.is_err());
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_on_either_side() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    for authority in [&ours, &theirs] {
        authority.issue("server", vec![dns("web.test")]);
        authority.issue("client", vec![]);
    }
    let server = ServerTls::load(ours.server("server", true)).unwrap();

    let distrustful = ClientTls::load(theirs.client(None)).unwrap();
    assert!(talk(&server, &distrustful, "web.test").await.is_err());

    let mut files = ours.client(None);
    files.identity = theirs.client(Some("client")).identity;
    let distrusted = ClientTls::load(files).unwrap();
    assert!(talk(&server, &distrusted, "web.test").await.is_err());
}

#[tokio::test]
async fn a_server_is_verified_by_sni_or_else_by_host() {
    let authority = Authority::new();
    authority.issue("server", vec![dns("web.test")]);
    let server = ServerTls::load(authority.server("server", false)).unwrap();
    let by_host = ClientTls::load(authority.client(None)).unwrap();
    let mut files = authority.client(None);
    files.sni = Some("web.test".into());
    let by_sni = ClientTls::load(files).unwrap();

    assert!(talk(&server, &by_host, "other.test").await.is_err());
    assert!(talk(&server, &by_host, "web.test").await.is_ok());
    assert!(talk(&server, &by_sni, "10.0.0.1").await.is_ok());
}

#[tokio::test]
async fn a_reload_takes_new_files_and_keeps_the_old_when_they_are_bad() {
    let authority = Authority::new();
    authority.issue("server", vec![dns("old.test")]);
    let server = ServerTls::load(authority.server("server", false)).unwrap();
    let client = ClientTls::load(authority.client(None)).unwrap();

    authority.issue("server", vec![dns("new.test")]);
    server.reload().unwrap();
    assert!(talk(&server, &client, "old.test").await.is_err());
    assert!(talk(&server, &client, "new.test").await.is_ok());

    fs::write(authority.path("server.key"), "garbage").unwrap();
    let error = server.reload().unwrap_err().to_string();
    assert!(error.contains("server.key"), "{error}");
    assert!(talk(&server, &client, "new.test").await.is_ok());
}

#[tokio::test]
async fn changed_files_are_noticed() {
    let authority = Authority::new();
    authority.issue("server", vec![dns("old.test")]);
    let server = ServerTls::load(authority.server("server", false)).unwrap();
    let mut following = Box::pin(server.follow_files());
    // The first poll installs the watch.
    assert!(futures_util::poll!(&mut following).is_pending());

    authority.issue("server", vec![dns("new.test")]);

    let renamed = async {
        while local_principal(&server, None).as_deref() != Some("new.test") {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = following => unreachable!("following never ends"),
        renamed = tokio::time::timeout(std::time::Duration::from_secs(10), renamed) => {
            renamed.expect("the new certificate is in use");
        }
    }
}

#[test]
fn the_principal_is_the_uri_then_the_dns_name_then_the_subject() {
    let authority = Authority::new();
    let cases = [
        (vec![dns("a.test"), uri("spiffe://t/a")], "spiffe://t/a"),
        (vec![dns("a.test"), dns("b.test")], "a.test"),
        (vec![], "CN=Kÿ #1,O=Acme\\, Inc."),
    ];
    for (alternatives, expected) in cases {
        let der = authority.issue("Kÿ #1", alternatives);
        let expected = expected.replace('ÿ', "\\C3\\BF");
        assert_eq!(principal(&der).as_deref(), Some(&*expected));
    }
    assert_eq!(principal(b"no certificate"), None);
}

#[test]
fn errors_name_the_file_and_show_nothing_of_it() {
    let authority = Authority::new();
    authority.issue("server", vec![dns("web.test")]);
    authority.issue("other", vec![dns("web.test")]);
    let write = |file: &str, text: &str| fs::write(authority.path(file), text).unwrap();
    write("empty.pem", "");
    write(
        "broken.pem",
        "-----BEGIN PRIVATE KEY-----\nsecret!\n-----END PRIVATE KEY-----\n",
    );
    let good = authority.server("server", true);
    let with = |change: &dyn Fn(&mut ServerFiles)| {
        let mut files = good.clone();
        change(&mut files);
        ServerTls::load(files).unwrap_err().to_string()
    };

    for (error, file, said) in [
        (
            with(&|f| f.certificate = authority.path("none.crt")),
            "none.crt",
            "cannot read",
        ),
        (
            with(&|f| f.certificate = authority.path("empty.pem")),
            "empty.pem",
            "no PEM certificate",
        ),
        (
            with(&|f| f.private_key = authority.path("broken.pem")),
            "broken.pem",
            "malformed PEM",
        ),
        (
            with(&|f| f.private_key = authority.path("other.key")),
            "other.key",
            "together",
        ),
        (
            with(&|f| f.client_ca = Some(authority.path("server.key"))),
            "server.key",
            "no PEM certificate",
        ),
    ] {
        assert!(error.contains(file) && error.contains(said), "{error}");
        assert!(!error.contains("secret!"), "{error}");
    }
}

#[test]
fn settings_are_reported_where_they_are_written() {
    let authority = Authority::new();
    authority.issue("web", vec![dns("web.test")]);
    let file = authority.path("attache.yaml");
    let plan = |text: &str| {
        let document = Document::parse(file.display().to_string(), text).unwrap();
        let (raw, mut errors) = document.decode_partly::<ListenerTls>();
        let planned = raw.and_then(|raw| raw.plan(ALPN_HTTP, &mut errors));
        errors.into_result(planned)
    };

    let tls = plan("certificate: web.crt\nprivate_key: web.key\nmin_version: TLSv1_3\n").unwrap();
    assert_eq!(tls.config().alpn_protocols, [&b"h2"[..], b"http/1.1"]);

    let errors = plan("certificate: web.crt\nprivate_key: nope.key\n").unwrap_err();
    assert!(errors.to_string().contains("attache.yaml:2:14"), "{errors}");

    let errors = plan("certificate: web.crt\nprivate_key: web.key\nmin_version: TLSv1_1\n");
    assert!(errors.is_err());
}

#[test]
fn half_an_identity_is_an_error_of_its_field() {
    let plan = |text: &str| {
        let document = Document::parse("attache.yaml", text).unwrap();
        let (raw, mut errors) = document.decode_partly::<ClusterTls>();
        let raw = raw.unwrap();
        let planned = raw.plan(ALPN_H2, &crate::config::Span::none(), &mut errors);
        errors.into_result(planned).unwrap_err().to_string()
    };
    let error = plan("certificate: web.crt\n");
    assert!(
        error.contains("attache.yaml:1:14: `certificate` needs `private_key`"),
        "{error}"
    );
    let authority = Authority::new();
    let ca = authority.path("ca.pem");
    let error = plan(&format!("ca: {}\nsni: 'a b'\n", ca.display()));
    assert!(error.contains("attache.yaml:2:6"), "{error}");
    assert!(Path::new(&ca).exists());
}

#[tokio::test]
async fn a_client_needs_the_name_that_is_asked_for() {
    let authority = Authority::new();
    authority.issue("server", vec![dns("web.test")]);
    authority.issue("envoy", vec![dns("envoy.test"), uri("spiffe://test/envoy")]);
    authority.issue("other", vec![dns("other.test")]);
    for (name, welcome) in [
        ("envoy.test", true),
        ("spiffe://test/envoy", true),
        ("spiffe://test/env", false),
        ("other", false),
    ] {
        let server = ServerTls::load(ServerFiles {
            client_name: Some(name.to_owned()),
            ..authority.server("server", true)
        });
        let server = server.unwrap();
        let client = ClientTls::load(authority.client(Some("envoy"))).unwrap();
        let talked = talk(&server, &client, "web.test").await;
        assert_eq!(talked.is_ok(), welcome, "{name}: {talked:?}");
        let client = ClientTls::load(authority.client(Some("other"))).unwrap();
        assert!(talk(&server, &client, "web.test").await.is_err(), "{name}");
    }
    let refused = ServerTls::load(ServerFiles {
        client_name: Some("no name".to_owned()),
        ..authority.server("server", true)
    });
    assert!(refused.unwrap_err().to_string().contains("`no name`"));
}

#[tokio::test]
async fn a_server_of_any_name_still_has_to_be_signed_by_the_authority() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    ours.issue("server", vec![dns("web.test")]);
    theirs.issue("server", vec![dns("web.test")]);
    let client = ClientTls::load_for_any_name(ours.client(None)).unwrap();

    let server = ServerTls::load(ours.server("server", false)).unwrap();
    assert!(talk(&server, &client, "other.test").await.is_ok());
    assert!(talk(&server, &client, "127.0.0.1").await.is_ok());

    let stranger = ServerTls::load(theirs.server("server", false)).unwrap();
    assert!(talk(&stranger, &client, "web.test").await.is_err());
}

#[tokio::test]
async fn each_client_gets_the_certificate_of_the_name_it_asks_for() {
    let authority = Authority::new();
    authority.issue("first", vec![dns("first.test")]);
    authority.issue("exact", vec![dns("a.wild.test"), dns("exact.test")]);
    authority.issue("wild", vec![dns("*.wild.test")]);
    let pair = |name: &str| {
        let file = |kind: &str| authority.path(&format!("{name}.{kind}"));
        (file("crt"), file("key"))
    };
    let handshake = Handshake {
        certificates: vec![pair("wild"), pair("exact")],
        ..Handshake::default()
    };
    let server = ServerTls::load_with(authority.server("first", false), handshake).unwrap();
    // Clients verify the name themselves, so a handshake that succeeds got the right one.
    for name in ["first.test", "exact.test", "a.wild.test", "b.wild.test"] {
        let client = ClientTls::load(authority.client(None)).unwrap();
        talk(&server, &client, name).await.unwrap();
    }
    assert_eq!(
        local_principal(&server, Some("A.wild.test")).as_deref(),
        Some("a.wild.test")
    );
    assert_eq!(
        local_principal(&server, Some("b.wild.test")).as_deref(),
        Some("*.wild.test")
    );
    // A wildcard is for one label.
    for other in [None, Some("other.test"), Some("a.b.wild.test")] {
        assert_eq!(
            local_principal(&server, other).as_deref(),
            Some("first.test")
        );
    }

    authority.issue("exact", vec![dns("moved.test")]);
    server.reload().unwrap();
    let client = ClientTls::load(authority.client(None)).unwrap();
    talk(&server, &client, "moved.test").await.unwrap();
    assert!(talk(&server, &client, "exact.test").await.is_err());
}

#[tokio::test]
async fn a_client_certificate_can_be_a_matter_of_choice() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    ours.issue("server", vec![dns("web.test")]);
    for authority in [&ours, &theirs] {
        authority.issue("client", vec![dns("c.test")]);
    }
    let handshake = Handshake {
        optional_client_certificate: true,
        ..Handshake::default()
    };
    let server = ServerTls::load_with(ours.server("server", true), handshake).unwrap();
    let client = |identity| ClientTls::load(ours.client(identity)).unwrap();
    let known = talk(&server, &client(Some("client")), "web.test").await;
    assert_eq!(known.unwrap().principal(), Some("c.test"));
    let unknown = talk(&server, &client(None), "web.test").await;
    assert_eq!(unknown.unwrap().principal(), None);
    let mut files = ours.client(None);
    files.identity = theirs.client(Some("client")).identity;
    let distrusted = ClientTls::load(files).unwrap();
    assert!(talk(&server, &distrusted, "web.test").await.is_err());
}

/// What was agreed on: version, cipher suite, group, and whether a session was resumed.
async fn agreed(server: &ServerTls, client: &ClientTls) -> io::Result<String> {
    let (near, far) = duplex(1 << 16);
    let accept = async {
        let mut stream = server.accept(far).await?;
        stream.write_u8(1).await?;
        stream.flush().await?;
        stream.read_u8().await?;
        let agreed = stream.get_ref().1;
        Ok(format!(
            "{:?} {:?} {:?} {:?}",
            agreed.protocol_version().unwrap(),
            agreed.negotiated_cipher_suite().unwrap().suite(),
            agreed
                .negotiated_key_exchange_group()
                .map(|group| group.name()),
            agreed.handshake_kind().unwrap(),
        ))
    };
    let connect = async {
        let mut stream = client.connect("web.test", near).await?;
        stream.read_u8().await?;
        stream.write_u8(2).await?;
        stream.flush().await
    };
    let (agreed, connected) = tokio::join!(accept, connect);
    connected?;
    agreed
}

#[tokio::test]
async fn versions_suites_and_curves_are_those_that_are_written() {
    let authority = Authority::new();
    authority.issue("server", vec![dns("web.test")]);
    let server = |handshake| ServerTls::load_with(authority.server("server", false), handshake);
    let client = ClientTls::load(authority.client(None)).unwrap();
    let old = server(Handshake {
        max_version: Some(TlsVersion::Tls12),
        cipher_suites: vec![CipherSuite::EcdsaChacha, CipherSuite::EcdsaAes128],
        ecdh_curves: vec![Curve::P384],
        ..Handshake::default()
    });
    let seen = agreed(&old.unwrap(), &client).await.unwrap();
    assert!(
        seen.starts_with("TLSv1_2 TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 Some(secp384r1)"),
        "{seen}"
    );
    let new = server(Handshake {
        ecdh_curves: vec![Curve::P256],
        ..Handshake::default()
    });
    let seen = agreed(&new.unwrap(), &client).await.unwrap();
    assert!(
        seen.starts_with("TLSv1_3 TLS13_") && seen.contains("secp256r1"),
        "{seen}"
    );
    let nothing_in_common = server(Handshake {
        max_version: Some(TlsVersion::Tls12),
        cipher_suites: vec![CipherSuite::RsaAes128],
        ..Handshake::default()
    });
    assert!(agreed(&nothing_in_common.unwrap(), &client).await.is_err());
}

#[tokio::test]
async fn sessions_are_resumed_unless_that_is_turned_off() {
    let authority = Authority::new();
    authority.issue("server", vec![dns("web.test")]);
    for max_version in [TlsVersion::Tls12, TlsVersion::Tls13] {
        for no_resumption in [false, true] {
            let handshake = Handshake {
                max_version: Some(max_version),
                no_resumption,
                ..Handshake::default()
            };
            let server = ServerTls::load_with(authority.server("server", false), handshake);
            let server = server.unwrap();
            let client = ClientTls::load(authority.client(None)).unwrap();
            agreed(&server, &client).await.unwrap();
            let again = agreed(&server, &client).await.unwrap();
            assert_eq!(
                again.ends_with("Resumed"),
                !no_resumption,
                "{max_version:?}: {again}"
            );
        }
    }
}

#[test]
fn mistakes_in_further_settings_are_reported_where_they_are() {
    let authority = Authority::new();
    authority.issue("web", vec![dns("web.test")]);
    authority.issue("nameless", vec![uri("spiffe://test/x")]);
    let file = authority.path("attache.yaml");
    let refused = |more: &str| {
        let text = format!("certificate: web.crt\nprivate_key: web.key\n{more}\n");
        let document = Document::parse(file.display().to_string(), &text).unwrap();
        let (raw, mut errors) = document.decode_partly::<ListenerTls>();
        let planned = raw.and_then(|raw| raw.plan(ALPN_HTTP, &mut errors));
        errors.into_result(planned).unwrap_err().to_string()
    };
    for (more, wanted) in [
        (
            "min_version: TLSv1_3\nmax_version: TLSv1_2",
            "attache.yaml:4:14",
        ),
        ("require_client_certificate: true", "needs `client_ca`"),
        (
            "certificates: [{ certificate: nameless.crt, private_key: nameless.key }]",
            "attache.yaml:3:31",
        ),
        ("cipher_suites: [AES128-SHA]", "no forward secrecy"),
        ("ecdh_curves: [P-521]", "not supported here"),
    ] {
        let refused = refused(more);
        assert!(refused.contains(wanted), "{more}: {refused}");
    }
}
