//! The service: a policy from a file, replaced when the file changes.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use attache_service::{
    Metrics,
    config::{Errors, reload::Watch},
    metrics::Counter,
};

use super::{
    background::{Background, Gate, Running, Tasks},
    explanation::Explanation,
    kept::Kept,
    plan::{Planned, Policy, Summary, Telling},
};
use crate::server::{Authorizer, CheckError, CheckRequestView, Decision};

/// How long a policy that is read anew may take to get all it needs before it is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// The ready-made authorizer. Cheap to clone; clones share the policy.
///
/// What its policy fetches may not be there yet when it is made: see [`AuthService::ready`].
#[derive(Debug, Clone)]
pub struct AuthService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    metrics: Metrics,
    current: ArcSwap<Current>,
    /// Takes the place of `current` when all is there that it needs.
    next: Mutex<Option<Next>>,
    patience: Duration,
    background: Background,
    reloaded: Counter,
    refused: Counter,
    given_up: Counter,
}

/// A policy that waits for what it needs, and the task that waits; dropped, both end.
#[derive(Debug)]
struct Next {
    current: Arc<Current>,
    _waits: Running,
}

/// What came of a reload that found no mistakes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Reload {
    /// The new policy decides.
    Done,
    /// The old policy decides until these things are there for the new one. When that takes
    /// longer than 30 s, the new policy is given up.
    WaitsFor(Vec<String>),
}

/// A policy in use.
#[derive(Debug)]
struct Current {
    policy: Policy,
    files: Vec<PathBuf>,
    gate: Gate,
    kept: Kept,
    _tasks: Running,
}

impl Current {
    fn start(planned: Planned, background: &Background) -> Result<Self, Errors> {
        let rest = planned.rest;
        planned.policy.start().map_err(no_thread)?;
        let tasks = background.start(rest.tasks).map_err(no_thread)?;
        Ok(Self {
            policy: planned.policy,
            files: rest.files,
            gate: rest.gate,
            kept: rest.kept,
            _tasks: tasks,
        })
    }
}

fn no_thread(error: std::io::Error) -> Errors {
    let mut errors = Errors::new();
    errors.push_unlocated(format!("cannot start a thread: {error}"));
    errors
}

impl Inner {
    fn next(&self) -> MutexGuard<'_, Option<Next>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_over(&self, current: Arc<Current>) {
        self.current.store(current);
        self.reloaded.inc();
    }
}

impl AuthService {
    /// Reads the configuration at `path` and the key files that it names.
    ///
    /// # Errors
    /// All that is wrong with it, each with its place.
    pub fn load(path: &Path, metrics: &Metrics) -> Result<Self, Errors> {
        Self::load_patiently(path, metrics, PATIENCE)
    }

    pub(super) fn load_patiently(
        path: &Path,
        metrics: &Metrics,
        patience: Duration,
    ) -> Result<Self, Errors> {
        let background = Background::default();
        let planned = Policy::load(path, metrics, &Kept::default())?;
        let current = Current::start(planned, &background)?;
        let counter = |result| {
            metrics.counter(
                "attache_auth_reloads",
                "Reloads of the policy file.",
                &[("result", result)],
            )
        };
        Ok(Self(Arc::new(Inner {
            path: path.to_path_buf(),
            metrics: metrics.clone(),
            current: ArcSwap::from_pointee(current),
            next: Mutex::default(),
            patience,
            background,
            reloaded: counter("ok"),
            refused: counter("error"),
            given_up: counter("given_up"),
        })))
    }

    /// Reads everything anew and replaces the policy, at once or as soon as all is there that the
    /// new one needs; checks under way finish on the old one. A reload that still waits is
    /// replaced by the next.
    ///
    /// # Errors
    /// All that is wrong; the old policy then stays.
    pub fn reload(&self) -> Result<Reload, Errors> {
        self.try_reload().inspect_err(|_| _ = self.0.refused.inc())
    }

