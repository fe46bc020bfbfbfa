//! Handlers that may fail, panic, or take their time.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    task::Poll,
    time::{Duration, Instant},
};

use tokio::time::Sleep;

use super::{
    immediate::Immediate,
    metrics::{Outcome, Part},
    processor::{Result, Stop},
    runner::Settings,
    session::{BodyReply, HeadersReply, TrailersReply},
};

/// A reply of any kind.
pub(super) trait Reply: Sized {
    fn respond(self, immediate: Immediate);
    fn withhold(self);
    fn more_time(&self, time: Duration);
}

macro_rules! replies {
    ($($reply:ident),*) => {$(
        impl Reply for $reply {
            fn respond(self, immediate: Immediate) {
                self.respond(immediate);
            }

            fn withhold(self) {
                self.withhold();
            }

            fn more_time(&self, time: Duration) {
                self.more_time(time);
            }
        }
    )*};
}

replies!(HeadersReply, BodyReply, TrailersReply);

/// A handler that did not come back.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the handler panicked: {0}")]
    Panicked(String),
    #[error("the handler took longer than {0:?}")]
    TimedOut(Duration),
}

/// Runs a handler: a panic or running out of time is a failure like any other. A handler that is
/// done at once costs no timer.
pub(super) async fn guard(
    part: Part,
    handler: impl Future<Output = Result> + Send,
    reply: &impl Reply,
    settings: &Settings,
) -> Result {
    let begun = settings.metrics.as_ref().map(|_| Instant::now());
    let mut handler = pin!(handler);
    let mut slow = None;
    let result = poll_fn(|cx| {
        match catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx))) {
            Ok(Poll::Ready(result)) => return Poll::Ready(result),
            Ok(Poll::Pending) => {}
            Err(panic) => {
                return Poll::Ready(Err(Lost::Panicked(panic_message(&*panic)).into()));
            }
        }
        let slow = slow.get_or_insert_with(|| Box::new(Slow::new(settings)));
        loop {
            match slow.timer.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => match slow.keep_alive.take() {
                    Some(more) => {
                        reply.more_time(more);
                        slow.timer.as_mut().reset(slow.deadline);
                    }
                    None => {
                        let error = Lost::TimedOut(settings.handler_timeout);
                        return Poll::Ready(Err(error.into()));
                    }
                },
            }
        }
    });
    let result = result.await;
    if let (Some(metrics), Some(begun)) = (&settings.metrics, begun) {
        let outcome = match &result {
            Ok(()) => Outcome::Ok,
            Err(Stop::Respond(_)) => Outcome::Responded,
            Err(Stop::Failed(_)) => Outcome::Failed,
        };
        metrics.record(part, outcome, begun.elapsed());
    }
    result
}

/// What a handler needs that is not done at once.
struct Slow {
    timer: Pin<Box<Sleep>>,
    keep_alive: Option<Duration>,
    deadline: tokio::time::Instant,
}

impl Slow {
    fn new(settings: &Settings) -> Self {
        let now = tokio::time::Instant::now();
        let deadline = now + settings.handler_timeout;
        let keep_alive = settings.keep_alive();
        let keep_alive = keep_alive.filter(|(after, _)| *after < settings.handler_timeout);
        let first = keep_alive.map_or(deadline, |(after, _)| now + after);
        Self {
            timer: Box::pin(tokio::time::sleep_until(first)),
            keep_alive: keep_alive.map(|(_, more)| more),
            deadline,
        }
    }
}

pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.map(str::to_owned)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
