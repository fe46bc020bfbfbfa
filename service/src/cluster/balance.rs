//! The choice of an endpoint, made by one worker.

use std::{
    collections::HashMap,
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::Instant;

use super::{
    Endpoint, Endpoints,
    endpoint::Tally,
    ewma::PeakEwma,
    rendezvous::{hash, score},
};

/// How endpoints are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LbPolicy {
    /// In turn, each as often as its weight says, evenly mixed.
    RoundRobin,
    /// Any, as often as their weights say.
    Random,
    /// Of two that are drawn, the one with fewer requests of this worker for its weight.
    #[default]
    LeastRequest,
    /// Of two that are drawn, the one where a request will probably be answered sooner: by the
    /// latency seen lately and the requests on it.
    PeakEwma {
        /// How long what was measured counts. Default 10 s.
        decay: Duration,
    },
    /// Requests with the same hash go to the same endpoint, as long as it is there and healthy;
    /// those without one go anywhere.
    Hash,
}

/// The settings of a [`Balancer`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Balance {
    /// How endpoints are chosen. Default [`LbPolicy::LeastRequest`].
    pub policy: LbPolicy,
    /// When fewer than this many per cent of the endpoints are healthy, health is not looked at
    /// (`common_lb_config.healthy_panic_threshold`); never with 0. Default 50, as Envoy.
    pub panic_threshold: f64,
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            policy: LbPolicy::default(),
            panic_threshold: 50.0,
        }
    }
}

/// How many seconds a failure counts as, where latency is what endpoints are chosen by: an
/// endpoint that fails at once is not a fast one.
const FAILURE: Duration = Duration::from_secs(1);
/// What an endpoint costs whose first answer is awaited: it gets one request until then.
const UNKNOWN: f64 = 1e6;

/// Chooses among the endpoints of a cluster, for one worker.
///
/// `T` is what the worker holds for each endpoint, such as its connections; it is dropped when
/// the cluster no longer has the endpoint.
pub struct Balancer<T> {
    endpoints: Arc<Endpoints>,
    settings: Balance,
    make: Make<T>,
    state: Mutex<State<T>>,
}

type Make<T> = Box<dyn Fn(&Arc<Endpoint>) -> T + Send + Sync>;

/// An endpoint in one worker.
pub struct Local<T> {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// What the worker holds for it.
    pub own: T,
    tally: Arc<Tally>,
    latency: Option<Mutex<PeakEwma>>,
    /// What rendezvous hashing knows it by.
    hash: u64,
}

struct State<T> {
    /// The version of the set that the rest was made from.
    version: u64,
    all: Vec<Arc<Local<T>>>,
    usable: Vec<Choice<T>>,
    weights: Weights,
    /// Where round robin has come to.
    turn: usize,
    random: SmallRng,
}

struct Choice<T> {
    local: Arc<Local<T>>,
    weight: u32,
    /// How far it is behind its share (smooth weighted round robin).
    due: i64,
    /// Sum of the weights up to and with this one.
    up_to: u64,
}

#[derive(Clone, Copy)]
enum Weights {
    Equal,
    Differ,
}

impl<T> Balancer<T> {
    /// A balancer that makes what its worker needs of an endpoint by `make`.
    pub fn new(
        endpoints: Arc<Endpoints>,
        settings: Balance,
        make: impl Fn(&Arc<Endpoint>) -> T + Send + Sync + 'static,
    ) -> Self {
        let mut state = State {
            version: 0,
            all: Vec::new(),
            usable: Vec::new(),
            weights: Weights::Equal,
            turn: 0,
            random: SmallRng::from_os_rng(),
        };
        state.follow(&endpoints, &settings, &make);
        Self {
            endpoints,
            settings,
            make: Box::new(make),
            state: Mutex::new(state),
        }
    }

    /// The endpoints that it chooses from.
    pub fn endpoints(&self) -> &Arc<Endpoints> {
        &self.endpoints
    }

