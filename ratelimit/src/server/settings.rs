//! What a server is started with.

use std::path::PathBuf;

use attache_service::{Metrics, config::Errors};

use super::RateLimitServer;
use crate::store::{
    AnyStore, MemoryStore, RedisStore, memory,
    redis::{InvalidUrl, RedisSettings},
};

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
    /// In Redis, shared by all instances.
    Redis(RedisSettings),
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The rules are refused.
    #[error(transparent)]
    Rules(#[from] Errors),
    /// The store's address is refused.
    #[error(transparent)]
    Store(#[from] InvalidUrl),
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self::Memory {
            capacity: memory::DEFAULT_CAPACITY,
        }
    }
}

impl StoreSettings {
    /// Opens the store. One in Redis need not be reachable yet.
    ///
    /// # Errors
    /// When the Redis URL is not valid.
    pub async fn open(&self, metrics: &Metrics) -> Result<AnyStore, InvalidUrl> {
        Ok(match self {
            Self::Memory { capacity } => MemoryStore::new(*capacity, metrics).into(),
            Self::Redis(settings) => RedisStore::connect(settings.clone(), metrics).await?.into(),
        })
    }
}

impl Settings {
    /// Opens the store and loads the rules.
    ///
    /// # Errors
    /// When the rules are refused or the Redis URL is not valid.
    pub async fn open(&self, metrics: &Metrics) -> Result<RateLimitServer, SettingsError> {
        let store = self.store.open(metrics).await?;
        Ok(RateLimitServer::load(&self.rules, store, metrics)?)
    }
}
