//! Where the time comes from.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// A time since the Unix epoch, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(u64);

impl UnixTime {
    /// So many seconds after the epoch.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// So many microseconds after the epoch.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Whole seconds since the epoch.
    pub const fn seconds(self) -> u64 {
        self.0 / 1_000_000
    }

    /// Microseconds since the epoch.
    pub const fn micros(self) -> u64 {
        self.0
    }
}

/// Tells the time that windows are cut from.
pub trait Clock: Send + Sync + 'static {
    /// The time.
    fn now(&self) -> UnixTime;

    /// A time within the second that it is, which may be told faster: never ahead of
    /// [`Clock::now`]. By default the same.
    #[inline]
    fn second(&self) -> UnixTime {
        self.now()
    }
}

/// How long ago the last tick may be, in microseconds: 10 ms, and what a virtual machine may be late.
#[cfg(target_os = "linux")]
const LATE: u64 = 50_000;

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[inline]
    fn now(&self) -> UnixTime {
        read(ClockId::Realtime)
    }

    /// Reading the processor's counter waits until all that was begun before is done, counters that
    /// are fetched from memory included; the last tick is there to be read. Shortly before a second
    /// ends, the tick does not tell whether it has.
    #[cfg(target_os = "linux")]
    #[inline]
    fn second(&self) -> UnixTime {
        let tick = read(ClockId::RealtimeCoarse);
        if tick.micros() % 1_000_000 < 1_000_000 - LATE {
            tick
        } else {
            self.now()
        }
    }
}

#[inline]
fn read(clock: ClockId) -> UnixTime {
    let now = clock_gettime(clock);
    // A clock before 1970 counts as 1970.
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(now.tv_nsec).unwrap_or_default();
    UnixTime(
        seconds
            .saturating_mul(1_000_000)
            .saturating_add(nanos / 1_000),
    )
}

/// A clock that stands still until it is set, for tests. Clones share the time.
#[derive(Debug, Clone, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock that shows `now`, in Unix seconds.
    pub fn at(now: u64) -> Self {
        Self(Arc::new(AtomicU64::new(UnixTime::from_seconds(now).0)))
    }

    /// Sets the time, in Unix seconds.
    pub fn set(&self, now: u64) {
        self.0
            .store(UnixTime::from_seconds(now).0, Ordering::Relaxed);
    }

    /// Moves the time on.
    pub fn advance(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.0.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> UnixTime {
        UnixTime(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_that_of_the_clock() {
        let start = SystemClock.now().seconds();
        loop {
            let (before, second, after) =
                (SystemClock.now(), SystemClock.second(), SystemClock.now());
            assert!(second <= after, "{second:?} {after:?}");
            let (first, last) = (before.seconds(), after.seconds());
            assert!((first..=last).contains(&second.seconds()), "{second:?}");
            // The end of one second was among them.
            if first > start + 1 {
                return;
            }
        }
    }
}