    fn try_reload(&self) -> Result<Reload, Errors> {
        let inner = &self.0;
        let mut next = inner.next();
        // A policy that waits has what it has fetched so far from the one in use, or not yet.
        let before = inner.current.load_full();
        let planned = Policy::load(&inner.path, &inner.metrics, &before.kept)?;
        let current = Arc::new(Current::start(planned, &inner.background)?);
        let missing = current.gate.waits_for();
        // One that cannot decide yet is no better than another.
        if missing.is_empty() || !before.gate.waits_for().is_empty() {
            *next = None;
            inner.take_over(current);
            return Ok(Reload::Done);
        }
        let mut wait = Tasks::default();
        let service = Arc::downgrade(inner);
        let (awaited, patience) = (current.clone(), inner.patience);
        wait.add(Box::pin(async move {
            let opened = tokio::time::timeout(patience, awaited.gate.opened()).await;
            let Some(inner) = service.upgrade() else {
                return;
            };
            let mut next = inner.next();
            // Another reload may have been quicker.
            if next
                .take_if(|next| Arc::ptr_eq(&next.current, &awaited))
                .is_none()
            {
                return;
            }
            if opened.is_ok() {
                inner.take_over(awaited);
                tracing::info!("the new policy has all it needs and is in use");
            } else {
                inner.given_up.inc();
                let waits_for = awaited.gate.waits_for().join(", ");
                tracing::error!(
                    waits_for,
                    ?patience,
                    "the new policy is given up, the old one goes on"
                );
            }
        }));
        *next = Some(Next {
            current,
            _waits: inner.background.start(wait).map_err(no_thread)?,
        });
        Ok(Reload::WaitsFor(missing))
    }

    /// The files that the policy was made of: its own and the key files. Those of a policy that
    /// still waits for what it needs, too.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = self.0.current.load().files.clone();
        if let Some(next) = &*self.0.next() {
            files.extend(next.current.files.iter().cloned());
            files.sort_unstable();
            files.dedup();
        }
        files
    }

    /// What the policy still waits for before it can decide, such as keys to be fetched.
    pub fn waits_for(&self) -> Vec<String> {
        self.0.current.load().gate.waits_for()
    }

    /// Waits until all is there that the policy needs.
    pub async fn ready(&self) {
        loop {
            let current = self.0.current.load_full();
            current.gate.opened().await;
            // Its gate opens, too, when it is replaced.
            if Arc::ptr_eq(&current, &self.0.current.load_full()) {
                return;
            }
        }
    }

    /// Waits until all decisions so far are logged, or `within` is over. Before the process ends.
    pub async fn flush(&self, within: Duration) {
        let current = self.0.current.load_full();
        current.policy.flush(within).await;
    }

    /// Reloads whenever one of the files changes, for ever. Failures are logged.
    pub async fn watch(&self) {
        loop {
            let files = self.files();
            let mut watch = match Watch::new(&files) {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::error!(%error, "policy files cannot be watched; they are read once");
                    return;
                }
            };
            // Watches the same files until a reload names others.
            while self.files() == files {
                watch.changed().await;
                match self.reload() {
                    Ok(Reload::Done) => tracing::info!("policy reloaded"),
                    Ok(Reload::WaitsFor(what)) => tracing::info!(
                        waits_for = what.join(", "),
                        "the old policy decides until the new one has all it needs"
                    ),
                    Err(errors) => {
                        tracing::error!(%errors, "policy not reloaded; the old one stays")
                    }
                }
            }
        }
    }

    /// Looks for mistakes in the configuration at `path` and the files that it names. Nothing is
    /// fetched, and nothing runs.
    ///
    /// # Errors
    /// All that is wrong with it, each with its place.
    pub fn validate(path: &Path) -> Result<Summary, Errors> {
        let planned = Policy::load(path, &Metrics::default(), &Kept::default())?;
        Ok(planned.summary())
    }

    /// Says what would be decided on a request, and why. It is decided anew, whatever is kept,
    /// and neither counted among the kept decisions nor logged.
    pub async fn explain(&self, request: &CheckRequestView) -> Explanation {
        let current = self.0.current.load_full();
        let settled = current.policy.settle(request, Telling::Afresh).await;
        Explanation::new(&settled, request)
    }

    /// Decides on one request.
    ///
    /// # Errors
    /// When no decision could be reached: something that it depends on cannot be asked.
    pub async fn decide(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
        let current = self.0.current.load_full();
        current.policy.decide(request).await
    }
}

impl Authorizer for AuthService {
    async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
        self.decide(request).await
    }
}
