//! What a server is started with.

use std::path::PathBuf;

use attache_service::{Metrics, config::Errors};

use super::RateLimitServer;
use crate::store::{AnyStore, MemoryStore, SharedSettings, memory};

/// What a server is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A rule file or a directory of them.
    pub rules: PathBuf,
    /// Where counters live.
    pub store: StoreSettings,
}

/// Where counters live.
#[derive(Debug, Clone)]
pub enum StoreSettings {
    /// In this process: exact, as long as there is only one.
    Memory {
        /// Counters held at once. Default [`memory::DEFAULT_CAPACITY`].
        capacity: usize,
    },
    /// In a store that all instances share.
    Shared(Box<SharedSettings>),
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self::Memory {
            capacity: memory::DEFAULT_CAPACITY,
        }
    }
}

impl StoreSettings {
    /// Opens the store. One that is shared need not be reachable yet.
    pub async fn open(&self, metrics: &Metrics) -> AnyStore {
        match self {
            Self::Memory { capacity } => MemoryStore::new(*capacity, metrics).into(),
            Self::Shared(settings) => settings.open(metrics).await,
        }
    }
}

impl Settings {
    /// Opens the store and loads the rules.
    ///
    /// # Errors
    /// When the rules are refused.
    pub async fn open(&self, metrics: &Metrics) -> Result<RateLimitServer, Errors> {
        let store = self.store.open(metrics).await;
        RateLimitServer::load(&self.rules, store, metrics)
    }
}
