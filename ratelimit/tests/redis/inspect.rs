//! Counters as operators see them.

use std::time::{Duration, SystemTime};

use attache_ratelimit::{
    limiter::{UnixTime, Window},
    store::{
        Amount, AnyStore, Batch, CounterState, Inspect as _, Meter, Query, Reading, RedisStore,
        SharedSettings, Sharing, Source, Store, StoreError, Terms,
        redis::{KeyFormat, RedisSettings},
        shared::Backend,
    },
};
use attache_service::Metrics;
use redis::{AsyncCommands as _, FromRedisValue};

use crate::server::Server;

fn settings(server: &Server) -> RedisSettings {
    RedisSettings {
        timeout: Duration::from_secs(5),
        ..RedisSettings::parse(&server.url()).unwrap()
    }
}

async fn store(settings: RedisSettings) -> RedisStore {
    RedisStore::connect(settings, &Metrics::default()).await
}

fn now(store: &impl Store) -> UnixTime {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    store.time(UnixTime::from_micros(since.as_micros().try_into().unwrap()))
}

fn fixed(store: &impl Store, length: u64) -> Terms {
    Terms::fixed_window(Window::at(now(store).seconds(), length), 10)
}

async fn hit(store: &impl Store, value: &str, terms: Terms, hits: u32) -> Reading {
    let mut batch = Batch::new(now(store));
    batch.begin("d");
    batch.entry("k", value);
    batch.charge(terms, Amount::Add(hits));
    let mut readings = Vec::new();
    store.charge(&batch, &mut readings).await.unwrap();
    readings[0]
}

fn query(prefix: &str) -> Query {
    Query {
        prefix: prefix.to_owned(),
        cursor: None,
        limit: 100,
    }
}

async fn list(store: &RedisStore, prefix: &str) -> Vec<CounterState> {
    let page = store.list(&query(prefix), now(store)).await.unwrap();
    assert_eq!(page.next, None);
    let mut counters = page.counters;
    counters.sort_by(|a, b| a.key.cmp(&b.key));
    counters
}

async fn keys(store: &RedisStore, prefix: &str) -> Vec<String> {
    let counters = list(store, prefix).await;
    counters.into_iter().map(|counter| counter.key).collect()
}

async fn ask<T: FromRedisValue>(server: &Server, command: &[&str]) -> T {
    let mut words = redis::Cmd::new();
    for word in command {
        words.arg(*word);
    }
    let mut connection = server.connection().await;
    words.query_async(&mut connection).await.unwrap()
}

#[tokio::test]
async fn counters_of_each_meter_show_what_counts() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store(settings(&server)).await;
    let year = 31_536_000;
    let terms = fixed(&store, year);
    let meter = |meter| Terms { meter, ..terms };
    let Meter::FixedWindow(window) = terms.meter else {
        panic!("{terms:?}");
    };
    hit(&store, "fixed", terms, 3).await;
    hit(&store, "sliding", meter(Meter::SlidingWindow(window)), 4).await;
    let bucket = Meter::TokenBucket {
        period: year,
        burst: 10,
    };
    hit(&store, "bucket", meter(bucket), 5).await;
    // Nothing counts there.
    hit(&store, "looked at", terms, 0).await;

    let listed = list(&store, "d_k_").await;
    let shown: Vec<_> = listed.iter().map(|c| (c.key.as_str(), c.used)).collect();
    let name = format!("d_k_fixed_{}", window.start);
    assert_eq!(
        shown,
        [
            ("d_k_bucket_bucket_31536000s", 5),
            (name.as_str(), 3),
            ("d_k_sliding_sliding_31536000s", 4),
        ]
    );
    // Half of the ten tokens come back in half a year.
    let half = year / 2;
    assert!(
        (half - 5..=half).contains(&listed[0].resets_in),
        "{listed:?}"
    );
    let both = window.end() + year - now(&store).seconds();
    assert!(
        (both..both + 5).contains(&listed[2].resets_in),
        "{listed:?}"
    );
    let top = store.top("", 2, now(&store)).await.unwrap();
    assert_eq!(top.iter().map(|c| c.used).collect::<Vec<_>>(), [5, 4]);
}

#[tokio::test]
async fn windows_whose_keys_tell_their_length_show_when_they_end() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store(RedisSettings {
        key_format: KeyFormat::WithLength,
        expiry_jitter: Duration::from_secs(300),
        ..settings(&server)
    })
    .await;
    let terms = fixed(&store, 86_400);
    hit(&store, "a", terms, 3).await;
    let listed = list(&store, "").await;
    assert_eq!(listed.len(), 1);
    assert!(listed[0].key.ends_with("_86400s"), "{listed:?}");
    let Meter::FixedWindow(window) = terms.meter else {
        panic!("{terms:?}");
    };
    let left = window.end() - now(&store).seconds();
    assert!(
        (left..left + 5).contains(&listed[0].resets_in),
        "{listed:?}"
    );
}

