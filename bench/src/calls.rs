//! What one call costs our policy services, beside a service that does nothing, and what one
//! exchange costs our processor, beside the same written by hand.

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
use crate::exchange::Exchange;
use crate::grpc::Call;
use crate::memory::{self, Held};
use crate::ours;
use crate::tokens::Token;
use crate::window::Measured;

/// What was measured of one kind of service.
#[derive(Debug)]
pub(crate) struct CallResult {
    /// The kind of service.
    pub(crate) title: &'static str,
    /// What ours is compared with.
    pub(crate) peer: &'static str,
    /// The rounds of the peer.
    pub(crate) theirs: Vec<Measured>,
    /// The rounds of ours; none if it was not to be measured.
    pub(crate) ours: Vec<Measured>,
}

/// What is asked of a service.
enum Work {
    /// A call with one answer.
    Call(Call),
    /// The same at a fixed rate.
    Paced(Call),
    /// A stream with several.
    Exchange(Exchange),
}

impl Work {
    async fn probe(&self, target: SocketAddr) -> anyhow::Result<()> {
        match self {
            Work::Call(call) | Work::Paced(call) => call.probe(target).await,
            Work::Exchange(exchange) => exchange.probe(target).await,
        }
    }

    async fn round(
        &self,
        run: &Run,
        (child, target): &(Child, SocketAddr),
    ) -> anyhow::Result<Measured> {
        let (window, watched) = (run.window(), [child.process()]);
        match self {
            Work::Call(call) => call.run(*target, run.streams, &window, &watched).await,
            Work::Paced(call) => call.run_paced(*target, PACE, &window, &watched).await,
            Work::Exchange(exchange) => {
                let exchanges = exchange.run(*target, run.streams, &window, &watched);
                exchanges.await
            }
        }
    }
}

/// Measures the auth and the rate-limit service, and the processor.
pub(crate) async fn measure(run: &Run) -> anyhow::Result<Vec<CallResult>> {
    let folder = tempfile::tempdir().context("no folder for configurations")?;
    let mut results = Vec::new();
    for (title, idle, call, command) in [
        (
            "auth",
            "svc-authz",
            auth_call("Bearer c2VjcmV0LXRva2VuLW9mLXRoZS1iZW5jaG1hcms")?,
            ours::auth as Ours,
        ),
        ("rate limit", "svc-ratelimit", limits_call()?, ours::limits),
    ] {
        let ours = if run.only == Some(Proxy::Envoy) {
            None
        } else {
            let target = free_address()?;
            let mut command = command(&run.attache, target, folder.path())?;
            let mut child = Child::program(&format!("our-{idle}"), &mut command, folder.path())?;
            child.ready(|| call.probe(target)).await?;
            Some((child, target))
        };
        let work = Work::Call(call);
        results.push(
            compare(
                run,
                title,
                "do-nothing",
                &Child::server(idle)?,
                ours.as_ref(),
                &work,
            )
            .await?,
        );
    }
    let tokens = Tokens::start(run, folder.path()).await?;
    results.extend(tokens.compare(run).await?);
    drop(tokens);
    for (title, exchange) in [
        ("headers", Exchange::headers()?),
        ("64 KiB body", Exchange::body()?),
    ] {
        let ours = match run.only {
            Some(Proxy::Envoy) => None,
            _ => Some(processor().await?),
        };
        let theirs = Child::server("svc-ext-proc")?;
        let work = Work::Exchange(exchange);
        results.push(compare(run, title, "hand-written", &theirs, ours.as_ref(), &work).await?);
    }
    Ok(results)
}

/// Measures latencies at a rate that all can keep up with.
pub(crate) async fn measure_paced(run: &Run) -> anyhow::Result<Vec<CallResult>> {
    let folder = tempfile::tempdir().context("no folder for configurations")?;
    let tokens = Tokens::start(run, folder.path()).await?;
    tokens.paced(run).await
}

/// Who decides on tokens.
struct Tokens {
    call: Call,
    opa: (Child, SocketAddr),
    ours: Option<(Child, SocketAddr)>,
    /// Ours, remembering no token.
    forgetful: Option<(Child, SocketAddr)>,
}

