//! `attache ratelimit`: the rate limit service, and the commands around it.
//!
//! - `service`: the service by flags; `drop_in`: in the place of envoyproxy/ratelimit
//! - `check`: rule files; `explain`: which rule applies, and why
//! - `load`: requests to a service, and how long its answers take

mod answer;
mod check;
mod drop_in;
mod explain;
mod histogram;
mod load;
mod question;
mod report;
mod service;
mod tally;
mod target;

use crate::{
    Failure,
    args::{
        LogArgs,
        ratelimit::{RatelimitArgs, RatelimitCommand},
    },
};

pub(crate) use service::{REFERENCE, called_as_the_reference};

/// Runs the service, or one of the commands around it.
pub(crate) fn run(args: &RatelimitArgs, log: &LogArgs) -> Result<(), Failure> {
    match &args.command {
        None => service::run(args, log),
        Some(RatelimitCommand::Check(args)) => check::run(args),
        Some(RatelimitCommand::Explain(args)) => explain::run(args),
        Some(RatelimitCommand::Load(args)) => load::run(args, log),
    }
}
