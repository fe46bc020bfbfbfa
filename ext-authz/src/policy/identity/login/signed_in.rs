//! What rests on a session ends when its user signs out.

use std::sync::Arc;

use quick_cache::sync::Cache;

/// A session that something rests on.
#[derive(Debug, Clone)]
pub(in crate::policy) struct SignedIn {
    /// Sessions whose users signed out.
    ended: Arc<Cache<String, ()>>,
    id: String,
}

impl SignedIn {
    pub(super) fn new(ended: &Arc<Cache<String, ()>>, id: &str) -> Self {
        Self {
            ended: ended.clone(),
            id: id.to_owned(),
        }
    }

    /// Whether the user has signed out meanwhile.
    pub(in crate::policy) fn is_over(&self) -> bool {
        self.ended.get(&self.id).is_some()
    }
}
