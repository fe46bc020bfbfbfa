//! TLS as written in configuration files.

use std::path::{Path, PathBuf};

use super::{
    CipherSuite, ClientFiles, ClientTls, Curve, Handshake, ServerFiles, ServerTls, TlsError,
};
use crate::{
    config::{Errors, Located, Spanned},
    config_enum, config_struct,
};

config_enum! {
    /// A version of the TLS protocol.
    #[derive(Default)]
    pub enum TlsVersion {
        /// TLS 1.2.
        #[default]
        Tls12 = "TLSv1_2",
        /// TLS 1.3.
        Tls13 = "TLSv1_3",
    }
}

config_struct! {
    /// `tls` of a listener or a service. Relative paths start at the file they are written in.
    pub struct ListenerTls {
        /// Certificate chain, leaf first: a PEM file.
        pub certificate: Located<PathBuf>,
        /// Its private key: a PEM file.
        pub private_key: Located<PathBuf>,
        /// Further certificates. A client gets the one that has the name it asks for (SNI) among
        /// its DNS names, whole or with `*.` for the first label; otherwise the first of all.
        pub certificates: Vec<CertificateFiles>,
        /// Authorities of client certificates: a PEM file. Given, clients must present one.
        pub client_ca: Option<Located<PathBuf>>,
        /// Refuse clients without a certificate. Default true; only with `client_ca`.
        pub require_client_certificate: Option<Located<bool>>,
        /// Oldest version spoken; `TLSv1_2` when left out.
        pub min_version: Option<TlsVersion>,
        /// Newest version spoken; `TLSv1_3` when left out.
        pub max_version: Option<Located<TlsVersion>>,
        /// What TLS 1.2 encrypts with, most wanted first; all that are safe when left out.
        pub cipher_suites: Vec<CipherSuite>,
        /// How keys are agreed on, most wanted first; all when left out.
        pub ecdh_curves: Vec<Curve>,
        /// Make every connection go through the whole handshake: no session tickets. Default
        /// false.
        pub disable_stateless_session_resumption: Option<bool>,
        /// Application protocols, most wanted first; what the listener speaks when left out.
        pub alpn: Option<Vec<String>>,
    }
}

config_struct! {
    /// A certificate with its key.
    pub struct CertificateFiles {
        /// Certificate chain, leaf first: a PEM file.
        pub certificate: Located<PathBuf>,
        /// Its private key: a PEM file.
        pub private_key: Located<PathBuf>,
    }
}

config_struct! {
    /// `tls` of a cluster. Relative paths start at the file they are written in.
    #[derive(Default)]
    pub struct ClusterTls {
        /// Authorities of the servers: a PEM file. Left out, those of the system.
        pub ca: Option<Located<PathBuf>>,
        /// Certificate chain that we present: a PEM file.
        pub certificate: Option<Located<PathBuf>>,
        /// Its private key: a PEM file.
        pub private_key: Option<Located<PathBuf>>,
        /// Server name to ask for and verify; the endpoint's host when left out.
        pub sni: Option<Located<String>>,
    }
}

impl ListenerTls {
    /// Reads the files. `alpn` is used where the configuration gives none.
    pub fn plan(&self, alpn: &[&str], errors: &mut Errors) -> Option<ServerTls> {
        let own = self.alpn.clone();
        if let (Some(written), None) = (&self.require_client_certificate, &self.client_ca) {
            errors.push(
                written,
                "`require_client_certificate` needs `client_ca` beside it",
            );
        }
        let min_version = self.min_version.unwrap_or_default();
        if let Some(max) = &self.max_version
            && max.value == TlsVersion::Tls12
            && min_version == TlsVersion::Tls13
        {
            errors.push(max, "`max_version` is older than `min_version`");
            return None;
        }
        let required = self.require_client_certificate.as_ref();
        let more = self.certificates.iter();
        let handshake = Handshake {
            certificates: more
                .clone()
                .map(|files| (resolve(&files.certificate), resolve(&files.private_key)))
                .collect(),
            optional_client_certificate: required.is_some_and(|required| !required.value),
            max_version: self.max_version.as_ref().map(|version| version.value),
            cipher_suites: self.cipher_suites.clone(),
            ecdh_curves: self.ecdh_curves.clone(),
            no_resumption: self.disable_stateless_session_resumption.unwrap_or(false),
        };
        let files = ServerFiles {
            certificate: resolve(&self.certificate),
            private_key: resolve(&self.private_key),
            client_ca: self.client_ca.as_ref().map(resolve),
            client_name: None,
            min_version,
            alpn: own.unwrap_or_else(|| owned(alpn)),
        };
        let loaded = ServerTls::load_with(files, handshake);
        let at = |error: &TlsError| {
            let about = |field: &Located<PathBuf>| error.path() == Some(&resolve(field));
            [Some(&self.private_key), self.client_ca.as_ref()]
                .into_iter()
                .flatten()
                .chain(more.flat_map(|files| [&files.private_key, &files.certificate]))
                .find(|field| about(field))
                .unwrap_or(&self.certificate)
        };
        loaded
            .map_err(|error| errors.push(at(&error), error.to_string()))
            .ok()
    }
}

impl ClusterTls {
    /// Reads the files. `alpn` is what the cluster's connections speak; `at` is where to
    /// report what no written field is to blame for.
    pub fn plan(&self, alpn: &[&str], at: &impl Spanned, errors: &mut Errors) -> Option<ClientTls> {
        let identity = match (&self.certificate, &self.private_key) {
            (Some(certificate), Some(key)) => Some((resolve(certificate), resolve(key))),
            (None, None) => None,
            (Some(lonely), None) => {
                errors.push(lonely, "`certificate` needs `private_key` beside it");
                return None;
            }
            (None, Some(lonely)) => {
                errors.push(lonely, "`private_key` needs `certificate` beside it");
                return None;
            }
        };
        let loaded = ClientTls::load(ClientFiles {
            ca: self.ca.as_ref().map(resolve),
            identity,
            sni: self.sni.as_ref().map(|sni| sni.value.clone()),
            alpn: owned(alpn),
        });
        loaded
            .map_err(|error| {
                let files = [&self.certificate, &self.private_key, &self.ca];
                let blamed = files
                    .into_iter()
                    .flatten()
                    .find(|field| error.path() == Some(&resolve(field)));
                match (blamed, &self.sni, &error) {
                    (Some(field), ..) => errors.push(field, error.to_string()),
                    (None, Some(sni), TlsError::ServerName(_)) => {
                        errors.push(sni, error.to_string());
                    }
                    _ => errors.push(at, error.to_string()),
                }
            })
            .ok()
    }
}

fn resolve(path: &Located<PathBuf>) -> PathBuf {
    let directory = path
        .span
        .file()
        .and_then(|file| Path::new(file).parent())
        .unwrap_or(Path::new(""));
    directory.join(&path.value)
}

fn owned(alpn: &[&str]) -> Vec<String> {
    alpn.iter().map(|name| (*name).to_owned()).collect()
}
