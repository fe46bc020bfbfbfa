//! The proxy and its services while parts of them die, hang, or talk nonsense.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use attache_ext_proc::server::{Processor, RequestHead, Result, Server};
use attache_proto::ratelimit::rate_limit_response::Code;
use attache_service::Shutdown;
use support::{
    PATIENCE, Process, eventually, eventually_async, folder, grpc,
    http::{Client, Origin},
    path,
    peers::Redis,
    within_async,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const KEY: (&str, &str) = ("x-api-key", "demo-key");
const AUTH: &str = "
identity:
- name: keys
  api_key:
    from: [{ header: x-api-key }]
    keys:
    # demo-key
    - { id: ada, hash: \"sha256:c48a01f49fd0f2cc404bc3cbbc80e91457a3d41bb429a695243de4c61794155c\" }
rules:
- { name: known-callers, action: allow }
";
const LIMITS: &str = "domain: shop\ndescriptors:\n- key: all\n  value: all\n  rate_limit: { unit: hour, requests_per_unit: 1000000 }\n";

/// What the policies of the tests may take.
const DEADLINE: Duration = Duration::from_millis(500);
/// What a busy machine may add to it.
const SLACK: Duration = Duration::from_secs(3);

const EDGE: &str = "
listeners:
- { name: closed, address: 127.0.0.1:0, filters: [limits-closed, auth-closed, mark-closed] }
- { name: open, address: 127.0.0.1:0, filters: [limits-open, auth-open, mark-open] }
filters:
  limits-closed: { ratelimit: { failure_mode_deny: true, LIMITS } }
  limits-open: { ratelimit: { LIMITS } }
  auth-closed: { ext_authz: { AUTH } }
  auth-open: { ext_authz: { failure_mode_allow: true, AUTH } }
  mark-closed: { ext_proc: { MARK } }
  mark-open: { ext_proc: { failure_mode_allow: true, MARK } }
routes:
- match: { prefix: / }
  route: { cluster: origin, timeout: 10s }
clusters:
- { name: origin, endpoints: [\"ORIGIN_AT\"] }
- { name: limits, endpoints: [\"LIMITS_AT\"], http2: {} }
- { name: auth, endpoints: [\"AUTH_AT\"], http2: {} }
- { name: mark, endpoints: [\"MARK_AT\"], http2: {} }
";

/// The settings of one policy that asks `cluster`.
fn asking(policy: &str, cluster: &str) -> String {
    let service = format!("grpc_service: {{ envoy_grpc: {{ cluster_name: {cluster} }}");
    match policy {
        "limits" => format!(
            "domain: shop, timeout: 0.5s, rate_limits: [{{ actions: [{{ generic_key: {{ descriptor_key: all, descriptor_value: all }} }}] }}], \
             rate_limit_service: {{ transport_api_version: V3, {service} }} }}"
        ),
        "auth" => format!("transport_api_version: V3, {service}, timeout: 0.5s }}"),
        _ => format!(
            "{service} }}, message_timeout: 0.5s, processing_mode: {{ response_header_mode: SEND }}"
        ),
    }
}

/// A service in a process of its own, which comes back where it was.
struct Service {
    arguments: Arguments,
    address: String,
    process: Process,
}

enum Arguments {
    Attache(Vec<String>),
    /// This program again, as a processor.
    Processor,
}

impl Service {
    fn start(arguments: Arguments, listen: &str) -> Self {
        let process = Self::spawn(&arguments, listen);
        Self {
            address: process.address(),
            process,
            arguments,
        }
    }

    fn spawn(arguments: &Arguments, listen: &str) -> Process {
        match arguments {
            Arguments::Attache(arguments) => {
                let mut all: Vec<_> = arguments.iter().map(String::as_str).collect();
                all.extend(["--listen", listen, "--workers", "1"]);
                Process::attache(&all)
            }
            Arguments::Processor => Process::spawn(
                Command::new(std::env::current_exe().unwrap())
                    .args(["--ignored", "--exact", "processor_process", "--nocapture"])
                    .env("PROCESSOR_ADDRESS", listen),
            ),
        }
    }

    fn kill(&mut self) {
        self.process.kill();
    }

    fn restart(&mut self) {
        self.process = Self::spawn(&self.arguments, &self.address);
        assert_eq!(self.process.address(), self.address);
    }
}

#[derive(Clone)]
struct Mark;

impl Processor for Mark {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        Ok(request.headers.insert("x-attache", "was here")?)
    }
}

#[test]
#[ignore = "a process that the other tests start"]
fn processor_process() {
    let Ok(address) = std::env::var("PROCESSOR_ADDRESS") else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let host = Server::new(Mark).into_host();
        let host = host.bind(&address.parse().unwrap()).await.unwrap();
        println!("listening address={}", host.address());
        host.serve(Shutdown::on_signals().unwrap()).await.unwrap();
    });
}

/// The proxy, its origin, and its three services as processes.
struct Path {
    _files: tempfile::TempDir,
    _origin: Origin,
    services: [(&'static str, Service); 3],
    proxy: Process,
    closed: SocketAddr,
    open: SocketAddr,
}

fn listener(proxy: &Process, name: &str) -> SocketAddr {
    let line = proxy.wait_for(&format!("listener={name} "), 1);
    line.rsplit_once("address=").unwrap().1.parse().unwrap()
}

impl Path {
    async fn start() -> Self {
        let files = folder(&[("auth.yaml", AUTH), ("limits/shop.yaml", LIMITS)]);
        let service = |name: &str, config: &str| {
            Arguments::Attache(vec![
                name.to_owned(),
                "--config".to_owned(),
                path(&files, config),
            ])
        };
        let socket = format!("unix:{}", path(&files, "limits.sock"));
        let limits = Service::start(service("ratelimit", "limits"), &socket);
        let auth = Service::start(service("ext-authz", "auth.yaml"), "127.0.0.1:0");
        let mark = Service::start(Arguments::Processor, "127.0.0.1:0");
        let origin = Origin::start().await;
        let edge = EDGE
            .replace("ORIGIN_AT", &origin.at.to_string())
            .replace("LIMITS_AT", &limits.address)
            .replace("AUTH_AT", &auth.address)
            .replace("MARK_AT", &mark.address)
            .replace("LIMITS", &asking("limits", "limits"))
            .replace("AUTH", &asking("auth", "auth"))
            .replace("MARK", &asking("mark", "mark"));
        std::fs::write(files.path().join("edge.yaml"), edge).unwrap();
        let proxy = Process::attache(&["run", &path(&files, "edge.yaml"), "--workers", "2"]);
        let path = Self {
            closed: listener(&proxy, "closed"),
            open: listener(&proxy, "open"),
            proxy,
            _files: files,
            _origin: origin,
            services: [("limits", limits), ("auth", auth), ("mark", mark)],
        };
        path.recovered().await;
        path
    }

    /// Waits until all policies answer, on both listeners.
    async fn recovered(&self) {
        for at in [self.closed, self.open] {
            let mut client = Client::new(at);
            eventually_async("all policies answer", async || {
                let known = client.get("/", &[KEY]).await.unwrap();
                let unknown = client.get("/", &[]).await.unwrap();
                known.status == 200 && known.body.contains("x-attache") && unknown.status == 401
            })
            .await;
        }
    }
}

/// What the requests of one test have seen so far.
#[derive(Default)]
struct Tally {
    requests: AtomicUsize,
    /// Requests with a key on the listener that fails closed: all is well.
    fine: AtomicUsize,
    /// The same: a policy failed.
    failed: AtomicUsize,
    stop: AtomicBool,
}

impl Tally {
    /// Sends requests until told to stop, and judges each answer.
    async fn ask(self: Arc<Self>, at: SocketAddr, fails_open: bool) -> usize {
        let mut client = Client::new(at);
        client.deadline = DEADLINE * 3 + SLACK;
        let mut with_key = false;
        while !self.stop.load(Ordering::Relaxed) {
            with_key = !with_key;
            let headers: &[_] = if with_key { &[KEY] } else { &[] };
            let answer = client.get("/", headers).await.unwrap();
            let status = answer.status.as_u16();
            match (fails_open, with_key) {
                (false, true) if status == 200 => {
                    assert!(answer.body.contains("x-attache: was here"), "{answer:?}");
                    self.fine.fetch_add(1, Ordering::Relaxed);
                }
                (false, true) => {
                    assert!([403, 500, 504].contains(&status), "{answer:?}");
                    self.failed.fetch_add(1, Ordering::Relaxed);
                }
                // The processor is asked about the refusal too, and may be late.
                (false, false) => assert!([401, 403, 500, 504].contains(&status), "{answer:?}"),
                (true, true) => assert_eq!(status, 200, "{answer:?}"),
                (true, false) => assert!([200, 401].contains(&status), "{answer:?}"),
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
        }
        client.connections
    }

    /// Waits until `counter` has grown by this much.
    async fn more(&self, what: &str, counter: &AtomicUsize, by: usize) {
        let goal = counter.load(Ordering::Relaxed) + by;
        eventually_async(what, async || {
            self.stop.load(Ordering::Relaxed) || counter.load(Ordering::Relaxed) >= goal
        })
        .await;
    }
}

/// Growth of the proxy's memory that is no leak: late buffers, metrics, the allocator's slack.
const GROWTH: u64 = 8 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_die_and_come_back_under_load() {
    let mut path = Path::start().await;
    let tally = Arc::<Tally>::default();
    let asking: Vec<_> = [(path.closed, false); 6]
        .into_iter()
        .chain([(path.open, true); 2])
        .map(|(at, fails_open)| tokio::spawn(tally.clone().ask(at, fails_open)))
        .collect();

    let mut before = 0;
    for round in 0..4 {
        for (name, service) in &mut path.services {
            service.kill();
            tally
                .more(&format!("failures without {name}"), &tally.failed, 30)
                .await;
            service.restart();
            tally
                .more(&format!("{name} is asked again"), &tally.fine, 30)
                .await;
            assert!(
                asking.iter().all(|task| !task.is_finished()),
                "a client gave up"
            );
        }
        if round == 0 {
            tally.more("a warm proxy", &tally.requests, 1500).await;
            before = path.proxy.memory();
        }
    }
    within_async(3 * PATIENCE, "10,000 requests", async || {
        tally.requests.load(Ordering::Relaxed) >= 10_000
    })
    .await;
    tally.stop.store(true, Ordering::Relaxed);
    for task in asking {
        let connections = task.await.unwrap();
        assert_eq!(connections, 1, "failures of policies close no connection");
    }
    let after = path.proxy.memory();
    println!(
        "{} requests, {} failed; resident memory {} KiB, then {} KiB",
        tally.requests.load(Ordering::Relaxed),
        tally.failed.load(Ordering::Relaxed),
        before >> 10,
        after >> 10,
    );
    assert!(after < before + GROWTH, "{before} bytes, then {after}");
    path.recovered().await;
    path.proxy.signal("TERM");
    assert_eq!(path.proxy.ended().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_hang_are_given_up_in_time() {
    let path = Path::start().await;
    let (mut closed, mut open) = (Client::new(path.closed), Client::new(path.open));
    for (name, service) in &path.services {
        let meaning = match *name {
            "limits" => 500,
            "auth" => 403,
            _ => 504,
        };
        service.process.signal("STOP");
        for _ in 0..2 {
            let start = Instant::now();
            let answer = closed.get("/", &[KEY]).await.unwrap();
            assert_eq!(answer.status, meaning, "{name}: {answer:?}");
            let answer = open.get("/", &[KEY]).await.unwrap();
            assert_eq!(answer.status, 200, "{name}: {answer:?}");
            let took = start.elapsed();
            assert!(took < 2 * DEADLINE + SLACK, "{name}: {took:?}");
        }
        service.process.signal("CONT");
        path.recovered().await;
    }
}

/// A server that takes connections and says this, or nothing at all.
async fn impostor(says: Option<&'static [u8]>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                match says {
                    // The peer may have gone by then.
                    Some(says) => drop(stream.write_all(says).await),
                    None => {
                        let mut unread = [0; 1024];
                        while stream.read(&mut unread).await.is_ok_and(|count| count > 0) {}
                    }
                }
            });
        }
    });
    at
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_and_silence_mean_failure_in_time() {
    let origin = Origin::start().await;
    let impostors = [
        ("silence", impostor(None).await),
        (
            "nonsense",
            impostor(Some(b"220 mail.test ESMTP at your service\r\n")).await,
        ),
        // The preface of a server, then a frame longer than anything allowed.
        (
            "frames",
            impostor(Some(b"\0\0\0\x04\0\0\0\0\0\xff\xff\xff\0\0\0\0\0\x01")).await,
        ),
    ];
    let mut listeners = String::new();
    let mut filters = String::new();
    let mut clusters = format!("- {{ name: origin, endpoints: [\"{}\"] }}\n", origin.at);
    for (kind, at) in impostors {
        clusters += &format!("- {{ name: {kind}, endpoints: [\"{at}\"], http2: {{}} }}\n");
        for (policy, filter, open) in [
            ("limits", "ratelimit", ""),
            ("auth", "ext_authz", "failure_mode_allow: true, "),
            ("mark", "ext_proc", "failure_mode_allow: true, "),
        ] {
            let closed = if policy == "limits" {
                "failure_mode_deny: true, "
            } else {
                ""
            };
            let settings = asking(policy, kind);
            for (mode, mean) in [("closed", closed), ("open", open)] {
                let name = format!("{policy}-{kind}-{mode}");
                listeners +=
                    &format!("- {{ name: {name}, address: 127.0.0.1:0, filters: [{name}] }}\n");
                filters += &format!("  {name}: {{ {filter}: {{ {mean}{settings} }} }}\n");
            }
        }
    }
    let edge = format!(
        "listeners:\n{listeners}filters:\n{filters}routes:\n- match: {{ prefix: / }}\n  route: {{ cluster: origin }}\nclusters:\n{clusters}"
    );
    let files = folder(&[("edge.yaml", &edge)]);
    let proxy = Process::attache(&["run", &path(&files, "edge.yaml"), "--workers", "2"]);
    for (kind, _) in impostors {
        for (policy, meanings) in [
            ("limits", [500, 500]),
            ("auth", [403, 403]),
            ("mark", [500, 504]),
        ] {
            for mode in ["closed", "open"] {
                let name = format!("{policy}-{kind}-{mode}");
                let mut client = Client::new(listener(&proxy, &name));
                let start = Instant::now();
                let answer = client.get("/", &[]).await.unwrap();
                let took = start.elapsed();
                let status = answer.status.as_u16();
                match mode {
                    "open" => assert_eq!(status, 200, "{name}: {answer:?}"),
                    _ => assert!(meanings.contains(&status), "{name}: {answer:?}"),
                }
                assert!(took < DEADLINE + SLACK, "{name}: {took:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_survive_the_death_and_the_stall_of_redis() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let files = folder(&[(
        "limits/shop.yaml",
        "domain: shop\ndescriptors:\n- key: user\n  rate_limit: { unit: hour, requests_per_unit: 2 }\n- key: all\n  rate_limit: { unit: hour, requests_per_unit: 1000000 }\n",
    )]);
    let mut service = Process::attache(&[
        "ratelimit",
        "--config",
        &path(&files, "limits"),
        "--listen",
        "127.0.0.1:0",
        "--store",
        &redis.url(),
    ]);
    let connection = grpc::connect(&service.address()).await.unwrap();
    let ask = async |entry| {
        let start = Instant::now();
        let answer =
            tokio::time::timeout(PATIENCE, grpc::limit(&connection, "shop", &[entry])).await;
        (answer.expect("a decision in time"), start.elapsed())
    };
    let answers = async || {
        eventually_async("decisions again", async || {
            matches!(ask(("all", "all")).await.0, Ok(Code::Ok))
        })
        .await;
    };
    let limits_hold = async |user| {
        let mut within = 0;
        // An answer of Redis that came too late for us was counted all the same.
        eventually_async("the limit is reached", async || {
            match ask(("user", user)).await.0 {
                Ok(Code::Ok) => within += 1,
                Ok(code) => return code == Code::OverLimit,
                Err(_) => {}
            }
            assert!(within <= 2, "{within} within a limit of 2");
            false
        })
        .await;
    };
    answers().await;
    limits_hold("ada").await;

    for user in ["bob", "cid"] {
        redis.kill();
        let mut failures = 0;
        eventually_async("failures without Redis", async || {
            let (answer, took) = ask(("all", "all")).await;
            assert!(took < SLACK, "{took:?}");
            failures += usize::from(answer.is_err());
            failures >= 20
        })
        .await;
        redis.restart();
        answers().await;
        limits_hold(user).await;
    }

    redis.process.signal("STOP");
    let mut failures = 0;
    eventually_async("failures with a stalled Redis", async || {
        let (answer, took) = ask(("all", "all")).await;
        assert!(took < SLACK, "{took:?}");
        failures += usize::from(answer.is_err());
        failures >= 20
    })
    .await;
    redis.process.signal("CONT");
    answers().await;
    limits_hold("dan").await;

    service.signal("TERM");
    assert_eq!(service.ended().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_are_refused_and_the_connection_is_closed() {
    let path = Path::start().await;
    let large = format!(
        "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
        "y".repeat(100_000)
    );
    for (request, status) in [
        ("\x16\x03\x01\x02 hello\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nhost: a\r\nx-api-key: demo-key\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            400,
        ),
        (&large, 431),
    ] {
        let mut stream = TcpStream::connect(path.closed).await.unwrap();
        let mut answer = Vec::new();
        let exchange = async {
            // Refused before all of it was sent: the rest has nowhere to go.
            let _ = stream.write_all(request.as_bytes()).await;
            let _ = stream.read_to_end(&mut answer).await;
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:.80}\n{answer}"
        );
    }
    let mut client = Client::new(path.closed);
    assert_eq!(client.get("/", &[KEY]).await.unwrap().status, 200);
    eventually("the proxy still runs", || Some(path.proxy.memory() > 0));
}
