//! `attache ratelimit check`, `explain` and `load`: tools around a rate limit service.

mod answer;
mod check;
mod explain;
mod histogram;
mod load;
mod question;
mod report;
mod tally;
mod target;

use crate::{
    Failure,
    args::{LogArgs, ratelimit::RatelimitCommand},
};

/// Runs one of them.
pub(crate) fn run(command: &RatelimitCommand, log: &LogArgs) -> Result<(), Failure> {
    match command {
        RatelimitCommand::Check(args) => check::run(args),
        RatelimitCommand::Explain(args) => explain::run(args),
        RatelimitCommand::Load(args) => load::run(args, log),
    }
}
