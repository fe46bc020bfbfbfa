//! What a route says to the filters.

use std::{any::Any, fmt, sync::Arc};

/// Per-route filter settings by filter name, each of the filter's own type.
#[derive(Default, Clone)]
pub struct FilterConfigs(Vec<(Arc<str>, Arc<dyn Any + Send + Sync>)>);

impl FilterConfigs {
    /// Adds the settings of `filter`.
    pub fn insert<T: Send + Sync + 'static>(&mut self, filter: impl Into<Arc<str>>, config: T) {
        self.0.push((filter.into(), Arc::new(config)));
    }

    /// Takes the settings of `filter` over from `less_specific`, unless there are own ones.
    pub fn inherit(&mut self, filter: &str, less_specific: &Self) {
        let named = |(name, _): &&(Arc<str>, _)| **name == *filter;
        if self.0.iter().find(named).is_none()
            && let Some(inherited) = less_specific.0.iter().find(named)
        {
            self.0.push(inherited.clone());
        }
    }

    /// Replaces the settings of `filter`, if there are any of type `T`.
    pub fn change<T: Send + Sync + 'static>(&mut self, filter: &str, change: impl FnOnce(&T) -> T) {
        for (name, config) in &mut self.0 {
            if **name == *filter
                && let Some(old) = config.downcast_ref()
            {
                *config = Arc::new(change(old));
                return;
            }
        }
    }

    /// Whether there are settings of `filter`, of whatever type.
    pub fn has(&self, filter: &str) -> bool {
        self.0.iter().any(|(name, _)| **name == *filter)
    }

    /// The settings of `filter`, if the route has any of type `T`.
    pub fn get<T: 'static>(&self, filter: &str) -> Option<&T> {
        self.0
            .iter()
            .find(|(name, _)| &**name == filter)
            .and_then(|(_, c)| c.downcast_ref())
    }
}

impl fmt::Debug for FilterConfigs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}
