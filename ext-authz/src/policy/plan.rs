//! The settings, checked and compiled: what each check runs on.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use attache_service::{
    Metrics,
    config::{Document, Errors, Size},
    trace::Span,
};
use prost_types::value::Kind;

use super::{
    cache::KeptDecision,
    check::{Check, Holds, Read},
    config::{self, AuthConfig},
    engine::Engine,
    explain::{Account, Stage, Step, Trail},
    identity::Source,
    kept::Kept,
    log::{DecisionId, DecisionLog},
    metadata,
    path::Reading,
    pipeline::{Answer, Decided, Pipeline, Ruling, Shared, Speaker},
    planning::{Finished, Planning},
    wristband::Wristband,
};
use crate::server::{CheckError, CheckRequestView, Decision};

/// A policy: immutable, shared by all workers.
#[derive(Debug)]
pub(super) struct Policy {
    shared: Shared,
    /// The last takes what no other does.
    pipelines: Vec<Pipeline>,
    reading: Reading,
    /// Requests whose path is ambiguous are no pipeline's.
    ambiguous: Decided,
    log: Option<DecisionLog>,
    metadata: Metadata,
}

/// What the proxy learns of a decision.
#[derive(Debug, Default)]
struct Metadata {
    id: bool,
    /// Most bytes of the steps.
    explain: Option<usize>,
}

/// A policy, and what it takes to run it.
pub(super) struct Planned {
    pub(super) policy: Policy,
    pub(super) rest: Finished,
}

impl Policy {
    /// Reads a configuration file and all that it names. `before` is what the policy to be
    /// replaced hands on.
    pub(super) fn load(path: &Path, metrics: &Metrics, before: &Kept) -> Result<Planned, Errors> {
        let document = Document::load(path)?;
        let (raw, mut errors) = document.decode_partly::<AuthConfig>();
        let mut planning = Planning::new(&document, metrics, before, &mut errors);
        planning.watch_resolved(path.to_path_buf());
        let policy = raw.and_then(|raw| Self::plan(&raw, &mut planning));
        let rest = planning.finish();
        let planned = policy.map(|policy| Planned { policy, rest });
        errors.into_result(planned)
    }

    fn plan(raw: &AuthConfig, planning: &mut Planning<'_>) -> Option<Self> {
        if raw.identity.is_empty() {
            planning.missing("at least one source of identity is needed; `anonymous: {}` is one");
        }
        let mut names: Vec<&str> = Vec::new();
        let mut sources = Vec::new();
        for (index, source) in raw.identity.iter().enumerate() {
            let name = &source.name;
            if names.contains(&name.as_str()) {
                let problem = format!("two identity sources are called `{}`", name.value);
                planning.errors.push(name, problem);
            }
            names.push(name);
            sources.extend(Source::plan(index, source, planning));
        }
        let mut policies: Vec<Engine> = Vec::new();
        for policy in &raw.policies {
            if policies.iter().any(|one| one.name() == policy.name.value) {
                let problem = format!("two policies are called `{}`", policy.name.value);
                planning.errors.push(&policy.name, problem);
            }
            policies.push(Engine::plan(policy, planning));
        }
        let mut metadata: Vec<metadata::Source> = Vec::new();
        for source in &raw.metadata {
            if metadata.iter().any(|one| one.name() == source.name.value) {
                let problem = format!("two metadata are called `{}`", source.name.value);
                planning.errors.push(&source.name, problem);
            }
            metadata.extend(metadata::Source::plan(source, planning));
        }
        let wristband = raw.wristband.as_ref();
        let wristband = wristband.map(|wristband| Wristband::plan(wristband, planning));
        let complete = sources.len() == raw.identity.len()
            && metadata.len() == raw.metadata.len()
            && !matches!(wristband, Some(None));
        let shared = Shared {
            sources,
            metadata,
            policies,
            wristband: wristband.flatten(),
        };
        let mut pipelines = Vec::new();
        for one in &raw.pipelines {
            pipelines.push(Pipeline::plan(one, raw, &names, &shared, planning));
        }
        pipelines.push(Pipeline::rest(raw, &names, &shared, planning));
        let log = raw.decision_log.as_ref();
        let log = log.and_then(|log| DecisionLog::plan(log, planning));
        let decision_metadata = raw.decision_metadata.as_ref();
        let paths = raw.paths.as_ref();
        let on =
            |flag: fn(&config::PathRules) -> Option<bool>| paths.and_then(flag).unwrap_or(false);
        let policy = Self {
            shared,
            pipelines,
            reading: Reading {
                merge_slashes: on(|paths| paths.merge_slashes),
                resolve_dots: on(|paths| paths.resolve_dots),
                allow_encoded_slash: on(|paths| paths.allow_encoded_slash),
                allow_semicolon: on(|paths| paths.allow_semicolon),
            },
            ambiguous: Decided::new("none", "none", planning.metrics),
            log,
            metadata: decision_metadata.map_or_else(Metadata::default, |metadata| Metadata {
                id: metadata.id.unwrap_or(false),
                explain: metadata.explain.map(Size::as_usize),
            }),
        };
        complete.then_some(policy)
    }

