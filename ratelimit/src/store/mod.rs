//! Where counters live.

pub mod memory;
pub mod redis;

use std::{fmt::Write as _, future::Future, ops::Range};

use crate::limiter::Window;

pub use memory::MemoryStore;
pub use redis::RedisStore;

/// Counters that many requests add to at once.
///
/// Exactness is the contract: an addition and the reading of its result are one step, so that of
/// any number of concurrent hits on one key exactly as many fit a limit as it allows.
pub trait Store: Send + Sync + 'static {
    /// Carries out all charges of `batch` in order and puts each counter's new value into
    /// `counts`, which comes in empty and goes out as long as the batch.
    ///
    /// # Errors
    /// When the counters cannot be reached in time. Some of the charges may then have been
    /// carried out.
    fn charge(
        &self,
        batch: &Batch,
        counts: &mut Vec<u64>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Frees the counters of windows that ended before `now` (Unix seconds). Called every few
    /// seconds for as long as it returns true; false says that the store needs no such help.
    fn sweep(&self, _now: u64) -> bool {
        false
    }
}

/// Why a store did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no connection, and a new one is being made in the background.
    #[error("redis at {address} is not connected: {reason}")]
    NotConnected {
        /// Where the store is, without credentials.
        address: String,
        /// What the last attempt ended with.
        reason: String,
    },
    /// No answer came within the deadline of one operation.
    #[error("redis at {address} did not answer within {millis} ms")]
    Timeout {
        /// Where the store is, without credentials.
        address: String,
        /// The deadline.
        millis: u128,
    },
    /// The store answered with an error.
    #[error("redis at {address}: {reason}")]
    Failed {
        /// Where the store is, without credentials.
        address: String,
        /// What it said.
        reason: String,
    },
}

/// What to do with a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// Add hits; 0 only looks.
    Add(u32),
    /// Give hits back; a counter does not go below 0.
    Refund(u32),
}

/// One counter to charge.
#[derive(Debug, Clone)]
pub struct Charge {
    key: Range<usize>,
    /// The window to count in.
    pub window: Window,
    /// What to do.
    pub amount: Amount,
}

/// The charges of one request, their keys in one buffer.
#[derive(Debug)]
pub struct Batch {
    now: u64,
    keys: String,
    charges: Vec<Charge>,
}

impl Batch {
    /// An empty batch for the second `now` of Unix time.
    pub fn new(now: u64) -> Self {
        Self {
            now,
            keys: String::new(),
            charges: Vec::new(),
        }
    }

    /// The time of the request, in Unix seconds.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Starts a key with a domain. An earlier key that was not charged is dropped.
    pub fn begin(&mut self, domain: &str) {
        self.keys.truncate(self.committed());
        self.keys.push_str(domain);
        self.keys.push('_');
    }

    /// Extends the key by one entry of a descriptor.
    ///
    /// Returns `<key>_<value>`, which is also the name that rules are looked up by.
    pub fn entry(&mut self, key: &str, value: &str) -> &str {
        let start = self.keys.len();
        self.keys.push_str(key);
        self.keys.push('_');
        self.keys.push_str(value);
        let end = self.keys.len();
        self.keys.push('_');
        self.keys.get(start..end).unwrap_or_default()
    }

    /// Charges the key that was put together last, in the present window of `seconds`.
    pub fn charge(&mut self, seconds: u64, amount: Amount) {
        self.charges.push(Charge {
            key: self.committed()..self.keys.len(),
            window: Window::at(self.now, seconds),
            amount,
        });
    }

    /// Nothing to charge.
    pub fn is_empty(&self) -> bool {
        self.charges.is_empty()
    }

    /// How many counters are charged.
    pub fn len(&self) -> usize {
        self.charges.len()
    }

    /// The charges with their keys, `<domain>_<key>_<value>_...`, without the window.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Charge)> {
        self.charges.iter().map(|charge| {
            (
                self.keys.get(charge.key.clone()).unwrap_or_default(),
                charge,
            )
        })
    }

    /// A key as it stands in a shared store: behind a prefix, followed by the window's start.
    fn write_key(buffer: &mut String, prefix: &str, key: &str, window: Window) {
        buffer.clear();
        buffer.push_str(prefix);
        buffer.push_str(key);
        // Writing to a String cannot fail.
        let _ = write!(buffer, "{}", window.start);
    }

    fn committed(&self) -> usize {
        self.charges.last().map_or(0, |charge| charge.key.end)
    }
}

/// A store chosen when the program starts.
#[derive(Debug)]
pub enum AnyStore {
    /// Counters of this process.
    Memory(MemoryStore),
    /// Counters shared through Redis.
    Redis(RedisStore),
}

impl Store for AnyStore {
    async fn charge(&self, batch: &Batch, counts: &mut Vec<u64>) -> Result<(), StoreError> {
        match self {
            Self::Memory(store) => store.charge(batch, counts).await,
            Self::Redis(store) => store.charge(batch, counts).await,
        }
    }

    fn sweep(&self, now: u64) -> bool {
        match self {
            Self::Memory(store) => Store::sweep(store, now),
            Self::Redis(store) => store.sweep(now),
        }
    }
}

impl From<MemoryStore> for AnyStore {
    fn from(store: MemoryStore) -> Self {
        Self::Memory(store)
    }
}

impl From<RedisStore> for AnyStore {
    fn from(store: RedisStore) -> Self {
        Self::Redis(store)
    }
}

impl<S: Store> Store for std::sync::Arc<S> {
    fn charge(
        &self,
        batch: &Batch,
        counts: &mut Vec<u64>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        S::charge(self, batch, counts)
    }

    fn sweep(&self, now: u64) -> bool {
        S::sweep(self, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored_keys(batch: &Batch) -> Vec<String> {
        let mut buffer = String::new();
        batch
            .iter()
            .map(|(key, charge)| {
                Batch::write_key(&mut buffer, "", key, charge.window);
                buffer.clone()
            })
            .collect()
    }

    #[test]
    fn keys_are_those_of_the_reference() {
        let mut batch = Batch::new(1234);
        batch.begin("domain");
        assert_eq!(batch.entry("key", "value"), "key_value");
        batch.charge(1, Amount::Add(1));
        batch.begin("domain");
        assert_eq!(batch.entry("key", ""), "key_");
        batch.charge(1, Amount::Add(1));
        batch.begin("domain");
        batch.entry("key2", "value2");
        batch.entry("subkey2", "subvalue2");
        batch.charge(60, Amount::Add(1));
        assert_eq!(
            stored_keys(&batch),
            [
                "domain_key_value_1234",
                "domain_key__1234",
                "domain_key2_value2_subkey2_subvalue2_1200"
            ]
        );
    }

    #[test]
    fn a_key_that_is_not_charged_leaves_no_trace() {
        let mut batch = Batch::new(1234);
        batch.begin("d");
        batch.entry("a", "1");
        batch.begin("d");
        batch.entry("b", "2");
        batch.charge(3600, Amount::Add(1));
        assert_eq!(stored_keys(&batch), ["d_b_2_0"]);
    }
}
