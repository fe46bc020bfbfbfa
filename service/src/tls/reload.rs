//! A value made from files, made anew when they change.

use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::BuildHasher as _,
    path::PathBuf,
    sync::{Arc, LazyLock},
};

use arc_swap::ArcSwap;

use super::TlsError;
use crate::config::reload::{Look, Watch};

pub(super) struct Reloading<T> {
    current: ArcSwap<Made<T>>,
    make: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    files: Vec<PathBuf>,
}

/// A value, and the files before it was made of them.
struct Made<T> {
    value: Arc<T>,
    looked: Look,
    contents: u64,
}

impl<T> Made<T> {
    fn of(files: &[PathBuf], make: impl Fn() -> Result<T, TlsError>) -> Result<Self, TlsError> {
        Ok(Self {
            looked: Look::at(files),
            contents: contents(files),
            value: Arc::new(make()?),
        })
    }
}

/// Tells contents of files apart, in this process: a hash with a key that nobody knows.
fn contents(files: &[PathBuf]) -> u64 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let read = files.iter().map(|file| std::fs::read(file).ok());
    KEY.hash_one(read.collect::<Vec<_>>())
}

impl<T> Reloading<T> {
    pub(super) fn load(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            current: ArcSwap::from_pointee(Made::of(&files, &make)?),
            make: Box::new(make),
            files,
        })
    }

    pub(super) fn get(&self) -> Arc<T> {
        self.current.load().value.clone()
    }

    pub(super) fn reload(&self) -> Result<(), TlsError> {
        let made = Made::of(&self.files, &self.make)?;
        self.current.store(Arc::new(made));
        Ok(())
    }

    /// Goes on with the value of `other`, which is made in the same way, if the contents of the
    /// files were the same.
    pub(super) fn go_on_with(&self, other: &Self) {
        let theirs = other.current.load_full();
        if self.files == other.files && self.current.load().contents == theirs.contents {
            self.current.store(theirs);
        }
    }

    /// Never returns.
    pub(super) async fn follow(&self) {
        let watch = match self.files.is_empty() {
            true => None,
            false => Watch::new(&self.files)
                .map(|watch| watch.since(&self.current.load().looked))
                .inspect_err(|error| {
                    tracing::warn!(%error, "certificates will not be reloaded: cannot watch their files");
                })
                .ok(),
        };
        let Some(mut watch) = watch else {
            return std::future::pending().await;
        };
        loop {
            watch.changed().await;
            match self.reload() {
                Ok(()) => tracing::info!(files = ?self.files, "certificates reloaded"),
                Err(error) => {
                    tracing::error!(%error, "certificates not reloaded; the last good ones stay in use");
                }
            }
        }
    }
}

impl<T> fmt::Debug for Reloading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}
