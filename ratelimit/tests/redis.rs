//! The Redis store against a real server.
//!
//! Uses the program that `ATTACHE_REDIS` names, else the `redis-server` of the workspace's tools or
//! of `PATH`. Without one the tests say so and
//! pass, unless `ATTACHE_REQUIRE_ALL=1`.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use attache_proto::ratelimit::RateLimitRequest;
use attache_ratelimit::{
    Limiter, Rules,
    limiter::{Code, LimitError, ManualClock, descriptor},
    store::{RedisStore, StoreError, redis::RedisSettings},
};
use attache_service::Metrics;
use redis::AsyncCommands as _;

const RULES: &str = "
domain: d
descriptors:
- key: k
  rate_limit: { unit: hour, requests_per_unit: 500 }
- key: ten
  rate_limit: { unit: minute, requests_per_unit: 10 }
";

type RedisLimiter = Limiter<RedisStore, ManualClock>;

/// A Redis of our own on a free port, ended when dropped.
struct Server {
    process: Child,
    port: u16,
    directory: tempfile::TempDir,
    program: PathBuf,
}

impl Server {
    /// `None` when there is no Redis on this machine.
    async fn start() -> Option<Self> {
        let Some(program) = program() else {
            assert!(
                std::env::var("ATTACHE_REQUIRE_ALL").as_deref() != Ok("1"),
                "there is no redis-server on this machine"
            );
            println!("skipped: there is no redis-server on this machine");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        // Free a moment ago; another process taking it shows as a failure to start.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let process = spawn(&program, port, directory.path());
        let server = Self {
            process,
            port,
            directory,
            program,
        };
        server.wait().await;
        Some(server)
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn wait(&self) {
        let client = redis::Client::open(self.url()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Ok(mut connection) = client.get_multiplexed_async_connection().await
                && redis::cmd("PING").exec_async(&mut connection).await.is_ok()
            {
                return;
            }
            assert!(Instant::now() < deadline, "redis-server does not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.url()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    async fn restart(&mut self) {
        self.process = spawn(&self.program, self.port, self.directory.path());
        self.wait().await;
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.process.id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    async fn limiter(&self, timeout: Duration) -> RedisLimiter {
        let settings = RedisSettings {
            timeout,
            ..RedisSettings::new(self.url())
        };
        let store = RedisStore::connect(settings, &Metrics::default())
            .await
            .unwrap();
        assert!(store.is_connected());
        let rules = Rules::parse("rules.yaml", RULES).unwrap();
        Limiter::with_clock(rules, store, ManualClock::at(1234))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already dead in some tests.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program() -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/redis-server");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let given = std::env::var_os("ATTACHE_REDIS").map(PathBuf::from);
    given
        .into_iter()
        .chain([tools])
        .chain(std::env::split_paths(&path).map(|directory| directory.join("redis-server")))
        .find(|program| program.is_file())
}

fn spawn(program: &Path, port: u16, directory: &Path) -> Child {
    Command::new(program)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(directory)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn request(key: &str, value: &str) -> RateLimitRequest {
    RateLimitRequest {
        domain: "d".to_owned(),
        descriptors: vec![descriptor([(key, value)])],
        hits_addend: 0,
    }
}

/// Long enough for a busy machine, for tests that are not about time.
const PATIENT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn keys_counts_and_lifetimes_are_those_of_the_reference() {
    let Some(server) = Server::start().await else {
        return;
    };
    let limiter = server.limiter(PATIENT).await;
    let mut request = request("ten", "v");
    request.descriptors.push(descriptor([("k", "")]));
    request.descriptors[0].hits_addend = Some(3);

    let decision = limiter.decide(&request).await.unwrap();
    assert_eq!(decision.descriptors[0].remaining, 7);
    assert_eq!(decision.descriptors[1].remaining, 499);

    let mut redis = server.connection().await;
    let mut keys: Vec<String> = redis.keys("*").await.unwrap();
    keys.sort();
    assert_eq!(keys, ["d_k__0", "d_ten_v_1200"]);
    let count: u64 = redis.get("d_ten_v_1200").await.unwrap();
    assert_eq!(count, 3);
    let lifetime: i64 = redis.ttl("d_ten_v_1200").await.unwrap();
    assert!((55..=60).contains(&lifetime), "{lifetime}");
}

#[tokio::test]
async fn hits_given_back_stop_at_zero() {
    let Some(server) = Server::start().await else {
        return;
    };
    let limiter = server.limiter(PATIENT).await;
    let mut request = request("ten", "back");
    request.descriptors[0].hits_addend = Some(5);
    limiter.decide(&request).await.unwrap();
    request.descriptors[0].is_negative_hits = true;
    request.descriptors[0].hits_addend = Some(3);
    for remaining in [8, 10] {
        let decision = limiter.decide(&request).await.unwrap();
        assert_eq!(decision.descriptors[0].remaining, remaining);
    }
    let lifetime: i64 = server
        .connection()
        .await
        .ttl("d_ten_back_1200")
        .await
        .unwrap();
    assert!(lifetime > 0, "{lifetime}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_instances_let_exactly_the_limit_pass() {
    let Some(server) = Server::start().await else {
        return;
    };
    let instances = [
        Arc::new(server.limiter(PATIENT).await),
        Arc::new(server.limiter(PATIENT).await),
    ];
    let tasks: Vec<_> = (0..64)
        .map(|client| {
            let limiter = instances[client % 2].clone();
            tokio::spawn(async move {
                let request = request("k", "shared");
                let mut passed = 0;
                for _ in 0..50 {
                    if limiter.decide(&request).await.unwrap().code == Code::Ok {
                        passed += 1;
                    }
                }
                passed
            })
        })
        .collect();
    let mut passed = 0;
    for task in tasks {
        passed += task.await.unwrap();
    }
    assert_eq!(passed, 500);
}

/// Asks until `done`; panics after a while. Returns the slowest answer.
async fn ask_until(
    limiter: &RedisLimiter,
    done: impl Fn(&Result<Code, LimitError>) -> bool,
) -> Duration {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut slowest = Duration::ZERO;
    loop {
        let started = Instant::now();
        let answer = limiter.decide(&request("k", "outage")).await;
        slowest = slowest.max(started.elapsed());
        if done(&answer.map(|decision| decision.code)) {
            return slowest;
        }
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The operation's deadline and what a busy machine may add.
const OPERATION: Duration = Duration::from_millis(100);
const AT_MOST: Duration = Duration::from_millis(600);

#[tokio::test]
async fn a_killed_redis_makes_errors_at_once_and_a_new_one_is_found() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    let limiter = server.limiter(OPERATION).await;
    limiter.decide(&request("k", "outage")).await.unwrap();

    server.kill();
    let slowest = ask_until(&limiter, |answer| {
        matches!(
            answer,
            Err(LimitError::Store(StoreError::NotConnected { .. }))
        )
    })
    .await;
    assert!(slowest < AT_MOST, "{slowest:?}");
    let error = limiter.decide(&request("k", "outage")).await.unwrap_err();
    let expected = format!("redis at 127.0.0.1:{} is not connected", server.port);
    assert!(error.to_string().starts_with(&expected), "{error}");

    server.restart().await;
    let slowest = ask_until(&limiter, Result::is_ok).await;
    assert!(slowest < AT_MOST, "{slowest:?}");
}

#[tokio::test]
async fn a_stalled_redis_holds_nobody_longer_than_the_deadline() {
    let Some(server) = Server::start().await else {
        return;
    };
    let limiter = server.limiter(OPERATION).await;
    limiter.decide(&request("k", "outage")).await.unwrap();

    server.signal("-STOP");
    let slowest = ask_until(&limiter, |answer| {
        matches!(answer, Err(LimitError::Store(StoreError::Timeout { .. })))
    })
    .await;
    assert!(slowest < AT_MOST, "{slowest:?}");
    // After a while the connection itself is given up, and errors come without waiting.
    let slowest = ask_until(&limiter, |answer| {
        matches!(
            answer,
            Err(LimitError::Store(StoreError::NotConnected { .. }))
        )
    })
    .await;
    assert!(slowest < AT_MOST, "{slowest:?}");

    server.signal("-CONT");
    ask_until(&limiter, Result::is_ok).await;
}

#[tokio::test]
async fn a_store_can_be_opened_before_redis_is_there() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    server.kill();
    let settings = RedisSettings::new(server.url());
    let store = RedisStore::connect(settings, &Metrics::default())
        .await
        .unwrap();
    assert!(!store.is_connected());

    server.restart().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !store.is_connected() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_bad_url_is_an_error_that_does_not_show_it() {
    for url in [
        "nonsense://user:secret@host",
        "redis://user:secret@host:99999999",
    ] {
        let error = RedisStore::connect(RedisSettings::new(url), &Metrics::default())
            .await
            .unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    let settings = RedisSettings::new("redis://user:secret@host:1");
    assert!(!format!("{settings:?}").contains("secret"));
}
