//! One answer, printed.

use std::fmt::Write as _;

use attache_filter::metadata::struct_to_json;
use attache_proto::{
    common_ratelimit::RateLimitDescriptor,
    core::HeaderValue,
    ratelimit::{RateLimitResponse, rate_limit_response::DescriptorStatus},
};
use attache_service::trace::code_name;
use serde_json::{Value, json};
use tonic::Status;

use super::question::Questions;
use crate::{Failure, args::ratelimit::Entries, output};

/// Prints an answer; failure when there is none.
pub(crate) fn print(
    questions: &Questions,
    answer: Result<RateLimitResponse, Status>,
    as_json: bool,
) -> Result<(), Failure> {
    let answer = answer.map_err(|status| {
        let (code, message) = (code_name(status.code()), status.message());
        Failure::Run(format!("there is no answer: {code}: {message}"))
    })?;
    let descriptors = questions.descriptors();
    match as_json {
        true => output(&format!("{:#}\n", json(descriptors, &answer))),
        false => output(&text(descriptors, &answer)),
    }
}

fn text(descriptors: &[RateLimitDescriptor], answer: &RateLimitResponse) -> String {
    let mut text = format!("{}\n", answer.overall_code().as_str_name());
    // Writing to a String cannot fail.
    let mut statuses = answer.statuses.iter();
    for descriptor in descriptors {
        let status = statuses.next().map_or("no status".to_owned(), status_text);
        let _ = writeln!(text, "  {}: {status}", name(descriptor));
    }
    for status in statuses {
        let _ = writeln!(text, "  of no descriptor: {}", status_text(status));
    }
    for (headers, what) in [
        (&answer.response_headers_to_add, "response header"),
        (&answer.request_headers_to_add, "request header"),
    ] {
        for header in headers {
            let _ = writeln!(text, "  {what} {}: {}", header.key, value(header));
        }
    }
    if let Some(metadata) = &answer.dynamic_metadata {
        let _ = writeln!(text, "  dynamic metadata: {}", struct_to_json(metadata));
    }
    if !answer.raw_body.is_empty() {
        let _ = writeln!(text, "  body: {}", answer.raw_body.escape_ascii());
    }
    text
}

fn status_text(status: &DescriptorStatus) -> String {
    let mut text = status.code().as_str_name().to_owned();
    if let Some(limit) = &status.current_limit {
        let unit = limit.unit().as_str_name();
        let _ = write!(text, ", limit {} per {unit}", limit.requests_per_unit);
        if !limit.name.is_empty() {
            let _ = write!(text, " (`{}`)", limit.name);
        }
    }
    let _ = write!(text, ", remaining {}", status.limit_remaining);
    if let Some(reset) = &status.duration_until_reset {
        let _ = write!(text, ", resets in {} s", reset.seconds);
    }
    text
}

fn json(descriptors: &[RateLimitDescriptor], answer: &RateLimitResponse) -> Value {
    let statuses: Vec<_> = answer
        .statuses
        .iter()
        .enumerate()
        .map(|(number, status)| {
            let limit = status.current_limit.as_ref().map(|limit| {
                json!({
                    "name": limit.name,
                    "requests_per_unit": limit.requests_per_unit,
                    "unit": limit.unit().as_str_name(),
                })
            });
            let reset = status.duration_until_reset.as_ref();
            json!({
                "descriptor": descriptors.get(number).map(name),
                "code": status.code().as_str_name(),
                "current_limit": limit,
                "limit_remaining": status.limit_remaining,
                "resets_in_s": reset.map(|reset| reset.seconds),
            })
        })
        .collect();
    let headers = |headers: &[HeaderValue]| -> Vec<Value> {
        let pair = |header: &HeaderValue| json!({ "name": header.key, "value": value(header) });
        headers.iter().map(pair).collect()
    };
    json!({
        "overall_code": answer.overall_code().as_str_name(),
        "statuses": statuses,
        "response_headers_to_add": headers(&answer.response_headers_to_add),
        "request_headers_to_add": headers(&answer.request_headers_to_add),
        "dynamic_metadata": answer.dynamic_metadata.as_ref().map(struct_to_json),
    })
}

/// A descriptor as it is given on the command line.
fn name(descriptor: &RateLimitDescriptor) -> String {
    let entries = descriptor.entries.iter();
    let entries = entries.map(|entry| (entry.key.clone(), entry.value.clone()));
    Entries(entries.collect()).to_string()
}

fn value(header: &HeaderValue) -> String {
    match header.raw_value.is_empty() {
        true => header.value.clone(),
        false => String::from_utf8_lossy(&header.raw_value).into_owned(),
    }
}
