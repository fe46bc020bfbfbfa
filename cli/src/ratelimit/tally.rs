//! What became of the requests of a test.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use attache_proto::ratelimit::{RateLimitResponse, rate_limit_response::Code};
use attache_service::{channel::TransportFailure, trace::code_name};
use tonic::Status;

use super::histogram::Histogram;

/// Seconds whose figures are kept.
const SECONDS: usize = 3600;

/// What became of the requests so far. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally(Arc<Mutex<Figures>>);

/// Figures of a whole test.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    pub(crate) counts: Counts,
    /// From when they were due, of requests that were answered or ran out of time.
    pub(crate) latency: Histogram,
    /// How long after they were due requests were sent.
    pub(crate) late: Histogram,
    /// By gRPC status.
    pub(crate) failures: BTreeMap<&'static str, Failures>,
    /// The first hour, second by second.
    pub(crate) seconds: Vec<Second>,
    now: Now,
}

/// How many requests there were, and how many ended in which way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) ok: u64,
    pub(crate) over_limit: u64,
    pub(crate) failed: u64,
}

/// Failures of one kind.
#[derive(Debug, Clone)]
pub(crate) struct Failures {
    pub(crate) count: u64,
    /// What the first of them said.
    pub(crate) message: String,
}

/// Figures of a second that is over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Second {
    pub(crate) counts: Counts,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) max: Duration,
}

/// The second that is not over.
#[derive(Debug, Clone, Default)]
struct Now {
    counts: Counts,
    latency: Histogram,
}

impl Tally {
    /// A request that was due then is sent.
    pub(crate) fn sent(&self, due: Instant) {
        let mut figures = self.lock();
        figures.late.record(due.elapsed());
        figures.counts.sent += 1;
        figures.now.counts.sent += 1;
    }

    /// A request that was due then has come to its end.
    pub(crate) fn ended(&self, due: Instant, answer: Result<RateLimitResponse, Status>) {
        let latency = due.elapsed();
        let mut figures = self.lock();
        let Figures {
            counts,
            latency: latencies,
            failures,
            now,
            ..
        } = &mut *figures;
        let mut note = |count: fn(&mut Counts)| {
            count(counts);
            count(&mut now.counts);
        };
        let has_latency = match &answer {
            Ok(_) => true,
            Err(status) => TransportFailure::of(status) == Some(TransportFailure::Timeout),
        };
        match answer.map(|answer| (answer.overall_code(), answer.overall_code)) {
            Ok((Code::Ok, _)) => note(|counts| counts.ok += 1),
            Ok((Code::OverLimit, _)) => note(|counts| counts.over_limit += 1),
            Ok((Code::Unknown, number)) => {
                note(|counts| counts.failed += 1);
                fail(failures, "OK", || {
                    format!("an answer with the overall code {number}")
                });
            }
            Err(status) => {
                note(|counts| counts.failed += 1);
                let message = || status.message().to_owned();
                fail(failures, code_name(status.code()), message);
            }
        }
        if has_latency {
            latencies.record(latency);
            now.latency.record(latency);
        }
    }

    /// Ends a second, if anything happened in it or it is not the `last`.
    pub(crate) fn second(&self, last: bool) -> Option<Second> {
        let mut figures = self.lock();
        let Now { counts, latency } = std::mem::take(&mut figures.now);
        if last && counts.sent == 0 && counts.ended() == 0 {
            return None;
        }
        let second = Second {
            counts,
            p50: latency.percentile(50.0),
            p99: latency.percentile(99.0),
            max: latency.max(),
        };
        if figures.seconds.len() < SECONDS {
            figures.seconds.push(second);
        }
        Some(second)
    }

    /// The figures so far.
    pub(crate) fn figures(&self) -> Figures {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        // Figures are whole between any two steps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    /// How many have come to their end.
    pub(crate) fn ended(self) -> u64 {
        self.ok + self.over_limit + self.failed
    }
}

fn fail(
    failures: &mut BTreeMap<&'static str, Failures>,
    kind: &'static str,
    message: impl FnOnce() -> String,
) {
    failures
        .entry(kind)
        .or_insert_with(|| Failures {
            count: 0,
            message: message(),
        })
        .count += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: Code) -> Result<RateLimitResponse, Status> {
        Ok(RateLimitResponse {
            overall_code: code.into(),
            ..RateLimitResponse::default()
        })
    }

    #[test]
    fn every_request_ends_in_one_way() {
        let tally = Tally::default();
        let due = Instant::now();
        let answers = [
            answer(Code::Ok),
            answer(Code::OverLimit),
            answer(Code::Unknown),
            Err(Status::unknown("no redis")),
            Err(Status::unknown("still no redis")),
        ];
        for answer in answers {
            tally.sent(due);
            tally.ended(due, answer);
        }
        let figures = tally.figures();
        let Counts {
            sent,
            ok,
            over_limit,
            failed,
        } = figures.counts;
        assert_eq!((sent, ok, over_limit, failed), (5, 1, 1, 3));
        // Failures that took no time say nothing about latency.
        assert_eq!((figures.latency.count(), figures.late.count()), (3, 5));
        let unknown = &figures.failures["UNKNOWN"];
        assert_eq!((unknown.count, unknown.message.as_str()), (2, "no redis"));
        assert_eq!(
            figures.failures["OK"].message,
            "an answer with the overall code 0"
        );
    }

    #[test]
    fn latency_counts_from_when_a_request_was_due() {
        let tally = Tally::default();
        let due = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        tally.sent(due);
        tally.ended(due, answer(Code::Ok));
        let figures = tally.figures();
        for histogram in [figures.latency, figures.late] {
            assert!(histogram.percentile(50.0) >= Duration::from_secs(2));
        }
    }

    #[test]
    fn each_second_has_its_own_figures() {
        let tally = Tally::default();
        let due = Instant::now();
        tally.sent(due);
        tally.ended(due, answer(Code::Ok));
        let first = tally.second(false).unwrap();
        assert_eq!((first.counts.sent, first.counts.ok), (1, 1));
        assert_eq!(tally.second(false).unwrap().counts.sent, 0);
        assert!(tally.second(true).is_none());
        assert_eq!(tally.figures().seconds.len(), 2);
    }
}
