//! The request that asks: the client's head, as far as it is shown. Pure.

use attache_filter::{RequestContext, matcher::ForwardedHeaders};
use attache_service::config::{Errors, Located};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header, request,
    uri::{Authority, PathAndQuery},
};

use super::{HttpCall, config::HttpService};
use crate::client::{answer::is_framing, encode::CheckBody, encode::wire::sanitized, shown};

/// Which path is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The client's path and query, behind this (`path_prefix`); it may be empty.
    Prefixed(String),
    /// This one, without the client's query (`path_override`).
    Fixed(PathAndQuery),
}

impl Target {
    pub(super) fn plan(raw: &HttpService, errors: &mut Errors) -> Self {
        let mut path = |raw: &Located<String>| match raw.parse::<PathAndQuery>() {
            Ok(path) if raw.starts_with('/') => path,
            _ => {
                errors.push(
                    raw,
                    format!("`{}` is not a path: it starts with `/`", raw.value),
                );
                PathAndQuery::from_static("/")
            }
        };
        match (&raw.path_prefix, &raw.path_override) {
            (Some(prefix), None) if prefix.is_empty() => Self::Prefixed(String::new()),
            (Some(prefix), None) => Self::Prefixed(path(prefix).as_str().to_owned()),
            (_, Some(whole)) => {
                let whole_path = path(whole);
                if raw.path_prefix.is_some() {
                    errors.push(
                        whole,
                        "`path_prefix` and `path_override` exclude each other",
                    );
                }
                Self::Fixed(whole_path)
            }
            (None, None) => Self::Prefixed(String::new()),
        }
    }

    fn of(&self, parts: &request::Parts) -> Option<PathAndQuery> {
        match self {
            Self::Fixed(path) => Some(path.clone()),
            Self::Prefixed(prefix) => {
                let path = parts.uri.path_and_query()?;
                if prefix.is_empty() {
                    return Some(path.clone());
                }
                format!("{prefix}{path}").parse().ok()
            }
        }
    }
}

/// Why a request cannot be asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAskable {
    /// A tunnel has no path to ask for.
    #[error("a CONNECT cannot be asked about over plain HTTP")]
    Connect,
    /// Path and method are what is asked about.
    #[error("`:path` and `:method` are hidden from the service")]
    Hidden,
    /// The path cannot be written behind the prefix.
    #[error("the path cannot be asked for")]
    Path,
}

/// The request about one request.
///
/// # Errors
/// Where there is none; the check then counts as failed.
pub fn check_request(
    call: &HttpCall,
    parts: &request::Parts,
    context: &RequestContext,
    body: Option<CheckBody<'_>>,
    raw_headers: bool,
    show: &ForwardedHeaders,
) -> Result<Request<Bytes>, NotAskable> {
    if parts.method == Method::CONNECT {
        return Err(NotAskable::Connect);
    }
    if !show.shows(":path") || !show.shows(":method") {
        return Err(NotAskable::Hidden);
    }
    let path = call.target.of(parts).ok_or(NotAskable::Path)?;
    let partial = body.map(|body| if body.partial { "true" } else { "false" });
    let mut headers = HeaderMap::with_capacity(parts.headers.len() + 2);
    let mut visit = |name: &str, value: &[u8]| add(&mut headers, name, value, raw_headers);
    if raw_headers {
        shown::lines(parts, partial, show, &mut visit);
    } else {
        shown::joined(parts, context.protocol, partial, show, &mut visit);
    }
    call.headers.override_in(&mut headers, parts, context);
    let data = body.map_or_else(Bytes::new, |body| Bytes::copy_from_slice(body.data));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(data.len()));
    let mut request = Request::new(data);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = headers;
    Ok(request)
}

