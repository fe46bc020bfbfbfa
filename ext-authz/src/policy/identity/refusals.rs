//! Counters of refused credentials, by reason.

use arc_swap::ArcSwap;
use attache_service::{Metrics, metrics::Counter};

/// How often a source refused credentials, by reason. Reasons are few, and show up with their
/// first refusal.
#[derive(Debug)]
pub(super) struct Refusals {
    source: String,
    metrics: Metrics,
    known: ArcSwap<Vec<(&'static str, Counter)>>,
}

impl Refusals {
    pub(super) fn new(source: &str, metrics: &Metrics) -> Self {
        Self {
            source: source.to_owned(),
            metrics: metrics.clone(),
            known: ArcSwap::default(),
        }
    }

    pub(super) fn count(&self, reason: &'static str) {
        let known = self.known.load();
        if let Some((_, counter)) = known.iter().find(|(known, _)| *known == reason) {
            counter.inc();
            return;
        }
        let counter = self.metrics.counter(
            "attache_auth_credentials_refused",
            "Credentials that did not hold, by reason.",
            &[("source", &self.source), ("reason", reason)],
        );
        counter.inc();
        self.known.rcu(|known| {
            let mut more = Vec::clone(known);
            more.push((reason, counter.clone()));
            more
        });
    }
}
