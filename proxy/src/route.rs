//! Picking the route of a request: virtual host by name, then the first route that matches.
//!
//! The rules are Envoy's (`config.route.v3`): an exact domain wins over `*.suffix`, that over
//! `prefix.*`, that over `*`, longer ones first; within a virtual host the order of the routes
//! decides. Ports in `host` are ignored, as with `ignore_port_in_host_matching`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use attache_filter::{Route, head};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request, uri::PathAndQuery};
use regex::Regex;

pub use crate::internal_redirect::InternalRedirect;
use crate::retry::Retry;

/// All routes of the proxy, compiled.
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
    pub routes: Vec<Arc<RouteEntry>>,
}

/// One route.
#[derive(Debug)]
pub struct RouteEntry {
    /// Which requests it is for.
    pub matches: RouteMatch,
    /// What is done with them.
    pub action: Action,
    /// What the policy layers may know of the route, with their per-route settings.
    pub route: Arc<Route>,
}

/// Which requests a route is for (`RouteMatch`).
#[derive(Debug)]
pub struct RouteMatch {
    /// Test of the path, without the query.
    pub path: PathMatch,
    /// All of these must hold (`headers`).
    pub headers: Vec<HeaderTest>,
}

/// Test of the path.
#[derive(Debug)]
pub enum PathMatch {
    /// The path starts with this (`prefix`).
    Prefix(String),
    /// The path is this (`path`).
    Exact(String),
    /// The path is this, or goes on with a slash (`path_separated_prefix`).
    Separated(String),
    /// The whole path matches (`safe_regex`).
    Regex(Regex),
    /// Any `CONNECT`, which nothing else matches (`connect_matcher`).
    Connect,
}

/// A compiled header matcher.
pub struct HeaderTest(Box<dyn Fn(&request::Parts) -> bool + Send + Sync>);

/// What is done with a request.
#[derive(Debug)]
pub enum Action {
    /// Sent to a cluster (`route`).
    Forward(Forward),
    /// Answered here (`direct_response`).
    Direct(DirectResponse),
    /// Sent elsewhere (`redirect`).
    Redirect(Redirect),
}

/// Where and how to forward (`RouteAction`).
#[derive(Debug)]
pub struct Forward {
    /// Index of the cluster in [`crate::Plan::clusters`].
    pub cluster: usize,
    /// From the end of the request to the end of the response. Default 15 s; `None` is forever.
    pub timeout: Option<Duration>,
    /// Longest silence of a stream. Default 5 min; `None` is forever.
    pub idle_timeout: Option<Duration>,
    /// Replaces what the path matched.
    pub prefix_rewrite: Option<String>,
    /// Replaces the host.
    pub host_rewrite: Option<HeaderValue>,
    /// `Upgrade` protocols, lower case, that are let through here or not, whatever the listener
    /// says (`upgrade_configs`).
    pub upgrades: Vec<(String, bool)>,
    /// `CONNECT` ends here, and its tunnel goes to the cluster over TCP (`upgrade_configs` with
    /// a `connect_config`).
    pub connect: bool,
    /// When a request is sent again (`retry_policy`).
    pub retry: Option<Box<Retry>>,
    /// Redirects of the upstream that are followed here (`internal_redirect_policy`).
    pub internal_redirect: Option<Box<InternalRedirect>>,
    expected_ms: Option<HeaderValue>,
}

/// Envoy's route timeout.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy's stream idle timeout.
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

impl Forward {
    /// To a cluster, with Envoy's defaults.
    pub fn to(cluster: usize) -> Self {
        Self {
            cluster,
            timeout: None,
            idle_timeout: Some(DEFAULT_IDLE_TIMEOUT),
            prefix_rewrite: None,
            host_rewrite: None,
            upgrades: Vec::new(),
            connect: false,
            retry: None,
            internal_redirect: None,
            expected_ms: None,
        }
        .with_timeout(Some(DEFAULT_TIMEOUT))
    }

    /// Sets the timeout, and with it the `x-envoy-expected-rq-timeout-ms` for the upstream.
    pub fn with_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout.filter(|timeout| !timeout.is_zero());
        self.expected_ms = self
            .timeout
            .and_then(|timeout| u64::try_from(timeout.as_millis()).ok())
            .map(HeaderValue::from);
        self
    }

    pub(crate) fn expected_ms(&self) -> Option<&HeaderValue> {
        self.expected_ms.as_ref()
    }

    /// The path for the upstream, when `prefix_rewrite` changes it.
    pub(crate) fn rewritten(
        &self,
        matches: &RouteMatch,
        target: &PathAndQuery,
    ) -> Option<PathAndQuery> {
        let replacement = self.prefix_rewrite.as_deref()?;
        let matched = match &matches.path {
            PathMatch::Prefix(text) | PathMatch::Exact(text) | PathMatch::Separated(text) => {
                text.len()
            }
            PathMatch::Regex(_) | PathMatch::Connect => return None,
        };
        let rest = target.as_str().get(matched..).unwrap_or_default();
        let mut path = String::with_capacity(replacement.len() + rest.len() + 1);
        path.push_str(replacement);
        if path.is_empty() && !rest.starts_with('/') {
            path.push('/');
        }
        path.push_str(rest);
        PathAndQuery::try_from(path).ok()
    }
}

