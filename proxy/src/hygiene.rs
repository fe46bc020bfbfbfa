//! What a proxy owes both sides about headers: hop-by-hop fields, `host`, forwarding headers.
//!
//! Requests are gone through once; only what that pass found is touched afterwards.

mod forwarded;
mod refused;

use std::net::IpAddr;

use attache_filter::context::TlsInfo;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request};

use forwarded::{forwarding, keeps_request_id, new_request_id};
use refused::{check_host, upgrade};

pub use forwarded::ForwardOptions;
pub(crate) use refused::{Refused, UPGRADE_REFUSED};

use crate::client_cert::Told;

pub(crate) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
pub(crate) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const X_FORWARDED_CLIENT_CERT: HeaderName =
    HeaderName::from_static("x-forwarded-client-cert");
pub(crate) const EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");

const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
const UPGRADE_TOKEN: HeaderValue = HeaderValue::from_static("upgrade");

/// What is the same for all requests of one downstream connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) ip: Option<IpAddr>,
    /// The peer's address as a header value.
    pub(crate) text: Option<HeaderValue>,
    pub(crate) tls: bool,
    /// What upstreams are told of its certificate.
    told: Told,
}

impl Peer {
    pub(crate) fn new(ip: Option<IpAddr>, tls: bool) -> Self {
        Self {
            ip,
            text: ip.and_then(|ip| HeaderValue::try_from(ip.to_string()).ok()),
            tls,
            told: Told::default(),
        }
    }

    fn scheme(&self) -> HeaderValue {
        HeaderValue::from_static(if self.tls { "https" } else { "http" })
    }
}

/// What the headers of a request contain of things that need work.
#[derive(Default)]
struct Found {
    hosts: u32,
    connection: bool,
    transfer_encoding: bool,
    upgrade: bool,
    te: bool,
    expect: bool,
    keep_alive: bool,
    proxy_connection: bool,
    envoy: bool,
    forwarded_for: bool,
    forwarded_proto: bool,
    forwarded_certificate: bool,
    request_id: bool,
}

fn look(headers: &HeaderMap) -> Found {
    let mut found = Found::default();
    for name in headers.keys() {
        let text = name.as_str();
        match text.as_bytes().first() {
            Some(b'h') if text == "host" => {
                found.hosts = u32::try_from(headers.get_all(name).iter().count()).unwrap_or(2);
            }
            Some(b'c') if text == "connection" => found.connection = true,
            Some(b't') if text == "te" => found.te = true,
            Some(b't') if text == "transfer-encoding" => found.transfer_encoding = true,
            Some(b'u') if text == "upgrade" => found.upgrade = true,
            Some(b'e') if text == "expect" => found.expect = true,
            Some(b'k') if text == "keep-alive" => found.keep_alive = true,
            Some(b'p') if text == "proxy-connection" => found.proxy_connection = true,
            Some(b'x') => {
                if text.starts_with("x-envoy-") {
                    found.envoy = true;
                } else if text == "x-forwarded-for" {
                    found.forwarded_for = true;
                } else if text == "x-forwarded-proto" {
                    found.forwarded_proto = true;
                } else if text == "x-forwarded-client-cert" {
                    found.forwarded_certificate = true;
                } else if text == "x-request-id" {
                    found.request_id = true;
                }
            }
            _ => {}
        }
    }
    found
}

/// The ways out of HTTP that may be asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tunnels<'l> {
    /// `Upgrade` protocols that the listener lets through, lower case.
    pub(crate) upgrades: &'l [String],
    /// Those that some route lets through.
    pub(crate) by_routes: &'l [String],
    /// Some route takes `CONNECT`.
    pub(crate) connect: bool,
}

/// What [`admit`] learned.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// The client, after trusted hops.
    pub(crate) client_ip: Option<IpAddr>,
    /// The client wants to leave HTTP (`upgrade`, in lower case).
    pub(crate) upgrade: Option<String>,
    /// The client waits to be asked for the body.
    pub(crate) holds_back: bool,
}

