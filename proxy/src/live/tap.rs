//! Taps: somebody waits for the next request of some kind, to see it in full.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attache_filter::{Route, head};
use http::request;
use serde_json::{Value, json};

/// Taps at a time.
const MAX_TAPS: usize = 4;
/// Longest wait for a request.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// The wait unless asked otherwise.
const WAIT: Duration = Duration::from_secs(120);
/// Longest text that is looked for, in bytes.
const MAX_TEXT: usize = 1 << 10;

/// Which request is waited for: all that is said must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The method.
    method: Option<String>,
    /// A part of the path with its query, as the client sent it.
    path: Option<String>,
    /// The route's name, or its cluster where it has none.
    route: Option<String>,
    /// A header and, if not empty, a part of its value.
    header: Option<(String, String)>,
}

#[derive(Debug)]
struct Armed {
    id: u64,
    until: Instant,
    wanted: Wanted,
}

/// The taps that wait.
#[derive(Debug, Default)]
pub(super) struct Taps {
    armed: Vec<Armed>,
    last: u64,
}

/// Why there is no tap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TapError {
    #[error("expected a JSON object with `method`, `path`, `route`, `header`, `value`, `seconds`")]
    NoObject,
    #[error("`{0}` is unknown: there are `method`, `path`, `route`, `header`, `value`, `seconds`")]
    Unknown(String),
    #[error("`{0}` is a text of at most {MAX_TEXT} bytes")]
    Text(&'static str),
    #[error("`value` is looked for in a `header`")]
    NoHeader,
    #[error("`seconds` is a whole number from 1 to 600")]
    Seconds,
    #[error("{MAX_TAPS} taps wait already")]
    Full,
    #[error("nobody watches: open the page first")]
    NobodyWatches,
}

impl Wanted {
    /// Reads what a page asks for; how long it waits.
    pub(super) fn read(asked: &Value) -> Result<(Self, Duration), TapError> {
        let asked = asked.as_object().ok_or(TapError::NoObject)?;
        const KNOWN: [&str; 6] = ["method", "path", "route", "header", "value", "seconds"];
        if let Some(unknown) = asked.keys().find(|key| !KNOWN.contains(&key.as_str())) {
            let unknown = unknown.chars().take(40).collect();
            return Err(TapError::Unknown(unknown));
        }
        let text = |key: &'static str| match asked.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.len() <= MAX_TEXT => {
                Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
            }
            Some(_) => Err(TapError::Text(key)),
        };
        let wait = match asked.get("seconds") {
            None | Some(Value::Null) => WAIT,
            Some(seconds) => {
                let seconds = seconds.as_u64().map(Duration::from_secs);
                let wait =
                    seconds.filter(|wait| (1..=MAX_WAIT.as_secs()).contains(&wait.as_secs()));
                wait.ok_or(TapError::Seconds)?
            }
        };
        let header = match (text("header")?, text("value")?) {
            (None, Some(_)) => return Err(TapError::NoHeader),
            (name, value) => {
                name.map(|name| (name.to_ascii_lowercase(), value.unwrap_or_default()))
            }
        };
        let wanted = Self {
            method: text("method")?,
            path: text("path")?,
            route: text("route")?,
            header,
        };
        Ok((wanted, wait))
    }

    /// Whether this is the request: its head as the client sent it, and its route.
    fn matches(&self, sent: &request::Parts, route: Option<&Route>) -> bool {
        let method = self.method.as_ref();
        let path = || sent.uri.path_and_query().map_or("/", |path| path.as_str());
        let header = |(name, part): &(String, String)| match name.as_str() {
            "host" | ":authority" => head::authority(sent).is_some_and(|host| host.contains(part)),
            name => {
                let mut values = sent.headers.get_all(name).iter();
                values
                    .any(|value| memchr::memmem::find(value.as_bytes(), part.as_bytes()).is_some())
            }
        };
        method.is_none_or(|method| method.eq_ignore_ascii_case(sent.method.as_str()))
            && self
                .path
                .as_ref()
                .is_none_or(|part| path().contains(part.as_str()))
            && self.header.as_ref().is_none_or(header)
            && (self.route.as_ref()).is_none_or(|wanted| route.is_some_and(|r| label(r) == wanted))
    }
}

/// What the page calls a route: its name, else its cluster.
pub(super) fn label(route: &Route) -> &str {
    match route.name.as_str() {
        "" => route.cluster.as_deref().unwrap_or_default(),
        name => name,
    }
}

impl Taps {
    /// Waits for a request; the tap's number.
    pub(super) fn arm(&mut self, wanted: Wanted, wait: Duration) -> Result<u64, TapError> {
        let now = Instant::now();
        self.armed.retain(|armed| armed.until > now);
        if self.armed.len() >= MAX_TAPS {
            return Err(TapError::Full);
        }
        self.last = self.last.saturating_add(1);
        self.armed.push(Armed {
            id: self.last,
            until: now + wait,
            wanted,
        });
        Ok(self.last)
    }

