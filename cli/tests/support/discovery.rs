//! A control plane (xDS) that asks its clients who they are.

use attache_service::{
    Address,
    tls::{ServerFiles, ServerTls, TlsVersion},
};
use attache_tests::discovery::ControlPlane;

use super::grpc::Certificates;

/// Starts it there with mutual TLS.
pub async fn start(certificates: &Certificates, at: &Address) -> ControlPlane {
    let tls = ServerTls::load(ServerFiles {
        certificate: certificates.file("server.pem").into(),
        private_key: certificates.file("server.key").into(),
        client_ca: Some(certificates.file("ca.pem").into()),
        client_name: None,
        min_version: TlsVersion::default(),
        alpn: vec!["h2".to_owned()],
    });
    ControlPlane::start_at(Some(tls.unwrap()), at).await
}