/// Checks a request that came in and cleans its headers, before routing and any policy.
///
/// - RFC 9112 §3.2: exactly one `host` in HTTP/1; an absolute-form target replaces it.
/// - RFC 9110 §7.6.1: hop-by-hop headers and those that `connection` lists are removed, but
///   `te: trailers` stays, and `upgrade` of an allowed kind.
/// - `x-forwarded-for`, `x-forwarded-proto`, `x-request-id` as Envoy sets them; `x-envoy-*` of
///   untrusted clients are removed.
/// - `x-forwarded-client-cert` as [`ForwardClientCert`] says, by default removed.
pub(crate) fn admit(
    parts: &mut request::Parts,
    peer: &Peer,
    tls: Option<&TlsInfo>,
    options: &ForwardOptions,
    tunnels: Tunnels<'_>,
) -> Result<Admitted, Refused> {
    let found = look(&parts.headers);
    check_host(parts, found.hosts, tunnels.connect)?;
    let mut admitted = Admitted {
        client_ip: peer.ip,
        upgrade: None,
        holds_back: found.expect,
    };
    let headers = &mut parts.headers;
    if found.upgrade {
        admitted.upgrade = match parts.method {
            Method::CONNECT => None,
            _ => upgrade(parts.version, headers, tunnels)?,
        };
    }
    if found.connection {
        remove_listed(headers);
        headers.remove(header::CONNECTION);
    }
    if found.upgrade && admitted.upgrade.is_none() {
        headers.remove(header::UPGRADE);
    }
    if found.transfer_encoding {
        headers.remove(header::TRANSFER_ENCODING);
    }
    if found.te {
        keep_te_trailers(headers);
    }
    if found.expect {
        headers.remove(header::EXPECT);
    }
    if found.keep_alive {
        headers.remove(KEEP_ALIVE);
    }
    if found.proxy_connection {
        headers.remove(PROXY_CONNECTION);
    }
    if found.forwarded_certificate || options.client_cert.writes() {
        options.client_cert.apply(headers, tls, &peer.told);
    }
    if admitted.upgrade.is_some() {
        headers.insert(header::CONNECTION, UPGRADE_TOKEN);
    }
    forwarding(headers, &found, peer, options, &mut admitted);
    if options.generate_request_id && !keeps_request_id(&found, options) {
        headers.insert(X_REQUEST_ID, new_request_id());
    }
    Ok(admitted)
}

/// Removes what a request must not say behind its body (RFC 9110 §6.5.1): framing, routing,
/// credentials, and what only we say. Whoever merges trailers into headers would believe it.
pub(crate) fn clean_request_trailers(trailers: &mut HeaderMap) {
    let forbidden: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| is_no_trailer(name.as_str()))
        .cloned()
        .collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

