//! Which requests a route is for.

use attache_filter::matcher::FieldMatcher;
use attache_service::config::Errors;

use super::forward::takes_connect;
use crate::{
    config::{PathMatch, Route, Step},
    route::{PathMatch as PathTest, RouteMatch, Test},
};

/// Compiles `match`; faults are reported at their place.
pub(super) fn plan(raw: &Route, errors: &mut Errors) -> Option<RouteMatch> {
    let path = match &raw.r#match.path.value {
        PathMatch::Prefix(text) => PathTest::Prefix(text.clone()),
        PathMatch::Path(text) => PathTest::Exact(text.clone()),
        PathMatch::PathSeparatedPrefix(text) => {
            if text.ends_with('/') || text.contains(['?', '#']) {
                let at = &raw.r#match.path;
                errors.push(
                    at,
                    "`path_separated_prefix` has no closing slash and no query",
                );
            }
            PathTest::Separated(text.clone())
        }
        PathMatch::ConnectMatcher(_) => PathTest::Connect,
        PathMatch::SafeRegex(regex) => match attache_filter::matcher::full_match(&regex.regex) {
            Ok(regex) => PathTest::Regex(regex),
            Err(error) => {
                errors.push(&raw.r#match.path, error.to_string());
                return None;
            }
        },
    };
    if matches!(path, PathTest::Connect)
        && !matches!(&raw.action, Step::Route(action) if takes_connect(action))
    {
        errors.push(
            &raw.r#match.path,
            "`connect_matcher` needs `route` with `upgrade_configs: [{ upgrade_type: CONNECT, connect_config: {} }]`",
        );
    }
    let raw = &raw.r#match;
    let mut tests: Vec<_> = raw
        .headers
        .iter()
        .filter_map(|header| FieldMatcher::plan(header, errors))
        .map(|matcher| Test::new(move |parts| matcher.matches(parts)))
        .collect();
    let parameters = raw.query_parameters.iter();
    tests.extend(parameters.filter_map(|parameter| Test::query(parameter, errors)));
    let cookies = raw.cookies.iter();
    tests.extend(cookies.filter_map(|cookie| Test::cookie(cookie, errors)));
    tests.extend(raw.grpc.as_ref().map(|_| Test::grpc()));
    Some(RouteMatch {
        path,
        ignore_case: raw.case_sensitive == Some(false),
        tests,
    })
}
