//! The timer of one direction, as Envoy runs it.

use std::time::Duration;

/// Armed by every message that needs a reply; stopped by any matching reply, even if more are
/// due.
#[derive(Debug, Default)]
pub(super) struct Timer {
    deadline: Option<Duration>,
    extended: bool,
}

impl Timer {
    pub(super) fn is_armed(&self) -> bool {
        self.deadline.is_some()
    }

    /// Starts anew, unless it has fired.
    pub(super) fn arm(&mut self, now: Duration, timeout: Duration) {
        if self.deadline.is_none_or(|deadline| now <= deadline) {
            self.deadline = Some(now.saturating_add(timeout));
        }
    }

    /// The processor asks for more time, which counts once.
    pub(super) fn extend(&mut self, now: Duration, timeout: Duration) -> bool {
        if self.extended || self.deadline.is_none_or(|deadline| now > deadline) {
            return false;
        }
        self.extended = true;
        self.deadline = Some(now.saturating_add(timeout));
        true
    }

    /// A reply has come; whether it was too late.
    pub(super) fn stop(&mut self, now: Duration) -> bool {
        self.extended = false;
        self.deadline.take().is_some_and(|deadline| now > deadline)
    }
}
