//! Policies: programs that rules hand the decision to.

mod builtins;
mod bundle;
mod candidate;
#[cfg(test)]
mod differential;
mod functions;
mod input;
mod json;
mod load;
mod rego;
mod rewrite;
mod signature;
mod syntax;
mod verdict;
mod wants;
#[cfg(feature = "opa-wasm")]
mod wasm;

use std::{sync::Arc, time::Duration};

use attache_service::{config::Located, metrics::Counter};
use regorus::Value;

use super::{config::PolicySource, explain::Stage, facts::Facts, planning::Planning};
use candidate::Candidate;
use load::Place;
pub(super) use verdict::Verdict;
use wants::Wants;

/// How long a policy may think about one request.
const TIME_LIMIT: Duration = Duration::from_millis(100);

/// A policy that can be asked.
#[derive(Debug)]
pub(super) struct Engine {
    name: String,
    place: Place,
    candidate: Option<Candidate>,
    failed: Counter,
}

/// A policy, loaded.
#[derive(Debug)]
struct Program {
    code: Code,
    /// Of the bundle that it is from.
    revision: Option<String>,
}

#[derive(Debug)]
enum Code {
    Rego(Arc<rego::Program>),
    #[cfg(feature = "opa-wasm")]
    Wasm(wasm::Program),
}

impl Engine {
    /// What is wrong with it is reported.
    pub(super) fn plan(raw: &Located<PolicySource>, planning: &mut Planning<'_>) -> Self {
        let name = &raw.name;
        let limit = raw.time_limit.as_ref().map_or(TIME_LIMIT, |limit| {
            if limit.value.is_zero() {
                planning.errors.push(limit, "expected some time");
            }
            limit.value
        });
        let candidate = raw.candidate.as_ref();
        Self {
            name: name.value.clone(),
            place: Place::plan(name, &raw.engine, limit, planning),
            candidate: candidate.map(|raw| Candidate::plan(name, raw, limit, planning)),
            failed: planning.metrics.counter(
                "attache_auth_policy_failures",
                "Checks in which a policy could not decide.",
                &[("policy", name.as_str())],
            ),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The revision of the bundle that it is from.
    pub(super) fn revision(&self) -> Option<String> {
        self.place.program()?.revision.clone()
    }

    /// What the policy decides.
    ///
    /// # Errors
    /// When it cannot: it is not there yet, contradicts itself, takes too long, or its answer is
    /// none.
    pub(super) async fn ask(&self, facts: &Facts<'_>) -> Result<Verdict, String> {
        let decided = self.decide(facts).await;
        if let (Some(candidate), Ok(verdict)) = (&self.candidate, &decided) {
            candidate.tell(facts, verdict);
        }
        decided.map_err(|problem| {
            self.failed.inc();
            tracing::warn!(policy = self.name, problem, "policy cannot decide");
            facts.check.note(Stage::Policy, &self.name, || {
                format!("cannot decide: {problem}")
            });
            format!("the policy `{}` cannot decide: {problem}", self.name)
        })
    }

    async fn decide(&self, facts: &Facts<'_>) -> Result<Verdict, String> {
        let program = self.place.program().ok_or("it is not loaded yet")?;
        if program.changes() {
            // The next request like this one may get another answer.
            facts.check.time();
        }
        let input = input::input(facts, program.wants())?;
        let verdict = program.evaluate(input).await?;
        facts.check.note(Stage::Policy, &self.name, || {
            let said = match verdict {
                Verdict::Allow(_) => "allows",
                Verdict::Deny(_) => "denies",
            };
            match &program.revision {
                Some(revision) => format!("{said} (revision {revision})"),
                None => said.to_owned(),
            }
        });
        Ok(verdict)
    }
}

impl Program {
    fn rego(program: rego::Program) -> Self {
        Self {
            code: Code::Rego(Arc::new(program)),
            revision: None,
        }
    }

    #[cfg(feature = "opa-wasm")]
    fn wasm(program: wasm::Program) -> Self {
        Self {
            code: Code::Wasm(program),
            revision: None,
        }
    }

    /// What it can read of its input.
    fn wants(&self) -> &Wants {
        match &self.code {
            Code::Rego(program) => &program.wants,
            #[cfg(feature = "opa-wasm")]
            Code::Wasm(_) => Wants::everything(),
        }
    }

    /// Whether its answer to the same input can change.
    fn changes(&self) -> bool {
        match &self.code {
            Code::Rego(program) => program.changing,
            #[cfg(feature = "opa-wasm")]
            Code::Wasm(_) => true,
        }
    }

    #[cfg_attr(not(feature = "opa-wasm"), allow(clippy::unused_async))]
    async fn evaluate(&self, input: Value) -> Result<Verdict, String> {
        let answer = match &self.code {
            Code::Rego(program) => program.evaluate(input)?,
            #[cfg(feature = "opa-wasm")]
            Code::Wasm(program) => return program.evaluate(&input).await,
        };
        match answer {
            // No rule says anything.
            Value::Undefined => Ok(Verdict::deny()),
            Value::Bool(true) => Ok(Verdict::allow()),
            Value::Bool(false) => Ok(Verdict::deny()),
            answer => Verdict::new(serde_json::to_value(&answer).map_err(|e| e.to_string())?),
        }
    }
}
