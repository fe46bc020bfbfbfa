//! The live page: the last requests as they are, for people who watch in a browser.
//!
//! Workers look at one flag per request; while nobody watches, that is all. While somebody does,
//! what is known of a request that is over goes as JSON into a ring that all workers share, and
//! from there to each watcher. All of it is bounded, and nobody waits for a watcher: one that is
//! too slow is told how many requests it did not see.

mod masks;
mod part;
mod record;
mod ring;
mod show;
mod stream;
mod tap;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use attache_service::{
    Metrics,
    metrics::{Counter, Gauge},
};
use http::request;
use tokio::sync::watch;

pub use masks::{MASKED, Masks};
pub(crate) use record::{Over, Watched};
use ring::Ring;
use tap::Taps;

/// Requests that are kept for who comes to watch.
const MAX_REQUESTS: usize = 200;
/// Most watchers at a time.
const MAX_WATCHERS: usize = 8;
/// How long requests are noted after the last watcher left: a page that is loaded again misses
/// nothing.
const GRACE: Duration = Duration::from_secs(5);

/// What the live page shows. Cheap to clone.
#[derive(Clone)]
pub struct Live(Arc<Shared>);

struct Shared {
    /// Somebody watches.
    on: AtomicBool,
    /// Requests that may yet be noted before a watcher looks again.
    room: AtomicU32,
    /// Requests that were not noted for want of room.
    skipped: AtomicU64,
    masks: ArcSwap<Masks>,
    state: Mutex<State>,
    /// Tells watchers that there is something to see.
    news: watch::Sender<()>,
    /// When this process began to number what it shows, in milliseconds since 1970: numbers of
    /// another process mean nothing here.
    born: u128,
    watchers: Gauge,
    lost: Counter,
}

#[derive(Default)]
struct State {
    ring: Ring,
    taps: Taps,
    watchers: usize,
    /// How often somebody came.
    visits: u64,
    /// Requests that are over and were noted.
    over: u64,
}

impl Live {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self(Arc::new(Shared {
            on: AtomicBool::new(false),
            room: AtomicU32::new(0),
            skipped: AtomicU64::new(0),
            masks: ArcSwap::from_pointee(Masks::default()),
            state: Mutex::default(),
            news: watch::Sender::new(()),
            born: since.map_or(0, |since| since.as_millis()),
            watchers: metrics.gauge("attache_live_watchers", "Live pages that are open.", &[]),
            lost: metrics.counter(
                "attache_live_requests_lost",
                "Requests that no live page was shown because there were too many.",
                &[],
            ),
        }))
    }

    /// Which headers are not shown, from the next request on.
    pub(crate) fn mask(&self, masks: Masks) {
        self.0.masks.store(Arc::new(masks));
    }

    /// Whether requests are noted: somebody watches, or did a moment ago.
    pub fn is_watched(&self) -> bool {
        self.0.on.load(Ordering::Relaxed)
    }

    /// Begins to note a request that has come, if somebody watches.
    pub(crate) fn begin(&self, parts: &request::Parts) -> Option<Box<Watched>> {
        match self.is_watched() {
            false => None,
            true => self.note(parts),
        }
    }

    #[cold]
    fn note(&self, parts: &request::Parts) -> Option<Box<Watched>> {
        let one_less = |room: u32| room.checked_sub(1);
        let room = &self.0.room;
        let taken = room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        if taken.is_err() {
            self.0.skipped.fetch_add(1, Ordering::Relaxed);
            self.0.lost.inc();
            return None;
        }
        Some(Box::new(Watched::new(self, parts)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows watchers what is known of a request.
    fn show(&self, request: u64, stage: ring::Stage, text: String) {
        let mut state = self.state();
        if !self.0.on.load(Ordering::Relaxed) {
            return;
        }
        if stage != ring::Stage::Running {
            state.over = state.over.saturating_add(1);
        }
        let over = state.over;
        state.ring.push(request, stage, over, text.into());
        drop(state);
        self.tell();
    }

    fn tell(&self) {
        self.0.news.send_replace(());
    }

    /// Somebody begins to watch, unless there are too many already.
    fn enter(&self) -> Option<watch::Receiver<()>> {
        let mut state = self.state();
        if state.watchers >= MAX_WATCHERS {
            return None;
        }
        state.watchers += 1;
        state.visits += 1;
        self.0.watchers.inc();
        if !self.0.on.swap(true, Ordering::Relaxed) {
            self.make_room();
        }
        Some(self.0.news.subscribe())
    }

    fn leave(&self) {
        let mut state = self.state();
        state.watchers = state.watchers.saturating_sub(1);
        self.0.watchers.dec();
        if state.watchers > 0 {
            return;
        }
        let (live, visits) = (self.clone(), state.visits);
        drop(state);
        let rest = async move {
            tokio::time::sleep(GRACE).await;
            live.rest(visits);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(rest)),
            // The process ends.
            Err(_) => self.rest(visits),
        }
    }

    /// Forgets everything, unless somebody came since that visit.
    fn rest(&self, visits: u64) {
        let mut state = self.state();
        if state.watchers > 0 || state.visits != visits {
            return;
        }
        self.0.on.store(false, Ordering::Relaxed);
        state.ring = Ring::default();
        state.taps = Taps::default();
    }

    /// Requests that were not noted.
    fn skipped(&self) -> u64 {
        self.0.skipped.load(Ordering::Relaxed)
    }

    /// A watcher has seen all: as many requests as the ring holds may be noted until it looks
    /// again.
    fn make_room(&self) {
        let room = u32::try_from(MAX_REQUESTS).unwrap_or(u32::MAX);
        self.0.room.store(room, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Live")
    }
}

#[cfg(test)]
mod tests;
