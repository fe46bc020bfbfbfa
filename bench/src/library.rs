//! What one decision costs that no call leads to: the engine as a library, on one core.

use std::hint::black_box;
use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use attache_proto::ratelimit::RateLimitRequest;
use attache_ratelimit::{Limiter, Rules, limiter::Code};

use crate::config::Run;
use crate::cpu::Process;
use crate::limits;

/// One way of asking the engine.
#[derive(Debug)]
pub(crate) struct Library {
    /// How it is asked.
    pub(crate) way: &'static str,
    /// Decisions made.
    pub(crate) decisions: u64,
    /// Decisions for each second of CPU time: the best round.
    pub(crate) per_second: f64,
}

/// So many decisions between two looks at the clock.
const BETWEEN: usize = 10_000;

/// Decides over spread keys, with counters in memory, on this thread alone.
pub(crate) fn measure(run: &Run) -> anyhow::Result<[Library; 2]> {
    let folder = tempfile::tempdir().context("no folder for rules")?;
    let file = folder.path().join("bench.yaml");
    std::fs::write(&file, limits::rules_file())?;
    let limiter = Limiter::in_memory(Rules::load(&file)?);
    let requests = limits::spread_requests();
    let mut name = Name::new();
    Ok([
        rounds(run, "check", limits::spread_values(), |value| {
            check(&limiter, name.of(value))
        })?,
        rounds(run, "decide", requests.iter(), |request| {
            decide(&limiter, request)
        })?,
    ])
}

/// The text of a value, written into one place: callers have it at hand, so that fetching it from
/// memory is no part of what is measured.
struct Name([u8; 11]);

impl Name {
    fn new() -> Name {
        Name(*b"user-000000")
    }

    fn of(&mut self, value: u32) -> &str {
        let mut rest = value;
        for digit in self.0.iter_mut().skip(5).rev() {
            // The remainder is a digit.
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
            rest /= 10;
        }
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

fn rounds<Q>(
    run: &Run,
    way: &'static str,
    questions: impl Iterator<Item = Q> + Clone,
    mut decide: impl FnMut(Q) -> anyhow::Result<Code>,
) -> anyhow::Result<Library> {
    let mut best = Library {
        way,
        decisions: 0,
        per_second: 0.0,
    };
    // Every counter is there before the first round.
    for question in questions.clone() {
        decide(question)?;
    }
    let mut next = questions.cycle();
    for _ in 0..run.rounds() {
        let (start, before) = (Instant::now(), Process::own().cpu()?);
        let mut decisions = 0_u64;
        while start.elapsed() < run.window().seconds {
            for question in next.by_ref().take(BETWEEN) {
                ensure!(black_box(decide(question)?) == Code::Ok, "over the limit");
                decisions += 1;
            }
        }
        let cpu = Process::own().cpu()?.saturating_sub(before);
        best.decisions += decisions;
        best.per_second = best.per_second.max(decisions as f64 / cpu.as_secs_f64());
    }
    Ok(best)
}

/// With keys and values at hand.
fn check(limiter: &Limiter, value: &str) -> anyhow::Result<Code> {
    let decision = limiter.check(limits::DOMAIN, &[(limits::KEY, value)], 1);
    Ok(decision.code)
}

/// With a request of the protocol at hand.
fn decide(limiter: &Limiter, request: &RateLimitRequest) -> anyhow::Result<Code> {
    let decision = pin!(limiter.decide(request));
    // In memory nothing waits.
    match decision.poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(decision) => Ok(decision?.code),
        Poll::Pending => bail!("a decision in memory waits"),
    }
}
