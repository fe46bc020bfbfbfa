//! The answers. All are text for programs and people, never HTML, so nothing needs escaping
//! beyond telling browsers not to guess.

use std::{fmt::Write, net::IpAddr};

use http::{HeaderValue, Method, Request, StatusCode, header, uri::Authority};

use super::{Admin, Part, pages::READS, same_site::is_same_site};
use crate::http_server::{Reply, TEXT, reply};

/// The media type that Prometheus asks for.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is always there.
const OWN: [(&str, &str); 3] = [
    ("/live", "whether the process lives (also /healthz)"),
    (
        "/ready",
        "whether it takes traffic, and if not, why (also /readyz)",
    ),
    ("/metrics", "OpenMetrics (also /stats/prometheus)"),
];

impl Admin {
    /// The part of the program that answers a request, if it may be answered.
    pub(super) fn part<B>(&self, request: &Request<B>) -> Option<&Part> {
        let path = request.uri().path();
        let part = self.parts.iter().find(|part| part.has(path))?;
        self.lets(request).then_some(part)
    }

    fn lets<B>(&self, request: &Request<B>) -> bool {
        self.allow_network || names_this_machine(request)
    }

    pub(super) async fn respond<B>(&self, request: &Request<B>) -> Reply {
        if !self.lets(request) {
            return refused("only for hosts such as localhost and 127.0.0.1\n");
        }
        let path = request.uri().path();
        if let Some((status, content_type, text)) = self.answer(path) {
            return match *request.method() {
                Method::GET | Method::HEAD => reply(status, content_type, text),
                _ => not_allowed(READS),
            };
        }
        let mut allowed = Vec::new();
        for page in self.pages.iter().filter(|page| page.path == path) {
            if page.method.takes(request.method()) {
                if !request.method().is_safe() && !is_same_site(request.headers()) {
                    return refused("not for pages of other sites\n");
                }
                let answer = page.answer(request.uri().query()).await;
                return reply(answer.status, answer.content_type, answer.text);
            }
            allowed.push(page.method.name());
        }
        match allowed.is_empty() {
            false => not_allowed(&allowed.join(", ")),
            true => reply(StatusCode::NOT_FOUND, TEXT, "not found\n"),
        }
    }

    fn answer(&self, path: &str) -> Option<(StatusCode, &'static str, String)> {
        let ok = |text: String| (StatusCode::OK, TEXT, text);
        Some(match path {
            "/" => ok(self.list()),
            "/live" | "/healthz" => ok("alive\n".to_owned()),
            "/ready" | "/readyz" => self.ready(),
            "/metrics" | "/stats/prometheus" => {
                (StatusCode::OK, OPEN_METRICS, self.metrics.render())
            }
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

    /// A line for each path: its methods where they are not all for reading, and what it is for.
    fn list(&self) -> String {
        let mut lines: Vec<_> = OWN
            .iter()
            .map(|(path, about)| (*path, READS, *about))
            .collect();
        let config = self.config.as_ref();
        lines.extend(config.map(|_| {
            (
                "/config",
                READS,
                "the configuration in use, without secrets",
            )
        }));
        let parts = self.parts.iter();
        lines.extend(parts.filter_map(|part| {
            let (path, about) = part.entrance()?;
            Some((path, READS, about))
        }));
        let pages = self.pages.iter();
        lines.extend(pages.map(|page| (page.path, page.method.name(), page.about)));
        let mut text = String::new();
        for (path, methods, about) in lines {
            let path = match methods {
                READS => path.to_owned(),
                methods => format!("{methods} {path}"),
            };
            // Writing to a String cannot fail.
            let _ = match about {
                "" => writeln!(text, "{path}"),
                about => writeln!(text, "{path:<24} {about}"),
            };
        }
        text
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

fn refused(why: &'static str) -> Reply {
    reply(StatusCode::FORBIDDEN, TEXT, why)
}

fn not_allowed(methods: &str) -> Reply {
    let text = format!("only {}\n", methods.replacen(", HEAD", " and HEAD", 1));
    let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
    // Names of methods are always a value.
    if let Ok(allow) = HeaderValue::from_str(methods) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}
