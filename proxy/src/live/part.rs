//! The page, its stream and its taps, as a part of the admin endpoint.

use attache_service::{
    admin::{Part, PartReply, Query, is_same_site, stream, whole},
    http_server::{self, Reply, TEXT, reply},
};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{
    Live,
    stream::Watcher,
    tap::{TapError, Wanted},
};

const PAGE: &str = "/requests";
const STYLE: &str = "/requests/live.css";
const SCRIPT: &str = "/requests/live.js";
const STREAM: &str = "/requests/stream";
const TAP: &str = "/requests/tap";

/// Only what this part says itself is loaded, and nobody puts the page into a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";
/// Longest question of a tap, in bytes.
const MAX_QUESTION: usize = 8 << 10;

impl Live {
    /// The live page, for an admin endpoint.
    pub fn part(&self) -> Part {
        let live = self.clone();
        Part::new(&[PAGE, STYLE, SCRIPT, STREAM, TAP], move |request| {
            let live = live.clone();
            async move { guard(live.respond(request).await) }
        })
        .about("requests as they come, for a browser")
    }

    async fn respond(&self, request: Request<Incoming>) -> PartReply {
        let file = match request.uri().path() {
            PAGE => ("text/html; charset=utf-8", include_str!("page/live.html")),
            STYLE => ("text/css; charset=utf-8", include_str!("page/live.css")),
            SCRIPT => (
                "text/javascript; charset=utf-8",
                include_str!("page/live.js"),
            ),
            STREAM => return self.stream(&request),
            _ => return whole(self.tap(request).await),
        };
        whole(match is_read(request.method()) {
            true => reply(StatusCode::OK, file.0, file.1),
            false => not_allowed("GET, HEAD"),
        })
    }

    fn stream(&self, request: &Request<Incoming>) -> PartReply {
        if request.method() != Method::GET {
            return whole(not_allowed("GET"));
        }
        // A page on the web would not see it, but keep us busy.
        if !is_same_site(request.headers()) {
            return whole(other_site());
        }
        let seen = request.headers().get("last-event-id");
        let Some(watcher) = Watcher::enter(self, seen.and_then(|seen| seen.to_str().ok())) else {
            let text = "too many live pages are open\n";
            return whole(reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, text));
        };
        let events = reply(StatusCode::OK, "text/event-stream", "");
        let (head, _) = events.into_parts();
        Response::from_parts(head, stream(watcher.events()).boxed_unsync())
    }

    async fn tap(&self, request: Request<Incoming>) -> Reply {
        if !matches!(*request.method(), Method::POST | Method::DELETE) {
            return not_allowed("POST, DELETE");
        }
        if !is_same_site(request.headers()) {
            return other_site();
        }
        if request.method() == Method::DELETE {
            let query = Query::parse(request.uri().query().unwrap_or_default());
            let id = query.get("id").and_then(|id| id.parse().ok());
            let gone = id.is_some_and(|id| self.state().taps.disarm(id));
            self.tell();
            return match gone {
                true => answer(StatusCode::OK, &json!({})),
                false => refused(StatusCode::NOT_FOUND, "there is no such tap"),
            };
        }
        // A form of another site cannot send that unasked.
        let content_type = request.headers().get(header::CONTENT_TYPE);
        if content_type.is_none_or(|kind| kind != "application/json") {
            let text = "expected content-type: application/json";
            return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
        }
        let asked = match http_server::body(request, MAX_QUESTION).await {
            Ok(body) => body,
            Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        match self.arm(&asked) {
            Ok(id) => answer(StatusCode::OK, &json!({ "id": id })),
            Err(error @ (TapError::Full | TapError::NobodyWatches)) => {
                refused(StatusCode::CONFLICT, &error.to_string())
            }
            Err(error) => refused(StatusCode::BAD_REQUEST, &error.to_string()),
        }
    }

    fn arm(&self, asked: &[u8]) -> Result<u64, TapError> {
        let asked: Value = serde_json::from_slice(asked).map_err(|_| TapError::NoObject)?;
        let (wanted, wait) = Wanted::read(&asked)?;
        let mut state = self.state();
        if state.watchers == 0 {
            return Err(TapError::NobodyWatches);
        }
        let id = state.taps.arm(wanted, wait)?;
        drop(state);
        self.tell();
        Ok(id)
    }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn not_allowed(methods: &'static str) -> Reply {
    let mut refused = refused(StatusCode::METHOD_NOT_ALLOWED, &format!("only {methods}"));
    let allow = HeaderValue::from_static(methods);
    refused.headers_mut().insert(header::ALLOW, allow);
    refused
}

fn other_site() -> Reply {
    refused(StatusCode::FORBIDDEN, "only for pages of this endpoint")
}

fn refused(status: StatusCode, why: &str) -> Reply {
    reply(status, TEXT, format!("{why}\n"))
}

fn answer(status: StatusCode, value: &Value) -> Reply {
    reply(status, "application/json", value.to_string())
}

/// Tells browsers what they may do with an answer.
fn guard(mut reply: PartReply) -> PartReply {
    let headers = reply.headers_mut();
    for (name, value) in [
        ("content-security-policy", POLICY),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    reply
}
