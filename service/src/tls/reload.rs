//! A value made from files, made anew when they change.

use std::{fmt, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;

use super::TlsError;
use crate::config::reload::{Look, Watch};

pub(super) struct Reloading<T> {
    current: ArcSwap<T>,
    make: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    files: Vec<PathBuf>,
    /// The files before they were first read.
    looked: Look,
}

impl<T> Reloading<T> {
    pub(super) fn load(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let looked = Look::at(&files);
        Ok(Self {
            current: ArcSwap::from_pointee(make()?),
            make: Box::new(make),
            files,
            looked,
        })
    }

    pub(super) fn get(&self) -> Arc<T> {
        self.current.load_full()
    }

    pub(super) fn reload(&self) -> Result<(), TlsError> {
        self.current.store(Arc::new((self.make)()?));
        Ok(())
    }

    /// Never returns.
    pub(super) async fn follow(&self) {
        let watch = match self.files.is_empty() {
            true => None,
            false => Watch::new(&self.files)
                .map(|watch| watch.since(self.looked.clone()))
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
