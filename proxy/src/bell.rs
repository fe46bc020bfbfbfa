//! A part of a task that is polled only when it has asked for it.
//!
//! A connection's task is polled for every piece of every request. What only minds the clock or
//! waits for a signal would be asked each time whether its time has come; with a bell of its own
//! it says so.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Wake},
};

use futures_util::task::AtomicWaker;

/// Wakes a task for one part of it, and remembers that it did.
#[derive(Default)]
pub(crate) struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Bell {
    /// A bell that has rung: its part has not been polled yet.
    pub(crate) fn rung() -> Arc<Self> {
        Arc::new(Self {
            rung: AtomicBool::new(true),
            task: AtomicWaker::new(),
        })
    }

    /// Whether the part has asked to be polled since the last look. The task that looks is woken
    /// when it does.
    pub(crate) fn has_rung(&self, cx: &Context<'_>) -> bool {
        // First registered, then looked: what happens in between is not missed.
        self.task.register(cx.waker());
        self.rung.load(Ordering::Acquire) && self.rung.swap(false, Ordering::AcqRel)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        pin::pin,
        task::{Poll, Waker},
        time::Duration,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_is_polled_once_and_then_whenever_it_asks() {
        let bell = Bell::rung();
        let waker = Waker::from(bell.clone());
        let mut part = pin!(async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        });
        let mut often = tokio::time::interval(Duration::from_secs(1));
        let (mut polled, mut looked) = (0, 0);

        poll_fn(|cx| {
            while often.poll_tick(cx).is_ready() {}
            looked += 1;
            if !bell.has_rung(cx) {
                return Poll::Pending;
            }
            polled += 1;
            part.as_mut().poll(&mut Context::from_waker(&waker))
        })
        .await;

        assert_eq!(polled, 3);
        assert!(looked >= 10, "{looked}");
    }
}
