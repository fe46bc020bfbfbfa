//! What the auth service can do, row by row of `docs/src/auth-service.md`: behind real Envoy and
//! behind our proxy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod decisions;
mod identity;
mod policy;
mod response;
mod running;
mod stage;
mod tokens;
mod web;
