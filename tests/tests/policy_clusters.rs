//! Clusters of policy services have the guards of any other: endpoints that fail are left out, and
//! calls over the limit are not made, or wait. Through our proxy and through real Envoy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use attache_proto::{auth::CheckResponse, rpc::Status};
use attache_service::channel::encode_message;
use attache_tests::{
    h1::{Framing, Reader},
    proxies::{Proxies, ask, origin},
};
use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::{HeaderMap, HeaderValue, Response};
use tokio::{io::AsyncWriteExt, net::TcpListener};

/// How long an endpoint may take to be left out.
const LIMIT: Duration = Duration::from_secs(20);
/// So many requests, one after the other, tell whether an endpoint is asked at all.
const ROUND: usize = 6;

/// What a policy service does with every call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Allows the request.
    Allow,
    /// Fails with this gRPC status, which is all of its answer.
    Fail(&'static str),
    /// Begins an answer, and fails with this gRPC status at its end.
    FailLate(&'static str),
    /// Answers with this HTTP status.
    Http(u16),
    /// Resets the stream.
    Reset,
    /// Never answers.
    Hang,
}

/// A service, and how many calls it has had.
struct Service {
    address: SocketAddr,
    calls: Arc<AtomicUsize>,
}

impl Service {
    async fn start(does: Does) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                let counted = counted.clone();
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(io).await.unwrap();
                    let mut hanging = Vec::new();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        counted.fetch_add(1, Relaxed);
                        hanging.extend(answer(does, respond).map(|respond| (request, respond)));
                    }
                });
            }
        });
        Self { address, calls }
    }

    fn calls(&self) -> usize {
        self.calls.load(Relaxed)
    }
}

/// Answers a call, or gives it back.
fn answer(does: Does, mut respond: SendResponse<Bytes>) -> Option<SendResponse<Bytes>> {
    let head = |status: u16, grpc: Option<&'static str>| {
        let head = Response::builder().status(status);
        let head = head.header("content-type", "application/grpc");
        let head = match grpc {
            Some(code) => head.header("grpc-status", code),
            None => head,
        };
        head.body(()).unwrap()
    };
    let trailers = |code| {
        HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static(code),
        )])
    };
    match does {
        Does::Allow => {
            let allowed = CheckResponse {
                status: Some(Status::default()),
                ..CheckResponse::default()
            };
            let mut body = respond.send_response(head(200, None), false).unwrap();
            body.send_data(encode_message(&allowed), false).unwrap();
            body.send_trailers(trailers("0")).unwrap();
        }
        Does::Fail(code) => {
            respond.send_response(head(200, Some(code)), true).unwrap();
        }
        Does::FailLate(code) => {
            let mut body = respond.send_response(head(200, None), false).unwrap();
            body.send_trailers(trailers(code)).unwrap();
        }
        Does::Http(status) => {
            respond.send_response(head(status, None), true).unwrap();
        }
        Does::Reset => respond.send_reset(Reason::INTERNAL_ERROR),
        Does::Hang => return Some(respond),
    }
    None
}

const GRPC_HEADERS: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

const AUTHZ: &str = "ext_authz: { transport_api_version: V3, failure_mode_allow: true, \
                     grpc_service: { envoy_grpc: { cluster_name: policy }, timeout: 0.2s } }";
const PROC: &str = "ext_proc: { failure_mode_allow: true, message_timeout: 0.2s, \
                    processing_mode: { response_header_mode: SKIP }, \
                    grpc_service: { envoy_grpc: { cluster_name: policy } } }";

/// No policy: the route itself sends requests there.
const GRPC: &str = "";

async fn proxies(filter: &str, endpoints: &[&Service], cluster: &str) -> Proxies {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|service| format!("'{}'", service.address))
        .collect();
    let (filters, filter, to) = match filter {
        GRPC => ("", String::new(), "policy"),
        filter => ("policy", format!("policy: {{ {filter} }}"), "web"),
    };
    let config = format!(
        "
listeners: [{{ name: edge, address: '127.0.0.1:0', filters: [{filters}] }}]
filters: {{ {filter} }}
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: {to} }} }}]
clusters:
- {{ name: web, endpoints: ['{}'], connect_timeout: 5s }}
- {{ name: policy, endpoints: [{}], http2: {{}}, connect_timeout: 5s, lb_policy: ROUND_ROBIN, {cluster} }}
workers: 1
",
        origin().await,
        endpoints.join(", "),
    );
    Proxies::run(&config, |_| ()).await
}

