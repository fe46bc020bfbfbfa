//! What a proxy owes both sides about headers: hop-by-hop fields, `host`, forwarding headers.
//!
//! Requests are gone through once; only what that pass found is touched afterwards.

use std::net::{IpAddr, Ipv6Addr};

use attache_filter::context::TlsInfo;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header, request,
    uri::Scheme,
};

use crate::client_cert::{ForwardClientCert, Told};

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

/// How the client's address and scheme are told onward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardOptions {
    /// `use_remote_address`: the peer is a client, not a proxy of ours. Default true, as for an
    /// edge (Envoy: false).
    pub use_remote_address: bool,
    /// `xff_num_trusted_hops`: how many proxies in front of us are believed. Default 0.
    pub xff_num_trusted_hops: u32,
    /// `generate_request_id`: give requests an `x-request-id`. Default true.
    pub generate_request_id: bool,
    /// `preserve_external_request_id`: keep an id that a client sent. Default false.
    pub preserve_external_request_id: bool,
    /// What upstreams are told of a client's certificate. Default: nothing.
    pub client_cert: ForwardClientCert,
}

impl Default for ForwardOptions {
    fn default() -> Self {
        Self {
            use_remote_address: true,
            xff_num_trusted_hops: 0,
            generate_request_id: true,
            preserve_external_request_id: false,
            client_cert: ForwardClientCert::Sanitize,
        }
    }
}

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

fn check_host(parts: &mut request::Parts, hosts: u32, connect: bool) -> Result<(), Refused> {
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

/// The protocol to switch to, if it is one of `allowed`. Upgrades to HTTP/2 are ignored, as
/// RFC 9110 §7.8 permits; others are refused so that nothing after them is taken for HTTP.
/// In HTTP/2 only those have a `connection` that came as an extended `CONNECT`.
fn upgrade(
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

fn forwarding(
    headers: &mut HeaderMap,
    found: &Found,
    peer: &Peer,
    options: &ForwardOptions,
    admitted: &mut Admitted,
) {
    let hops = options.xff_num_trusted_hops as usize;
    if found.forwarded_for && (hops > 0 || !options.use_remote_address) {
        // With the peer as one of the hops, or not, the client is `hops` from the end.
        let back = if options.use_remote_address {
            hops.saturating_sub(1)
        } else {
            hops
        };
        if let Some(ip) = nth_address_from_end(headers, back) {
            admitted.client_ip = Some(ip);
        }
    }
    if !options.use_remote_address {
        if !found.forwarded_proto {
            headers.insert(X_FORWARDED_PROTO, peer.scheme());
        }
        return;
    }
    if found.envoy {
        remove_envoy(headers);
    }
    if let Some(text) = &peer.text {
        if found.forwarded_for {
            append_list(headers, &X_FORWARDED_FOR, text);
        } else {
            headers.insert(X_FORWARDED_FOR, text.clone());
        }
        let external = match admitted.client_ip {
            ip if ip == peer.ip => Some(text.clone()),
            ip => ip.and_then(|ip| HeaderValue::try_from(ip.to_string()).ok()),
        };
        if let Some(external) = external {
            headers.insert(EXTERNAL_ADDRESS, external);
        }
    }
    if hops == 0 || !found.forwarded_proto {
        headers.insert(X_FORWARDED_PROTO, peer.scheme());
    }
}

fn keeps_request_id(found: &Found, options: &ForwardOptions) -> bool {
    found.request_id && (options.preserve_external_request_id || !options.use_remote_address)
}

/// A random (version 4) UUID.
fn new_request_id() -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| HEX.get(usize::from(half & 0xf)).copied().unwrap_or(b'0');
    let random: u128 = rand::random();
    let id = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let mut text = [b'-'; 36];
    // Where the two digits of each byte stand.
    let places = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    for (place, byte) in places.into_iter().zip(id.to_be_bytes()) {
        if let Some([high, low]) = text.get_mut(place..place + 2) {
            *high = digit(byte >> 4);
            *low = digit(byte);
        }
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

fn remove_envoy(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-envoy-"))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
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

/// The address `back` places before the last one in `x-forwarded-for`.
fn nth_address_from_end(headers: &HeaderMap, back: usize) -> Option<IpAddr> {
    let lines: Vec<&str> = headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .map(|value| value.to_str().unwrap_or_default())
        .collect();
    lines
        .iter()
        .rev()
        .flat_map(|line| line.rsplit(','))
        .nth(back)
        .and_then(|item| item.trim().parse().ok())
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
mod tests {
    use super::*;

    fn parts(version: Version, uri: &str, headers: &[(&str, &str)]) -> request::Parts {
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

    fn peer() -> Peer {
        Peer::new(Some("9.9.9.9".parse().unwrap()), false)
    }

    fn admit_default(parts: &mut request::Parts) -> Result<Admitted, Refused> {
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

    fn get<'p>(parts: &'p request::Parts, name: &str) -> Option<&'p str> {
        parts.headers.get(name).map(|v| v.to_str().unwrap())
    }

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

    #[test]
    fn an_edge_tells_who_the_client_is_and_believes_nothing() {
        let mut parts = parts(
            Version::HTTP_11,
            "/",
            &[
                ("host", "a"),
                ("x-forwarded-for", "1.1.1.1"),
                ("x-forwarded-proto", "https"),
                ("x-request-id", "mine"),
                ("x-forwarded-client-cert", "URI=spiffe://a/b"),
                ("x-envoy-internal", "true"),
                ("x-envoy-external-address", "1.1.1.1"),
            ],
        );
        let admitted = admit_default(&mut parts).unwrap();
        assert_eq!(admitted.client_ip, peer().ip);
        assert_eq!(get(&parts, "x-forwarded-for"), Some("1.1.1.1,9.9.9.9"));
        assert_eq!(get(&parts, "x-forwarded-proto"), Some("http"));
        assert_eq!(get(&parts, "x-envoy-internal"), None);
        assert_eq!(get(&parts, "x-forwarded-client-cert"), None);
        assert_eq!(get(&parts, "x-envoy-external-address"), Some("9.9.9.9"));
        let id = get(&parts, "x-request-id").unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(id.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&id.as_bytes()[19]), "{id}");
    }

    #[test]
    fn the_client_is_found_behind_trusted_hops() {
        for (hops, remote, wanted) in [
            (0, true, "9.9.9.9"),
            (1, true, "3.3.3.3"),
            (2, true, "2.2.2.2"),
            (9, true, "9.9.9.9"),
            (0, false, "3.3.3.3"),
            (1, false, "2.2.2.2"),
        ] {
            let mut parts = parts(
                Version::HTTP_11,
                "/",
                &[
                    ("host", "a"),
                    ("x-forwarded-for", "1.1.1.1, 2.2.2.2"),
                    ("x-forwarded-for", "3.3.3.3"),
                ],
            );
            let options = ForwardOptions {
                use_remote_address: remote,
                xff_num_trusted_hops: hops,
                ..ForwardOptions::default()
            };
            let admitted = admit(&mut parts, &peer(), None, &options, Tunnels::default()).unwrap();
            assert_eq!(
                admitted.client_ip,
                Some(wanted.parse().unwrap()),
                "{hops} {remote}"
            );
        }
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
