//! Counters as operators see them.

use std::future::Future;

use super::StoreError;
use crate::limiter::UnixTime;

/// Most counters that [`Inspect::top`] looks at.
pub const MOST_COMPARED: usize = 10_000_000;

/// Counters that can be looked at and reset.
pub trait Inspect: Send + Sync {
    /// Some of the counters, in no particular order; perhaps none though there are more. Of counters that come and go between two
    /// pages some may be missing or be there twice, as in Redis' `SCAN`.
    ///
    /// # Errors
    /// When the counters cannot be reached in time, or the cursor is not one of this store.
    fn list(
        &self,
        query: &Query,
        now: UnixTime,
    ) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Forgets the counters whose key starts with `prefix`; returns how many.
    ///
    /// # Errors
    /// When the counters cannot be reached in time. Some may then be forgotten.
    fn reset(&self, prefix: &str) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// The `count` counters with the most hits whose key starts with `prefix`, most first. Looks
    /// at no more than [`MOST_COMPARED`] counters.
    ///
    /// # Errors
    /// As for [`Inspect::list`].
    fn top(
        &self,
        prefix: &str,
        count: usize,
        now: UnixTime,
    ) -> impl Future<Output = Result<Vec<CounterState>, StoreError>> + Send {
        async move {
            let mut query = Query {
                prefix: prefix.to_owned(),
                cursor: None,
                limit: 10_000,
            };
            let mut top: Vec<CounterState> = Vec::new();
            let mut compared = 0_usize;
            loop {
                let page = self.list(&query, now).await?;
                compared = compared.saturating_add(page.counters.len());
                top.extend(page.counters);
                top.sort_unstable_by(|a, b| b.used.cmp(&a.used).then_with(|| a.key.cmp(&b.key)));
                // A page may show a counter again.
                top.dedup_by(|a, b| a.key == b.key);
                top.truncate(count);
                query.cursor = page.next;
                if query.cursor.is_none() || compared >= MOST_COMPARED {
                    return Ok(top);
                }
            }
        }
    }
}

/// Which counters to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// What their keys start with; empty for all.
    pub prefix: String,
    /// Where to go on: [`Page::next`] of the page before. `None` starts.
    pub cursor: Option<String>,
    /// About how many to list at once.
    pub limit: usize,
}

/// Some counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The counters.
    pub counters: Vec<CounterState>,
    /// Where to go on; `None` at the end.
    pub next: Option<String>,
}

/// One counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterState {
    /// Its name in the store: `<domain>_<key>_<value>_...`, and of a fixed window its start.
    pub key: String,
    /// Hits that count.
    pub used: u64,
    /// Seconds until nothing counts any more, if no more hits come; at least 1.
    pub resets_in: u64,
}
