//! What is fetched and kept fresh: key sets, documents of issuers.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::{ArcSwapOption, Guard};
use attache_service::{
    Metrics,
    metrics::{Counter, Gauge},
};
use rand::Rng as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{background::Hold, planning::Revision};

/// However short a server says that its answer is fresh, it is not asked more often.
const MIN_FRESH: Duration = Duration::from_secs(30);
/// Wait after a first failure; it doubles with each further one.
const BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// How often something is fetched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Time between fetches; less when the server says so.
    pub(super) interval: Duration,
    /// What could not be renewed for longer is dropped.
    pub(super) max_age: Option<Duration>,
}

impl Pace {
    /// A little less than it could be: all services of a fleet would ask at once, else.
    fn until_next(&self, fresh_for: Option<Duration>) -> Duration {
        let fresh = fresh_for.map_or(self.interval, |fresh| fresh.max(MIN_FRESH));
        let most = fresh.min(self.interval);
        most.mul_f64(rand::rng().random_range(0.9..=1.0))
    }

    /// Twice as long with each failure, half of it random.
    fn after_failures(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(10);
        let most = BACKOFF.saturating_mul(1 << doublings);
        let most = most.min(MAX_BACKOFF).min(self.interval);
        most.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// Who keeps something fresh.
pub(super) struct Follower {
    /// Of the source.
    pub(super) name: String,
    pub(super) pace: Pace,
    pub(super) stats: FetchStats,
    /// Advanced when it changes.
    pub(super) revision: Arc<Revision>,
    /// Let go when it is there.
    pub(super) hold: Option<Hold>,
}

/// What one fetch brought.
pub(super) struct Brought<T> {
    /// `None` when it is what it was.
    pub(super) value: Option<T>,
    pub(super) fresh_for: Option<Duration>,
}

/// A way of fetching.
pub(super) trait Fetch: Send + 'static {
    type Value: Send + Sync + 'static;

    /// Fetches; `current` is what is there already.
    fn fetch(
        &mut self,
        current: Option<&Self::Value>,
    ) -> impl Future<Output = Result<Brought<Self::Value>, String>> + Send;
}

/// Counts the fetches of one source.
#[derive(Debug, Clone)]
pub(super) struct FetchStats {
    changed: Counter,
    unchanged: Counter,
    failed: Counter,
    /// When the last good fetch ended, in seconds since 1970.
    good_at: Gauge,
}

impl FetchStats {
    pub(super) fn new(source: &str, metrics: &Metrics) -> Self {
        let fetches = |result| {
            metrics.counter(
                "attache_auth_fetches",
                "Fetches of keys, documents and policies.",
                &[("source", source), ("result", result)],
            )
        };
        Self {
            changed: fetches("changed"),
            unchanged: fetches("unchanged"),
            failed: fetches("failed"),
            good_at: metrics.gauge(
                "attache_auth_fetched_timestamp_seconds",
                "When the last good fetch was, in seconds since 1970.",
                &[("source", source)],
            ),
        }
    }
}

impl FetchStats {
    fn count(&self, changed: bool) {
        if changed {
            self.changed.inc();
        } else {
            self.unchanged.inc();
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = since.unwrap_or_default().as_secs();
        self.good_at.set(seconds.try_into().unwrap_or(i64::MAX));
    }
}

/// Something fetched: the last good form of it.
pub(super) struct Followed<T> {
    value: ArcSwapOption<T>,
    state: Mutex<State>,
    /// Told when somebody wants it before its time, and when a fetch has ended.
    wanted: watch::Sender<()>,
    finished: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// When it was last found good.
    good_at: Option<Instant>,
    /// When it is to be fetched next.
    due: Option<Instant>,
    /// When somebody last wanted it before its time.
    wanted_at: Option<Instant>,
    /// Somebody waits for a fetch that has not begun or ended.
    pending: bool,
}

impl<T> Default for Followed<T> {
    fn default() -> Self {
        Self {
            value: ArcSwapOption::empty(),
            state: Mutex::default(),
            wanted: watch::Sender::new(()),
            finished: watch::Sender::new(()),
        }
    }
}

impl<T> fmt::Debug for Followed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followed")
            .field("state", &*self.state())
            .finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Followed<T> {
    /// What was last fetched; `None` when nothing is there, or it has become too old.
    pub(super) fn value(&self) -> Guard<Option<Arc<T>>> {
        self.value.load()
    }

    /// Has it fetched before its time, if nobody had within `interval`, and waits until that is
    /// done, at most `wait`. Whoever comes meanwhile waits for the same fetch. Says whether
    /// there was one.
    pub(super) async fn renewed(&self, interval: Duration, wait: Duration) -> bool {
        let mut finished = self.finished.subscribe();
        {
            let mut state = self.state();
            if !state.pending {
                let asked = state.wanted_at.map(|at| at.elapsed());
                if asked.is_some_and(|ago| ago < interval) {
                    return false;
                }
                state.wanted_at = Some(Instant::now());
                state.pending = true;
                self.wanted.send_replace(());
            }
        }
        let done = async { while finished.changed().await.is_ok() && self.state().pending {} };
        timeout(wait, done).await.is_ok()
    }

    /// Keeps it fresh, for ever. Where several do so for the same thing, they take turns.
    pub(super) fn follow<F: Fetch<Value = T>>(
        self: Arc<Self>,
        mut fetch: F,
        follower: Follower,
    ) -> impl Future<Output = ()> + Send {
        let Follower {
            name,
            pace,
            stats,
            revision,
            hold,
        } = follower;
        let mut view = View {
            wanted: self.wanted.subscribe(),
            finished: self.finished.subscribe(),
            seen: self.value.load_full(),
            revision,
            hold,
        };
        async move {
            let mut failures = 0_u32;
            loop {
                self.wait(&name, pace, &mut view).await;
                let somebody_waits = self.state().pending;
                let current = self.value.load_full();
                let brought = fetch.fetch(current.as_deref()).await;
                let now = Instant::now();
                let after = match brought {
                    Ok(brought) => {
                        stats.count(brought.value.is_some());
                        if let Some(value) = brought.value {
                            self.value.store(Some(Arc::new(value)));
                        }
                        self.state().good_at = Some(now);
                        failures = 0;
                        pace.until_next(brought.fresh_for)
                    }
                    Err(error) => {
                        stats.failed.inc();
                        failures = failures.saturating_add(1);
                        let age = self.state().good_at.map(|at| at.elapsed());
                        match (current, age) {
                            (Some(_), Some(age)) => tracing::warn!(
                                source = name, %error, ?age,
                                "not fetched anew; the last good form stays in use"
                            ),
                            _ => tracing::warn!(source = name, %error, "not fetched"),
                        }
                        pace.after_failures(failures)
                    }
                };
                {
                    let mut state = self.state();
                    state.due = Some(now + after);
                    state.pending &= !somebody_waits;
                }
                // Before those who wait go on, what was decided so far is forgotten.
                self.notice(&mut view);
                self.finished.send_replace(());
            }
        }
    }

    /// Waits until it is to be fetched, and drops it when it becomes too old meanwhile.
    async fn wait(&self, name: &str, pace: Pace, view: &mut View<T>) {
        // The settings may have changed since the next fetch was planned.
        let latest = Instant::now() + pace.interval;
        loop {
            self.notice(view);
            let now = Instant::now();
            let (due, old) = {
                let state = self.state();
                if state.pending {
                    return;
                }
                let old = state.good_at.zip(pace.max_age).map(|(at, age)| at + age);
                (state.due.unwrap_or(now), old)
            };
            let due = due.min(latest);
            let old = old.filter(|_| self.value.load().is_some());
            if old.is_some_and(|old| old <= now) {
                self.value.store(None);
                tracing::error!(source = name, "too old, and not to be had anew: dropped");
                continue;
            }
            if due <= now {
                return;
            }
            tokio::select! {
                () = sleep_until(old.map_or(due, |old| old.min(due))) => {}
                _ = view.wanted.changed() => {}
                // Another who follows has fetched it.
                _ = view.finished.changed() => {}
            }
        }
    }

    /// Whoever fetched it: what waits for it goes on, and decisions that rest on another form of
    /// it hold no longer.
    fn notice(&self, view: &mut View<T>) {
        let value = self.value.load();
        if value.is_some() {
            drop(view.hold.take());
        }
        if value.as_ref().map(Arc::as_ptr) != view.seen.as_ref().map(Arc::as_ptr) {
            view.seen = value.clone();
            view.revision.advance();
        }
    }
}

/// How far one who follows has come.
struct View<T> {
    wanted: watch::Receiver<()>,
    finished: watch::Receiver<()>,
    seen: Option<Arc<T>>,
    revision: Arc<Revision>,
    hold: Option<Hold>,
}

impl<T> Followed<T> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::policy::background::Gate;

