//! Requests that are not let in: hosts and targets that can be read in two ways, and protocols that
//! nobody allows to switch to.

use std::net::Ipv6Addr;

use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header, request, uri::Scheme,
};

use super::{Tunnels, tokens};

/// A request that is answered at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) details: &'static str,
}

/// The answer to an upgrade that is not let through.
pub(crate) const UPGRADE_REFUSED: Refused = Refused {
    status: StatusCode::FORBIDDEN,
    details: "upgrade_failed",
};

const fn bad_request(details: &'static str) -> Refused {
    Refused {
        status: StatusCode::BAD_REQUEST,
        details,
    }
}

/// Checks and normalises who the request is for.
pub(super) fn check_host(
    parts: &mut request::Parts,
    hosts: u32,
    connect: bool,
) -> Result<(), Refused> {
    if hosts > 1 {
        return Err(bad_request("multiple_host_headers"));
    }
    if parts.method == Method::CONNECT && !(connect && parts.uri.authority().is_some()) {
        return Err(Refused {
            status: StatusCode::FORBIDDEN,
            details: "connect_not_allowed",
        });
    }
    let Some(authority) = parts.uri.authority() else {
        let path = parts.uri.path();
        // RFC 9112 §3.2.4: the server as a whole is a target of `OPTIONS` alone.
        if !(path.starts_with('/') || path == "*" && parts.method == Method::OPTIONS) {
            return Err(bad_request("path_normalization_failed"));
        }
        // Envoy refuses HTTP/1.0 without a host as well: it could not be routed.
        let host = parts
            .headers
            .get(header::HOST)
            .ok_or_else(|| bad_request("missing_host_header"))?;
        return match is_host(host.as_bytes()) {
            true => Ok(()),
            false => Err(bad_request("invalid_host_header")),
        };
    };
    if authority.as_str().contains('@') {
        return Err(bad_request("userinfo_in_authority"));
    }
    if !is_host(authority.as_str().as_bytes()) {
        return Err(bad_request("invalid_authority"));
    }
    if parts.method != Method::CONNECT {
        // RFC 9112 §3.2.3: a bare authority is a target of `CONNECT` alone.
        let scheme = parts.uri.scheme();
        if scheme.is_none_or(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
            return Err(bad_request("invalid_scheme"));
        }
        let path = parts.uri.path();
        if path == "*" && parts.method != Method::OPTIONS {
            return Err(bad_request("path_normalization_failed"));
        }
    }
    let host =
        HeaderValue::from_str(authority.as_str()).map_err(|_| bad_request("invalid_authority"))?;
    if parts.version >= Version::HTTP_2 {
        // RFC 9113 §8.3.1: `:authority` and `host` must not disagree.
        return match parts.headers.get(header::HOST) {
            Some(other) if other != host => Err(bad_request("host_and_authority_differ")),
            Some(_) => {
                parts.headers.remove(header::HOST);
                Ok(())
            }
            None => Ok(()),
        };
    }
    parts.headers.insert(header::HOST, host);
    if parts.method == Method::CONNECT {
        return Ok(());
    }
    let target = parts.uri.path_and_query().cloned();
    parts.uri = target.map_or_else(|| Uri::from_static("/"), Uri::from);
    Ok(())
}

/// Whether this is `uri-host [ ":" port ]` (RFC 3986 §3.2.2), or nothing (RFC 9112 §3.2). A host
/// with a comma is none of ours: it may be two, joined by somebody.
fn is_host(text: &[u8]) -> bool {
    if text.is_empty() {
        return true;
    }
    let (host, port) = match memchr::memrchr(b':', text) {
        None => (text, None),
        Some(_) if text.last() == Some(&b']') => (text, None),
        Some(at) => (text.get(..at).unwrap_or_default(), text.get(at + 1..)),
    };
    port.is_none_or(is_port)
        && match host.strip_prefix(b"[") {
            None => !host.is_empty() && host.iter().all(|byte| is_host_byte(*byte)),
            Some(rest) => rest
                .strip_suffix(b"]")
                .and_then(|ip| std::str::from_utf8(ip).ok())
                .is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok()),
        }
}

