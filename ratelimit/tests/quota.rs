//! Quotas over gRPC: reports in, assignments out.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{fs, future::poll_fn, time::Duration};

use attache_proto::{
    rate_limit_quota::{
        BucketId, RateLimitQuotaResponse, RateLimitQuotaUsageReports,
        rate_limit_quota_response::bucket_action::BucketAction as Action,
        rate_limit_quota_usage_reports::BucketQuotaUsage,
    },
    ratelimit::RateLimitRequest,
    types::rate_limit_strategy::{BlanketRule, Strategy},
};
use attache_ratelimit::{
    RateLimitServer,
    limiter::{ManualClock, descriptor},
    server::quota::{QuotaServer, QuotaSettings},
    store::{Amount, Batch, MemoryStore, Reading, Store, StoreError},
};
use attache_service::{
    Channel, ChannelSettings, GrpcStream, Host, Method, Metrics,
    channel::{Target, encode_message},
};
use http::HeaderMap;
use prost::Message as _;
use tonic::Status;

const RULES: &str = "
domain: shop
descriptors:
- key: route
  value: checkout
  descriptors:
  - key: user
    rate_limit: { unit: minute, requests_per_unit: 10 }
- key: free
  rate_limit: { unlimited: true }
- key: watched
  shadow_mode: true
  rate_limit: { unit: minute, requests_per_unit: 1 }
";

type Limits<S> = RateLimitServer<S, ManualClock>;

/// A service of quotas, and the rate limit service that it belongs to.
struct Service<S: Store = MemoryStore> {
    limits: Limits<S>,
    channel: Channel,
    metrics: Metrics,
    clock: ManualClock,
    directory: tempfile::TempDir,
}

impl Service {
    fn start(settings: QuotaSettings) -> Self {
        Self::counting_in(MemoryStore::default(), settings)
    }
}

impl<S: Store> Service<S> {
    fn counting_in(store: S, settings: QuotaSettings) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("shop.yaml"), RULES).unwrap();
        let metrics = Metrics::default();
        // 20 seconds before a minute ends.
        let clock = ManualClock::at(1_000_000);
        let limits =
            RateLimitServer::with_clock(directory.path(), store, clock.clone(), &metrics).unwrap();
        let quotas = QuotaServer::new(limits.clone(), settings, &metrics);
        let target = Target::Embedded(Host::new(quotas.routes()).embedded());
        Self {
            limits,
            channel: Channel::new(ChannelSettings::new("quotas", vec![target])),
            metrics,
            clock,
            directory,
        }
    }

    fn open(&self) -> Proxy {
        let method = Method::new(
            "/envoy.service.rate_limit_quota.v3.RateLimitQuotaService/StreamRateLimitQuotas",
        );
        Proxy(self.channel.stream(&method, HeaderMap::new()))
    }
}

/// One stream.
struct Proxy(GrpcStream);

const CHECKOUT: [(&str, &str); 2] = [("user", "alice"), ("route", "checkout")];

impl Proxy {
    fn report(&mut self, domain: &str, bucket: &[(&str, &str)], allowed: u64) {
        let pairs = bucket.iter();
        let usage = BucketQuotaUsage {
            bucket_id: Some(BucketId {
                bucket: pairs
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            }),
            time_elapsed: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            num_requests_allowed: allowed,
            num_requests_denied: 0,
        };
        let reports = RateLimitQuotaUsageReports {
            domain: domain.to_owned(),
            bucket_quota_usages: vec![usage],
        };
        self.0.send(encode_message(&reports));
    }

    async fn response(&mut self) -> Result<RateLimitQuotaResponse, Status> {
        let next = poll_fn(|cx| self.0.poll_message(cx));
        let message = tokio::time::timeout(Duration::from_secs(120), next).await;
        let message = message.unwrap_or_else(|_| panic!("no answer"));
        let message = message.unwrap_or_else(|| Err(Status::ok("ended")))?;
        Ok(RateLimitQuotaResponse::decode(message).unwrap())
    }

    /// The next assignment, as text, and for how long it holds.
    async fn told(&mut self) -> (String, i64) {
        let mut actions = self.response().await.unwrap().bucket_action;
        assert_eq!(actions.len(), 1, "{actions:?}");
        match actions.remove(0).bucket_action.unwrap() {
            Action::AbandonAction(_) => ("abandon".to_owned(), 0),
            Action::QuotaAssignmentAction(action) => {
                let seconds = action.assignment_time_to_live.unwrap().seconds;
                let text = match action.rate_limit_strategy.unwrap().strategy.unwrap() {
                    Strategy::BlanketRule(rule) => BlanketRule::try_from(rule)
                        .unwrap()
                        .as_str_name()
                        .to_owned(),
                    Strategy::TokenBucket(bucket) => {
                        assert_eq!(bucket.tokens_per_fill, Some(bucket.max_tokens));
                        let interval = bucket.fill_interval.unwrap().seconds;
                        format!("{} in {interval} s", bucket.max_tokens)
                    }
                    Strategy::RequestsPerTimeUnit(_) => "not understood by Envoy".to_owned(),
                };
                (text, seconds)
            }
        }
    }