fn add(headers: &mut HeaderMap, name: &str, value: &[u8], raw: bool) {
    if name == ":authority" {
        // Anything else could not be the host of a URI.
        if Authority::try_from(value).is_ok()
            && let Ok(host) = HeaderValue::from_bytes(value)
        {
            headers.insert(header::HOST, host);
        }
        return;
    }
    // The other pseudo-headers are not headers here.
    let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
        return;
    };
    let one_hop = [header::TE, header::TRAILER, header::EXPECT];
    if is_framing(&name) || one_hop.contains(&name) {
        return;
    }
    let value = if raw {
        HeaderValue::from_bytes(value)
    } else {
        let mut text = Vec::with_capacity(value.len());
        sanitized(&mut text, value);
        HeaderValue::from_bytes(&text)
    };
    // What was a header is one again; a full map has no room for more than the client had.
    if let Ok(value) = value {
        let _ = headers.try_append(name, value);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use attache_filter::matcher::TextMatchers;
    use attache_service::config::Document;
    use http::Version;

    use super::*;

    fn call(text: &str) -> Result<HttpCall, String> {
        let text = format!(
            "server_uri: {{ uri: http://auth/ignored, cluster: auth, timeout: 1s }}\n{text}"
        );
        let document = Document::parse("http.yaml", &text).unwrap();
        let (raw, mut errors) = document.decode_partly::<HttpService>();
        let planned = raw.map(|raw| HttpCall::plan(&raw, &mut errors));
        errors.into_result(planned).map_err(|e| e.to_string())
    }

    fn shown(patterns: &str) -> ForwardedHeaders {
        let text = format!("patterns: [{patterns}]");
        let list = Document::parse("m.yaml", &text).unwrap().decode().unwrap();
        ForwardedHeaders {
            allowed: Some(TextMatchers::plan(&list, &mut Errors::new())),
            disallowed: None,
        }
    }

    fn client(method: &str, uri: &str) -> request::Parts {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("authorization", "secret")
            .header("x-a", "1")
            .header("x-a", "2")
            .header("content-length", "77")
            .header("transfer-encoding", "chunked")
            .header("te", "trailers")
            .header("expect", "100-continue")
            .header("host", "h");
        request.body(()).unwrap().into_parts().0
    }

    fn ask(
        call: &HttpCall,
        parts: &request::Parts,
        raw: bool,
    ) -> Result<Request<Bytes>, NotAskable> {
        let context = RequestContext::new(Arc::default(), Version::HTTP_11);
        check_request(
            call,
            parts,
            &context,
            None,
            raw,
            &ForwardedHeaders::default(),
        )
    }

    #[test]
    fn the_clients_head_is_asked_about_without_its_framing() {
        let request = ask(&call("").unwrap(), &client("POST", "/p?q=1"), false).unwrap();
        assert_eq!(
            (request.method(), request.uri()),
            (&Method::POST, &Uri::from_static("/p?q=1"))
        );
        let mut lines: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                ("authorization", "secret"),
                ("content-length", "0"),
                ("host", "h"),
                ("x-a", "1,2"),
            ]
        );
        let raw = ask(&call("").unwrap(), &client("GET", "/"), true).unwrap();
        assert_eq!(raw.headers().get_all("x-a").iter().count(), 2);
    }

    #[test]
    fn the_path_is_prefixed_or_overridden() {
        for (settings, expected) in [
            ("", "/p?q=1"),
            ("path_prefix: ''", "/p?q=1"),
            ("path_prefix: /pre", "/pre/p?q=1"),
            ("path_override: /check", "/check"),
        ] {
            let request = ask(&call(settings).unwrap(), &client("GET", "/p?q=1"), false).unwrap();
            assert_eq!(request.uri(), expected, "{settings}");
        }
    }

    #[test]
    fn added_headers_take_the_place_of_the_clients() {
        let added =
            "authorization_request: { headers_to_add: [{ key: x-a, value: '<%REQ(:path)%>' }] }";
        let request = ask(&call(added).unwrap(), &client("GET", "/p"), false).unwrap();
        let lines: Vec<_> = request.headers().get_all("x-a").iter().collect();
        assert_eq!(lines, ["</p>"]);
    }

    #[test]
    fn tunnels_and_hidden_paths_cannot_be_asked_about() {
        let call = call("").unwrap();
        let connect = client("CONNECT", "h:443");
        assert_eq!(
            ask(&call, &connect, false).unwrap_err(),
            NotAskable::Connect
        );
        let context = RequestContext::new(Arc::default(), Version::HTTP_11);
        let hidden = shown("{ exact: authorization }, { exact: ':method' }");
        let asked = check_request(&call, &client("GET", "/"), &context, None, false, &hidden);
        assert_eq!(asked.unwrap_err(), NotAskable::Hidden);
    }

    #[test]
    fn mistakes_are_reported() {
        for (settings, fault) in [
            ("path_prefix: pre", "starts with `/`"),
            ("path_override: 'a b'", "starts with `/`"),
            ("path_prefix: /a\npath_override: /b", "exclude each other"),
            (
                "authorization_request: { headers_to_add: [{ key: Content-Length, value: '1' }] }",
                "for the proxy to set",
            ),
        ] {
            let error = call(settings).unwrap_err();
            assert!(error.contains(fault), "{settings}: {error}");
        }
    }
}
