//! What upstream and client are told.

use std::collections::BTreeMap;

use attache_service::config::{Errors, Located, Spanned};
use http::{HeaderName, HeaderValue};
use serde_json::Value;

use super::{
    condition::Expression,
    config::{self, HeaderSource, ValueSource},
    facts::Facts,
    hide::Hidden,
    identity::{claim, header_text},
    template::Template,
    wristband::Wristband,
};
use crate::server::{Allow, Decision, Deny};

/// An answer to the client, checked.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: String,
    pub(super) headers: Vec<(String, String)>,
    redirect: Option<Template>,
}

/// The status in place of a redirect that leads nowhere.
const NO_REDIRECT: u16 = 403;

impl Reply {
    pub(super) fn plan(raw: &Located<config::Reply>, default: u16, errors: &mut Errors) -> Self {
        let default = if raw.redirect.is_some() { 302 } else { default };
        let status = raw.status.unwrap_or(default);
        if !(200..600).contains(&status) {
            errors.push(raw, format!("{status} is not a status from 200 to 599"));
        }
        let body = raw.body.clone().unwrap_or_default();
        if matches!(status, 204 | 304) && !body.is_empty() {
            errors.push(raw, format!("an answer with status {status} has no body"));
        }
        let mut headers = Vec::new();
        for (name, value) in &raw.headers {
            match settable(name) {
                Ok(name) => headers.push((name, value.clone())),
                Err(problem) => errors.push(raw, problem),
            }
            if HeaderValue::from_bytes(value.as_bytes()).is_err() {
                errors.push(raw, format!("the value of `{name}` cannot be a header's"));
            }
        }
        let redirect = raw.redirect.as_ref().and_then(|target| {
            if !(300..400).contains(&status) {
                errors.push(
                    target,
                    format!("an answer with status {status} redirects nobody"),
                );
            }
            if headers.iter().any(|(name, _)| name == "location") {
                errors.push(target, "`location` is among the `headers` already");
            }
            let template = Template::new(target);
            template
                .map_err(|problem| errors.push(target, problem))
                .ok()
        });
        Self {
            status,
            body,
            headers,
            redirect,
        }
    }

    /// Says how to do better, unless it says so already or is no 401.
    pub(super) fn challenge(&mut self, challenge: &str) {
        let name = http::header::WWW_AUTHENTICATE.as_str();
        if self.status == 401 && !self.headers.iter().any(|(header, _)| header == name) {
            self.headers.push((name.to_owned(), challenge.to_owned()));
        }
    }

    pub(super) fn new(status: u16) -> Self {
        Self {
            status,
            body: String::new(),
            headers: Vec::new(),
            redirect: None,
        }
    }

    /// The denial that answers with this. It stays one when there is no telling where to send the
    /// client: nobody gets in by making a redirect fail.
    pub(super) fn decision(&self, facts: &Facts<'_>, reason: &str) -> Deny {
        let decision = self.begin(facts).body(&self.body).reason(reason);
        let headers = self.headers.iter();
        headers.fold(decision, |decision, (name, value)| {
            decision.header(name, value)
        })
    }

    /// Status and `location`.
    pub(super) fn begin(&self, facts: &Facts<'_>) -> Deny {
        let Some(target) = &self.redirect else {
            return Decision::deny(self.status);
        };
        match target.fill(facts) {
            Ok(location) => Decision::deny(self.status).header("location", location),
            Err(problem) => {
                tracing::warn!(
                    problem,
                    "a redirect leads nowhere, the client is answered 403"
                );
                Decision::deny(NO_REDIRECT)
            }
        }
    }
}

/// A header name that a policy may set, in lower case.
pub(super) fn settable(name: &str) -> Result<String, String> {
    let parsed = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| format!("`{name}` is not a header name"))?;
    if crate::client::answer::is_framing(&parsed) || parsed == http::header::HOST {
        return Err(format!("`{name}` cannot be set by a policy"));
    }
    Ok(parsed.as_str().to_owned())
}

/// Where a value comes from, checked.
#[derive(Debug)]
pub(super) enum Source {
    Claim(String),
    Name,
    Value(Value),
    Expression(Expression),
}

impl Source {
    pub(super) fn of_value(raw: &Located<ValueSource>, errors: &mut Errors) -> Self {
        match &raw.value {
            ValueSource::Claim(name) => Self::Claim(name.clone()),
            ValueSource::Source(_) => Self::Name,
            ValueSource::Value(value) => Self::Value(value.clone()),
            ValueSource::Expression(text) => Self::of_expression(text, raw, errors),
        }
    }

