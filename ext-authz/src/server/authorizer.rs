//! The trait that policy authors write.

use std::{fmt, future::Future, sync::Arc};

use attache_filter::BoxError;

use super::{Decision, request::CheckRequestView};

/// Why a check came to no decision. Any error converts with `?`.
///
/// The reason goes to the log of this service; the caller only learns that the check failed.
pub struct CheckError(BoxError);

impl<E: Into<BoxError>> From<E> for CheckError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl fmt::Debug for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Decides whether requests may pass.
pub trait Authorizer: Send + Sync + 'static {
    /// Decides on one request.
    ///
    /// The future is dropped when the caller goes away or its deadline comes near.
    ///
    /// # Errors
    /// When no decision could be reached; [`OnFailure`](super::OnFailure) says what the caller
    /// then learns.
    fn check(
        &self,
        request: &CheckRequestView,
    ) -> impl Future<Output = Result<Decision, CheckError>> + Send;
}

impl<A: Authorizer> Authorizer for Arc<A> {
    fn check(
        &self,
        request: &CheckRequestView,
    ) -> impl Future<Output = Result<Decision, CheckError>> + Send {
        A::check(self, request)
    }
}
