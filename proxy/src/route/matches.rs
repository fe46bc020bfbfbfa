//! Which requests a route is for (`RouteMatch`).

use attache_filter::{
    head,
    matcher::{CookieMatcher, QueryParameterMatch, QueryParameterMatcher, TextMatcher},
};
use attache_service::config::Errors;
use http::{Method, header, request};
use regex::Regex;

/// Which requests a route is for (`RouteMatch`).
#[derive(Debug)]
pub struct RouteMatch {
    /// Test of the path, without the query.
    pub path: PathMatch,
    /// Compare the path without regard to ASCII case (`case_sensitive: false`).
    pub ignore_case: bool,
    /// All of these must hold (`headers`, `query_parameters`, `cookies`, `grpc`).
    pub tests: Vec<Test>,
}

/// Test of the path.
#[derive(Debug, Clone)]
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

/// A compiled matcher of anything but the path.
pub struct Test(Box<dyn Fn(&request::Parts) -> bool + Send + Sync>);

impl Test {
    /// A test from a function.
    pub fn new(test: impl Fn(&request::Parts) -> bool + Send + Sync + 'static) -> Self {
        Self(Box::new(test))
    }

    /// The request is a gRPC call.
    pub(crate) fn grpc() -> Self {
        Self::new(|parts| head::is_grpc(&parts.headers))
    }

    /// A parameter of the query; faults are reported at their place.
    pub(crate) fn query(raw: &QueryParameterMatcher, errors: &mut Errors) -> Option<Self> {
        let name = raw.name.clone();
        Some(match &raw.matches {
            None => Self::new(move |parts| parameter(parts, &name).is_some()),
            Some(QueryParameterMatch::PresentMatch(present)) => {
                let present = *present;
                Self::new(move |parts| parameter(parts, &name).is_some() == present)
            }
            Some(QueryParameterMatch::StringMatch(raw)) => {
                let matcher = TextMatcher::plan(raw, errors)?;
                Self::new(move |parts| {
                    parameter(parts, &name).is_some_and(|value| matcher.matches(value))
                })
            }
        })
    }

    /// A cookie; faults are reported at their place.
    pub(crate) fn cookie(raw: &CookieMatcher, errors: &mut Errors) -> Option<Self> {
        if raw.name.is_empty() {
            errors.push(&raw.name, "a cookie needs a name");
        }
        let name = raw.name.value.clone();
        let matcher = TextMatcher::plan(&raw.string_match, errors)?;
        let invert = raw.invert_match.unwrap_or(false);
        Some(Self::new(move |parts| {
            cookie(parts, &name).is_some_and(|value| matcher.matches(value)) != invert
        }))
    }
}

/// The first value of a parameter of the query, as it stands there.
fn parameter<'p>(parts: &'p request::Parts, name: &str) -> Option<&'p str> {
    parts.uri.query()?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

/// The first value of a cookie, without its quotes.
fn cookie<'p>(parts: &'p request::Parts, name: &str) -> Option<&'p str> {
    let headers = parts.headers.get_all(header::COOKIE).into_iter();
    let mut pairs = headers
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    Some(quoted.unwrap_or(value))
}

impl std::fmt::Debug for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Test")
    }
}

impl PathMatch {
    fn test(&self, path: &str, ignore_case: bool) -> bool {
        let starts = |prefix: &str| {
            path.as_bytes()
                .get(..prefix.len())
                .is_some_and(|start| match ignore_case {
                    true => start.eq_ignore_ascii_case(prefix.as_bytes()),
                    false => start == prefix.as_bytes(),
                })
        };
        match self {
            Self::Prefix(prefix) => starts(prefix),
            Self::Exact(exact) => path.len() == exact.len() && starts(exact),
            Self::Separated(prefix) => {
                starts(prefix) && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
            }
            Self::Regex(regex) => regex
                .find(path)
                .is_some_and(|found| found.len() == path.len()),
            Self::Connect => false,
        }
    }

    /// How much of a path that matches it takes up.
    pub(crate) fn length_in(&self, path: &str) -> usize {
        match self {
            Self::Prefix(text) | Self::Exact(text) | Self::Separated(text) => text.len(),
            Self::Regex(_) => path.len(),
            Self::Connect => 0,
        }
    }
}

impl RouteMatch {
    /// Any header, this path.
    pub fn path(path: PathMatch) -> Self {
        Self {
            path,
            ignore_case: false,
            tests: Vec::new(),
        }
    }

    pub(crate) fn test(&self, parts: &request::Parts) -> bool {
        let path = match parts.method {
            Method::CONNECT => matches!(self.path, PathMatch::Connect),
            _ => self.path.test(parts.uri.path(), self.ignore_case),
        };
        path && self.tests.iter().all(|test| (test.0)(parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(target: &str, cookies: &[&str]) -> request::Parts {
        let mut request = http::Request::builder().uri(target);
        for cookie in cookies {
            request = request.header("cookie", *cookie);
        }
        request.body(()).unwrap().into_parts().0
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
                matches.test(&parts(target, &[])),
                wanted,
                "{matches:?} {target}"
            );
        }
    }

    #[test]
    fn paths_are_compared_without_regard_to_case_where_wanted() {
        for (test, target, wanted) in [
            (PathMatch::Prefix("/Ab".to_owned()), "/aBc", true),
            (PathMatch::Exact("/ab".to_owned()), "/AB", true),
            (PathMatch::Exact("/ab".to_owned()), "/ABC", false),
            (PathMatch::Separated("/ab".to_owned()), "/AB/c", true),
            (PathMatch::Separated("/ab".to_owned()), "/ABc", false),
        ] {
            let matches = RouteMatch {
                ignore_case: true,
                ..RouteMatch::path(test)
            };
            assert_eq!(matches.test(&parts(target, &[])), wanted, "{target}");
        }
    }

    #[test]
    fn the_first_value_of_parameters_and_cookies_counts() {
        let request = parts("/?a=1&b&a=2&c=%20", &["x=1; y=\"2\"", "x=3; z=; =4"]);
        assert_eq!(parameter(&request, "a"), Some("1"));
        assert_eq!(parameter(&request, "b"), Some(""));
        assert_eq!(parameter(&request, "c"), Some("%20"));
        assert_eq!(parameter(&request, "d"), None);
        assert_eq!(cookie(&request, "x"), Some("1"));
        assert_eq!(cookie(&request, "y"), Some("2"));
        assert_eq!(cookie(&request, "z"), Some(""));
        assert_eq!(cookie(&request, "none"), None);
    }
}
