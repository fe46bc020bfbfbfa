//! What is asked of one server, and what it answers.

use std::sync::LazyLock;

use redis::{Pipeline, Script, ServerError, ServerErrorKind, Value};

/// Meters that plain commands do not know, and charges that depend on what fits.
static CHARGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("charge.lua")));

/// Numbers that the script takes for each key, and those that it answers for each.
const TAKES: usize = 7;
const ANSWERS: usize = 4;

/// One step on one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// Adds hits, whatever the limit. Adds to the same key are put together on their way.
    Add(Add),
    /// Charges that plain commands do not know.
    Charge(ScriptCharge),
}

/// Hits for a counter that is a plain number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Add {
    pub(super) key: String,
    pub(super) hits: u32,
    /// Seconds that the counter lives for, if the hits are its first.
    pub(super) lifetime: u64,
}

/// Charges that are one step on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ScriptCharge {
    /// Either all or none.
    pub(super) together: bool,
    pub(super) keys: Vec<String>,
    pub(super) terms: Vec<ScriptTerms>,
}

/// How one of the charges of a script counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ScriptTerms {
    pub(super) meter: ScriptMeter,
    pub(super) limit: u32,
    pub(super) capacity: u32,
    /// Seconds.
    pub(super) span: u64,
    pub(super) hits: u32,
    pub(super) action: ScriptAction,
    /// Seconds that the counter of a fixed window lives for, if the hits are its first.
    pub(super) lifetime: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScriptMeter {
    Fixed = 0,
    Sliding = 1,
    Bucket = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScriptAction {
    Count = 0,
    CountIfFits = 1,
    GiveBack = 2,
}

/// What a command is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// What the counter stands at with this addition.
    Count(u64),
    /// One for each key.
    Charged(Vec<Charged>),
}

/// What became of one charge of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Charged {
    pub(super) before: u64,
    pub(super) after: u64,
    pub(super) charged: bool,
    /// Seconds; 0 for a fixed window.
    pub(super) resets_in: u64,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The key lives on another server of the cluster, for good.
    Moved(String),
    /// The key is being moved to another server of the cluster.
    Ask(String),
    /// The keys are being moved; some are here and some are not.
    TryAgain,
    /// This server does not take writes (any more).
    ReadOnly(String),
    /// The script has to be sent as a whole.
    NoScript,
    /// Anything else.
    Failed(String),
}

impl Command {
    /// The key that says where the command goes.
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Add(add) => &add.key,
            Self::Charge(charge) => charge.keys.first().map_or("", String::as_str),
        }
    }
}

impl ScriptCharge {
    /// Appends the call. `whole` sends the script itself, else its digest.
    pub(super) fn encode(&self, pipeline: &mut Pipeline, whole: bool) {
        let command = match whole {
            true => pipeline.cmd("EVAL").arg(CHARGE_SOURCE),
            false => pipeline.cmd("EVALSHA").arg(CHARGE.get_hash()),
        };
        command.arg(self.keys.len());
        for key in &self.keys {
            command.arg(key);
        }
        command.arg(u8::from(self.together));
        for terms in &self.terms {
            let numbers: [u64; TAKES] = [
                terms.meter as u64,
                terms.limit.into(),
                terms.capacity.into(),
                terms.span,
                terms.hits.into(),
                terms.action as u64,
                terms.lifetime,
            ];
            for number in numbers {
                command.arg(number);
            }
        }
    }

    /// Reads the answer.
    pub(super) fn decode(&self, value: Value) -> Result<Answer, Refusal> {
        let values = match value {
            Value::Array(values) => values,
            other => return Err(unexpected(other)),
        };
        if values.len() != self.keys.len() * ANSWERS {
            return Err(Refusal::Failed(format!(
                "{} numbers for {} charges",
                values.len(),
                self.keys.len()
            )));
        }
        let numbers = values
            .into_iter()
            .map(count)
            .collect::<Result<Vec<_>, _>>()?;
        let charged = numbers
            .chunks_exact(ANSWERS)
            .filter_map(|chunk| match *chunk {
                [before, after, charged, resets_in] => Some(Charged {
                    before,
                    after,
                    charged: charged != 0,
                    resets_in,
                }),
                _ => None,
            })
            .collect();
        Ok(Answer::Charged(charged))
    }
}

const CHARGE_SOURCE: &str = include_str!("charge.lua");

/// A counter. Those of others may be negative; to a limit that is 0.
pub(super) fn count(value: Value) -> Result<u64, Refusal> {
    match value {
        Value::Int(count) => Ok(u64::try_from(count).unwrap_or(0)),
        other => Err(unexpected(other)),
    }
}

/// Why an answer of another kind than expected was given.
pub(super) fn unexpected(value: Value) -> Refusal {
    match value {
        Value::ServerError(error) => Refusal::of(&error),
        other => Refusal::Failed(format!("an answer of another kind: {other:?}")),
    }
}

impl Refusal {
    fn of(error: &ServerError) -> Self {
        let text = || match error.details() {
            Some(details) => format!("{} {details}", error.code()),
            None => error.code().to_owned(),
        };
        // `<slot> <host>:<port>`
        let target = || {
            let details = error.details().unwrap_or_default();
            let target = details.split_ascii_whitespace().nth(1).unwrap_or_default();
            target.to_owned()
        };
        match error.kind() {
            Some(ServerErrorKind::Moved) => Self::Moved(target()),
            Some(ServerErrorKind::Ask) => Self::Ask(target()),
            Some(ServerErrorKind::TryAgain) => Self::TryAgain,
            Some(ServerErrorKind::ReadOnly) => Self::ReadOnly(text()),
            Some(ServerErrorKind::NoScript) => Self::NoScript,
            _ => Self::Failed(text()),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Moved(to) => write!(f, "the key has moved to {to}"),
            Self::Ask(to) => write!(f, "the key is moving to {to}"),
            Self::TryAgain => f.write_str("the keys are being moved"),
            Self::NoScript => f.write_str("the script is not kept"),
            Self::ReadOnly(said) | Self::Failed(said) => f.write_str(said),
        }
    }
}
