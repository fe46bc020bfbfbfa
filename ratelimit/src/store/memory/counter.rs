//! One counter: what its meter remembers, and how hits change it. Pure: no lock, no clock.

use crate::{
    limiter::{UnixTime, Window},
    store::{Amount, Meter, Reading, Rejected, Source, Terms},
};

const MICROS: u64 = 1_000_000;

/// What a meter remembers, in half a cache line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counter {
    /// Hits of one window.
    Fixed { window: Kept, count: u64 },
    /// Hits of one window and of the one before it.
    Sliding {
        window: Kept,
        count: u64,
        previous: u64,
    },
    /// When a bucket will be full.
    Bucket {
        /// In microseconds of Unix time.
        full_at: u64,
        /// And this many parts of one, of which there are `limit`: so that a token, which takes
        /// `period / limit` microseconds to come back, needs no rounding.
        part: u32,
        /// Tokens that come back in each period.
        limit: u32,
        /// Microseconds.
        period: u64,
    },
}

/// A window in less room. No length is longer than 32 bits of seconds: that is more than
/// [`LONGEST`](crate::config::limit::LONGEST).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(Rust, packed(4))]
pub(super) struct Kept {
    start: u64,
    length: u32,
}

impl From<Window> for Kept {
    fn from(window: Window) -> Self {
        Self {
            start: window.start,
            length: length_of(window),
        }
    }
}

impl Kept {
    #[inline]
    pub(super) fn window(self) -> Window {
        Window {
            start: self.start,
            length: self.length.into(),
        }
    }
}

fn length_of(window: Window) -> u32 {
    u32::try_from(window.length).unwrap_or(u32::MAX)
}

/// What tells counters of one key apart: the same key with another unit is another counter. One
/// number, since it is hashed and compared for every charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Kind(u64);

impl Kind {
    /// By the window's length in seconds.
    #[inline]
    fn fixed(length: u32) -> Self {
        Self(length.into())
    }

    /// The same.
    #[inline]
    fn sliding(length: u32) -> Self {
        Self(u64::from(length) | 1 << 32)
    }

    /// By the period in microseconds, which is far from having its top bits set.
    #[inline]
    fn bucket(period: u64) -> Self {
        Self(!period)
    }

    #[inline]
    pub(super) fn of(meter: &Meter) -> Self {
        match meter {
            Meter::FixedWindow(window) => Self::fixed(length_of(*window)),
            Meter::SlidingWindow(window) => Self::sliding(length_of(*window)),
            Meter::TokenBucket { period, .. } => Self::bucket(period_of(*period)),
        }
    }
}

fn period_of(seconds: u64) -> u64 {
    seconds.max(1).saturating_mul(MICROS)
}

impl Counter {
    /// A counter that was never charged.
    pub(super) fn new(terms: &Terms, now: UnixTime) -> Self {
        match terms.meter {
            Meter::FixedWindow(window) => Self::Fixed {
                window: window.into(),
                count: 0,
            },
            Meter::SlidingWindow(window) => Self::Sliding {
                window: window.into(),
                count: 0,
                previous: 0,
            },
            Meter::TokenBucket { period, .. } => Self::Bucket {
                full_at: now.micros(),
                part: 0,
                limit: terms.limit.max(1),
                period: period_of(period),
            },
        }
    }

