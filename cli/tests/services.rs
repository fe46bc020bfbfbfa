//! The services on their own, called over gRPC, by real Envoy and by our proxy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use attache_ext_proc::server::{Processor, RequestHead, Result, Server};
use attache_proto::{
    rate_limit_quota::rate_limit_quota_response::bucket_action::BucketAction,
    ratelimit::rate_limit_response::Code,
};
use attache_service::Shutdown;
use support::{
    PATIENCE, Process, eventually, eventually_async, folder, grpc,
    grpc::{AUTH, Certificates, LIMITS, QUOTAS, allows, check, limit},
    http::{self, Client, Origin},
    jwt, outcome, path,
    peers::{Envoy, envoy_program, skip},
};

const KEYS: &str = "
identity:
- name: keys
  api_key:
    from: [{ header: x-api-key }]
    keys:
    # demo-key
    - { id: ada, hash: \"sha256:c48a01f49fd0f2cc404bc3cbbc80e91457a3d41bb429a695243de4c61794155c\" }
";
const RULES: &str = "
rules:
- { name: known-callers, action: allow }
upstream_headers: { x-user: { claim: sub } }
";
const KEY: (&str, &str) = ("x-api-key", "demo-key");

const LIMIT: &str =
    "domain: shop\ndescriptors:\n- key: user\n  rate_limit: { unit: hour, requests_per_unit: 2 }\n";

/// Writes a file as editors do: the new one takes the place of the old one.
fn replace(folder: &tempfile::TempDir, name: &str, text: &str) {
    let new = folder.path().join("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, folder.path().join(name)).unwrap();
}

/// The service is there by its name, in health and in reflection.
async fn introduces_itself(connection: &grpc::Connection, name: &str) {
    assert_eq!(grpc::health(connection, name).await.unwrap(), 1);
    assert_eq!(grpc::health(connection, "").await.unwrap(), 1);
    let other = grpc::health(connection, "a.Nother").await.unwrap_err();
    assert_eq!(other.code(), tonic::Code::NotFound);
    let services = grpc::services(connection).await;
    for name in [name, "grpc.health.v1.Health"] {
        assert!(services.iter().any(|found| found == name), "{services:?}");
    }
}

async fn admin(at: std::net::SocketAddr, path: &str) -> (u16, String) {
    let answer = http::get(at, path, &[]).await;
    (answer.status.as_u16(), answer.body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_auth_service_answers_reloads_and_drains() {
    let files = folder(&[("auth.yaml", &(KEYS.to_owned() + RULES))]);
    let socket = format!("unix:{}", path(&files, "auth.sock"));
    for listen in ["127.0.0.1:0", &socket] {
        replace(&files, "auth.yaml", &(KEYS.to_owned() + RULES));
        let config = path(&files, "auth.yaml");
        let mut service = Process::attache(&[
            "ext-authz",
            "--config",
            &config,
            "--listen",
            listen,
            "--admin",
            "127.0.0.1:0",
            "--workers",
            "2",
        ]);
        let connection = grpc::connect(&service.address()).await.unwrap();
        introduces_itself(&connection, AUTH).await;

        let known = check(&connection, "/a", &[KEY]).await.unwrap();
        assert_eq!(known.status.as_ref().unwrap().code, 0, "{known:?}");
        let known = format!("{known:?}");
        assert!(known.contains("x-user") && known.contains("ada"), "{known}");
        assert!(!allows(&connection, "/a", &[]).await);
        assert!(!allows(&connection, "/a", &[("x-api-key", "guess")]).await);

        // A changed file is taken over, on the same connection.
        let closed = RULES.replace(
            "- {",
            "- { name: closed, action: deny, paths: [{ prefix: /closed }] }\n- {",
        );
        replace(&files, "auth.yaml", &(KEYS.to_owned() + &closed));
        service.wait_for("configuration reloaded", 1);
        assert!(!allows(&connection, "/closed", &[KEY]).await);
        assert!(allows(&connection, "/a", &[KEY]).await);

        // A wrong one is not.
        replace(
            &files,
            "auth.yaml",
            &format!("{KEYS}rules: [{{ action: dance }}]\n"),
        );
        service.wait_for("refused, the old one goes on", 1);
        service.wait_for("auth.yaml:9:19", 1);
        assert!(!allows(&connection, "/closed", &[KEY]).await);
        assert!(allows(&connection, "/a", &[KEY]).await);
        service.signal("HUP");
        service.wait_for("refused, the old one goes on", 2);
        assert!(allows(&connection, "/a", &[KEY]).await);

        let at = service.admin();
        assert_eq!(admin(at, "/healthz").await.0, 200);
        assert_eq!(admin(at, "/readyz").await.0, 200);
        assert!(admin(at, "/config").await.1.contains("auth.yaml"));
        let metrics = admin(at, "/metrics").await.1;
        assert!(
            metrics.contains("attache_config_reloads_total{result=\"failed\"} 2"),
            "{metrics}"
        );
        assert!(
            metrics.contains("attache_config_reloads_total{result=\"ok\"} 1"),
            "{metrics}"
        );

        service.signal("TERM");
        assert_eq!(service.ended().code(), Some(0), "{}", service.text());
        assert!(!files.path().join("auth.sock").exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_limit_service_answers_reloads_and_drains() {
    let files = folder(&[("limits/shop.yaml", LIMIT)]);
    let socket = format!("unix:{}", path(&files, "limits.sock"));
    for listen in ["127.0.0.1:0", &socket] {
        replace(&files, "limits/shop.yaml", LIMIT);
        let config = path(&files, "limits");
        let mut service = Process::attache(&[
            "ratelimit",
            "--config",
            &config,
            "--listen",
            listen,
            "--admin",
            "127.0.0.1:0",
        ]);
        let connection = grpc::connect(&service.address()).await.unwrap();
        introduces_itself(&connection, LIMITS).await;
        introduces_itself(&connection, QUOTAS).await;

        let ask = async |user| limit(&connection, "shop", &[("user", user)]).await.unwrap();
        assert_eq!(ask("ada").await, Code::Ok);
        assert_eq!(ask("ada").await, Code::Ok);
        assert_eq!(ask("ada").await, Code::OverLimit);
        assert_eq!(ask("bob").await, Code::Ok);

        // Quotas come from the same counters.
        let quota = grpc::quota(&connection, "shop", &[("user", "bob")]);
        let quota = quota.await.unwrap();
        assert!(
            matches!(quota, BucketAction::QuotaAssignmentAction(_)),
            "{quota:?}"
        );
        assert_eq!(ask("bob").await, Code::OverLimit);

        // A wrong file is refused.
        replace(
            &files,
            "limits/shop.yaml",
            &LIMIT.replace("hour", "fortnight"),
        );
        service.wait_for("refused, the old one goes on", 1);
        service.wait_for("shop.yaml:4:", 1);
        assert_eq!(ask("ada").await, Code::OverLimit);

        // A good one is taken over, and the counters stay.
        replace(&files, "limits/shop.yaml", &LIMIT.replace(": 2", ": 5"));
        service.wait_for("configuration reloaded", 1);
        assert_eq!(ask("ada").await, Code::Ok);
        service.signal("HUP");
        service.wait_for("configuration reloaded", 2);

        let at = service.admin();
        assert_eq!(admin(at, "/readyz").await.0, 200);
        assert!(admin(at, "/metrics").await.1.contains("attache_ratelimit"));
        service.signal("TERM");
        assert_eq!(service.ended().code(), Some(0), "{}", service.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_seen_by_health_checks_and_lets_connections_go() {
    let service = Process::attache(&[
        "ext-authz",
        "--config",
        "examples/demo/auth.yaml",
        "--listen",
        "127.0.0.1:0",
    ]);
    let mut service = service;
    let address = service.address();
    let connection = grpc::connect(&address).await.unwrap();
    assert!(allows(&connection, "/", &[KEY]).await);
    service.signal("TERM");
    service.wait_for("SIGTERM: draining", 1);
    assert_eq!(service.ended().code(), Some(0));
    assert!(check(&connection, "/", &[KEY]).await.is_err());
    assert!(grpc::connect(&address).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_client_certificates_are_demanded() {
    let certificates = Certificates::new();
    let (certificate, key) = (
        certificates.file("server.pem"),
        certificates.file("server.key"),
    );
    let auth = [
        "ext-authz",
        "--config",
        "examples/demo/auth.yaml",
        "--listen",
        "127.0.0.1:0",
        "--tls-cert",
        &certificate,
        "--tls-key",
        &key,
    ];
    let service = Process::attache(&auth);
    let address = service.address();
    let connection = certificates.connect(&address, false).await.unwrap();
    assert!(allows(&connection, "/", &[KEY]).await);
    let plain = grpc::connect(&address).await;
    assert!(match plain {
        Ok(connection) => check(&connection, "/", &[KEY]).await.is_err(),
        Err(_) => true,
    });

    let authority = certificates.file("ca.pem");
    let limits = [
        "ratelimit",
        "--config",
        "examples/demo/limits",
        "--listen",
        "127.0.0.1:0",
        "--tls-cert",
        &certificate,
        "--tls-key",
        &key,
        "--client-ca",
        &authority,
    ];
    let service = Process::attache(&limits);
    let address = service.address();
    let connection = certificates.connect(&address, true).await.unwrap();
    let entries = [("header_match", "limited"), ("remote_address", "::1")];
    let answer = limit(&connection, "demo", &entries).await.unwrap();
    assert_eq!(answer, Code::Ok);
    assert!(match certificates.connect(&address, false).await {
        Ok(connection) => limit(&connection, "demo", &entries).await.is_err(),
        Err(_) => true,
    });
}

/// The example processor.
#[derive(Clone)]
struct AddHeader;

impl Processor for AddHeader {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        Ok(request.headers.insert("x-attache", "was here")?)
    }
}

const EDGE: &str = "
listeners:
- { name: edge, address: 127.0.0.1:0, filters: [limits, auth, mark] }
filters:
  limits:
    ratelimit:
      domain: shop
      failure_mode_deny: true
      timeout: 5s
      rate_limit_service: { transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: limits } } }
      rate_limits:
      - actions: [{ request_headers: { header_name: x-limited, descriptor_key: user } }]
  auth:
    ext_authz: { transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: auth }, timeout: 5s } }
  mark:
    ext_proc: { grpc_service: { envoy_grpc: { cluster_name: mark } }, message_timeout: 5s, processing_mode: { response_header_mode: SKIP } }
routes:
- match: { prefix: / }
  route: { cluster: origin, timeout: 10s }
clusters:
- { name: origin, endpoints: [\"ORIGIN\"] }
- { name: mark, endpoints: [\"MARK\"], http2: {} }
- { name: limits, embedded: { ratelimit: limits/ } }
- { name: auth, embedded: { ext_authz: auth.yaml } }
admin: 127.0.0.1:0
";

/// The same questions to whichever proxy, with counters that nobody has used yet.
async fn policies_hold(what: &str, at: std::net::SocketAddr, tokens: &[jwt::Token]) {
    let mut client = Client::new(at);
    let answer = client.get("/a", &[]).await.unwrap();
    assert_eq!(answer.status, 401, "{what}: {answer:?}");
    let answer = client.get("/a", &[("x-api-key", "guess")]).await.unwrap();
    assert_eq!(answer.status, 401, "{what}: {answer:?}");

    let answer = client.get("/a", &[KEY]).await.unwrap();
    assert_eq!(answer.status, 200, "{what}: {answer:?}");
    assert!(answer.body.contains("x-user: ada\n"), "{what}: {answer:?}");
    assert!(
        answer.body.contains("x-attache: was here\n"),
        "{what}: {answer:?}"
    );
    // A client cannot say who it is.
    let answer = client.get("/a", &[KEY, ("x-user", "grace")]).await.unwrap();
    assert!(answer.body.contains("x-user: ada\n"), "{what}: {answer:?}");

    let answer = client.get("/admin", &[KEY]).await.unwrap();
    assert_eq!(answer.status, 403, "{what}: {answer:?}");
    for token in tokens {
        let bearer = format!("Bearer {}", token.token);
        let answer = client
            .get("/admin", &[("authorization", &bearer)])
            .await
            .unwrap();
        assert_eq!(answer.status, 200, "{what}: {}: {answer:?}", token.maker);
        assert!(
            answer.body.contains("x-user: grace\n"),
            "{what}: {answer:?}"
        );
        let forged = bearer[..bearer.len() - 6].to_owned() + "AAAAAA";
        let answer = client
            .get("/a", &[("authorization", &forged)])
            .await
            .unwrap();
        assert_eq!(answer.status, 401, "{what}: {}: {answer:?}", token.maker);
    }

    let limited = [KEY, ("x-limited", what)];
    for expected in [200, 200, 429, 429] {
        let answer = client.get("/a", &limited).await.unwrap();
        assert_eq!(answer.status, expected, "{what}: {answer:?}");
    }
}

/// The policies of the demonstration, with one more key set for each token.
fn auth_with(tokens: &[jwt::Token]) -> String {
    let mut text = KEYS.to_owned();
    for token in tokens {
        text += &format!(
            "- name: {0}\n  jwt: {{ issuer: https://demo.attache.example, audiences: [demo], jwks_file: {0}.json }}\n",
            token.maker
        );
    }
    text + "
rules:
- { name: admins, action: allow, paths: [{ prefix: /admin }], claims: { role: admin } }
- { name: not-for-others, action: deny, paths: [{ prefix: /admin }] }
- { name: known-callers, action: allow }
upstream_headers: { x-user: { claim: sub } }
"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_envoy_and_our_proxy_ask_the_services() {
    // One maker a round: sources with the same issuer would have to be tried in turn.
    let mut tokens = jwt::tokens();
    if tokens.is_empty() {
        skip("there is no PyJWT, Node or OpenSSL to make a token");
    }
    tokens.truncate(1);
    for token in &tokens {
        println!("token made by {}", token.maker);
    }
    let origin = Origin::start().await;
    let stop = Shutdown::new();
    let mark = Server::new(AddHeader).into_host();
    let mark = mark.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let edge = EDGE
        .replace("ORIGIN", &origin.at.to_string())
        .replace("MARK", &mark.address().to_string());
    let marking = tokio::spawn(mark.serve(stop.clone()));
    let files = folder(&[
        ("edge.yaml", &edge),
        ("auth.yaml", &auth_with(&tokens)),
        ("limits/shop.yaml", LIMIT),
    ]);
    for token in &tokens {
        std::fs::write(
            files.path().join(format!("{}.json", token.maker)),
            &token.jwks,
        )
        .unwrap();
    }
    let edge = path(&files, "edge.yaml");

    // Everything of ours in one process.
    let proxy = Process::attache(&["run", &edge, "--workers", "2"]);
    policies_hold("embedded", proxy.socket(), &tokens).await;
    drop(proxy);

    let auth = Process::attache(&[
        "ext-authz",
        "--config",
        &path(&files, "auth.yaml"),
        "--listen",
        "127.0.0.1:0",
    ]);
    let socket = format!("unix:{}", path(&files, "limits.sock"));
    let limits = Process::attache(&[
        "ratelimit",
        "--config",
        &path(&files, "limits"),
        "--listen",
        &socket,
    ]);
    let (auth_at, limits_at) = (auth.address(), limits.address());

    // Our proxy, the services as processes.
    let separate = std::fs::read_to_string(&edge)
        .unwrap()
        .replace(
            "embedded: { ratelimit: limits/ }",
            &format!("endpoints: [\"{limits_at}\"], http2: {{}}"),
        )
        .replace(
            "embedded: { ext_authz: auth.yaml }",
            &format!("endpoints: [\"{auth_at}\"], http2: {{}}"),
        );
    std::fs::write(files.path().join("separate.yaml"), separate).unwrap();
    let proxy = Process::attache(&["run", &path(&files, "separate.yaml"), "--workers", "1"]);
    policies_hold("separate", proxy.socket(), &tokens).await;

    if let Some(program) = envoy_program() {
        let exported = outcome(&[
            "export",
            "envoy",
            &edge,
            "--embedded",
            &format!("auth={auth_at}"),
            "--embedded",
            &format!("limits={limits_at}"),
        ]);
        assert_eq!(exported.code(), 0, "{}", exported.stderr());
        let envoy = Envoy::start(&program, files.path(), &exported.stdout()).await;
        policies_hold("envoy", envoy.at, &tokens).await;
    }
    stop.trigger();
    tokio::time::timeout(PATIENCE, marking)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_every_maker_are_verified() {
    let tokens = jwt::tokens();
    if tokens.is_empty() {
        return skip("there is no PyJWT, Node or OpenSSL to make a token");
    }
    for token in &tokens {
        println!("token made by {}", token.maker);
        let files = folder(&[
            ("auth.yaml", &auth_with(std::slice::from_ref(token))),
            (&format!("{}.json", token.maker), &token.jwks),
        ]);
        let service = Process::attache(&[
            "ext-authz",
            "--config",
            &path(&files, "auth.yaml"),
            "--listen",
            "127.0.0.1:0",
        ]);
        let connection = grpc::connect(&service.address()).await.unwrap();
        let bearer = format!("Bearer {}", token.token);
        assert!(
            allows(&connection, "/admin", &[("authorization", &bearer)]).await,
            "{}",
            token.maker
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_of_the_proxy_is_all_or_nothing() {
    let files = folder(&[
        ("edge.yaml", "
listeners:
- { name: edge, address: 127.0.0.1:0, filters: [auth] }
filters:
  auth:
    ext_authz: { transport_api_version: V3, grpc_service: { envoy_grpc: { cluster_name: auth }, timeout: 5s } }
routes:
- match: { prefix: / }
  direct_response: { status: 200, body: { inline_string: one } }
clusters:
- { name: auth, embedded: { ext_authz: auth.yaml } }
admin: 127.0.0.1:0
"),
        ("auth.yaml", &(KEYS.to_owned() + RULES)),
    ]);
    let edge = path(&files, "edge.yaml");
    let mut proxy = Process::attache(&["run", &edge, "--workers", "1"]);
    let at = proxy.socket();
    let mut client = Client::new(at);
    assert_eq!(client.get("/", &[KEY]).await.unwrap().body, "one");

    // Both files change; one of them is wrong: neither counts.
    let good = std::fs::read_to_string(&edge).unwrap();
    replace(
        &files,
        "auth.yaml",
        &format!("{KEYS}rules: [{{ action: deny }}]\n"),
    );
    replace(
        &files,
        "edge.yaml",
        &good.replace("status: 200", "status: ok"),
    );
    let first = proxy.wait_for("refused, the old one goes on", 1);
    assert!(first.contains("ERROR"), "{first}");
    proxy.signal("HUP");
    proxy.wait_for("refused, the old one goes on", 2);
    assert_eq!(client.get("/", &[KEY]).await.unwrap().body, "one");
    assert!(
        admin(proxy.admin(), "/config")
            .await
            .1
            .contains("\"status\": 200")
    );

    replace(
        &files,
        "edge.yaml",
        &good.replace("string: one", "string: two"),
    );
    proxy.wait_for("configuration reloaded", 1);
    eventually_async("the new rules deny", async || {
        client.get("/", &[KEY]).await.unwrap().status == 403
    })
    .await;
    assert!(admin(proxy.admin(), "/config").await.1.contains("two"));
    replace(&files, "auth.yaml", &(KEYS.to_owned() + RULES));
    proxy.wait_for("configuration reloaded", 2);
    eventually_async("the new answer", async || {
        client.get("/", &[KEY]).await.unwrap().body == "two"
    })
    .await;
    assert_eq!(client.connections, 1, "a reload closes no connection");
    let metrics = admin(proxy.admin(), "/metrics").await.1;
    for count in ["{result=\"ok\"} 2", "{result=\"failed\"} 2"] {
        let line = format!("attache_config_reloads_total{count}");
        assert!(metrics.contains(&line), "{metrics}");
    }

    proxy.signal("TERM");
    assert_eq!(proxy.ended().code(), Some(0));
    eventually("nobody listens", || std::net::TcpStream::connect(at).err());
}
