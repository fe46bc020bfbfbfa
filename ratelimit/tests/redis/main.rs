//! The Redis store against real servers.
//!
//! Uses the program that `ATTACHE_REDIS` names, else the `redis-server` of the workspace's tools or
//! of `PATH`. Without one the tests say so and pass, unless `ATTACHE_REQUIRE_ALL=1`.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod clock;
mod cluster;
mod exact;
mod inspect;
mod login;
mod meters;
mod outage;
mod sentinel;
mod server;
