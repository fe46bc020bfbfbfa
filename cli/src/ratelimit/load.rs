//! `attache ratelimit load`: requests at a rate or from callers, for a while.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use attache_service::Shutdown;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use super::{answer, question::Questions, report::Report, tally::Tally, target::Target};
use crate::{
    Failure,
    args::{LogArgs, ratelimit::LoadArgs},
    output,
    probe::quiet,
    reload::abort_on_drop,
    run::{runtime, start_logging},
};

/// Requests per second when nothing is said.
const RATE: u32 = 100;

/// How long requests that are due may still be sent when the time is over.
const GRACE: Duration = Duration::from_secs(1);

/// Moments that are due and not taken up.
const DUE: usize = 1024;

/// How requests follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// So many are due each second, whatever becomes of them.
    Rate(u32),
    /// So many callers wait for their answers.
    Callers(u32),
}

impl Pace {
    fn of(args: &LoadArgs) -> Self {
        match args.concurrency {
            Some(callers) => Self::Callers(callers),
            None => Self::Rate(args.rate.unwrap_or(RATE)),
        }
    }
}

/// Runs a test, or asks once.
pub(crate) fn run(args: &LoadArgs, log: &LogArgs) -> Result<(), Failure> {
    start_logging(&quiet(log))?;
    if args.duration.is_zero() || args.timeout.is_zero() {
        let message = "--duration and --timeout must be longer than nothing";
        return Err(Failure::Usage(message.to_owned()));
    }
    let mut questions = Questions::of(args)?;
    let target = Target::of(args)?;
    runtime()?.block_on(async {
        target.connect().await?;
        if args.once {
            let message = questions.next();
            return answer::print(&questions, target.ask(message).await, args.json);
        }
        let report = test(args, target, questions).await?;
        report.print(args.json)?;
        match report.is_answered() {
            true => Ok(()),
            false => Err(Failure::Found),
        }
    })
}

/// One test.
struct Test {
    target: Target,
    questions: Questions,
    tally: Tally,
    start: Instant,
    end: Instant,
    shutdown: Shutdown,
}

async fn test(args: &LoadArgs, target: Target, questions: Questions) -> Result<Report, Failure> {
    let shutdown = Shutdown::on_signals().map_err(Failure::run)?;
    let tally = Tally::default();
    let pace = Pace::of(args);
    let start = Instant::now();
    let end = start
        .checked_add(args.duration)
        .ok_or_else(|| Failure::Usage("--duration is too long".to_owned()))?;
    let seconds = abort_on_drop(seconds(tally.clone(), !args.json));
    let test = Test {
        target,
        questions,
        tally: tally.clone(),
        start,
        end,
        shutdown,
    };
    let unsent = match pace {
        Pace::Rate(rate) => test.at_rate(rate, args.max_in_flight).await,
        Pace::Callers(callers) => {
            test.by_callers(callers).await;
            0
        }
    };
    let lasted = start.elapsed();
    drop(seconds);
    if let Some(second) = tally.second(true)
        && !args.json
    {
        output(&format!("{second}\n"))?;
    }
    Ok(Report {
        pace,
        lasted,
        unsent,
        figures: tally.figures(),
    })
}

/// Ends a second after the other, and shows them.
async fn seconds(tally: Tally, show: bool) {
    if show && output(super::report::HEAD).is_err() {
        return;
    }
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Some(second) = tally.second(false)
            && show
            && output(&format!("{second}\n")).is_err()
        {
            return;
        }
    }
}

