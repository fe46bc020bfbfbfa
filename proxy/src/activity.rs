//! What a connection is doing, told by its parts to its watchdog without reading a clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::plan::Limits;

/// Shared by the socket, the requests and the watchdog of one connection.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Requests that began, ever.
    pub(crate) served: AtomicU32,
    /// Requests in flight.
    pub(crate) requests: AtomicU32,
    /// Counts reads and writes that moved something.
    pub(crate) moves: AtomicU32,
    /// A request head has begun and not ended.
    pub(crate) in_head: AtomicBool,
    /// The last write found the socket full.
    pub(crate) blocked: AtomicBool,
}

/// Why the watchdog ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No request for the idle timeout: close politely.
    Idle,
    /// A request head did not end in time: drop.
    SlowHead,
    /// The client takes no bytes: drop.
    SlowReader,
}

/// The watchdog looks this many times per timeout, so it is late by at most a part of it.
const LOOKS: u32 = 4;

/// How long a client may refuse to take response bytes.
const WRITE_TIMEOUT: Duration = crate::route::DEFAULT_IDLE_TIMEOUT;

/// Resolves when the connection has to end. Timers are set a few times per timeout, never per
/// request.
pub(crate) async fn watch(activity: Arc<Activity>, limits: Limits) -> Verdict {
    let shortest = limits
        .header_timeout
        .min(limits.idle_timeout)
        .min(WRITE_TIMEOUT);
    let tick = (shortest / LOOKS).max(Duration::from_millis(1));
    let ticks = |timeout: Duration| {
        let ticks = timeout.as_nanos().div_ceil(tick.as_nanos());
        u32::try_from(ticks).unwrap_or(u32::MAX)
    };
    let (head, idle, write) = (
        ticks(limits.header_timeout),
        ticks(limits.idle_timeout),
        ticks(WRITE_TIMEOUT),
    );
    let (mut in_head, mut quiet, mut moves, mut served) = (0u32, 0u32, 0u32, 0u32);
    loop {
        tokio::time::sleep(tick).await;
        let now = activity.moves.load(Ordering::Relaxed);
        let moved = std::mem::replace(&mut moves, now) != now;
        let requests = activity.requests.load(Ordering::Relaxed);
        quiet = if moved { 0 } else { quiet.saturating_add(1) };
        let total = activity.served.load(Ordering::Relaxed);
        let same_head = std::mem::replace(&mut served, total) == total;
        // Bytes that trickle in are no progress of a head.
        in_head = match activity.in_head.load(Ordering::Relaxed) && requests == 0 && same_head {
            true => in_head.saturating_add(1),
            false => 0,
        };
        if in_head > head {
            return Verdict::SlowHead;
        }
        if requests == 0 && quiet > idle {
            return Verdict::Idle;
        }
        if activity.blocked.load(Ordering::Relaxed) && quiet > write {
            return Verdict::SlowReader;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn limits() -> Limits {
        Limits {
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            ..Limits::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_connection_is_idle_after_its_timeout() {
        let start = Instant::now();
        assert_eq!(watch(Arc::default(), limits()).await, Verdict::Idle);
        let took = start.elapsed().as_secs();
        assert!((60..=65).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickling_head_is_slow_although_bytes_move() {
        let activity = Arc::<Activity>::default();
        activity.in_head.store(true, Ordering::Relaxed);
        let trickle = activity.clone();
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                trickle.moves.fetch_add(1, Ordering::Relaxed);
            }
        });
        let start = Instant::now();
        assert_eq!(watch(activity, limits()).await, Verdict::SlowHead);
        let took = start.elapsed().as_secs();
        assert!((10..=13).contains(&took), "{took}");
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_in_flight_is_never_idle() {
        let activity = Arc::<Activity>::default();
        activity.requests.store(1, Ordering::Relaxed);
        let watched = tokio::time::timeout(Duration::from_secs(9000), watch(activity, limits()));
        assert!(watched.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_dropped() {
        let activity = Arc::<Activity>::default();
        activity.requests.store(1, Ordering::Relaxed);
        activity.blocked.store(true, Ordering::Relaxed);
        assert_eq!(watch(activity, limits()).await, Verdict::SlowReader);
    }
}
