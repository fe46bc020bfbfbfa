//! The answers. All are text for programs and people, never HTML, so nothing needs escaping
//! beyond telling browsers not to guess.

use std::{fmt::Write, net::IpAddr};

use http::{HeaderValue, Method, Request, StatusCode, header, uri::Authority};

use super::Admin;
use crate::http_server::{Reply, TEXT, reply};

/// The media type that Prometheus asks for.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const READS_ONLY: &str = "GET, HEAD";

impl Admin {
    pub(super) async fn respond<B>(&self, request: &Request<B>) -> Reply {
        if !self.allow_network && !names_this_machine(request) {
            return reply(
                StatusCode::FORBIDDEN,
                TEXT,
                "only for hosts such as localhost and 127.0.0.1\n",
            );
        }
        let path = request.uri().path();
        if let Some((status, content_type, text)) = self.answer(path) {
            return match *request.method() {
                Method::GET | Method::HEAD => reply(status, content_type, text),
                _ => not_allowed(READS_ONLY),
            };
        }
        let mut allowed = None;
        for page in self.pages.iter().filter(|page| page.path == path) {
            if page.method.takes(request.method()) {
                let answer = page.answer(request.uri().query()).await;
                return reply(answer.status, answer.content_type, answer.text);
            }
            allowed = Some(page.method.name());
        }
        match allowed {
            Some(methods) => not_allowed(methods),
            None => reply(StatusCode::NOT_FOUND, TEXT, "not found\n"),
        }
    }

    fn answer(&self, path: &str) -> Option<(StatusCode, &'static str, String)> {
        let ok = |text: String| (StatusCode::OK, TEXT, text);
        Some(match path {
            "/" => ok(self.list()),
            "/healthz" => ok("alive\n".to_owned()),
            "/readyz" => self.ready(),
            "/metrics" => (StatusCode::OK, OPEN_METRICS, self.metrics.render()),
            "/config" => {
                let dump = self.config.as_ref()?();
                (StatusCode::OK, dump.content_type, dump.text)
            }
            _ => return None,
        })
    }

    fn ready(&self) -> (StatusCode, &'static str, String) {
        let missing = self.readiness.missing();
        if missing.is_empty() {
            return (StatusCode::OK, TEXT, "ready\n".to_owned());
        }
        let mut text = String::new();
        for (condition, reason) in missing {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{condition}: {reason}");
        }
        (StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
    }

    fn list(&self) -> String {
        let mut paths = vec!["/healthz", "/readyz", "/metrics"];
        paths.extend(self.config.as_ref().map(|_| "/config"));
        for page in &self.pages {
            if !paths.contains(&page.path) {
                paths.push(page.path);
            }
        }
        paths.iter().map(|path| format!("{path}\n")).collect()
    }
}

/// Whether a request asks for this machine by a name or address that only means itself.
///
/// A page in a browser on this machine may have a name of its own lead here, and would then be
/// shown what the endpoint says (DNS rebinding). What is no browser may leave the name out.
fn names_this_machine<B>(request: &Request<B>) -> bool {
    let host = request.headers().get(header::HOST);
    let host = host.map(|host| host.to_str().unwrap_or("?"));
    let Some(host) = host
        .or_else(|| request.uri().host())
        .filter(|host| !host.is_empty())
    else {
        return true;
    };
    let authority = host.parse::<Authority>().ok();
    let Some(authority) = authority.filter(|_| !host.contains('@')) else {
        return false;
    };
    let name = authority.host();
    let ip = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn not_allowed(methods: &'static str) -> Reply {
    let text = match methods {
        READS_ONLY => "only GET and HEAD\n".to_owned(),
        other => format!("only {other}\n"),
    };
    let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
    let allow = HeaderValue::from_static(methods);
    response.headers_mut().insert(header::ALLOW, allow);
    response
}
