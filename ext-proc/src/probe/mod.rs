//! Plays the proxy against any processor, in any language, and says what it does wrong.
//!
//! - [`cases`]: the exchanges that are played: phases, body modes, ends.
//! - [`check`], [`Checker`]: the judge: what was sent and received in, [`Finding`]s out. No I/O.
//! - [`run`]: plays cases over a [`Channel`](attache_service::Channel) and makes a [`Report`].
//! - [`recording`], [`relay`], [`replay`]: real exchanges to a file, and from a file to a
//!   processor.
//!
//! The measure is what Envoy 1.40 does with each answer.

mod case;
mod check;
mod code;
mod event;
mod message;
mod player;
pub mod recording;
pub mod relay;
pub mod replay;

mod report;
mod run;

#[cfg(test)]
mod tests;

pub use attache_service::probe::{Health, Latency, NotServed, ServerFacts};
pub use case::{Case, Content, cases};
pub use check::{Checker, Setup, check};
pub use code::{Code, Finding, Severity};
pub use event::{Event, Phase, Side, Timed};
pub use report::{CaseReport, Report};
pub use run::{Plan, run};
