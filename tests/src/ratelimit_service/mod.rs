//! Scenarios of the rate limit service: the reference (envoyproxy/ratelimit) and ours, each with
//! the same files, the same environment and the same Redis, are asked the same.
//!
//! - [`scenario`]: the format
//! - [`ask`]: a request in short form; [`status`]: an answer in short form
//! - [`redis`]: a real Redis; [`statsd`]: who counts what a service reports
//! - [`discovered`]: rules that come from a control plane
//! - [`service`]: a running service, the reference or ours
//! - [`run`]: the steps of a scenario against one service, and the verdict

pub mod ask;
pub mod discovered;
pub mod redis;
pub mod run;
pub mod scenario;
pub mod service;
pub mod statsd;
pub mod status;

mod differences;
mod process;
mod rpc;
