//! The certificates of the listener with TLS: an authority that stays, and below it a certificate
//! that is made anew as often as one likes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use tokio_rustls::TlsConnector;

/// The name that clients ask for.
pub(crate) const NAME: &str = "shop.example.com";

/// An authority, and where the certificate that it signs is kept.
pub(crate) struct Certificates {
    authority: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Certificates {
    /// A fresh authority, and a first certificate in `folder`.
    pub(crate) fn new(folder: &Path) -> anyhow::Result<Certificates> {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificates = Certificates {
            authority: CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?,
            folder: folder.to_owned(),
        };
        certificates.rotate()?;
        Ok(certificates)
    }

    /// The file with the certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join("tls.crt")
    }

    /// The file with its key.
    pub(crate) fn key(&self) -> PathBuf {
        self.folder.join("tls.key")
    }

    /// Puts a new certificate with a new key in the place of the last one, as tools do that renew
    /// them: each file whole, one after the other. Gives the certificate.
    pub(crate) fn rotate(&self) -> anyhow::Result<CertificateDer<'static>> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new([NAME.to_owned()])?;
        let certificate = params.signed_by(&key, &self.authority)?;
        replace(&self.key(), &key.serialize_pem())?;
        replace(&self.certificate(), &certificate.pem())?;
        Ok(certificate.der().clone())
    }

    /// A client that trusts the authority and speaks one protocol.
    pub(crate) fn connector(&self, alpn: &str) -> anyhow::Result<TlsConnector> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.into()];
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Writes a file so that readers see it whole, old or new.
pub(crate) fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    let beside = file.with_extension("next");
    std::fs::write(&beside, text).with_context(|| beside.display().to_string())?;
    std::fs::rename(&beside, file).with_context(|| file.display().to_string())
}
