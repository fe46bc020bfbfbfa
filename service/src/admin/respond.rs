//! The answers. All are text for programs and people, never HTML, so nothing needs escaping
//! beyond telling browsers not to guess.

use std::fmt::Write;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;

use super::Admin;

const TEXT: &str = "text/plain; charset=utf-8";
/// The media type that Prometheus asks for.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Admin {
    pub(super) fn respond<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let known = self.answer(request.uri().path());
        let (status, content_type, text) = match (known, request.method()) {
            (None, _) => (StatusCode::NOT_FOUND, TEXT, "not found\n".to_owned()),
            (Some(answer), &Method::GET | &Method::HEAD) => answer,
            (Some(_), _) => (
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                "only GET and HEAD\n".to_owned(),
            ),
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        for (name, value) in [
            (header::CONTENT_TYPE, content_type),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::CACHE_CONTROL, "no-store"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }

    fn answer(&self, path: &str) -> Option<(StatusCode, &'static str, String)> {
        let ok = |text: &str| (StatusCode::OK, TEXT, text.to_owned());
        Some(match path {
            "/" => ok(self.list()),
            "/healthz" => ok("alive\n"),
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

    fn list(&self) -> &'static str {
        match self.config {
            Some(_) => "/healthz\n/readyz\n/metrics\n/config\n",
            None => "/healthz\n/readyz\n/metrics\n",
        }
    }
}
