//! `/log-level`: what is logged, looked at and changed while the process runs.

use http::StatusCode;

use super::pages::{Page, PageAnswer, PageMethod, Query};
use crate::telemetry::LogFilter;

const PATH: &str = "/log-level";

/// GET shows the directives that hold; POST `?level=DIRECTIVES` changes them.
pub(super) fn pages() -> [Page; 2] {
    [
        Page::new(PageMethod::Get, PATH, async |_| {
            answer(LogFilter::of_process())
        })
        .about("what is logged"),
        Page::new(PageMethod::Post, PATH, async |query| {
            change(LogFilter::of_process(), &query)
        })
        .about("change it: ?level=info, ?level=attache_proxy=debug"),
    ]
}

fn answer(filter: Option<&LogFilter>) -> PageAnswer {
    match filter {
        Some(filter) => PageAnswer::text(format!("{}\n", filter.directives())),
        None => PageAnswer::failure(StatusCode::CONFLICT, "the program has a log of its own"),
    }
}

fn change(filter: Option<&LogFilter>, query: &Query) -> PageAnswer {
    let bad = |reason: String| PageAnswer::failure(StatusCode::BAD_REQUEST, reason);
    if let Some(unknown) = query.unknown(&["level"]) {
        return bad(format!(
            "`{unknown}` is no parameter: write ?level=DIRECTIVES"
        ));
    }
    let Some(level) = query.get("level") else {
        return bad("write ?level=DIRECTIVES, such as ?level=attache_proxy=debug".to_owned());
    };
    let Some(filter) = filter else {
        return answer(None);
    };
    match filter.change(level) {
        Ok(()) => {
            tracing::info!(
                directives = filter.directives(),
                "what is logged was changed"
            );
            answer(Some(filter))
        }
        Err(error) => bad(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_refused_with_their_reason() {
        for (query, reason) in [
            ("", "?level="),
            ("levels=debug", "`levels` is no parameter"),
        ] {
            let answer = change(None, &Query::parse(query));
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
            assert!(answer.text.contains(reason), "{query}: {}", answer.text);
        }
    }

    #[test]
    fn a_program_that_logs_otherwise_says_so() {
        assert_eq!(answer(None).status, StatusCode::CONFLICT);
        let asked = change(None, &Query::parse("level=debug"));
        assert_eq!(asked.status, StatusCode::CONFLICT);
    }
}
