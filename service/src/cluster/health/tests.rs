use std::{
    sync::atomic::{AtomicU16, AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tonic::service::Routes;

use super::{config::tests::planned, *};
use crate::{
    Address, Host, Shutdown,
    channel::Target,
    cluster::{
        Described, Io,
        outlier::{Detector, Outcome},
    },
    config::Errors,
    tls::{
        ServerTls,
        tests::{Authority, dns},
    },
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A server that answers `status`, or nothing at all for 0.
struct Server {
    at: Address,
    status: Arc<AtomicU16>,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

async fn server(http2: bool) -> Server {
    server_with(http2, None).await
}

async fn server_with(http2: bool, tls: Option<ServerTls>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server {
        at: listener.local_addr().unwrap().to_string().parse().unwrap(),
        status: Arc::new(AtomicU16::new(200)),
        requests: Arc::default(),
        connections: Arc::default(),
    };
    let (status, requests) = (server.status.clone(), server.requests.clone());
    let connections = server.connections.clone();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            connections.fetch_add(1, SeqCst);
            let (status, requests) = (status.clone(), requests.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                requests.fetch_add(1, SeqCst);
                let status = status.load(SeqCst);
                async move {
                    if status == 0 {
                        std::future::pending::<()>().await;
                    }
                    let host = request.headers().get("host").cloned();
                    let host = host.or_else(|| {
                        let authority = request.uri().authority()?;
                        authority.as_str().parse().ok()
                    });
                    // The wrong question has no good answer.
                    let right = request.uri().path() == "/well" && host.unwrap() == "well.test";
                    let status = if right { status } else { 404 };
                    let mut response = Response::new(Full::new(Bytes::from_static(b"said")));
                    *response.status_mut() = StatusCode::from_u16(status).unwrap();
                    Ok::<_, std::convert::Infallible>(response)
                }
            });
            let tls = tls.clone();
            tokio::spawn(async move {
                let io: Box<dyn Io> = match tls {
                    None => Box::new(io),
                    Some(tls) => match tls.accept(io).await {
                        Ok(io) => Box::new(io),
                        Err(_) => return Ok(()),
                    },
                };
                let io = TokioIo::new(io);
                if http2 {
                    let builder = conn::http2::Builder::new(TokioExecutor::new());
                    builder.serve_connection(io, service).await
                } else {
                    conn::http1::Builder::new()
                        .serve_connection(io, service)
                        .await
                }
            });
        }
    });
    server
}

/// Endpoints that are checked as `text` says, and their metrics.
async fn checked(described: impl Into<Described>, text: &str) -> (Arc<Endpoints>, Metrics) {
    checked_with(described, text, None, None).await
}

async fn checked_with(
    described: impl Into<Described>,
    text: &str,
    outliers: Option<Arc<Outliers>>,
    tls: Option<ClientTls>,
) -> (Arc<Endpoints>, Metrics) {
    let metrics = Metrics::default();
    let endpoints = Endpoints::new("web", [described.into()]);
    let plan = planned(text).unwrap();
    let checks = HealthChecks::new(plan, tls, outliers, "web", &metrics);
    // As after the first request: checks are not slow.
    let one = endpoint(&endpoints);
    let _ = one.counted(async { Ok::<(), ()>(()) }).await;
    endpoints.attach(checks.run(Arc::downgrade(&endpoints)));
    (endpoints, metrics)
}

fn endpoint(endpoints: &Endpoints) -> Arc<Endpoint> {
    endpoints.members()[0].endpoint.clone()
}

