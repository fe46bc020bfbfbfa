//! Plain counters: the reference service's keys, exactly, with few commands; and outages.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attache_proto::ratelimit::RateLimitRequest;
use attache_ratelimit::{
    Limiter, Rules,
    limiter::{Code, LimitError, ManualClock, descriptor},
    store::{RedisStore, StoreError, redis::RedisSettings},
};
use attache_service::Metrics;
use redis::AsyncCommands as _;

use crate::server::Server;

const RULES: &str = "
domain: d
descriptors:
- key: k
  rate_limit: { unit: hour, requests_per_unit: 500 }
- key: ten
  rate_limit: { unit: minute, requests_per_unit: 10 }
";

type RedisLimiter = Limiter<RedisStore, ManualClock>;

async fn limiter(server: &Server, timeout: Duration) -> RedisLimiter {
    let settings = RedisSettings {
        timeout,
        ..RedisSettings::parse(&server.url()).unwrap()
    };
    let store = RedisStore::connect(settings, &Metrics::default()).await;
    assert!(store.is_connected());
    let rules = Rules::parse("rules.yaml", RULES).unwrap();
    Limiter::with_clock(rules, store, ManualClock::at(1234))
}

fn request(key: &str, value: &str) -> RateLimitRequest {
    RateLimitRequest {
        domain: "d".to_owned(),
        descriptors: vec![descriptor([(key, value)])],
        hits_addend: 0,
    }
}

/// Long enough for a busy machine, for tests that are not about time.
const PATIENT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn keys_counts_and_lifetimes_are_those_of_the_reference() {
    let Some(server) = Server::start().await else {
        return;
    };
    let limiter = limiter(&server, PATIENT).await;
    let mut request = request("ten", "v");
    request.descriptors.push(descriptor([("k", "")]));
    request.descriptors[0].hits_addend = Some(3);

    let decision = limiter.decide(&request).await.unwrap();
    assert_eq!(decision.descriptors[0].remaining, 7);
    assert_eq!(decision.descriptors[1].remaining, 499);

    let mut redis = server.connection().await;
    let mut keys: Vec<String> = redis.keys("*").await.unwrap();
    keys.sort();
    assert_eq!(keys, ["d_k__0", "d_ten_v_1200"]);
    let count: u64 = redis.get("d_ten_v_1200").await.unwrap();
    assert_eq!(count, 3);
    let lifetime: i64 = redis.ttl("d_ten_v_1200").await.unwrap();
    assert!((55..=62).contains(&lifetime), "{lifetime}");
}

#[tokio::test]
async fn hits_given_back_stop_at_zero() {
    let Some(server) = Server::start().await else {
        return;
    };
    let limiter = limiter(&server, PATIENT).await;
    let mut request = request("ten", "back");
    request.descriptors[0].hits_addend = Some(5);
    limiter.decide(&request).await.unwrap();
    request.descriptors[0].is_negative_hits = true;
    request.descriptors[0].hits_addend = Some(3);
    for remaining in [8, 10] {
        let decision = limiter.decide(&request).await.unwrap();
        assert_eq!(decision.descriptors[0].remaining, remaining);
    }
    let lifetime: i64 = server
        .connection()
        .await
        .ttl("d_ten_back_1200")
        .await
        .unwrap();
    assert!(lifetime > 0, "{lifetime}");
}

