//! What stands before HTTP: PROXY protocol, several certificates, Unix sockets, connections that
//! are passed on, and how all of it ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may panic"
)]

mod support;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use attache_proxy::{
    Config, Plan, Proxy,
    config::NothingEmbedded,
    export,
    plan::{ClusterPlan, ListenerPlan},
    proxy_protocol::ProxyProtocol,
    route::{Forward, RouteTable},
    tcp::TcpPlan,
};
use attache_service::{
    Metrics,
    cluster::LbPolicy,
    config::{Document, Errors},
    tls::{ClientFiles, ClientTls},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use support::{
    OK, Origin, PATIENCE, Raw, Tested, address, any_port, echo_origin, header, origin, plan_with,
    read_head, shown, start, status,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

fn read(text: &str) -> Result<(Config, Plan), Errors> {
    let document = Document::parse("proxy.yaml", text).unwrap();
    Config::read(&document, &NothingEmbedded)
}

async fn proxy_of(text: &str) -> Tested {
    start(read(text).unwrap().1).await
}

/// An origin of plain TCP: sends back what it gets, and `bye` when the client has ended.
async fn tcp_origin() -> Origin {
    origin(|_, mut stream| async move {
        let mut buffer = [0; 1024];
        while let Ok(count) = stream.read(&mut buffer).await {
            if count == 0 {
                let _ = stream.write_all(b"bye").await;
                return;
            }
            let _ = stream.write_all(&buffer[..count]).await;
        }
    })
    .await
}

// PROXY protocol

#[tokio::test]
async fn the_client_is_whom_the_proxy_protocol_names() {
    let (origin, mut heads) = echo_origin(OK).await;
    let listener = |l: &mut ListenerPlan| {
        l.proxy_protocol = Some(ProxyProtocol::default());
    };
    let proxy = start(plan_with(origin.at, listener, |_| {}, Forward::to(0))).await;

    let mut client = Raw::connect(proxy.at).await;
    client
        .send("PROXY TCP4 192.0.2.7 198.51.100.2 4711 443\r\n")
        .await;
    assert_eq!(client.get("/").await.1, "ok");
    assert_eq!(client.get("/again").await.1, "ok");
    for _ in 0..2 {
        let head = heads.recv().await.unwrap();
        assert_eq!(header(&head, "x-forwarded-for"), Some("192.0.2.7"));
    }

    let mut client = Raw::connect(proxy.at).await;
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x27".to_vec();
    v2.extend(
        "2001:db8::7"
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets(),
    );
    v2.extend(std::net::Ipv6Addr::LOCALHOST.octets());
    v2.extend([0, 1, 1, 187, 0x04, 0, 0]);
    client.0.write_all(&v2).await.unwrap();
    client.get("/").await;
    let head = heads.recv().await.unwrap();
    assert_eq!(header(&head, "x-forwarded-for"), Some("2001:db8::7"));

    // A health check of the load balancer itself.
    let mut client = Raw::connect(proxy.at).await;
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    client.0.write_all(local).await.unwrap();
    client.get("/").await;
    let head = heads.recv().await.unwrap();
    assert_eq!(header(&head, "x-forwarded-for"), Some("127.0.0.1"));
}

#[tokio::test]
async fn connections_without_a_good_header_are_closed_unheard() {
    let (origin, mut heads) = echo_origin(OK).await;
    let listener = |l: &mut ListenerPlan| {
        l.proxy_protocol = Some(ProxyProtocol::default());
        l.limits.header_timeout = Duration::from_millis(300);
    };
    let proxy = start(plan_with(origin.at, listener, |_| {}, Forward::to(0))).await;
    for beginning in [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "PROXY TCP4 nonsense\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "PROXY TCP4 1.2.3.4",
    ] {
        let mut client = Raw::connect(proxy.at).await;
        client.send(beginning).await;
        assert_eq!(client.rest().await, "", "{beginning}");
    }
    assert!(heads.try_recv().is_err());
    let broken = "attache_downstream_connections_broken_total{listener=\"test\"} 3";
    shown(&proxy, broken).await;
}

#[tokio::test]
async fn only_trusted_networks_may_speak_the_proxy_protocol() {
    let (origin, _heads) = echo_origin(OK).await;
    for (from, expected) in [("10.0.0.0/8", ""), ("127.0.0.0/8", "HTTP/1.1 200")] {
        let listener = |l: &mut ListenerPlan| {
            l.proxy_protocol = Some(ProxyProtocol {
                from: vec![from.parse().unwrap()],
                ..ProxyProtocol::default()
            });
        };
        let proxy = start(plan_with(origin.at, listener, |_| {}, Forward::to(0))).await;
        let mut client = Raw::connect(proxy.at).await;
        client
            .send("PROXY UNKNOWN\r\nGET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .await;
        let answer = client.rest().await;
        assert!(answer.starts_with(expected), "{from}: {answer}");
        assert_eq!(answer.is_empty(), expected.is_empty(), "{from}: {answer}");
    }
}

// TLS

/// Writes `<name>.crt` and `<name>.key`, signed by an authority whose certificate is `ca.pem`.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(folder: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.join("ca.pem"), issuer.pem()).unwrap();
        Self(issuer)
    }

    fn issue(&self, folder: &Path, name: &str, host: &str) {
        let params = CertificateParams::new([host.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        // Replaced in one step each, as tools that renew certificates do.
        for (kind, text) in [("crt", certificate.pem()), ("key", key.serialize_pem())] {
            let beside = folder.join(format!("{name}.{kind}.new"));
            std::fs::write(&beside, text).unwrap();
            std::fs::rename(&beside, folder.join(format!("{name}.{kind}"))).unwrap();
        }
    }
}

fn trusting(folder: &Path) -> ClientTls {
    ClientTls::load(ClientFiles {
        ca: Some(folder.join("ca.pem")),
        identity: None,
        sni: None,
        alpn: vec!["http/1.1".to_owned()],
    })
    .unwrap()
}

/// Connects, verifies that the certificate is for `host`, and asks once.
async fn ask_tls(at: SocketAddr, client: &ClientTls, host: &str) -> std::io::Result<String> {
    let mut io = client.connect(host, TcpStream::connect(at).await?).await?;
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn every_name_has_its_certificate_also_behind_the_proxy_protocol() {
    let (origin, mut heads) = echo_origin(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "one", "one.test");
    authority.issue(folder.path(), "two", "*.two.test");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let proxy = proxy_of(&format!(
        "
listeners:
- name: edge
  address: 127.0.0.1:0
  proxy_protocol: {{ allow_requests_without_proxy_protocol: true }}
  tls:
    certificate: {}
    private_key: {}
    certificates: [{{ certificate: {}, private_key: {} }}]
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters: [{{ name: web, endpoints: [\"{}\"] }}]
",
        file("one.crt"),
        file("one.key"),
        file("two.crt"),
        file("two.key"),
        origin.at
    ))
    .await;
    let client = trusting(folder.path());
    for host in ["one.test", "a.two.test"] {
        let answer = ask_tls(proxy.at, &client, host).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        heads.recv().await.unwrap();
    }
    assert!(ask_tls(proxy.at, &client, "other.test").await.is_err());

    let mut io = TcpStream::connect(proxy.at).await.unwrap();
    io.write_all(b"PROXY TCP4 192.0.2.9 127.0.0.1 1 2\r\n")
        .await
        .unwrap();
    let mut io = client.connect("b.two.test", io).await.unwrap();
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let head = heads.recv().await.unwrap();
    assert_eq!(header(&head, "x-forwarded-for"), Some("192.0.2.9"));
}

/// How the handshake of a connection went that asks once; the connection stays.
async fn shake_hands(
    at: SocketAddr,
    client: &ClientTls,
) -> (tokio_rustls::client::TlsStream<TcpStream>, String) {
    let stream = TcpStream::connect(at).await.unwrap();
    let mut io = client.connect("web.test", stream).await.unwrap();
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    let kind = format!("{:?}", io.get_ref().1.handshake_kind());
    (io, kind)
}

#[tokio::test]
async fn a_reload_that_leaves_a_listener_as_it_is_leaves_its_sessions_and_counts() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "web", "web.test");
    let config = |status: u16| {
        let folder = folder.path().display();
        format!(
            "
listeners:
- name: edge
  address: 127.0.0.1:0
  tls: {{ certificate: {folder}/web.crt, private_key: {folder}/web.key }}
  limits: {{ max_connections: 2 }}
routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: {status} }} }}]
"
        )
    };
    let proxy = proxy_of(&config(201)).await;
    let reload = async |status| {
        let (_, plan) = read(&config(status)).unwrap();
        proxy.running.reload(plan).await.unwrap();
    };
    let client = trusting(folder.path());
    let (mut first, kind) = shake_hands(proxy.at, &client).await;
    assert!(kind.contains("Full"), "{kind}");

    reload(202).await;

    let (_second, kind) = shake_hands(proxy.at, &client).await;
    assert_eq!(kind, "Some(Resumed)");
    assert_eq!(Raw::connect(proxy.at).await.rest().await, "");
    first
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    first.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");

    // What a session was begun with must hold: with another certificate it ends.
    authority.issue(folder.path(), "web", "web.test");
    reload(203).await;
    let (_third, kind) = shake_hands(proxy.at, &client).await;
    assert!(kind.contains("Full"), "{kind}");
}

#[tokio::test]
async fn certificates_are_renewed_under_load_and_nothing_fails() {
    let (origin, _heads) = echo_origin(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "web", "old.test");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let proxy = proxy_of(&format!(
        "
listeners:
- name: edge
  address: 127.0.0.1:0
  tls: {{ certificate: {}, private_key: {} }}
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters: [{{ name: web, endpoints: [\"{}\"] }}]
",
        file("web.crt"),
        file("web.key"),
        origin.at
    ))
    .await;
    // Verifies the authority but not the name, which is to change.
    let any_name = ClientTls::load_for_any_name(ClientFiles {
        ca: Some(folder.path().join("ca.pem")),
        identity: None,
        sni: None,
        alpn: vec!["http/1.1".to_owned()],
    })
    .unwrap();
    let io = TcpStream::connect(proxy.at).await.unwrap();
    let mut kept = any_name.connect("old.test", io).await.unwrap();

    let done = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for _ in 0..4 {
        let (done, served, client) = (done.clone(), served.clone(), any_name.clone());
        let at = proxy.at;
        clients.push(tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let answer = ask_tls(at, &client, "old.test").await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                served.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let strict = trusting(folder.path());
    for host in ["first.test", "second.test"] {
        let before = served.load(Ordering::Relaxed);
        authority.issue(folder.path(), "web", host);
        let renewed = async {
            while ask_tls(proxy.at, &strict, host).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, renewed)
            .await
            .expect("the new certificate");
        assert!(served.load(Ordering::Relaxed) > before);
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    kept.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    kept.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

// Unix sockets

#[tokio::test]
async fn all_workers_serve_one_unix_socket() {
    let (origin, mut heads) = echo_origin(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("edge.sock");
    let (_, plan) = read(&format!(
        "
workers: 3
listeners: [{{ name: edge, address: 'unix:{}', mode: \"0600\" }}]
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters: [{{ name: web, endpoints: [\"{}\"] }}]
",
        path.display(),
        origin.at
    ))
    .unwrap();
    let running = Proxy::start(plan, Metrics::default()).await.unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for _ in 0..10 {
        let mut client = UnixStream::connect(&path).await.unwrap();
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let head = heads.recv().await.unwrap();
        assert_eq!(header(&head, "x-forwarded-for"), None);
    }
    running.shutdown().await;
    assert!(!path.exists());
}

// TCP

#[tokio::test]
async fn tcp_is_passed_on_and_either_side_may_end_first() {
    let origin = tcp_origin().await;
    let listener = |l: &mut ListenerPlan| l.tcp = Some(TcpPlan::to(0));
    let proxy = start(plan_with(origin.at, listener, |_| {}, Forward::to(0))).await;
    let mut client = Raw::connect(proxy.at).await;
    client.send("hello").await;
    assert_eq!(client.take(5).await, "hello");
    client.0.shutdown().await.unwrap();
    assert_eq!(client.rest().await, "bye");
    for line in [
        "attache_tcp_sent_bytes_total{listener=\"test\"} 8",
        "attache_tcp_received_bytes_total{listener=\"test\"} 5",
        "attache_tcp_connections_started_total{listener=\"test\"} 1",
        "attache_tcp_connections{listener=\"test\"} 0",
    ] {
        shown(&proxy, line).await;
    }
}

#[tokio::test]
async fn every_connection_that_is_passed_on_has_a_line_in_the_access_log() {
    let echo = tcp_origin().await;
    // Resets what it has read from.
    let resets = origin(|_, mut stream| async move {
        let _ = stream.read(&mut [0; 10]).await;
        let _ = stream.set_zero_linger();
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let (lines, json) = (folder.path().join("lines"), folder.path().join("json"));
    let format = "%PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% \
        %UPSTREAM_CLUSTER% %UPSTREAM_HOST% %UPSTREAM_REQUEST_ATTEMPT_COUNT% \
        %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %REQ(:PATH)%\\n";
    let listener = |name: &str, more: &str| {
        format!(
            "
- name: {name}
  address: 127.0.0.1:0
  tcp: {{ cluster: {name}{more} }}
  access_log:
  - {{ path: {}, text_format: \"{name}: {format}\" }}
  - {{ path: {} }}",
            lines.display(),
            json.display()
        )
    };
    let config = format!(
        "
listeners:{}{}{}{}
clusters:
- {{ name: web, endpoints: ['{}'] }}
- {{ name: resets, endpoints: ['{}'] }}
- {{ name: dead, endpoints: ['127.0.0.1:1'] }}
- {{ name: idle, endpoints: ['{}'] }}
",
        listener("web", ""),
        listener("resets", ""),
        listener("dead", ", max_connect_attempts: 2"),
        listener("idle", ", idle_timeout: 0.1s"),
        echo.at,
        resets.at,
        echo.at,
    );
    let (_, plan) = read(&config).unwrap();
    let running = Proxy::start(plan, Metrics::default()).await.unwrap();
    let at: Vec<SocketAddr> = running
        .addresses()
        .iter()
        .map(|address| address.to_string().parse().unwrap())
        .collect();

    let mut client = Raw::connect(at[0]).await;
    client.send("hello").await;
    assert_eq!(client.take(5).await, "hello");
    client.0.shutdown().await.unwrap();
    assert_eq!(client.rest().await, "bye");
    for other in [at[1], at[2], at[3]] {
        let mut client = Raw::connect(other).await;
        let _ = client.0.write_all(b"x").await;
        let _ = client.0.read_to_end(&mut Vec::new()).await;
    }

    let seen = |file: &Path| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let all = async {
        while seen(&lines).len() < 4 || seen(&json).len() < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
    let (origin, resets) = (echo.at, resets.at);
    assert_eq!(
        seen(&lines),
        [
            "dead: - 0 UF,URX 0 0 dead 127.0.0.1:1 2 127.0.0.1 -".to_owned(),
            format!("idle: - 0 - 1 1 idle {origin} 1 127.0.0.1 -"),
            format!("resets: - 0 UR 1 0 resets {resets} 1 127.0.0.1 -"),
            format!("web: - 0 - 5 8 web {origin} 1 127.0.0.1 -"),
        ]
    );
    let objects = seen(&json);
    let mut objects: Vec<serde_json::Value> = objects
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    objects.sort_by_key(|object| object["cluster"].to_string());
    let details: Vec<_> = objects.iter().map(|object| &object["details"]).collect();
    assert_eq!(
        details,
        [
            "upstream_connect_failure",
            "idle_timeout",
            "upstream_reset",
            "closed"
        ]
    );
    assert_eq!(objects[3]["bytes_out"], 8);
    assert_eq!(objects[3]["upstream"], origin.to_string());
}

#[tokio::test]
async fn a_silent_tcp_connection_ends_after_its_idle_timeout() {
    let origin = tcp_origin().await;
    let listener = |l: &mut ListenerPlan| {
        l.tcp = Some(TcpPlan {
            idle_timeout: Some(Duration::from_millis(100)),
            ..TcpPlan::to(0)
        });
    };
    let proxy = start(plan_with(origin.at, listener, |_| {}, Forward::to(0))).await;
    let mut client = Raw::connect(proxy.at).await;
    client.send("x").await;
    assert_eq!(client.rest().await, "x");
    let idle = "attache_tcp_idle_timeouts_total{listener=\"test\"} 1";
    shown(&proxy, idle).await;
}

#[tokio::test]
async fn connecting_is_tried_with_other_endpoints() {
    let origin = tcp_origin().await;
    let plan = |attempts: u32| {
        let mut listener = ListenerPlan::new("db", any_port());
        listener.tcp = Some(TcpPlan {
            max_connect_attempts: attempts,
            ..TcpPlan::to(0)
        });
        // Nobody listens on a port that only root may have.
        let nobody = "127.0.0.1:1".parse().unwrap();
        let mut cluster = ClusterPlan::new("db", [nobody, address(origin.at)]);
        cluster.balance.policy = LbPolicy::RoundRobin;
        Plan::new(vec![listener], RouteTable::of(Vec::new()), vec![cluster])
    };
    let proxy = start(plan(2)).await;
    for _ in 0..4 {
        let mut client = Raw::connect(proxy.at).await;
        client.send("x").await;
        assert_eq!(client.take(1).await, "x");
    }
    let proxy = start(plan(1)).await;
    let mut lost = 0;
    for _ in 0..4 {
        let mut client = Raw::connect(proxy.at).await;
        client.0.shutdown().await.unwrap();
        lost += usize::from(client.rest().await.is_empty());
    }
    assert_eq!(lost, 2);
}

#[tokio::test]
async fn tls_is_passed_on_unopened_by_its_server_name() {
    let (web, _heads) = echo_origin(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    authority.issue(folder.path(), "web", "web.test");
    authority.issue(folder.path(), "raw", "db.raw.test");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let tls = |name: &str| {
        let (certificate, key) = (file(&format!("{name}.crt")), file(&format!("{name}.key")));
        format!("{{ certificate: {certificate}, private_key: {key} }}")
    };
    // It opens TLS itself; nobody before it can.
    let inner = proxy_of(&format!(
        "
listeners: [{{ name: inner, address: 127.0.0.1:0, tls: {} }}]
routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 200, body: {{ inline_string: inner }} }} }}]
",
        tls("raw")
    ))
    .await;
    let config = |own: &str| {
        format!(
            "
listeners:
- name: edge
  address: 127.0.0.1:0
  tls_passthrough: [{{ server_names: ['*.raw.test'], cluster: raw }}]
  {own}
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters:
- {{ name: web, endpoints: [\"{}\"] }}
- {{ name: raw, endpoints: [\"{}\"] }}
",
            web.at, inner.at
        )
    };
    let client = trusting(folder.path());
    let edge = proxy_of(&config(&format!("tls: {}", tls("web")))).await;
    let answer = ask_tls(edge.at, &client, "db.raw.test").await.unwrap();
    assert!(answer.ends_with("inner"), "{answer}");
    let answer = ask_tls(edge.at, &client, "web.test").await.unwrap();
    assert!(answer.ends_with("ok"), "{answer}");

    let alone = proxy_of(&config("limits: {}")).await;
    let answer = ask_tls(alone.at, &client, "db.raw.test").await.unwrap();
    assert!(answer.ends_with("inner"), "{answer}");
    assert!(ask_tls(alone.at, &client, "web.test").await.is_err());
    let mut plain = Raw::connect(alone.at).await;
    plain.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(plain.rest().await, "");
}

/// What a TLS client that wants this server says first.
async fn client_hello(name: &'static str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path());
    let client = trusting(folder.path());
    let (io, mut server) = tokio::io::duplex(16 << 10);
    let connecting = tokio::spawn(async move { client.connect(name, io).await.is_ok() });
    let mut hello = Vec::with_capacity(16 << 10);
    server.read_buf(&mut hello).await.unwrap();
    connecting.abort();
    hello
}

#[tokio::test]
async fn a_connection_that_is_passed_on_has_until_the_drain_is_over_and_is_logged_then() {
    let ways = [
        ("tcp: { cluster: raw }", b"hello".to_vec()),
        (
            "tls_passthrough: [{ server_names: [db.test], cluster: raw }]",
            client_hello("db.test").await,
        ),
    ];
    for (way, sent) in &ways {
        for removed in [false, true] {
            let case = format!("{way} {removed}");
            let origin = tcp_origin().await;
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("log");
            let config = |name: &str, address: &str| {
                format!(
                    "
listeners:
- name: {name}
  address: {address}
  access_log: {{ path: {} }}
  {way}
clusters: [{{ name: raw, endpoints: ['{}'] }}]
drain: {{ max: 0.1s }}
",
                    file.display(),
                    origin.at
                )
            };
            let proxy = proxy_of(&config("edge", "127.0.0.1:0")).await;
            let mut client = TcpStream::connect(proxy.at).await.unwrap();
            client.write_all(sent).await.unwrap();
            let mut back = vec![0; sent.len()];
            client.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, sent, "{case}");

            if removed {
                let other = read(&config("other", "127.0.0.1:0")).unwrap().1;
                proxy.running.reload(other).await.unwrap();
            } else {
                let stopped = tokio::time::timeout(PATIENCE, proxy.running.shutdown()).await;
                stopped.expect("a bounded drain");
            }

            let end = tokio::time::timeout(PATIENCE, client.read(&mut back)).await;
            assert!(matches!(end.expect(&case), Ok(0) | Err(_)), "{case}");
            let line = async {
                loop {
                    let text = std::fs::read_to_string(&file).unwrap();
                    if text.ends_with('\n') {
                        return text;
                    }
                    tokio::task::yield_now().await;
                }
            };
            let line = tokio::time::timeout(PATIENCE, line).await.expect(&case);
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(line["details"], "drain_timeout", "{case}: {line}");
            assert_eq!(line["flags"], "DC", "{case}: {line}");
            assert_eq!(line["bytes_in"], sent.len(), "{case}: {line}");
            assert_eq!(line["bytes_out"], sent.len(), "{case}: {line}");
        }
    }
}

#[tokio::test]
async fn the_access_log_says_which_server_name_was_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path()).issue(folder.path(), "raw", "db.raw.test");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let inner = proxy_of(&format!(
        "
listeners: [{{ name: inner, address: 127.0.0.1:0, tls: {{ certificate: {}, private_key: {} }} }}]
routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 200 }} }}]
",
        file("raw.crt"),
        file("raw.key")
    ))
    .await;
    let edge = proxy_of(&format!(
        "
listeners:
- name: edge
  address: 127.0.0.1:0
  tls_passthrough: [{{ server_names: ['*.raw.test'], cluster: raw }}]
  access_log:
  - {{ path: {}, text_format: \"%REQUESTED_SERVER_NAME% %UPSTREAM_CLUSTER%\\n\" }}
  - {{ path: {}, json_format: {{ name: '%REQUESTED_SERVER_NAME%' }} }}
  - {{ path: {} }}
clusters: [{{ name: raw, endpoints: ['{}'] }}]
",
        file("text"),
        file("chosen"),
        file("json"),
        inner.at
    ))
    .await;

    ask_tls(edge.at, &trusting(folder.path()), "db.raw.test")
        .await
        .unwrap();

    let line = async |name: &str| {
        let whole = async {
            loop {
                let text = std::fs::read_to_string(file(name)).unwrap_or_default();
                if text.ends_with('\n') {
                    return text;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, whole).await.unwrap()
    };
    assert_eq!(line("text").await, "db.raw.test raw\n");
    let object = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    assert_eq!(object(line("chosen").await)["name"], "db.raw.test");
    assert_eq!(object(line("json").await)["server_name"], "db.raw.test");
}

#[tokio::test]
async fn tls_may_be_opened_before_its_bytes_are_passed_on() {
    let origin = tcp_origin().await;
    let folder = tempfile::tempdir().unwrap();
    Authority::new(folder.path()).issue(folder.path(), "db", "db.test");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let proxy = proxy_of(&format!(
        "
listeners:
- name: db
  address: 127.0.0.1:0
  tls: {{ certificate: {}, private_key: {} }}
  tcp: {{ cluster: db }}
clusters: [{{ name: db, endpoints: [\"{}\"] }}]
",
        file("db.crt"),
        file("db.key"),
        origin.at
    ))
    .await;
    let client = ClientTls::load(ClientFiles {
        ca: Some(folder.path().join("ca.pem")),
        ..ClientFiles::default()
    })
    .unwrap();
    let io = TcpStream::connect(proxy.at).await.unwrap();
    let mut io = client.connect("db.test", io).await.unwrap();
    io.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    io.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"hello");
}

// Limits

#[tokio::test]
async fn connections_are_limited_over_all_listeners() {
    let proxy = proxy_of(
        "
max_active_downstream_connections: 2
listeners:
- { name: one, address: 127.0.0.1:0 }
- { name: two, address: 127.0.0.1:0 }
routes: [{ match: { prefix: / }, direct_response: { status: 200 } }]
",
    )
    .await;
    let other = proxy.running.addresses()[1].to_string().parse().unwrap();
    let mut first = Raw::connect(proxy.at).await;
    assert_eq!(status(&first.get("/").await.0), 200);
    let mut second = Raw::connect(other).await;
    assert_eq!(status(&second.get("/").await.0), 200);
    let mut third = Raw::connect(other).await;
    assert_eq!(third.rest().await, "");
    drop(first);
    let free = async {
        loop {
            let mut client = Raw::connect(other).await;
            let _ = client
                .0
                .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                .await;
            if read_head(&mut client.0).await.is_some() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, free)
        .await
        .expect("room again");
    drop(second);
}

// The end

/// A proxy whose drain lets new connections in for a long time.
async fn draining() -> (Tested, Origin) {
    let (origin, _heads) = echo_origin(OK).await;
    let mut plan = plan_with(origin.at, |_| {}, |_| {}, Forward::to(0));
    plan.drain_min = Duration::from_secs(60);
    plan.drain_timeout = Duration::from_secs(120);
    (start(plan).await, origin)
}

#[tokio::test]
async fn while_a_drain_has_just_begun_new_connections_are_served_and_told_to_go() {
    let (proxy, _origin) = draining().await;
    let (at, stopper) = (proxy.at, proxy.running.stopper());
    let mut kept = Raw::connect(at).await;
    let (head, _) = kept.get("/").await;
    assert_eq!(header(&head, "connection"), None);
    let stopping = tokio::spawn(proxy.running.shutdown());
    let told = async {
        loop {
            let mut client = Raw::connect(at).await;
            let (head, _) = client.get("/").await;
            if header(&head, "connection") == Some("close") {
                assert_eq!(client.rest().await, "");
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told)
        .await
        .expect("told to go");
    // One that was idle is not closed under a request, but with its response.
    let (head, body) = kept.get("/").await;
    assert_eq!(body, "ok");
    assert_eq!(header(&head, "connection"), Some("close"));
    assert_eq!(kept.rest().await, "");
    assert!(!stopping.is_finished());

    stopper.trigger_immediate();
    tokio::time::timeout(PATIENCE, stopping)
        .await
        .expect("a second signal ends everything")
        .unwrap();
}

#[tokio::test]
async fn http2_clients_are_told_to_go_within_the_minimum() {
    let (origin, _heads) = echo_origin(OK).await;
    let mut plan = plan_with(origin.at, |_| {}, |_| {}, Forward::to(0));
    plan.drain_min = Duration::from_millis(300);
    let proxy = start(plan).await;
    let io = TcpStream::connect(proxy.at).await.unwrap();
    let (mut client, connection) = h2::client::handshake(io).await.unwrap();
    let connection = tokio::spawn(connection);
    let ask = |client: &mut h2::client::SendRequest<bytes::Bytes>| {
        let request = http::Request::get("http://a/").body(()).unwrap();
        client.send_request(request, true).unwrap().0
    };
    assert_eq!(ask(&mut client).await.unwrap().status(), 200);
    let stopping = tokio::spawn(proxy.running.shutdown());
    tokio::time::timeout(PATIENCE, connection)
        .await
        .expect("the connection is closed")
        .unwrap()
        .expect("politely");
    tokio::time::timeout(PATIENCE, stopping)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_connection_that_waits_when_the_listener_closes_is_served() {
    let (origin, _heads) = echo_origin(OK).await;
    let proxy = start(plan_with(origin.at, |_| {}, |_| {}, Forward::to(0))).await;
    // They race with the end of accepting; whoever is connected is answered.
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(Raw::connect(proxy.at).await);
    }
    let stopping = tokio::spawn(proxy.running.shutdown());
    tokio::task::yield_now().await;
    for mut client in clients {
        assert_eq!(client.get("/").await.1, "ok");
    }
    tokio::time::timeout(PATIENCE, stopping)
        .await
        .unwrap()
        .unwrap();
}

// Configuration

#[test]
fn mistakes_about_listeners_are_found() {
    let refused = |listener: &str| {
        let text = format!(
            "
listeners:
- name: edge
  address: 127.0.0.1:1
  {listener}
filters: {{ f: {{ ext_proc: {{ grpc_service: {{ envoy_grpc: {{ cluster_name: c }} }} }} }} }}
clusters: [{{ name: c, endpoints: ['127.0.0.1:2'], http2: {{}} }}]
"
        );
        read(&text)
            .err()
            .map(|errors| errors.to_string())
            .unwrap_or_default()
    };
    for (listener, wanted) in [
        ("mode: \"0660\"", "only the file of a Unix socket"),
        ("mode: \"0999\"", "octal"),
        ("proxy_protocol: { from: [here] }", "`here` is no network"),
        ("proxy_protocol: { rules: [] }", "is not read"),
        ("tcp: { cluster: nowhere }", "`nowhere`"),
        (
            "tcp: { cluster: c, max_connect_attempts: 0 }",
            "between 1 and 10",
        ),
        ("tcp: { cluster: c }\n  filters: [f]", "policies see HTTP"),
        (
            "tls_passthrough: [{ server_names: [a.test], cluster: c }]\n  filters: [f]",
            "policies see HTTP",
        ),
        (
            "tls_passthrough: [{ server_names: ['a*'], cluster: c }]",
            "`a*` is no server name",
        ),
        (
            "tls_passthrough: [{ server_names: [a.test, A.test], cluster: c }]",
            "stands here twice",
        ),
    ] {
        let refused = refused(listener);
        assert!(refused.contains(wanted), "{listener}: {refused}");
    }
    let drain = read("drain: { min: 60s }\nlisteners: [{ name: a, address: '127.0.0.1:1' }]");
    assert!(drain.unwrap_err().to_string().contains("longer than `max`"));
}

#[tokio::test]
async fn a_socket_that_systemd_has_not_handed_over_is_named() {
    let (_, plan) = read("listeners: [{ name: edge, address: 'systemd:web' }]").unwrap();
    let error = Proxy::start(plan, Metrics::default()).await.err().unwrap();
    let text = error.to_string();
    assert!(
        text.contains("`edge`") && text.contains("systemd:web"),
        "{text}"
    );
}

#[test]
fn what_envoy_has_too_is_exported() {
    let (config, _) = read(
        "
max_active_downstream_connections: 7
listeners:
- name: edge
  address: 'unix:/run/edge.sock'
  mode: \"0660\"
  proxy_protocol: { from: [10.0.0.0/8, 192.0.2.1], disallowed_versions: [V1] }
  tls_passthrough:
  - { server_names: [db.test], cluster: db, idle_timeout: 0s, max_connect_attempts: 3 }
  tcp: { cluster: db }
clusters: [{ name: db, endpoints: ['127.0.0.1:2'] }]
",
    )
    .unwrap();
    let json = export::envoy(&config, &Default::default()).unwrap();
    let listener = &json["static_resources"]["listeners"][0];
    let at = |path: &str| listener.pointer(path).cloned().unwrap_or_default();
    assert_eq!(at("/address/pipe/mode"), 0o660);
    assert_eq!(
        at("/listener_filters/0/typed_config/disallowed_versions/0"),
        "V1"
    );
    assert_eq!(
        at("/listener_filters/1/name"),
        "envoy.filters.listener.tls_inspector"
    );
    let chain = "/filter_chains/0/filter_chain_match";
    assert_eq!(at(&format!("{chain}/server_names/0")), "db.test");
    assert_eq!(
        at(&format!("{chain}/direct_source_prefix_ranges/1/prefix_len")),
        32
    );
    let tcp = "/filter_chains/0/filters/0/typed_config";
    assert_eq!(at(&format!("{tcp}/idle_timeout")), "0s");
    assert_eq!(at(&format!("{tcp}/max_connect_attempts")), 3);
    assert_eq!(at("/filter_chains/1/filters/0/typed_config/cluster"), "db");
    let limit =
        "/overload_manager/resource_monitors/0/typed_config/max_active_downstream_connections";
    assert_eq!(json.pointer(limit), Some(&7.into()));
}
