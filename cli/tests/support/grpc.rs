//! gRPC calls with tonic's stubs over hyper: nothing of our own client is in them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use attache_proto::{
    auth::{
        AttributeContext, CheckRequest, CheckResponse,
        attribute_context::{HttpRequest, Request as AttributeRequest},
        authorization_client::AuthorizationClient,
    },
    common_ratelimit::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    rate_limit_quota::{
        BucketId, RateLimitQuotaUsageReports,
        rate_limit_quota_response::bucket_action::BucketAction,
        rate_limit_quota_service_client::RateLimitQuotaServiceClient,
        rate_limit_quota_usage_reports::BucketQuotaUsage,
    },
    ratelimit::{
        RateLimitRequest, RateLimitResponse, rate_limit_response::Code,
        rate_limit_service_client::RateLimitServiceClient,
    },
};
use http::Uri;
use hyper::{
    body::Incoming,
    client::conn::http2::{SendRequest, handshake},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

pub const AUTH: &str = "envoy.service.auth.v3.Authorization";
pub const LIMITS: &str = "envoy.service.ratelimit.v3.RateLimitService";
pub const QUOTAS: &str = "envoy.service.rate_limit_quota.v3.RateLimitQuotaService";

/// One connection, for tonic's stubs.
#[derive(Clone)]
pub struct Connection(SendRequest<tonic::body::Body>);

impl tower_service::Service<http::Request<tonic::body::Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Connects to `host:port` or `unix:/path`.
pub async fn connect(address: &str) -> Result<Connection, Error> {
    match address.strip_prefix("unix:") {
        Some(path) => speak(UnixStream::connect(path).await?).await,
        None => speak(TcpStream::connect(address).await?).await,
    }
}

async fn speak<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    io: IO,
) -> Result<Connection, Error> {
    let (sender, driver) = handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
    tokio::spawn(driver);
    Ok(Connection(sender))
}

/// A server's (`localhost`) and a client's certificates, all of one authority.
pub struct Certificates {
    folder: tempfile::TempDir,
    authority: rcgen::Certificate,
    client: (rcgen::Certificate, rcgen::KeyPair),
}

impl Certificates {
    pub fn new() -> Self {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let (server, server_key) = issue("localhost");
        let client = issue("client");
        let folder = super::folder(&[
            ("ca.pem", &authority.pem()),
            ("server.pem", &server.pem()),
            ("server.key", &server_key.serialize_pem()),
            ("client.pem", &client.0.pem()),
            ("client.key", &client.1.serialize_pem()),
        ]);
        Self {
            folder,
            authority,
            client,
        }
    }

    /// `ca.pem`, `server.pem`, `server.key`, `client.pem` or `client.key`.
    pub fn file(&self, name: &str) -> String {
        super::path(&self.folder, name)
    }

    /// Connects with TLS, with a certificate or without.
    pub async fn connect(&self, address: &str, certified: bool) -> Result<Connection, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = if certified {
            let (certificate, key) = &self.client;
            let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der())?;
            config.with_client_auth_cert(vec![certificate.der().clone()], key)?
        } else {
            config.with_no_client_auth()
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost")?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?;
        speak(stream).await
    }
}

fn origin() -> Uri {
    Uri::from_static("http://localhost")
}

/// What health says about a service: 1 is SERVING.
pub async fn health(connection: &Connection, service: &str) -> Result<i32, Status> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let mut client = HealthClient::with_origin(connection.clone(), origin());
    Ok(client.check(request).await?.into_inner().status)
}

/// The names of all services, by reflection.
pub async fn services(connection: &Connection) -> Vec<String> {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::with_origin(connection.clone(), origin());
    let requests = tokio_stream::once(request);
    let answers = client.server_reflection_info(requests).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    list.service
        .into_iter()
        .map(|service| service.name)
        .collect()
}

/// `Check` of a GET request with these headers.
pub async fn check(
    connection: &Connection,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<CheckResponse, Status> {
    let headers = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let request = CheckRequest {
        attributes: Some(AttributeContext {
            request: Some(AttributeRequest {
                http: Some(HttpRequest {
                    method: "GET".to_owned(),
                    path: path.to_owned(),
                    host: "attache.test".to_owned(),
                    headers: headers.collect(),
                    ..HttpRequest::default()
                }),
                ..AttributeRequest::default()
            }),
            ..AttributeContext::default()
        }),
    };
    let mut client = AuthorizationClient::with_origin(connection.clone(), origin());
    Ok(client.check(request).await?.into_inner())
}

/// Whether the auth service allows it.
pub async fn allows(connection: &Connection, path: &str, headers: &[(&str, &str)]) -> bool {
    let answer = check(connection, path, headers).await.unwrap();
    answer.status.unwrap_or_default().code == 0
}

/// What a report of usage is answered with: the bucket's assignment.
pub async fn quota(
    connection: &Connection,
    domain: &str,
    bucket: &[(&str, &str)],
) -> Result<BucketAction, Status> {
    let pairs = bucket.iter().map(|(key, value)| (*key, *value));
    let usage = BucketQuotaUsage {
        bucket_id: Some(BucketId {
            bucket: pairs
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        }),
        num_requests_allowed: 1,
        ..BucketQuotaUsage::default()
    };
    let report = RateLimitQuotaUsageReports {
        domain: domain.to_owned(),
        bucket_quota_usages: vec![usage],
    };
    let mut client = RateLimitQuotaServiceClient::with_origin(connection.clone(), origin());
    let reports = tokio_stream::once(report);
    let mut answers = client.stream_rate_limit_quotas(reports).await?.into_inner();
    let answer = answers.message().await?.unwrap_or_default();
    let action = answer.bucket_action.into_iter().next();
    action
        .and_then(|action| action.bucket_action)
        .ok_or_else(|| Status::not_found("no assignment"))
}

/// The overall code of `ShouldRateLimit` with one descriptor.
pub async fn limit(
    connection: &Connection,
    domain: &str,
    entries: &[(&str, &str)],
) -> Result<Code, Status> {
    let answer = limited(connection, domain, entries).await?;
    Ok(answer.overall_code())
}

/// `ShouldRateLimit` with one descriptor.
pub async fn limited(
    connection: &Connection,
    domain: &str,
    entries: &[(&str, &str)],
) -> Result<RateLimitResponse, Status> {
    let entries = entries.iter().map(|(key, value)| Entry {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    });
    let request = RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: vec![RateLimitDescriptor {
            entries: entries.collect(),
            ..RateLimitDescriptor::default()
        }],
        hits_addend: 1,
    };
    let mut client = RateLimitServiceClient::with_origin(connection.clone(), origin());
    Ok(client.should_rate_limit(request).await?.into_inner())
}