    #[inline]
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Fixed { window, .. } => Kind::fixed(window.length),
            Self::Sliding { window, .. } => Kind::sliding(window.length),
            Self::Bucket { period, .. } => Kind::bucket(*period),
        }
    }

    /// Brings the counter to the time of a charge on these terms.
    ///
    /// Of two threads at the edge of a window the one with the older time may come second: its
    /// hit counts in the new window. A window further ahead was opened by a clock that has been
    /// set back since, and is given up.
    #[inline]
    pub(super) fn enter(&mut self, terms: &Terms, now: UnixTime) {
        match (self, terms.meter) {
            (Self::Fixed { window, count }, Meter::FixedWindow(present)) => {
                let start = window.start;
                if start != present.start && start != present.end() {
                    *window = present.into();
                    *count = 0;
                }
            }
            (
                Self::Sliding {
                    window,
                    count,
                    previous,
                },
                Meter::SlidingWindow(present),
            ) => {
                let held = window.window();
                if held.start != present.start && held.start != present.end() {
                    *previous = if held.end() == present.start {
                        *count
                    } else {
                        0
                    };
                    *window = present.into();
                    *count = 0;
                }
            }
            (
                Self::Bucket {
                    full_at,
                    part,
                    limit,
                    period,
                },
                Meter::TokenBucket { burst, .. },
            ) => {
                if *limit != terms.limit.max(1) {
                    *limit = terms.limit.max(1);
                    *full_at = full_at.saturating_add(u64::from(*part > 0));
                    *part = 0;
                }
                // A clock that was set back must not stop the bucket: it is not emptier than
                // empty.
                let empty = u128::from(burst) * u128::from(*period);
                if missing(*full_at, *part, *limit, now) > empty {
                    (*full_at, *part) = full_at_of(empty, *limit, now);
                }
            }
            // A key of another kind is another counter: `Kind` is part of its name.
            (Self::Fixed { .. } | Self::Sliding { .. } | Self::Bucket { .. }, _) => {}
        }
    }

    /// How many hits count at `now`. A part of one is one.
    #[inline]
    pub(super) fn used(&self, now: UnixTime) -> u64 {
        match self {
            Self::Fixed { count, .. } => *count,
            Self::Sliding {
                window,
                count,
                previous,
            } => count.saturating_add(weighted(*previous, window.window(), now)),
            Self::Bucket {
                full_at,
                part,
                limit,
                period,
            } => {
                let missing = missing(*full_at, *part, *limit, now);
                u64::try_from(missing.div_ceil(u128::from(*period))).unwrap_or(u64::MAX)
            }
        }
    }

    /// How many hits count at `now`, which may be later than the last charge.
    pub(super) fn used_at(&self, now: UnixTime) -> u64 {
        let mut at_now = *self;
        match &mut at_now {
            Self::Fixed { window, count } => {
                if window.window().end() <= now.seconds() {
                    *count = 0;
                }
            }
            Self::Sliding {
                window,
                count,
                previous,
            } => {
                let held = window.window();
                if held.end() <= now.seconds() {
                    let present = Window::at(now.seconds(), held.length);
                    *previous = if held.end() == present.start {
                        *count
                    } else {
                        0
                    };
                    *count = 0;
                    *window = present.into();
                }
            }
            Self::Bucket { .. } => {}
        }
        at_now.used(now)
    }

    /// Adds hits or gives them back, whether they fit or not. A bucket is not emptier than empty.
    #[inline]
    fn apply(&mut self, terms: &Terms, amount: Amount, now: UnixTime) {
        match self {
            Self::Fixed { count, .. } | Self::Sliding { count, .. } => {
                *count = match amount {
                    Amount::Add(hits) => count.saturating_add(hits.into()),
                    Amount::Refund(hits) => count.saturating_sub(hits.into()),
                };
            }
            Self::Bucket {
                full_at,
                part,
                limit,
                period,
            } => {
                let tokens = |hits: u32| u128::from(hits) * u128::from(*period);
                let missing = missing(*full_at, *part, *limit, now);
                let missing = match amount {
                    Amount::Add(hits) => missing
                        .saturating_add(tokens(hits))
                        .min(tokens(terms.capacity())),
                    Amount::Refund(hits) => missing.saturating_sub(tokens(hits)),
                };
                (*full_at, *part) = full_at_of(missing, *limit, now);
            }
        }
    }

    /// What a charge would make of the counter, which is at the time of the charge, if
    /// `pending` hits more counted.
    #[inline]
    pub(super) fn preview(
        &self,
        terms: &Terms,
        amount: Amount,
        pending: u64,
        now: UnixTime,
    ) -> Reading {
        let before = self.used(now).saturating_add(pending);
        let after = match amount {
            Amount::Add(hits) => before.saturating_add(hits.into()),
            Amount::Refund(hits) => before.saturating_sub(hits.into()),
        };
        let fits = fits(terms, amount, after);
        Reading {
            before,
            after,
            charged: fits || terms.rejected == Rejected::Counted,
            resets_in: 1,
            source: Source::Store,
        }
    }

    /// Carries out a charge at `now`, to which the counter was brought.
    #[inline]
    pub(super) fn charge(&mut self, terms: &Terms, amount: Amount, now: UnixTime) -> Reading {
        let mut reading = self.preview(terms, amount, 0, now);
        if reading.charged {
            self.apply(terms, amount, now);
        }
        reading.resets_in = self.resets_in(terms, amount, &reading, now);
        reading
    }

    /// Whole seconds, at least 1: until the window ends; of a sliding window or a bucket, until
    /// hits that did not fit would, or else until nothing counts any more.
    #[inline]
    pub(super) fn resets_in(
        &self,
        terms: &Terms,
        amount: Amount,
        reading: &Reading,
        now: UnixTime,
    ) -> u64 {
        let capacity = u64::from(terms.capacity());
        let wanted = match amount {
            Amount::Add(hits) => u64::from(hits).max(1),
            Amount::Refund(_) => 1,
        };
        // How much may count for the hits to fit; nothing, when they never will.
        let target = || {
            if reading.after > capacity {
                capacity.saturating_sub(wanted)
            } else {
                0
            }
        };
        match self {
            Self::Fixed { window, .. } => window.window().resets_in(now.seconds()),
            Self::Sliding {
                window,
                count,
                previous,
            } => sliding_resets_in(window.window(), *count, *previous, target(), now),
            Self::Bucket {
                full_at,
                part,
                limit,
                period,
            } => {
                let target = u128::from(target()) * u128::from(*period);
                let missing = missing(*full_at, *part, *limit, now).saturating_sub(target);
                let (reached, part) = full_at_of(missing, *limit, now);
                let micros = (reached - now.micros()).saturating_add(u64::from(part > 0));
                micros.div_ceil(MICROS).max(1)
            }
        }
    }

    /// The second from which on the counter is as if it had never been charged.
    pub(super) fn ends(&self) -> u64 {
        match self {
            Self::Fixed { window, .. } => window.window().end(),
            Self::Sliding { window, .. } => {
                let window = window.window();
                window.end().saturating_add(window.length)
            }
            Self::Bucket { full_at, part, .. } => full_at
                .saturating_add(u64::from(*part > 0))
                .div_ceil(MICROS),
        }
    }
}

