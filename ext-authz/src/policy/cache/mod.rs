//! Whole decisions, kept for requests that are alike in all that the decision looked at.
//!
//! Which parts of a request a decision looks at is found out by deciding. The sets of parts seen
//! so far, [`Shape`]s, are few: a lookup takes the fingerprint of the request under each. Whoever
//! finds nothing decides, and others like it wait for that.

mod fingerprint;
mod flight;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use attache_service::{
    Metrics,
    config::{Errors, Located},
    metrics::{Counter, Gauge},
};
use aws_lc_rs::{hmac, rand::SystemRandom};
use quick_cache::{DefaultHashBuilder, Lifecycle, UnitWeighter, sync::Cache};
use tokio::time::Instant;

use super::{
    check::{Check, Read},
    config,
    explain::Step,
    identity::SignedIn,
    pipeline::Ruling,
    planning::Revision,
};
use fingerprint::{Key, Shape};
use flight::{Boarding, Flight, Flights, Landed};

pub(super) use fingerprint::Fingerprint;

/// Sets of parts that are remembered; the oldest goes first.
const MAX_SHAPES: usize = 16;
const MAX_SIZE: u32 = 10_000_000;
const MAX_TTL: Duration = Duration::from_secs(3600);

/// The decisions of one pipeline.
pub(super) struct Decisions {
    secret: hmac::Key,
    kept: Cache<Key, Arc<KeptDecision>, UnitWeighter, DefaultHashBuilder, Evictions>,
    shapes: ArcSwap<Shapes>,
    flights: Flights,
    ttl: Duration,
    negative_ttl: Duration,
    stale: Duration,
    revision: Arc<Revision>,
    metrics: Seen,
}

impl fmt::Debug for Decisions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decisions")
            .field("ttl", &self.ttl)
            .field("negative_ttl", &self.negative_ttl)
            .field("stale", &self.stale)
            .finish_non_exhaustive()
    }
}

/// The sets of parts that decisions looked at.
#[derive(Debug)]
struct Shapes {
    seen: Vec<Arc<Shape>>,
    /// All parts of all of them: requests alike in these get the same decision. `None` when some
    /// decisions look at what is never alike.
    union: Option<Shape>,
}

impl Shapes {
    fn of(seen: Vec<Arc<Shape>>, secret: &hmac::Key) -> Self {
        let parts: BTreeSet<Read> = seen.iter().flat_map(|s| s.reads()).cloned().collect();
        let comparable = parts.iter().all(Read::comparable);
        Self {
            seen,
            union: comparable.then(|| Shape::new(parts, secret)),
        }
    }

    fn find(&self, reads: &BTreeSet<Read>) -> Option<Arc<Shape>> {
        self.seen
            .iter()
            .find(|shape| shape.reads() == reads)
            .cloned()
    }

    /// Before there was any decision: what they usually look at. It only says which requests
    /// wait for the first decision.
    fn unseen(secret: &hmac::Key) -> Self {
        let header = |name: &str| Read::Header(name.to_owned());
        let parts = [
            Read::Method,
            Read::Path,
            Read::Query,
            Read::Host,
            Read::Source,
            Read::Principal,
            header("authorization"),
            header("cookie"),
            header("x-api-key"),
        ];
        Self {
            seen: Vec::new(),
            union: Some(Shape::new(parts.into(), secret)),
        }
    }
}

/// A decision that is kept.
#[derive(Debug)]
pub(super) struct KeptDecision {
    pub(super) ruling: Ruling,
    /// The explanation, when one was asked for.
    pub(super) steps: Vec<Step>,
    shape: Arc<Shape>,
    /// Holds by itself no longer.
    until: Option<SystemTime>,
    /// The session that it rests on.
    session: Option<SignedIn>,
    fresh: Instant,
    stale: Instant,
}

/// How good a kept decision still is.
enum Age {
    Fresh,
    Stale,
    Gone,
}

impl KeptDecision {
    fn age(&self) -> Age {
        if self.until.is_some_and(|until| until <= SystemTime::now()) {
            return Age::Gone;
        }
        if self.session.as_ref().is_some_and(SignedIn::is_over) {
            return Age::Gone;
        }
        let now = Instant::now();
        if now < self.fresh {
            Age::Fresh
        } else if now < self.stale {
            Age::Stale
        } else {
            Age::Gone
        }
    }

    /// What the decision looked at.
    pub(super) fn reads(&self) -> &BTreeSet<Read> {
        self.shape.reads()
    }

    /// When the decision ends by itself.
    pub(super) fn until(&self) -> Option<SystemTime> {
        self.until
    }
}

