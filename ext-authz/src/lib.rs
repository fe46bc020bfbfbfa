//! External Authorization: ask a service whether a request may pass, or be that service.
//!
//! - [`client`]: the asking end, a `tower` layer with Envoy's `ext_authz` settings.
//! - [`server`]: the answering end, the [`Authorizer`](server::Authorizer) trait.
//! - [`probe`]: play the proxy against any auth service, and judge its answers.
//! - [`policy`]: the ready-made service: API keys, JSON web tokens, rules.
//! - [`testing`]: an authorizer's tests in memory.

pub mod client;
pub mod policy;
pub mod probe;
pub mod server;
pub mod testing;
