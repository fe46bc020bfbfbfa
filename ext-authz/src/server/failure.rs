//! What a proxy learns of a check that came to no decision.

use attache_proto::auth::CheckResponse;
use tonic::Status;

use super::decision::{DecisionError, Fail, HeaderLimits, unavailable};

/// What the proxy is told when a handler fails, panics, takes too long, or cannot be asked. Its
/// failure mode decides in any case; no request is let pass by this side.
#[derive(Debug, Clone)]
pub struct OnFailure(Told);

#[derive(Debug, Clone)]
enum Told {
    Answer(Box<CheckResponse>),
    FailedCall,
}

impl OnFailure {
    /// An error answer: unless the proxy has `failure_mode_allow`, the client gets this instead of
    /// the proxy's `status_on_error`.
    ///
    /// # Errors
    /// When the answer cannot be sent.
    pub fn answer(fail: Fail) -> Result<Self, DecisionError> {
        let answer = fail.into_response(HeaderLimits::default())?;
        Ok(Self(Told::Answer(Box::new(answer))))
    }

    /// The call fails (`UNAVAILABLE`): the proxy's `status_on_error` applies, 403 by default, and
    /// its `retry_policy`. For Envoy before 1.37, which takes an error answer for a denial.
    pub fn failed_call() -> Self {
        Self(Told::FailedCall)
    }

    pub(super) fn told(&self) -> Result<CheckResponse, Status> {
        match &self.0 {
            Told::Answer(answer) => Ok((**answer).clone()),
            Told::FailedCall => Err(Status::unavailable("the authorizer failed")),
        }
    }
}

impl Default for OnFailure {
    /// An error answer with status 503 and no body.
    fn default() -> Self {
        Self(Told::Answer(Box::new(unavailable())))
    }
}
