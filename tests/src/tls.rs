//! TLS between client and proxy: certificates, and the way through it.
//!
//! A scenario writes `<tls>` for the folder with the files: `ca.pem`, and certificate and key of
//! `server` (`server.test` and `127.0.0.1`), of the client `named` (a URI and a DNS name) and of
//! the client `subject` (nothing but a subject).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use attache_service::tls::{ClientFiles, ClientTls};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    SanType,
};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

/// How the client speaks TLS.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Whose certificate it shows: `named` or `subject`; none if absent.
    pub identity: Option<String>,
    /// The server that it asks for; none if absent.
    pub sni: Option<String>,
}

static FILES: LazyLock<Result<TempDir, String>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    write_all(folder.path()).map_err(|e| e.to_string())?;
    Ok(folder)
});

/// The folder with the files.
///
/// # Errors
/// When they cannot be written.
pub fn folder() -> Result<PathBuf, String> {
    let files = FILES.as_ref().map_err(Clone::clone)?;
    Ok(files.path().to_owned())
}

fn write_all(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    std::fs::write(folder.join("ca.pem"), authority.pem())?;
    let dns = |name: &str| Ok::<_, rcgen::Error>(SanType::DnsName(name.try_into()?));
    let here = SanType::IpAddress([127, 0, 0, 1].into());
    let named = SanType::URI("spiffe://attache.test/client".try_into()?);
    for (name, alternatives) in [
        ("server", vec![dns("server.test")?, here]),
        ("named", vec![dns("client.test")?, named]),
        ("subject", Vec::new()),
    ] {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = alternatives;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority)?;
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem())?;
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

/// An address that leads to `to` through TLS, for one connection of this protocol.
///
/// # Errors
/// When there is no such identity or no socket.
pub async fn through(to: SocketAddr, tls: &Tls, alpn: &str) -> Result<SocketAddr, String> {
    let folder = folder()?;
    let file = |name: &str| folder.join(name);
    let identity = tls.identity.as_ref();
    let client = ClientTls::load(ClientFiles {
        ca: Some(file("ca.pem")),
        identity: identity.map(|name| (file(&format!("{name}.pem")), file(&format!("{name}.key")))),
        sni: tls.sni.clone(),
        alpn: vec![alpn.to_owned()],
    });
    let client = client.map_err(|e| e.to_string())?;
    let listener = TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.map_err(|e| e.to_string())?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        let (mut plain, _) = listener.accept().await?;
        let host = to.ip().to_string();
        let mut secure = client.connect(&host, TcpStream::connect(to).await?).await?;
        tokio::io::copy_bidirectional(&mut plain, &mut secure).await
    });
    Ok(address)
}