async fn until(endpoints: &Endpoints, healthy: bool) {
    let wait = async {
        loop {
            let version = endpoints.version();
            if endpoint(endpoints).is_healthy() == healthy {
                return;
            }
            endpoints.changed(version).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("the endpoint should be healthy: {healthy}"));
}

/// Waits for as many further checks as this.
async fn checks(server: &Server, more: usize) {
    let wanted = server.requests.load(SeqCst) + more;
    let wait = async {
        while server.requests.load(SeqCst) < wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("checks go on");
}

const HTTP: &str = "http_health_check: { path: /well, host: well.test }, interval: 5ms";

#[tokio::test]
async fn an_endpoint_is_left_out_while_it_answers_badly() {
    for http2 in [false, true] {
        let server = server(http2).await;
        let text = match http2 {
            true => "{ http_health_check: { path: /well, host: well.test, codec_client_type: HTTP2 }, interval: 5ms }".to_owned(),
            false => format!("{{ {HTTP} }}"),
        };
        let (endpoints, metrics) = checked(server.at.clone(), &text).await;

        checks(&server, 3).await;
        assert!(endpoint(&endpoints).is_healthy());
        server.status.store(500, SeqCst);
        until(&endpoints, false).await;
        server.status.store(200, SeqCst);
        until(&endpoints, true).await;

        assert_eq!(server.connections.load(SeqCst), 1, "it is used again");
        let text = metrics.render();
        for result in ["passed", "failed"] {
            let line =
                format!("attache_health_checks_total{{cluster=\"web\",result=\"{result}\"}}");
            assert!(text.contains(&line), "{text}");
        }
    }
}

#[tokio::test]
async fn each_check_has_a_connection_of_its_own_where_it_is_not_kept() {
    let server = server(false).await;
    let (_endpoints, _) = checked(
        server.at.clone(),
        &format!("{{ {HTTP}, reuse_connection: false }}"),
    )
    .await;
    checks(&server, 3).await;
    assert!(server.connections.load(SeqCst) >= 3);
}

#[tokio::test]
async fn silence_counts_towards_the_threshold() {
    let server = server(false).await;
    let text = format!("{{ {HTTP}, timeout: 20ms, unhealthy_threshold: 3 }}");
    let (endpoints, _) = checked(server.at.clone(), &text).await;
    checks(&server, 2).await;
    server.status.store(0, SeqCst);
    checks(&server, 2).await;
    assert!(endpoint(&endpoints).is_healthy());
    until(&endpoints, false).await;
}

#[tokio::test]
async fn an_endpoint_where_nobody_listens_fails_its_first_check() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
    drop(listener);
    for text in [
        "{ tcp_health_check: {}, interval: 5ms }",
        "{ http_health_check: { path: / }, interval: 5ms, unhealthy_threshold: 9 }",
    ] {
        let (endpoints, _) = checked(at.clone(), text).await;
        until(&endpoints, false).await;
    }
}

#[tokio::test]
async fn bytes_are_looked_for_in_their_order() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = [0; 4];
                while io.read_exact(&mut asked).await.is_ok() {
                    assert_eq!(&asked, b"PING");
                    io.write_all(b"-xPO").await.unwrap();
                    io.write_all(b"NG..").await.unwrap();
                }
            });
        }
    });
    let hex = |text: &str| {
        let digits = text.bytes().map(|byte| format!("{byte:02x}"));
        format!("{{ text: '{}' }}", digits.collect::<String>())
    };
    for (receive, healthy) in [
        (&["PONG"][..], true),
        (&["x", "NG"], true),
        (&["NG", "x"], false),
        (&["pong"], false),
    ] {
        let receive: Vec<_> = receive.iter().map(|part| hex(part)).collect();
        let text = format!(
            "{{ tcp_health_check: {{ send: {}, receive: [{}] }}, interval: 5ms, timeout: 50ms }}",
            hex("PING"),
            receive.join(", ")
        );
        let (endpoints, metrics) = checked(at.clone(), &text).await;
        let result = if healthy { "passed" } else { "failed" };
        let line = format!("result=\"{result}\"}} 3");
        let wait = async {
            while !metrics.render().contains(&line) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "{receive:?}: {}", metrics.render());
        assert_eq!(endpoint(&endpoints).is_healthy(), healthy, "{receive:?}");
    }
}

#[tokio::test]
async fn a_grpc_service_is_healthy_while_it_says_that_it_serves() {
    let host = Host::new(Routes::default());
    let health = host.health();
    health.set("a.Service", true);
    let at = Target::Embedded(host.embedded());
    let asked = "{ grpc_health_check: { service_name: a.Service }, interval: 5ms }";
    let (endpoints, metrics) = checked(at.clone(), asked).await;
    let other = "{ grpc_health_check: { service_name: another.Service }, interval: 5ms }";
    let (unknown, _) = checked(at, other).await;

    until(&unknown, false).await;
    while !metrics.render().contains("result=\"passed\"} 2") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(endpoint(&endpoints).is_healthy());
    health.set("a.Service", false);
    until(&endpoints, false).await;
    health.set("a.Service", true);
    until(&endpoints, true).await;
}

#[tokio::test]
async fn what_is_no_grpc_does_not_pass() {
    let server = server(true).await;
    let (endpoints, _) = checked(
        server.at.clone(),
        "{ grpc_health_check: {}, interval: 5ms }",
    )
    .await;
    until(&endpoints, false).await;
}

