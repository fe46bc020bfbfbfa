//! What runs as a script: other meters, and charges that depend on what fits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attache_ratelimit::{
    limiter::{UnixTime, Window},
    store::{
        Amount, Batch, Charging, MemoryStore, Meter, Reading, RedisStore, Rejected, Store, Terms,
        redis::RedisSettings,
    },
};
use attache_service::Metrics;
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};

use crate::server::Server;

const NOW: UnixTime = UnixTime::from_seconds(1234);

async fn store(server: &Server) -> RedisStore {
    let settings = RedisSettings {
        timeout: Duration::from_secs(5),
        ..RedisSettings::parse(&server.url()).unwrap()
    };
    RedisStore::connect(settings, &Metrics::default()).await
}

async fn charge(
    store: &impl Store,
    charging: Charging,
    charges: &[(&str, Terms, Amount)],
) -> Vec<Reading> {
    let mut batch = Batch::new(NOW);
    batch.set_charging(charging);
    for (key, terms, amount) in charges {
        batch.begin("d");
        batch.entry("k", key);
        batch.charge(*terms, *amount);
    }
    let mut readings = Vec::new();
    store.charge(&batch, &mut readings).await.unwrap();
    assert_eq!(readings.len(), charges.len());
    readings
}

async fn one(store: &impl Store, terms: Terms, amount: Amount) -> Reading {
    charge(store, Charging::Each, &[("one", terms, amount)]).await[0]
}

fn fixed(limit: u32, rejected: Rejected) -> Terms {
    Terms {
        rejected,
        ..Terms::fixed_window(Window::at(NOW.seconds(), 3600), limit)
    }
}

fn with(meter: Meter, limit: u32) -> Terms {
    Terms {
        meter,
        ..fixed(limit, Rejected::Free)
    }
}

/// Whether the charges depend on each other; of each: which key, on what terms, what.
type Sample = (Charging, Vec<(usize, Terms, Amount)>);

/// Batches of charges of a few counters.
fn batches() -> impl Strategy<Value = Vec<Sample>> {
    let amount = prop_oneof![
        4 => (0..4_u32).prop_map(Amount::Add),
        1 => (0..4_u32).prop_map(Amount::Refund),
    ];
    let terms = |key| {
        let rejected = match key {
            0 => Rejected::Free,
            _ => Rejected::Counted,
        };
        fixed(6, rejected)
    };
    let one = move |amount| (0..3_usize, amount).prop_map(move |(key, n)| (key, terms(key), n));
    let batch = prop_oneof![
        (
            Just(Charging::Each),
            prop::collection::vec(one(amount.boxed()), 1..4)
        ),
        (
            Just(Charging::AllOrNothing),
            prop::collection::vec(one((0..4_u32).prop_map(Amount::Add).boxed()), 1..4)
        ),
    ];
    prop::collection::vec(batch, 200)
}