    /// The endpoint for a request whose hash is `key`; `None` when the cluster has none, or none
    /// that is healthy and no panic threshold.
    pub fn pick(&self, key: Option<u64>) -> Option<Arc<Local<T>>> {
        let mut state = self.state();
        match state.usable.as_slice() {
            [] => return None,
            [one] => return Some(one.local.clone()),
            _ => {}
        }
        let index = state.choose(self.settings.policy, key);
        let choice = state.usable.get(index)?;
        Some(choice.local.clone())
    }

    /// All endpoints that may be picked now.
    pub fn usable(&self) -> Vec<Arc<Local<T>>> {
        let state = self.state();
        state.usable.iter().map(|c| c.local.clone()).collect()
    }

    /// All endpoints, those too that are not to be used.
    pub fn all(&self) -> Vec<Arc<Local<T>>> {
        self.state().all.clone()
    }

    /// The state, after the set as it is now.
    fn state(&self) -> MutexGuard<'_, State<T>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.version != self.endpoints.version() {
            state.follow(&self.endpoints, &self.settings, &self.make);
        }
        state
    }
}

impl<T> State<T> {
    fn follow(
        &mut self,
        endpoints: &Endpoints,
        settings: &Balance,
        make: &dyn Fn(&Arc<Endpoint>) -> T,
    ) {
        // Before the members, so that a change in between is seen at the next look.
        self.version = endpoints.version();
        let members = endpoints.members();
        let key = |endpoint: &Arc<Endpoint>| Arc::as_ptr(endpoint) as usize;
        let mut before: HashMap<usize, Arc<Local<T>>> = self
            .all
            .drain(..)
            .map(|local| (key(&local.endpoint), local))
            .collect();
        for member in members.iter() {
            let known = before.remove(&key(&member.endpoint));
            let local = known.unwrap_or_else(|| {
                Arc::new(Local::new(
                    member.endpoint.clone(),
                    make(&member.endpoint),
                    settings,
                ))
            });
            self.all.push(local);
        }
        let healthy = members
            .iter()
            .filter(|member| member.endpoint.is_healthy())
            .count();
        let share = healthy as f64 * 100.0 / (members.len() as f64).max(1.0);
        let panic = share < settings.panic_threshold;
        let due: HashMap<usize, i64> = self
            .usable
            .drain(..)
            .map(|choice| (key(&choice.local.endpoint), choice.due))
            .collect();
        let mut up_to = 0;
        for (member, local) in members.iter().zip(&self.all) {
            if panic || member.endpoint.is_healthy() {
                up_to += u64::from(member.weight);
                self.usable.push(Choice {
                    local: local.clone(),
                    weight: member.weight,
                    due: due.get(&key(&member.endpoint)).copied().unwrap_or_default(),
                    up_to,
                });
            }
        }
        let mut weights = self.usable.iter().map(|choice| choice.weight);
        let first = weights.next();
        self.weights = match weights.all(|weight| Some(weight) == first) {
            true => Weights::Equal,
            false => Weights::Differ,
        };
    }

    /// An index of `usable`, which is not empty.
    fn choose(&mut self, policy: LbPolicy, key: Option<u64>) -> usize {
        match (policy, key) {
            (LbPolicy::Hash, Some(key)) => self.hashed(key),
            (LbPolicy::RoundRobin, _) => self.next(),
            (LbPolicy::Random, _) | (LbPolicy::Hash, None) => self.draw(),
            (LbPolicy::LeastRequest, _) => self.better_of_two(|choice| {
                let active = choice.local.tally.active.load(Ordering::Relaxed);
                f64::from(active) / f64::from(choice.weight)
            }),
            (LbPolicy::PeakEwma { .. }, _) => {
                let now = Instant::now();
                self.better_of_two(|choice| choice.local.cost(now) / f64::from(choice.weight))
            }
        }
    }

    fn next(&mut self) -> usize {
        if let Weights::Equal = self.weights {
            let turn = self.turn.checked_rem(self.usable.len()).unwrap_or_default();
            self.turn = turn.wrapping_add(1);
            return turn;
        }
        let mut total = 0;
        let mut best = (0, i64::MIN);
        for (index, choice) in self.usable.iter_mut().enumerate() {
            total += i64::from(choice.weight);
            choice.due = choice.due.saturating_add(i64::from(choice.weight));
            if choice.due > best.1 {
                best = (index, choice.due);
            }
        }
        if let Some(choice) = self.usable.get_mut(best.0) {
            choice.due = choice.due.saturating_sub(total);
        }
        best.0
    }