/// A port may be empty (RFC 3986 §3.2.3).
fn is_port(digits: &[u8]) -> bool {
    let port = std::str::from_utf8(digits).unwrap_or("-");
    digits.iter().all(u8::is_ascii_digit) && (port.is_empty() || port.parse::<u16>().is_ok())
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(&byte)
}

/// The protocol to switch to, if it is one of `allowed`. Upgrades to HTTP/2 are ignored, as
/// RFC 9110 §7.8 permits; others are refused so that nothing after them is taken for HTTP.
/// In HTTP/2 only those have a `connection` that came as an extended `CONNECT`.
pub(super) fn upgrade(
    version: Version,
    headers: &HeaderMap,
    tunnels: Tunnels<'_>,
) -> Result<Option<String>, Refused> {
    let listed = version >= Version::HTTP_11
        && tokens(headers, &header::CONNECTION).any(|t| t.eq_ignore_ascii_case("upgrade"));
    if !listed {
        return Ok(None);
    }
    let wanted = headers
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok())
        .map(|value| value.trim().to_ascii_lowercase())
        .unwrap_or_default();
    if wanted.starts_with("h2c") {
        return Ok(None);
    }
    if tunnels.upgrades.contains(&wanted) || tunnels.by_routes.contains(&wanted) {
        return Ok(Some(wanted));
    }
    Err(UPGRADE_REFUSED)
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{admit_default, get, parts},
        *,
    };

    #[test]
    fn http_1_needs_exactly_one_host() {
        let mut none = parts(Version::HTTP_11, "/", &[]);
        let mut two = parts(Version::HTTP_11, "/", &[("host", "a"), ("host", "b")]);
        let mut old = parts(Version::HTTP_10, "/", &[]);
        assert_eq!(
            admit_default(&mut none).unwrap_err().details,
            "missing_host_header"
        );
        assert_eq!(
            admit_default(&mut two).unwrap_err().details,
            "multiple_host_headers"
        );
        assert!(admit_default(&mut old).is_err());
    }

    #[test]
    fn a_host_that_is_none_is_refused() {
        for (host, wanted) in [
            ("a.b:80", true),
            ("[::1]:80", true),
            ("", true),
            ("a b", false),
            ("user@a", false),
            ("a/b", false),
            ("a\\b", false),
            ("a\t", false),
        ] {
            let mut parts = parts(Version::HTTP_11, "/", &[("host", host)]);
            assert_eq!(admit_default(&mut parts).is_ok(), wanted, "{host:?}");
        }
    }

    #[test]
    fn an_absolute_target_replaces_the_host() {
        let mut parts = parts(
            Version::HTTP_11,
            "http://real.example/x?y",
            &[("host", "other")],
        );
        admit_default(&mut parts).unwrap();
        assert_eq!(parts.uri, "/x?y");
        assert_eq!(get(&parts, "host"), Some("real.example"));
    }

    #[test]
    fn an_http2_host_that_differs_from_the_authority_is_refused() {
        let mut differs = parts(Version::HTTP_2, "http://a/", &[("host", "b")]);
        let mut same = parts(Version::HTTP_2, "http://a/", &[("host", "a")]);
        assert!(admit_default(&mut differs).is_err());
        assert!(admit_default(&mut same).is_ok());
        assert_eq!(get(&same, "host"), None);
    }

    #[test]
    fn only_listed_upgrades_pass() {
        let upgrade = |kind: &str| {
            let mut parts = parts(
                Version::HTTP_11,
                "/",
                &[("host", "a"), ("connection", "Upgrade"), ("upgrade", kind)],
            );
            let admitted = admit_default(&mut parts);
            (
                admitted.map(|a| a.upgrade),
                get(&parts, "upgrade").map(str::to_owned),
            )
        };
        assert_eq!(
            upgrade("WebSocket"),
            (
                Ok(Some("websocket".to_owned())),
                Some("WebSocket".to_owned())
            )
        );
        assert_eq!(upgrade("h2c"), (Ok(None), None));
        assert_eq!(upgrade("spdy/3.1").0.unwrap_err().details, "upgrade_failed");
    }
}
