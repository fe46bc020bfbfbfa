//! Rules: what a request must be like.

use std::{net::IpAddr, path::Path};

use attache_filter::matcher::full_match;
use attache_service::config::{Errors, Located};
use ipnet::IpNet;
use regex::Regex;

use super::{
    check::Check,
    condition::Condition,
    config::{Action, PathMatch, Rule as Raw},
    engine::Engine,
    explain::Stage,
    facts::Facts,
    identity::{Caller, claim, says},
    planning::Planning,
    response::Reply,
};

/// A rule, compiled.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) label: String,
    action: Outcome,
    pub(super) response: Option<Reply>,
    methods: Vec<String>,
    paths: Vec<Pattern>,
    hosts: Vec<Host>,
    identity: Option<Vec<usize>>,
    claims: Vec<(String, Vec<String>)>,
    sources: Vec<IpNet>,
    when: Option<Condition>,
}

/// What follows when a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Allow,
    Deny,
    /// The policy of this index decides.
    Ask(usize),
}

/// How a path has to be.
#[derive(Debug)]
pub(super) enum Pattern {
    Exact(String),
    Prefix(String),
    Regex(Regex),
}

/// How a host has to be called.
#[derive(Debug)]
pub(super) enum Host {
    Exact(String),
    /// `.example.com`
    Below(String),
}

impl Rule {
    /// `sources` are the names of the identity sources, `policies` the policies, both in order.
    pub(super) fn plan(
        number: usize,
        raw: &Located<Raw>,
        sources: &[&str],
        policies: &[Engine],
        planning: &mut Planning<'_>,
    ) -> Self {
        let errors = &mut *planning.errors;
        let action = outcome(raw, policies, errors);
        if let (true, Some(response)) = (action != Outcome::Deny, &raw.response) {
            errors.push(response, "only `deny` rules have a response of their own");
        }
        let mut identity = Vec::new();
        for name in &raw.identity {
            match sources.iter().position(|source| *source == name.value) {
                Some(index) => identity.push(index),
                None => errors.push(
                    name,
                    format!("there is no identity source `{}`", name.value),
                ),
            }
        }
        Self {
            label: raw
                .name
                .clone()
                .unwrap_or_else(|| format!("rules[{number}]")),
            action,
            response: raw.response.as_ref().map(|r| Reply::plan(r, 403, errors)),
            methods: raw.methods.iter().map(|m| m.to_ascii_uppercase()).collect(),
            paths: raw
                .paths
                .iter()
                .filter_map(|path| Pattern::plan(path, errors))
                .collect(),
            hosts: raw.hosts.iter().map(|host| Host::plan(host)).collect(),
            identity: (!raw.identity.is_empty()).then_some(identity),
            claims: raw
                .claims
                .iter()
                .map(|(name, wanted)| (name.clone(), wanted.0.clone()))
                .collect(),
            sources: raw
                .sources
                .iter()
                .filter_map(|source| {
                    let net = source
                        .parse()
                        .or_else(|_| source.parse::<IpAddr>().map(IpNet::from));
                    if net.is_err() {
                        errors.push(
                            source,
                            "expected an address or a network such as `10.0.0.0/8`",
                        );
                    }
                    net.ok()
                })
                .collect(),
            when: raw.when.as_ref().and_then(|when| {
                let condition = Condition::new(when);
                condition.map_err(|problem| errors.push(when, problem)).ok()
            }),
        }
    }

    /// What follows for a request; `None` when the rule does not match.
    pub(super) fn follows(&self, facts: &Facts<'_>) -> Option<Outcome> {
        if !self.matches(facts.check, facts.caller) {
            return None;
        }
        let Some(condition) = &self.when else {
            return Some(self.action);
        };
        match condition.holds(facts) {
            Ok(holds) => holds.then_some(self.action),
            Err(problem) => {
                tracing::debug!(rule = self.label, problem, "condition not evaluated");
                facts.check.note(Stage::Rule, &self.label, || {
                    format!("its condition cannot be evaluated: {problem}")
                });
                // Whoever is refused may not get in by making a condition fail.
                (self.action != Outcome::Allow).then_some(Outcome::Deny)
            }
        }
    }

    fn matches(&self, check: &Check<'_>, caller: &Caller) -> bool {
        self.matches_caller(caller)
            && any(
                &self.methods,
                || check.method(),
                |wanted, method| wanted == method,
            )
            && any(&self.paths, || check.path(), Pattern::matches)
            && any(&self.hosts, || check.host(), Host::matches)
            && any(
                &self.sources,
                || check.source_ip(),
                |net, ip| net.contains(&ip),
            )
            && self.claims.iter().all(|(name, wanted)| {
                let claim = caller.claims().and_then(|claims| claim(claims, name));
                claim.is_some_and(|claim| wanted.iter().any(|wanted| says(claim, wanted)))
            })
    }

