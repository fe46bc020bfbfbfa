//! Our three services, called by real Envoy and by our proxy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(unreachable_pub)]
#[path = "../../cli/tests/support/jwt.rs"]
mod jwt;

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use attache_ext_authz::{policy::AuthService, server as ext_authz_server};
use attache_ratelimit::{
    RateLimitServer,
    store::{AnyStore, MemoryStore, memory},
};
use attache_service::{Address, Host, Metrics, Shutdown};
use attache_tests::{
    envoy::{self, Envoy},
    envoy_config,
    h1::{Framing, Head, Reader, write_head},
    ours::{self, RunningProxy},
};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream, UnixStream},
};
use tonic::service::Routes;

/// Both proxies in front of the same service, each with the same configuration.
struct Proxies {
    addresses: Vec<(&'static str, SocketAddr)>,
    _ours: RunningProxy,
    _envoy: Option<Envoy>,
}

impl Proxies {
    /// Starts both with this filter, which asks the service at `service`.
    async fn start(filter: &str, service: &str) -> Self {
        let config = format!(
            "
listeners: [{{ name: edge, address: '127.0.0.1:0', filters: [policy] }}]
filters: {{ policy: {filter} }}
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters:
- {{ name: web, endpoints: ['{}'], connect_timeout: 5s }}
- {{ name: service, endpoints: ['{service}'], http2: {{}}, connect_timeout: 5s }}
workers: 1
",
            origin().await
        );
        let (read, _) = ours::read(&config).unwrap();
        let ours = ours::start_ours(&config).await.unwrap();
        let mut addresses = vec![("ours", ours.address)];
        let mut envoy = None;
        match envoy::program() {
            None => println!("skipped: services called by Envoy (run cargo xtask test)"),
            Some(program) => {
                let part = envoy_config::exported(0, &read).unwrap();
                let running = Envoy::start(&program, &[part]).await.unwrap();
                addresses.push(("Envoy", running.address(0).unwrap()));
                envoy = Some(running);
            }
        }
        Self {
            addresses,
            _ours: ours,
            _envoy: envoy,
        }
    }
}

/// An origin that answers with the head of the request.
async fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (from, mut to) = stream.split();
                let mut from = Reader::new(from);
                while let Some(head) = from.head().await {
                    let mut body = Vec::new();
                    for (name, value) in &head.headers {
                        body.extend_from_slice(format!("{name}: ").as_bytes());
                        body.extend_from_slice(value);
                        body.push(b'\n');
                    }
                    let length = body.len().to_string().into_bytes();
                    let headers = vec![("content-length".to_owned(), length)];
                    let mut answer = write_head("HTTP/1.1 200 OK", &headers);
                    answer.extend_from_slice(&body);
                    to.write_all(&answer).await.unwrap();
                }
            });
        }
    });
    address
}

/// Serves a ready-made service in this process.
async fn serve(routes: Routes) -> String {
    let host = Host::new(routes).workers(1);
    let bound = host.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address: &Address = bound.address();
    let address = address.to_string();
    tokio::spawn(bound.serve(Shutdown::new()));
    address
}

struct Answer {
    status: u16,
    head: Head,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .get(name)
            .map(|value| std::str::from_utf8(value).unwrap())
    }
}

async fn ask(proxy: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut all = vec![("host".to_owned(), b"attache.test".to_vec())];
    for (name, value) in headers {
        all.push(((*name).to_owned(), value.as_bytes().to_vec()));
    }
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    let head = write_head(&format!("{method} {path} HTTP/1.1"), &all);
    stream.write_all(&head).await.unwrap();
    let mut reader = Reader::new(stream);
    let head = reader.head().await.unwrap();
    let mut body = Vec::new();
    let framing = head.framing(Framing::ToClose);
    reader
        .body(framing, |data| body.extend_from_slice(data))
        .await
        .unwrap();
    Answer {
        status: head.line.split(' ').nth(1).unwrap().parse().unwrap(),
        head,
        body: String::from_utf8(body).unwrap(),
    }
}

const AUTH: &str = "
identity:
- name: keys
  # printf %s demo-key | sha256sum
  api_key: { keys: [{ id: ada, hash: 'sha256:c48a01f49fd0f2cc404bc3cbbc80e91457a3d41bb429a695243de4c61794155c' }] }