/// A fixed answer (`DirectResponseAction`).
#[derive(Debug)]
pub struct DirectResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its body; empty for none.
    pub body: Bytes,
}

/// A redirect (`RedirectAction`).
#[derive(Debug)]
pub struct Redirect {
    /// 301 by default.
    pub status: StatusCode,
    /// `https_redirect` or `scheme_redirect`.
    pub scheme: Option<String>,
    /// `host_redirect`.
    pub host: Option<String>,
    /// `port_redirect`.
    pub port: Option<u16>,
    /// `path_redirect`, which may carry its own query.
    pub path: Option<String>,
    /// `prefix_rewrite`.
    pub prefix_rewrite: Option<String>,
    /// `strip_query`.
    pub strip_query: bool,
}

impl Default for Redirect {
    fn default() -> Self {
        Self {
            status: StatusCode::MOVED_PERMANENTLY,
            scheme: None,
            host: None,
            port: None,
            path: None,
            prefix_rewrite: None,
            strip_query: false,
        }
    }
}

impl Redirect {
    /// The `location` for a request that came with `scheme`.
    pub(crate) fn location(
        &self,
        matches: &RouteMatch,
        parts: &request::Parts,
        scheme: &str,
    ) -> Option<HeaderValue> {
        let authority = head::authority(parts).unwrap_or_default();
        let (name, port) = split_port(authority);
        let new_scheme = self.scheme.as_deref().unwrap_or(scheme);
        let mut location = format!("{new_scheme}://{}", self.host.as_deref().unwrap_or(name));
        match self.port {
            Some(port) => location.push_str(&format!(":{port}")),
            // The port of the old scheme means nothing to the new one.
            None if self.host.is_none() && new_scheme == scheme => {
                if let Some(port) = port {
                    location.push(':');
                    location.push_str(port);
                }
            }
            None => {}
        }
        let target = parts.uri.path_and_query();
        let old = target.map_or("/", PathAndQuery::path);
        let query = target
            .and_then(PathAndQuery::query)
            .filter(|_| !self.strip_query);
        match (&self.path, &self.prefix_rewrite, &matches.path) {
            (Some(path), _, _) => location.push_str(path),
            (
                None,
                Some(replacement),
                PathMatch::Prefix(text) | PathMatch::Exact(text) | PathMatch::Separated(text),
            ) => {
                location.push_str(replacement);
                location.push_str(old.get(text.len()..).unwrap_or_default());
            }
            _ => location.push_str(old),
        }
        if let Some(query) = query
            && !self.path.as_deref().is_some_and(|path| path.contains('?'))
        {
            location.push('?');
            location.push_str(query);
        }
        HeaderValue::try_from(location).ok()
    }
}

impl HeaderTest {
    /// A test from a function.
    pub fn new(test: impl Fn(&request::Parts) -> bool + Send + Sync + 'static) -> Self {
        Self(Box::new(test))
    }
}

impl std::fmt::Debug for HeaderTest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeaderTest")
    }
}

impl PathMatch {
    fn test(&self, path: &str) -> bool {
        match self {
            Self::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Self::Exact(exact) => path == exact,
            Self::Separated(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Regex(regex) => regex
                .find(path)
                .is_some_and(|found| found.len() == path.len()),
            Self::Connect => false,
        }
    }
}

impl RouteEntry {
    /// Whether the route lets a request with these headers go on: it asks for no upgrade, or for
    /// one that the route lets through.
    pub(crate) fn lets_upgrade(&self, headers: &HeaderMap, listed: &[String]) -> bool {
        let Some(protocol) = headers.get(header::UPGRADE) else {
            return true;
        };
        let protocol = protocol.to_str().unwrap_or_default().trim();
        self.upgrades_to(&protocol.to_ascii_lowercase(), listed)
    }

    /// Whether the route lets a request upgrade to `protocol`, on a listener that does so for
    /// `listed`.
    pub(crate) fn upgrades_to(&self, protocol: &str, listed: &[String]) -> bool {
        let own = match &self.action {
            Action::Forward(forward) => forward.upgrades.iter(),
            Action::Direct(_) | Action::Redirect(_) => [].iter(),
        };
        own.rev()
            .find(|(name, _)| name == protocol)
            .map_or_else(|| listed.iter().any(|l| l == protocol), |(_, on)| *on)
    }
}

impl RouteMatch {
    /// Any header, this path.
    pub fn path(path: PathMatch) -> Self {
        Self {
            path,
            headers: Vec::new(),
        }
    }