    fn matches_caller(&self, caller: &Caller) -> bool {
        match &self.identity {
            Some(named) => caller
                .source()
                .is_some_and(|source| named.contains(&source)),
            None => self.action != Outcome::Allow || matches!(caller, Caller::Known(_)),
        }
    }
}

/// What a rule is for.
fn outcome(raw: &Raw, policies: &[Engine], errors: &mut Errors) -> Outcome {
    if let (false, Some(policy)) = (raw.action.value == Action::Ask, &raw.policy) {
        errors.push(policy, "only `ask` rules have a policy");
    }
    match raw.action.value {
        Action::Allow => Outcome::Allow,
        Action::Deny => Outcome::Deny,
        Action::Ask => {
            let known = policies.iter().map(Engine::name);
            let named = match (&raw.policy, policies) {
                (Some(policy), _) => {
                    let index = policies.iter().position(|one| one.name() == policy.value);
                    if index.is_none() {
                        errors.unknown_name(policy, "policy", known);
                    }
                    index
                }
                (None, [_]) => Some(0),
                (None, _) => {
                    let problem = "which policy is asked? name it with `policy`";
                    errors.push(&raw.action, problem);
                    None
                }
            };
            // A configuration with errors decides nothing.
            named.map_or(Outcome::Deny, Outcome::Ask)
        }
    }
}

/// Whether one of `wanted` matches, or nothing is wanted. What is unknown matches nothing.
/// What is not wanted is not looked at.
pub(super) fn any<W, F: Copy>(
    wanted: &[W],
    fact: impl FnOnce() -> Option<F>,
    matches: impl Fn(&W, F) -> bool,
) -> bool {
    wanted.is_empty()
        || fact().is_some_and(|fact| wanted.iter().any(|wanted| matches(wanted, fact)))
}

impl Pattern {
    pub(super) fn plan(raw: &Located<PathMatch>, errors: &mut Errors) -> Option<Self> {
        let (PathMatch::Exact(text) | PathMatch::Prefix(text) | PathMatch::Regex(text)) =
            &raw.value;
        if let PathMatch::Regex(_) = raw.value {
            return match full_match(text) {
                Ok(regex) => Some(Self::Regex(regex)),
                Err(error) => {
                    errors.push(raw, error.to_string());
                    None
                }
            };
        }
        if text != "*" && !Path::new(text).has_root() {
            errors.push(raw, "a path starts with a slash");
        }
        if text.contains('?') {
            errors.push(raw, "rules see the path without the query");
        }
        Some(match &raw.value {
            PathMatch::Prefix(_) => Self::Prefix(text.clone()),
            _ => Self::Exact(text.clone()),
        })
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => path.strip_prefix(prefix.as_str()).is_some_and(|rest| {
                prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/')
            }),
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

impl Host {
    pub(super) fn plan(host: &str) -> Self {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix('*') {
            Some(below) => Self::Below(below.to_owned()),
            None => Self::Exact(host),
        }
    }

    pub(super) fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(exact) => host == exact,
            Self::Below(below) => host.len() > below.len() && host.ends_with(below.as_str()),
        }
    }
}

/// A host as rules compare it: without port and closing dot, lower case.
pub(super) fn host_name(authority: &str) -> String {
    let host = match authority.rsplit_once(':') {
        // Colons within brackets belong to an IPv6 address.
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_whole_segments() {
        let prefix = |p: &str| Pattern::Prefix(p.to_owned());
        for (pattern, path, expected) in [
            (prefix("/admin"), "/admin", true),
            (prefix("/admin"), "/admin/x", true),
            (prefix("/admin"), "/administration", false),
            (prefix("/admin/"), "/admin/x", true),
            (prefix("/admin/"), "/admin", false),
            (prefix("/"), "/anything", true),
            (Pattern::Exact("/a".into()), "/a", true),
            (Pattern::Exact("/a".into()), "/a/", false),
            (
                Pattern::Regex(full_match("/v[0-9]/x").unwrap()),
                "/v1/x",
                true,
            ),
            (
                Pattern::Regex(full_match("/v[0-9]/x").unwrap()),
                "/v1/xy",
                false,
            ),
        ] {
            assert_eq!(pattern.matches(path), expected, "{pattern:?} {path}");
        }
    }

    #[test]
    fn hosts_are_compared_without_port_and_case() {
        for (authority, expected) in [
            ("Example.COM:8080", "example.com"),
            ("example.com.", "example.com"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(host_name(authority), expected);
        }
        let below = Host::Below(".example.com".into());
        assert!(below.matches("a.example.com") && below.matches("a.b.example.com"));
        assert!(!below.matches("example.com") && !below.matches("badexample.com"));
    }
}
