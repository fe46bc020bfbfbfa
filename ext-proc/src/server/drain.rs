//! The end of a server, as its exchanges learn of it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

/// Tells open exchanges to end. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Drain(Arc<State>);

#[derive(Debug, Default)]
struct State {
    closed: AtomicBool,
    notify: Notify,
}

impl Drain {
    /// Exchanges that can end shall do so.
    pub(super) fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.notify.notify_waiters();
    }

    pub(super) async fn closed(&self) {
        let notified = self.0.notify.notified();
        // A waiter counts from when it is made, so none is missed in between.
        if !self.0.closed.load(Ordering::Acquire) {
            notified.await;
        }
    }
}
