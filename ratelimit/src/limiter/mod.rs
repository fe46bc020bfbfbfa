//! The rate limiter itself: rules, counters and a clock, without any transport.
//!
//! - [`window`]: fixed windows and their units.
//! - [`clock`]: where the time comes from.
//! - [`judgement`]: what a count means against a limit.
//! - [`engine`]: requests in, decisions out.

pub mod clock;
pub mod engine;
pub mod judgement;
pub mod window;

pub use clock::{Clock, ManualClock, SystemClock};
pub use engine::{Applied, Code, Decision, DescriptorDecision, LimitError, Limiter, descriptor};
pub use judgement::Tally;
pub use window::{Unit, Window};
