//! What was answered and what failed, and when.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::visit::Visit;
use crate::protocol::Protocol;

/// Failures that are printed in full as they come; the rest is only counted.
const SHOWN: u64 = 100;

/// The counts of a run.
#[derive(Debug)]
pub(crate) struct Tally {
    start: Instant,
    most: u64,
    sent: AtomicU64,
    answered: [AtomicU64; Visit::ALL.len()],
    connections: AtomicU64,
    moved: AtomicU64,
    generation: AtomicU64,
    failures: Mutex<Failures>,
}

#[derive(Debug, Default)]
struct Failures {
    count: u64,
    kinds: BTreeMap<(String, String), u64>,
}

impl Tally {
    /// Before a run of so many requests.
    pub(crate) fn new(most: u64) -> Tally {
        Tally {
            start: Instant::now(),
            most,
            sent: AtomicU64::default(),
            answered: Default::default(),
            connections: AtomicU64::default(),
            moved: AtomicU64::default(),
            generation: AtomicU64::default(),
            failures: Mutex::default(),
        }
    }

    /// Seconds since the start.
    pub(crate) fn at(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// When it began.
    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    /// Takes the next `requests`; gives how many were taken before, or nothing at the end.
    pub(crate) fn next(&self, requests: u64) -> Option<u64> {
        let before = self.sent.fetch_add(requests, Ordering::Relaxed);
        (before < self.most).then_some(before)
    }

    /// Share of the run that is over, from 0 to 1.
    pub(crate) fn share(&self) -> f64 {
        self.total() as f64 / self.most as f64
    }

    /// A request had the answer that it was to have, from a configuration of this number.
    pub(crate) fn answered(&self, visit: Visit, generation: Option<u64>) {
        if let Some(count) = self.answered.get(visit as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(generation) = generation {
            self.generation.fetch_max(generation, Ordering::Relaxed);
        }
    }

    /// The latest configuration that an answer came from.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// A connection was made.
    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was not sent, for the connection was politely closed, and goes to another.
    pub(crate) fn moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// Something failed that was not meant to.
    pub(crate) fn failed(&self, where_: &str, what: String) {
        let at = self.at();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.count += 1;
        if failures.count <= SHOWN {
            println!("{at:>9.2} s  FAILED  {where_}: {what}");
        }
        *failures.kinds.entry((where_.to_owned(), what)).or_default() += 1;
    }

    /// A request failed.
    pub(crate) fn request_failed(&self, protocol: Protocol, visit: Visit, what: String) {
        self.failed(&format!("{protocol}, {}", visit.title()), what);
    }

    /// How many requests had the answer that they were to have.
    pub(crate) fn total(&self) -> u64 {
        let counts = self.answered.iter();
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// How much failed.
    pub(crate) fn failures(&self) -> u64 {
        let failures = self.failures.lock();
        failures.unwrap_or_else(PoisonError::into_inner).count
    }

    /// Prints the counts.
    pub(crate) fn print(&self) {
        let took = self.at();
        println!("\n{:<24} {:>12}", "answered as meant", "requests");
        for (visit, count) in Visit::ALL.iter().zip(&self.answered) {
            let count = count.load(Ordering::Relaxed);
            println!("{:<24} {count:>12}", visit.title());
        }
        let total = self.total();
        println!("{:<24} {total:>12}", "together");
        println!("{:<24} {:>12.0}", "per second", total as f64 / took);
        let connections = self.connections.load(Ordering::Relaxed);
        println!("{:<24} {connections:>12}", "connections");
        let moved = self.moved.load(Ordering::Relaxed);
        println!("{:<24} {moved:>12}", "moved before sending");
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        println!("{:<24} {:>12}", "failures", failures.count);
        for ((where_, what), count) in &failures.kinds {
            println!("  {count:>8} × {where_}: {what}");
        }
    }
}
