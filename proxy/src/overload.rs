//! Refusing requests early when there are too many, or too little memory.
//!
//! A request that is refused costs its head and a short answer: no policy is asked, nothing is
//! buffered. Requests in flight go on.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use attache_filter::{LocalReply, context::ResponseFlag};
use attache_service::{
    Metrics,
    metrics::{Counter, Gauge},
};
use http::{HeaderName, HeaderValue, StatusCode};

/// What Envoy calls the header by which clients tell an answer of an overloaded proxy.
const LOCAL_OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-local-overloaded");

/// When requests are refused for want of memory (`overload`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OverloadPlan {
    /// Resident memory of the process, in bytes, from which requests are refused.
    pub max_memory: u64,
    /// The part of it below which requests are taken again. Default 0.9.
    pub resume: f64,
    /// How often is looked. Default 250 ms.
    pub refresh_interval: Duration,
}

impl OverloadPlan {
    /// Refuses from so many bytes on.
    pub fn new(max_memory: u64) -> Self {
        Self {
            max_memory,
            resume: 0.9,
            refresh_interval: Duration::from_millis(250),
        }
    }

    /// Whether to refuse, from what is used, and from whether requests are refused already.
    fn refuses(&self, used: u64, refusing: bool) -> bool {
        match refusing {
            false => used >= self.max_memory,
            true => used as f64 >= self.max_memory as f64 * self.resume,
        }
    }
}

/// Whether memory is short; one for all workers.
#[derive(Debug)]
pub(crate) struct Overload {
    plan: OverloadPlan,
    refusing: AtomicBool,
    active: Gauge,
}

impl Overload {
    pub(crate) fn new(plan: OverloadPlan, metrics: &Metrics) -> Self {
        Self {
            plan,
            refusing: AtomicBool::new(false),
            active: metrics.gauge(
                "attache_overload_active",
                "1 while requests are refused because the process uses `overload.max_memory`.",
                &[],
            ),
        }
    }

    /// Whether it has these settings.
    pub(crate) fn is(&self, plan: &OverloadPlan) -> bool {
        self.plan == *plan
    }

    /// Looks at the memory of this process for ever.
    pub(crate) async fn watch(&self) {
        loop {
            match resident() {
                Ok(used) => self.note(used),
                Err(error) => {
                    tracing::warn!(%error, "the memory of this process cannot be read: `overload` has no effect");
                    self.note(0);
                    return;
                }
            }
            tokio::time::sleep(self.plan.refresh_interval).await;
        }
    }

    fn note(&self, used: u64) {
        let before = self.refusing.load(Ordering::Relaxed);
        let refuses = self.plan.refuses(used, before);
        self.active.set(i64::from(refuses));
        if refuses != before {
            self.refusing.store(refuses, Ordering::Relaxed);
            let max = self.plan.max_memory;
            match refuses {
                true => tracing::warn!(used, max, "overloaded: new requests are refused"),
                false => tracing::info!(used, max, "no longer overloaded"),
            }
        }
    }
}

impl Drop for Overload {
    fn drop(&mut self) {
        self.active.set(0);
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.map(|kib| kib.saturating_mul(1024))
        .ok_or_else(|| io::Error::other("/proc/self/status has no VmRSS"))
}

/// The memory, in bytes, that the system lets this process have: the least limit of its cgroup
/// and of those around it. None where there is no limit.
pub(crate) fn memory_limit() -> Option<u64> {
    let root = Path::new("/sys/fs/cgroup");
    // Version 1, which keeps other things in other trees.
    let old = root.join("memory/memory.limit_in_bytes");
    if let Some(limit) = limit_in(&old) {
        return Some(limit);
    }
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut folder: PathBuf = root.join(own);
    let mut least = None;
    while folder.starts_with(root) {
        let limit = limit_in(&folder.join("memory.max"));
        least = [least, limit].into_iter().flatten().min();
        if !folder.pop() {
            break;
        }
    }
    least
}

fn limit_in(file: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    // Without one, version 2 says `max`, and version 1 a number beyond all memory.
    let limit = text.trim().parse().ok()?;
    (limit < 1 << 60).then_some(limit)
}

/// A place among the requests in flight of a listener.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a listener refuses requests for.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// The most requests in flight, and how many there are in all workers.
    pub(crate) requests: Option<(usize, Arc<AtomicUsize>)>,
    pub(crate) overload: Option<Arc<Overload>>,
}

/// A request that comes at a bad time.
#[derive(Debug)]
pub(crate) struct Refused;

impl Gate {
    /// Lets one more request in, and has a place kept for it where they are counted.
    pub(crate) fn enter(&self) -> Result<Option<Place>, Refused> {
        if let Some(overload) = &self.overload
            && overload.refusing.load(Ordering::Relaxed)
        {
            return Err(Refused);
        }
        let Some((limit, in_flight)) = &self.requests else {
            return Ok(None);
        };
        let place = Place(in_flight.clone());
        match in_flight.fetch_add(1, Ordering::Relaxed) < *limit {
            true => Ok(Some(place)),
            false => Err(Refused),
        }
    }
}

/// The answer to a request that is refused.
pub(crate) fn reply() -> (ResponseFlag, LocalReply) {
    let mut reply = LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "overload")
        .with_body("the proxy is overloaded");
    let overloaded = HeaderValue::from_static("true");
    reply.headers.insert(LOCAL_OVERLOADED, overloaded);
    (ResponseFlag::Overload, reply)
}

/// Counts what a listener refused.
pub(crate) fn counter(listener: &str, metrics: &Metrics) -> Counter {
    metrics.counter(
        "attache_downstream_requests_overloaded",
        "Requests answered with 503 for `limits.max_requests` or `overload`.",
        &[("listener", listener)],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_to_fall_clearly_before_requests_are_taken_again() {
        let plan = OverloadPlan::new(1000);
        let mut refusing = false;
        let mut told = Vec::new();
        for used in [0, 999, 1000, 950, 900, 899, 950, 999, 1000] {
            refusing = plan.refuses(used, refusing);
            told.push(refusing);
        }
        assert_eq!(
            told,
            [false, false, true, true, true, false, false, false, true]
        );
    }

    #[test]
    fn requests_in_flight_are_bounded_and_places_come_back() {
        let gate = Gate {
            requests: Some((2, Arc::default())),
            overload: None,
        };
        let first = gate.enter().unwrap();
        let _second = gate.enter().unwrap();
        assert!(gate.enter().is_err());
        assert!(gate.enter().is_err(), "a refusal takes no place");
        drop(first);
        assert!(gate.enter().is_ok());
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident().unwrap() > 1 << 20);
        assert_ne!(memory_limit(), Some(0));
    }
}