    /// Decides on one request, and says so where that is asked for.
    ///
    /// # Errors
    /// When no decision could be reached.
    pub(super) async fn decide(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
        let debugged = tracing::enabled!(target: EXPLAIN, tracing::Level::DEBUG);
        let told = self.log.as_ref().is_some_and(|log| log.explain)
            || self.metadata.explain.is_some()
            || debugged;
        let id = (self.log.is_some() || self.metadata.id).then(DecisionId::random);
        let pending = self.log.as_ref().zip(id.as_ref());
        let pending = pending.map(|(log, id)| log.begin(request, id.clone()));
        let telling = if told {
            Telling::Steps
        } else {
            Telling::Nothing
        };
        let settled = self.settle(request, telling).await;
        let account = settled.account();
        if debugged {
            tracing::debug!(target: EXPLAIN, "{account}");
        }
        describe(request.span(), &account, id.as_ref());
        let explained = self
            .metadata
            .explain
            .map(|limit| account.steps_within(limit));
        if let Some(pending) = pending {
            pending.end(&account);
        }
        let mut decision = settled.result?.into_decision();
        if let Some(id) = id.filter(|_| self.metadata.id) {
            let kind = Some(Kind::StringValue(id.to_string()));
            decision.add_metadata("decision_id", prost_types::Value { kind });
        }
        if let Some(explained) = explained {
            decision.add_metadata("explain", explained);
        }
        Ok(decision)
    }

    /// Makes ready to log decisions.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(&self) -> std::io::Result<()> {
        self.log.as_ref().map_or(Ok(()), DecisionLog::start)
    }

    /// Waits until all decisions so far are logged, or `within` is over.
    pub(super) async fn flush(&self, within: Duration) {
        if let Some(log) = &self.log {
            log.flush(within).await;
        }
    }

    /// Decides on one request.
    pub(super) async fn settle(&self, request: &CheckRequestView, telling: Telling) -> Settled<'_> {
        let trail = match telling {
            Telling::Nothing => Trail::default(),
            Telling::Steps | Telling::Afresh => Trail::kept(),
        };
        let mut settled = Settled {
            policy: self,
            pipeline: None,
            result: Err("no pipeline takes the request".into()),
            steps: Vec::new(),
            reads: None,
            holds: Holds::default(),
        };
        let mut check = match Check::new(request, self.reading, trail) {
            Ok(check) => check,
            Err(ambiguous) => {
                tracing::debug!(%ambiguous, "denied");
                let decision = Decision::deny(400).body(format!("{ambiguous}\n"));
                let decision = decision.reason("ambiguous path").into();
                let ruling = Ruling::own(decision, Speaker::Pipeline);
                if telling != Telling::Afresh {
                    self.ambiguous.count(&ruling);
                }
                settled.result = Ok(Answer::Made(ruling));
                return settled;
            }
        };
        if telling != Telling::Nothing {
            check.record();
        }
        let mut pipelines = self.pipelines.iter();
        let Some(pipeline) = pipelines.find(|pipeline| pipeline.takes(&check)) else {
            return settled;
        };
        check.note(Stage::Pipeline, pipeline.name(), || "takes it".to_owned());
        settled.pipeline = Some(pipeline);
        settled.result = match telling {
            Telling::Nothing | Telling::Steps => pipeline.answer(&self.shared, &mut check).await,
            Telling::Afresh => {
                let decided = pipeline.decide(&self.shared, &check).await;
                decided.map(Answer::Made)
            }
        };
        settled.steps = check.trail().steps();
        settled.reads = check.reads();
        settled.holds = check.holds();
        settled
    }
}