fn is_no_trailer(name: &str) -> bool {
    matches!(
        name,
        "authorization"
            | "cache-control"
            | "connection"
            | "content-encoding"
            | "content-length"
            | "content-range"
            | "content-type"
            | "cookie"
            | "expect"
            | "forwarded"
            | "host"
            | "keep-alive"
            | "max-forwards"
            | "proxy-authorization"
            | "proxy-connection"
            | "range"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "x-request-id"
    ) || ["if-", "x-forwarded-", "x-envoy-"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

pub(crate) fn append_list(headers: &mut HeaderMap, name: &HeaderName, item: &HeaderValue) {
    let mut list = Vec::new();
    for value in headers.get_all(name) {
        list.extend_from_slice(value.as_bytes());
        list.push(b',');
    }
    list.extend_from_slice(item.as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(list)) {
        headers.insert(name, value);
    }
}

fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// Removes the headers that `connection` names. Those whose loss would change what the request
/// means to us or to the policies stay.
fn remove_listed(headers: &mut HeaderMap) {
    let plain = |value: &HeaderValue| {
        matches!(
            value.as_bytes(),
            b"close" | b"keep-alive" | b"Keep-Alive" | b"upgrade" | b"Upgrade"
        )
    };
    if headers.get_all(header::CONNECTION).iter().all(plain) {
        return;
    }
    let listed: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter_map(|token| HeaderName::try_from(token).ok())
        .collect();
    for name in listed {
        let needed = name == header::HOST
            || name == header::CONTENT_LENGTH
            || name == header::TE
            || name == header::UPGRADE
            || name == X_FORWARDED_FOR
            || name == X_FORWARDED_PROTO
            || name == X_REQUEST_ID
            || name == header::AUTHORIZATION
            || name == header::COOKIE;
        if !needed {
            headers.remove(name);
        }
    }
}

fn keep_te_trailers(headers: &mut HeaderMap) {
    let trailers = tokens(headers, &header::TE).any(|token| {
        token
            .split(';')
            .next()
            .is_some_and(|t| t.trim().eq_ignore_ascii_case("trailers"))
    });
    if trailers {
        headers.insert(header::TE, TRAILERS);
    } else {
        headers.remove(header::TE);
    }
}

/// Removes what was meant for us alone from an upstream's response.
pub(crate) fn clean_response(headers: &mut HeaderMap, upgraded: bool) {
    let mut hop = false;
    for name in headers.keys() {
        hop |= matches!(
            name.as_str(),
            "connection"
                | "transfer-encoding"
                | "keep-alive"
                | "proxy-connection"
                | "upgrade"
                | "te"
        );
    }
    if !hop {
        return;
    }
    if headers.contains_key(header::CONNECTION) {
        remove_listed(headers);
        headers.remove(header::CONNECTION);
    }
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(header::TE);
    if upgraded {
        headers.insert(header::CONNECTION, UPGRADE_TOKEN);
    } else {
        headers.remove(header::UPGRADE);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use http::Version;

    use super::*;

    pub(in crate::hygiene) fn parts(
        version: Version,
        uri: &str,
        headers: &[(&str, &str)],
    ) -> request::Parts {
        let mut request = http::Request::new(());
        *request.version_mut() = version;
        *request.uri_mut() = uri.parse().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        request.into_parts().0
    }

    pub(in crate::hygiene) fn peer() -> Peer {
        Peer::new(Some("9.9.9.9".parse().unwrap()), false)
    }

    pub(in crate::hygiene) fn admit_default(
        parts: &mut request::Parts,
    ) -> Result<Admitted, Refused> {
        admit(
            parts,
            &peer(),
            None,
            &ForwardOptions::default(),
            Tunnels {
                upgrades: &["websocket".to_owned()],
                ..Tunnels::default()
            },
        )
    }

    pub(in crate::hygiene) fn get<'p>(parts: &'p request::Parts, name: &str) -> Option<&'p str> {
        parts.headers.get(name).map(|v| v.to_str().unwrap())
    }

    #[test]
    fn hop_by_hop_headers_and_those_named_by_connection_are_removed() {
        let mut parts = parts(
            Version::HTTP_11,
            "/",
            &[
                ("host", "a"),
                ("connection", "x-secret, keep-alive, host, authorization"),
                ("x-secret", "1"),
                ("authorization", "Basic x"),
                ("keep-alive", "5"),
                ("proxy-connection", "close"),
                ("te", "gzip, trailers;q=1"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("expect", "100-continue"),
                ("trailer", "x"),
            ],
        );
        admit_default(&mut parts).unwrap();
        for gone in [
            "connection",
            "x-secret",
            "keep-alive",
            "proxy-connection",
            "transfer-encoding",
            "upgrade",
            "expect",
        ] {
            assert_eq!(get(&parts, gone), None, "{gone}");
        }
        assert_eq!(get(&parts, "te"), Some("trailers"));
        assert_eq!(get(&parts, "trailer"), Some("x"));
        assert_eq!(get(&parts, "host"), Some("a"));
        assert_eq!(get(&parts, "authorization"), Some("Basic x"));
    }

    #[test]
    fn a_te_without_trailers_goes() {
        let mut parts = parts(Version::HTTP_11, "/", &[("host", "a"), ("te", "gzip")]);
        admit_default(&mut parts).unwrap();
        assert_eq!(get(&parts, "te"), None);
    }

    #[test]
    fn responses_lose_their_hop_by_hop_headers() {
        let mut headers = HeaderMap::new();
        headers.insert("connection", HeaderValue::from_static("close, x-hop"));
        headers.insert("x-hop", HeaderValue::from_static("1"));
        headers.insert("transfer-encoding", HeaderValue::from_static("chunked"));
        headers.insert("x-stays", HeaderValue::from_static("1"));
        clean_response(&mut headers, false);
        assert_eq!(headers.len(), 1);
        assert!(headers.contains_key("x-stays"));
    }
}
