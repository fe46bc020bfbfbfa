//! What one call costs our policy services, beside a service that does nothing.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, ensure};
use attache_proto::auth::attribute_context::{HttpRequest, Peer};
use attache_proto::auth::{self, AttributeContext, CheckRequest, CheckResponse};
use attache_proto::common_ratelimit::{RateLimitDescriptor, rate_limit_descriptor::Entry};
use attache_proto::core::address::Address as Kind;
use attache_proto::core::{Address, SocketAddress, socket_address::PortSpecifier};
use attache_proto::ratelimit::rate_limit_response::Code;
use attache_proto::ratelimit::{RateLimitRequest, RateLimitResponse};
use prost::Message;

use crate::child::{Child, free_address};
use crate::config::{Proxy, Run};
use crate::grpc::Call;
use crate::ours;
use crate::window::Measured;

/// What was measured of one kind of service.
#[derive(Debug)]
pub(crate) struct CallResult {
    /// The kind of service.
    pub(crate) title: &'static str,
    /// The rounds of the service that does nothing.
    pub(crate) idle: Vec<Measured>,
    /// The rounds of ours; none if it was not to be measured.
    pub(crate) ours: Vec<Measured>,
}

/// Measures the auth and the rate-limit service.
pub(crate) async fn measure(run: &Run) -> anyhow::Result<Vec<CallResult>> {
    let folder = tempfile::tempdir().context("no folder for configurations")?;
    let mut results = Vec::new();
    for (title, idle, call, command) in [
        ("auth", "svc-authz", auth_call()?, ours::auth as Ours),
        ("rate limit", "svc-ratelimit", limits_call()?, ours::limits),
    ] {
        eprintln!("measuring: {title} service");
        let mut result = CallResult {
            title,
            idle: Vec::new(),
            ours: Vec::new(),
        };
        let (child, target) = Child::server(idle)?;
        let ours = if run.only == Some(Proxy::Envoy) {
            None
        } else {
            let target = free_address()?;
            let mut command = command(&run.attache, target, folder.path())?;
            let mut child = Child::program(&format!("our-{idle}"), &mut command, folder.path())?;
            child.ready(|| call.probe(target)).await?;
            Some((child, target))
        };
        for _ in 0..run.rounds() {
            result.idle.push(round(run, &call, &child, target).await?);
            if let Some((child, target)) = &ours {
                result.ours.push(round(run, &call, child, *target).await?);
            }
        }
        results.push(result);
    }
    Ok(results)
}

/// Makes the command of a service of ours.
type Ours = fn(&Path, SocketAddr, &Path) -> anyhow::Result<std::process::Command>;

async fn round(
    run: &Run,
    call: &Call,
    child: &Child,
    target: SocketAddr,
) -> anyhow::Result<Measured> {
    call.run(target, run.streams, &run.window(), &[child.process()])
        .await
}

/// What a proxy asks the auth service for a typical request.
fn auth_call() -> anyhow::Result<Call> {
    let headers = [
        (":authority", "shop.example.com"),
        (":method", "GET"),
        (":path", "/small"),
        (":scheme", "http"),
        ("accept", "application/json, text/plain, */*"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("accept-language", "en-GB,en;q=0.8,de;q=0.5"),
        (
            "authorization",
            "Bearer c2VjcmV0LXRva2VuLW9mLXRoZS1iZW5jaG1hcms",
        ),
        (
            "cookie",
            "session=6f1c2a9e4b7d4c0f8e3a; theme=dark; consent=1",
        ),
        (
            "user-agent",
            "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0",
        ),
        ("x-forwarded-for", "192.0.2.7"),
        ("x-forwarded-proto", "http"),
        ("x-request-id", "2f7a5a86-1c7d-4b8e-9c59-9d0c6d3c1b7e"),
        ("x-tenant", "acme"),
    ];
    let request = CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer("192.0.2.7", 41234)),
            destination: Some(peer("192.0.2.1", 8080)),
            request: Some(auth::attribute_context::Request {
                http: Some(HttpRequest {
                    id: "1234567890123456789".to_owned(),
                    method: "GET".to_owned(),
                    headers: headers
                        .map(|(name, value)| (name.to_owned(), value.to_owned()))
                        .into(),
                    path: "/small".to_owned(),
                    host: "shop.example.com".to_owned(),
                    scheme: "http".to_owned(),
                    protocol: "HTTP/1.1".to_owned(),
                    ..HttpRequest::default()
                }),
                ..auth::attribute_context::Request::default()
            }),
            ..AttributeContext::default()
        }),
    };
    Call::new(
        "/envoy.service.auth.v3.Authorization/Check",
        &request,
        |answer| {
            let answer = CheckResponse::decode(answer)?;
            ensure!(
                answer.status.is_some_and(|status| status.code == 0),
                "not allowed"
            );
            ensure!(answer.http_response.is_some(), "allowed without a header");
            Ok(())
        },
    )
}

fn peer(address: &str, port: u32) -> Peer {
    Peer {
        address: Some(Address {
            address: Some(Kind::SocketAddress(SocketAddress {
                address: address.to_owned(),
                port_specifier: Some(PortSpecifier::PortValue(port)),
                ..SocketAddress::default()
            })),
        }),
        ..Peer::default()
    }
}

/// What a proxy asks the rate-limit service for a typical request.
fn limits_call() -> anyhow::Result<Call> {
    let entry = |key: &str, value: &str| Entry {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let request = RateLimitRequest {
        domain: "bench".to_owned(),
        descriptors: vec![RateLimitDescriptor {
            entries: vec![
                entry("remote_address", "192.0.2.7"),
                entry("tenant", "acme"),
            ],
            ..RateLimitDescriptor::default()
        }],
        ..RateLimitRequest::default()
    };
    Call::new(
        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
        &request,
        |answer| {
            let answer = RateLimitResponse::decode(answer)?;
            ensure!(answer.overall_code() == Code::Ok, "over the limit");
            ensure!(answer.statuses.len() == 1, "one status for each descriptor");
            Ok(())
        },
    )
}
