//! PEM files, with errors that name them.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustls::RootCertStore;
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};

/// Why TLS cannot be set up. Never shows what is in a file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no PEM, or has nothing of the kind that is wanted.
    #[error("{}: {reason}", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The authorities cannot be used to verify anybody.
    #[error("{}: unusable as certificate authorities: {reason}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key are not a pair, or of a kind that is not supported.
    #[error(
        "certificate {} and private key {} cannot be used together: {source}",
        certificate.display(), private_key.display()
    )]
    Identity {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        private_key: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// A certificate that clients are to get by its names has none.
    #[error("{}: no DNS name in it, so that no client would get this certificate", .0.display())]
    NoNames(PathBuf),
    /// Neither a DNS name nor an IP address.
    #[error("`{0}` is not a server name; give one with `sni`")]
    ServerName(String),
    /// What clients are to be called is no name that a certificate could have.
    #[error("`{0}` is neither a DNS name nor an IP address nor a URI, so no client has it")]
    ClientName(String),
    /// `ca` is absent and the system has nothing to offer.
    #[error("the system has no certificate authorities; name a file with `ca`")]
    NoSystemAuthorities,
    /// rustls refuses the settings.
    #[error("unusable TLS settings: {0}")]
    Settings(#[from] rustls::Error),
}

impl TlsError {
    /// The file to blame, if it is one.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::Unreadable { path, .. }
            | Self::NotPem { path, .. }
            | Self::Authorities { path, .. }
            | Self::NoNames(path) => Some(path),
            Self::Identity { certificate, .. } => Some(certificate),
            Self::ServerName(_)
            | Self::ClientName(_)
            | Self::NoSystemAuthorities
            | Self::Settings(_) => None,
        }
    }
}

/// All certificates of a file, in order; at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let certificates = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| not_pem(path, "certificate", &error))?;
    match certificates.is_empty() {
        true => Err(not_pem(path, "certificate", &pem::Error::NoItemsFound)),
        false => Ok(certificates),
    }
}

/// The first private key of a file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|error| not_pem(path, "private key", &error))
}

/// The certificates of a file as roots of trust.
pub(super) fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::Authorities {
                path: path.to_owned(),
                reason: error.to_string(),
            })?;
    }
    Ok(roots)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

fn not_pem(path: &Path, wanted: &str, error: &pem::Error) -> TlsError {
    TlsError::NotPem {
        path: path.to_owned(),
        // The other errors may quote the file, which may be a key.
        reason: match error {
            pem::Error::NoItemsFound => format!("no PEM {wanted} in it"),
            _ => format!("malformed PEM where a {wanted} should be"),
        },
    }
}
