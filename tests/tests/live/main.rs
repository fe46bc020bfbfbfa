//! The live page, in a real browser, of a proxy with all three policies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hostile;
mod network;
mod page;
mod stage;