    /// Counts its fetches in what it brings.
    #[derive(Clone, Default)]
    struct Count(Arc<AtomicU32>);

    impl Fetch for Count {
        type Value = u32;

        async fn fetch(&mut self, _current: Option<&u32>) -> Result<Brought<u32>, String> {
            let number = self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Brought {
                value: Some(number),
                fresh_for: None,
            })
        }
    }

    fn follower(gate: &Gate, revision: &Arc<Revision>) -> Follower {
        Follower {
            name: "s".to_owned(),
            pace: Pace {
                interval: MINUTE,
                max_age: None,
            },
            stats: FetchStats::new("s", &Metrics::default()),
            revision: revision.clone(),
            hold: Some(gate.hold("it")),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_fetches_another_notices() {
        let followed = Arc::new(Followed::default());
        let fetch = Count::default();
        let gates = [Gate::default(), Gate::default()];
        let revisions = [Arc::<Revision>::default(), Arc::default()];
        for (gate, revision) in gates.iter().zip(&revisions) {
            let follower = follower(gate, revision);
            tokio::spawn(followed.clone().follow(fetch.clone(), follower));
        }
        for gate in &gates {
            gate.opened().await;
        }
        let before = revisions.each_ref().map(|revision| revision.current());

        tokio::time::sleep(MINUTE).await;

        assert!(followed.value().as_ref().is_some_and(|number| **number > 0));
        for (revision, before) in revisions.iter().zip(before) {
            assert!(revision.current() > before);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_fetched_before_its_time_at_most_once_in_an_interval() {
        let followed = Arc::new(Followed::default());
        let (fetch, gate) = (Count::default(), Gate::default());
        let follower = follower(&gate, &Arc::default());
        tokio::spawn(followed.clone().follow(fetch.clone(), follower));
        gate.opened().await;
        let renewed = || followed.renewed(Duration::from_secs(10), MINUTE);

        assert!(renewed().await);
        assert!(!renewed().await);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(renewed().await);

        assert_eq!(fetch.0.load(Ordering::Relaxed), 3);
    }

    const MINUTE: Duration = Duration::from_secs(60);

    fn within(duration: Duration, least: Duration, most: Duration) {
        assert!((least..=most).contains(&duration), "{duration:?}");
    }

    #[test]
    fn a_server_can_ask_for_more_fetches_but_not_for_too_many() {
        let pace = Pace {
            interval: 5 * MINUTE,
            max_age: None,
        };
        for (fresh_for, expected) in [
            (None, 5 * MINUTE),
            (Some(60 * MINUTE), 5 * MINUTE),
            (Some(MINUTE), MINUTE),
            (Some(Duration::ZERO), MIN_FRESH),
        ] {
            within(pace.until_next(fresh_for), expected.mul_f64(0.9), expected);
        }
    }

    #[test]
    fn failures_are_followed_by_ever_longer_waits() {
        let pace = Pace {
            interval: 5 * MINUTE,
            max_age: None,
        };
        for (failures, most) in [(1, BACKOFF), (2, 2 * BACKOFF), (100, MAX_BACKOFF)] {
            within(pace.after_failures(failures), most / 2, most);
        }
    }
}