    fn test(&self, parts: &request::Parts) -> bool {
        let path = match parts.method {
            Method::CONNECT => matches!(self.path, PathMatch::Connect),
            _ => self.path.test(parts.uri.path()),
        };
        path && self.headers.iter().all(|test| (test.0)(parts))
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
        let forwards = hosts.iter().flat_map(|host| &host.routes);
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
            routes: routes.into_iter().map(Arc::new).collect(),
        }])
    }

    /// The virtual hosts, in configuration order.
    pub fn hosts(&self) -> &[VirtualHost] {
        &self.hosts
    }

    /// The route of a request.
    pub fn pick(&self, parts: &request::Parts) -> Option<&Arc<RouteEntry>> {
        let host = self.hosts.get(self.host(parts)?)?;
        host.routes.iter().find(|route| route.matches.test(parts))
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
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (name, Some(port))
        }
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(host: &str, target: &str) -> request::Parts {
        http::Request::builder()
            .uri(target)
            .header("host", host)
            .body(())
            .unwrap()
            .into_parts()
            .0
    }

    fn entry(name: &str, path: PathMatch) -> Arc<RouteEntry> {
        Arc::new(RouteEntry {
            matches: RouteMatch::path(path),
            action: Action::Forward(Forward::to(0)),
            route: Arc::new(Route {
                name: name.to_owned(),
                ..Route::default()
            }),
        })
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
            let found = table.pick(&parts(host, "/")).unwrap();
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
        assert!(table.pick(&parts("a", "/y")).is_none());
        assert!(table.pick(&parts("b", "/y")).is_some());
    }

    #[test]
    fn path_tests_ignore_the_query() {
        let separated = || PathMatch::Separated("/api".to_owned());
        let regex = || PathMatch::Regex(Regex::new("/v[0-9]+").unwrap());
        for (test, target, wanted) in [
            (PathMatch::Prefix("/a".to_owned()), "/ab?x", true),
            (PathMatch::Prefix("/a".to_owned()), "/b", false),
            (PathMatch::Exact("/a".to_owned()), "/a?x=/b", true),
            (PathMatch::Exact("/a".to_owned()), "/a/", false),
            (separated(), "/api", true),
            (separated(), "/api/x", true),
            (separated(), "/apix", false),
            (regex(), "/v12?q", true),
            (regex(), "/v12/x", false),
            (regex(), "/x/v12", false),
        ] {
            let matches = RouteMatch::path(test);
            assert_eq!(
                matches.test(&parts("a", target)),
                wanted,
                "{matches:?} {target}"
            );
        }
    }

    #[test]
    fn prefix_rewrite_replaces_what_matched_and_keeps_the_query() {
        for (path, replacement, target, wanted) in [
            (
                PathMatch::Prefix("/api/".to_owned()),
                "/",
                "/api/x?y=1",
                "/x?y=1",
            ),
            (
                PathMatch::Prefix("/api".to_owned()),
                "/v1",
                "/api/x",
                "/v1/x",
            ),
            (PathMatch::Exact("/a".to_owned()), "/b", "/a?q", "/b?q"),
            (PathMatch::Separated("/a".to_owned()), "/b", "/a/c", "/b/c"),
        ] {
            let matches = RouteMatch::path(path);
            let forward = Forward {
                prefix_rewrite: Some(replacement.to_owned()),
                ..Forward::to(0)
            };
            let target: PathAndQuery = target.parse().unwrap();
            assert_eq!(forward.rewritten(&matches, &target).unwrap(), wanted);
        }
    }

    #[test]
    fn redirects_change_only_what_they_name() {
        let any = RouteMatch::path(PathMatch::Prefix("/a".to_owned()));
        let parts = parts("h:8080", "/a/b?q=1");
        let location = |redirect: Redirect| {
            redirect
                .location(&any, &parts, "http")
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        let base = Redirect::default;
        for (redirect, wanted) in [
            (
                Redirect {
                    scheme: Some("https".into()),
                    ..base()
                },
                "https://h/a/b?q=1",
            ),
            (
                Redirect {
                    host: Some("x".into()),
                    ..base()
                },
                "http://x/a/b?q=1",
            ),
            (
                Redirect {
                    port: Some(1),
                    ..base()
                },
                "http://h:1/a/b?q=1",
            ),
            (
                Redirect {
                    path: Some("/z".into()),
                    ..base()
                },
                "http://h:8080/z?q=1",
            ),
            (
                Redirect {
                    path: Some("/z?w".into()),
                    ..base()
                },
                "http://h:8080/z?w",
            ),
            (
                Redirect {
                    prefix_rewrite: Some("/c".into()),
                    strip_query: true,
                    ..base()
                },
                "http://h:8080/c/b",
            ),
        ] {
            assert_eq!(location(redirect), wanted);
        }
    }
}
