//! What a TLS connection tells about the other side.

use std::sync::Arc;

use rustls::ProtocolVersion;

use super::Certificate;

/// The client of a TLS connection that we accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Server name that it asked for.
    pub sni: Option<String>,
    /// Application protocol agreed on.
    pub alpn: Option<String>,
    /// Version of TLS agreed on, as OpenSSL calls it: `TLSv1.2` or `TLSv1.3`.
    pub version: Option<&'static str>,
    /// Its leaf certificate, DER, verified; absent when none was asked for.
    pub certificate: Option<Arc<[u8]>>,
    /// What that certificate says.
    pub identity: Option<Arc<Certificate>>,
}

impl Peer {
    /// What is known once the handshake is done.
    pub fn of(connection: &rustls::ServerConnection) -> Self {
        let leaf = connection
            .peer_certificates()
            .and_then(|chain| chain.first());
        Self {
            sni: connection.server_name().map(str::to_owned),
            alpn: connection
                .alpn_protocol()
                .map(|name| String::from_utf8_lossy(name).into_owned()),
            version: connection.protocol_version().and_then(version),
            certificate: leaf.map(|leaf| Arc::from(leaf.as_ref())),
            identity: leaf
                .and_then(|leaf| Certificate::from_der(leaf).ok())
                .map(Arc::new),
        }
    }

    /// Who the client is, by its certificate: see [`Certificate::principal`].
    pub fn principal(&self) -> Option<&str> {
        self.identity.as_deref().map(Certificate::principal)
    }
}

fn version(version: ProtocolVersion) -> Option<&'static str> {
    match version {
        ProtocolVersion::TLSv1_2 => Some("TLSv1.2"),
        ProtocolVersion::TLSv1_3 => Some("TLSv1.3"),
        _ => None,
    }
}