#[tokio::test]
async fn fixed_windows_are_counted_as_in_memory() {
    let Some(server) = Server::start().await else {
        return;
    };
    let (redis, memory) = (store(&server).await, MemoryStore::default());
    let mut runner = TestRunner::new(Config::default());
    for round in 0..10 {
        let names: Vec<_> = ["a", "b", "c"].map(|key| format!("{key}{round}")).into();
        for (charging, charges) in batches().new_tree(&mut runner).unwrap().current() {
            let charges: Vec<_> = charges
                .iter()
                .map(|(key, terms, amount)| (names[*key].as_str(), *terms, *amount))
                .collect();
            let expected = charge(&memory, charging, &charges).await;
            let found = charge(&redis, charging, &charges).await;
            assert_eq!(found, expected, "{charging:?} {charges:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_hits_that_are_free_when_refused_exactly_the_limit_passes() {
    let Some(server) = Server::start().await else {
        return;
    };
    let stores = [store(&server).await, store(&server).await];
    for meter in [
        Meter::FixedWindow(Window::at(1234, 3600)),
        Meter::SlidingWindow(Window::at(1234, 86_400)),
        Meter::TokenBucket {
            // Nothing comes back in the time of a test.
            period: 864_000,
            burst: 100,
        },
    ] {
        let tasks: Vec<_> = (0..16)
            .map(|client| {
                let store = stores[client % 2].clone();
                tokio::spawn(async move {
                    let mut passed = 0;
                    for _ in 0..20 {
                        let reading = one(&store, with(meter, 100), Amount::Add(1)).await;
                        passed += u32::from(reading.charged);
                    }
                    passed
                })
            })
            .collect();
        let mut passed = 0;
        for task in tasks {
            passed += task.await.unwrap();
        }
        assert_eq!(passed, 100, "{meter:?}");
    }
}

/// Charges until it passes; returns how long that took.
async fn until_charged(store: &impl Store, terms: Terms, amount: Amount) -> Duration {
    let started = Instant::now();
    while !one(store, terms, amount).await.charged {
        assert!(started.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    started.elapsed()
}

#[tokio::test]
async fn a_bucket_lets_a_burst_pass_and_then_the_rate() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store(&server).await;
    let bucket = Meter::TokenBucket {
        period: 1,
        burst: 3,
    };
    let terms = with(bucket, 2);
    let full = one(&store, terms, Amount::Add(3)).await;
    assert_eq!((full.before, full.after, full.charged), (0, 3, true));
    assert_eq!(full.resets_in, 2);
    let refused = one(&store, terms, Amount::Add(1)).await;
    assert_eq!((refused.after, refused.charged), (4, false));
    assert_eq!(refused.resets_in, 1);

    // Two a second is one in half a second, of which some has passed.
    let waited = until_charged(&store, terms, Amount::Add(1)).await;
    assert!(waited > Duration::from_millis(300), "{waited:?}");
    let given_back = one(&store, terms, Amount::Refund(9)).await;
    assert_eq!(given_back.after, 0);
    assert!(one(&store, terms, Amount::Add(3)).await.charged);
}

#[tokio::test]
async fn hits_of_the_last_window_fade() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store(&server).await;
    let terms = with(Meter::SlidingWindow(Window::at(1234, 2)), 10);
    until_charged(&store, terms, Amount::Add(10)).await;
    let refused = one(&store, terms, Amount::Add(1)).await;
    assert!(!refused.charged);
    assert!((1..=4).contains(&refused.resets_in), "{refused:?}");
    until_charged(&store, terms, Amount::Add(1)).await;
    // One more has faded at least, not all.
    let last = one(&store, terms, Amount::Add(10)).await;
    assert!(!last.charged && last.before < 11, "{last:?}");
    assert!(one(&store, terms, Amount::Refund(100)).await.charged);
}

#[tokio::test]
async fn a_script_that_redis_has_forgotten_is_sent_again() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store(&server).await;
    let terms = fixed(10, Rejected::Free);
    for expected in 1..=3 {
        assert_eq!(one(&store, terms, Amount::Add(1)).await.after, expected);
        let mut redis = server.connection().await;
        redis::cmd("SCRIPT")
            .arg("FLUSH")
            .exec_async(&mut redis)
            .await
            .unwrap();
    }
    assert_eq!(one(&store, terms, Amount::Add(1)).await.after, 4);
}

#[tokio::test]
async fn seconds_live_on_their_own_redis_and_belong_together_all_the_same() {
    let (Some(main), Some(seconds)) = (Server::start().await, Server::start().await) else {
        return;
    };
    let settings = RedisSettings {
        timeout: Duration::from_secs(5),
        per_second: Some(Box::new(RedisSettings::parse(&seconds.url()).unwrap())),
        ..RedisSettings::parse(&main.url()).unwrap()
    };
    let store = Arc::new(RedisStore::connect(settings, &Metrics::default()).await);
    let second = Terms::fixed_window(Window::at(NOW.seconds(), 1), 10);
    let hour = Terms::fixed_window(Window::at(NOW.seconds(), 3600), 5);
    let both = |hits| {
        [
            ("s", second, Amount::Add(hits)),
            ("h", hour, Amount::Add(hits)),
        ]
    };

    let readings = charge(&store, Charging::Each, &both(1)).await;
    assert_eq!((readings[0].after, readings[1].after), (1, 1));
    for (server, key) in [(&seconds, "d_k_s_1234"), (&main, "d_k_h_0")] {
        let mut redis = server.connection().await;
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg("*")
            .query_async(&mut redis)
            .await
            .unwrap();
        assert_eq!(keys, [key]);
    }

    // Fits in the second, not in the hour.
    let readings = charge(&store, Charging::AllOrNothing, &both(5)).await;
    assert_eq!((readings[0].before, readings[0].after), (1, 6));
    assert_eq!((readings[1].before, readings[1].after), (1, 6));
    assert!(readings.iter().all(|reading| !reading.charged));
    let readings = charge(&store, Charging::AllOrNothing, &both(4)).await;
    assert_eq!((readings[0].after, readings[1].after), (5, 5));
}
