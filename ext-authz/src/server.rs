//! The answering end: write an [`Authorizer`], serve it with [`routes`].
//!
//! ```
//! use attache_ext_authz::server::{Authorizer, CheckError, CheckRequestView, Decision};
//!
//! struct AdminsOnly;
//!
//! impl Authorizer for AdminsOnly {
//!     async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
//!         if request.path() == Some("/healthz") {
//!             return Ok(Decision::allow().into());
//!         }
//!         match request.cookie("role") {
//!             Some("admin") => Ok(Decision::allow().set("x-role", "admin").into()),
//!             _ => Ok(Decision::deny(403).body("admins only").into()),
//!         }
//!     }
//! }
//!
//! let routes = attache_ext_authz::server::routes(AdminsOnly);
//! # let _ = routes;
//! ```
//!
//! Whatever goes wrong in a check (an error, a panic, a missed deadline, a decision that Envoy
//! would mangle) becomes a failed call, for which the caller's `failure_mode_allow` decides;
//! never an allowed request.

mod authorizer;
mod decision;
mod request;

pub use authorizer::{Authorizer, AuthorizerService, CheckError, SERVICE_NAME, routes};
pub use decision::{Allow, Decision, DecisionError, Deny};
pub use request::{Body, CheckRequestView};
