//! What guards a cluster while it runs, over all its clients: what may be in use at a time, and
//! what answers say of endpoints.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};

use super::{
    Endpoint, Endpoints, Outliers,
    breakers::{Breakers, Overflow, Permit, Resource},
    health,
    outlier::Outcome,
};

/// The guards of one cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Guards {
    /// How much of it may be in use at a time.
    pub breakers: Arc<Breakers>,
    /// Who leaves out endpoints for how they answer.
    pub outliers: Option<Arc<Outliers>>,
    /// Whether endpoints have health checks, so that an answer may say that its endpoint fails
    /// them ([`health::IMMEDIATE_FAIL`]).
    pub checked: bool,
}

impl Guards {
    /// Room for one of these, where the cluster limits them.
    ///
    /// # Errors
    /// When there is none.
    pub fn admit(&self, resource: Resource) -> Result<Option<Permit>, Overflow> {
        match self.breakers.limit() {
            true => self.breakers.acquire(resource).map(Some),
            false => Ok(None),
        }
    }

    /// Notes the head of an answer of `endpoint`.
    pub fn answered(
        &self,
        endpoints: &Endpoints,
        endpoint: &Endpoint,
        status: StatusCode,
        headers: &HeaderMap,
    ) {
        if self.checked && headers.contains_key(health::IMMEDIATE_FAIL) {
            health::fail_at_once(endpoints.name(), endpoint);
        }
        if let Some(outliers) = &self.outliers {
            outliers.note(endpoints, endpoint, Outcome::of_answer(status, headers));
        }
    }

    /// Notes what came of `endpoint` where it was no whole answer.
    pub fn ended(&self, endpoints: &Endpoints, endpoint: &Endpoint, outcome: Outcome) {
        if let Some(outliers) = &self.outliers {
            outliers.note(endpoints, endpoint, outcome);
        }
    }
}
