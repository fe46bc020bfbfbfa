//! What differs between an answer and what is written.

use serde_json::{Map, Value, json};

use super::rpc;
use super::scenario::{Ask, Expected, Http};
use super::status;
use crate::expect;

/// What is wrong with an answer, the `nth` of its step.
pub(super) fn answer(
    expected: &Expected,
    ask: &Ask,
    nth: u64,
    seen: &Value,
    before: u64,
    after: u64,
) -> Result<Vec<String>, String> {
    let expected = expected.whole();
    let mut wrong = Vec::new();
    if expected.gone || expected.error.is_some() {
        wrong.push(format!("an answer, not {expected:?}"));
        return Ok(wrong);
    }
    let statuses = seen["statuses"].as_array().cloned().unwrap_or_default();
    let shown: Vec<String> = statuses.iter().map(status::shown).collect();
    let written = expected.statuses.iter();
    let written: Vec<String> = written
        .map(|text| status::nth(text, nth, ask.times))
        .collect::<Result<_, _>>()?;
    if shown != written {
        wrong.push(format!("{shown:?}, not {written:?}"));
    }
    let late = statuses.iter();
    wrong.extend(late.filter_map(|status| status::late(status, before, after)));
    let worst = if written.iter().any(|text| text.starts_with("over")) {
        "over"
    } else {
        "ok"
    };
    let overall = match seen["overall_code"].as_str() {
        Some("OK") => "ok",
        Some("OVER_LIMIT") => "over",
        _ => "unknown",
    };
    let wanted = expected.overall.as_deref().unwrap_or(worst);
    if overall != wanted {
        wrong.push(format!("overall {overall}, not {wanted}"));
    }
    let headers = &seen["response_headers_to_add"];
    let headers: Map<String, Value> = (headers.as_array().into_iter().flatten())
        .filter_map(|header| Some((header["key"].as_str()?.to_owned(), header["value"].clone())))
        .collect();
    let wanted = expected.headers.clone().unwrap_or_default();
    if headers.keys().ne(wanted.keys()) {
        wrong.push(format!("headers {headers:?}, not {wanted:?}"));
    }
    expect::compare("headers", &json!(wanted), &json!(headers), &mut wrong);
    match (&expected.metadata, seen.get("dynamic_metadata")) {
        (None, None) => {}
        (None, Some(seen)) => wrong.push(format!("metadata: there is {seen}")),
        (Some(wanted), seen) => {
            let nothing = json!({});
            expect::compare("metadata", wanted, seen.unwrap_or(&nothing), &mut wrong);
        }
    }
    Ok(wrong)
}

/// What is wrong with an error.
pub(super) fn error(expected: &Expected, failed: &rpc::Failed) -> Vec<String> {
    let expected = expected.whole();
    let mut wrong = Vec::new();
    match &expected.error {
        None => wrong.push(format!("an error: {failed:?}")),
        Some(text) => expect::compare("error", text, &json!(failed.message), &mut wrong),
    }
    if expected.error.is_some() && failed.code != expected.code.unwrap_or(2) {
        wrong.push(format!("gRPC code {}", failed.code));
    }
    wrong
}

/// An answer without what depends on the moment.
pub(super) fn without_clock(mut seen: Value) -> Value {
    for status in seen["statuses"].as_array_mut().into_iter().flatten() {
        if let Some(status) = status.as_object_mut() {
            status.remove("duration_until_reset");
        }
    }
    let headers = seen["response_headers_to_add"].as_array_mut();
    for header in headers.into_iter().flatten() {
        if header["key"]
            .as_str()
            .is_some_and(|key| key.to_lowercase().ends_with("reset"))
        {
            header["value"] = json!("<reset>");
        }
    }
    seen
}

/// What is wrong with an answer over HTTP.
pub(super) fn http(http: &Http, answer: &rpc::Answer) -> Vec<String> {
    let mut wrong = Vec::new();
    if answer.status != http.status {
        wrong.push(format!("status {}, not {}", answer.status, http.status));
    }
    if let Some(text) = &http.text
        && *text != answer.body
    {
        wrong.push(format!("body {:?}, not {text:?}", answer.body));
    }
    for part in http.contains.iter().filter(|p| !answer.body.contains(*p)) {
        wrong.push(format!("no {part:?} in {:?}", answer.body));
    }
    for part in http.lacks.iter().filter(|p| answer.body.contains(*p)) {
        wrong.push(format!("{part:?} in {:?}", answer.body));
    }
    if let Some(json) = &http.json {
        match serde_json::from_str::<Value>(&answer.body) {
            Ok(seen) => expect::compare("body", json, &seen, &mut wrong),
            Err(error) => wrong.push(format!("body {:?}: {error}", answer.body)),
        }
    }
    if let Some(kind) = &http.content_type
        && *kind != answer.content_type
    {
        wrong.push(format!("content-type {}, not {kind}", answer.content_type));
    }
    wrong
}
