//! The routes of listeners.

use std::{collections::HashMap, sync::Arc};

use attache_filter::head;
use http::request;

use super::{Action, RouteEntry, RouteMatch, Split};

/// The routes of listeners, compiled.
#[derive(Debug, Default)]
pub struct RouteTable {
    hosts: Vec<VirtualHost>,
    exact: HashMap<String, usize>,
    /// `*.example.com`, without the star; longest first.
    suffixes: Vec<(String, usize)>,
    /// `example.*`, without the star; longest first.
    prefixes: Vec<(String, usize)>,
    any: Option<usize>,
    upgrades: Vec<String>,
    connects: bool,
    redirects_internally: bool,
}

/// Routes for some domains.
#[derive(Debug)]
pub struct VirtualHost {
    /// Name for logs and errors.
    pub name: String,
    /// `example.com`, `*.example.com`, `example.*` or `*`.
    pub domains: Vec<String>,
    /// In order: the first that matches is taken.
    pub routes: Vec<Rule>,
}

/// A route as it is written.
#[derive(Debug)]
pub enum Rule {
    /// The same for all requests.
    One(Arc<RouteEntry>),
    /// One of several, as the request is.
    Split(Box<Split>),
}

impl Rule {
    fn matches(&self) -> &RouteMatch {
        match self {
            Self::One(entry) => &entry.matches,
            Self::Split(split) => &split.matches,
        }
    }

    /// All routes that it stands for.
    fn entries(&self) -> Vec<&Arc<RouteEntry>> {
        match self {
            Self::One(entry) => vec![entry],
            Self::Split(split) => split.choice.entries(),
        }
    }
}

impl VirtualHost {
    /// All routes that a request may take.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<RouteEntry>> {
        self.routes.iter().flat_map(Rule::entries)
    }
}

impl RouteTable {
    /// A table of these virtual hosts. A domain given twice belongs to the first.
    pub fn new(hosts: Vec<VirtualHost>) -> Self {
        let mut table = Self::default();
        for (index, host) in hosts.iter().enumerate() {
            for domain in &host.domains {
                let domain = domain.to_ascii_lowercase();
                if domain == "*" {
                    table.any.get_or_insert(index);
                } else if let Some(suffix) = domain.strip_prefix('*') {
                    table.suffixes.push((suffix.to_owned(), index));
                } else if let Some(prefix) = domain.strip_suffix('*') {
                    table.prefixes.push((prefix.to_owned(), index));
                } else {
                    table.exact.entry(domain).or_insert(index);
                }
            }
        }
        let longest_first =
            |(a, _): &(String, usize), (b, _): &(String, usize)| b.len().cmp(&a.len());
        table.suffixes.sort_by(longest_first);
        table.prefixes.sort_by(longest_first);
        let forwards = hosts.iter().flat_map(VirtualHost::entries);
        for entry in forwards {
            if let Action::Forward(forward) = &entry.action {
                let allowed = forward.upgrades.iter().filter(|(_, allowed)| *allowed);
                table.upgrades.extend(allowed.map(|(name, _)| name.clone()));
                table.connects |= forward.connect;
                table.redirects_internally |= forward.internal_redirect.is_some();
            }
        }
        table.hosts = hosts;
        table
    }

    /// `Upgrade` protocols that some route lets through.
    pub(crate) fn upgrades(&self) -> &[String] {
        &self.upgrades
    }

    /// Whether some route takes `CONNECT`.
    pub(crate) fn connects(&self) -> bool {
        self.connects
    }

    /// Whether some route follows redirects of its upstream.
    pub(crate) fn redirects_internally(&self) -> bool {
        self.redirects_internally
    }

    /// One virtual host for all domains.
    pub fn of(routes: Vec<RouteEntry>) -> Self {
        Self::new(vec![VirtualHost {
            name: "default".to_owned(),
            domains: vec!["*".to_owned()],
            routes: routes.into_iter().map(Arc::new).map(Rule::One).collect(),
        }])
    }

