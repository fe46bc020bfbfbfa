//! `/clusters`: the clusters and their endpoints as they are now.

use attache_proxy::status::Status;
use attache_service::admin::{Page, PageAnswer, PageMethod, Query};
use http::StatusCode;
use serde_json::json;

/// Lines as Envoy's, or JSON with `?format=json`.
pub(super) fn page(status: Status) -> Page {
    let answer = move |query| std::future::ready(answer(&status, &query));
    Page::new(PageMethod::Get, "/clusters", answer)
        .about("endpoints, their health, what is in use; ?format=json")
}

fn answer(status: &Status, query: &Query) -> PageAnswer {
    let bad = |reason: String| PageAnswer::failure(StatusCode::BAD_REQUEST, reason);
    if let Some(unknown) = query.unknown(&["format"]) {
        return bad(format!("`{unknown}` is no parameter: there is `format`"));
    }
    match query.get("format") {
        None | Some("text") => {
            let clusters = status.clusters();
            PageAnswer::text(clusters.iter().map(ToString::to_string).collect())
        }
        Some("json") => PageAnswer::json(format!("{}\n", json!({ "clusters": status.clusters() }))),
        Some(other) => bad(format!(
            "`{other}` is no format: there are `text` and `json`"
        )),
    }
}
