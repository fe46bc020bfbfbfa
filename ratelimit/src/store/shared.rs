//! A store that instances share, and what each instance does on its own beside it.

use std::num::NonZeroU32;

use attache_service::Metrics;

use super::{
    AnyStore, MemcachedStore, RedisStore, Store,
    lease::{LeaseSettings, LeaseStore},
    memcached::{self, MemcachedSettings},
    outage::{BreakerSettings, OutageStore},
    over_limit::OverLimitStore,
    redis::{InvalidUrl, RedisSettings},
};

/// A store that instances share, behind what this instance does on its own: it spends what it has
/// leased, answers for counters that it knows to be full, and does as the rules say while the
/// store is away.
pub type SharedStore<S> = LeaseStore<OverLimitStore<OutageStore<S>>>;

/// A store that instances share, and what each instance does on its own beside it.
#[derive(Debug, Clone)]
pub struct SharedSettings {
    /// Where the counters are.
    pub backend: Backend,
    /// Memory for remembering counters that are over their limit, in bytes; 0 asks the store
    /// every time. Default 1 MiB; the reference service has 0.
    pub over_limit_cache: usize,
    /// When the store counts as away.
    pub breaker: BreakerSettings,
    /// How many instances share the store: what [`super::Outage::LocalShare`] divides the limit
    /// by, and leases the rest of it. Default 1.
    pub instances: NonZeroU32,
    /// How [`super::Sharing::Leased`] borrows.
    pub lease: LeaseSettings,
}

/// Where shared counters are.
#[derive(Debug, Clone)]
pub enum Backend {
    /// In Redis or Valkey.
    Redis(RedisSettings),
    /// In memcached.
    Memcached(MemcachedSettings),
}

impl SharedSettings {
    /// Settings with defaults.
    pub fn new(backend: Backend) -> Self {
        Self {
            backend,
            over_limit_cache: 1 << 20,
            breaker: BreakerSettings::default(),
            instances: NonZeroU32::MIN,
            lease: LeaseSettings::default(),
        }
    }

    /// Reads a URL as [`RedisSettings::parse`] or [`MemcachedSettings::parse`] does, with
    /// defaults for the rest.
    ///
    /// # Errors
    /// When the URL is of neither kind.
    pub fn parse(url: &str) -> Result<Self, InvalidUrl> {
        let backend = match url.starts_with(memcached::SCHEME) {
            true => Backend::Memcached(MemcachedSettings::parse(url)?),
            false => Backend::Redis(RedisSettings::parse(url)?),
        };
        Ok(Self::new(backend))
    }

    /// Opens the store. It need not be reachable yet. Must run in the tokio runtime that is to
    /// drive its connections.
    pub async fn open(&self, metrics: &Metrics) -> AnyStore {
        match &self.backend {
            Backend::Redis(settings) => {
                let store = RedisStore::connect(settings.clone(), metrics).await;
                AnyStore::Redis(Box::new(self.around(store, metrics)))
            }
            Backend::Memcached(settings) => {
                let store = MemcachedStore::connect(settings.clone(), metrics).await;
                AnyStore::Memcached(Box::new(self.around(store, metrics)))
            }
        }
    }

    /// Puts a store behind what this instance does on its own.
    pub fn around<S: Store>(&self, store: S, metrics: &Metrics) -> SharedStore<S> {
        let store = OutageStore::new(store, &self.breaker, self.instances, metrics);
        let store = OverLimitStore::new(store, self.over_limit_cache, metrics);
        LeaseStore::new(store, self.lease.clone(), self.instances, metrics)
    }
}
