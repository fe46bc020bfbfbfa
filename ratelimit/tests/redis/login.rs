//! Sockets, users, databases, TLS.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use attache_ratelimit::{
    limiter::{UnixTime, Window},
    store::{
        Amount, Batch, RedisStore, Store as _, StoreError, Terms,
        redis::{Auth, RedisSettings, Topology},
    },
};
use attache_service::{
    Address, Metrics,
    tls::{ClientFiles, ClientTls, ServerFiles, ServerTls, TlsVersion},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tokio::net::{TcpListener, TcpStream};

use crate::server::Server;

const PATIENT: Duration = Duration::from_secs(5);

async fn hit(store: &RedisStore) -> Result<u64, StoreError> {
    let mut batch = Batch::new(UnixTime::from_seconds(1234));
    batch.begin("d");
    batch.entry("k", "v");
    batch.charge(
        Terms::fixed_window(Window::at(1234, 60), 10),
        Amount::Add(1),
    );
    let mut readings = Vec::new();
    store.charge(&batch, &mut readings).await?;
    Ok(readings[0].after)
}

async fn open(settings: RedisSettings) -> RedisStore {
    let settings = RedisSettings {
        timeout: PATIENT,
        ..settings
    };
    RedisStore::connect(settings, &Metrics::default()).await
}

#[tokio::test]
async fn users_log_in_with_their_password_over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("redis.sock");
    let options = [
        "--unixsocket",
        socket.to_str().unwrap(),
        "--requirepass",
        "default-password",
        "--user",
        "limits",
        "on",
        ">s3cret",
        "~d_*",
        "+set",
        "+incrby",
        "+expire",
        "+time",
        "+select",
        "+ping",
    ];
    let Some(_server) = Server::start_with(&options).await else {
        return;
    };
    let settings = || RedisSettings {
        auth: Some(Auth::parse("limits:s3cret")),
        database: 3,
        ..RedisSettings::new(Topology::Single(Address::Unix(socket.clone())))
    };
    let store = open(settings()).await;
    assert_eq!(hit(&store).await, Ok(1));

    let refused = open(RedisSettings {
        auth: Some(Auth::parse("limits:wrong")),
        ..settings()
    })
    .await;
    let error = hit(&refused).await.unwrap_err().to_string();
    assert!(error.contains("is not connected"), "{error}");
    assert!(!error.contains("wrong "), "{error}");
    // Another database, another counter.
    let default = open(RedisSettings {
        auth: Some(Auth::parse("default-password")),
        database: 0,
        ..settings()
    })
    .await;
    assert_eq!(hit(&default).await, Ok(1));
}

/// Writes an authority, and what it has signed: `server` for `redis.test`, and `client`.
fn certificates(directory: &Path) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(directory.join("ca.pem"), issuer.pem()).unwrap();
    for name in ["server", "client"] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName("redis.test".try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(directory.join(format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// Ends TLS before a Redis, which may be built without it.
async fn in_front_of(port: u16, directory: &Path) -> SocketAddr {
    let tls = ServerTls::load(ServerFiles {
        certificate: directory.join("server.crt"),
        private_key: directory.join("server.key"),
        client_ca: Some(directory.join("ca.pem")),
        client_name: None,
        min_version: TlsVersion::Tls12,
        alpn: Vec::new(),
    })
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let mut near = tls.accept(near).await?;
                let mut far = TcpStream::connect(("127.0.0.1", port)).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    address
}

#[tokio::test]
async fn tls_verifies_both_sides_and_the_name_unless_told_otherwise() {
    let Some(server) = Server::start().await else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let address = in_front_of(server.port, directory.path()).await;
    let file = |name: &str| directory.path().join(name);
    let files = |identity: bool, sni: Option<&str>| ClientFiles {
        ca: Some(file("ca.pem")),
        identity: identity.then(|| (file("client.crt"), file("client.key"))),
        sni: sni.map(str::to_owned),
        alpn: Vec::new(),
    };
    let mut expected = 0;
    for (tls, passes) in [
        (ClientTls::load(files(true, Some("redis.test"))), true),
        (ClientTls::load_for_any_name(files(true, None)), true),
        (ClientTls::load(files(true, None)), false),
        (ClientTls::load(files(false, Some("redis.test"))), false),
    ] {
        let store = open(RedisSettings {
            tls: Some(tls.unwrap()),
            ..RedisSettings::parse(&format!("redis://{address}")).unwrap()
        })
        .await;
        match passes {
            true => {
                expected += 1;
                assert_eq!(hit(&store).await, Ok(expected));
            }
            false => {
                let error = hit(&store).await.unwrap_err();
                assert!(matches!(error, StoreError::NotConnected { .. }), "{error}");
            }
        }
    }
}
