//! A pipeline: who is calling, may they, and what upstream and client are told.

use std::{collections::BTreeMap, sync::Arc};

use attache_service::{Metrics, config::Located, metrics::Counter};

use super::{
    cache::{Decisions, KeptDecision, Looked},
    check::Check,
    config::{self, AuthConfig},
    engine::{Engine, Verdict},
    explain::Stage,
    facts::Facts,
    hide::Hidden,
    identity::{Caller, Identified, Source, identify},
    metadata::{self, Fetched},
    planning::Planning,
    response::{Reply, Shaping},
    rule::{Host, Outcome, Pattern, Rule, any},
    timing::{StageSeconds, Timing},
    wristband::Wristband,
};
use crate::server::{CheckError, Decision, Deny};

/// What happens to a request, from the first stage to the last.
#[derive(Debug)]
pub(super) struct Pipeline {
    name: String,
    hosts: Vec<Host>,
    paths: Vec<Pattern>,
    context: Vec<(String, Vec<String>)>,
    /// Indices of sources.
    identity: Vec<usize>,
    /// Indices of what is looked up.
    metadata: Vec<usize>,
    rules: Vec<Rule>,
    /// The policy that decides when there are no rules.
    asked: Option<usize>,
    shaping: Shaping,
    unauthenticated: Reply,
    denied: Reply,
    /// By source.
    decided: Vec<Decided>,
    unknown: Decided,
    seconds: StageSeconds,
    /// `None` decides on each request.
    kept: Option<Decisions>,
}

/// What all pipelines share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) sources: Vec<Source>,
    pub(super) metadata: Vec<metadata::Source>,
    pub(super) policies: Vec<Engine>,
    pub(super) wristband: Option<Wristband>,
}

/// What a pipeline decides, and on what grounds.
#[derive(Debug, Clone)]
pub(super) struct Ruling {
    pub(super) decision: Decision,
    pub(super) caller: Caller,
    /// Index of the rule that matched.
    pub(super) rule: Option<usize>,
    /// Index of the policy that was asked.
    pub(super) policy: Option<usize>,
    pub(super) speaker: Speaker,
}

/// Who speaks in a ruling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaker {
    /// The pipeline, of whether the request may pass.
    Pipeline,
    /// The source of this index: the request was one to it.
    Source(usize),
    /// The wristband's key set was asked for.
    KeySet,
}

impl Ruling {
    /// An answer to what no pipeline decides on.
    pub(super) fn own(decision: Decision, speaker: Speaker) -> Self {
        Self {
            decision,
            caller: Caller::Unknown,
            rule: None,
            policy: None,
            speaker,
        }
    }
}

/// What a check is answered with.
#[derive(Debug)]
// Made once a check and taken apart at once.
#[allow(clippy::large_enum_variant)]
pub(super) enum Answer {
    /// Decided for this check.
    Made(Ruling),
    /// Decided for this check, and for others like it.
    Shared(Arc<KeptDecision>),
    /// Decided for a check like it.
    Kept(Arc<KeptDecision>),
}

impl Answer {
    pub(super) fn ruling(&self) -> &Ruling {
        match self {
            Self::Made(ruling) => ruling,
            Self::Shared(kept) | Self::Kept(kept) => &kept.ruling,
        }
    }

    /// The decision with what it rests on, if it is kept.
    pub(super) fn kept(&self) -> Option<&KeptDecision> {
        match self {
            Self::Made(_) => None,
            Self::Shared(kept) | Self::Kept(kept) => Some(kept),
        }
    }

    pub(super) fn into_decision(self) -> Decision {
        match self {
            Self::Made(ruling) => ruling.decision,
            Self::Shared(kept) | Self::Kept(kept) => kept.ruling.decision.clone(),
        }
    }
}

/// Counters of decisions.
#[derive(Debug)]
pub(super) struct Decided {
    allowed: Counter,
    denied: Counter,
    answered: Counter,
    failed: Counter,
}

impl Decided {
    pub(super) fn new(pipeline: &str, source: &str, metrics: &Metrics) -> Self {
        let counter = |decision| {
            let labels = [
                ("pipeline", pipeline),
                ("source", source),
                ("decision", decision),
            ];
            metrics.counter(
                "attache_auth_decisions",
                "Checks by pipeline, identity source and what came of them.",
                &labels,
            )
        };
        Self {
            allowed: counter("allow"),
            denied: counter("deny"),
            answered: counter("answer"),
            failed: counter("error"),
        }
    }

