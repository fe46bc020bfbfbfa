//! Redis Cluster: which server has which keys.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use attache_service::Address;
use redis::{Cmd, Value};
use tokio::sync::Notify;

use super::{
    Context,
    connect::{self, Connection, Target, clock_offset},
    link::Link,
};
use crate::store::StoreError;

const SLOTS: u16 = 16384;

/// How often the cluster is asked for its map when nothing shows that it has changed.
const REFRESH: Duration = Duration::from_secs(10);

/// Shortest time between two times of asking.
const PAUSE: Duration = Duration::from_millis(50);

/// The connections to one server.
#[derive(Clone)]
pub(super) struct Server {
    links: Arc<[Link]>,
}

impl Server {
    pub(super) fn start(target: &Target, keeps_time: bool, context: &Arc<Context>) -> Self {
        let links = (0..context.settings.connections.max(1))
            .map(|number| Link::start(target.clone(), keeps_time && number == 0, context))
            .collect();
        Self { links }
    }

    /// The connection for a key: always the same, so that adds to it can be put together.
    pub(super) fn link(&self, key: &str) -> Option<&Link> {
        match &*self.links {
            [link] => Some(link),
            links => links.get(usize::from(crc16(key.as_bytes())) % links.len().max(1)),
        }
    }

    /// The connection, if there is only one.
    pub(super) fn only_link(&self) -> Option<&Link> {
        match &*self.links {
            [link] => Some(link),
            _ => None,
        }
    }

    pub(super) async fn tried(&self) {
        for link in &*self.links {
            link.tried().await;
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.links.iter().any(Link::is_connected)
    }
}

/// The servers of a cluster.
pub(super) struct Cluster {
    seeds: Vec<Address>,
    map: ArcSwap<Map>,
    stale: Notify,
    context: Arc<Context>,
}

#[derive(Clone, Default)]
struct Map {
    servers: Vec<(Address, Server)>,
    /// For each slot the position of its server; empty as long as the cluster was not reached.
    owners: Vec<Option<u16>>,
}

impl Cluster {
    /// Asks the cluster once before it returns, and goes on in the background.
    pub(super) async fn start(seeds: &[Address], context: &Arc<Context>) -> Arc<Self> {
        let cluster = Arc::new(Self {
            seeds: seeds.to_vec(),
            map: ArcSwap::from_pointee(Map::default()),
            stale: Notify::new(),
            context: context.clone(),
        });
        cluster.discover().await;
        let servers = cluster.map.load_full();
        for (_, server) in &servers.servers {
            server.tried().await;
        }
        context.runtime.spawn(keep_map(Arc::downgrade(&cluster)));
        cluster
    }

    /// Whether some of the counters can be reached.
    pub(super) fn is_connected(&self) -> bool {
        let map = self.map.load();
        map.servers.iter().any(|(_, server)| server.is_connected())
    }

    /// The connection that leads to a key.
    pub(super) fn link(&self, key: &str) -> Result<Link, StoreError> {
        let map = self.map.load();
        let owner = map.owners.get(usize::from(slot(key))).copied().flatten();
        let server = owner.and_then(|owner| map.servers.get(usize::from(owner)));
        match server.and_then(|(_, server)| server.link(key)) {
            Some(link) => Ok(link.clone()),
            None => {
                self.refresh();
                self.context.metrics.errors.inc();
                Err(self.not_connected(match map.servers.is_empty() {
                    true => "no node of the cluster was reached".to_owned(),
                    false => format!("no node of the cluster has slot {}", slot(key)),
                }))
            }
        }
    }

    fn not_connected(&self, reason: String) -> StoreError {
        let seeds: Vec<_> = self.seeds.iter().map(ToString::to_string).collect();
        StoreError::NotConnected {
            store: "redis",
            address: seeds.join(","),
            reason,
        }
    }

    /// The servers that have slots, in the same order as long as the cluster does not change.
    pub(super) fn masters(&self) -> Result<Vec<Target>, StoreError> {
        let map = self.map.load();
        let mut owners: Vec<_> = map.owners.iter().copied().flatten().collect();
        owners.sort_unstable();
        owners.dedup();
        let addresses = owners.into_iter().filter_map(|owner| {
            let (address, _) = map.servers.get(usize::from(owner))?;
            Some(address.clone())
        });
        let mut masters: Vec<Address> = addresses.collect();
        masters.sort_by_cached_key(ToString::to_string);
        match masters.is_empty() {
            true => {
                self.refresh();
                Err(self.not_connected("no node of the cluster was reached".to_owned()))
            }
            false => Ok(masters.into_iter().map(Target::Server).collect()),
        }
    }

