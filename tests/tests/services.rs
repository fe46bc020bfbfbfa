//! Our three services, called by real Envoy and by our proxy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(unreachable_pub)]
#[path = "../../cli/tests/support/jwt.rs"]
mod jwt;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use attache_ext_authz::{
    policy::AuthService,
    server::{
        self as ext_authz_server, Authorizer, CheckError, CheckRequestView, Decision, OnFailure,
        Server,
    },
};
use attache_ratelimit::{
    RateLimitServer,
    store::{AnyStore, MemoryStore, memory},
};
use attache_service::{Address, Host, Metrics, Shutdown};
use attache_tests::proxies::{Proxies, ask};
use tokio::net::UnixStream;
use tonic::service::Routes;

/// Serves a ready-made service in this process.
async fn serve(routes: Routes) -> String {
    let host = Host::new(routes).workers(1);
    let bound = host.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address: &Address = bound.address();
    let address = address.to_string();
    tokio::spawn(bound.serve(Shutdown::new()));
    address
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
    Proxies::start(filter, "", &address).await
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

/// Does what the path says.
struct Obeys;

impl Authorizer for Obeys {
    async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
        match request.path() {
            Some("/error") => Err("the database password is hunter2")?,
            Some("/panic") => panic!("as asked"),
            Some("/slow") => std::future::pending().await,
            Some("/malformed") => Ok(Decision::allow().set("x-a", "a\r\nb: c").into()),
            Some("/busy") => {
                let busy = Decision::error(429).header("retry-after", "7");
                Ok(busy.body("later").into())
            }
            Some("/denied") => Ok(Decision::deny(401)
                .header("set-cookie", "a=1")
                .header("set-cookie", "b=2")
                .body("who are you?")
                .into()),
            _ => Ok(Decision::allow()
                .set("x-old", "new")
                .join("x-old", "more")
                .join("x-absent", "1")
                .join("x-lines", "3")
                .remove("x-gone")
                .response_add("x-answer", "yes")
                .into()),
        }
    }
}

async fn obeying(settings: &str, change: impl FnOnce(Server<Obeys>) -> Server<Obeys>) -> Proxies {
    let patience = Duration::from_millis(200);
    let server = change(Server::new(Obeys).handler_timeout(patience));
    let address = serve(server.into_routes()).await;
    let filter = format!(
        "{{ ext_authz: {{ transport_api_version: V3, {settings} \
         grpc_service: {{ envoy_grpc: {{ cluster_name: service }}, timeout: 10s }} }} }}"
    );
    Proxies::start(&filter, "", &address).await
}

const FAILURES: [&str; 4] = ["/error", "/panic", "/slow", "/malformed"];

#[tokio::test]
async fn a_failing_authorizer_answers_as_it_says_and_never_lets_pass() {
    let proxies = obeying("", |server| server).await;
    for (proxy, address) in &proxies.addresses {
        for path in FAILURES {
            let answer = ask(*address, "GET", path, &[]).await;
            assert_eq!((answer.status, &*answer.body), (503, ""), "{proxy} {path}");
        }
        let busy = ask(*address, "GET", "/busy", &[]).await;
        assert_eq!((busy.status, &*busy.body), (429, "later"), "{proxy}");
        assert_eq!(busy.header("retry-after"), Some("7"), "{proxy}");
    }
    let proxies = obeying("status_on_error: { code: 502 },", |server| {
        server.on_failure(OnFailure::failed_call())
    });
    for (proxy, address) in &proxies.await.addresses {
        for path in FAILURES {
            let answer = ask(*address, "GET", path, &[]).await;
            assert_eq!(answer.status, 502, "{proxy} {path}");
        }
    }
}

#[tokio::test]
async fn failures_of_an_authorizer_pass_where_the_proxy_lets_them_and_denials_do_not() {
    let settings = "failure_mode_allow: true, failure_mode_allow_header_add: true,";
    let proxies = obeying(settings, |server| server).await;
    for (proxy, address) in &proxies.addresses {
        for path in FAILURES.into_iter().chain(["/busy"]) {
            let answer = ask(*address, "GET", path, &[]).await;
            assert_eq!(answer.status, 200, "{proxy} {path}");
            let marked = "x-envoy-auth-failure-mode-allowed: true\n";
            assert!(
                answer.body.contains(marked),
                "{proxy} {path}: {}",
                answer.body
            );
        }
        let denied = ask(*address, "GET", "/denied", &[]).await;
        assert_eq!(
            (denied.status, &*denied.body),
            (401, "who are you?"),
            "{proxy}"
        );
    }
}

#[tokio::test]
async fn verbs_of_a_decision_do_the_same_behind_both_proxies() {
    let proxies = obeying("", |server| server).await;
    for (proxy, address) in &proxies.addresses {
        let sent = [
            ("x-old", "1"),
            ("x-old", "2"),
            ("x-lines", "1"),
            ("x-lines", "2"),
            ("x-gone", "1"),
        ];
        let answer = ask(*address, "GET", "/", &sent).await;
        assert_eq!(answer.status, 200, "{proxy}");
        assert_eq!(answer.header("x-answer"), Some("yes"), "{proxy}");
        let ours = |line: &&str| {
            ["x-old", "x-absent", "x-lines", "x-gone"]
                .iter()
                .any(|name| line.starts_with(name))
        };
        let mut seen: Vec<_> = answer.body.lines().filter(ours).collect();
        seen.sort_unstable();
        assert_eq!(
            seen,
            [
                "x-absent: 1",
                "x-lines: 1,3",
                "x-lines: 2",
                "x-old: new,more"
            ],
            "{proxy}"
        );
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
    let proxies = Proxies::start(filter, "", &address).await;
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

/// Starts an example that listens on this socket.
async fn example(program: &str, socket: &Path) -> Process {
    let program = Command::new(program)
        .arg(format!("unix:{}", socket.display()))
        .stderr(Stdio::null())
        .spawn();
    let process = Process(program.unwrap());
    let listens = async {
        while UnixStream::connect(socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), listens)
        .await
        .unwrap();
    process
}

#[tokio::test]
async fn the_example_authorizer_lets_admins_pass() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("authorizer.sock");
    let _process = example(env!("CARGO_BIN_EXE_example-admins"), &socket).await;
    let filter = "{ ext_authz: { transport_api_version: V3, \
                  grpc_service: { envoy_grpc: { cluster_name: service }, timeout: 10s } } }";
    let proxies = Proxies::start(filter, "", &format!("unix:{}", socket.display())).await;
    for (proxy, address) in &proxies.addresses {
        let admin = ask(*address, "GET", "/", &[("cookie", "a=b; role=admin")]).await;
        assert_eq!(admin.status, 200, "{proxy}");
        assert!(
            admin.body.contains("x-role: admin\n"),
            "{proxy}: {}",
            admin.body
        );
        let other = ask(*address, "GET", "/", &[("cookie", "role=other")]).await;
        assert_eq!(
            (other.status, &*other.body),
            (403, "admins only"),
            "{proxy}"
        );
    }
}

#[tokio::test]
async fn the_example_processor_marks_every_request() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("processor.sock");
    let address = format!("unix:{}", socket.display());
    let _process = example(env!("CARGO_BIN_EXE_example-add-header"), &socket).await;
    let filter = "{ ext_proc: { grpc_service: { envoy_grpc: { cluster_name: service } }, \
                  message_timeout: 10s, processing_mode: { response_header_mode: SKIP } } }";
    let proxies = Proxies::start(filter, "", &address).await;
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
