//! Who the client is, told onward: `x-forwarded-for`, `x-forwarded-proto`, `x-request-id`, and what
//! only we say.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    Admitted, EXTERNAL_ADDRESS, Found, Peer, X_FORWARDED_FOR, X_FORWARDED_PROTO, append_list,
};
use crate::client_cert::ForwardClientCert;

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

/// Tells onward who the client is, and forgets what it says of that itself.
pub(super) fn forwarding(
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

pub(super) fn keeps_request_id(found: &Found, options: &ForwardOptions) -> bool {
    found.request_id && (options.preserve_external_request_id || !options.use_remote_address)
}

/// A random (version 4) UUID.
pub(super) fn new_request_id() -> HeaderValue {
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

#[cfg(test)]
mod tests {
    use http::Version;

    use super::{
        super::{
            Tunnels, admit,
            tests::{admit_default, get, parts, peer},
        },
        *,
    };

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
}
