//! What would be decided on a request, and why: for people who write policies.

use std::fmt;

use attache_proto::{
    auth::{CheckResponse, check_response::HttpResponse},
    core::HeaderValueOption,
};
use attache_service::time::rfc3339;
use serde::Serialize;
use serde_json::Value;

use super::{
    explain::Step,
    log::is_secret_header,
    plan::{Settled, stays},
};
use crate::server::CheckRequestView;

/// Why a request would be decided on as it would be. Shown as text, or as JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// What would be decided.
    pub outcome: Outcome,
    /// The status of a denial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why: of a denial the reason that the proxy's log gets, of an error what went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The pipeline that took the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
    /// The identity source that vouches for the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What that source says of the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims: Option<Value>,
    /// The rule that matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The policy that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What each stage found, in order.
    pub steps: Vec<Step>,
    /// The parts of the request that the decision looked at.
    pub reads: Vec<String>,
    /// When the decision would end by itself, as with a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Whether and how long the decision would be kept for requests like this.
    pub kept: String,
    /// What upstream and client would get.
    pub effects: Vec<Effect>,
}

/// What would be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The request may pass.
    Allow,
    /// The client is answered.
    Deny,
    /// No decision can be reached; the proxy's failure mode applies.
    Error,
}

/// One thing that upstream or client would get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Effect {
    /// What is done.
    pub what: &'static str,
    /// To which header or parameter.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The value; credentials are masked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl Explanation {
    pub(super) fn new(settled: &Settled<'_>, request: &CheckRequestView) -> Self {
        let account = settled.account();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let mut explanation = Self {
            outcome: Outcome::Error,
            status: None,
            reason: None,
            pipeline: owned(account.pipeline),
            source: owned(account.source),
            claims: account.claims.cloned(),
            rule: owned(account.rule),
            policy: account.policy.map(|policy| policy.name().to_owned()),
            steps: account.steps.to_vec(),
            reads: account
                .reads
                .into_iter()
                .flatten()
                .map(ToString::to_string)
                .collect(),
            until: account.until.map(rfc3339),
            kept: stays(settled),
            effects: Vec::new(),
        };
        match account.result {
            Err(error) => explanation.reason = Some(error.to_string()),
            Ok(decision) => {
                explanation.status = decision.status();
                explanation.reason = owned(decision.reason());
                match decision.clone().into_response(request) {
                    Ok(response) => {
                        explanation.outcome = match decision.is_allow() {
                            true => Outcome::Allow,
                            false if decision.is_error() => Outcome::Error,
                            false => Outcome::Deny,
                        };
                        explanation.effects = effects(response);
                    }
                    Err(error) => {
                        explanation.reason = Some(format!("the decision cannot be sent: {error}"));
                    }
                }
            }
        }
        explanation
    }
}

fn effects(response: CheckResponse) -> Vec<Effect> {
    let named = |what: &'static str, name: String, value: Option<String>| {
        let secret = value.is_some() && is_secret_header(&name);
        let value = if secret {
            Some("(masked)".to_owned())
        } else {
            value
        };
        Effect { what, name, value }
    };
    let header = |what: &'static str, option: HeaderValueOption| {
        let header = option.header.unwrap_or_default();
        let value = match header.raw_value.is_empty() {
            true => header.value,
            false => String::from_utf8_lossy(&header.raw_value).into_owned(),
        };
        named(what, header.key, Some(value))
    };
    let mut effects = Vec::new();
    match response.http_response {
        Some(HttpResponse::OkResponse(ok)) => {
            effects.extend(ok.headers.into_iter().map(|option| {
                let joins = option.append.unwrap_or(false);
                let what = if joins {
                    "join request header"
                } else {
                    "set request header"
                };
                header(what, option)
            }));
            let removed = ok.headers_to_remove.into_iter();
            effects.extend(removed.map(|name| named("remove request header", name, None)));
            let set = ok.query_parameters_to_set.into_iter();
            effects.extend(set.map(|one| named("set query parameter", one.key, Some(one.value))));
            let removed = ok.query_parameters_to_remove.into_iter();
            effects.extend(removed.map(|name| named("remove query parameter", name, None)));
            let answered = ok.response_headers_to_add.into_iter();
            effects.extend(answered.map(|option| header("response header", option)));
        }
        Some(HttpResponse::DeniedResponse(denied)) => {
            let answered = denied.headers.into_iter();
            effects.extend(answered.map(|option| header("response header", option)));
            if !denied.body.is_empty() {
                effects.push(named("response body", String::new(), Some(denied.body)));
            }
        }
        _ => {}
    }
    effects
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.outcome, self.status) {
            (Outcome::Allow, _) => f.write_str("ALLOW")?,
            (Outcome::Deny, Some(status)) => write!(f, "DENY with {status}")?,
            (Outcome::Deny, None) => f.write_str("DENY")?,
            (Outcome::Error, _) => f.write_str("ERROR: no decision")?,
        }
        if let Some(reason) = &self.reason {
            write!(f, " ({reason})")?;
        }
        f.write_str("\n\nSteps:\n")?;
        for step in &self.steps {
            writeln!(f, "  {step}")?;
        }
        if let Some(claims) = &self.claims {
            writeln!(f, "Claims: {claims}")?;
        }
        writeln!(f, "Looked at: {}", self.reads.join(", "))?;
        if let Some(until) = &self.until {
            writeln!(f, "Holds until: {until}")?;
        }
        writeln!(f, "Kept: {}", self.kept)?;
        if !self.effects.is_empty() {
            f.write_str("Effects:\n")?;
        }
        for Effect { what, name, value } in &self.effects {
            write!(f, "  {what}")?;
            if !name.is_empty() {
                write!(f, " {name}")?;
            }
            if let Some(value) = value {
                write!(f, ": {value}")?;
            }
            f.write_str("\n")?;
        }
        Ok(())
    }
}
