//! Browsers sign in: the auth service behind our proxy and behind Envoy, before an OpenID provider.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod chromium;
mod flows;
mod http;
mod jar;
mod provider;
mod stage;
