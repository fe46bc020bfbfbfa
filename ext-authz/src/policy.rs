//! The ready-made auth service: who is calling, and may they?
//!
//! One file says both. Identity sources are asked in order: API keys, JSON web tokens, tokens
//! that their issuer is asked about, browsers that sign in, anonymous. Rules are tried in order,
//! the first that matches decides, and what no rule matches is denied.
//!
//! ```yaml
//! identity:
//! - name: partners
//!   api_key:
//!     from: [{ header: x-api-key }]
//!     keys:
//!     - { id: acme, hash: "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b" }
//! - name: users
//!   jwt:
//!     issuer: https://login.example.com
//!     audiences: [shop]
//!     jwks_file: jwks.json
//! - name: anyone
//!   anonymous: {}
//! rules:
//! - { action: allow, paths: [{ exact: /healthz }], identity: [anyone] }
//! - { action: deny, paths: [{ prefix: /internal }], response: { status: 404 } }
//! - { action: allow, paths: [{ prefix: /admin }], claims: { roles: admin } }
//! - { action: allow, methods: [GET, HEAD] }
//! upstream_headers:
//!   x-user: { claim: sub }
//! ```
//!
//! What is safe by default:
//!
//! - An `allow` rule that names no `identity` never lets anonymous requests pass; a `deny` rule
//!   that names none holds for everybody, known or not.
//! - A `deny` rule without a `response` answers 403, to callers without an identity too.
//! - A credential that is there and wrong makes the request unidentified, not anonymous.
//! - A source that cannot tell, since its keys are not there or its issuer does not answer, makes
//!   the check fail unless another one knows the caller.
//! - Paths are compared decoded and without their query. One that proxies and applications
//!   read in different ways (`..`, `//`, `\`, `%2F`, `;`, double encoding) is refused with 400
//!   unless [`config::PathRules`] says how to read it.
//! - The headers in `upstream_headers` never come from the client: without a value they are
//!   removed.

mod background;
mod cache;
mod check;
mod condition;
pub mod config;
mod effects;
mod engine;
mod explain;
mod explanation;
mod facts;
mod follow;
mod hide;
mod identity;
mod kept;
mod log;
mod metadata;
pub mod path;
mod pipeline;
mod plan;
mod planning;
mod response;
mod rule;
mod service;
mod template;
#[cfg(test)]
mod tests;
mod timing;
mod wristband;

pub use config::AuthConfig;
pub use explain::{Stage, Step};
pub use explanation::{Effect, Explanation, Outcome};
pub use plan::Summary;
pub use service::{AuthService, Reload};