/// What a lookup comes to.
pub(super) enum Looked<'c> {
    /// It was decided before.
    Kept(Arc<KeptDecision>),
    /// Others like it failed just now, for this reason.
    Failed(Arc<str>),
    /// To be decided, and said with [`Asking::decided`].
    Asking(Asking<'c>),
}

/// A check that decides, for itself and for others like it.
pub(super) struct Asking<'c> {
    decisions: &'c Decisions,
    revision: u64,
    flight: Option<Flight<'c>>,
    /// Stands in when no decision can be reached.
    stale: Option<Arc<KeptDecision>>,
}

impl Decisions {
    /// `None` when none are to be kept.
    pub(super) fn plan(
        pipeline: &str,
        raw: &config::DecisionCache,
        revision: &Arc<Revision>,
        metrics: &Metrics,
        errors: &mut Errors,
    ) -> Option<Self> {
        let mut bounded = |written: &Option<Located<Duration>>, default| match written {
            Some(written) if written.value > MAX_TTL => {
                errors.push(written, "decisions are kept for an hour at most");
                MAX_TTL
            }
            Some(written) => written.value,
            None => default,
        };
        let ttl = bounded(&raw.ttl, Duration::from_secs(30));
        let negative_ttl = bounded(&raw.negative_ttl, Duration::from_secs(5).min(ttl));
        let stale = bounded(&raw.stale, Duration::ZERO);
        if let Some(written) = &raw.negative_ttl
            && negative_ttl > ttl
        {
            errors.push(written, "longer than `ttl`");
        }
        let size = match &raw.size {
            Some(written) if written.value > MAX_SIZE => {
                errors.push(written, format!("at most {MAX_SIZE} decisions are kept"));
                MAX_SIZE
            }
            Some(written) => written.value,
            None => 10_000,
        };
        if size == 0 {
            return None;
        }
        let Ok(secret) = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()) else {
            errors.push_unlocated("the system has no random numbers");
            return None;
        };
        let metrics = Seen::new(pipeline, metrics);
        let lifecycle = Evictions(metrics.evictions.clone());
        Some(Self {
            kept: Cache::with(
                size as usize,
                u64::from(size),
                UnitWeighter,
                DefaultHashBuilder::default(),
                lifecycle,
            ),
            shapes: ArcSwap::from_pointee(Shapes::unseen(&secret)),
            secret,
            flights: Flights::default(),
            ttl,
            negative_ttl,
            stale,
            revision: revision.clone(),
            metrics,
        })
    }

    /// How long a decision stays.
    pub(super) fn ttl(&self, allow: bool) -> Duration {
        if allow { self.ttl } else { self.negative_ttl }
    }

    /// Looks for a decision on a request like this, and waits for one that is being made.
    pub(super) async fn look(&self, check: &Check<'_>) -> Looked<'_> {
        let revision = self.revision.current();
        let mut stale = match self.find(check, revision) {
            Some((kept, Age::Fresh)) => {
                self.metrics.hits.inc();
                return Looked::Kept(kept);
            }
            Some((kept, _)) => Some(kept),
            None => None,
        };
        let mut flight = None;
        let like = self
            .shapes
            .load()
            .union
            .as_ref()
            .and_then(|u| u.key(check, revision));
        while let Some(like) = like {
            match self.flights.board(like) {
                Boarding::First(first) => {
                    // Another may have landed in between.
                    match self.find(check, revision) {
                        Some((kept, Age::Fresh)) => {
                            self.metrics.hits.inc();
                            return Looked::Kept(kept);
                        }
                        Some((kept, _)) => stale = Some(kept),
                        None => {}
                    }
                    flight = Some(first);
                    break;
                }
                Boarding::Under(_) if stale.is_some() => break,
                Boarding::Under(mut landing) => {
                    self.metrics.waits.inc();
                    let landed = match landing.wait_for(Option::is_some).await {
                        Ok(landed) => landed.clone(),
                        // Whoever was to decide is gone; somebody else has to.
                        Err(_) => continue,
                    };
                    match landed.and_then(|landed| landed.good_for(check, revision)) {
                        Some(Ok(kept)) => return Looked::Kept(kept),
                        Some(Err(reason)) => return Looked::Failed(reason),
                        // Alike only at first sight.
                        None => break,
                    }
                }
            }
        }
        if flight.is_none()
            && let Some(kept) = stale.take_if(|_| like.is_some())
        {
            self.metrics.stale.inc();
            return Looked::Kept(kept);
        }
        self.metrics.misses.inc();
        Looked::Asking(Asking {
            decisions: self,
            revision,
            flight,
            stale,
        })
    }

    /// The best that is kept for a request.
    fn find(&self, check: &Check<'_>, revision: u64) -> Option<(Arc<KeptDecision>, Age)> {
        let mut stale = None;
        for shape in &self.shapes.load().seen {
            let Some(key) = shape.key(check, revision) else {
                continue;
            };
            let Some(kept) = self.kept.get(&key) else {
                continue;
            };
            match kept.age() {
                Age::Fresh => return Some((kept, Age::Fresh)),
                Age::Stale => stale = Some((kept, Age::Stale)),
                Age::Gone => {
                    self.kept.remove(&key);
                    self.metrics.entries.set(self.entries());
                }
            }
        }
        stale
    }

    /// The set of these parts; the one remembered, when there is one.
    fn shape(&self, reads: BTreeSet<Read>) -> Arc<Shape> {
        let known = self.shapes.load().find(&reads);
        known.unwrap_or_else(|| Arc::new(Shape::new(reads, &self.secret)))
    }

    /// Remembers that decisions look at these parts.
    fn learn(&self, shape: &Arc<Shape>) {
        if self.shapes.load().find(shape.reads()).is_some() {
            return;
        }
        self.shapes.rcu(|shapes| {
            let mut seen = shapes.seen.clone();
            if shapes.find(shape.reads()).is_none() {
                if seen.len() >= MAX_SHAPES {
                    seen.remove(0);
                }
                seen.push(shape.clone());
            }
            Shapes::of(seen, &self.secret)
        });
    }

    fn entries(&self) -> i64 {
        i64::try_from(self.kept.len()).unwrap_or(i64::MAX)
    }
}

