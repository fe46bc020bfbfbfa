//! What a filter does with a request when its service fails, told ahead: for `attache check
//! --explain`, not for requests.

use std::{fmt, time::Duration};

use http::StatusCode;

use crate::fraction::Fraction;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on as if the filter were not there.
    Passes,
    /// It is answered with this status.
    Refused(StatusCode),
    /// This share is answered with the status, the rest goes on.
    PartlyRefused(Fraction, StatusCode),
}

impl Outcome {
    /// Refused, unless failures are let through.
    pub fn of(passes: bool, status: StatusCode) -> Self {
        match passes {
            true => Self::Passes,
            false => Self::Refused(status),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passes => f.write_str("passes"),
            Self::Refused(status) => write!(f, "{}", status.as_u16()),
            Self::PartlyRefused(share, status) => write!(f, "{} for {share}", status.as_u16()),
        }
    }
}

/// Which protocol a service is asked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskedBy {
    /// gRPC.
    Grpc,
    /// Plain HTTP.
    Http,
}

/// A filter's service, and what each way to fail means for the request.
#[derive(Debug, Clone, PartialEq)]
pub struct OnFailure {
    /// The filter's kind: `ext_authz`.
    pub kind: &'static str,
    /// The service's cluster.
    pub cluster: String,
    /// How it is asked.
    pub asked_by: AskedBy,
    /// How long one answer may take; `None` for ever.
    pub timeout: Option<Duration>,
    /// It cannot be reached, or says that it failed.
    pub not_reached: Outcome,
    /// It does not answer within the timeout.
    pub too_late: Outcome,
    /// Its answer is none of the protocol.
    pub wrong_answer: Outcome,
    /// Its answer asks for what cannot be done, such as a header with a line break; `None` where
    /// it cannot.
    pub impossible_change: Option<Outcome>,
    /// What else there is to know.
    pub notes: Vec<&'static str>,
}

impl OnFailure {
    /// The way of all failures together.
    pub fn mode(&self) -> &'static str {
        let all = [self.not_reached, self.too_late, self.wrong_answer];
        let passing = all.iter().filter(|one| **one == Outcome::Passes).count();
        let refused = |one: &Outcome| matches!(one, Outcome::Refused(_));
        match passing {
            3 => "fail-open",
            0 if all.iter().all(refused) => "fail-closed",
            _ => "partly",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fraction::{FractionalPercent, RuntimeFractionalPercent};

    #[test]
    fn outcomes_read_as_statuses_and_shares() {
        let share = Fraction::plan(Some(&RuntimeFractionalPercent {
            default_value: FractionalPercent {
                numerator: Some(25),
                denominator: None,
            },
        }));
        let status = StatusCode::FORBIDDEN;

        assert_eq!(Outcome::of(true, status).to_string(), "passes");
        assert_eq!(Outcome::of(false, status).to_string(), "403");
        let partly = Outcome::PartlyRefused(share, status);
        assert_eq!(partly.to_string(), "403 for 25 in 100");
    }

    #[test]
    fn the_mode_is_open_or_closed_only_when_all_of_it_is() {
        let (open, closed) = (Outcome::Passes, Outcome::Refused(StatusCode::FORBIDDEN));
        let of = |not_reached, too_late| OnFailure {
            kind: "ext_proc",
            cluster: "a".into(),
            asked_by: AskedBy::Grpc,
            timeout: None,
            not_reached,
            too_late,
            wrong_answer: not_reached,
            impossible_change: Some(closed),
            notes: Vec::new(),
        };
        assert_eq!(of(open, open).mode(), "fail-open");
        assert_eq!(of(closed, closed).mode(), "fail-closed");
        assert_eq!(of(closed, open).mode(), "partly");
    }
}
