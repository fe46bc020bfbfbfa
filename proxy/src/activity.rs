//! What a connection is doing, told by its parts to its watchdog without reading a clock.
//!
//! Connections that do nothing wrong pay for it with a few counters and a timer a few times per
//! timeout.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::{header_blocks::Excess, plan::Limits};

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
    /// Whole heads of HTTP/2 requests that have come, ever.
    pub(crate) heads: AtomicU32,
    /// Requests that the codec passed on, ever.
    passed_on: AtomicU32,
    /// HTTP/2 requests that the codec did not pass on, ever.
    refused: AtomicU32,
    /// So many of those that were last answered by the codec, with 431.
    pub(crate) too_large: AtomicU32,
    /// So many of those were too many at a time.
    pub(crate) crowded: AtomicU32,
    /// What the codec of HTTP/2 says that it had too much of, when it ends the connection for that.
    pub(crate) calmed: OnceLock<Excess>,
    /// A header block of HTTP/2 has begun and not ended: nothing else can come meanwhile.
    pub(crate) in_block: AtomicBool,
    /// What the client sends is followed no more: no request may come behind it.
    pub(crate) opaque: AtomicBool,
    /// The last write found the socket full.
    pub(crate) blocked: AtomicBool,
    /// The next response tells the client to come by another connection.
    pub(crate) closing: AtomicBool,
    /// HTTP/2 response bodies of which the client has yet to take a piece.
    pub(crate) untaken: AtomicU32,
    /// Counts the pieces that it took.
    pub(crate) taken: AtomicU32,
    /// HTTP/2 requests that the client gave up, in this interval.
    pub(crate) resets: AtomicU32,
    /// Requests that had begun when the interval did.
    before: AtomicU32,
    /// The watchdog found that there was no request since it had looked before.
    unused: AtomicBool,
}

/// HTTP/2 requests that the codec did not pass on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Reset.
    pub(crate) malformed: u32,
    /// Answered with 431.
    pub(crate) too_large: u32,
}

impl Activity {
    /// The codec passes a request on. Only the connection itself says so.
    pub(crate) fn passes_on(&self) {
        let before = self.passed_on.load(Ordering::Relaxed);
        self.passed_on
            .store(before.wrapping_add(1), Ordering::Relaxed);
    }

    /// HTTP/2 requests whose heads have come, and of which nobody knows.
    pub(crate) fn unserved(&self) -> u32 {
        let passed_on = self.passed_on.load(Ordering::Relaxed);
        let known = passed_on.wrapping_add(self.refused.load(Ordering::Relaxed));
        let unserved = self.heads.load(Ordering::Relaxed).wrapping_sub(known);
        match unserved <= u32::MAX / 2 {
            true => unserved,
            false => 0,
        }
    }

    /// Settles that nobody will know of them. Those that the client may send again at once, as
    /// there were too many at a time, do not count.
    pub(crate) fn settle(&self) -> Refused {
        let unserved = self.unserved();
        self.refused.fetch_add(unserved, Ordering::Relaxed);
        let crowded = self.crowded.swap(0, Ordering::Relaxed);
        let too_large = self.too_large.swap(0, Ordering::Relaxed);
        let refused = unserved.saturating_sub(crowded);
        Refused {
            malformed: refused.saturating_sub(too_large),
            too_large: too_large.min(refused),
        }
    }

    /// Whether the client gives up too many of its requests.
    pub(crate) fn is_resetting(&self, limits: &Limits) -> bool {
        let resets = self.resets.load(Ordering::Relaxed);
        if resets < limits.max_resets {
            return false;
        }
        let served = self.served.load(Ordering::Relaxed);
        let begun = served.wrapping_sub(self.before.load(Ordering::Relaxed));
        resets.saturating_mul(2) > begun
    }

    /// Whether the connection has had all the requests that it may have.
    pub(crate) fn is_used_up(&self, limits: &Limits) -> bool {
        let served = || self.served.load(Ordering::Relaxed);
        limits
            .max_requests_per_connection
            .is_some_and(|max| served() >= max)
    }