    /// The connection to the server that another one has named for a key.
    pub(super) async fn link_at(
        &self,
        address: Option<Address>,
        key: &str,
    ) -> Result<Link, StoreError> {
        let failed = |address: String, reason: &str| StoreError::Failed {
            store: "redis",
            address,
            reason: reason.to_owned(),
        };
        let Some(parsed) = address else {
            let seeds = self.seeds.iter().map(ToString::to_string);
            let seeds: Vec<_> = seeds.collect();
            return Err(failed(seeds.join(","), "a redirection to nowhere"));
        };
        let find = |map: &Map| {
            map.servers
                .iter()
                .find(|(known, _)| *known == parsed)
                .map(|(_, server)| server.clone())
        };
        let server = match find(&self.map.load()) {
            Some(server) => server,
            None => {
                let new = Server::start(&Target::Server(parsed.clone()), false, &self.context);
                self.map.rcu(|map| {
                    let mut map = Map::clone(map);
                    if find(&map).is_none() {
                        map.servers.push((parsed.clone(), new.clone()));
                    }
                    map
                });
                find(&self.map.load()).unwrap_or(new)
            }
        };
        server.tried().await;
        server
            .link(key)
            .cloned()
            .ok_or_else(|| failed(parsed.to_string(), "there is no connection"))
    }

    /// Has the map fetched anew, soon.
    pub(super) fn refresh(&self) {
        self.stale.notify_one();
    }

    /// Fetches the map from whichever node answers first: the one whose clock is used, the other
    /// ones, those of the settings.
    async fn discover(&self) {
        let map = self.map.load_full();
        let timekeeper = map.owners.first().copied().flatten().map(usize::from);
        let known = map.servers.iter().map(|(address, _)| address);
        let mut candidates: Vec<&Address> = Vec::new();
        candidates.extend(timekeeper.and_then(|at| known.clone().nth(at)));
        candidates.extend(known.chain(&self.seeds));
        for candidate in candidates {
            let fetched = async {
                let connection = connect::connect(candidate, &self.context.settings)
                    .await
                    .map_err(|error| error.to_string())?;
                let within = self.context.settings.connect_timeout;
                match tokio::time::timeout(within, slots(&connection)).await {
                    Ok(ranges) => Ok((connection, ranges?)),
                    Err(_) => Err(format!("no answer within {within:?}")),
                }
            };
            match fetched.await {
                Ok((connection, ranges)) => {
                    let new = self.put_in_force(&ranges);
                    self.set_clock(&connection, &new).await;
                    return;
                }
                Err(reason) => {
                    tracing::debug!(node = %candidate, %reason, "cannot ask for the cluster's map");
                }
            }
        }
        tracing::warn!(seeds = ?self.seeds, "no node of the Redis cluster answers");
    }

    fn put_in_force(&self, ranges: &[Range]) -> Arc<Map> {
        // Links that are made here for a map that another update overtakes end with it.
        self.map.rcu(|old| {
            let mut map = Map {
                servers: Vec::new(),
                owners: vec![None; usize::from(SLOTS)],
            };
            for Range {
                first,
                last,
                address,
            } in ranges
            {
                let known = map.servers.iter().position(|(known, _)| known == address);
                let at = known.unwrap_or_else(|| {
                    let server = old.servers.iter().find(|(known, _)| known == address);
                    let server = server.map(|(_, server)| server.clone());
                    let target = Target::Server(address.clone());
                    let server =
                        server.unwrap_or_else(|| Server::start(&target, false, &self.context));
                    map.servers.push((address.clone(), server));
                    map.servers.len() - 1
                });
                let slots = map.owners.get_mut(usize::from(*first)..=usize::from(*last));
                slots.unwrap_or_default().fill(u16::try_from(at).ok());
            }
            map
        });
        self.map.load_full()
    }

    /// All instances go by the clock of the server that has the first slot.
    async fn set_clock(&self, connection: &Connection, map: &Map) {
        let timekeeper = map.owners.first().copied().flatten();
        let timekeeper = timekeeper.and_then(|at| map.servers.get(usize::from(at)));
        let Some((address, _)) = timekeeper else {
            return;
        };
        let settings = &self.context.settings;
        let other = match connection.address == *address {
            true => None,
            false => connect::connect(address, settings).await.ok(),
        };
        let connection = other.as_ref().unwrap_or(connection);
        let measured = clock_offset(connection.handle.clone());
        if let Ok(Ok(offset)) = tokio::time::timeout(settings.connect_timeout, measured).await {
            self.context.set_offset(offset);
        }
    }
}

async fn keep_map(cluster: Weak<Cluster>) {
    loop {
        let Some(strong) = cluster.upgrade() else {
            return;
        };
        let wait = match strong.map.load().owners.is_empty() {
            true => PAUSE,
            false => REFRESH,
        };
        // Ends with the store, if late.
        let _ = tokio::time::timeout(wait, strong.stale.notified()).await;
        strong.discover().await;
        drop(strong);
        tokio::time::sleep(PAUSE).await;
    }
}

/// The server that a redirection names: `host:port`. Without a host it is the one of the server
/// that says so.
pub(super) fn named(to: &str, by: &str) -> Option<Address> {
    let (host, port) = to.rsplit_once(':')?;
    let host = match host {
        "" | "?" => by.rsplit_once(':')?.0,
        host => host,
    };
    // Of the sixth version, between brackets or not.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some(Address::Tcp {
        host: host.to_owned(),
        port: port.parse().ok()?,
    })
}

