//! The memcached store against a real server.
//!
//! Uses the program that `ATTACHE_MEMCACHED` names, else the `memcached` of the workspace's tools
//! or of `PATH`. Without one the tests say so and pass, unless `ATTACHE_REQUIRE_ALL=1`.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use attache_ratelimit::{
    limiter::{UnixTime, Window},
    store::{
        Amount, Batch, Charging, MemcachedStore, MemoryStore, Meter, Reading, Rejected, Store,
        StoreError, Terms, memcached::MemcachedSettings,
    },
};
use attache_service::Metrics;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A memcached of our own, ended when dropped.
struct Server {
    process: Child,
    port: u16,
    program: PathBuf,
}

impl Server {
    /// `None` when there is no memcached on this machine.
    fn start() -> Option<Self> {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/memcached");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let given = std::env::var_os("ATTACHE_MEMCACHED").map(PathBuf::from);
        let found = given
            .into_iter()
            .chain([tools])
            .chain(std::env::split_paths(&path).map(|directory| directory.join("memcached")))
            .find(|program| program.is_file());
        let Some(program) = found else {
            assert!(
                std::env::var("ATTACHE_REQUIRE_ALL").as_deref() != Ok("1"),
                "there is no memcached on this machine"
            );
            println!("skipped: there is no memcached on this machine");
            return None;
        };
        // Free a moment ago; another process taking it shows as a failure to start.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        Some(Self {
            process: spawn(&program, port),
            port,
            program,
        })
    }

    async fn store(&self) -> MemcachedStore {
        let address = format!("127.0.0.1:{}", self.port).parse().unwrap();
        let settings = MemcachedSettings {
            timeout: Duration::from_secs(5),
            ..MemcachedSettings::new(vec![address])
        };
        let store = MemcachedStore::connect(settings, &Metrics::default()).await;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !store.is_connected() {
            assert!(Instant::now() < deadline, "memcached does not come up");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        store
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already dead in some tests.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(program: &Path, port: u16) -> Child {
    Command::new(program)
        .args(["-l", "127.0.0.1", "-U", "0", "-u", "nobody"])
        .args(["-p", &port.to_string()])
        .spawn()
        .unwrap()
}

fn terms(limit: u32, rejected: Rejected) -> Terms {
    Terms {
        rejected,
        ..Terms::fixed_window(Window::at(1234, 3600), limit)
    }
}

async fn charge(
    store: &impl Store,
    charging: Charging,
    charges: &[(&str, Terms, Amount)],
) -> Result<Vec<Reading>, StoreError> {
    let mut batch = Batch::new(UnixTime::from_seconds(1234));
    batch.set_charging(charging);
    for (key, terms, amount) in charges {
        batch.begin("d");
        batch.entry("k", key);
        batch.charge(*terms, *amount);
    }
    let mut readings = Vec::new();
    store.charge(&batch, &mut readings).await?;
    assert_eq!(readings.len(), charges.len());
    Ok(readings)
}

#[tokio::test]
async fn counters_are_those_of_memory() {
    let Some(server) = Server::start() else {
        return;
    };
    let (memcached, memory) = (server.store().await, MemoryStore::default());
    let (counted, free) = (terms(6, Rejected::Counted), terms(6, Rejected::Free));
    let steps = [
        (Charging::Each, vec![("a", counted, Amount::Add(0))]),
        (Charging::Each, vec![("a", counted, Amount::Add(4))]),
        (Charging::Each, vec![("a", counted, Amount::Add(4))]),
        (Charging::Each, vec![("a", counted, Amount::Add(0))]),
        (Charging::Each, vec![("a", counted, Amount::Refund(3))]),
        (Charging::Each, vec![("a", counted, Amount::Refund(90))]),
        (Charging::Each, vec![("b", free, Amount::Add(7))]),
        (Charging::Each, vec![("b", free, Amount::Add(6))]),
        (Charging::Each, vec![("b", free, Amount::Add(1))]),
        (
            Charging::AllOrNothing,
            vec![("a", counted, Amount::Add(1)), ("b", free, Amount::Add(1))],
        ),
        (
            Charging::AllOrNothing,
            vec![("a", counted, Amount::Add(6)), ("c", free, Amount::Add(1))],
        ),
        (
            Charging::Each,
            vec![("a", counted, Amount::Add(1)), ("c", free, Amount::Add(1))],
        ),
        (Charging::Each, vec![("no key", free, Amount::Add(1))]),
    ];
    for (charging, charges) in steps {
        let expected = charge(&memory, charging, &charges).await.unwrap();
        let mut found = charge(&memcached, charging, &charges).await.unwrap();
        if matches!(charges[0].2, Amount::Refund(_)) {
            // memcached does not tell what a counter stood at.
            found[0].before = expected[0].before;
        }
        assert_eq!(found, expected, "{charging:?} {charges:?}");
    }
}

#[tokio::test]
async fn keys_are_those_of_the_reference() {
    let Some(server) = Server::start() else {
        return;
    };
    let store = server.store().await;
    let hits = [("v", terms(10, Rejected::Counted), Amount::Add(3))];
    charge(&store, Charging::Each, &hits).await.unwrap();

    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", server.port))
        .await
        .unwrap();
    stream.write_all(b"get d_k_v_0\r\n").await.unwrap();
    let expected = b"VALUE d_k_v_0 0 1\r\n3\r\nEND\r\n";
    let mut found = vec![0; expected.len()];
    stream.read_exact(&mut found).await.unwrap();
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_the_limit_passes_on_two_instances() {
    let Some(server) = Server::start() else {
        return;
    };
    let stores = [server.store().await, server.store().await];
    let tasks: Vec<_> = (0..64)
        .map(|client| {
            let store = stores[client % 2].clone();
            tokio::spawn(async move {
                let hit = [("hot", terms(500, Rejected::Counted), Amount::Add(1))];
                let mut passed = 0;
                for _ in 0..50 {
                    let readings = charge(&store, Charging::Each, &hit).await.unwrap();
                    passed += u32::from(readings[0].after <= 500);
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

#[tokio::test]
async fn other_meters_are_refused_by_name() {
    let Some(server) = Server::start() else {
        return;
    };
    let store = server.store().await;
    let bucket = Terms {
        meter: Meter::TokenBucket {
            period: 1,
            burst: 1,
        },
        ..terms(1, Rejected::Free)
    };
    let error = charge(&store, Charging::Each, &[("v", bucket, Amount::Add(1))])
        .await
        .unwrap_err();
    let said = "memcached cannot count otherwise than in fixed windows";
    assert_eq!(error.to_string(), said);
}

#[tokio::test]
async fn a_killed_memcached_makes_errors_at_once_and_a_new_one_is_found() {
    let Some(mut server) = Server::start() else {
        return;
    };
    let store = server.store().await;
    let hit = [("v", terms(1, Rejected::Counted), Amount::Add(1))];
    charge(&store, Charging::Each, &hit).await.unwrap();

    server.kill();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = charge(&store, Charging::Each, &hit).await;
        if matches!(answer, Err(StoreError::NotConnected { .. })) {
            break;
        }
        assert!(Instant::now() < deadline, "{answer:?}");
    }
    server.process = spawn(&server.program, server.port);
    while charge(&store, Charging::Each, &hit).await.is_err() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
