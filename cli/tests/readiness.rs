//! An auth service whose keys are fetched is not ready before they are there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
};

use support::{
    Process, eventually_async, folder, grpc,
    grpc::{AUTH, allows},
    http::{self, Client},
    jwt, outcome, path,
};

/// A key set by URL: there from when it is published, 503 before.
#[derive(Clone)]
struct Keys {
    address: SocketAddr,
    set: Arc<Mutex<Option<String>>>,
}

impl Keys {
    fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let keys = Self {
            address: listener.local_addr().unwrap(),
            set: Arc::default(),
        };
        let serving = keys.clone();
        std::thread::spawn(move || {
            for io in listener.incoming() {
                let mut io = io.unwrap();
                let _request = io.read(&mut [0; 4096]);
                let set = serving.set.lock().unwrap().clone();
                let (status, body) = match set {
                    Some(set) => (200, set),
                    None => (503, String::new()),
                };
                let length = body.len();
                let _gone = write!(
                    io,
                    "HTTP/1.1 {status} -\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
                );
            }
        });
        keys
    }

    fn publish(&self, set: &str) {
        *self.set.lock().unwrap() = Some(set.to_owned());
    }

    fn config(&self) -> String {
        format!(
            "
identity:
- name: users
  jwt: {{ issuer: 'https://demo.attache.example', audiences: [demo], jwks_url: 'http://{}/keys' }}
rules: [{{ action: allow }}]
",
            self.address
        )
    }
}

async fn readiness(at: SocketAddr) -> (u16, String) {
    let answer = http::get(at, "/readyz", &[]).await;
    (answer.status.as_u16(), answer.body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_is_not_serving_until_its_keys_are_there() {
    let tokens = jwt::tokens();
    let Some(token) = tokens.first() else {
        eprintln!("skipped: no maker of tokens on this machine");
        return;
    };
    let keys = Keys::serve();
    let files = folder(&[("auth.yaml", &keys.config())]);
    let config = path(&files, "auth.yaml");
    let service = Process::attache(&[
        "ext-authz",
        "--config",
        &config,
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
    ]);
    let connection = grpc::connect(&service.address()).await.unwrap();
    let bearer = format!("Bearer {}", token.token);
    let credential = ("authorization", bearer.as_str());

    for name in [AUTH, ""] {
        assert_eq!(grpc::health(&connection, name).await.unwrap(), 2);
    }
    let (status, body) = readiness(service.admin()).await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("the keys of `users` from http://"), "{body}");
    assert!(!allows(&connection, "/", &[credential]).await);

    keys.publish(&token.jwks);

    eventually_async("ready", async || readiness(service.admin()).await.0 == 200).await;
    assert_eq!(grpc::health(&connection, AUTH).await.unwrap(), 1);
    assert!(allows(&connection, "/", &[credential]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_not_ready_until_the_keys_of_its_embedded_service_are_there() {
    let tokens = jwt::tokens();
    let Some(token) = tokens.first() else {
        eprintln!("skipped: no maker of tokens on this machine");
        return;
    };
    let keys = Keys::serve();
    let edge = "
listeners:
- { name: edge, address: 127.0.0.1:0, filters: [auth] }
filters:
  auth:
    ext_authz: { transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: auth }, timeout: 5s }, status_on_error: { code: ServiceUnavailable } }
routes:
- match: { prefix: / }
  direct_response: { status: 200, body: { inline_string: one } }
clusters:
- { name: auth, embedded: { ext_authz: auth.yaml } }
admin: 127.0.0.1:0
";
    let files = folder(&[("edge.yaml", edge), ("auth.yaml", &keys.config())]);
    let proxy = Process::attache(&["run", &path(&files, "edge.yaml"), "--workers", "1"]);
    let mut client = Client::new(proxy.socket());
    let bearer = format!("Bearer {}", token.token);
    let credential = ("authorization", bearer.as_str());

    let (status, body) = readiness(proxy.admin()).await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("auth.yaml"), "{body}");
    let asked = outcome(&["ready", "--admin", &proxy.admin().to_string()]);
    assert_eq!(asked.code(), 1);
    assert!(asked.stderr().contains("auth.yaml"), "{}", asked.stderr());
    assert_eq!(client.get("/", &[credential]).await.unwrap().status, 503);

    keys.publish(&token.jwks);

    eventually_async("ready", async || readiness(proxy.admin()).await.0 == 200).await;
    assert_eq!(client.get("/", &[credential]).await.unwrap().status, 200);
}
