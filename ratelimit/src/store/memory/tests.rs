use std::{
    collections::{HashMap, HashSet},
    thread,
};

use proptest::prelude::*;

use super::*;
use crate::{
    limiter::Window,
    store::{Charging, Rejected, Terms},
};

/// Charges one counter of a fixed window, whatever its limit; its new count.
fn apply(store: &MemoryStore, now: u64, key: &str, window: Window, amount: Amount) -> u64 {
    let mut batch = Batch::new(UnixTime::from_seconds(now));
    batch.begin(key);
    batch.charge(Terms::fixed_window(window, 500), amount);
    let mut readings = Vec::new();
    store.charge_now(&batch, &mut readings);
    readings[0].after
}

/// A batch of one charge for each key, in an hour's window that allows `limit`.
fn batch(keys: &[&str], limit: u32, rejected: Rejected, charging: Charging) -> Batch {
    let mut batch = Batch::new(UnixTime::from_seconds(10));
    batch.set_charging(charging);
    for key in keys {
        batch.begin(key);
        let terms = Terms {
            rejected,
            ..Terms::fixed_window(window(10, 3600), limit)
        };
        batch.charge(terms, Amount::Add(1));
    }
    batch
}

fn charge(store: &MemoryStore, batch: &Batch) -> Vec<Reading> {
    let mut readings = Vec::new();
    store.charge_now(batch, &mut readings);
    readings
}

#[test]
fn hits_that_do_not_fit_stay_counted_or_not() {
    for (rejected, expected) in [(Rejected::Counted, 5), (Rejected::Free, 3)] {
        let store = MemoryStore::default();
        let hit = batch(&["k"], 3, rejected, Charging::Each);
        let charged: Vec<_> = (0..5).map(|_| charge(&store, &hit)[0].charged).collect();
        assert_eq!(charged.iter().filter(|charged| **charged).count(), expected);
        assert_eq!(charge(&store, &hit)[0].before, expected as u64);
    }
}

#[test]
fn either_all_of_a_batch_is_charged_or_nothing() {
    let store = MemoryStore::default();
    let pair = batch(&["a", "b"], 2, Rejected::Counted, Charging::AllOrNothing);
    charge(&store, &batch(&["b"], 2, Rejected::Counted, Charging::Each));
    assert!(charge(&store, &pair).iter().all(|reading| reading.charged));
    let refused = charge(&store, &pair);
    assert!(refused.iter().all(|reading| !reading.charged));
    // `a` would have fitted; it keeps the hit.
    assert_eq!((refused[0].before, refused[0].after), (1, 2));
    assert_eq!((refused[1].before, refused[1].after), (2, 3));
    let looked = charge(&store, &batch(&["a"], 2, Rejected::Counted, Charging::Each));
    assert_eq!(looked[0].before, 1);
}

#[test]
fn of_one_charge_all_or_nothing_counts_all_its_hits_or_none() {
    let store = MemoryStore::default();
    let one = batch(&["a"], 2, Rejected::Counted, Charging::AllOrNothing);
    let charged: Vec<_> = (0..4).map(|_| charge(&store, &one)[0].charged).collect();
    assert_eq!(charged, [true, true, false, false]);
    assert_eq!(charge(&store, &one)[0].before, 2);
}

#[test]
fn a_key_twice_in_one_batch_counts_twice() {
    let store = MemoryStore::default();
    let twice = batch(&["a", "a"], 3, Rejected::Counted, Charging::AllOrNothing);
    assert_eq!(charge(&store, &twice)[1].after, 2);
    assert!(!charge(&store, &twice)[1].charged);
}

