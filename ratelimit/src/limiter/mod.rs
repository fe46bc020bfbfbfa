//! The rate limiter itself: rules, counters and a clock, without any transport.
//!
//! - [`window`]: fixed windows and their units.
//! - [`calendar`]: windows of the calendar.
//! - [`clock`]: where the time comes from.
//! - [`judgement`]: what a count means against a limit.
//! - [`decision`]: what becomes of a request.
//! - [`engine`]: requests in, decisions out.

pub mod calendar;
pub mod clock;
pub mod decision;
pub mod engine;
pub mod judgement;
mod pending;
pub mod window;
mod work;

pub use calendar::UtcOffset;
pub use clock::{Clock, ManualClock, SystemClock, UnixTime};
pub use decision::{Applied, Code, Decision, DescriptorDecision, Hits, LimitError};
pub use engine::{Limiter, Modes, descriptor};
pub use judgement::{NearLimitRatio, Tally};
pub use window::{Unit, Window};