    async fn assignment(&mut self) -> String {
        self.told().await.0
    }
}

#[tokio::test(start_paused = true)]
async fn streams_share_the_limit_of_their_bucket() {
    let service = Service::start(QuotaSettings::default());
    let mut one = service.open();
    one.report("shop", &CHECKOUT, 1);
    assert_eq!(one.told().await, ("10 in 60 s".to_owned(), 60));

    let mut two = service.open();
    // Pairs have no order, and the domain stands in the first message at least.
    two.report("shop", &[CHECKOUT[1], CHECKOUT[0]], 1);
    assert_eq!(two.assignment().await, "5 in 60 s");
    assert_eq!(one.assignment().await, "5 in 60 s");

    drop(one);
    assert_eq!(two.assignment().await, "10 in 60 s");
    two.report("", &CHECKOUT, 0);
    assert_eq!(two.assignment().await, "10 in 60 s");
    let text = service.metrics.render();
    for line in [
        "attache_ratelimit_quota_streams{} 1",
        "attache_ratelimit_quota_buckets{} 1",
        "attache_ratelimit_quota_reports_total{} 3",
        "attache_ratelimit_quota_assignments_total{} 5",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_used_up_window_refuses_everybody_until_it_ends() {
    let service = Service::start(QuotaSettings::default());
    let mut one = service.open();
    let mut two = service.open();
    one.report("shop", &CHECKOUT, 1);
    one.told().await;
    two.report("shop", &CHECKOUT, 9);
    assert_eq!(two.told().await, ("DENY_ALL".to_owned(), 22));
    assert_eq!(one.assignment().await, "DENY_ALL");
    // The clock of the counters stands still, the one of the streams does not.
    assert_eq!(one.assignment().await, "5 in 60 s");
    assert_eq!(two.assignment().await, "5 in 60 s");
}

#[tokio::test(start_paused = true)]
async fn reports_and_rate_limit_requests_share_counters() {
    let service = Service::start(QuotaSettings::default());
    let mut proxy = service.open();
    proxy.report("shop", &CHECKOUT, 4);
    proxy.told().await;
    let request = RateLimitRequest {
        domain: "shop".to_owned(),
        descriptors: vec![descriptor([("route", "checkout"), ("user", "alice")])],
        hits_addend: 5,
    };
    let answer = service.limits.decide(&request).await.unwrap();
    assert_eq!(answer.statuses[0].limit_remaining, 1);
    proxy.report("shop", &CHECKOUT, 1);
    assert_eq!(proxy.assignment().await, "DENY_ALL");
}

#[tokio::test(start_paused = true)]
async fn buckets_without_a_limit_are_let_through_and_those_without_a_rule_abandoned() {
    let service = Service::start(QuotaSettings::default());
    let mut proxy = service.open();
    for (bucket, expected) in [
        (("free", "x"), "ALLOW_ALL"),
        (("watched", "x"), "ALLOW_ALL"),
        (("unknown", "x"), "abandon"),
        // Not deep enough.
        (("route", "checkout"), "abandon"),
    ] {
        proxy.report("shop", &[bucket], 5);
        assert_eq!(proxy.assignment().await, expected, "{bucket:?}");
    }
    let mut elsewhere = service.open();
    elsewhere.report("elsewhere", &CHECKOUT, 1);
    assert_eq!(elsewhere.assignment().await, "abandon");
}

#[tokio::test(start_paused = true)]
async fn rules_that_change_change_assignments_without_a_report() {
    let service = Service::start(QuotaSettings::default());
    let mut proxy = service.open();
    proxy.report("shop", &CHECKOUT, 1);
    assert_eq!(proxy.assignment().await, "10 in 60 s");
    let more = RULES.replace(
        "unit: minute, requests_per_unit: 10",
        "unit: hour, requests_per_unit: 70",
    );
    fs::write(service.directory.path().join("shop.yaml"), more).unwrap();
    service.limits.reload().unwrap();
    assert_eq!(proxy.assignment().await, "70 in 3600 s");
}

#[tokio::test(start_paused = true)]
async fn silent_subscribers_give_their_share_back() {
    let service = Service::start(QuotaSettings::default());
    let mut one = service.open();
    let mut two = service.open();
    for proxy in [&mut one, &mut two] {
        proxy.report("shop", &CHECKOUT, 0);
        proxy.told().await;
    }
    assert_eq!(one.assignment().await, "5 in 60 s");
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(25)).await;
        two.report("shop", &CHECKOUT, 0);
        two.told().await;
    }
    two.report("shop", &CHECKOUT, 0);
    assert_eq!(two.assignment().await, "10 in 60 s");
}