impl Asking<'_> {
    /// Says what was decided, by a check that recorded what it read. What cannot be kept is given
    /// to those who wait all the same, unless it holds once only.
    ///
    /// # Errors
    /// The reason why there is no decision, if there is none to stand in.
    pub(super) fn decided(
        self,
        check: &Check<'_>,
        decided: Result<Ruling, Arc<str>>,
    ) -> Result<Arc<KeptDecision>, Arc<str>> {
        let decisions = self.decisions;
        let shape = decisions.shape(check.reads().unwrap_or_else(|| [Read::Everything].into()));
        let key = shape.key(check, self.revision);
        let holds = check.holds();
        let now = Instant::now();
        let result = decided.map(|ruling| {
            let allow = ruling.decision.is_allow();
            let ttl = decisions.ttl(allow);
            let stale = if allow {
                decisions.stale
            } else {
                Duration::ZERO
            };
            Arc::new(KeptDecision {
                ruling,
                steps: check.trail().steps(),
                shape: shape.clone(),
                until: holds.until,
                session: holds.session.clone(),
                fresh: now + ttl,
                stale: now + ttl + stale,
            })
        });
        if let (Ok(kept), Some(key), false) = (&result, key, holds.once)
            && matches!(kept.age(), Age::Fresh)
            && !kept.ruling.decision.is_error()
        {
            decisions.kept.insert(key, kept.clone());
            decisions.metrics.entries.set(decisions.entries());
        }
        // Only now: whoever looks under this shape finds the decision.
        decisions.learn(&shape);
        if let Some(flight) = self.flight {
            flight.land(Landed {
                shape,
                key: key.filter(|_| !holds.once),
                result: result.clone(),
            });
        }
        match (result, self.stale) {
            (Err(_), Some(stale)) if !matches!(stale.age(), Age::Gone) => {
                decisions.metrics.stale.inc();
                Ok(stale)
            }
            (result, _) => result,
        }
    }
}

/// What became of lookups.
struct Seen {
    hits: Counter,
    misses: Counter,
    waits: Counter,
    stale: Counter,
    evictions: Counter,
    entries: Gauge,
}

impl Seen {
    fn new(pipeline: &str, metrics: &Metrics) -> Self {
        let result = |result| {
            let help = "Checks by whether their decision was kept (`hit`), kept beyond its time \
                        (`stale`), being made (`wait`) or had to be made (`miss`).";
            let labels = [("pipeline", pipeline), ("result", result)];
            metrics.counter("attache_auth_decision_cache", help, &labels)
        };
        let labels = [("pipeline", pipeline)];
        Self {
            hits: result("hit"),
            misses: result("miss"),
            waits: result("wait"),
            stale: result("stale"),
            evictions: metrics.counter(
                "attache_auth_decision_cache_evictions",
                "Decisions given up for others.",
                &labels,
            ),
            entries: metrics.gauge(
                "attache_auth_decision_cache_entries",
                "Decisions that are kept.",
                &labels,
            ),
        }
    }
}

/// Counts what the cache gives up.
#[derive(Clone)]
struct Evictions(Counter);

impl Lifecycle<Key, Arc<KeptDecision>> for Evictions {
    type RequestState = ();

    fn on_evict(&self, _state: &mut (), _key: Key, _kept: Arc<KeptDecision>) {
        self.0.inc();
    }
}
