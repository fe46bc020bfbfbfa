//! Why a request was decided on as it was: which source, which rule, which data.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use prost_types::{ListValue, value::Kind};
use serde::Serialize;
use serde_json::Value;

use attache_service::time::rfc3339;

use super::{check::Read, engine::Engine};
use crate::server::{CheckError, Decision};

/// A stage of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Which pipeline takes the request.
    Pipeline,
    /// Who is calling.
    Identity,
    /// What is looked up.
    Metadata,
    /// What the rules say.
    Rule,
    /// What a policy says.
    Policy,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pipeline => "pipeline",
            Self::Identity => "identity",
            Self::Metadata => "metadata",
            Self::Rule => "rule",
            Self::Policy => "policy",
        })
    }
}

/// What one stage found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The stage.
    pub stage: Stage,
    /// Of the source, rule, ...
    pub name: String,
    /// What came of it; never a credential.
    pub found: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`: {}", self.stage, self.name, self.found)
    }
}

/// The steps that led to a decision; costs nothing unless somebody asked for it.
#[derive(Debug, Default)]
pub(super) struct Trail(Option<Mutex<Vec<Step>>>);

impl Trail {
    /// A trail that is kept.
    pub(super) fn kept() -> Self {
        Self(Some(Mutex::default()))
    }

    pub(super) fn note(&self, stage: Stage, name: &str, found: impl FnOnce() -> String) {
        let Some(steps) = &self.0 else { return };
        let step = Step {
            stage,
            name: name.to_owned(),
            found: found(),
        };
        steps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(step);
    }

    /// The steps so far, in their order.
    pub(super) fn steps(&self) -> Vec<Step> {
        let steps = self.0.as_ref().map(|steps| {
            let steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
            steps.clone()
        });
        steps.unwrap_or_default()
    }
}

/// What came of a check, and why.
pub(super) struct Account<'a> {
    pub(super) result: Result<&'a Decision, &'a CheckError>,
    pub(super) pipeline: Option<&'a str>,
    pub(super) source: Option<&'a str>,
    pub(super) claims: Option<&'a Value>,
    pub(super) rule: Option<&'a str>,
    pub(super) policy: Option<&'a Engine>,
    /// Decided for an earlier check.
    pub(super) cached: bool,
    /// When the decision ends by itself.
    pub(super) until: Option<SystemTime>,
    /// Empty unless asked for.
    pub(super) steps: &'a [Step],
    /// `None` unless asked for.
    pub(super) reads: Option<&'a BTreeSet<Read>>,
}

/// An explanation as it is written.
#[derive(Serialize)]
pub(super) struct Told<'a> {
    steps: &'a [Step],
    reads: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

impl<'a> Account<'a> {
    pub(super) fn told(&self) -> Told<'a> {
        Told {
            steps: self.steps,
            reads: self
                .reads
                .into_iter()
                .flatten()
                .map(Read::to_string)
                .collect(),
            until: self.until.map(rfc3339),
        }
    }

    /// The steps as a list of texts, of at most `limit` bytes; what is left out is `...`.
    pub(super) fn steps_within(&self, limit: usize) -> prost_types::Value {
        let mut left = limit;
        let mut values = Vec::new();
        for step in self.steps {
            let text = step.to_string();
            let Some(rest) = left.checked_sub(text.len()) else {
                values.push("...".to_owned());
                break;
            };
            left = rest;
            values.push(text);
        }
        let values = values.into_iter().map(|text| prost_types::Value {
            kind: Some(Kind::StringValue(text)),
        });
        prost_types::Value {
            kind: Some(Kind::ListValue(ListValue {
                values: values.collect(),
            })),
        }
    }
}

/// For the debug log, on one line.
impl fmt::Display for Account<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.result {
            Ok(decision) if decision.is_allow() => f.write_str("allowed")?,
            Ok(decision) => write!(f, "denied with {}", decision.status().unwrap_or_default())?,
            Err(error) => write!(f, "not decided: {error}")?,
        }
        if self.cached {
            f.write_str(", as a request like it before")?;
        }
        for step in self.steps {
            write!(f, "; {step}")?;
        }
        if let Some(reads) = self.reads {
            f.write_str("; looked at ")?;
            for (index, read) in reads.iter().enumerate() {
                let comma = if index > 0 { ", " } else { "" };
                write!(f, "{comma}{read}")?;
            }
        }
        if let Some(until) = self.until {
            write!(f, "; holds until {}", rfc3339(until))?;
        }
        Ok(())
    }
}