/// Asks until a round of requests leaves the service alone; false when that never happens.
async fn is_left_out(proxy: SocketAddr, service: &Service, limit: Duration) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        let before = service.calls();
        for _ in 0..ROUND {
            assert_eq!(ask(proxy, "POST", "/", &GRPC_HEADERS).await.status, 200);
        }
        if service.calls() == before {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn an_endpoint_of_a_policy_that_fails_its_calls_is_left_out() {
    for (filter, does, left_out) in [
        (AUTHZ, Does::Fail("14"), true),
        (AUTHZ, Does::Fail("13"), true),
        (AUTHZ, Does::Fail("7"), false),
        // As for requests that routes send, the end of an answer does not count.
        (AUTHZ, Does::FailLate("14"), false),
        (GRPC, Does::Fail("14"), true),
        (GRPC, Does::FailLate("14"), false),
        (AUTHZ, Does::Http(503), true),
        (AUTHZ, Does::Reset, true),
        (AUTHZ, Does::Hang, true),
        (PROC, Does::Fail("14"), true),
        (PROC, Does::Reset, true),
        (PROC, Does::Hang, false),
    ] {
        let good = Service::start(match filter {
            AUTHZ => Does::Allow,
            _ => Does::Fail("5"),
        })
        .await;
        let outliers = "outlier_detection: { consecutive_5xx: 2, max_ejection_percent: 100, \
                        base_ejection_time: 200s, interval: 100s }";
        let limit = if left_out {
            LIMIT
        } else {
            Duration::from_secs(2)
        };
        let bad = Service::start(does).await;
        let proxies = proxies(filter, &[&bad, &good], outliers).await;
        for (proxy, address) in &proxies.addresses {
            let seen = is_left_out(*address, &bad, limit).await;
            assert_eq!(seen, left_out, "{proxy}: {filter:.8}, {does:?}");
        }
    }
}

/// An auth service over plain HTTP that allows everything once it was asked so often, and how
/// many connections it has had.
async fn http_service(together: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let (asked, watch) = tokio::sync::watch::channel(0usize);
    let asked = Arc::new(asked);
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            counted.fetch_add(1, Relaxed);
            let (asked, mut watch) = (asked.clone(), watch.clone());
            tokio::spawn(async move {
                let (from, mut to) = io.split();
                let mut from = Reader::new(from);
                while let Some(head) = from.head().await {
                    let framing = head.framing(Framing::None);
                    from.body(framing, |_| ()).await.unwrap();
                    asked.send_modify(|asked| *asked += 1);
                    watch.wait_for(|asked| *asked >= together).await.unwrap();
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    to.write_all(answer).await.unwrap();
                }
            });
        }
    });
    (address, connections)
}

#[tokio::test]
async fn checks_over_plain_http_wait_for_a_connection_where_there_may_be_no_more() {
    // Without a limit the service waits for all three before it answers; with one it would wait
    // for ever.
    for (limits, together, wanted) in [
        ("", 3, 3),
        (
            "circuit_breakers: { thresholds: [{ max_connections: 1 }] }",
            1,
            1,
        ),
    ] {
        for at in 0..2 {
            let (service, connections) = http_service(together).await;
            let config = format!(
                "
listeners: [{{ name: edge, address: '127.0.0.1:0', filters: [policy] }}]
filters:
  policy:
    ext_authz:
      http_service: {{ server_uri: {{ uri: 'http://{service}', cluster: policy, timeout: 10s }} }}
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters:
- {{ name: web, endpoints: ['{}'], connect_timeout: 5s }}
- {{ name: policy, endpoints: ['{service}'], connect_timeout: 5s, {limits} }}
workers: 1
",
                origin().await,
            );
            let proxies = Proxies::run(&config, |_| ()).await;
            let Some((proxy, address)) = proxies.addresses.get(at) else {
                continue;
            };
            let ask = || ask(*address, "GET", "/", &[]);
            let answers = tokio::join!(ask(), ask(), ask());
            for answer in [answers.0, answers.1, answers.2] {
                assert_eq!(answer.status, 200, "{proxy}: {limits}");
            }
            assert_eq!(connections.load(Relaxed), wanted, "{proxy}: {limits}");
        }
    }
}

#[tokio::test]
async fn calls_of_a_policy_are_made_again_within_the_limits_of_its_cluster() {
    const RETRIED: &str = "ext_authz: { transport_api_version: V3, failure_mode_allow: true, \
        grpc_service: { envoy_grpc: { cluster_name: policy }, timeout: 5s, \
        retry_policy: { retry_on: unavailable, num_retries: 3, \
        retry_back_off: { base_interval: 0.001s, max_interval: 1s } } } }";
    for (limits, calls) in [
        ("", 4),
        ("max_retries: 1", 4),
        ("max_retries: 0", 1),
        (
            "retry_budget: { budget_percent: { value: 0 }, min_retry_concurrency: 0 }",
            1,
        ),
        (
            "retry_budget: { budget_percent: { value: 0 }, min_retry_concurrency: 1 }",
            4,
        ),
    ] {
        let service = Service::start(Does::Fail("14")).await;
        let limits = format!("circuit_breakers: {{ thresholds: [{{ {limits} }}] }}");
        let proxies = proxies(RETRIED, &[&service], &limits).await;
        for (proxy, address) in &proxies.addresses {
            let before = service.calls();
            assert_eq!(ask(*address, "GET", "/", &[]).await.status, 200);
            assert_eq!(service.calls() - before, calls, "{proxy}: {limits}");
        }
    }
}