#[tokio::test]
async fn only_counters_under_the_prefix_are_shown_and_forgotten() {
    let Some(server) = Server::start().await else {
        return;
    };
    let store = store(RedisSettings {
        key_prefix: "p[*]:".to_owned(),
        ..settings(&server)
    })
    .await;
    let terms = fixed(&store, 86_400);
    for value in ["a", "a*", "ab", "b"] {
        hit(&store, value, terms, 1).await;
    }
    let mut connection = server.connection().await;
    // Of others: without the prefix, under one that a pattern would match, without a lifetime,
    // with another name, with something else in it.
    for (key, value, lifetime) in [
        ("d_k_other_0", "7", 100),
        ("p*:d_k_other_0", "7", 100),
        ("p[*]:d_k_text", "7", 100),
        ("p[*]:d_k_text_0", "hello", 100),
    ] {
        connection
            .set_ex::<_, _, ()>(key, value, lifetime)
            .await
            .unwrap();
    }
    connection
        .set::<_, _, ()>("p[*]:d_k_forever_0", "7")
        .await
        .unwrap();
    connection
        .rpush::<_, _, ()>("p[*]:d_k_list_0", "7")
        .await
        .unwrap();

    let start = match terms.meter {
        Meter::FixedWindow(window) => window.start,
        meter => panic!("{meter:?}"),
    };
    let all = ["a*", "a", "ab", "b"].map(|value| format!("d_k_{value}_{start}"));
    assert_eq!(keys(&store, "").await, all);
    assert_eq!(keys(&store, "d_k_a*").await, all[..1]);
    assert_eq!(keys(&store, "d_k_a").await, all[..3]);

    assert_eq!(store.reset("d_k_a*").await, Ok(1));
    assert_eq!(keys(&store, "").await, all[1..]);
    assert_eq!(store.reset("").await, Ok(3));
    assert_eq!(keys(&store, "").await, [""; 0]);
    assert_eq!(ask::<u64>(&server, &["DBSIZE"]).await, 6);
}

#[tokio::test]
async fn pages_show_all_counters_of_both_redises() {
    let (Some(main), Some(seconds)) = (Server::start().await, Server::start().await) else {
        return;
    };
    let store = store(RedisSettings {
        per_second: Some(Box::new(RedisSettings {
            // Long enough for the test.
            expiry_jitter: Duration::ZERO,
            ..settings(&seconds)
        })),
        ..settings(&main)
    })
    .await;
    for number in 0..300 {
        hit(&store, &format!("day{number}"), fixed(&store, 86_400), 1).await;
    }
    ask::<()>(&seconds, &["SET", "d_k_second_7", "2", "EX", "100"]).await;
    let mut page_of = query("d_k_");
    page_of.limit = 20;
    let (mut listed, mut pages) = (Vec::new(), 0);
    loop {
        let page = store.list(&page_of, now(&store)).await.unwrap();
        listed.extend(page.counters.into_iter().map(|counter| counter.key));
        pages += 1;
        page_of.cursor = page.next;
        if page_of.cursor.is_none() {
            break;
        }
    }
    listed.sort();
    listed.dedup();
    assert_eq!(listed.len(), 301);
    assert!(listed.contains(&"d_k_second_7".to_owned()));
    assert!(pages > 5, "{pages}");

    for bad in ["nonsense", "2:0", "0:x"] {
        page_of.cursor = Some(bad.to_owned());
        let refused = store.list(&page_of, now(&store)).await.unwrap_err();
        assert!(refused.to_string().contains("is not a cursor"), "{refused}");
    }
    assert_eq!(store.reset("d_k").await, Ok(301));
    assert_eq!(ask::<u64>(&seconds, &["DBSIZE"]).await, 0);
}

#[tokio::test]
async fn what_is_forgotten_starts_anew_with_a_lifetime_in_every_instance() {
    let Some(server) = Server::start().await else {
        return;
    };
    let stores = [
        store(settings(&server)).await,
        store(settings(&server)).await,
    ];
    let terms = fixed(&stores[0], 86_400);
    for store in &stores {
        hit(store, "a", terms, 2).await;
    }
    assert_eq!(stores[0].reset("d_k_a").await, Ok(1));
    let first = hit(&stores[1], "a", terms, 3).await;
    assert_eq!((first.before, first.after), (0, 3));
    // The answer comes before the lifetime.
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while list(&stores[0], "d_k_a").await.len() != 1 {
        assert!(std::time::Instant::now() < deadline, "it has no lifetime");
    }
    let second = hit(&stores[0], "a", terms, 3).await;
    assert_eq!((second.before, second.after), (3, 6));
}

#[tokio::test]
async fn an_instance_forgets_what_it_knows_of_counters_that_are_forgotten() {
    let Some(server) = Server::start().await else {
        return;
    };
    let shared = SharedSettings::new(Backend::Redis(settings(&server)));
    let store: AnyStore = shared.open(&Metrics::default()).await;
    let full = fixed(&store, 86_400);
    let leased = Terms {
        sharing: Sharing::Leased,
        limit: 1000,
        ..full
    };
    hit(&store, "full", full, 11).await;
    let known = hit(&store, "full", full, 1).await;
    assert_eq!(known.source, Source::OverLimitCache);
    let mut lent = hit(&store, "leased", leased, 1).await;
    while lent.source != Source::Lease {
        lent = hit(&store, "leased", leased, 1).await;
    }

    let page = store.list(&query("d_k_"), now(&store)).await.unwrap();
    assert_eq!(page.counters.len(), 2, "{page:?}");
    assert_eq!(store.reset("d_k_").await, Ok(2));
    let again = hit(&store, "full", full, 1).await;
    assert_eq!((again.source, again.after), (Source::Store, 1));
    let again = hit(&store, "leased", leased, 1).await;
    assert_eq!(again.after, 1);
}

#[tokio::test]
async fn a_redis_that_is_away_is_an_error_that_names_it() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    let store = store(settings(&server)).await;
    server.kill();
    let error = store.list(&query(""), now(&store)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotConnected { .. }), "{error}");
    assert!(
        error.to_string().contains(&server.port.to_string()),
        "{error}"
    );
    assert!(store.reset("").await.is_err());
}
