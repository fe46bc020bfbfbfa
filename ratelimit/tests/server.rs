//! The service over gRPC: codes, texts, statuses, reload, metrics.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{fs, path::Path, time::Duration};

use attache_proto::ratelimit::{
    RateLimitRequest, RateLimitResponse,
    rate_limit_response::{Code, DescriptorStatus, RateLimit, rate_limit::Unit},
};
use attache_ratelimit::{
    RateLimitServer,
    limiter::{ManualClock, descriptor},
    server::{Settings, StoreSettings},
    store::{Batch, MemoryStore, Reading, Store, StoreError},
};
use attache_service::{Channel, ChannelSettings, Method, Metrics, channel::Target, host::Host};
use http::HeaderMap;
use prost::Message as _;
use tonic::Status;

const RULES: &str = "
domain: shop
descriptors:
- key: user
  rate_limit: { unit: minute, requests_per_unit: 2, name: by-user }
- key: free
  rate_limit: { unlimited: true }
";

type Server<S = MemoryStore> = RateLimitServer<S, ManualClock>;

fn server<S: Store>(rules: &Path, store: S, metrics: &Metrics) -> Server<S> {
    RateLimitServer::with_clock(rules, store, ManualClock::at(1_000_000), metrics)
        .unwrap_or_else(|errors| panic!("{errors}"))
}

fn channel<S: Store>(server: &Server<S>) -> Channel {
    let host = Host::default().service(server.service());
    let targets = vec![Target::Embedded(host.embedded())];
    Channel::new(ChannelSettings::new("limits", targets))
}

async fn call(channel: &Channel, request: &RateLimitRequest) -> Result<RateLimitResponse, Status> {
    let method = Method::new("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");
    let message = request.encode_to_vec();
    let answer = channel
        .unary(&method, &message, HeaderMap::new(), None)
        .await?;
    Ok(RateLimitResponse::decode(answer).unwrap())
}

fn request(domain: &str, entries: &[(&str, &str)]) -> RateLimitRequest {
    RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: entries.iter().map(|entry| descriptor([*entry])).collect(),
        hits_addend: 0,
    }
}

fn rules(text: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("shop.yaml"), text).unwrap();
    directory
}

#[tokio::test]
async fn answers_have_a_status_per_descriptor() {
    let directory = rules(RULES);
    let server = server(
        directory.path(),
        MemoryStore::default(),
        &Metrics::default(),
    );
    let channel = channel(&server);
    let request = request("shop", &[("user", "alice"), ("free", "x"), ("no", "rule")]);
    let by_user = |code: Code, limit_remaining| DescriptorStatus {
        code: code.into(),
        current_limit: Some(RateLimit {
            requests_per_unit: 2,
            unit: Unit::Minute.into(),
            name: "by-user".to_owned(),
            unit_multiplier: None,
        }),
        limit_remaining,
        duration_until_reset: Some(prost_types::Duration {
            seconds: 20,
            nanos: 0,
        }),
        ..DescriptorStatus::default()
    };
    let free = |limit_remaining| DescriptorStatus {
        code: Code::Ok.into(),
        limit_remaining,
        ..DescriptorStatus::default()
    };
    for (overall, remaining) in [(Code::Ok, 1), (Code::Ok, 0), (Code::OverLimit, 0)] {
        let answer = call(&channel, &request).await.unwrap();
        let expected = RateLimitResponse {
            overall_code: overall.into(),
            statuses: vec![by_user(overall, remaining), free(u32::MAX), free(0)],
            ..RateLimitResponse::default()
        };
        assert_eq!(answer, expected);
    }
}

#[tokio::test]
async fn bad_requests_get_the_references_code_and_text() {
    let directory = rules(RULES);
    let metrics = Metrics::default();
    let server = server(directory.path(), MemoryStore::default(), &metrics);
    let channel = channel(&server);
    for (request, text) in [
        (
            request("", &[("user", "a")]),
            "rate limit domain must not be empty",
        ),
        (
            request("shop", &[]),
            "rate limit descriptor list must not be empty",
        ),
    ] {
        let status = call(&channel, &request).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (tonic::Code::Unknown, text)
        );
    }
    assert!(
        metrics
            .render()
            .contains("attache_ratelimit_service_error_total{} 2")
    );
}

/// A store that has gone.
struct Gone;

