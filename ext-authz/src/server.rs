//! The answering end: write an [`Authorizer`], and [`run`] it.
//!
//! ```no_run
//! use attache_ext_authz::server::{Authorizer, CheckError, CheckRequestView, Decision, run};
//!
//! struct AdminsOnly;
//!
//! impl Authorizer for AdminsOnly {
//!     async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
//!         match request.cookie("role") {
//!             Some("admin") => Ok(Decision::allow().set("x-role", "admin").into()),
//!             _ => Ok(Decision::deny(403).body("admins only").into()),
//!         }
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     run(AdminsOnly)
//! }
//! ```
//!
//! - [`CheckRequestView`]: the request, its body, its connection, whichever way they were sent.
//! - [`Decision`]: allow, deny, or an error, with verbs for what is changed.
//! - [`Server`]: how an authorizer is served: deadlines, bounds, and what failures mean.
//!
//! Whatever goes wrong in a check (an error, a panic, a missed deadline, a decision that Envoy
//! would mangle) becomes an error answer, for which the proxy's `failure_mode_allow` decides;
//! never an allowed request.

mod authorizer;
mod deadline;
mod decision;
mod failure;
mod metrics;
mod request;
mod serve;
mod service;

#[cfg(test)]
mod tests;

pub use attache_service::{
    standalone::ServeError,
    tls::{AlternativeName, Certificate, CertificateError},
    trace::Trace,
};
pub use authorizer::{Authorizer, CheckError};
pub use decision::{Allow, Decision, DecisionError, Deny, Fail, HeaderLimits};
pub use failure::OnFailure;
pub(crate) use request::form_pairs;
pub use request::{
    Body, BodyError, CheckRequestView, ForwardedCertificate, ForwardedError, SpiffeError, SpiffeId,
};
pub use serve::{SERVICE_NAME, Server, routes, run};
pub use service::AuthorizerService;
