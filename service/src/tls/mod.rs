//! TLS on both sides, always with the aws-lc-rs provider.
//!
//! Certificates, keys and authorities come from PEM files. They are read again when they change
//! ([`ServerTls::follow_files`], [`ClientTls::follow_files`]); what cannot be read leaves the
//! last good ones in use. Connections that stand keep what they were made with.

mod any_name;
mod authorities;
mod by_name;
mod certificate;
mod client_name;
mod config;
mod distinguished_name;
mod files;
mod handshake;
mod peer;
mod reload;

use std::{io, path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, crypto::CryptoProvider,
    server::WebPkiClientVerifier, version,
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

use any_name::AnyName;
pub use authorities::{ClientAuthorities, Untrusted};
use by_name::ByName;
pub use certificate::{
    AlternativeName, Certificate, CertificateError, fingerprint, principal, write_encoded_pem,
};
pub use config::{CertificateFiles, ClusterTls, ListenerTls, TlsVersion};
pub use files::TlsError;
pub use handshake::{CipherSuite, Curve, Handshake};
pub use peer::Peer;
use reload::Reloading;

/// ALPN of listeners that speak gRPC or any HTTP/2 only.
pub const ALPN_H2: &[&str] = &["h2"];
/// ALPN of listeners for HTTP/2 and HTTP/1.1.
pub const ALPN_HTTP: &[&str] = &["h2", "http/1.1"];

/// The files and choices that a listener's TLS is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// Certificate chain, leaf first, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM (PKCS#8, PKCS#1 or SEC1).
    pub private_key: PathBuf,
    /// Authorities of client certificates, PEM; when given, clients must present one.
    pub client_ca: Option<PathBuf>,
    /// A subject alternative name that the certificates of clients must have: a DNS name, an IP
    /// address, or a URI. Only with `client_ca`.
    pub client_name: Option<String>,
    /// Oldest version spoken. Default TLS 1.2.
    pub min_version: TlsVersion,
    /// Application protocols, most wanted first.
    pub alpn: Vec<String>,
}

/// The files and choices that a cluster's TLS is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// Authorities of the servers, PEM; the system's own when absent.
    pub ca: Option<PathBuf>,
    /// Certificate chain and private key that we present, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Server name to ask for and verify; the endpoint's host when absent.
    pub sni: Option<String>,
    /// Application protocols, most wanted first.
    pub alpn: Vec<String>,
}

/// How a listener speaks TLS. Cheap to clone; clones share what is reloaded.
#[derive(Clone, Debug)]
pub struct ServerTls {
    current: Arc<Reloading<Serving>>,
    made_of: Arc<(ServerFiles, Handshake)>,
}

struct Serving {
    config: Arc<ServerConfig>,
    certificates: Arc<ByName>,
}

/// How a client speaks TLS to one cluster. Cheap to clone; clones share what is reloaded.
#[derive(Clone, Debug)]
pub struct ClientTls {
    current: Arc<Reloading<ClientConfig>>,
    server_name: Option<ServerName<'static>>,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read or holds the wrong thing, or key and certificate do not match; the
    /// error names the file.
    pub fn load(files: ServerFiles) -> Result<Self, TlsError> {
        Self::load_with(files, Handshake::default())
    }

    /// Reads the files, with choices beyond the defaults.
    ///
    /// # Errors
    /// As [`ServerTls::load`]; also when a further certificate has no DNS name, or the choices
    /// leave nothing to speak.
    pub fn load_with(files: ServerFiles, handshake: Handshake) -> Result<Self, TlsError> {
        let mut watched = vec![files.certificate.clone(), files.private_key.clone()];
        watched.extend(files.client_ca.clone());
        for (certificate, private_key) in &handshake.certificates {
            watched.extend([certificate.clone(), private_key.clone()]);
        }
        let made_of = Arc::new((files, handshake));
        let make = made_of.clone();
        let current = Reloading::load(watched, move || server_config(&make.0, &make.1))?;
        Ok(Self {
            current: Arc::new(current),
            made_of,
        })
    }

    /// Takes the place of `before`. Where both are made of the same, also by the contents of the
    /// files, its sessions can still be resumed: tickets go on to hold.
    pub fn succeed(&self, before: &Self) {
        if self.made_of == before.made_of {
            self.current.go_on_with(&before.current);
        }
    }

