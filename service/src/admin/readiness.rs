//! Whether the process is ready for traffic, and if not, why.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Named conditions that must all hold for the process to be ready. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    /// What is still missing, by condition; `None` when the condition holds.
    conditions: Arc<Mutex<BTreeMap<String, Option<String>>>>,
}

/// One condition of a [`Readiness`], changed by whoever knows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Condition {
    name: String,
    readiness: Readiness,
}

impl Readiness {
    /// Adds a condition that does not hold yet because of `reason`. The same name again takes
    /// the condition over.
    pub fn condition(&self, name: &str, reason: &str) -> Condition {
        let condition = Condition {
            name: name.to_owned(),
            readiness: self.clone(),
        };
        condition.fail(reason);
        condition
    }

    /// Whether everything holds.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(Option::is_none)
    }

    /// What does not hold: `(condition, reason)`, by name.
    pub fn missing(&self) -> Vec<(String, String)> {
        self.lock()
            .iter()
            .filter_map(|(name, reason)| Some((name.clone(), reason.clone()?)))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Option<String>>> {
        self.conditions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Condition {
    /// The condition holds.
    pub fn hold(&self) {
        self.set(None);
    }

    /// The condition does not hold, because of `reason`.
    pub fn fail(&self, reason: &str) {
        self.set(Some(reason.to_owned()));
    }

    /// The condition is no longer asked for.
    pub fn remove(self) {
        self.readiness.lock().remove(&self.name);
    }

    fn set(&self, reason: Option<String>) {
        self.readiness.lock().insert(self.name.clone(), reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_every_condition_holds() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready());

        let keys = readiness.condition("keys", "not fetched yet");
        let rules = readiness.condition("rules", "not read yet");
        rules.hold();
        assert!(!readiness.is_ready());
        assert_eq!(
            readiness.missing(),
            [("keys".to_owned(), "not fetched yet".to_owned())]
        );

        keys.hold();
        assert!(readiness.is_ready());
        rules.fail("gone");
        assert!(!readiness.is_ready());
        rules.remove();
        assert!(readiness.is_ready());
    }
}
