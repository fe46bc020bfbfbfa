//! What outlives a reload: fetched keys, verified tokens.

use std::{any::Any, collections::HashMap, fmt, sync::Arc};

/// What a policy hands on to the one that replaces it, by a name that changes when the settings
/// behind it do.
#[derive(Clone, Default)]
pub(super) struct Kept(HashMap<String, Arc<dyn Any + Send + Sync>>);

impl Kept {
    /// What has this name here, else in `before`, else made now.
    pub(super) fn keep<T: Any + Send + Sync>(
        &mut self,
        before: &Self,
        name: String,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        let known = self.0.get(&name).or_else(|| before.0.get(&name));
        let known = known.and_then(|kept| kept.clone().downcast().ok());
        let kept = known.unwrap_or_else(|| Arc::new(make()));
        self.0.insert(name, kept.clone());
        kept
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_again_is_kept_and_the_rest_is_let_go() {
        let mut first = Kept::default();
        let none = Kept::default();
        let keys = first.keep(&none, "keys".to_owned(), || 1);
        let gone = first.keep(&none, "gone".to_owned(), || 2);

        let mut second = Kept::default();
        let same = second.keep(&first, "keys".to_owned(), || 3);
        drop(first);

        assert!(Arc::ptr_eq(&keys, &same));
        assert_eq!(Arc::strong_count(&gone), 1);
    }
}
