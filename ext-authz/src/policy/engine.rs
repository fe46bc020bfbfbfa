//! One check: identity, path, rules, answer.

use std::sync::Arc;

use super::{
    config::HeaderSource,
    identity::{Found, Identity, claim, header_text},
    path::canonical,
    plan::{Decided, Kind, Policy, Reply},
    rule::{Caller, Facts, host_name},
};
use crate::server::{CheckRequestView, Decision};

enum Identified {
    Known(Arc<Identity>),
    Anonymous(usize),
    Unknown,
}

impl Policy {
    /// Decides on one request.
    pub(super) fn decide(&self, request: &CheckRequestView) -> Decision {
        let identified = self.identify(request);
        let caller = match &identified {
            Identified::Known(identity) => Caller::Known(identity),
            Identified::Anonymous(source) => Caller::Anonymous(*source),
            Identified::Unknown => Caller::Unknown,
        };
        // CONNECT has an empty path, a TCP connection none: nothing for path rules to match.
        let path = match request.path().filter(|path| !path.is_empty()) {
            None => None,
            Some(path) => match canonical(path, self.reading) {
                Ok(path) => Some(path),
                Err(ambiguous) => {
                    self.count(caller, false);
                    tracing::debug!(%ambiguous, "denied");
                    let body = format!("{ambiguous}\n");
                    return Decision::deny(400)
                        .body(body)
                        .reason("ambiguous path")
                        .into();
                }
            },
        };
        let host = request.host().map(host_name);
        let facts = Facts {
            caller,
            method: request.method(),
            path: path.as_deref(),
            host: host.as_deref(),
            source: request
                .source_address()
                .map(|source| source.ip().to_canonical()),
        };
        let rule = self.rules.iter().find(|rule| rule.matches(facts));
        let allow = rule.is_some_and(|rule| rule.allow);
        self.count(caller, allow);
        tracing::debug!(
            source = self.source_name(caller),
            rule = rule.map_or("none", |rule| &rule.label),
            "{}",
            if allow { "allowed" } else { "denied" }
        );
        if allow {
            return self.allow(caller);
        }
        match (rule, caller) {
            (Some(rule), _) => deny(rule.response.as_ref().unwrap_or(&self.denied), &rule.label),
            (None, Caller::Known(_)) => deny(&self.denied, "no rule allows it"),
            (None, Caller::Anonymous(_) | Caller::Unknown) => {
                deny(&self.unauthenticated, "no identity")
            }
        }
    }

    /// Asks the sources in order. A credential that does not hold is no reason to stop, since
    /// another source may know it, but it rules out anonymous access.
    fn identify(&self, request: &CheckRequestView) -> Identified {
        let mut bad = false;
        for (index, source) in self.sources.iter().enumerate() {
            let found = match &source.kind {
                Kind::Keys(keys) => keys.identify(request),
                Kind::Tokens(tokens) => tokens.identify(request),
                Kind::Anonymous if bad => continue,
                Kind::Anonymous => return Identified::Anonymous(index),
            };
            match found {
                Found::Nothing => {}
                Found::Good(identity) => return Identified::Known(identity),
                Found::Bad(reason) => {
                    source.refused.inc();
                    tracing::debug!(source = source.name, reason, "credential refused");
                    bad = true;
                }
            }
        }
        Identified::Unknown
    }

    fn allow(&self, caller: Caller<'_>) -> Decision {
        let mut decision = Decision::allow();
        for (name, source) in &self.upstream_headers {
            decision = match self.header_value(source, caller) {
                Some(value) => decision.set(name, value),
                None => decision.remove(name),
            };
        }
        for (name, source) in &self.client_headers {
            if let Some(value) = self.header_value(source, caller) {
                decision = decision.response_replace(name, value);
            }
        }
        decision.into()
    }

    fn header_value(&self, source: &HeaderSource, caller: Caller<'_>) -> Option<String> {
        match (source, caller) {
            (HeaderSource::Value(value), _) => Some(value.clone()),
            (HeaderSource::Source(_), _) => Some(self.source_name(caller).to_owned()),
            (HeaderSource::Claim(name), Caller::Known(identity)) => {
                header_text(claim(&identity.claims, name)?)
            }
            (HeaderSource::Claim(_), Caller::Anonymous(_) | Caller::Unknown) => None,
        }
    }

    fn source(&self, caller: Caller<'_>) -> Option<&super::plan::Source> {
        match caller {
            Caller::Known(identity) => self.sources.get(identity.source),
            Caller::Anonymous(source) => self.sources.get(source),
            Caller::Unknown => None,
        }
    }

    fn source_name(&self, caller: Caller<'_>) -> &str {
        self.source(caller).map_or("none", |source| &source.name)
    }

    fn count(&self, caller: Caller<'_>, allow: bool) {
        let decided: &Decided = self
            .source(caller)
            .map_or(&self.unknown, |source| &source.decided);
        if allow {
            decided.allowed.inc();
        } else {
            decided.denied.inc();
        }
    }
}

fn deny(reply: &Reply, reason: &str) -> Decision {
    let decision = Decision::deny(reply.status)
        .body(&reply.body)
        .reason(reason);
    let headers = reply.headers.iter();
    headers
        .fold(decision, |decision, (name, value)| {
            decision.header(name, value)
        })
        .into()
}
