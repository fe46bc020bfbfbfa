//! A cluster: keys spread over nodes, and slots that move.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use attache_ratelimit::{
    limiter::{UnixTime, Window},
    store::{
        Amount, Batch, Charging, Inspect as _, Query, RedisStore, Rejected, Store as _, StoreError,
        Terms, redis::RedisSettings,
    },
};
use attache_service::Metrics;
use redis::FromRedisValue;

use crate::server::Server;

const SLOTS: u16 = 16384;

pub(crate) struct Nodes {
    servers: Vec<Server>,
    ids: Vec<String>,
}

impl Nodes {
    /// Three nodes with a third of the slots each, and one without.
    pub(crate) async fn start() -> Option<Self> {
        let mut nodes = Self {
            servers: Vec::new(),
            ids: Vec::new(),
        };
        let options = [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "2000",
            "--cluster-require-full-coverage",
            "no",
            // A node without slots stays a master.
            "--cluster-allow-replica-migration",
            "no",
        ];
        for _ in 0..4 {
            nodes.servers.push(Server::start_with(&options).await?);
        }
        for at in 0..4_u16 {
            let id = nodes.ask(at.into(), &["CLUSTER", "MYID"]).await;
            nodes.ids.push(id);
            if at < 3 {
                let (first, last) = (at * (SLOTS / 3), (at + 1) * (SLOTS / 3) - 1);
                let last = if at == 2 { SLOTS - 1 } else { last };
                let slots: Vec<String> = (first..=last).map(|slot| slot.to_string()).collect();
                let mut add = vec!["CLUSTER", "ADDSLOTS"];
                add.extend(slots.iter().map(String::as_str));
                nodes.ask::<String>(at.into(), &add).await;
            }
            let epoch = (at + 1).to_string();
            nodes
                .ask::<String>(at.into(), &["CLUSTER", "SET-CONFIG-EPOCH", &epoch])
                .await;
        }
        for at in 1..4 {
            let port = nodes.servers[0].port.to_string();
            nodes
                .ask::<String>(at, &["CLUSTER", "MEET", "127.0.0.1", &port])
                .await;
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        for at in 0..4 {
            loop {
                let info: String = nodes.ask(at, &["CLUSTER", "INFO"]).await;
                let slots: String = nodes.ask(at, &["CLUSTER", "NODES"]).await;
                if info.contains("cluster_state:ok")
                    && info.contains("cluster_slots_ok:16384")
                    && info.contains("cluster_known_nodes:4")
                    && slots.matches(" connected ").count() + slots.matches(" connected\n").count()
                        >= 4
                {
                    break;
                }
                assert!(Instant::now() < deadline, "{info} {slots}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Some(nodes)
    }

    async fn ask<T: FromRedisValue>(&self, node: usize, command: &[&str]) -> T {
        let mut connection = self.servers[node].connection().await;
        let mut words = redis::Cmd::new();
        for word in command {
            words.arg(*word);
        }
        words.query_async(&mut connection).await.unwrap()
    }

    pub(crate) fn url(&self) -> String {
        let port = self.servers[1].port;
        format!("redis+cluster://127.0.0.1:{port},127.0.0.1:1")
    }

    async fn store(&self) -> RedisStore {
        let settings = RedisSettings {
            timeout: Duration::from_secs(5),
            ..RedisSettings::parse(&self.url()).unwrap()
        };
        let store = RedisStore::connect(settings, &Metrics::default()).await;
        assert!(store.is_connected());
        store
    }

    async fn slot(&self, key: &str) -> String {
        let slot: u16 = self.ask(0, &["CLUSTER", "KEYSLOT", key]).await;
        slot.to_string()
    }

    pub(crate) async fn owner(&self, key: &str) -> usize {
        let slot: u16 = self.slot(key).await.parse().unwrap();
        usize::from(slot / (SLOTS / 3)).min(2)
    }

    /// Moves the slot of a key, with a moment in which the key is on the way.
    pub(crate) async fn move_slot(&self, key: &str, from: usize, to: usize) {
        let slot = self.slot(key).await;
        let (source, target) = (&self.ids[from], &self.ids[to]);
        self.ask::<String>(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", source])
            .await;
        self.ask::<String>(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", target])
            .await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let port = self.servers[to].port.to_string();
        loop {
            let keys: Vec<String> = self
                .ask(from, &["CLUSTER", "GETKEYSINSLOT", &slot, "10"])
                .await;
            if keys.is_empty() {
                break;
            }
            for key in keys {
                self.ask::<String>(from, &["MIGRATE", "127.0.0.1", &port, &key, "0", "1000"])
                    .await;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        for node in [to, from] {
            self.ask::<String>(node, &["CLUSTER", "SETSLOT", &slot, "NODE", target])
                .await;
        }
    }
}

fn terms(limit: u32, rejected: Rejected) -> Terms {
    Terms {
        rejected,
        ..Terms::fixed_window(Window::at(1234, 3600), limit)
    }
}

/// Adds a hit to each of the counters; says whether all fit.
async fn hit(
    store: &RedisStore,
    keys: &[&str],
    terms: Terms,
    charging: Charging,
) -> Result<bool, StoreError> {
    let mut batch = Batch::new(UnixTime::from_seconds(1234));
    batch.set_charging(charging);
    for key in keys {
        batch.begin("d");
        batch.entry("k", key);
        batch.charge(terms, Amount::Add(1));
    }
    let mut readings = Vec::new();
    store.charge(&batch, &mut readings).await?;
    assert_eq!(readings.len(), keys.len());
    Ok(readings
        .iter()
        .all(|reading| reading.after <= u64::from(terms.limit)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_are_spread_and_belong_together_all_the_same() {
    let Some(nodes) = Nodes::start().await else {
        return;
    };
    let store = nodes.store().await;
    let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let two = terms(2, Rejected::Counted);
    for passes in [true, true, false] {
        assert_eq!(hit(&store, &keys, two, Charging::Each).await, Ok(passes));
    }
    let mut used = Vec::new();
    for at in 0..3 {
        used.push(nodes.ask::<u64>(at, &["DBSIZE"]).await);
    }
    assert_eq!(used.iter().sum::<u64>(), 8);
    assert!(used.iter().all(|count| *count > 0), "{used:?}");

    // One of them is full: the others, on other nodes, get back what they were charged.
    let keys = ["p", "q", "r", "full"];
    hit(&store, &["full"], two, Charging::Each).await.unwrap();
    hit(&store, &["full"], two, Charging::Each).await.unwrap();
    for _ in 0..5 {
        assert_eq!(
            hit(&store, &keys, two, Charging::AllOrNothing).await,
            Ok(false)
        );
    }
    for passes in [true, true, false] {
        let rest = &keys[..3];
        assert_eq!(
            hit(&store, rest, two, Charging::AllOrNothing).await,
            Ok(passes)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_are_listed_and_forgotten_on_every_node() {
    let Some(nodes) = Nodes::start().await else {
        return;
    };
    let store = nodes.store().await;
    let names: Vec<String> = (0..60).map(|number| format!("n{number}")).collect();
    let keys: Vec<&str> = names.iter().map(String::as_str).collect();
    let two = terms(2, Rejected::Counted);
    assert_eq!(hit(&store, &keys, two, Charging::Each).await, Ok(true));

    let now = store.time(UnixTime::from_seconds(1234));
    let mut query = Query {
        prefix: "d_k_n".to_owned(),
        cursor: None,
        limit: 5,
    };
    let mut listed = Vec::new();
    let mut servers = Vec::new();
    loop {
        let page = store.list(&query, now).await.unwrap();
        listed.extend(page.counters.into_iter().map(|counter| counter.key));
        let Some(next) = page.next else { break };
        servers.push(next.split_once(':').unwrap().0.to_owned());
        query.cursor = Some(next);
    }
    listed.sort();
    listed.dedup();
    assert_eq!(listed.len(), 60);
    servers.dedup();
    assert_eq!(servers, ["0", "1", "2"]);

    assert_eq!(store.reset("d_k_n1").await, Ok(11));
    assert_eq!(store.reset("d_k").await, Ok(49));
    for at in 0..3 {
        assert_eq!(nodes.ask::<u64>(at, &["DBSIZE"]).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_the_limit_passes_while_the_counter_moves() {
    let Some(nodes) = Nodes::start().await else {
        return;
    };
    let stores = [nodes.store().await, nodes.store().await];
    for rejected in [Rejected::Counted, Rejected::Free] {
        let name = format!("moving{rejected:?}");
        let key = format!("d_k_{name}_0");
        let from = nodes.owner(&key).await;
        let done = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = (0..16)
            .map(|client| {
                let (store, done) = (stores[client % 2].clone(), done.clone());
                let name = name.clone();
                tokio::spawn(async move {
                    let terms = terms(500, rejected);
                    let (mut passed, mut asked) = (0, 0);
                    while !done.load(Ordering::Relaxed) || asked < 100 {
                        let all = hit(&store, &[&name], terms, Charging::Each).await.unwrap();
                        passed += u32::from(all);
                        asked += 1;
                        // Over the time of the moves.
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    passed
                })
            })
            .collect();
        nodes.move_slot(&key, from, 3).await;
        nodes.move_slot(&key, 3, (from + 1) % 3).await;
        done.store(true, Ordering::Relaxed);
        let mut passed = 0;
        for task in tasks {
            passed += task.await.unwrap();
        }
        assert_eq!(passed, 500, "{rejected:?}");
        let held: u64 = nodes.ask((from + 1) % 3, &["GET", &key]).await;
        assert!(held >= 500, "{held}");
        let lifetime: i64 = nodes.ask((from + 1) % 3, &["TTL", &key]).await;
        assert!(lifetime > 0, "{lifetime}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn charges_that_belong_together_leave_nothing_behind_when_a_node_is_dead() {
    let Some(mut nodes) = Nodes::start().await else {
        return;
    };
    let store = nodes.store().await;
    let (mut alive, mut dead) = (None, None);
    for number in 0..30 {
        let name = format!("n{number}");
        match nodes.owner(&format!("d_k_{name}_0")).await {
            0 => dead = Some(name),
            owner => alive = Some((name, owner)),
        }
    }
    let (dead, (alive, owner)) = (dead.unwrap(), alive.unwrap());
    let limit = terms(1_000_000, Rejected::Counted);
    nodes.servers[0].kill();
    for _ in 0..20 {
        let charged = hit(&store, &[&alive, &dead], limit, Charging::AllOrNothing).await;
        assert!(charged.is_err(), "{charged:?}");
    }
    let key = format!("d_k_{alive}_0");
    let held: Option<u64> = nodes.ask(owner, &["GET", &key]).await;
    assert_eq!(held.unwrap_or_default(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lives_on_other_nodes_is_counted_while_one_is_dead() {
    let Some(mut nodes) = Nodes::start().await else {
        return;
    };
    let store = nodes.store().await;
    let limit = terms(1_000_000, Rejected::Counted);
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let mut owners = Vec::new();
    for name in names {
        owners.push(nodes.owner(&format!("d_k_{name}_0")).await);
    }
    assert!(owners.contains(&0) && owners.contains(&1));

    nodes.servers[0].kill();
    let deadline = Instant::now() + Duration::from_secs(10);
    for (name, owner) in names.into_iter().zip(&owners) {
        loop {
            let started = Instant::now();
            let answer = hit(&store, &[name], limit, Charging::Each).await;
            let took = started.elapsed();
            if answer.is_ok() == (*owner != 0) {
                assert!(took < Duration::from_secs(1), "{took:?}");
                break;
            }
            // It takes a moment until the connection is known to be lost.
            assert!(Instant::now() < deadline, "{name} {owner}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    nodes.servers[0].restart().await;
}