    /// The virtual hosts, in configuration order.
    pub fn hosts(&self) -> &[VirtualHost] {
        &self.hosts
    }

    /// The route of a request with this number; always the same for the same number.
    pub fn pick(&self, parts: &request::Parts, id: u64) -> Option<&Arc<RouteEntry>> {
        let host = self.hosts.get(self.host(parts)?)?;
        let mut rules = host.routes.iter();
        match rules.find(|rule| rule.matches().test(parts))? {
            Rule::One(entry) => Some(entry),
            Rule::Split(split) => split.choice.pick(parts, id),
        }
    }

    fn host(&self, parts: &request::Parts) -> Option<usize> {
        if self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty() {
            return self.any;
        }
        let (name, _) = split_port(head::authority(parts).unwrap_or_default());
        let name = name.to_ascii_lowercase();
        let by_pattern = || {
            let suffix = self
                .suffixes
                .iter()
                .find(|(suffix, _)| name.len() > suffix.len() && name.ends_with(suffix.as_str()));
            let prefix = || {
                self.prefixes.iter().find(|(prefix, _)| {
                    name.len() > prefix.len() && name.starts_with(prefix.as_str())
                })
            };
            suffix.or_else(prefix).map(|(_, index)| *index)
        };
        self.exact
            .get(&name)
            .copied()
            .or_else(by_pattern)
            .or(self.any)
    }
}

/// Host and port of an authority; the brackets of an IPv6 address stay.
pub(super) fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (name, Some(port))
        }
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use attache_filter::Route;

    use super::*;
    use crate::route::{Forward, PathMatch};

    fn parts(host: &str, target: &str) -> request::Parts {
        http::Request::builder()
            .uri(target)
            .header("host", host)
            .body(())
            .unwrap()
            .into_parts()
            .0
    }

    fn entry(name: &str, path: PathMatch) -> Rule {
        let route = Route {
            name: name.to_owned(),
            ..Route::default()
        };
        Rule::One(Arc::new(RouteEntry::new(
            RouteMatch::path(path),
            Action::Forward(Forward::to(0)),
            Arc::new(route),
        )))
    }

    fn table(hosts: &[(&str, &[&str])]) -> RouteTable {
        RouteTable::new(
            hosts
                .iter()
                .map(|(name, domains)| VirtualHost {
                    name: (*name).to_owned(),
                    domains: domains.iter().map(|d| (*d).to_owned()).collect(),
                    routes: vec![entry(name, PathMatch::Prefix("/".to_owned()))],
                })
                .collect(),
        )
    }

    #[test]
    fn the_most_specific_domain_wins_whatever_the_order() {
        let table = table(&[
            ("any", &["*"]),
            ("short", &["*.com"]),
            ("long", &["*.example.com"]),
            ("front", &["api.*"]),
            ("exact", &["www.example.com", "[::1]"]),
        ]);
        for (host, wanted) in [
            ("www.example.com", "exact"),
            ("WWW.Example.com:8080", "exact"),
            ("[::1]:80", "exact"),
            ("a.b.example.com", "long"),
            ("example.com", "short"),
            ("api.example.org", "front"),
            ("api.example.com", "long"),
            ("other", "any"),
            ("", "any"),
        ] {
            let found = table.pick(&parts(host, "/"), 0).unwrap();
            assert_eq!(found.route.name, wanted, "{host}");
        }
    }

    #[test]
    fn there_is_no_fallback_to_another_virtual_host() {
        let table = RouteTable::new(vec![
            VirtualHost {
                name: "a".to_owned(),
                domains: vec!["a".to_owned()],
                routes: vec![entry("a", PathMatch::Exact("/x".to_owned()))],
            },
            VirtualHost {
                name: "any".to_owned(),
                domains: vec!["*".to_owned()],
                routes: vec![entry("any", PathMatch::Prefix("/".to_owned()))],
            },
        ]);
        assert!(table.pick(&parts("a", "/y"), 0).is_none());
        assert!(table.pick(&parts("b", "/y"), 0).is_some());
    }
}