/// Slots that one server has.
struct Range {
    first: u16,
    last: u16,
    address: Address,
}

async fn slots(connection: &Connection) -> Result<Vec<Range>, String> {
    let mut command = Cmd::new();
    command.arg("CLUSTER").arg("SLOTS");
    let mut handle = connection.handle.clone();
    let answer: Vec<Value> = command
        .query_async(&mut handle)
        .await
        .map_err(|error| error.to_string())?;
    let ranges: Vec<Range> = answer
        .iter()
        .filter_map(|entry| range(entry, &connection.address))
        .collect();
    match ranges.is_empty() {
        true => Err("the cluster has no slots".to_owned()),
        false => Ok(ranges),
    }
}

/// `[first, last, [host, port, ...], ...]`, the master first.
fn range(entry: &Value, asked: &Address) -> Option<Range> {
    let Value::Array(entry) = entry else {
        return None;
    };
    let [
        Value::Int(first),
        Value::Int(last),
        Value::Array(master),
        ..,
    ] = entry.as_slice()
    else {
        return None;
    };
    let [host, Value::Int(port), ..] = master.as_slice() else {
        return None;
    };
    let host = match host {
        Value::BulkString(host) => String::from_utf8_lossy(host).into_owned(),
        _ => String::new(),
    };
    let host = match (host.as_str(), asked) {
        // It does not know its own name, which is the one that we know it by.
        ("" | "?", Address::Tcp { host, .. }) => host.clone(),
        _ => host,
    };
    Some(Range {
        first: u16::try_from(*first).ok().filter(|slot| *slot < SLOTS)?,
        last: u16::try_from(*last).ok().filter(|slot| *slot < SLOTS)?,
        address: Address::Tcp {
            host,
            port: u16::try_from(*port).ok()?,
        },
    })
}

/// The slot of a key: by what stands between its first braces, if that is anything.
pub(super) fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| {
        let (tag, _) = rest.split_once('}')?;
        (!tag.is_empty()).then_some(tag)
    });
    crc16(tag.unwrap_or(key).as_bytes()) % SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        let index = (crc >> 8) ^ u16::from(*byte);
        let step = TABLE.get(usize::from(index)).copied().unwrap_or_default();
        (crc << 8) ^ step
    })
}

static TABLE: [u16; 256] = table();

#[allow(clippy::indexing_slicing, clippy::cast_possible_truncation)]
const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = match crc & 0x8000 {
                0 => crc << 1,
                _ => (crc << 1) ^ 0x1021,
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot("123456789"), 0x31c3);
        assert_eq!(slot("{user1000}.following"), slot("user1000"));
        assert_eq!(slot("foo{bar}{zap}"), slot("bar"));
        assert_eq!(slot("foo{{bar}}zap"), slot("{bar"));
        assert_eq!(slot("foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
        assert_eq!(slot("foo}{bar"), crc16(b"foo}{bar") % SLOTS);
    }

    #[test]
    fn redirections_without_a_host_lead_to_another_port_of_the_same() {
        for (to, expected) in [
            ("10.0.0.1:7001", Some("10.0.0.1:7001")),
            (":7001", Some("node:7001")),
            ("?:7001", Some("node:7001")),
            ("::1:7001", Some("[::1]:7001")),
            ("[::1]:7001", Some("[::1]:7001")),
            ("nowhere", None),
            ("node:port", None),
            ("", None),
        ] {
            let named = named(to, "node:7000").map(|address| address.to_string());
            assert_eq!(named.as_deref(), expected, "{to}");
        }
    }

    #[test]
    fn ranges_name_the_master() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let entry = |host: &str| {
            Value::Array(vec![
                Value::Int(5),
                Value::Int(9),
                Value::Array(vec![text(host), Value::Int(7000), text("id")]),
                Value::Array(vec![text("10.0.0.9"), Value::Int(7001), text("id")]),
            ])
        };
        let asked: Address = "seed:7005".parse().unwrap();
        for (host, expected) in [("10.0.0.1", "10.0.0.1:7000"), ("", "seed:7000")] {
            let range = range(&entry(host), &asked).unwrap();
            assert_eq!((range.first, range.last), (5, 9));
            assert_eq!(range.address.to_string(), expected);
        }
        assert!(range(&Value::Int(1), &asked).is_none());
    }
}