#[tokio::test(start_paused = true)]
async fn malformed_reports_cost_their_stream_only() {
    let service = Service::start(QuotaSettings::default());
    let mut good = service.open();
    good.report("shop", &CHECKOUT, 0);
    good.told().await;
    // What comes before a fault of the same stream is valid.
    let free = &[("free", "x")][..];
    let cases = [
        ("has no domain", vec![("", free)]),
        ("has no bucket_id", vec![("shop", &[][..])]),
        ("does not change", vec![("shop", free), ("other", free)]),
    ];
    for (text, reports) in cases {
        let mut bad = service.open();
        for (domain, bucket) in reports {
            bad.report(domain, bucket, 0);
        }
        let status = loop {
            if let Err(status) = bad.response().await {
                break status;
            }
        };
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains(text), "{status}");
    }
    good.report("shop", &CHECKOUT, 0);
    assert_eq!(good.assignment().await, "10 in 60 s");
}

#[tokio::test(start_paused = true)]
async fn streams_beyond_the_bound_are_refused() {
    let service = Service::start(QuotaSettings {
        max_streams: 1,
        ..QuotaSettings::default()
    });
    let mut one = service.open();
    one.report("shop", &CHECKOUT, 0);
    one.told().await;
    let status = service.open().response().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    let refused = "attache_ratelimit_quota_refused_total{what=\"streams\"} 1";
    assert!(service.metrics.render().contains(refused));
}

/// A store that takes a second for each look.
struct Slow(MemoryStore);

impl Store for Slow {
    async fn charge(&self, batch: &Batch, readings: &mut Vec<Reading>) -> Result<(), StoreError> {
        if batch
            .iter()
            .all(|(_, charge)| charge.amount == Amount::Add(0))
        {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.0.charge(batch, readings).await
    }
}

#[tokio::test(start_paused = true)]
async fn windows_begin_in_time_while_many_buckets_are_looked_at_again() {
    let store = Slow(MemoryStore::default());
    let service = Service::counting_in(store, QuotaSettings::default());
    let mut proxy = service.open();
    proxy.report("shop", &CHECKOUT, 10);
    assert_eq!(proxy.assignment().await, "DENY_ALL");
    let mut other = service.open();
    for user in 0..50 {
        let user = user.to_string();
        other.report("shop", &[("route", "checkout"), ("user", &user)], 1);
        other.told().await;
    }
    let clock = service.clock.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            clock.advance(Duration::from_secs(1));
        }
    });

    let begun = tokio::time::Instant::now();
    service.limits.reload().unwrap();

    // A look at a bucket may find its window's end a moment off, which is told.
    let mut assignment = proxy.assignment().await;
    while assignment == "DENY_ALL" {
        assignment = proxy.assignment().await;
    }
    assert_eq!(assignment, "10 in 60 s");
    let waited = begun.elapsed();
    assert!(waited < Duration::from_secs(25), "{waited:?}");
}

/// A store that is away for the first charges.
struct Late {
    store: MemoryStore,
    failures: std::sync::atomic::AtomicU32,
}

impl Store for Late {
    async fn charge(&self, batch: &Batch, readings: &mut Vec<Reading>) -> Result<(), StoreError> {
        use std::sync::atomic::Ordering;
        let left = self.failures.load(Ordering::Relaxed);
        if left > 0 {
            self.failures.store(left - 1, Ordering::Relaxed);
            return Err(StoreError::Timeout {
                store: "redis",
                address: "there:1".to_owned(),
                millis: 10,
            });
        }
        self.store.charge(batch, readings).await
    }
}

#[tokio::test(start_paused = true)]
async fn usage_is_not_lost_while_the_store_is_away() {
    let late = Late {
        store: MemoryStore::default(),
        failures: 1.into(),
    };
    let service = Service::counting_in(late, QuotaSettings::default());
    let mut proxy = service.open();
    // The first one is not answered: there is nothing to say.
    proxy.report("shop", &CHECKOUT, 9);
    proxy.report("shop", &CHECKOUT, 1);
    assert_eq!(proxy.assignment().await, "DENY_ALL");
}
