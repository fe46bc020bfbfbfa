//! What makes a configuration be read again: a changed file, or SIGHUP.

use std::{future::Future, path::PathBuf};

use attache_service::config::reload::{Look, Watch};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGUSR1, which says that log files were moved away.
pub(crate) struct MovedLogs(Option<Signal>);

impl MovedLogs {
    /// From here on SIGUSR1 no longer ends the process.
    pub(crate) fn new() -> Self {
        Self(signal(SignalKind::user_defined1()).ok())
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        match &mut self.0 {
            Some(signal) => {
                signal.recv().await;
            }
            None => std::future::pending().await,
        }
    }
}

/// Changes of watched files, and SIGHUP.
pub(crate) struct Changes {
    paths: Vec<PathBuf>,
    watch: Option<Watch>,
    hangup: Option<Signal>,
}

impl Changes {
    /// Watches these files and folders, which were read after `look`: what has changed since is a
    /// change. Where the system refuses, SIGHUP still works.
    ///
    /// From here on SIGHUP no longer ends the process.
    pub(crate) fn of(mut paths: Vec<PathBuf>, look: &Look) -> Self {
        paths.sort_unstable();
        Self {
            watch: watch(&paths, look),
            paths,
            hangup: signal(SignalKind::hangup()).ok(),
        }
    }

    /// Watches these files and folders, and not for SIGHUP.
    pub(crate) fn of_files(mut paths: Vec<PathBuf>, look: &Look) -> Self {
        paths.sort_unstable();
        Self {
            watch: watch(&paths, look),
            paths,
            hangup: None,
        }
    }

    /// Looks at what is watched, before it is read again.
    pub(crate) fn look(&self) -> Look {
        Look::at(&self.paths)
    }

    /// Watches these instead, which were read after `look`. The same ones are watched on: a change
    /// since the last look at them is not forgotten.
    pub(crate) fn watch(&mut self, mut paths: Vec<PathBuf>, look: &Look) {
        paths.sort_unstable();
        if paths != self.paths {
            self.watch = watch(&paths, look);
            self.paths = paths;
        }
    }

    /// Waits for the next change.
    pub(crate) async fn next(&mut self) {
        let watch = async {
            match &mut self.watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = watch => {}
            _ = hangup => {}
        }
    }
}

fn watch(paths: &[PathBuf], look: &Look) -> Option<Watch> {
    match Watch::new(paths) {
        Ok(watch) => Some(watch.since(look)),
        Err(error) => {
            tracing::warn!(%error, "cannot watch the configuration: only SIGHUP reloads it");
            None
        }
    }
}

/// A task that ends with the handle.
pub(crate) struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Spawns a task that lives as long as the handle.
pub(crate) fn abort_on_drop(future: impl Future<Output = ()> + Send + 'static) -> Task {
    Task(tokio::spawn(future))
}
