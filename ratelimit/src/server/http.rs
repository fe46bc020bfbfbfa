//! The reference's HTTP endpoints: health and JSON on one port, debug pages on another.

use std::fmt::Write as _;

use attache_proto::ratelimit::rate_limit_response::Code;
use attache_service::http_server::{BodyError, Reply, TEXT, body, reply};
use http::{Request, StatusCode};
use hyper::body::Incoming;

use super::{RateLimitServer, health::HealthParts, json, sink::SampleValue};
use crate::{
    config::{Allowance, Rules},
    limiter::Clock,
    store::Store,
};

const JSON: &str = "application/json";
const NOT_FOUND: &str = "404 page not found\n";
/// Bound on a request in JSON.
const MAX_BODY: usize = 1 << 20;

/// Answers `/healthcheck` and `/json`, whatever the method.
pub async fn service<S: Store, C: Clock>(
    server: RateLimitServer<S, C>,
    health: HealthParts,
    request: Request<Incoming>,
) -> Reply {
    match request.uri().path() {
        "/healthcheck" => match health.is_healthy() {
            true => reply(StatusCode::OK, TEXT, "OK"),
            false => reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, ""),
        },
        "/json" => match body(request, MAX_BODY).await {
            Ok(text) => decide(&server, &text).await,
            Err(BodyError::TooLong) => {
                reply(StatusCode::PAYLOAD_TOO_LARGE, TEXT, "Payload Too Large\n")
            }
            Err(BodyError::Broken) => bad_request("the body broke off"),
        },
        _ => reply(StatusCode::NOT_FOUND, TEXT, NOT_FOUND),
    }
}

async fn decide<S: Store, C: Clock>(server: &RateLimitServer<S, C>, text: &[u8]) -> Reply {
    let request = match json::decode_request(text) {
        Ok(request) => request,
        Err(error) => return bad_request(&error.to_string()),
    };
    let response = match server.decide(&request).await {
        Ok(response) => response,
        Err(status) => return bad_request(status.message()),
    };
    let status = match response.overall_code() {
        Code::Ok => StatusCode::OK,
        Code::OverLimit => StatusCode::TOO_MANY_REQUESTS,
        Code::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
    };
    match json::encode_response(&response) {
        Ok(text) => reply(status, JSON, text),
        Err(error) => {
            tracing::error!(%error, "a response has no JSON form");
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            reply(status, TEXT, "Internal Server Error\n")
        }
    }
}

/// The client is not told why, as by the reference; the log is.
fn bad_request(reason: &str) -> Reply {
    tracing::warn!(reason, "a request at /json fails");
    reply(StatusCode::BAD_REQUEST, TEXT, "Bad Request\n")
}

/// The debug pages, by path.
const PAGES: [(&str, &str); 5] = [
    (
        "/debug/pprof/",
        "root of various pprof endpoints. hit for help.",
    ),
    ("/debug/pprof/profile", "CPU profiling endpoint"),
    ("/debug/pprof/trace", "trace endpoint"),
    (
        "/rlconfig",
        "print out the currently loaded configuration for debugging",
    ),
    ("/stats", "print out stats"),
];

/// Answers the debug pages.
pub fn debug<S: Store, C: Clock>(server: &RateLimitServer<S, C>, path: &str) -> Reply {
    let ok = |text: String| reply(StatusCode::OK, TEXT, text);
    match path {
        "/rlconfig" => ok(server.with_rules(rules).unwrap_or_default()),
        "/stats" => ok(statistics(server)),
        path if path.starts_with("/debug/pprof/") => reply(
            StatusCode::NOT_IMPLEMENTED,
            TEXT,
            "profiles of Go programs only: use `perf` on this process\n",
        ),
        _ => ok(PAGES
            .iter()
            .map(|(path, help)| format!("{path}: {help}\n"))
            .collect()),
    }
}

/// One line for each limit, in the reference's words.
fn rules(rules: &Rules) -> String {
    let mut text = String::new();
    for (_, rule) in rules.iter() {
        let (unit, requests) = match &rule.allowance {
            Allowance::Unlimited => ("UNKNOWN", 0),
            Allowance::Limited(limit) => (limit.unit.wire_name(), limit.requests_per_unit),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}.{}: unit={unit} requests_per_unit={requests}, shadow_mode: {}, quota_mode: {}",
            rule.domain, rule.path, rule.shadow_mode, rule.quota_mode
        );
    }
    text
}

fn statistics<S: Store, C: Clock>(server: &RateLimitServer<S, C>) -> String {
    let mut text = String::new();
    for sample in server.statistics().totals() {
        // Writing to a String cannot fail.
        let _ = match sample.value {
            SampleValue::Counter(value) | SampleValue::Gauge(value) => {
                writeln!(text, "{}: {value}", sample.name)
            }
            SampleValue::Timer(times) => {
                let count: u64 = times.iter().map(|(_, count)| count).sum();
                writeln!(text, "{}: {count}", sample.name)
            }
        };
    }
    text
}
