//! One handle that tells every part of the process to stop.

use std::{sync::Arc, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

/// How long `main` may take to return after the second signal, before the process is ended.
const LAST_GRACE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    /// Accept nothing new, finish what runs.
    Draining,
    /// Drop what runs.
    Immediate,
}

/// Asks for, and waits for, the end of the process or of one part of it. Cheap to clone.
///
/// Shutdown has two stages: [`Shutdown::trigger`] starts a graceful drain, and
/// [`Shutdown::trigger_immediate`] cuts the drain short.
#[derive(Debug, Clone)]
pub struct Shutdown {
    stage: Arc<watch::Sender<Stage>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// A handle on which nothing has been triggered.
    pub fn new() -> Self {
        Self {
            stage: Arc::new(watch::Sender::new(Stage::Running)),
        }
    }

    /// A handle triggered by SIGINT or SIGTERM. A second signal is immediate; if the process
    /// still lives a second after that, it is ended with status 130.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn on_signals() -> std::io::Result<Self> {
        Self::on(None)
    }

    /// Like [`Shutdown::on_signals`], also by SIGHUP.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn on_signals_and_hangup() -> std::io::Result<Self> {
        Self::on(Some(signal(SignalKind::hangup())?))
    }

    fn on(mut hangup: Option<Signal>) -> std::io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let shutdown = Self::new();
        let handle = shutdown.clone();
        tokio::spawn(async move {
            let mut next = async || {
                tokio::select! {
                    _ = interrupt.recv() => "SIGINT",
                    _ = terminate.recv() => "SIGTERM",
                    () = received(&mut hangup) => "SIGHUP",
                }
            };
            let signal = next().await;
            tracing::info!("{signal}: draining");
            handle.trigger();
            let signal = next().await;
            tracing::warn!("{signal}: stopping at once");
            handle.trigger_immediate();
            tokio::time::sleep(LAST_GRACE).await;
            std::process::exit(130);
        });
        Ok(shutdown)
    }

    /// Starts the drain. Later calls do nothing.
    pub fn trigger(&self) {
        self.advance(Stage::Draining);
    }

    /// Ends the drain at once: what still runs is dropped.
    pub fn trigger_immediate(&self) {
        self.advance(Stage::Immediate);
    }

    /// Whether shutdown has begun.
    pub fn is_triggered(&self) -> bool {
        *self.stage.borrow() >= Stage::Draining
    }

    /// Resolves when shutdown begins; at once if it already has.
    pub async fn recv(&self) {
        self.reached(Stage::Draining).await;
    }

    /// Resolves when what still runs must be dropped.
    pub async fn recv_immediate(&self) {
        self.reached(Stage::Immediate).await;
    }

    fn advance(&self, to: Stage) {
        self.stage.send_if_modified(|stage| {
            let changed = *stage < to;
            *stage = to.max(*stage);
            changed
        });
    }

    async fn reached(&self, at_least: Stage) {
        // Fails only when the sender is gone, which `self` holds.
        let _ = self
            .stage
            .subscribe()
            .wait_for(|stage| *stage >= at_least)
            .await;
    }
}

/// Waits for a signal that may not be asked for.
async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn every_clone_learns_of_the_trigger_even_afterwards() {
        let shutdown = Shutdown::new();
        let clone = shutdown.clone();
        assert!(clone.recv().now_or_never().is_none());
        shutdown.trigger();
        clone.recv().await;
        assert!(clone.is_triggered());
        assert!(clone.recv_immediate().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_signal_begins_the_drain() {
        let shutdown = Shutdown::on_signals().unwrap();
        tokio::task::yield_now().await;
        assert!(!shutdown.is_triggered());
        let own = std::process::id().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-TERM", &own])
            .status();
        assert!(sent.unwrap().success());
        shutdown.recv().await;
        assert!(shutdown.recv_immediate().now_or_never().is_none());
    }

    #[tokio::test]
    async fn an_immediate_stop_is_also_a_stop_and_cannot_be_taken_back() {
        let shutdown = Shutdown::new();
        shutdown.trigger_immediate();
        shutdown.trigger();
        shutdown.recv().await;
        shutdown.recv_immediate().await;
    }
}