#[test]
fn batches_that_are_charged_together_neither_deadlock_nor_pass_the_limit() {
    let store = MemoryStore::default();
    let passed: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|nth| {
                let keys = if nth % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
                let pair = batch(&keys, 500, Rejected::Counted, Charging::AllOrNothing);
                let store = &store;
                scope.spawn(move || {
                    let passes = |_: &usize| charge(store, &pair).iter().all(|one| one.charged);
                    (0..100).filter(passes).count()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(passed, 500);
}

#[tokio::test]
async fn counters_are_listed_page_by_page_and_reset_by_prefix() {
    let store = MemoryStore::default();
    let keys: Vec<_> = (0..25).map(|user| format!("shop_user_{user:02}")).collect();
    for key in &keys {
        apply(&store, 10, key, window(10, 60), Amount::Add(1));
    }
    apply(&store, 10, "other", window(10, 60), Amount::Add(7));
    let now = UnixTime::from_seconds(20);
    let mut query = Query {
        prefix: "shop_".into(),
        cursor: None,
        limit: 10,
    };
    let mut seen = Vec::new();
    loop {
        let page = store.list(&query, now).await.unwrap();
        assert!(page.counters.len() <= 10);
        seen.extend(page.counters);
        query.cursor = page.next;
        if query.cursor.is_none() {
            break;
        }
    }
    seen.sort_by(|a, b| a.key.cmp(&b.key));
    let names: Vec<_> = seen.iter().map(|state| state.key.clone()).collect();
    let expected: Vec<_> = keys.iter().map(|key| format!("{key}_0")).collect();
    assert_eq!(names, expected);
    assert_eq!((seen[0].used, seen[0].resets_in), (1, 40));

    let top = store.top("", 2, now).await.unwrap();
    assert_eq!((&*top[0].key, top[0].used), ("other_0", 7));
    assert_eq!(store.reset("shop_").await, Ok(25));
    assert_eq!(store.len(), 1);
    query.cursor = Some("nonsense".into());
    assert!(store.list(&query, now).await.is_err());
}

#[tokio::test]
async fn a_list_misses_no_counter_that_stays_while_others_go() {
    let store = MemoryStore::default();
    for user in 0..1000 {
        let length = if user % 3 == 0 { 3600 } else { 1 };
        apply(
            &store,
            0,
            &format!("{user}"),
            window(0, length),
            Amount::Add(1),
        );
    }
    let mut query = Query {
        prefix: String::new(),
        cursor: None,
        limit: 10,
    };
    let mut now = 0;
    let mut seen = HashSet::new();
    loop {
        let page = store.list(&query, UnixTime::from_seconds(0)).await.unwrap();
        seen.extend(page.counters.into_iter().map(|state| state.key));
        query.cursor = page.next;
        if query.cursor.is_none() {
            break;
        }
        // Some go for new ones, some by themselves.
        now += 1;
        apply(
            &store,
            now,
            &format!("new{now}"),
            window(now, 1),
            Amount::Add(1),
        );
        if now == 20 {
            store.sweep(UnixTime::from_seconds(now));
        }
    }
    for user in (0..1000).step_by(3) {
        assert!(seen.contains(&format!("{user}_0")), "{user}");
        assert_eq!(
            apply(
                &store,
                20,
                &format!("{user}"),
                window(0, 3600),
                Amount::Add(1)
            ),
            2
        );
    }
}

#[test]
fn looking_leaves_no_counter_behind() {
    let store = MemoryStore::default();
    assert_eq!(apply(&store, 0, "k", window(0, 60), Amount::Add(0)), 0);
    assert!(store.is_empty());
}

fn window(now: u64, length: u64) -> Window {
    Window::at(now, length)
}

#[test]
fn of_sixty_four_threads_exactly_the_limit_passes() {
    let store = MemoryStore::default();
    let passed: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..64)
            .map(|_| {
                scope.spawn(|| {
                    (0..1000)
                        .filter(|_| {
                            apply(&store, 7, "d_k_v_", window(7, 3600), Amount::Add(1)) <= 500
                        })
                        .count()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(passed, 500);
}

#[test]
fn a_new_window_starts_from_zero() {
    let store = MemoryStore::default();
    assert_eq!(apply(&store, 119, "k", window(119, 60), Amount::Add(2)), 2);
    assert_eq!(apply(&store, 120, "k", window(120, 60), Amount::Add(1)), 1);
    assert_eq!(store.len(), 1);
}

#[test]
fn a_late_thread_counts_in_the_window_that_has_begun() {
    let store = MemoryStore::default();
    assert_eq!(apply(&store, 120, "k", window(120, 60), Amount::Add(1)), 1);
    assert_eq!(apply(&store, 119, "k", window(119, 60), Amount::Add(1)), 2);
    assert_eq!(apply(&store, 121, "k", window(121, 60), Amount::Add(1)), 3);
}

#[test]
fn a_clock_set_back_does_not_hold_on_to_the_future() {
    let store = MemoryStore::default();
    assert_eq!(
        apply(&store, 6000, "k", window(6000, 60), Amount::Add(9)),
        9
    );
    assert_eq!(apply(&store, 60, "k", window(60, 60), Amount::Add(1)), 1);
}

#[test]
fn units_do_not_share_a_counter() {
    let store = MemoryStore::default();
    assert_eq!(apply(&store, 0, "k", window(0, 60), Amount::Add(5)), 5);
    assert_eq!(apply(&store, 0, "k", window(0, 3600), Amount::Add(1)), 1);
}

#[test]
fn long_keys_count_apart_without_being_kept() {
    let store = MemoryStore::default();
    let key = |last: &str| format!("{}{last}", "long".repeat(10_000));
    for expected in 1..=3 {
        for last in ["a", "b"] {
            let count = apply(&store, 0, &key(last), window(0, 60), Amount::Add(1));
            assert_eq!(count, expected);
        }
    }
    for shard in store.shards.iter() {
        for (_, slot) in lock(shard).slots_before(usize::MAX) {
            assert!(slot.stored_key().len() <= LONGEST_KEY);
        }
    }
    assert_eq!(store.len(), 2);
}

#[test]
fn hits_given_back_stop_at_zero() {
    let store = MemoryStore::default();
    apply(&store, 0, "k", window(0, 60), Amount::Add(5));
    assert_eq!(apply(&store, 0, "k", window(0, 60), Amount::Refund(3)), 2);
    assert_eq!(apply(&store, 0, "k", window(0, 60), Amount::Refund(3)), 0);
}

#[test]
fn memory_returns_when_windows_end() {
    let metrics = Metrics::default();
    let store = MemoryStore::new(1 << 20, &metrics);
    for second in 0..5u64 {
        for user in 0..2000 {
            let key = format!("{second}_{user}");
            apply(&store, second, &key, window(second, 1), Amount::Add(1));
        }
        assert!(store.len() <= 4000, "{} after {second}", store.len());
    }
    store.sweep(UnixTime::from_seconds(5));
    assert!(store.is_empty());
    let text = metrics.render();
    assert!(text.contains("attache_ratelimit_counters{} 0"), "{text}");
}

#[test]
fn a_flood_of_new_keys_neither_grows_the_store_nor_resets_a_used_counter() {
    let metrics = Metrics::default();
    let store = MemoryStore::new(64 * 16, &metrics);
    apply(&store, 0, "busy", window(0, 3600), Amount::Add(100));
    for user in 0..50_000 {
        apply(
            &store,
            0,
            &format!("user_{user}"),
            window(0, 3600),
            Amount::Add(1),
        );
    }
    assert!(store.len() <= 64 * 16);
    assert_eq!(
        apply(&store, 0, "busy", window(0, 3600), Amount::Add(1)),
        101
    );
    assert!(!metrics.render().contains("counters_evicted_total{} 0"));
}

proptest! {
    #[test]
    fn behaves_like_a_map(
        steps in prop::collection::vec((0..40u8, 0..3u64, any::<bool>(), 0..5u32), 1..400),
    ) {
        let store = MemoryStore::new(1 << 16, &Metrics::default());
        let mut model: HashMap<(u8, u64), u64> = HashMap::new();
        let mut now = 0;
        for (key, step, refund, hits) in steps {
            now += step;
            let window = window(now, 2);
            let amount = if refund { Amount::Refund(hits) } else { Amount::Add(hits) };
            let count = model.entry((key, window.start)).or_default();
            *count = match amount {
                Amount::Add(hits) => *count + u64::from(hits),
                Amount::Refund(hits) => count.saturating_sub(hits.into()),
            };
            prop_assert_eq!(apply(&store, now, &format!("k{key}"), window, amount), *count);
        }
    }
}
