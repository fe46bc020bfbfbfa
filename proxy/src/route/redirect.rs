//! A redirect.

use attache_filter::{
    RequestContext, attributes::Facts, format::Format, head, substitution::Substitution,
};
use http::{HeaderValue, StatusCode, request, uri::PathAndQuery};

use super::RouteMatch;

/// A redirect (`RedirectAction`). What is not given stays as it was asked for.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// 301 by default.
    pub status: StatusCode,
    /// `https_redirect` or `scheme_redirect`.
    pub scheme: Option<String>,
    /// `host_redirect`.
    pub host: Option<String>,
    /// `port_redirect`.
    pub port: Option<u16>,
    /// The new path.
    pub path: Option<PathChange>,
    /// `strip_query`.
    pub strip_query: bool,
}

/// The new path of a redirect.
#[derive(Debug, Clone)]
pub enum PathChange {
    /// This one, which may carry its own query (`path_redirect`).
    Whole(String),
    /// In the place of what the route matched (`prefix_rewrite`).
    Prefix(String),
    /// After a substitution (`regex_rewrite`).
    Regex(Substitution),
    /// This one (`path_rewrite`).
    Format(Format),
}

impl Default for Redirect {
    fn default() -> Self {
        Self {
            status: StatusCode::MOVED_PERMANENTLY,
            scheme: None,
            host: None,
            port: None,
            path: None,
            strip_query: false,
        }
    }
}

impl Redirect {
    /// The `location` for a request that came with `scheme`.
    pub(crate) fn location(
        &self,
        matches: &RouteMatch,
        parts: &request::Parts,
        scheme: &str,
        context: &RequestContext,
    ) -> Option<HeaderValue> {
        let authority = head::authority(parts).unwrap_or_default();
        let new_scheme = self.scheme.as_deref().unwrap_or(scheme);
        let host = match self.host.as_deref().filter(|host| !host.is_empty()) {
            Some(host) => host,
            None => self.kept_host(authority, scheme, new_scheme),
        };
        let mut location = format!("{new_scheme}://{host}");
        if let Some(port) = self.port {
            location.push_str(&format!(":{port}"));
        }
        let target = parts.uri.path_and_query();
        let old = target.map_or("/", PathAndQuery::path);
        let mut query = target.and_then(PathAndQuery::query);
        if self.strip_query {
            query = None;
        }
        match &self.path {
            Some(PathChange::Whole(path)) => {
                location.push_str(path);
                if path.contains('?') {
                    query = None;
                }
            }
            Some(PathChange::Prefix(replacement)) => {
                location.push_str(replacement);
                location.push_str(old.get(matches.path.length_in(old)..).unwrap_or_default());
            }
            Some(PathChange::Regex(substitution)) => location.push_str(&substitution.apply(old)),
            Some(PathChange::Format(format)) => {
                let facts = Facts {
                    context,
                    request: Some(parts),
                    response: None,
                };
                let path = format.value(&facts.into());
                location.push_str(&String::from_utf8_lossy(&path));
            }
            None => location.push_str(old),
        }
        if let Some(query) = query {
            location.push('?');
            location.push_str(query);
        }
        HeaderValue::try_from(location).ok()
    }

    /// The host of the request, without a port that another takes the place of, or that is the
    /// usual one of a scheme that changes.
    fn kept_host<'h>(&self, authority: &'h str, scheme: &str, new_scheme: &str) -> &'h str {
        let (name, port) = super::table::split_port(authority);
        let usual = match scheme {
            "https" => "443",
            _ => "80",
        };
        let drops = self.port.is_some() || scheme != new_scheme && port == Some(usual);
        match drops {
            true => name,
            false => authority,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::PathMatch;

    #[test]
    fn redirects_change_only_what_they_name() {
        let matches = RouteMatch::path(PathMatch::Prefix("/a".to_owned()));
        let context = RequestContext::new(std::sync::Arc::default(), http::Version::HTTP_11);
        let location = |host: &str, redirect: Redirect| {
            let request = http::Request::builder().uri("/a/b?q=1");
            let request = request.header("host", host).body(()).unwrap();
            let (parts, ()) = request.into_parts();
            let location = redirect.location(&matches, &parts, "http", &context);
            location.unwrap().to_str().unwrap().to_owned()
        };
        let base = Redirect::default;
        let https = || Redirect {
            scheme: Some("https".into()),
            ..base()
        };
        let path = |path| Redirect {
            path: Some(path),
            ..base()
        };
        let whole = |text: &str| path(PathChange::Whole(text.to_owned()));
        for (host, redirect, wanted) in [
            ("h:80", https(), "https://h/a/b?q=1"),
            ("h:8080", https(), "https://h:8080/a/b?q=1"),
            ("[::1]:80", https(), "https://[::1]/a/b?q=1"),
            (
                "h:8080",
                Redirect {
                    host: Some("x".into()),
                    ..base()
                },
                "http://x/a/b?q=1",
            ),
            (
                "h:8080",
                Redirect {
                    port: Some(1),
                    ..base()
                },
                "http://h:1/a/b?q=1",
            ),
            ("h:8080", whole("/z"), "http://h:8080/z?q=1"),
            ("h:8080", whole("/z?w"), "http://h:8080/z?w"),
            (
                "h:8080",
                Redirect {
                    strip_query: true,
                    ..path(PathChange::Prefix("/c".into()))
                },
                "http://h:8080/c/b",
            ),
        ] {
            assert_eq!(location(host, redirect), wanted);
        }
    }
}
