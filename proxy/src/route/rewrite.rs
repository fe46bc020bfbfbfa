//! The path and the host that the upstream sees.

use attache_filter::{
    RequestContext, attributes::Facts, format::Format, head, substitution::Substitution,
};
use http::{HeaderName, HeaderValue, request, uri::PathAndQuery};

use super::RouteMatch;

/// A new path.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// In the place of what the route matched (`prefix_rewrite`).
    Prefix(String),
    /// After a substitution (`regex_rewrite`).
    Regex(Substitution),
    /// This one (`path_rewrite`).
    Format(Format),
}

/// A new host.
#[derive(Debug, Clone)]
pub enum HostRewrite {
    /// This one (`host_rewrite_literal`).
    Literal(HeaderValue),
    /// This one, of a cluster with a weight. As in Envoy, nobody is told of the one before.
    OfCluster(HeaderValue),
    /// What a header says (`host_rewrite_header`).
    Header(HeaderName),
    /// The path after a substitution (`host_rewrite_path_regex`).
    PathRegex(Substitution),
    /// This one (`host_rewrite`).
    Format(Format),
    /// The name of the endpoint (`auto_host_rewrite`).
    Auto,
}

impl PathRewrite {
    /// The path for the upstream, with the query of `parts`. `None` where it stays as it is:
    /// also where the new one would be no path.
    pub(crate) fn apply(
        &self,
        matches: &RouteMatch,
        parts: &request::Parts,
        context: &RequestContext,
    ) -> Option<PathAndQuery> {
        let target = parts.uri.path_and_query()?;
        let old = target.path();
        let mut path = match self {
            Self::Prefix(replacement) => {
                let rest = old.get(matches.path.length_in(old)..).unwrap_or_default();
                let mut path = String::with_capacity(replacement.len() + rest.len() + 1);
                path.push_str(replacement);
                if path.is_empty() && !rest.starts_with('/') {
                    path.push('/');
                }
                path.push_str(rest);
                path
            }
            Self::Regex(substitution) => substitution.apply(old),
            Self::Format(format) => text(format, parts, context)?,
        };
        if let Some(query) = target.query() {
            path.push('?');
            path.push_str(query);
        }
        PathAndQuery::try_from(path).ok()
    }
}

impl HostRewrite {
    /// The host for the upstream, where `endpoint` is the name of what the request goes to.
    /// `None` where it stays as it is.
    pub(crate) fn apply(
        &self,
        parts: &request::Parts,
        context: &RequestContext,
        endpoint: Option<&str>,
    ) -> Option<HeaderValue> {
        let host = match self {
            Self::Literal(host) | Self::OfCluster(host) => return Some(host.clone()),
            Self::Header(name) => parts.headers.get(name)?.clone(),
            Self::PathRegex(substitution) => {
                HeaderValue::try_from(substitution.apply(parts.uri.path())).ok()?
            }
            Self::Format(format) => HeaderValue::try_from(text(format, parts, context)?).ok()?,
            Self::Auto => HeaderValue::from_str(endpoint?).ok()?,
        };
        // What does not name a host must not break the message.
        let is_host = http::uri::Authority::try_from(host.as_bytes()).is_ok();
        is_host.then_some(host)
    }
}

/// A format filled in from a request; `None` where that gives no text.
fn text(format: &Format, parts: &request::Parts, context: &RequestContext) -> Option<String> {
    let facts = Facts {
        context,
        request: Some(parts),
        response: None,
    };
    String::from_utf8(format.value(&facts.into())).ok()
}

/// Adds the host to `x-forwarded-host`, unless it is the last one there.
pub(crate) fn append_forwarded_host(parts: &mut request::Parts) {
    const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
    let Some(host) = head::authority(parts).filter(|host| !host.is_empty()) else {
        return;
    };
    let before = parts.headers.get(&FORWARDED_HOST);
    let before = before.map(|value| String::from_utf8_lossy(value.as_bytes()));
    let hosts = match before.as_deref() {
        None | Some("") => HeaderValue::from_str(host),
        Some(before) if before.rsplit(',').next() == Some(host) => return,
        Some(before) => HeaderValue::try_from(format!("{before},{host}")),
    };
    if let Ok(hosts) = hosts {
        parts.headers.insert(FORWARDED_HOST, hosts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::PathMatch;

    fn parts(target: &str) -> request::Parts {
        let request = http::Request::builder().uri(target);
        request.body(()).unwrap().into_parts().0
    }

    fn context() -> RequestContext {
        RequestContext::new(std::sync::Arc::default(), http::Version::HTTP_11)
    }

    #[test]
    fn prefix_rewrite_replaces_what_matched_and_keeps_the_query() {
        let prefix = |text: &str| PathMatch::Prefix(text.to_owned());
        for (path, replacement, target, wanted) in [
            (prefix("/api/"), "/", "/api/x?y=1", "/x?y=1"),
            (prefix("/api"), "/v1", "/api/x", "/v1/x"),
            (prefix("/api"), "", "/api", "/"),
            (prefix("/api"), "", "/api?q", "/?q"),
            (PathMatch::Exact("/a".to_owned()), "/b", "/a?q", "/b?q"),
            (PathMatch::Separated("/a".to_owned()), "/b", "/a/c", "/b/c"),
            (
                PathMatch::Regex(regex::Regex::new("/.*").unwrap()),
                "/b",
                "/a/c?q",
                "/b?q",
            ),
        ] {
            let matches = RouteMatch::path(path);
            let rewrite = PathRewrite::Prefix(replacement.to_owned());
            let rewritten = rewrite.apply(&matches, &parts(target), &context());
            assert_eq!(rewritten.unwrap(), wanted, "{target}");
        }
    }

    #[test]
    fn a_forwarded_host_is_not_given_twice() {
        let mut request = parts("/");
        let mut forwarded = |host: &'static str| {
            let host = HeaderValue::from_static(host);
            request.headers.insert(http::header::HOST, host);
            append_forwarded_host(&mut request);
            request.headers["x-forwarded-host"].clone()
        };
        assert_eq!(forwarded("a"), "a");
        assert_eq!(forwarded("a"), "a");
        assert_eq!(forwarded("b:1"), "a,b:1");
        assert_eq!(forwarded("b:1"), "a,b:1");
    }
}
