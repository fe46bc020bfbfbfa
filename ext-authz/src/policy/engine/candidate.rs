//! A candidate: a policy that is asked beside the live one, after the answer, and never obeyed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attache_service::{config::Located, metrics::Counter};
use rand::Rng as _;
use regorus::Value;
use tokio::sync::mpsc;

use super::{Program, Verdict, input, load::Place};
use crate::policy::{config, facts::Facts, planning::Planning};

/// Requests that wait for the candidate; more are not given to it.
const MAX_WAITING: usize = 256;
/// Time between two lines in the log about the same candidate.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// A policy on trial.
#[derive(Debug)]
pub(super) struct Candidate {
    place: Place,
    percent: u32,
    trials: mpsc::Sender<Trial>,
    skipped: Counter,
    failed: Counter,
}

/// A request, and what the live policy decided.
#[derive(Debug)]
struct Trial {
    program: Arc<Program>,
    input: Value,
    live: Verdict,
    method: String,
    path: String,
}

impl Candidate {
    /// `name` is that of the live policy.
    pub(super) fn plan(
        name: &Located<String>,
        raw: &Located<config::Candidate>,
        limit: Duration,
        planning: &mut Planning<'_>,
    ) -> Self {
        let percent = raw.percent.as_ref().map_or(100, |percent| {
            if percent.value > 100 {
                planning.errors.push(percent, "expected 0 to 100");
            }
            percent.value
        });
        let counter = |result| {
            planning.metrics.counter(
                "attache_auth_candidate_decisions",
                "Decisions of candidates, compared with those of the live policies.",
                &[("policy", name.as_str()), ("result", result)],
            )
        };
        let (trials, waiting) = mpsc::channel(MAX_WAITING);
        let judge = Judge {
            name: name.value.clone(),
            same: counter("same"),
            different: counter("different"),
            failed: counter("failed"),
            logged: None,
            unlogged: 0,
        };
        let (skipped, failed) = (counter("skipped"), counter("failed"));
        planning.run(Box::pin(judge.run(waiting)));
        let mut called = name.clone();
        called.value = format!("{} (candidate)", name.value);
        Self {
            place: Place::plan(&called, &raw.engine, limit, planning),
            percent,
            trials,
            skipped,
            failed,
        }
    }

    /// Has the candidate asked about a request too, by and by.
    pub(super) fn tell(&self, facts: &Facts<'_>, live: &Verdict) {
        if self.percent < 100 && rand::rng().random_range(0..100) >= self.percent {
            return;
        }
        // What only the candidate reads is nothing that the decision depends on.
        let check = facts.check.aside();
        let facts = Facts {
            check: &check,
            ..*facts
        };
        let Some(program) = self.place.program() else {
            self.skipped.inc();
            return;
        };
        let Ok(input) = input::input(&facts, program.wants()) else {
            self.failed.inc();
            return;
        };
        let trial = Trial {
            program,
            input,
            live: live.clone(),
            method: check.method().unwrap_or_default().to_owned(),
            path: check.path().unwrap_or_default().to_owned(),
        };
        if self.trials.try_send(trial).is_err() {
            self.skipped.inc();
        }
    }
}

/// Asks a candidate, and compares.
struct Judge {
    name: String,
    same: Counter,
    different: Counter,
    failed: Counter,
    logged: Option<Instant>,
    unlogged: u64,
}

impl Judge {
    async fn run(mut self, mut waiting: mpsc::Receiver<Trial>) {
        while let Some(trial) = waiting.recv().await {
            let decided = trial.program.evaluate(trial.input.clone()).await;
            match &decided {
                Ok(verdict) if *verdict == trial.live => _ = self.same.inc(),
                Ok(verdict) => {
                    self.different.inc();
                    self.log(&trial, said(verdict));
                }
                Err(problem) => {
                    self.failed.inc();
                    self.log(&trial, problem);
                }
            }
            // Others use this thread too.
            tokio::task::yield_now().await;
        }
    }

    fn log(&mut self, trial: &Trial, candidate: &str) {
        if self.logged.is_some_and(|at| at.elapsed() < LOG_INTERVAL) {
            self.unlogged = self.unlogged.saturating_add(1);
            return;
        }
        tracing::info!(
            policy = self.name,
            live = said(&trial.live),
            candidate,
            method = trial.method,
            path = trial.path,
            unlogged = self.unlogged,
            "the candidate decides otherwise"
        );
        self.logged = Some(Instant::now());
        self.unlogged = 0;
    }
}

/// What is decided; what goes along may hold secrets.
fn said(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Allow(_) => "allow",
        Verdict::Deny(_) => "deny",
    }
}