    pub(super) fn count(&self, ruling: &Ruling) {
        let counter = match ruling.speaker {
            Speaker::Source(_) | Speaker::KeySet => &self.answered,
            Speaker::Pipeline if ruling.decision.is_allow() => &self.allowed,
            Speaker::Pipeline if ruling.decision.is_error() => &self.failed,
            Speaker::Pipeline => &self.denied,
        };
        counter.inc();
    }
}

/// The pipeline of all requests that no other takes.
const REST: &str = "default";

impl Pipeline {
    /// A pipeline for some of the requests. `names` are those of the sources.
    pub(super) fn plan(
        raw: &Located<config::Pipeline>,
        rest: &AuthConfig,
        names: &[&str],
        shared: &Shared,
        planning: &mut Planning<'_>,
    ) -> Self {
        if raw.hosts.is_empty() && raw.paths.is_empty() && raw.context.is_empty() {
            let problem = "a pipeline needs `hosts`, `paths` or `context` to take requests by; \
                           what is for all others stands at the top level";
            planning.errors.push(&raw.name, problem);
        }
        let mut identity = Vec::new();
        for name in &raw.identity {
            match names.iter().position(|source| *source == name.value) {
                Some(index) => identity.push(index),
                None => {
                    let problem = format!("there is no identity source `{}`", name.value);
                    planning.errors.push(name, problem);
                }
            }
        }
        if raw.identity.is_empty() {
            identity = (0..names.len()).collect();
        }
        let mut metadata = Vec::new();
        for name in &raw.metadata {
            match shared
                .metadata
                .iter()
                .position(|one| one.name() == name.value)
            {
                Some(index) => metadata.push(index),
                None => {
                    let problem = format!("there is no metadata `{}`", name.value);
                    planning.errors.push(name, problem);
                }
            }
        }
        if raw.metadata.is_empty() {
            metadata = (0..shared.metadata.len()).collect();
        }
        let reply = |own: &Option<Located<config::Reply>>, general: &Option<_>| {
            own.clone().or_else(|| general.clone())
        };
        Self {
            hosts: raw.hosts.iter().map(|host| Host::plan(host)).collect(),
            paths: raw
                .paths
                .iter()
                .filter_map(|path| Pattern::plan(path, planning.errors))
                .collect(),
            context: raw
                .context
                .iter()
                .map(|(key, wanted)| (key.clone(), wanted.0.clone()))
                .collect(),
            ..Self::stages(
                Stages {
                    name: &raw.name,
                    identity,
                    metadata,
                    rules: &raw.rules,
                    upstream_headers: &raw.upstream_headers,
                    client_headers: &raw.client_headers,
                    dynamic_metadata: &raw.dynamic_metadata,
                    unauthenticated: reply(&raw.unauthenticated, &rest.unauthenticated),
                    denied: reply(&raw.denied, &rest.denied),
                    kept: raw.decision_cache.as_ref().or(rest.decision_cache.as_ref()),
                },
                names,
                shared,
                planning,
            )
        }
    }

    /// The pipeline of all other requests: what stands at the top level.
    pub(super) fn rest(
        raw: &AuthConfig,
        names: &[&str],
        shared: &Shared,
        planning: &mut Planning<'_>,
    ) -> Self {
        Self::stages(
            Stages {
                name: REST,
                identity: (0..names.len()).collect(),
                metadata: (0..shared.metadata.len()).collect(),
                rules: &raw.rules,
                upstream_headers: &raw.upstream_headers,
                client_headers: &raw.client_headers,
                dynamic_metadata: &raw.dynamic_metadata,
                unauthenticated: raw.unauthenticated.clone(),
                denied: raw.denied.clone(),
                kept: raw.decision_cache.as_ref(),
            },
            names,
            shared,
            planning,
        )
    }