    fn of_header(name: &str, raw: &Located<HeaderSource>, errors: &mut Errors) -> Self {
        match &raw.value {
            HeaderSource::Claim(name) => Self::Claim(name.clone()),
            HeaderSource::Source(_) => Self::Name,
            HeaderSource::Value(value) => {
                if HeaderValue::from_bytes(value.as_bytes()).is_err() {
                    errors.push(raw, format!("the value of `{name}` cannot be a header's"));
                }
                Self::Value(value.as_str().into())
            }
            HeaderSource::Expression(text) => Self::of_expression(text, raw, errors),
        }
    }

    fn of_expression(text: &str, at: &impl Spanned, errors: &mut Errors) -> Self {
        match Expression::new(text) {
            Ok(expression) => Self::Expression(expression),
            Err(problem) => {
                errors.push(at, problem);
                Self::Value(Value::Null)
            }
        }
    }

    /// The value; `None` when there is none.
    pub(super) fn value(&self, facts: &Facts<'_>) -> Option<Value> {
        match self {
            Self::Claim(name) => claim(facts.caller.claims()?, name).cloned(),
            Self::Name => Some(facts.source.into()),
            Self::Value(value) => Some(value.clone()),
            Self::Expression(expression) => expression.value(facts).ok(),
        }
    }

    /// The value as a header has it.
    fn text(&self, facts: &Facts<'_>) -> Option<String> {
        match self {
            Self::Claim(name) => header_text(claim(facts.caller.claims()?, name)?),
            _ => header_text(&self.value(facts)?),
        }
    }
}

/// Headers to set, checked.
fn headers(
    raw: &BTreeMap<String, Located<HeaderSource>>,
    errors: &mut Errors,
) -> Vec<(String, Source)> {
    let mut headers = Vec::new();
    for (name, raw) in raw {
        let source = Source::of_header(name, raw, errors);
        match settable(name) {
            Ok(name) => headers.push((name, source)),
            Err(problem) => errors.push(raw, problem),
        }
    }
    headers
}

/// What goes along with an allowed request and its response.
#[derive(Debug)]
pub(super) struct Shaping {
    upstream_headers: Vec<(String, Source)>,
    client_headers: Vec<(String, Source)>,
    dynamic_metadata: Vec<(String, Source)>,
    hidden: Hidden,
}

impl Shaping {
    pub(super) fn plan(
        upstream_headers: &BTreeMap<String, Located<HeaderSource>>,
        client_headers: &BTreeMap<String, Located<HeaderSource>>,
        dynamic_metadata: &BTreeMap<String, Located<ValueSource>>,
        hidden: Hidden,
        errors: &mut Errors,
    ) -> Self {
        Self {
            upstream_headers: headers(upstream_headers, errors),
            client_headers: headers(client_headers, errors),
            dynamic_metadata: dynamic_metadata
                .iter()
                .map(|(name, raw)| (name.clone(), Source::of_value(raw, errors)))
                .collect(),
            hidden,
        }
    }

    /// The decision to let a request pass; what stands here wins over what is `decided` already.
    ///
    /// # Errors
    /// When the wristband cannot be made.
    pub(super) fn allow(
        &self,
        decided: Allow,
        facts: &Facts<'_>,
        wristband: Option<&Wristband>,
    ) -> Result<Decision, String> {
        let mut decision = decided;
        if let Some(wristband) = wristband {
            let token = wristband.token(facts)?;
            decision = said(decision, wristband.header(), token);
        }
        for (name, source) in &self.upstream_headers {
            decision = said(decision, name, source.text(facts));
        }
        for (name, source) in &self.client_headers {
            if let Some(value) = source.text(facts) {
                decision = decision.response_take_back(name);
                decision = decision.response_replace(name, value);
            }
        }
        for (name, source) in &self.dynamic_metadata {
            if let Some(value) = source.value(facts) {
                decision = decision.metadata_field(name, &value);
            }
        }
        Ok(self.hidden.hide(facts.check, decision).into())
    }
}

/// With a request header as the settings have it, whatever the client or a policy said there.
fn said(decision: Allow, name: &str, value: Option<String>) -> Allow {
    let decision = decision.take_back(name);
    match value {
        Some(value) => decision.set(name, value),
        None => decision.remove(name),
    }
}