    /// Waits no more. False when the tap did not wait.
    pub(super) fn disarm(&mut self, id: u64) -> bool {
        let before = self.armed.len();
        self.armed.retain(|armed| armed.id != id);
        self.armed.len() < before
    }

    /// The tap that waits for this request, which is over with that. `route` finds its route.
    pub(super) fn claim(
        &mut self,
        sent: &request::Parts,
        route: impl FnOnce() -> Option<Arc<Route>>,
    ) -> Option<u64> {
        if self.armed.is_empty() {
            return None;
        }
        let now = Instant::now();
        let route = route();
        let route = route.as_deref();
        let mut armed = self.armed.iter();
        let found = armed.position(|tap| tap.until > now && tap.wanted.matches(sent, route))?;
        Some(self.armed.remove(found).id)
    }

    /// Those that wait, for watchers.
    pub(super) fn show(&self) -> Value {
        let now = Instant::now();
        let waiting = self.armed.iter().filter(|armed| armed.until > now);
        let waiting = waiting.map(|armed| {
            let Wanted {
                method,
                path,
                route,
                header,
            } = &armed.wanted;
            json!({
                "id": armed.id,
                "seconds": armed.until.duration_since(now).as_secs(),
                "method": method,
                "path": path,
                "route": route,
                "header": header.as_ref().map(|(name, _)| name),
            })
        });
        waiting.collect()
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn wanted(asked: Value) -> Wanted {
        Wanted::read(&asked).unwrap().0
    }

    fn matches(asked: Value) -> bool {
        let request = Request::post("/orders?id=7").header("host", "shop.example");
        let request = request
            .header("x-tenant", "blue")
            .header("x-tenant", "green");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let route = Route {
            name: "orders".to_owned(),
            ..Route::default()
        };
        wanted(asked).matches(&parts, Some(&route))
    }

    #[test]
    fn a_request_is_wanted_when_all_that_is_said_holds() {
        for (asked, same) in [
            (json!({}), true),
            (
                json!({ "method": "post", "path": "?id=", "route": "orders" }),
                true,
            ),
            (json!({ "method": "GET" }), false),
            (json!({ "path": "/carts" }), false),
            (json!({ "route": "carts" }), false),
            (json!({ "header": "X-Tenant" }), true),
            (json!({ "header": "x-tenant", "value": "gree" }), true),
            (json!({ "header": "x-tenant", "value": "red" }), false),
            (json!({ "header": "x-other" }), false),
            (json!({ "header": "host", "value": "shop" }), true),
            (json!({ "header": "no name", "value": " " }), false),
        ] {
            assert_eq!(matches(asked.clone()), same, "{asked}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_reason() {
        for (asked, error) in [
            (json!([]), TapError::NoObject),
            (json!({ "pth": "/" }), TapError::Unknown("pth".to_owned())),
            (json!({ "path": 7 }), TapError::Text("path")),
            (json!({ "path": "x".repeat(2000) }), TapError::Text("path")),
            (json!({ "value": "x" }), TapError::NoHeader),
            (json!({ "seconds": 0 }), TapError::Seconds),
            (json!({ "seconds": 601 }), TapError::Seconds),
            (json!({ "seconds": "1" }), TapError::Seconds),
        ] {
            assert_eq!(Wanted::read(&asked), Err(error), "{asked}");
        }
    }

    #[test]
    fn a_tap_is_for_one_request_and_there_are_few() {
        let mut taps = Taps::default();
        let (parts, ()) = Request::new(()).into_parts();
        let first = taps.arm(Wanted::default(), WAIT).unwrap();
        assert_eq!(taps.claim(&parts, || None), Some(first));
        assert_eq!(taps.claim(&parts, || None), None);
        for _ in 0..MAX_TAPS {
            taps.arm(Wanted::default(), WAIT).unwrap();
        }
        assert_eq!(taps.arm(Wanted::default(), WAIT), Err(TapError::Full));
        assert!(taps.disarm(first + 1));
        assert!(!taps.disarm(first + 1));
        assert_eq!(taps.show().as_array().unwrap().len(), MAX_TAPS - 1);
    }

    #[test]
    fn a_tap_that_waited_long_enough_takes_nothing() {
        let mut taps = Taps::default();
        let (parts, ()) = Request::new(()).into_parts();
        taps.arm(Wanted::default(), Duration::ZERO).unwrap();
        assert_eq!(taps.claim(&parts, || None), None);
        assert_eq!(taps.show(), json!([]));
    }
}