impl Test {
    /// Sends at even intervals. Returns how many were due and not sent.
    async fn at_rate(mut self, rate: u32, max_in_flight: u32) -> u64 {
        let slots = Arc::new(Semaphore::new(
            usize::try_from(max_in_flight).unwrap_or(usize::MAX),
        ));
        let mut due = clock(self.start, self.end, rate);
        let last = tokio::time::Instant::from_std(self.end + GRACE);
        let mut sent = 0_u64;
        loop {
            let next = async {
                let at = due.recv().await?;
                let slot = slots.clone().acquire_owned().await.ok()?;
                Some((at, slot))
            };
            let (at, slot) = tokio::select! {
                biased;
                () = self.shutdown.recv() => break,
                () = tokio::time::sleep_until(last) => break,
                next = next => match next {
                    Some(next) => next,
                    None => break,
                },
            };
            let (target, tally) = (self.target.clone(), self.tally.clone());
            let message = self.questions.next();
            sent += 1;
            tokio::spawn(async move {
                tally.sent(at);
                tally.ended(at, target.ask(message).await);
                drop(slot);
            });
        }
        // What was due just before an early end is not late.
        let lasted = self.start.elapsed().saturating_sub(GRACE);
        let lasted = lasted.min(self.end - self.start);
        // Each of them ends when its time is over.
        let _all_ended = slots.acquire_many(max_in_flight).await;
        due_in(lasted, rate).saturating_sub(sent)
    }

    /// Lets so many callers send, each when it has its last answer.
    async fn by_callers(self, callers: u32) {
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = JoinSet::new();
        for _ in 0..callers {
            let (target, tally) = (self.target.clone(), self.tally.clone());
            let (stop, end) = (stop.clone(), self.end);
            let mut questions = self.questions.clone();
            running.spawn(async move {
                while !stop.load(Ordering::Relaxed) && Instant::now() < end {
                    let message = questions.next();
                    let at = Instant::now();
                    tally.sent(at);
                    tally.ended(at, target.ask(message).await);
                }
            });
        }
        let ended = async { while running.join_next().await.is_some() {} };
        tokio::pin!(ended);
        tokio::select! {
            biased;
            () = &mut ended => return,
            () = self.shutdown.recv() => stop.store(true, Ordering::Relaxed),
        }
        ended.await;
    }
}

/// Tells each moment at which a request is due, as soon as it is there.
///
/// On a thread of its own: the runtime's timers have a grain of a millisecond, which would show
/// as latency.
fn clock(start: Instant, end: Instant, rate: u32) -> mpsc::Receiver<Instant> {
    let (due, moments) = mpsc::channel(DUE);
    thread::spawn(move || {
        for number in 0.. {
            let at = start + moment(number, rate);
            if at >= end {
                return;
            }
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if due.blocking_send(at).is_err() {
                return;
            }
        }
    });
    moments
}

/// When the request of this number is due.
fn moment(number: u64, rate: u32) -> Duration {
    let nanos = u128::from(number) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// How many requests are due in a time.
fn due_in(time: Duration, rate: u32) -> u64 {
    let due = (time.as_nanos() * u128::from(rate)).div_ceil(1_000_000_000);
    u64::try_from(due).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_at_even_intervals() {
        assert_eq!(moment(0, 3), Duration::ZERO);
        assert_eq!(moment(1, 3), Duration::from_nanos(333_333_333));
        assert_eq!(moment(3, 3), Duration::from_secs(1));
        assert_eq!(moment(u64::MAX, 1), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn as_many_are_due_as_have_their_moment_before_the_end() {
        for (millis, rate, expected) in [(1000, 100, 100), (1001, 100, 101), (1, 100, 1), (0, 7, 0)]
        {
            let time = Duration::from_millis(millis);
            assert_eq!(due_in(time, rate), expected);
            let before = (0..).take_while(|number| moment(*number, rate) < time);
            assert_eq!(before.count() as u64, expected);
        }
    }

    #[tokio::test]
    async fn the_clock_tells_every_moment_and_none_too_early() {
        let start = Instant::now();
        let mut due = clock(start, start + Duration::from_millis(50), 1000);
        let mut told = 0;
        while let Some(at) = due.recv().await {
            assert!(at <= Instant::now());
            assert_eq!(at, start + moment(told, 1000));
            told += 1;
        }
        assert_eq!(told, 50);
    }
}