    /// The handshake on an accepted connection.
    ///
    /// # Errors
    /// The peer does not agree, or goes away.
    pub async fn accept<IO>(&self, io: IO) -> io::Result<tokio_rustls::server::TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        tokio_rustls::TlsAcceptor::from(self.config())
            .accept(io)
            .await
    }

    /// The rustls configuration in use now.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current.get().config.clone()
    }

    /// Our certificate for clients that ask for this name.
    pub fn local_identity(&self, name: Option<&str>) -> Option<Arc<Certificate>> {
        self.current.get().certificates.identity(name)
    }

    /// Reads the files again now.
    ///
    /// # Errors
    /// As [`ServerTls::load`]; what was in use stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.reload()
    }

    /// Reads the files again whenever they change, until dropped.
    pub async fn follow_files(&self) {
        self.current.follow().await;
    }
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// As [`ServerTls::load`]; also a server name that is none, and a system without any
    /// authority when `ca` is absent.
    pub fn load(files: ClientFiles) -> Result<Self, TlsError> {
        Self::load_verifying(files, Verified::All)
    }

    /// Reads the files, for servers whose certificate may be for another name than the one that
    /// they are reached by. Whoever holds a certificate of the same authority can pass for them.
    ///
    /// # Errors
    /// As [`ClientTls::load`].
    pub fn load_for_any_name(files: ClientFiles) -> Result<Self, TlsError> {
        Self::load_verifying(files, Verified::AllButName)
    }

    fn load_verifying(files: ClientFiles, verified: Verified) -> Result<Self, TlsError> {
        let server_name = match &files.sni {
            Some(name) => Some(server_name(name)?),
            None => None,
        };
        let mut watched: Vec<PathBuf> = files.ca.iter().cloned().collect();
        if let Some((certificate, private_key)) = &files.identity {
            watched.extend([certificate.clone(), private_key.clone()]);
        }
        let current = Reloading::load(watched, move || client_config(&files, verified))?;
        Ok(Self {
            current: Arc::new(current),
            server_name,
        })
    }

    /// The handshake on a new connection to `host` (a name or an IP address).
    ///
    /// # Errors
    /// The server is not trusted, does not agree, or goes away; or neither `sni` nor `host` is
    /// a server name.
    pub async fn connect<IO>(
        &self,
        host: &str,
        io: IO,
    ) -> io::Result<tokio_rustls::client::TlsStream<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => server_name(host).map_err(io::Error::other)?,
        };
        tokio_rustls::TlsConnector::from(self.config())
            .connect(name, io)
            .await
    }

    /// The rustls configuration in use now.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.current.get()
    }

    /// Reads the files again now.
    ///
    /// # Errors
    /// As [`ClientTls::load`]; what was in use stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.reload()
    }

    /// Reads the files again whenever they change, until dropped.
    pub async fn follow_files(&self) {
        self.current.follow().await;
    }
}

fn server_config(files: &ServerFiles, handshake: &Handshake) -> Result<Serving, TlsError> {
    let first = (files.certificate.as_path(), files.private_key.as_path());
    let certificates = Arc::new(ByName::load(first, &handshake.certificates)?);
    let newest = handshake.max_version.unwrap_or(TlsVersion::Tls13);
    let builder = ServerConfig::builder_with_provider(handshake.provider())
        .with_protocol_versions(files.min_version.up_to(newest))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(files::authorities(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let verifier = match handshake.optional_client_certificate {
                true => verifier.allow_unauthenticated(),
                false => verifier,
            };
            let verifier = verifier.build().map_err(|error| TlsError::Authorities {
                path: path.clone(),
                reason: error.to_string(),
            })?;
            builder.with_client_cert_verifier(match &files.client_name {
                None => verifier,
                Some(name) => client_name::required(verifier, name)?,
            })
        }
    };
    let mut config = builder.with_cert_resolver(certificates.clone());
    config.alpn_protocols = alpn(&files.alpn);
    handshake.finish(&mut config)?;
    Ok(Serving {
        config: Arc::new(config),
        certificates,
    })
}

/// What is verified of a server.
#[derive(Debug, Clone, Copy)]
enum Verified {
    All,
    AllButName,
}

fn client_config(files: &ClientFiles, verified: Verified) -> Result<ClientConfig, TlsError> {
    let roots = match &files.ca {
        Some(path) => files::authorities(path)?,
        None => system_authorities()?,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(TlsVersion::Tls12.up_to(TlsVersion::Tls13))?;
    let builder = match verified {
        Verified::All => builder.with_root_certificates(roots),
        Verified::AllButName => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyName::new(roots)?)),
    };
    let mut config = match &files.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, private_key)) => builder
            .with_client_auth_cert(
                files::certificates(certificate)?,
                files::private_key(private_key)?,
            )
            .map_err(|source| TlsError::Identity {
                certificate: certificate.clone(),
                private_key: private_key.clone(),
                source,
            })?,
    };
    config.alpn_protocols = alpn(&files.alpn);
    Ok(config)
}

fn system_authorities() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    match roots.is_empty() {
        true => Err(TlsError::NoSystemAuthorities),
        false => Ok(roots),
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName(name.to_owned()))
}

fn alpn(names: &[String]) -> Vec<Vec<u8>> {
    names.iter().map(|name| name.clone().into_bytes()).collect()
}

/// Named everywhere instead of installed: a library must not choose for the whole process.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

static BOTH: &[&SupportedProtocolVersion] = &[&version::TLS12, &version::TLS13];
static TLS12: &[&SupportedProtocolVersion] = &[&version::TLS12];
static TLS13: &[&SupportedProtocolVersion] = &[&version::TLS13];

impl TlsVersion {
    /// Empty when `newest` is older.
    fn up_to(self, newest: Self) -> &'static [&'static SupportedProtocolVersion] {
        match (self, newest) {
            (Self::Tls12, Self::Tls13) => BOTH,
            (Self::Tls12, Self::Tls12) => TLS12,
            (Self::Tls13, Self::Tls13) => TLS13,
            (Self::Tls13, Self::Tls12) => &[],
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