#[tokio::test]
async fn checks_go_over_the_tls_of_the_cluster() {
    let authority = Authority::new();
    authority.issue("web", vec![dns("web.test")]);
    let stranger = Authority::new();
    let serves = |http2: bool| {
        let mut files = authority.server("web", false);
        files.alpn = vec![if http2 { "h2" } else { "http/1.1" }.to_owned()];
        ServerTls::load(files).unwrap()
    };
    let trusts = |authority: &Authority, http2: bool| {
        let mut files = authority.client(None);
        files.alpn = vec![if http2 { "h2" } else { "http/1.1" }.to_owned()];
        Some(ClientTls::load(files).unwrap())
    };
    let named = |at: &Address| Described {
        hostname: Some("web.test".into()),
        ..Described::from(at.clone())
    };
    for (http2, codec) in [(false, "HTTP1"), (true, "HTTP2")] {
        let server = server_with(http2, Some(serves(http2))).await;
        let text = format!(
            "{{ http_health_check: {{ path: /well, host: well.test, codec_client_type: {codec} }}, interval: 5ms }}"
        );
        let at = named(&server.at);
        let known = trusts(&authority, http2);
        let (endpoints, metrics) = checked_with(at.clone(), &text, None, known).await;
        let unknown = trusts(&stranger, http2);
        let (untrusted, _) = checked_with(at, &text, None, unknown).await;

        until(&untrusted, false).await;
        let why = endpoint(&untrusted).reason(Trouble::FailedCheck).unwrap();
        assert!(why.contains("certificate"), "{codec}: {why}");
        checks(&server, 3).await;
        assert!(endpoint(&endpoints).is_healthy(), "{codec}");
        assert!(!metrics.render().contains("result=\"failed\"} 1"));
        server.status.store(503, SeqCst);
        until(&endpoints, false).await;
    }

    let host = Host::new(Routes::default()).tls(serves(true));
    let health = host.health();
    health.set("a.Service", true);
    let bound = host.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let at = named(bound.address());
    let _serving = AbortOnDropHandle::new(tokio::spawn(bound.serve(Shutdown::new())));
    let asked = "{ grpc_health_check: { service_name: a.Service }, interval: 5ms }";
    let known = trusts(&authority, true);
    let (endpoints, metrics) = checked_with(at.clone(), asked, None, known).await;
    let unknown = trusts(&stranger, true);
    let (untrusted, _) = checked_with(at, asked, None, unknown).await;

    until(&untrusted, false).await;
    let passed = async {
        while !metrics.render().contains("result=\"passed\"} 2") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, passed).await.unwrap();
    health.set("a.Service", false);
    until(&endpoints, false).await;
}

#[tokio::test]
async fn endpoints_that_come_are_checked_and_those_that_go_are_not() {
    let (old, new) = (server(false).await, server(false).await);
    new.status.store(500, SeqCst);
    let (endpoints, _) = checked(old.at.clone(), &format!("{{ {HTTP} }}")).await;
    checks(&old, 2).await;

    endpoints.replace(vec![new.at.clone().into()]);

    until(&endpoints, false).await;
    let before = old.requests.load(SeqCst);
    checks(&new, 3).await;
    // One may have been on its way.
    assert!(old.requests.load(SeqCst) <= before + 1);
}

#[tokio::test]
async fn nobody_is_asked_for_endpoints_that_are_gone() {
    let server = server(false).await;
    let (endpoints, _) = checked(server.at.clone(), &format!("{{ {HTTP} }}")).await;
    checks(&server, 1).await;
    let weak = Arc::downgrade(&endpoints);
    drop(endpoints);
    let gone = async {
        while weak.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("no check holds its endpoints");
}

#[tokio::test]
async fn a_check_that_passes_ends_an_ejection_unless_told_otherwise() {
    for (settings, readmitted) in [
        ("{ consecutive_5xx: 1, max_ejection_percent: 100 }", true),
        (
            "{ consecutive_5xx: 1, max_ejection_percent: 100, successful_active_health_check_uneject_host: false }",
            false,
        ),
    ] {
        let server = server(false).await;
        let document = crate::config::Document::parse("o.yaml", settings).unwrap();
        let detector = Detector::plan(&document.decode().unwrap(), &mut Errors::new());
        let outliers = Outliers::new(detector, "web", &Metrics::default());
        let (endpoints, _) = checked_with(
            server.at.clone(),
            &format!("{{ {HTTP} }}"),
            Some(outliers.clone()),
            None,
        )
        .await;
        // Not the last one.
        let other = self::server(false).await.at;
        let first = Described::from(server.at.clone());
        endpoints.replace(vec![first, other.into()]);
        checks(&server, 1).await;

        let one = endpoint(&endpoints);
        outliers.note(&endpoints, &one, Outcome::Broken);
        checks(&server, 3).await;

        assert_eq!(!one.is_in(Trouble::Ejected), readmitted, "{settings}");
    }
}
