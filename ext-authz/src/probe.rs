//! Plays the proxy against any auth service, in any language, and says what it does wrong.
//!
//! - [`cases`]: the checks that are made: headers, bodies, connections of all kinds.
//! - [`judge`]: check and answer in, [`Finding`]s out. No I/O.
//! - [`run`]: makes the checks over a [`Channel`](attache_service::Channel) and a [`Report`] of it.
//!
//! The measure is what Envoy 1.40 does with each answer.

mod case;
mod code;
mod judge;
mod report;
mod run;

#[cfg(test)]
mod tests;

pub use attache_service::probe::{Health, Latency, NotServed, ServerFacts, Severity};
pub use case::{Case, Content, cases};
pub use code::{Code, Finding};
pub use judge::{Answered, judge};
pub use report::{CaseReport, Report};
pub use run::{Plan, run};
