//! Several certificates behind one address, chosen by the name that a client asks for.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{Certificate, TlsError, files, provider};

/// A certificate with its key, and what it says.
#[derive(Debug)]
struct Identity {
    key: Arc<CertifiedKey>,
    certificate: Option<Arc<Certificate>>,
}

/// The certificates of a listener. The first one is for clients that ask for none of the names.
#[derive(Debug)]
pub(super) struct ByName {
    first: Identity,
    more: Vec<Identity>,
    /// Where the certificates of a name are in `more`, also of `*.example.com` as `.example.com`;
    /// empty when there is nothing to choose from.
    names: HashMap<String, Vec<usize>>,
    /// The names that the first certificate has itself.
    own: Vec<String>,
}

impl ByName {
    /// Reads the files: pairs of certificate and key.
    pub(super) fn load(
        first: (&Path, &Path),
        more: &[(PathBuf, PathBuf)],
    ) -> Result<Self, TlsError> {
        let (first, own) = identity(first.0, first.1)?;
        let mut loaded = Self {
            first,
            more: Vec::new(),
            names: HashMap::new(),
            own,
        };
        for (certificate, private_key) in more {
            let (identity, names) = identity(certificate, private_key)?;
            if names.is_empty() {
                return Err(TlsError::NoNames(certificate.clone()));
            }
            for name in names {
                loaded
                    .names
                    .entry(name)
                    .or_default()
                    .push(loaded.more.len());
            }
            loaded.more.push(identity);
        }
        Ok(loaded)
    }

    /// The certificate that clients of this name get.
    pub(super) fn identity(&self, name: Option<&str>) -> Option<Arc<Certificate>> {
        self.choose(name, |_| true).certificate.clone()
    }

    /// The whole name goes before a wildcard, and among equals the one that stands first.
    fn choose(&self, name: Option<&str>, usable: impl Fn(&Identity) -> bool) -> &Identity {
        if self.names.is_empty() {
            return &self.first;
        }
        let name = name.map(str::to_ascii_lowercase).unwrap_or_default();
        // As certificates have it, a wildcard stands for one label.
        let wildcard = name.find('.').and_then(|dot| name.get(dot..));
        for name in [Some(name.as_str()), wildcard].into_iter().flatten() {
            if self.own.iter().any(|own| own == name) && usable(&self.first) {
                return &self.first;
            }
            let found = self.names.get(name).into_iter().flatten();
            let mut found = found.filter_map(|at| self.more.get(*at));
            if let Some(identity) = found.find(|identity| usable(identity)) {
                return identity;
            }
        }
        &self.first
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let usable = |identity: &Identity| identity.key.key.choose_scheme(schemes).is_some();
        Some(self.choose(hello.server_name(), usable).key.clone())
    }
}

/// Reads a certificate and its key; also the DNS names that it is for, in lower case, wildcards
/// without their asterisk.
fn identity(certificate: &Path, private_key: &Path) -> Result<(Identity, Vec<String>), TlsError> {
    let chain = files::certificates(certificate)?;
    let key = files::private_key(private_key)?;
    let leaf = chain.first().cloned();
    let key =
        CertifiedKey::from_der(chain, key, &provider()).map_err(|source| TlsError::Identity {
            certificate: certificate.to_owned(),
            private_key: private_key.to_owned(),
            source,
        })?;
    let certificate = leaf.and_then(|leaf| Certificate::from_der(&leaf).ok());
    let names = certificate
        .iter()
        .flat_map(|certificate| certificate.dns_names().map(plain))
        .collect();
    let identity = Identity {
        key: Arc::new(key),
        certificate: certificate.map(Arc::new),
    };
    Ok((identity, names))
}

fn plain(name: &str) -> String {
    name.strip_prefix('*').unwrap_or(name).to_ascii_lowercase()
}