    /// Whether nobody has used the connection lately, nor does: said once each time that the
    /// watchdog has looked.
    pub(crate) fn may_rest(&self) -> bool {
        if !self.unused.load(Ordering::Relaxed) {
            return false;
        }
        self.unused.store(false, Ordering::Relaxed);
        let busy = [&self.in_head, &self.opaque, &self.blocked];
        self.requests.load(Ordering::Relaxed) == 0
            && !busy.iter().any(|flag| flag.load(Ordering::Relaxed))
    }

    fn begin_interval(&self) {
        self.resets.store(0, Ordering::Relaxed);
        let served = self.served.load(Ordering::Relaxed);
        self.before.store(served, Ordering::Relaxed);
    }
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
    /// It is as old as it may get: close politely.
    Old,
    /// The client gives up what it began, again and again: drop.
    Resets,
    /// Its listener was removed, and what runs on it has had its time: drop.
    Removed,
}

/// What a connection may still do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Anything.
    Open,
    /// Finish: it was told to close.
    Closing,
}

/// The watchdog looks this many times per timeout, so it is late by at most a part of it.
const LOOKS: u32 = 4;

/// How long resets are counted together.
const RESET_INTERVAL: Duration = Duration::from_secs(10);

/// Resolves when the connection has to end. Timers are set a few times per timeout, never per
/// request.
///
/// One that is closing has the header timeout to do so once it has no requests: nobody keeps it
/// by not answering.
pub(crate) async fn watch(activity: &Activity, limits: &Limits, stage: Stage) -> Verdict {
    let (idle, duration) = match stage {
        Stage::Open => (limits.idle_timeout, limits.max_connection_duration),
        Stage::Closing => (limits.header_timeout, None),
    };
    let shortest = limits
        .header_timeout
        .min(idle)
        .min(limits.write_timeout)
        .min(duration.unwrap_or(Duration::MAX));
    let tick = (shortest / LOOKS).max(Duration::from_millis(1));
    let ticks = |timeout: Duration| {
        let ticks = timeout.as_nanos().div_ceil(tick.as_nanos());
        u32::try_from(ticks).unwrap_or(u32::MAX)
    };
    let (head, idle, write) = (
        ticks(limits.header_timeout),
        ticks(idle),
        ticks(limits.write_timeout),
    );
    let duration = duration.map(ticks);
    let interval = ticks(RESET_INTERVAL);
    let mut age = 0u32;
    let (mut in_head, mut quiet, mut unused, mut stuck) = (0u32, 0u32, 0u32, 0u32);
    let (mut moves, mut served, mut taken) = (0u32, 0u32, 0u32);
    loop {
        tokio::time::sleep(tick).await;
        age = age.saturating_add(1);
        if age.is_multiple_of(interval) {
            activity.begin_interval();
        }
        let now = activity.moves.load(Ordering::Relaxed);
        let moved = std::mem::replace(&mut moves, now) != now;
        let requests = activity.requests.load(Ordering::Relaxed);
        quiet = if moved { 0 } else { quiet.saturating_add(1) };
        let total = activity.served.load(Ordering::Relaxed);
        let same_head = std::mem::replace(&mut served, total) == total;
        // Bytes that trickle in are no progress of a head.
        // In HTTP/1.1 the next head may wait for the response to the request before it.
        let begun = activity.in_block.load(Ordering::Relaxed)
            || requests == 0 && activity.in_head.load(Ordering::Relaxed);
        in_head = match begun && same_head {
            true => in_head.saturating_add(1),
            false => 0,
        };
        if in_head > head {
            return Verdict::SlowHead;
        }
        // Bytes that are no request, such as an HTTP/2 client's PING, are no use of it.
        let used = requests > 0 || !same_head;
        unused = if used { 0 } else { unused.saturating_add(1) };
        if unused > idle {
            return Verdict::Idle;
        }
        if unused > 0 {
            activity.unused.store(true, Ordering::Relaxed);
        }
        if activity.blocked.load(Ordering::Relaxed) && quiet > write {
            return Verdict::SlowReader;
        }
        let now = activity.taken.load(Ordering::Relaxed);
        let takes = std::mem::replace(&mut taken, now) != now;
        stuck = match activity.untaken.load(Ordering::Relaxed) {
            1.. if !takes => stuck.saturating_add(1),
            _ => 0,
        };
        if stuck > write {
            return Verdict::SlowReader;
        }
        if duration.is_some_and(|duration| age >= duration) {
            return Verdict::Old;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;

    fn limits() -> Limits {
        Limits {
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            ..Limits::default()
        }
    }

    #[test]
    fn requests_of_which_nobody_knows_are_settled_once() {
        let activity = Activity::default();
        activity.heads.store(6, Ordering::Relaxed);
        activity.passed_on.store(2, Ordering::Relaxed);
        activity.too_large.store(1, Ordering::Relaxed);
        activity.crowded.store(1, Ordering::Relaxed);
        assert_eq!(activity.unserved(), 4);
        let refused = activity.settle();
        assert_eq!((refused.malformed, refused.too_large), (2, 1));
        assert_eq!(activity.unserved(), 0);
        assert_eq!(activity.settle(), Refused::default());

        // Of HTTP/1 heads are not counted so.
        activity.passed_on.store(9, Ordering::Relaxed);
        assert_eq!(activity.unserved(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_connection_is_idle_after_its_timeout() {
        let start = Instant::now();
        assert_eq!(
            watch(&Activity::default(), &limits(), Stage::Open).await,
            Verdict::Idle
        );
        let took = start.elapsed().as_secs();
        assert!((60..=65).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_unused_connection_may_rest_but_not_one_with_a_request() {
        let activity = Arc::<Activity>::default();
        assert!(!activity.may_rest(), "nobody has looked");
        let look = async |activity: &Arc<Activity>| {
            let limits = limits();
            let watching = watch(activity, &limits, Stage::Open);
            let watched = tokio::time::timeout(Duration::from_secs(9), watching).await;
            assert!(watched.is_err());
        };
        look(&activity).await;
        assert!(activity.may_rest());
        assert!(!activity.may_rest(), "said once");

        activity.requests.store(1, Ordering::Relaxed);
        look(&activity).await;
        assert!(!activity.may_rest());

        activity.requests.store(0, Ordering::Relaxed);
        activity.blocked.store(true, Ordering::Relaxed);
        look(&activity).await;
        assert!(!activity.may_rest(), "not all has been written");
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
        assert_eq!(
            watch(&activity, &limits(), Stage::Open).await,
            Verdict::SlowHead
        );
        let took = start.elapsed().as_secs();
        assert!((10..=13).contains(&took), "{took}");
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_block_that_does_not_end_is_slow_whatever_else_is_in_flight() {
        let activity = Arc::<Activity>::default();
        activity.requests.store(1, Ordering::Relaxed);
        activity.in_block.store(true, Ordering::Relaxed);
        let start = Instant::now();
        assert_eq!(
            watch(&activity, &limits(), Stage::Open).await,
            Verdict::SlowHead
        );
        let took = start.elapsed().as_secs();
        assert!((10..=13).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_in_flight_is_never_idle() {
        let activity = Arc::<Activity>::default();
        activity.requests.store(1, Ordering::Relaxed);
        let limits = limits();
        let watched = tokio::time::timeout(
            Duration::from_secs(9000),
            watch(&activity, &limits, Stage::Open),
        );
        assert!(watched.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_dropped() {
        let activity = Arc::<Activity>::default();
        activity.requests.store(1, Ordering::Relaxed);
        activity.blocked.store(true, Ordering::Relaxed);
        assert_eq!(
            watch(&activity, &limits(), Stage::Open).await,
            Verdict::SlowReader
        );
    }
}