    fn draw(&mut self) -> usize {
        match (self.weights, self.usable.last()) {
            (Weights::Differ, Some(last)) => {
                let drawn = self.random.random_range(0..last.up_to.max(1));
                self.usable.partition_point(|choice| choice.up_to <= drawn)
            }
            _ => self.random.random_range(0..self.usable.len().max(1)),
        }
    }

    /// Of two that are drawn the one that costs less; the first drawn when they cost the same,
    /// so that weights hold.
    fn better_of_two(&mut self, cost: impl Fn(&Choice<T>) -> f64) -> usize {
        let first = self.draw();
        let mut second = self.draw();
        if second == first {
            second = (first + 1).checked_rem(self.usable.len()).unwrap_or(first);
        }
        match (self.usable.get(first), self.usable.get(second)) {
            (Some(a), Some(b)) if cost(b) < cost(a) => second,
            _ => first,
        }
    }

    fn hashed(&self, key: u64) -> usize {
        let mut best = (0, f64::MIN);
        for (index, choice) in self.usable.iter().enumerate() {
            let score = score(key, choice.local.hash, choice.weight);
            if score > best.1 {
                best = (index, score);
            }
        }
        best.0
    }
}

impl<T> Local<T> {
    /// What a worker holds for an endpoint outside of a set.
    pub fn new(endpoint: Arc<Endpoint>, own: T, settings: &Balance) -> Self {
        let latency = match settings.policy {
            LbPolicy::PeakEwma { decay } => Some(Mutex::new(PeakEwma::new(decay, Instant::now()))),
            _ => None,
        };
        Self {
            own,
            tally: endpoint.tally(),
            latency,
            hash: hash(endpoint.to_string().as_bytes()),
            endpoint,
        }
    }

    /// What a further request would cost here, in expected seconds.
    fn cost(&self, now: Instant) -> f64 {
        let active = f64::from(self.tally.active.load(Ordering::Relaxed));
        let estimate = self.latency.as_ref().map_or(0.0, |latency| {
            let latency = latency.lock().unwrap_or_else(PoisonError::into_inner);
            latency.estimate(now)
        });
        match estimate > 0.0 {
            true => estimate * (active + 1.0),
            false => UNKNOWN * active,
        }
    }

    fn record(&self, latency: Duration) {
        if let Some(measured) = &self.latency {
            let mut measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
            measured.record(latency, Instant::now());
        }
    }
}

impl<T> fmt::Debug for Local<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.fmt(f)
    }
}

/// A request on an endpoint: counted there until it is dropped.
#[derive(Debug)]
pub struct InFlight<T> {
    local: Arc<Local<T>>,
    /// When it began, where latency is measured.
    began: Option<Instant>,
}

impl<T> InFlight<T> {
    /// A request that begins.
    pub fn new(local: Arc<Local<T>>) -> Self {
        local.tally.active.fetch_add(1, Ordering::Relaxed);
        Self {
            began: local.latency.is_some().then(Instant::now),
            local,
        }
    }

    /// The response has begun.
    pub fn answered(&mut self) {
        if let Some(began) = self.began.take() {
            self.local.record(began.elapsed());
        }
    }

    /// There will be no response.
    pub fn failed(&mut self) {
        if let Some(began) = self.began.take() {
            self.local.record(began.elapsed().max(FAILURE));
        }
    }

    /// The endpoint in this worker.
    pub fn local(&self) -> &Arc<Local<T>> {
        &self.local
    }
}

impl<T> Deref for InFlight<T> {
    type Target = Local<T>;

    fn deref(&self) -> &Local<T> {
        &self.local
    }
}

impl<T> Drop for InFlight<T> {
    fn drop(&mut self) {
        self.local.tally.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
