//! The two ends of the connection that a request came in on.

use std::{collections::BTreeMap, net::SocketAddr};

use attache_proto::{
    auth::attribute_context::Peer,
    core::{address, socket_address::PortSpecifier},
};
use attache_service::tls::{Certificate, CertificateError};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use percent_encoding::percent_decode_str;

use super::{
    CheckRequestView,
    forwarded::{self, ForwardedCertificate, ForwardedError},
    spiffe::SpiffeId,
};

impl CheckRequestView {
    fn source(&self) -> Option<&Peer> {
        self.attributes.source.as_ref()
    }

    fn destination(&self) -> Option<&Peer> {
        self.attributes.destination.as_ref()
    }

    /// The address of the proxy's peer; not what `x-forwarded-for` says.
    pub fn source_address(&self) -> Option<SocketAddr> {
        socket_address(self.source()?)
    }

    /// The proxy's side of the connection.
    pub fn destination_address(&self) -> Option<SocketAddr> {
        socket_address(self.destination()?)
    }

    /// What the caller says of itself in `x-envoy-downstream-service-cluster`.
    pub fn source_service(&self) -> Option<&str> {
        filled(&self.source()?.service)
    }

    /// Who the proxy is on this connection, by its certificate.
    pub fn destination_principal(&self) -> Option<&str> {
        filled(&self.destination()?.principal)
    }

    /// Labels of the proxy (`bootstrap_metadata_labels_key`).
    pub fn destination_labels(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.destination()?.labels)
    }

    /// Who the TLS client is: first URI SAN, else first DNS SAN, else the subject.
    pub fn principal(&self) -> Option<&str> {
        filled(&self.source()?.principal)
    }

    /// The TLS client's SPIFFE ID, when that is who it is. The proxy has verified the certificate,
    /// but not that its authority may speak for this trust domain.
    pub fn spiffe_id(&self) -> Option<SpiffeId<'_>> {
        SpiffeId::parse(self.principal()?).ok()
    }

    /// The TLS client's certificate, DER. Needs `include_peer_certificate`.
    pub fn peer_certificate_der(&self) -> Option<Bytes> {
        self.source_pem().and_then(der)
    }

    /// The TLS client's certificate, read once; `None` when the proxy shows none. Needs
    /// `include_peer_certificate`.
    ///
    /// # Errors
    /// When what is shown is no certificate.
    pub fn peer_certificate(&self) -> Result<Option<&Certificate>, CertificateError> {
        let Some(pem) = self.source_pem() else {
            return Ok(None);
        };
        let read = || match der(pem) {
            Some(der) => Certificate::from_der(&der),
            None => Err(CertificateError("not PEM".to_owned())),
        };
        match self.parsed.certificate.get_or_init(read) {
            Ok(certificate) => Ok(Some(certificate)),
            Err(error) => Err(error.clone()),
        }
    }

    fn source_pem(&self) -> Option<&str> {
        filled(&self.source()?.certificate)
    }

    /// What proxies tell of client certificates in `x-forwarded-client-cert`, read once; empty
    /// without that header. The first element is of the proxy nearest to the client.
    ///
    /// Anybody can send this header: rely on it only behind a proxy that removes or sanitises what
    /// comes from outside (`forward_client_cert_details`).
    ///
    /// # Errors
    /// When the header cannot be read without doubt; do not take that for its absence.
    pub fn forwarded_certificates(&self) -> Result<&[ForwardedCertificate], ForwardedError> {
        const NAME: &str = "x-forwarded-client-cert";
        let read = || match self.header(NAME) {
            Some(header) => forwarded::parse(&header),
            None if self.has_header(NAME) => Err(ForwardedError::NotText),
            None => Ok(Vec::new()),
        };
        match self.parsed.forwarded.get_or_init(read) {
            Ok(elements) => Ok(elements),
            Err(error) => Err(error.clone()),
        }
    }

    /// Whether the client speaks TLS with the proxy, as far as that shows: by the TLS session
    /// (`include_tls_session`) or by who either side is.
    pub fn is_tls(&self) -> bool {
        self.attributes.tls_session.is_some()
            || self.principal().is_some()
            || self.destination_principal().is_some()
    }

    /// The server name that the TLS client asked for. Needs `include_tls_session`; for TCP
    /// connections Envoy puts it into the destination's service.
    pub fn sni(&self) -> Option<&str> {
        let session = self.attributes.tls_session.as_ref();
        session
            .and_then(|session| filled(&session.sni))
            .or_else(|| filled(&self.destination()?.service))
    }
}

fn filled(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// The bytes of the first certificate in a URL-encoded PEM text.
fn der(encoded: &str) -> Option<Bytes> {
    let pem = percent_decode_str(encoded).decode_utf8().ok()?;
    let base64: String = pem
        .trim()
        .strip_prefix("-----BEGIN CERTIFICATE-----")?
        .split_once("-----END CERTIFICATE-----")?
        .0
        .split_ascii_whitespace()
        .collect();
    STANDARD.decode(base64).ok().map(Bytes::from)
}

fn socket_address(peer: &Peer) -> Option<SocketAddr> {
    let address::Address::SocketAddress(socket) = peer.address.as_ref()?.address.as_ref()? else {
        return None;
    };
    let port = match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port).ok()?,
        _ => 0,
    };
    Some(SocketAddr::new(socket.address.parse().ok()?, port))
}