/// What is missing from a bucket, in units of which its period in microseconds make one token: in
/// each microsecond `limit` of them come back.
fn missing(full_at: u64, part: u32, limit: u32, now: UnixTime) -> u128 {
    match full_at.checked_sub(now.micros()) {
        Some(micros) => u128::from(micros) * u128::from(limit) + u128::from(part),
        None => 0,
    }
}

/// When a bucket from which this much is missing will be full.
fn full_at_of(missing: u128, limit: u32, now: UnixTime) -> (u64, u32) {
    let limit = u128::from(limit.max(1));
    let micros = u64::try_from(missing / limit).unwrap_or(u64::MAX);
    // Less than the limit, which is 32 bits wide.
    let part = u32::try_from(missing % limit).unwrap_or(u32::MAX);
    (now.micros().saturating_add(micros), part)
}

/// Whether a charge that makes `after` hits count fits. Giving back always does, also when more
/// than the limit still count then.
#[inline]
pub(super) fn fits(terms: &Terms, amount: Amount, after: u64) -> bool {
    matches!(amount, Amount::Refund(_)) || after <= u64::from(terms.capacity())
}

/// The part of the last window's hits that the span of one length ending at `now` still covers.
fn weighted(previous: u64, window: Window, now: UnixTime) -> u64 {
    if previous == 0 {
        return 0;
    }
    let length = u128::from(window.length) * u128::from(MICROS);
    let left = u128::from(
        UnixTime::from_seconds(window.end())
            .micros()
            .saturating_sub(now.micros()),
    )
    .min(length);
    let part = (u128::from(previous) * left).div_ceil(length.max(1));
    u64::try_from(part).unwrap_or(u64::MAX)
}

