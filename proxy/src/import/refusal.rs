//! Routes that answer with 500 in the place of others, so that the routes behind them do not get
//! requests that were not theirs.

use attache_service::config::json::{Value as Json, json};

/// Tests of a path.
pub(super) const PATHS: [&str; 5] = [
    "prefix",
    "path",
    "path_separated_prefix",
    "safe_regex",
    "connect_matcher",
];

/// The route that refuses what another took.
pub(super) fn route(matches: &Json) -> Json {
    json!({ "match": matches, "direct_response": { "status": 500 } })
}

/// What becomes of the requests of a route that has this match, wider than its own.
pub(super) fn result(wider: &Json) -> &'static str {
    match *wider == json!({ "prefix": "/" }) {
        true => {
            "the route answers with 500, to all requests of the virtual host that reach it, so \
                the routes behind it serve nothing"
        }
        false => "the route answers with 500, to all requests that it takes without this",
    }
}
