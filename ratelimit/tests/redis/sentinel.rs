//! A master that sentinels name, and its failover.

use std::{
    fs,
    time::{Duration, Instant},
};

use attache_ratelimit::{
    limiter::{UnixTime, Window},
    store::{Amount, Batch, Outage, RedisStore, Store, StoreError, Terms, redis::RedisSettings},
};
use attache_service::Metrics;

use crate::server::{Server, free_port};

async fn hit(store: &impl Store) -> Result<u64, StoreError> {
    let mut batch = Batch::new(UnixTime::from_seconds(1234));
    batch.begin("d");
    batch.entry("k", "v");
    let terms = Terms {
        outage: Outage::Fail,
        ..Terms::fixed_window(Window::at(1234, 3600), 1_000_000)
    };
    batch.charge(terms, Amount::Add(1));
    let mut readings = Vec::new();
    store.charge(&batch, &mut readings).await?;
    Ok(readings[0].after)
}

async fn info(server: &Server, line: &str) -> bool {
    let mut connection = server.connection().await;
    let info: redis::RedisResult<String> = redis::cmd("INFO").query_async(&mut connection).await;
    info.is_ok_and(|text| text.contains(line))
}

pub(crate) async fn wait_for(server: &Server, line: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !info(server, line).await {
        assert!(Instant::now() < deadline, "{line}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A master with a replica, and a sentinel that puts the one in the place of the other.
pub(crate) struct Watched {
    pub(crate) master: Server,
    pub(crate) replica: Server,
    _sentinel: Server,
    pub(crate) url: String,
    _directory: tempfile::TempDir,
}

impl Watched {
    pub(crate) async fn start() -> Option<Self> {
        let master = Server::start().await?;
        let port = master.port.to_string();
        let options = [
            "--replicaof",
            "127.0.0.1",
            &port,
            "--repl-diskless-sync-delay",
            "0",
        ];
        let replica = Server::start_with(&options).await?;
        wait_for(&replica, "master_link_status:up").await;
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("sentinel.conf");
        let port = free_port();
        fs::write(
            &config,
            format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {} 1\n\
                 sentinel down-after-milliseconds main 300\nsentinel failover-timeout main 5000\n",
                master.port
            ),
        )
        .unwrap();
        let sentinel = Server::sentinel(port, &config).await;
        wait_for(&sentinel, "slaves=1").await;
        Some(Self {
            master,
            replica,
            _sentinel: sentinel,
            url: format!("redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/main"),
            _directory: directory,
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_new_master_is_found_when_the_old_one_dies() {
    let Some(mut watched) = Watched::start().await else {
        return;
    };
    let settings = RedisSettings {
        timeout: Duration::from_millis(200),
        ..RedisSettings::parse(&watched.url).unwrap()
    };
    let store = RedisStore::connect(settings, &Metrics::default()).await;
    for expected in 1..=10 {
        assert_eq!(hit(&store).await, Ok(expected));
    }
    wait_for(&watched.replica, "slave_read_repl_offset").await;

    watched.master.kill();
    let died = Instant::now();
    let mut slowest = Duration::ZERO;
    let after = loop {
        let started = Instant::now();
        let answer = hit(&store).await;
        slowest = slowest.max(started.elapsed());
        if let Ok(after) = answer {
            break after;
        }
        assert!(died.elapsed() < Duration::from_secs(30), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    // Counted on from where the replica stood.
    assert!((1..=11).contains(&after), "{after}");
    assert!(info(&watched.replica, "role:master").await);
    assert!(slowest < Duration::from_millis(600), "{slowest:?}");
    println!(
        "a new master after {:?}, slowest answer {slowest:?}",
        died.elapsed()
    );
}
