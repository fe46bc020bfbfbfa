//! Rules: what a request must be like.

use std::{net::IpAddr, path::Path};

use attache_filter::matcher::full_match;
use attache_service::config::{Errors, Located};
use ipnet::IpNet;
use regex::Regex;

use super::{
    config::{Action, PathMatch, Rule as Raw},
    identity::{Identity, claim, says},
    plan::Reply,
};

/// Who a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Caller<'a> {
    /// Someone with a credential that holds.
    Known(&'a Identity),
    /// Someone without any credential, let in by the anonymous source of this index.
    Anonymous(usize),
    /// Nobody that any source vouches for.
    Unknown,
}

/// What of a request rules look at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) caller: Caller<'a>,
    pub(super) method: Option<&'a str>,
    /// Canonical.
    pub(super) path: Option<&'a str>,
    /// Lower case, without port.
    pub(super) host: Option<&'a str>,
    pub(super) source: Option<IpAddr>,
}

/// A rule, compiled.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) label: String,
    pub(super) allow: bool,
    pub(super) response: Option<Reply>,
    methods: Vec<String>,
    paths: Vec<Pattern>,
    hosts: Vec<Host>,
    identity: Option<Vec<usize>>,
    claims: Vec<(String, Vec<String>)>,
    sources: Vec<IpNet>,
}

#[derive(Debug)]
enum Pattern {
    Exact(String),
    Prefix(String),
    Regex(Regex),
}

#[derive(Debug)]
enum Host {
    Exact(String),
    /// `.example.com`
    Below(String),
}

impl Rule {
    /// `sources` are the names of the identity sources, in order.
    pub(super) fn plan(
        number: usize,
        raw: &Located<Raw>,
        sources: &[&str],
        errors: &mut Errors,
    ) -> Self {
        let allow = raw.action == Action::Allow;
        if let (true, Some(response)) = (allow, &raw.response) {
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
            allow,
            response: raw.response.as_ref().map(|r| Reply::plan(r, 403, errors)),
            methods: raw.methods.iter().map(|m| m.to_ascii_uppercase()).collect(),
            paths: raw
                .paths
                .iter()
                .filter_map(|path| Pattern::plan(path, errors))
                .collect(),
            hosts: raw
                .hosts
                .iter()
                .map(|host| {
                    let host = host.to_ascii_lowercase();
                    match host.strip_prefix('*') {
                        Some(below) => Host::Below(below.to_owned()),
                        None => Host::Exact(host),
                    }
                })
                .collect(),
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
        }
    }

    pub(super) fn matches(&self, facts: Facts<'_>) -> bool {
        self.matches_caller(facts.caller)
            && any(&self.methods, facts.method, |wanted, method| {
                wanted == method
            })
            && any(&self.paths, facts.path, Pattern::matches)
            && any(&self.hosts, facts.host, Host::matches)
            && any(&self.sources, facts.source, |net, ip| net.contains(&ip))
            && self.claims.iter().all(|(name, wanted)| match facts.caller {
                Caller::Known(identity) => claim(&identity.claims, name)
                    .is_some_and(|claim| wanted.iter().any(|wanted| says(claim, wanted))),
                Caller::Anonymous(_) | Caller::Unknown => false,
            })
    }

    fn matches_caller(&self, caller: Caller<'_>) -> bool {
        let source = match caller {
            Caller::Known(identity) => Some(identity.source),
            Caller::Anonymous(source) => Some(source),
            Caller::Unknown => None,
        };
        match &self.identity {
            Some(named) => source.is_some_and(|source| named.contains(&source)),
            None => !self.allow || matches!(caller, Caller::Known(_)),
        }
    }
}

/// Whether one of `wanted` matches, or nothing is wanted. What is unknown matches nothing.
fn any<W, F: Copy>(wanted: &[W], fact: Option<F>, matches: impl Fn(&W, F) -> bool) -> bool {
    wanted.is_empty() || fact.is_some_and(|fact| wanted.iter().any(|wanted| matches(wanted, fact)))
}

impl Pattern {
    fn plan(raw: &Located<PathMatch>, errors: &mut Errors) -> Option<Self> {
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

    fn matches(&self, path: &str) -> bool {
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
    fn matches(&self, host: &str) -> bool {
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