/// Says in the span of a check how it was decided.
fn describe(span: &Span, account: &Account<'_>, id: Option<&DecisionId>) {
    if !span.is_recorded() {
        return;
    }
    let policy = account.policy.map(Engine::name);
    let known = [
        ("attache.pipeline", account.pipeline),
        ("attache.identity.source", account.source),
        ("attache.rule", account.rule),
        ("attache.policy", policy),
    ];
    for (name, value) in known {
        if let Some(value) = value {
            span.set(name, value);
        }
    }
    span.set("attache.cached", account.cached);
    if let Some(id) = id {
        span.set("attache.decision_id", id.to_string().as_str());
    }
}

/// Where explanations are logged, at the level `debug`.
const EXPLAIN: &str = "attache_ext_authz::explain";

/// What is wanted beside a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Telling {
    Nothing,
    /// The steps that led to it.
    Steps,
    /// The same, of a decision made for this check.
    Afresh,
}

/// A check that is over.
pub(super) struct Settled<'p> {
    policy: &'p Policy,
    pub(super) pipeline: Option<&'p Pipeline>,
    pub(super) result: Result<Answer, CheckError>,
    steps: Vec<Step>,
    reads: Option<BTreeSet<Read>>,
    pub(super) holds: Holds,
}

/// Whether and how long a decision stays for requests like it.
pub(super) fn stays(settled: &Settled<'_>) -> String {
    let Ok(answer) = &settled.result else {
        return "no, there is no decision".to_owned();
    };
    let Some(decisions) = settled.pipeline.and_then(Pipeline::decisions) else {
        return "no, `decision_cache` is not set".to_owned();
    };
    if settled.holds.once {
        return "no, it is for this request only".to_owned();
    }
    let mut reads = settled.reads.iter().flatten();
    if let Some(read) = reads.find(|read| !read.comparable()) {
        return format!("no, it looks at {read}");
    }
    let ttl = decisions.ttl(answer.ruling().decision.is_allow());
    let left = settled.holds.until.map(|until| {
        let left = until.duration_since(SystemTime::now());
        left.unwrap_or_default()
    });
    let kept = left.map_or(ttl, |left| left.min(ttl));
    format!(
        "for {:.1} s, for requests alike in all of that",
        kept.as_secs_f64()
    )
}

/// What a configuration makes of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// The files that it is made of.
    pub files: Vec<PathBuf>,
    /// Identity sources, by name.
    pub sources: Vec<String>,
    /// Policies, by name.
    pub policies: Vec<String>,
    /// Pipelines, by name, in the order in which they are tried.
    pub pipelines: Vec<String>,
    /// What would have to be fetched before it decides.
    pub fetches: Vec<String>,
}

impl Planned {
    pub(super) fn summary(&self) -> Summary {
        let policy = &self.policy;
        let names =
            |policies: &[Engine]| policies.iter().map(|one| one.name().to_owned()).collect();
        Summary {
            files: self.rest.files.clone(),
            sources: policy
                .shared
                .sources
                .iter()
                .map(|source| source.name.clone())
                .collect(),
            policies: names(&policy.shared.policies),
            pipelines: policy
                .pipelines
                .iter()
                .map(|one| one.name().to_owned())
                .collect(),
            fetches: self.rest.gate.waits_for(),
        }
    }
}

impl Settled<'_> {
    pub(super) fn account(&self) -> Account<'_> {
        let answer = self.result.as_ref().ok();
        let ruling = answer.map(Answer::ruling);
        let kept = answer.and_then(Answer::kept);
        let source = ruling.and_then(|ruling| ruling.caller.source());
        let rule = ruling.and_then(|ruling| ruling.rule).zip(self.pipeline);
        let policy = ruling.and_then(|ruling| ruling.policy);
        Account {
            result: match &self.result {
                Ok(answer) => Ok(&answer.ruling().decision),
                Err(error) => Err(error),
            },
            pipeline: self.pipeline.map(Pipeline::name),
            source: source
                .and_then(|index| Some(self.policy.shared.sources.get(index)?.name.as_str())),
            claims: ruling.and_then(|ruling| ruling.caller.claims()),
            rule: rule.and_then(|(index, pipeline)| pipeline.rule(index)),
            policy: policy.and_then(|index| self.policy.shared.policies.get(index)),
            cached: matches!(answer, Some(Answer::Kept(_))),
            until: kept.map_or(self.holds.until, KeptDecision::until),
            steps: kept.map_or(&self.steps, |kept| &kept.steps),
            reads: match kept {
                Some(kept) => self.reads.as_ref().map(|_| kept.reads()),
                None => self.reads.as_ref(),
            },
        }
    }
}
