//! The end of a listener, in stages: so that no request is lost that is on its way.

use std::time::Duration;

use tokio::sync::watch;

/// How long connections without a request are kept at least when a drain begins, as one may be on
/// its way.
pub(crate) const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// How far the end of a listener has come. Stages only follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Open,
    /// Clients are told to go, spread over this time; new ones still come.
    Leaving(Duration),
    /// No new connections.
    Closed(Queue),
    /// Connections end with the request that they have.
    Ending,
    /// Whatever runs is dropped.
    Cut,
}

/// What becomes of connections that wait to be accepted when a listener closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Queue {
    /// They are served here.
    Served,
    /// Another process listens on the same queue.
    HandedOver,
}

/// Ends a listener. Cheap to ask.
#[derive(Debug)]
pub(crate) struct Drain(watch::Sender<Stage>);

impl Drain {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Stage::Open))
    }

    /// Tells clients to go, spread over `within`.
    pub(crate) fn leave(&self, within: Duration) {
        self.advance(Stage::Leaving(within));
    }

    /// Ends accepting.
    pub(crate) fn close(&self, queue: Queue) {
        self.advance(Stage::Closed(queue));
    }

    /// Ends connections that have no request.
    pub(crate) fn end(&self) {
        self.advance(Stage::Ending);
    }

    /// Drops what still runs.
    pub(crate) fn cut(&self) {
        self.advance(Stage::Cut);
    }

    fn advance(&self, to: Stage) {
        self.0.send_if_modified(|stage| {
            let changed = *stage < to;
            if changed {
                *stage = to;
            }
            changed
        });
    }

    /// When clients are to go; resolves to the time over which they shall be spread.
    pub(crate) async fn leaving(&self) -> Duration {
        match self.reached(|stage| stage > Stage::Open).await {
            Stage::Leaving(within) => within,
            _ => Duration::ZERO,
        }
    }

    /// When no new connections are to be accepted.
    pub(crate) async fn closed(&self) -> Queue {
        let closed = |stage| !matches!(stage, Stage::Open | Stage::Leaving(_));
        match self.reached(closed).await {
            Stage::Closed(queue) => queue,
            _ => Queue::Served,
        }
    }

    /// When connections without a request are to end.
    pub(crate) async fn ending(&self) {
        self.reached(|stage| stage >= Stage::Ending).await;
    }

    /// When whatever still runs is to be dropped.
    pub(crate) async fn cut_off(&self) {
        self.reached(|stage| stage == Stage::Cut).await;
    }

    async fn reached(&self, wanted: impl Fn(Stage) -> bool) -> Stage {
        let mut receiver = self.0.subscribe();
        match receiver.wait_for(|stage| wanted(*stage)).await {
            Ok(stage) => *stage,
            // The sender is `self`.
            Err(_) => Stage::Cut,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn stages_follow_one_another() {
        let drain = Drain::new();
        assert!(drain.leaving().now_or_never().is_none());
        drain.leave(Duration::from_secs(5));
        assert_eq!(drain.leaving().await, Duration::from_secs(5));
        assert!(drain.closed().now_or_never().is_none());
        drain.close(Queue::HandedOver);
        assert_eq!(drain.closed().await, Queue::HandedOver);
        assert!(drain.ending().now_or_never().is_none());
        drain.leave(Duration::from_secs(9));
        assert_eq!(drain.leaving().await, Duration::ZERO);
        drain.end();
        drain.ending().await;
        assert!(drain.cut_off().now_or_never().is_none());
        drain.cut();
        drain.ending().await;
        drain.cut_off().await;
    }
}
