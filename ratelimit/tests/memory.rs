//! What counters in memory cost, and that it comes back. On its own, since it looks at the memory
//! of the whole process, with the allocator of the services.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    time::{Duration, Instant},
};

use attache_ratelimit::{
    limiter::{UnixTime, Window},
    store::{Amount, Batch, MemoryStore, Terms},
};
use attache_service::Metrics;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WINDOWS: u64 = 10;
const KEYS: u64 = 1_000_000;
/// What the allocator may keep for itself. If counters stayed, they would take a gigabyte.
const SLACK: u64 = 32 << 20;

/// Memory of this process that is in use, in bytes.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn hit(store: &MemoryStore, second: u64, user: u64) {
    let now = UnixTime::from_seconds(second);
    let mut batch = Batch::new(now);
    batch.begin("shop");
    batch.entry("user", &format!("{second}-{user}"));
    let terms = Terms::fixed_window(Window::at(second, 1), 10);
    batch.charge(terms, Amount::Add(1));
    store.charge_now(&batch, &mut Vec::new());
}

#[test]
fn ten_million_keys_in_windows_of_one_second_leave_no_memory_behind() {
    let store = MemoryStore::new(usize::try_from(2 * KEYS).unwrap(), &Metrics::default());
    hit(&store, 0, 0);
    let baseline = resident();

    let mut largest = 0;
    for second in 1..=WINDOWS {
        for user in 0..KEYS {
            hit(&store, second, user);
        }
        // As the service does it every second.
        store.sweep(UnixTime::from_seconds(second));
        largest = largest.max(resident());
    }
    store.sweep(UnixTime::from_seconds(WINDOWS + 1));

    assert!(store.is_empty(), "{} counters", store.len());
    // Ten windows are no more than two of them.
    let most = 2 * KEYS * 200;
    assert!(largest - baseline < most, "{largest} over {baseline}");
    // The allocator hands memory back a little later.
    let until = Instant::now() + Duration::from_secs(30);
    while resident() > baseline + SLACK && Instant::now() < until {
        // Allocating is what makes it look.
        drop(vec![0_u8; 1 << 16]);
        std::thread::yield_now();
    }
    let left = resident();
    assert!(left <= baseline + SLACK, "{left} over {baseline}");
}
