//! Our quota service behind the `rate_limit_quota` filter of real Envoy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, net::SocketAddr, time::Duration};

use attache_proto::ratelimit::RateLimitRequest;
use attache_ratelimit::{
    RateLimitServer,
    limiter::descriptor,
    server::quota::{QuotaServer, QuotaSettings},
    store::MemoryStore,
};
use attache_service::{Address, Host, Metrics, Shutdown};
use attache_tests::{
    envoy::{self, Envoy},
    envoy_config::listener_name,
    proxies::ask,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

const RULES: &str = "
domain: edge
descriptors:
- key: route
  value: checkout
  descriptors:
  - key: user
    rate_limit: { unit: day, requests_per_unit: 10 }
";

/// The service, and the rules that it goes by.
struct Service {
    limits: RateLimitServer<MemoryStore>,
    address: Address,
    folder: tempfile::TempDir,
}

impl Service {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("edge.yaml"), RULES).unwrap();
        let metrics = Metrics::default();
        let limits =
            RateLimitServer::load(folder.path(), MemoryStore::default(), &metrics).unwrap();
        let quotas = QuotaServer::new(limits.clone(), QuotaSettings::default(), &metrics);
        let host = Host::new(quotas.routes()).workers(1);
        let bound = host.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = bound.address().clone();
        tokio::spawn(bound.serve(Shutdown::new()));
        Self {
            limits,
            address,
            folder,
        }
    }
}

/// An Envoy that refuses what it has no assignment for.
fn bootstrap(service: &Address) -> Value {
    let Address::Tcp { host, port } = service else {
        panic!("{service}");
    };
    let header = json!({
        "@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
        "header_name": "x-user",
    });
    let settings = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rate_limit_quota.v3.RateLimitQuotaBucketSettings",
        "bucket_id_builder": { "bucket_id_builder": {
            "user": { "custom_value": { "name": "user", "typed_config": header } },
            "route": { "string_value": "checkout" },
        } },
        "no_assignment_behavior": { "fallback_rate_limit": { "blanket_rule": "DENY_ALL" } },
        // Envoy 1.40 reports every 5 s, whatever stands here.
        "reporting_interval": "5s",
    });
    let filter = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rate_limit_quota.v3.RateLimitQuotaFilterConfig",
        "rlqs_server": { "envoy_grpc": { "cluster_name": "quotas" } },
        "domain": "edge",
        "bucket_matchers": { "on_no_match": { "action": {
            "name": "quota", "typed_config": settings,
        } } },
    });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
            { "match": { "prefix": "/" }, "direct_response": { "status": 200 } },
        ] }] },
        "http_filters": [
            { "name": "envoy.filters.http.rate_limit_quota", "typed_config": filter },
            { "name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            } },
        ],
    });
    let loopback = |host: &str, port: u16| json!({ "socket_address": { "address": host, "port_value": port } });
    json!({ "static_resources": {
        "listeners": [{
            "name": listener_name(0),
            "address": loopback("127.0.0.1", 0),
            "filter_chains": [{ "filters": [{ "name": "http", "typed_config": manager }] }],
        }],
        "clusters": [{
            "name": "quotas",
            "connect_timeout": "5s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {} },
                },
            },
            "load_assignment": { "cluster_name": "quotas", "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": loopback(host, *port) } },
            ] }] },
        }],
    } })
}

async fn status(envoy: SocketAddr) -> u16 {
    ask(envoy, "GET", "/", &[("x-user", "alice")]).await.status
}

/// Asks until a request passes.
async fn until_one_passes(envoy: SocketAddr) {
    let passes = async {
        while status(envoy).await != 200 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), passes).await.unwrap();
}

/// How many requests pass until none has for a second.
async fn passing(envoy: SocketAddr) -> u64 {
    let mut passed = 0;
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_secs(1) {
        if status(envoy).await == 200 {
            passed += 1;
            last = Instant::now();
        } else {
            sleep(Duration::from_millis(20)).await;
        }
    }
    passed
}

/// What is left of the limit, by the counters of the rate limit service.
async fn left(service: &Service) -> u32 {
    let mut alice = descriptor([("route", "checkout"), ("user", "alice")]);
    alice.hits_addend = Some(0);
    let request = RateLimitRequest {
        domain: "edge".to_owned(),
        descriptors: vec![alice],
        hits_addend: 0,
    };
    let answer = service.limits.decide(&request).await.unwrap();
    answer.statuses[0].limit_remaining
}

/// Waits until reports have used the limit up.
async fn until_reported(service: &Service) {
    let reported = async {
        while left(service).await > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), reported).await.unwrap();
}

#[tokio::test]
async fn an_envoy_lets_through_what_it_is_assigned() {
    let Some(program) = envoy::program() else {
        println!("skipped: no Envoy (run cargo xtask test)");
        return;
    };
    let service = Service::start().await;
    let envoy = Envoy::start(&program, &[bootstrap(&service.address)]).await;
    let envoy = envoy.unwrap();
    let address = envoy.address(0).unwrap();

    // Refused, reported, and answered with an assignment.
    assert_eq!(status(address).await, 429);
    until_one_passes(address).await;
    assert_eq!(1 + passing(address).await, 10);
    until_reported(&service).await;

    // Rules that change are assigned without a restart of anything.
    let more = RULES.replace("requests_per_unit: 10", "requests_per_unit: 100");
    fs::write(service.folder.path().join("edge.yaml"), more).unwrap();
    service.limits.reload().unwrap();
    until_one_passes(address).await;
}

#[tokio::test]
async fn two_envoys_share_a_limit() {
    let Some(program) = envoy::program() else {
        println!("skipped: no Envoy (run cargo xtask test)");
        return;
    };
    let service = Service::start().await;
    let parts = [bootstrap(&service.address)];
    let one = Envoy::start(&program, &parts).await.unwrap();
    let two = Envoy::start(&program, &parts).await.unwrap();
    let (first, second) = (one.address(0).unwrap(), two.address(0).unwrap());
    assert_eq!(status(first).await, 429);
    until_one_passes(first).await;
    assert_eq!(status(second).await, 429);
    until_one_passes(second).await;

    let (more, others) = tokio::join!(passing(first), passing(second));

    // Together they have the limit, and at most what the first was assigned before it had to
    // share.
    let passed = 2 + more + others;
    assert!((10..=15).contains(&passed), "{more} and {others}");
    until_reported(&service).await;
}
