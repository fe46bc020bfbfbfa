//! Whether the service is healthy, as the reference has it: all parts of it are.

use std::sync::{Arc, Mutex, PoisonError};

use attache_service::Health;

/// The name under which the reference is asked for its health over gRPC.
pub const REFERENCE_NAME: &str = "ratelimit";

/// The parts that health is made of. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HealthParts {
    inner: Arc<Mutex<Parts>>,
    grpc: Health,
    names: Arc<[String]>,
}

#[derive(Debug)]
struct Parts {
    store: bool,
    /// `None` when rules do not matter.
    rules: Option<bool>,
    stopping: bool,
}

impl HealthParts {
    /// Unhealthy until the store was reached; with `needs_rules` also while there is no domain.
    /// What is found out is told at `grpc` under these names.
    pub fn new(grpc: Health, names: impl IntoIterator<Item = String>, needs_rules: bool) -> Self {
        let parts = Self {
            inner: Arc::new(Mutex::new(Parts {
                store: false,
                rules: needs_rules.then_some(false),
                stopping: false,
            })),
            grpc,
            names: names.into_iter().collect(),
        };
        parts.change(|_| {});
        parts
    }

    /// The store can be reached, or cannot.
    pub fn store(&self, reached: bool) {
        self.change(|parts| parts.store = reached);
    }

    /// There are domains, or none.
    pub fn rules(&self, some: bool) {
        self.change(|parts| {
            if let Some(rules) = &mut parts.rules {
                *rules = some;
            }
        });
    }

    /// The service is about to stop.
    pub fn stop(&self) {
        self.change(|parts| parts.stopping = true);
    }

    /// Whether all parts are well.
    pub fn is_healthy(&self) -> bool {
        self.change(|_| {})
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) -> bool {
        let mut parts = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut parts);
        let healthy = parts.store && parts.rules.unwrap_or(true) && !parts.stopping;
        for name in self.names.iter() {
            self.grpc.set(name, healthy);
        }
        healthy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(needs_rules: bool) -> HealthParts {
        HealthParts::new(Health::default(), ["ratelimit".to_owned()], needs_rules)
    }

    #[test]
    fn the_store_must_have_been_reached_and_the_service_not_stop() {
        let parts = parts(false);
        assert!(!parts.is_healthy());
        parts.rules(false);
        parts.store(true);
        assert!(parts.is_healthy() && parts.grpc.is_serving());
        parts.stop();
        assert!(!parts.is_healthy() && !parts.grpc.is_serving());
    }

    #[test]
    fn rules_matter_only_when_asked_for() {
        let parts = parts(true);
        parts.store(true);
        assert!(!parts.is_healthy());
        parts.rules(true);
        assert!(parts.is_healthy());
        parts.rules(false);
        assert!(!parts.is_healthy());
    }
}
