//! How fresh fetched keys are kept.

use std::time::Duration;

use attache_service::config::{Errors, Located};

use crate::policy::{
    background::Hold,
    config::Refresh,
    follow::{FetchStats, Followed, Follower, Pace},
    planning::Planning,
};

const INTERVAL: Duration = Duration::from_secs(300);
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(24 * 3600);
const UNKNOWN_KEY_INTERVAL: Duration = Duration::from_secs(30);
const UNKNOWN_KEY_WAIT: Duration = Duration::from_millis(500);
const MAX_UNKNOWN_KEY_WAIT: Duration = Duration::from_secs(10);

/// How fresh keys are kept, checked.
#[derive(Debug, Clone, Copy)]
pub(in crate::policy) struct Freshness {
    pace: Pace,
    unknown_key_interval: Duration,
    unknown_key_wait: Duration,
}

impl Freshness {
    pub(in crate::policy) fn plan(raw: Option<&Located<Refresh>>, errors: &mut Errors) -> Self {
        let mut read = |raw: Option<&Located<Duration>>, default, least, most: Duration| {
            let Some(raw) = raw else { return default };
            if !(least..=most).contains(&raw.value) {
                errors.push(raw, format!("expected {least:?} to {most:?}"));
            }
            raw.value
        };
        let raw = raw.map(|raw| &raw.value);
        let interval = raw.and_then(|raw| raw.interval.as_ref());
        let interval = read(interval, INTERVAL, MIN_INTERVAL, MAX_INTERVAL);
        let again = raw.and_then(|raw| raw.unknown_key_interval.as_ref());
        let wait = raw.and_then(|raw| raw.unknown_key_wait.as_ref());
        let max_age = raw.and_then(|raw| raw.max_age.as_ref());
        let freshness = Self {
            unknown_key_interval: read(again, UNKNOWN_KEY_INTERVAL, MIN_INTERVAL, MAX_INTERVAL),
            unknown_key_wait: read(wait, UNKNOWN_KEY_WAIT, Duration::ZERO, MAX_UNKNOWN_KEY_WAIT),
            pace: Pace {
                interval,
                max_age: max_age.map(|age| age.value),
            },
        };
        if let Some(age) = max_age
            && age.value <= interval
        {
            errors.push(
                age,
                "must be longer than `interval`, or keys expire while all is well",
            );
        }
        freshness
    }

    /// Who keeps the keys of the source `name` so fresh.
    pub(super) fn follower(
        &self,
        name: &str,
        hold: Option<Hold>,
        planning: &Planning<'_>,
    ) -> Follower {
        Follower {
            name: name.to_owned(),
            pace: self.pace,
            stats: FetchStats::new(name, planning.metrics),
            revision: planning.revision.clone(),
            hold,
        }
    }

    /// Has keys fetched again since one is missing: see [`Followed::renewed`].
    pub(super) async fn renewed<T: Send + Sync + 'static>(&self, keys: &Followed<T>) -> bool {
        keys.renewed(self.unknown_key_interval, self.unknown_key_wait)
            .await
    }
}
