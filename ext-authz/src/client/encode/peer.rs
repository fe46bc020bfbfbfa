//! `AttributeContext.Peer`: both ends of the downstream connection.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use attache_filter::{ConnectionInfo, context::TlsInfo};
use attache_service::tls::write_encoded_pem;
use http::HeaderMap;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::wire::{decimal, map_entry, message, text};

/// The client.
pub(super) fn source(
    out: &mut Vec<u8>,
    connection: &ConnectionInfo,
    headers: &HeaderMap,
    with_certificate: bool,
) {
    let tls = connection.tls.as_ref();
    message(out, 1, |out| {
        address(out, connection.peer);
        if let Some(service) = headers.get("x-envoy-downstream-service-cluster") {
            text(out, 2, service.as_bytes());
        }
        if let Some(principal) = tls.and_then(|tls| tls.peer_principal.as_deref()) {
            text(out, 4, principal.as_bytes());
        }
        if with_certificate {
            certificate(out, 5, tls);
        }
    });
}

/// Our side; `labels` are encoded already.
pub(super) fn destination(out: &mut Vec<u8>, connection: &ConnectionInfo, labels: &[u8]) {
    let tls = connection.tls.as_ref();
    message(out, 2, |out| {
        address(out, connection.local);
        out.extend_from_slice(labels);
        if let Some(principal) = tls.and_then(|tls| tls.local_principal.as_deref()) {
            text(out, 4, principal.as_bytes());
        }
    });
}

/// `Peer.labels`, encoded once when the filter is planned.
pub(crate) fn labels<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in entries {
        map_entry(&mut out, 3, key, value.as_bytes());
    }
    out
}

fn address(out: &mut Vec<u8>, address: Option<SocketAddr>) {
    use std::io::Write as _;
    let Some(address) = address else { return };
    message(out, 1, |out| {
        message(out, 1, |out| {
            message(out, 2, |out| {
                match address.ip().to_canonical() {
                    IpAddr::V4(ip) => dotted(out, ip),
                    // Writing to a Vec cannot fail.
                    IpAddr::V6(ip) => _ = write!(out, "{ip}"),
                }
            });
            encode_key(3, WireType::Varint, out);
            encode_varint(u64::from(address.port()), out);
        });
    });
}

/// The address as text, without the detours of formatting.
fn dotted(out: &mut Vec<u8>, ip: Ipv4Addr) {
    for (place, octet) in ip.octets().into_iter().enumerate() {
        if place > 0 {
            out.push(b'.');
        }
        out.extend_from_slice(decimal(octet.into(), &mut [0; 20]));
    }
}

/// The client's leaf certificate: PEM, percent-encoded.
fn certificate(out: &mut Vec<u8>, tag: u32, tls: Option<&TlsInfo>) {
    let Some(der) = tls.and_then(|tls| tls.peer_certificate.as_deref()) else {
        return;
    };
    message(out, tag, |out| write_encoded_pem(der, out));
}
