//! Clients that must have a certain name in their certificate.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::{danger::HandshakeSignatureValid, verify_server_name},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{TlsError, certificate::Certificate};

/// Lets `inner` verify clients, and refuses those without `name` among the alternative names of
/// their certificate.
pub(super) fn required(
    inner: Arc<dyn ClientCertVerifier>,
    name: &str,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let name = match name.contains("://") {
        true => Name::Uri(name.to_owned()),
        false => Name::Host(
            ServerName::try_from(name.to_owned())
                .map_err(|_| TlsError::ClientName(name.to_owned()))?,
        ),
    };
    Ok(Arc::new(NamedClient { inner, name }))
}

struct NamedClient {
    inner: Arc<dyn ClientCertVerifier>,
    name: Name,
}

#[derive(Debug)]
enum Name {
    /// A DNS name or IP address, matched as servers' names are (RFC 6125).
    Host(ServerName<'static>),
    Uri(String),
}

impl Name {
    fn is_of(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        match self {
            Self::Host(name) => {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)
            }
            Self::Uri(uri) => {
                let certificate = Certificate::from_der(certificate)
                    .map_err(|_| CertificateError::BadEncoding)?;
                match certificate.uris().any(|found| found == uri) {
                    true => Ok(()),
                    false => Err(CertificateError::NotValidForName.into()),
                }
            }
        }
    }
}

impl fmt::Debug for NamedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedClient")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl ClientCertVerifier for NamedClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now)?;
        self.name.is_of(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
