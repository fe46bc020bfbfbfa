//! Both ends of the wire, given random legal and illegal messages: nothing panics, nothing hangs,
//! nothing grows without bound.
//!
//! `cargo xtask fuzz` runs them for minutes, an ordinary test run for seconds. A failure names the
//! seed of its case; `ATTACHE_FUZZ_SEED` runs that case alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod random;
mod server;

use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Longer than any deadline there is. The clock of a case only moves when nobody has anything to
/// do, so whoever waits for this hangs.
const HANG: Duration = Duration::from_secs(24 * 3600);

/// How much the process may grow after its first cases, which fill pools and caches.
const GROWTH: u64 = 96 << 20;

/// Runs cases until the time is over.
fn run(name: &str, case: impl AsyncFn(&mut SmallRng)) {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    if let Some(seed) = number("ATTACHE_FUZZ_SEED") {
        return one(seed, &case);
    }
    let time = Duration::from_secs(number("ATTACHE_FUZZ_SECONDS").unwrap_or(3));
    let start = Instant::now();
    let mut settled = None;
    let mut cases = 0_u64;
    let mut seeds = SmallRng::from_os_rng();
    while start.elapsed() < time {
        let seed = seeds.random();
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| one(seed, &case)));
        if let Err(panic) = failed {
            eprintln!("{name}: failed with ATTACHE_FUZZ_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
        cases += 1;
        if settled.is_none() && start.elapsed() > time / 4 {
            settled = resident();
        }
    }
    let growth = match (settled, resident()) {
        (Some(before), Some(after)) => after.saturating_sub(before),
        _ => 0,
    };
    println!("{name}: {cases} cases, memory grew by {} KiB", growth >> 10);
    assert!(cases > 0, "not one case in {time:?}");
    assert!(
        growth < GROWTH,
        "memory grew by {growth} bytes in {cases} cases"
    );
}

fn one(seed: u64, case: &impl AsyncFn(&mut SmallRng)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let mut random = SmallRng::seed_from_u64(seed);
    runtime.block_on(async {
        let done = tokio::time::timeout(HANG, case(&mut random)).await;
        assert!(done.is_ok(), "a hang");
    });
}

/// Resident bytes of this process, where the system tells.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[test]
fn a_proxy_survives_any_processor() {
    run("client end", client::case);
}

#[test]
fn a_processor_survives_any_proxy() {
    run("server end", server::case);
}