    /// A pipeline that takes every request.
    fn stages(
        raw: Stages<'_>,
        names: &[&str],
        shared: &Shared,
        planning: &mut Planning<'_>,
    ) -> Self {
        let rules = raw.rules.iter().enumerate();
        let rules = rules
            .map(|(number, rule)| Rule::plan(number, rule, names, &shared.policies, planning))
            .collect();
        let metrics = planning.metrics;
        let errors = &mut *planning.errors;
        let mut reply = |raw: &Option<Located<config::Reply>>, default| match raw {
            Some(raw) => Reply::plan(raw, default, errors),
            None => Reply::new(default),
        };
        let mut unauthenticated = reply(&raw.unauthenticated, 401);
        let denied = reply(&raw.denied, 403);
        let asked = || {
            raw.identity
                .iter()
                .filter_map(|index| shared.sources.get(*index))
        };
        let mut challenges: Vec<&str> = Vec::new();
        for challenge in asked().filter_map(Source::challenge) {
            if !challenges.contains(&challenge) {
                challenges.push(challenge);
            }
        }
        if challenges.is_empty() {
            challenges.push("ApiKey");
        }
        unauthenticated.challenge(&challenges.join(", "));
        let hidden = Hidden::plan(asked(), &shared.sources);
        Self {
            name: raw.name.to_owned(),
            hosts: Vec::new(),
            paths: Vec::new(),
            context: Vec::new(),
            identity: raw.identity,
            metadata: raw.metadata,
            rules,
            asked: (raw.rules.is_empty() && shared.policies.len() == 1).then_some(0),
            shaping: Shaping::plan(
                raw.upstream_headers,
                raw.client_headers,
                raw.dynamic_metadata,
                hidden,
                errors,
            ),
            unauthenticated,
            denied,
            decided: names
                .iter()
                .map(|source| Decided::new(raw.name, source, metrics))
                .collect(),
            unknown: Decided::new(raw.name, "none", metrics),
            seconds: StageSeconds::new(raw.name, metrics),
            kept: raw.kept.and_then(|kept| {
                Decisions::plan(raw.name, kept, &planning.revision, metrics, errors)
            }),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether a request is this pipeline's.
    pub(super) fn takes(&self, check: &Check<'_>) -> bool {
        any(&self.hosts, || check.host(), Host::matches)
            && any(&self.paths, || check.path(), Pattern::matches)
            && self.context.iter().all(|(key, wanted)| {
                let said = check.context(key);
                said.is_some_and(|said| wanted.iter().any(|wanted| wanted == said))
            })
    }

    /// Answers a check: with a decision that was kept, if there is one.
    ///
    /// # Errors
    /// When no decision could be reached.
    pub(super) async fn answer(
        &self,
        shared: &Shared,
        check: &mut Check<'_>,
    ) -> Result<Answer, CheckError> {
        let answer = self.find(shared, check).await;
        match &answer {
            Ok(answer) => self.count(answer.ruling()),
            Err(_) => _ = self.unknown.failed.inc(),
        }
        answer
    }

    async fn find(&self, shared: &Shared, check: &mut Check<'_>) -> Result<Answer, CheckError> {
        Ok(match &self.kept {
            None => Answer::Made(self.decide(shared, check).await?),
            Some(kept) => match kept.look(check).await {
                Looked::Kept(kept) => Answer::Kept(kept),
                Looked::Failed(reason) => return Err(reason.as_ref().into()),
                Looked::Asking(asking) => {
                    check.record();
                    let decided = self.decide(shared, check).await;
                    let decided = decided.map_err(|error| error.to_string().into());
                    match asking.decided(check, decided) {
                        Ok(kept) => Answer::Shared(kept),
                        Err(reason) => return Err(reason.as_ref().into()),
                    }
                }
            },
        })
    }

    /// Decides on a request, whatever is kept.
    ///
    /// # Errors
    /// When no decision could be reached.
    pub(super) async fn decide(
        &self,
        shared: &Shared,
        check: &Check<'_>,
    ) -> Result<Ruling, CheckError> {
        if let Some(wristband) = &shared.wristband
            && let Some(decision) = wristband.answer(check)
        {
            return Ok(Ruling::own(decision, Speaker::KeySet));
        }
        let mut timing = Timing::of(&self.seconds.identity);
        let caller = match identify(&shared.sources, &self.identity, check).await {
            Identified::Caller(caller) => caller,
            Identified::Answer(source, decision) => {
                check.holds_once();
                return Ok(Ruling::own(*decision, Speaker::Source(source)));
            }
            Identified::Failed(reason) => return Err(reason.into()),
        };
        let source = caller.source().and_then(|index| shared.sources.get(index));
        let source = source.map_or("none", |source| &source.name);
        let nothing = Fetched::default();
        let facts = Facts {
            check,
            caller: &caller,
            source,
            metadata: &nothing,
        };
        let fetched = if self.metadata.is_empty() {
            Fetched::default()
        } else {
            timing.enter(&self.seconds.metadata);
            // Boxed, as few checks need it.
            Box::pin(metadata::look_up(&shared.metadata, &self.metadata, &facts)).await?
        };
        let facts = Facts {
            metadata: &fetched,
            ..facts
        };
        timing.enter(&self.seconds.policy);
        let rules = self.rules.iter().enumerate();
        let ruled = rules
            .filter_map(|(index, rule)| Some((Some((index, rule)), rule.follows(&facts)?)))
            .next()
            .or_else(|| self.asked.map(|policy| (None, Outcome::Ask(policy))));
        let (rule, outcome) = match ruled {
            Some((rule, outcome)) => (rule, Some(outcome)),
            None => (None, None),
        };
        let (index, rule) = rule.unzip();
        let (policy, verdict) = match outcome {
            None => (None, None),
            Some(Outcome::Allow) => (None, Some(Verdict::allow())),
            Some(Outcome::Deny) => (None, Some(Verdict::deny())),
            Some(Outcome::Ask(asked)) => {
                let policy = shared
                    .policies
                    .get(asked)
                    .ok_or("there is no such policy")?;
                let asking = Box::pin(policy.ask(&facts));
                let name = [("attache.policy", policy.name())];
                let verdict = check.span().waits("policy", &name, asking).await?;
                (Some((asked, policy)), Some(verdict))
            }
        };
        timing.enter(&self.seconds.response);
        let (asked, policy) = policy.unzip();
        let rule_name = rule.map_or("none", |rule| &rule.label);
        let by = policy.map_or(rule_name, Engine::name);
        let said = match &verdict {
            Some(Verdict::Allow(_)) => "allowed",
            Some(Verdict::Deny(_)) | None => "denied",
        };
        tracing::debug!(pipeline = self.name, source, rule = rule_name, "{said}");
        check.note(Stage::Rule, rule_name, || said.to_owned());
        let decision = match verdict {
            Some(Verdict::Allow(changes)) => {
                let wristband = shared.wristband.as_ref();
                let allow = check.take_effects().of_allowed(changes.allow());
                self.shaping.allow(allow, &facts, wristband)?
            }
            Some(Verdict::Deny(denial)) => {
                let reply = rule.and_then(|rule| rule.response.as_ref());
                let deny = denial.deny(reply.unwrap_or(&self.denied), &facts, by);
                check.take_effects().of_denied(deny).into()
            }
            None => {
                let deny = self.unmatched(&shared.sources, &facts);
                check.take_effects().of_denied(deny).into()
            }
        };
        Ok(Ruling {
            decision,
            caller,
            rule: index,
            policy: asked,
            speaker: Speaker::Pipeline,
        })
    }

    /// Where decisions are kept, if they are.
    pub(super) fn decisions(&self) -> Option<&Decisions> {
        self.kept.as_ref()
    }

    /// The answer to what no rule matches: who is not known is told how to become so.
    fn unmatched(&self, sources: &[Source], facts: &Facts<'_>) -> Deny {
        if matches!(facts.caller, Caller::Known(_)) {
            return self.denied.decision(facts, "no rule allows it");
        }
        let mut asked = self.identity.iter().filter_map(|index| sources.get(*index));
        match asked.find_map(|source| source.sign_in(facts.check)) {
            Some(sign_in) => sign_in,
            None => self.unauthenticated.decision(facts, "no identity"),
        }
    }

    /// The name of a rule.
    pub(super) fn rule(&self, index: usize) -> Option<&str> {
        self.rules.get(index).map(|rule| rule.label.as_str())
    }

    fn count(&self, ruling: &Ruling) {
        let source = match ruling.speaker {
            Speaker::Source(index) => Some(index),
            Speaker::Pipeline | Speaker::KeySet => ruling.caller.source(),
        };
        let decided = source.and_then(|index| self.decided.get(index));
        decided.unwrap_or(&self.unknown).count(ruling);
    }
}

/// What is said of the stages, at the top level or in one of `pipelines`.
struct Stages<'a> {
    name: &'a str,
    identity: Vec<usize>,
    metadata: Vec<usize>,
    rules: &'a [Located<config::Rule>],
    upstream_headers: &'a BTreeMap<String, Located<config::HeaderSource>>,
    client_headers: &'a BTreeMap<String, Located<config::HeaderSource>>,
    dynamic_metadata: &'a BTreeMap<String, Located<config::ValueSource>>,
    unauthenticated: Option<Located<config::Reply>>,
    denied: Option<Located<config::Reply>>,
    kept: Option<&'a config::DecisionCache>,
}