impl Store for Gone {
    async fn charge(&self, _: &Batch, _: &mut Vec<Reading>) -> Result<(), StoreError> {
        Err(StoreError::Timeout {
            store: "redis",
            address: "there:1".to_owned(),
            millis: 10,
        })
    }
}

#[tokio::test]
async fn a_store_that_fails_is_an_error_for_the_callers_failure_mode() {
    let directory = rules(RULES);
    let metrics = Metrics::default();
    let server = server(directory.path(), Gone, &metrics);
    let channel = channel(&server);
    let status = call(&channel, &request("shop", &[("user", "a")]))
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unknown);
    assert_eq!(
        status.message(),
        "redis at there:1 did not answer within 10 ms"
    );
    assert!(
        metrics
            .render()
            .contains("attache_ratelimit_store_error_total{} 1")
    );
    // What needs no counter is decided without the store.
    let answer = call(&channel, &request("shop", &[("free", "a")]))
        .await
        .unwrap();
    assert_eq!(answer.overall_code, i32::from(Code::Ok));
}

#[tokio::test]
async fn a_bad_reload_keeps_the_rules_and_a_good_one_keeps_the_counters() {
    let directory = rules(RULES);
    let metrics = Metrics::default();
    let server = server(directory.path(), MemoryStore::default(), &metrics);
    let alice = request("shop", &[("user", "alice")]);
    for _ in 0..3 {
        server.decide(&alice).await.unwrap();
    }

    fs::write(directory.path().join("bad.yaml"), "descriptors: []").unwrap();
    let errors = server.reload().unwrap_err();
    assert!(
        errors
            .to_string()
            .contains("config file cannot have empty domain"),
        "{errors}"
    );
    let answer = server.decide(&alice).await.unwrap();
    assert_eq!(answer.overall_code, i32::from(Code::OverLimit));

    fs::write(directory.path().join("bad.yaml"), "domain: other").unwrap();
    let more = RULES.replace("requests_per_unit: 2", "requests_per_unit: 9");
    fs::write(directory.path().join("shop.yaml"), more).unwrap();
    server.reload().unwrap();
    let answer = server.decide(&alice).await.unwrap();
    assert_eq!(answer.statuses[0].limit_remaining, 4);
    let text = metrics.render();
    assert!(
        text.contains("attache_ratelimit_config_load_success_total{} 2"),
        "{text}"
    );
    assert!(
        text.contains("attache_ratelimit_config_load_error_total{} 1"),
        "{text}"
    );
}

#[tokio::test]
async fn hits_are_counted_per_rule_and_not_per_value() {
    let directory = rules(RULES);
    let metrics = Metrics::default();
    let server = server(directory.path(), MemoryStore::default(), &metrics);
    for value in ["alice", "bob", "alice", "alice"] {
        server
            .decide(&request("shop", &[("user", value)]))
            .await
            .unwrap();
    }
    server
        .decide(&request("elsewhere", &[("user", "alice")]))
        .await
        .unwrap();
    let text = metrics.render();
    for line in [
        "attache_ratelimit_hits_total{domain=\"shop\",rule=\"user\"} 4",
        "attache_ratelimit_over_limit_total{domain=\"shop\",rule=\"user\"} 1",
        "attache_ratelimit_within_limit_total{domain=\"shop\",rule=\"user\"} 3",
        "attache_ratelimit_near_limit_total{domain=\"shop\",rule=\"user\"} 1",
        "attache_ratelimit_domain_not_found_total{} 1",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.contains("alice"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn counters_of_past_windows_go_without_further_traffic() {
    let directory = rules(RULES);
    let clock = ManualClock::at(1_000_000);
    let store = MemoryStore::default();
    let server =
        RateLimitServer::with_clock(directory.path(), store, clock.clone(), &Metrics::default())
            .unwrap();
    let channel = channel(&server);
    call(&channel, &request("shop", &[("user", "alice")]))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(server.store().len(), 1);
    clock.set(1_000_060);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(server.store().len(), 0);
}

#[tokio::test]
async fn a_server_opens_from_its_settings() {
    let directory = rules(RULES);
    let mut settings = Settings {
        rules: directory.path().to_path_buf(),
        store: StoreSettings::default(),
    };
    let server = settings.open(&Metrics::default()).await.unwrap();
    assert_eq!(server.watched(), [directory.path()]);
    settings.rules.push("missing");
    let error = settings.open(&Metrics::default()).await.unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}