/// When at most `target` hits count, if no more come.
fn sliding_resets_in(window: Window, count: u64, previous: u64, target: u64, now: UnixTime) -> u64 {
    let to_end = window.resets_in(now.seconds());
    // The last window's hits fade until the end of this one, and this one's in the next.
    let (fading, fixed, end) = if count <= target {
        (previous, count, to_end)
    } else {
        (count, 0, to_end.saturating_add(window.length))
    };
    if fading == 0 {
        return to_end;
    }
    let room = u128::from(target.saturating_sub(fixed));
    // Seconds before `end` at which the fading part has shrunk to the room.
    let before_end = room.saturating_mul(u128::from(window.length)) / u128::from(fading);
    end.saturating_sub(u64::try_from(before_end).unwrap_or(u64::MAX))
        .max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terms(meter: Meter, limit: u32, rejected: Rejected) -> Terms {
        Terms {
            meter,
            rejected,
            ..Terms::fixed_window(Window::at(0, 1), limit)
        }
    }

    fn at(micros: u64) -> UnixTime {
        UnixTime::from_micros(micros)
    }

    fn bucket(limit: u32, period: u64, burst: u32) -> Terms {
        terms(Meter::TokenBucket { period, burst }, limit, Rejected::Free)
    }

    fn sliding(now: UnixTime, length: u64, limit: u32) -> Terms {
        let window = Window::at(now.seconds(), length);
        terms(Meter::SlidingWindow(window), limit, Rejected::Free)
    }

    fn charge(counter: &mut Counter, terms: &Terms, amount: Amount, now: UnixTime) -> Reading {
        counter.enter(terms, now);
        counter.charge(terms, amount, now)
    }

    #[test]
    fn a_counter_takes_half_a_cache_line() {
        assert_eq!(size_of::<Counter>(), 32);
    }

    #[test]
    fn a_bucket_lets_a_burst_pass_and_then_the_rate() {
        let terms = bucket(10, 1, 3);
        let start = at(5_000_000);
        let mut counter = Counter::new(&terms, start);
        for left in [2, 1, 0] {
            let reading = charge(&mut counter, &terms, Amount::Add(1), start);
            assert!(reading.charged);
            assert_eq!(3 - reading.after, left);
        }
        assert!(!charge(&mut counter, &terms, Amount::Add(1), start).charged);
        // Ten a second is one in 100 ms.
        assert!(!charge(&mut counter, &terms, Amount::Add(1), at(5_099_999)).charged);
        assert!(charge(&mut counter, &terms, Amount::Add(1), at(5_100_000)).charged);
        assert!(!charge(&mut counter, &terms, Amount::Add(1), at(5_100_001)).charged);
    }

    #[test]
    fn a_bucket_says_when_the_hits_would_fit() {
        let terms = bucket(1, 60, 2);
        let mut counter = Counter::new(&terms, at(0));
        assert_eq!(
            charge(&mut counter, &terms, Amount::Add(2), at(0)).resets_in,
            120
        );
        let refused = charge(&mut counter, &terms, Amount::Add(1), at(15_000_000));
        assert_eq!((refused.charged, refused.resets_in), (false, 45));
        assert_eq!(counter.ends(), 120);
    }

    #[test]
    fn tokens_given_back_can_be_taken_again() {
        let terms = bucket(1, 3600, 5);
        let mut counter = Counter::new(&terms, at(0));
        charge(&mut counter, &terms, Amount::Add(5), at(0));
        assert_eq!(
            charge(&mut counter, &terms, Amount::Refund(2), at(0)).after,
            3
        );
        assert!(charge(&mut counter, &terms, Amount::Add(2), at(0)).charged);
        assert_eq!(
            charge(&mut counter, &terms, Amount::Refund(9), at(0)).after,
            0
        );
    }

    #[test]
    fn hits_are_given_back_also_when_more_than_the_limit_stay() {
        let counted = terms(Meter::FixedWindow(Window::at(0, 60)), 2, Rejected::Counted);
        let free = Terms {
            rejected: Rejected::Free,
            ..counted
        };
        let mut counter = Counter::new(&counted, at(0));
        charge(&mut counter, &counted, Amount::Add(9), at(0));
        let reading = charge(&mut counter, &free, Amount::Refund(3), at(0));
        assert_eq!((reading.charged, reading.after), (true, 6));
        assert_eq!(counter.used(at(0)), 6);
    }

    #[test]
    fn hits_of_the_last_window_fade() {
        let now = at(119_000_000);
        let mut counter = Counter::new(&sliding(now, 60, 10), now);
        for _ in 0..10 {
            assert!(charge(&mut counter, &sliding(now, 60, 10), Amount::Add(1), now).charged);
        }
        // A fixed window would let ten more pass one second later.
        for (second, passes) in [
            (120, false),
            (125, false),
            (126, true),
            (126, false),
            (150, true),
        ] {
            let now = UnixTime::from_seconds(second);
            let reading = charge(&mut counter, &sliding(now, 60, 10), Amount::Add(1), now);
            assert_eq!(reading.charged, passes, "{second}: {reading:?}");
        }
    }

    #[test]
    fn a_sliding_window_says_when_the_hits_would_fit() {
        let now = UnixTime::from_seconds(60);
        let mut counter = Counter::new(&sliding(now, 60, 10), now);
        charge(&mut counter, &sliding(now, 60, 10), Amount::Add(10), now);
        let refused = charge(&mut counter, &sliding(now, 60, 10), Amount::Add(1), now);
        assert_eq!((refused.charged, refused.resets_in), (false, 66));
        let now = UnixTime::from_seconds(60 + 66);
        assert!(charge(&mut counter, &sliding(now, 60, 10), Amount::Add(1), now).charged);
    }

    #[test]
    fn a_window_that_was_left_out_leaves_nothing() {
        let now = UnixTime::from_seconds(0);
        let mut counter = Counter::new(&sliding(now, 60, 10), now);
        charge(&mut counter, &sliding(now, 60, 10), Amount::Add(10), now);
        let later = UnixTime::from_seconds(120);
        counter.enter(&sliding(later, 60, 10), later);
        assert_eq!(counter.used(later), 0);
    }

    proptest! {
        /// Of a bucket, no span of time lets more pass than the burst and what came back in it.
        #[test]
        fn a_bucket_never_gives_more_than_burst_and_rate(
            limit in 1..50u32,
            period in 1..100u64,
            burst in 1..50u32,
            steps in prop::collection::vec((0..5_000_000u64, 1..5u32), 1..200),
        ) {
            let terms = bucket(limit, period, burst);
            let mut now = 1_000_000_000;
            let mut counter = Counter::new(&terms, at(now));
            let mut passed: Vec<(u64, u64)> = Vec::new();
            for (step, hits) in steps {
                now += step;
                if charge(&mut counter, &terms, Amount::Add(hits), at(now)).charged {
                    passed.push((now, hits.into()));
                }
            }
            for (first, (start, _)) in passed.iter().enumerate() {
                let mut sum = 0;
                for (time, hits) in &passed[first..] {
                    sum += u128::from(*hits);
                    let came = u128::from(time - start) * u128::from(limit);
                    let bound = u128::from(burst) * u128::from(period) * 1_000_000 + came;
                    prop_assert!(sum * u128::from(period) * 1_000_000 <= bound);
                }
            }
        }

        /// A client that waits as long as it is told passes.
        #[test]
        fn after_the_time_that_is_told_the_hits_fit(
            limit in 1..20u32,
            length in 1..50u64,
            is_bucket: bool,
            steps in prop::collection::vec((0..20_000_000u64, 1..5u32), 1..60),
        ) {
            let terms_at = |now: UnixTime| if is_bucket {
                bucket(limit, length, limit)
            } else {
                sliding(now, length, limit)
            };
            let mut now = at(1_000_000_000);
            let mut counter = Counter::new(&terms_at(now), now);
            for (step, hits) in steps {
                now = at(now.micros() + step);
                let hits = hits.min(limit);
                let reading = charge(&mut counter, &terms_at(now), Amount::Add(hits), now);
                if !reading.charged {
                    now = at(now.micros() + reading.resets_in * MICROS);
                    let again = charge(&mut counter, &terms_at(now), Amount::Add(hits), now);
                    prop_assert!(again.charged, "{reading:?} {again:?}");
                }
            }
        }
    }
}
