//! Where a browser sees the service, and the URLs that it is sent to.

use http::uri::Authority;
use serde::{Deserialize, Serialize};

use crate::policy::{check::Check, config::Scheme};

/// A browser's way back is kept in a cookie; longer ones lead to the front page.
const MAX_TARGET: usize = 1500;

/// Scheme and authority as a browser sees them (RFC 6454). Redirects go nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    pub(super) secure: bool,
    authority: String,
}

impl Origin {
    /// Of a request. `None` when its host is none that a browser would send.
    pub(super) fn of(check: &Check<'_>, scheme: Option<Scheme>) -> Option<Self> {
        let secure = match scheme {
            Some(scheme) => scheme == Scheme::Https,
            None => check.scheme() == Some("https"),
        };
        let authority = check.request().host()?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        let parsed: Authority = authority.parse().ok()?;
        (!parsed.host().is_empty() && authority.bytes().all(plain)).then(|| Self {
            secure,
            authority: authority.to_ascii_lowercase(),
        })
    }

    /// The URL of a path, given with its leading slash.
    pub(super) fn url(&self, path: &str) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.authority)
    }
}

/// Path and query to come back to after signing in; the front page when they are nothing that a
/// browser could be sent to.
pub(super) fn target(path_and_query: &str) -> String {
    let target = path_and_query.split('#').next().unwrap_or_default();
    // Written after an authority, such a path cannot lead to another host.
    let fine = target.starts_with('/')
        && target.len() <= MAX_TARGET
        && target.bytes().all(|byte| byte.is_ascii_graphic());
    if fine { target } else { "/" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{explain::Trail, path::Reading};

    fn origin(url: &str, scheme: Option<Scheme>) -> Option<Origin> {
        let request = http::Request::get(url).body(()).unwrap();
        let view = crate::testing::view(&request);
        let check = Check::new(&view, Reading::default(), Trail::default()).unwrap();
        Origin::of(&check, scheme)
    }

    #[test]
    fn urls_begin_with_the_scheme_and_host_of_the_request() {
        for (url, scheme, expected) in [
            ("http://Shop.test/a", None, "http://shop.test/b"),
            ("https://shop.test:8443/", None, "https://shop.test:8443/b"),
            ("http://[::1]:80/", None, "http://[::1]:80/b"),
            (
                "http://shop.test/",
                Some(Scheme::Https),
                "https://shop.test/b",
            ),
            (
                "https://shop.test/",
                Some(Scheme::Http),
                "http://shop.test/b",
            ),
        ] {
            assert_eq!(origin(url, scheme).unwrap().url("/b"), expected, "{url}");
        }
    }

    #[test]
    fn hosts_that_no_browser_sends_are_no_origin() {
        for url in [
            "http://user@shop.test/",
            "http://shop.test@evil.test/",
            "http://a$b/",
        ] {
            assert_eq!(origin(url, None), None, "{url}");
        }
    }

    #[test]
    fn targets_stay_on_the_host() {
        let origin = origin("https://shop.test/", None).unwrap();
        for (asked, expected) in [
            ("/a?b=c&d", "https://shop.test/a?b=c&d"),
            ("//evil.test/", "https://shop.test//evil.test/"),
            ("/\\evil.test", "https://shop.test/\\evil.test"),
            ("https://evil.test/", "https://shop.test/"),
            ("@evil.test/", "https://shop.test/"),
            (".evil.test/", "https://shop.test/"),
            ("", "https://shop.test/"),
            ("*", "https://shop.test/"),
            ("/a\r\nset-cookie: b=c", "https://shop.test/"),
            ("/a b", "https://shop.test/"),
            ("/ä", "https://shop.test/"),
            ("/a#b", "https://shop.test/a"),
        ] {
            assert_eq!(origin.url(&target(asked)), expected, "{asked}");
        }
        assert_eq!(target(&"/".repeat(MAX_TARGET + 1)), "/");
    }
}
