//! Ejecting endpoints: which may be, for how long, and what readmits them.

use std::sync::{MutexGuard, PoisonError, atomic::Ordering::Relaxed};

use rand::Rng as _;
use tokio::time::Instant;

use super::{Detector, Record};

/// The endpoints of a cluster, counted, when one of them is to be ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowd {
    /// All of them.
    pub all: usize,
    /// Those ejected.
    pub ejected: usize,
    /// Those that could be used now, the one in question among them.
    pub usable: usize,
}

#[derive(Debug, Default)]
pub(super) struct Ejections {
    /// When the one that lasts ends.
    pub(super) until: Option<Instant>,
    /// How many times `base_ejection_time` an ejection lasts; grows with each, and falls with
    /// each interval without.
    pub(super) times: u32,
    /// When the last one ended.
    pub(super) ended: Option<Instant>,
}

impl Record {
    /// Whether the endpoint is left out.
    pub fn is_ejected(&self) -> bool {
        self.is_ejected.load(Relaxed)
    }

    /// When the ejection that lasts ends.
    pub fn ejected_until(&self) -> Option<Instant> {
        self.ejections().until
    }

    pub(super) fn ejections(&self) -> MutexGuard<'_, Ejections> {
        self.ejections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends an ejection at `now`; false when there is none.
    pub fn readmit(&self, now: Instant) -> bool {
        let mut ejections = self.ejections();
        if ejections.until.take().is_none() {
            return false;
        }
        ejections.ended = Some(now);
        for count in [
            &self.consecutive_5xx,
            &self.consecutive_gateway,
            &self.consecutive_local,
        ] {
            count.store(0, Relaxed);
        }
        self.is_ejected.store(false, Relaxed);
        true
    }
}

impl Detector {
    /// Ejects an endpoint if the others are enough; false when it stays. Who counts the crowd
    /// lets nobody else do so until this is done.
    pub fn eject(&self, record: &Record, crowd: Crowd, now: Instant) -> bool {
        // Counted with the one in question, so that `max_ejection_percent` holds afterwards.
        let share = crowd.ejected.saturating_add(1).saturating_mul(100);
        let within = share <= crowd.all.saturating_mul(self.max_percent as usize);
        let one = self.always_one && crowd.ejected == 0;
        if crowd.usable < 2 || !(within || one) {
            return false;
        }
        let mut ejections = record.ejections();
        if ejections.until.is_some() {
            return false;
        }
        ejections.times = ejections.times.saturating_add(1);
        let lasts = self.base.saturating_mul(ejections.times);
        if lasts > self.longest {
            ejections.times = ejections.times.saturating_sub(1).max(1);
        }
        let jitter = self.jitter.mul_f64(rand::rng().random::<f64>());
        let lasts = lasts.min(self.longest).saturating_add(jitter);
        ejections.until = Some(now + lasts);
        record.is_ejected.store(true, Relaxed);
        true
    }
}

/// Counts the endpoints at a tick.
pub(super) fn crowd(endpoints: &[(&Record, bool)]) -> Crowd {
    let ejected = endpoints.iter().filter(|(record, _)| record.is_ejected());
    let usable = endpoints
        .iter()
        .filter(|(record, usable)| *usable && !record.is_ejected());
    Crowd {
        all: endpoints.len(),
        ejected: ejected.count(),
        usable: usable.count(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::tests::{BAD, MANY, detector, noted, secs},
        *,
    };

    #[tokio::test(start_paused = true)]
    async fn the_last_usable_endpoint_and_more_than_the_share_are_never_ejected() {
        let all = detector("{ consecutive_5xx: 1, max_ejection_percent: 100 }");
        let tenth = detector("{ consecutive_5xx: 1 }");
        let one = detector("{ consecutive_5xx: 1, always_eject_one_host: true }");
        let none = detector("{ consecutive_5xx: 1, max_ejection_percent: 0 }");
        let crowd = |all, ejected, usable| Crowd {
            all,
            ejected,
            usable,
        };
        for (detector, crowd, ejected) in [
            (&all, crowd(2, 0, 2), true),
            (&all, crowd(2, 1, 1), false),
            (&all, crowd(1, 0, 1), false),
            // The others fail their health checks.
            (&all, crowd(5, 0, 1), false),
            (&tenth, crowd(9, 0, 9), false),
            (&tenth, crowd(10, 0, 10), true),
            (&tenth, crowd(10, 1, 9), false),
            (&tenth, crowd(20, 1, 19), true),
            (&one, crowd(2, 0, 2), true),
            (&one, crowd(3, 1, 2), false),
            (&none, crowd(10, 0, 10), false),
        ] {
            let record = Record::default();
            let reason = noted(detector, &record, BAD, crowd);
            assert_eq!(reason.is_some(), ejected, "{crowd:?} {detector:?}");
            assert_eq!(record.is_ejected(), ejected);
        }
    }

    /// How long an ejection lasts, looked at each second.
    async fn lasts(detector: &Detector, record: &Record) -> Duration {
        let began = Instant::now();
        while record.is_ejected() {
            tokio::time::advance(secs(1)).await;
            detector.tick(&[(record, true)], Instant::now());
        }
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn ejections_grow_up_to_their_bound_and_shrink_with_quiet_intervals() {
        let detector = detector(
            "{ consecutive_5xx: 1, interval: 10s, base_ejection_time: 30s, max_ejection_time: 70s }",
        );
        let record = Record::default();
        for expected in [30, 60, 70, 70] {
            assert!(noted(&detector, &record, BAD, MANY).is_some());
            assert_eq!(lasts(&detector, &record).await, secs(expected));
        }
        for _ in 0..2 {
            tokio::time::advance(secs(10)).await;
            detector.tick(&[(&record, true)], Instant::now());
        }
        assert!(noted(&detector, &record, BAD, MANY).is_some());
        assert_eq!(lasts(&detector, &record).await, secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_readmitted_begins_anew() {
        let two = detector("{ consecutive_5xx: 2 }");
        let record = Record::default();
        let note = || noted(&two, &record, BAD, MANY);
        assert_eq!((note(), note().is_some()), (None, true));
        // Requests in flight when it was ejected.
        assert_eq!(note(), None);
        assert!(record.readmit(Instant::now()));
        assert!(!record.readmit(Instant::now()));
        assert_eq!((note(), note().is_some()), (None, true));
    }
}