/// Calls per second of the paced measurement.
pub(crate) const PACE: u32 = 1000;

impl Tokens {
    async fn start(run: &Run, folder: &Path) -> anyhow::Result<Tokens> {
        let token = Token::new()?;
        let call = auth_call(&format!("Bearer {}", token.text))?;
        let start = async |name, command: &mut std::process::Command, target| {
            let mut child = Child::program(name, command, folder)?;
            child.ready(|| call.probe(target)).await?;
            anyhow::Ok((child, target))
        };
        let target = free_address()?;
        let opa = start("opa", &mut token.opa(&run.opa, target, folder)?, target).await?;
        let ours = async |name, remembers| {
            if run.only == Some(Proxy::Envoy) {
                return Ok(None);
            }
            let target = free_address()?;
            let mut command = token.ours(&run.attache, target, folder, remembers)?;
            start(name, &mut command, target).await.map(Some)
        };
        let (ours, forgetful) = (
            ours("our-auth", true).await?,
            ours("forgetful", false).await?,
        );
        Ok(Tokens {
            call,
            opa,
            ours,
            forgetful,
        })
    }

    async fn compare(&self, run: &Run) -> anyhow::Result<[CallResult; 3]> {
        let idle = Child::server("svc-authz-threads")?;
        let work = Work::Call(self.call.clone());
        let (ours, forgetful) = (self.ours.as_ref(), self.forgetful.as_ref());
        Ok([
            compare(run, "new tokens", "OPA", &self.opa, forgetful, &work).await?,
            compare(run, "tokens", "OPA", &self.opa, ours, &work).await?,
            compare(run, "tokens", "do-nothing*", &idle, ours, &work).await?,
        ])
    }

    async fn paced(&self, run: &Run) -> anyhow::Result<Vec<CallResult>> {
        let work = Work::Paced(self.call.clone());
        let ours = self.ours.as_ref();
        Ok(vec![
            compare(run, "tokens", "OPA", &self.opa, ours, &work).await?,
        ])
    }
}

/// Measures what open exchanges cost the two processors in memory.
pub(crate) async fn measure_held(run: &Run) -> anyhow::Result<Vec<(&'static str, Held)>> {
    eprintln!("measuring: open exchanges");
    let (child, target) = Child::server("svc-ext-proc")?;
    let mut results = vec![("hand-written", memory::hold(run, &child, target).await?)];
    if run.only != Some(Proxy::Envoy) {
        let (child, target) = processor().await?;
        results.push(("ours", memory::hold(run, &child, target).await?));
    }
    Ok(results)
}

/// Makes the command of a service of ours.
type Ours = fn(&Path, SocketAddr, &Path) -> anyhow::Result<std::process::Command>;

/// Our processor, when it answers.
async fn processor() -> anyhow::Result<(Child, SocketAddr)> {
    let (mut child, target) = Child::server("svc-processor")?;
    let exchange = Exchange::headers()?;
    child.ready(|| exchange.probe(target)).await?;
    Ok((child, target))
}

async fn compare(
    run: &Run,
    title: &'static str,
    peer: &'static str,
    theirs: &(Child, SocketAddr),
    ours: Option<&(Child, SocketAddr)>,
    work: &Work,
) -> anyhow::Result<CallResult> {
    eprintln!("measuring: {title} service");
    let mut result = CallResult {
        title,
        peer,
        theirs: Vec::new(),
        ours: Vec::new(),
    };
    for target in [Some(theirs), ours].into_iter().flatten() {
        work.probe(target.1).await?;
    }
    for _ in 0..run.rounds() {
        result.theirs.push(work.round(run, theirs).await?);
        if let Some(ours) = ours {
            result.ours.push(work.round(run, ours).await?);
        }
    }
    Ok(result)
}

/// What a proxy asks the auth service for a typical request.
fn auth_call(authorization: &str) -> anyhow::Result<Call> {
    let headers = [
        (":authority", "shop.example.com"),
        (":method", "GET"),
        (":path", "/small"),
        (":scheme", "http"),
        ("accept", "application/json, text/plain, */*"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("accept-language", "en-GB,en;q=0.8,de;q=0.5"),
        ("authorization", authorization),
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