/// 64 clients with 1,000 hits each; returns how many passed.
async fn rush(instances: &[Arc<RedisLimiter>]) -> u32 {
    let tasks: Vec<_> = (0..64)
        .map(|client| {
            let limiter = instances[client % instances.len()].clone();
            tokio::spawn(async move {
                let request = request("k", "shared");
                let mut passed = 0;
                for _ in 0..1000 {
                    if limiter.decide(&request).await.unwrap().code == Code::Ok {
                        passed += 1;
                    }
                }
                passed
            })
        })
        .collect();
    let mut passed = 0;
    for task in tasks {
        passed += task.await.unwrap();
    }
    passed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn exactly_the_limit_passes_on_one_instance_and_on_four() {
    for count in [1, 4] {
        let Some(server) = Server::start().await else {
            return;
        };
        let mut instances = Vec::new();
        for _ in 0..count {
            instances.push(Arc::new(limiter(&server, PATIENT).await));
        }
        assert_eq!(rush(&instances).await, 500, "{count} instances");
        // Hits on one key leave together.
        let sent = server.calls("incrby").await;
        println!("{sent} INCRBY for 64,000 hits on {count} instances");
        assert!(sent < 64_000 / 2, "{sent}");
    }
}

#[tokio::test]
async fn spread_keys_cost_one_command_for_each_hit() {
    let Some(server) = Server::start().await else {
        return;
    };
    let limiter = Arc::new(limiter(&server, PATIENT).await);
    let tasks: Vec<_> = (0..50)
        .map(|client| {
            let limiter = limiter.clone();
            tokio::spawn(async move {
                for hit in 0..100 {
                    let request = request("k", &format!("{client}_{}", hit % 10));
                    limiter.decide(&request).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(server.calls("set").await, 500);
    assert_eq!(server.calls("incrby").await, 4500);
    assert_eq!(server.calls("expire").await, 0);
}

#[tokio::test]
async fn a_counter_that_another_instance_has_begun_is_added_to() {
    let Some(server) = Server::start().await else {
        return;
    };
    let first = limiter(&server, PATIENT).await;
    let second = limiter(&server, PATIENT).await;
    for (instance, remaining) in [(&first, 9), (&second, 8), (&second, 7), (&first, 6)] {
        let decision = instance.decide(&request("ten", "v")).await.unwrap();
        assert_eq!(decision.descriptors[0].remaining, remaining);
    }
    assert_eq!(server.calls("set").await, 2);
    assert_eq!(server.calls("incrby").await, 3);
}

#[tokio::test]
async fn a_counter_has_a_lifetime_even_if_redis_was_emptied() {
    let Some(server) = Server::start().await else {
        return;
    };
    let limiter = limiter(&server, PATIENT).await;
    limiter.decide(&request("ten", "v")).await.unwrap();
    let mut redis = server.connection().await;
    redis::cmd("FLUSHALL").exec_async(&mut redis).await.unwrap();

    limiter.decide(&request("ten", "v")).await.unwrap();
    // Behind the EXPIRE on the same connection.
    limiter.decide(&request("ten", "v")).await.unwrap();

    let lifetime: i64 = redis.ttl("d_ten_v_1200").await.unwrap();
    assert!(lifetime > 0, "{lifetime}");
}

/// Asks until `done`; panics after a while. Returns the slowest answer.
async fn ask_until(
    limiter: &RedisLimiter,
    done: impl Fn(&Result<Code, LimitError>) -> bool,
) -> Duration {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut slowest = Duration::ZERO;
    loop {
        let started = Instant::now();
        let answer = limiter.decide(&request("k", "outage")).await;
        slowest = slowest.max(started.elapsed());
        if done(&answer.map(|decision| decision.code)) {
            return slowest;
        }
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The operation's deadline and what a busy machine may add.
const OPERATION: Duration = Duration::from_millis(100);
const AT_MOST: Duration = Duration::from_millis(600);

#[tokio::test]
async fn a_killed_redis_makes_errors_at_once_and_a_new_one_is_found() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    let limiter = limiter(&server, OPERATION).await;
    limiter.decide(&request("k", "outage")).await.unwrap();

    server.kill();
    let slowest = ask_until(&limiter, |answer| {
        matches!(
            answer,
            Err(LimitError::Store(StoreError::NotConnected { .. }))
        )
    })
    .await;
    assert!(slowest < AT_MOST, "{slowest:?}");
    let error = limiter.decide(&request("k", "outage")).await.unwrap_err();
    let expected = format!("redis at 127.0.0.1:{} is not connected", server.port);
    assert!(error.to_string().starts_with(&expected), "{error}");

    server.restart().await;
    let slowest = ask_until(&limiter, Result::is_ok).await;
    assert!(slowest < AT_MOST, "{slowest:?}");
}

#[tokio::test]
async fn a_stalled_redis_holds_nobody_longer_than_the_deadline() {
    let Some(server) = Server::start().await else {
        return;
    };
    let limiter = limiter(&server, OPERATION).await;
    limiter.decide(&request("k", "outage")).await.unwrap();

    server.signal("-STOP");
    let slowest = ask_until(&limiter, |answer| {
        matches!(answer, Err(LimitError::Store(StoreError::Timeout { .. })))
    })
    .await;
    assert!(slowest < AT_MOST, "{slowest:?}");
    // After a while the connection itself is given up, and errors come without waiting.
    let slowest = ask_until(&limiter, |answer| {
        matches!(
            answer,
            Err(LimitError::Store(StoreError::NotConnected { .. }))
        )
    })
    .await;
    assert!(slowest < AT_MOST, "{slowest:?}");

    server.signal("-CONT");
    ask_until(&limiter, Result::is_ok).await;
}

#[tokio::test]
async fn a_store_can_be_opened_before_redis_is_there() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    server.kill();
    let settings = RedisSettings::parse(&server.url()).unwrap();
    let store = RedisStore::connect(settings, &Metrics::default()).await;
    assert!(!store.is_connected());

    server.restart().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !store.is_connected() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