- name: tokens
  jwt: { issuer: https://demo.attache.example, audiences: [demo], jwks_file: jwks.json }
rules:
- { name: admins, action: allow, paths: [{ prefix: /admin }], claims: { role: admin } }
- { name: others, action: deny, paths: [{ prefix: /admin }], response: { status: 403, body: admins only } }
- { name: known, action: allow }
upstream_headers: { x-user: { claim: sub } }
";

async fn auth_service(folder: &Path, jwks: &str) -> Proxies {
    std::fs::write(folder.join("jwks.json"), jwks).unwrap();
    std::fs::write(folder.join("auth.yaml"), AUTH).unwrap();
    let service = AuthService::load(&folder.join("auth.yaml"), &Metrics::default()).unwrap();
    let address = serve(ext_authz_server::routes(service)).await;
    let filter = "{ ext_authz: { transport_api_version: V3, \
                  grpc_service: { envoy_grpc: { cluster_name: service }, timeout: 10s } } }";
    Proxies::start(filter, &address).await
}

#[tokio::test]
async fn the_auth_service_knows_callers_by_api_key() {
    let folder = tempfile::tempdir().unwrap();
    let proxies = auth_service(folder.path(), include_str!("../../examples/demo/jwks.json")).await;
    for (proxy, address) in &proxies.addresses {
        let known = [("x-api-key", "demo-key"), ("x-user", "mallory")];
        let allowed = ask(*address, "GET", "/", &known).await;
        assert_eq!(allowed.status, 200, "{proxy}");
        assert!(
            allowed.body.contains("x-user: ada\n"),
            "{proxy}: {}",
            allowed.body
        );
        assert!(
            !allowed.body.contains("mallory"),
            "{proxy}: {}",
            allowed.body
        );

        let refused = ask(*address, "GET", "/admin", &known).await;
        assert_eq!(
            (refused.status, &*refused.body),
            (403, "admins only"),
            "{proxy}"
        );
        for wrong in [&[][..], &[("x-api-key", "other")]] {
            let answer = ask(*address, "GET", "/", wrong).await;
            assert_eq!(answer.status, 401, "{proxy}");
            assert!(answer.header("www-authenticate").is_some(), "{proxy}");
        }
    }
}

#[tokio::test]
async fn the_auth_service_knows_callers_by_tokens_that_others_have_made() {
    let tokens = jwt::tokens();
    if tokens.is_empty() {
        println!("skipped: none of the programs that make tokens is here");
    }
    for made in tokens {
        let folder = tempfile::tempdir().unwrap();
        let proxies = auth_service(folder.path(), &made.jwks).await;
        for (proxy, address) in &proxies.addresses {
            let case = format!("{} through {proxy}", made.maker);
            let bearer = format!("Bearer {}", made.token);
            let admin = ask(*address, "GET", "/admin", &[("authorization", &bearer)]).await;
            assert_eq!(admin.status, 200, "{case}");
            assert!(
                admin.body.contains("x-user: grace\n"),
                "{case}: {}",
                admin.body
            );

            // The last character of a signature may have bits that do not count.
            let (signed, signature) = made.token.rsplit_once('.').unwrap();
            let first = if signature.starts_with('A') { 'B' } else { 'A' };
            let forged = format!("Bearer {signed}.{first}{}", &signature[1..]);
            let answer = ask(*address, "GET", "/", &[("authorization", &forged)]).await;
            assert_eq!(answer.status, 401, "{case}");
        }
    }
}

#[tokio::test]
async fn the_rate_limit_service_counts_by_descriptor() {
    let folder = tempfile::tempdir().unwrap();
    let rules = "
domain: edge
descriptors:
- key: user
  rate_limit: { unit: hour, requests_per_unit: 2 }
";
    std::fs::write(folder.path().join("edge.yaml"), rules).unwrap();
    let metrics = Metrics::default();
    let store = AnyStore::from(MemoryStore::new(memory::DEFAULT_CAPACITY, &metrics));
    let service = RateLimitServer::load(folder.path(), store, &metrics).unwrap();
    let address = serve(service.routes()).await;
    let filter = "{ ratelimit: { domain: edge, timeout: 10s, failure_mode_deny: true, \
                  enable_x_ratelimit_headers: DRAFT_VERSION_03, \
                  rate_limit_service: { transport_api_version: V3, \
                  grpc_service: { envoy_grpc: { cluster_name: service } } }, \
                  rate_limits: [{ actions: [{ request_headers: { header_name: x-user, descriptor_key: user } }] }] } }";
    let proxies = Proxies::start(filter, &address).await;
    for (proxy, address) in &proxies.addresses {
        let mine = [("x-user", *proxy)];
        for left in ["1", "0"] {
            let answer = ask(*address, "GET", "/", &mine).await;
            assert_eq!(answer.status, 200, "{proxy}");
            assert_eq!(
                answer.header("x-ratelimit-remaining"),
                Some(left),
                "{proxy}"
            );
        }
        let over = ask(*address, "GET", "/", &mine).await;
        assert_eq!(over.status, 429, "{proxy}");
        assert_eq!(over.header("x-envoy-ratelimited"), Some("true"), "{proxy}");
        let limit = over.header("x-ratelimit-limit").unwrap();
        assert!(limit.starts_with("2, 2;w=3600"), "{proxy}: {limit}");
        // Each has counters of its own, and who sends no such header is not counted.
        let other = format!("{proxy}-2");
        assert_eq!(
            ask(*address, "GET", "/", &[("x-user", &other)])
                .await
                .status,
            200
        );
        assert_eq!(ask(*address, "GET", "/", &[]).await.status, 200);
    }
}

/// A process that ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_example_processor_marks_every_request() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("processor.sock");
    let address = format!("unix:{}", socket.display());
    let program = Command::new(env!("CARGO_BIN_EXE_example-add-header"))
        .arg(&address)
        .stderr(Stdio::null())
        .spawn();
    let _process = Process(program.unwrap());
    let listens = async {
        while UnixStream::connect(&socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), listens)
        .await
        .unwrap();
    let filter = "{ ext_proc: { grpc_service: { envoy_grpc: { cluster_name: service } }, \
                  message_timeout: 10s, processing_mode: { response_header_mode: SKIP } } }";
    let proxies = Proxies::start(filter, &address).await;
    for (proxy, address) in &proxies.addresses {
        let answer = ask(*address, "GET", "/", &[]).await;
        assert_eq!(answer.status, 200, "{proxy}");
        assert!(
            answer.body.contains("x-attache: was here\n"),
            "{proxy}: {}",
            answer.body
        );
    }
}
