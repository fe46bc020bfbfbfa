//! Where counters live: `BACKEND_TYPE`, `REDIS_*`, `MEMCACHE_*`.

use std::{path::PathBuf, time::Duration};

use attache_service::{
    Address,
    tls::{ClientFiles, ClientTls},
};

use super::{super::settings::StoreSettings, limits::Counting, variables::Variables};
use crate::store::{
    SharedSettings,
    memcached::MemcachedSettings,
    redis::{Auth, RedisSettings, Topology},
    shared::Backend,
};

/// The longest that one operation may take unless a variable of ours says otherwise, however long
/// `REDIS_TIMEOUT` is: the reference bounds the establishing of connections with it, and nothing
/// else.
const LONGEST_OPERATION: Duration = Duration::from_millis(100);
/// Where the reference looks for memcached by default: nowhere.
const MEMCACHED_PORT: u16 = 11211;

/// How long is waited for the store when the service starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreWait {
    /// The first pause between attempts; it doubles. Default 1 s.
    pub initial: Duration,
    /// The longest pause. Default 30 s.
    pub max: Duration,
    /// After so long the service gives up. Default: never.
    pub give_up_after: Option<Duration>,
}

impl StoreWait {
    pub(super) fn read(variables: &mut Variables<'_>) -> Self {
        let mut duration = |name, default| {
            let least = Duration::from_millis(1);
            variables
                .duration(name, Duration::from_secs(default))
                .max(least)
        };
        let initial = duration("REDIS_STARTUP_INITIAL_INTERVAL", 1);
        let max = duration("REDIS_STARTUP_MAX_INTERVAL", 30);
        let elapsed = variables.duration("REDIS_STARTUP_MAX_ELAPSED_TIME", Duration::ZERO);
        Self {
            initial,
            max: max.max(initial),
            give_up_after: (!elapsed.is_zero()).then_some(elapsed),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum BackendType {
    Redis,
    Memcached,
    Memory,
}

pub(super) fn read(variables: &mut Variables<'_>, counting: &Counting) -> StoreSettings {
    let kinds = [
        ("redis", BackendType::Redis),
        ("", BackendType::Redis),
        ("memcache", BackendType::Memcached),
        ("memory", BackendType::Memory),
    ];
    let backend = match variables.choice("BACKEND_TYPE", &kinds, BackendType::Redis) {
        BackendType::Memory => return StoreSettings::default(),
        BackendType::Redis => redis(variables, counting).map(Backend::Redis),
        BackendType::Memcached => memcached(variables, counting).map(Backend::Memcached),
    };
    match backend {
        Some(backend) => StoreSettings::Shared(Box::new(SharedSettings {
            over_limit_cache: counting.local_cache_bytes,
            ..SharedSettings::new(backend)
        })),
        // Some variable has been refused.
        None => StoreSettings::default(),
    }
}

fn redis(variables: &mut Variables<'_>, counting: &Counting) -> Option<RedisSettings> {
    without_effect(variables);
    let tls = variables.flag("REDIS_TLS", false);
    let per_second_tls = variables.flag("REDIS_PERSECOND_TLS", false);
    let tls = Tls {
        of_redis: tls.then_some(()),
        of_per_second: per_second_tls.then_some(()),
        client: match tls || per_second_tls {
            true => Some(client_tls(variables, "REDIS_TLS")?),
            false => None,
        },
    };
    let shared = One {
        names: Names("REDIS_"),
        default_url: "/var/run/nutcracker/ratelimit.sock",
        tls: tls.of_redis.and(tls.client.clone()),
    };
    let settings = shared.read(variables, counting);
    let per_second = match variables.flag("REDIS_PERSECOND", false) {
        false => None,
        true => {
            let one = One {
                names: Names("REDIS_PERSECOND_"),
                default_url: "/var/run/nutcracker/ratelimitpersecond.sock",
                tls: tls.of_per_second.and(tls.client),
            };
            Some(Box::new(one.read(variables, counting)?))
        }
    };
    Some(RedisSettings {
        per_second,
        ..settings?
    })
}

struct Tls {
    of_redis: Option<()>,
    of_per_second: Option<()>,
    client: Option<ClientTls>,
}

/// Both Redis have variables of the same names behind a prefix.
struct Names(&'static str);

impl Names {
    fn of(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }
}

struct One {
    names: Names,
    default_url: &'static str,
    tls: Option<ClientTls>,
}

impl One {
    fn read(self, variables: &mut Variables<'_>, counting: &Counting) -> Option<RedisSettings> {
        let topology = self.topology(variables)?;
        let connect_timeout =
            variables.duration(&self.names.of("TIMEOUT"), Duration::from_secs(10));
        let connect_timeout = match connect_timeout.is_zero() {
            true => Duration::from_secs(10),
            false => connect_timeout,
        };
        let timeout = operation_timeout(variables, &self.names.of("OPERATION_TIMEOUT"));
        let auth = variables.filled(&self.names.of("AUTH"));
        Some(RedisSettings {
            auth: auth.as_deref().map(Auth::parse),
            tls: self.tls,
            timeout: timeout.unwrap_or_else(|| connect_timeout.min(LONGEST_OPERATION)),
            connect_timeout,
            key_prefix: counting.key_prefix.clone(),
            expiry_jitter: counting.expiry_jitter,
            ..RedisSettings::new(topology)
        })
    }

    fn topology(&self, variables: &mut Variables<'_>) -> Option<Topology> {
        let (type_name, url_name) = (self.names.of("TYPE"), self.names.of("URL"));
        let url = variables.text(&url_name, self.default_url);
        let kinds = [("single", 0), ("sentinel", 1), ("cluster", 2)];
        match variables.choice(&type_name, &kinds, 0) {
            0 => {
                let sockets = [("unix", true), ("tcp", false)];
                let unix = variables.choice(&self.names.of("SOCKET_TYPE"), &sockets, true);
                if unix {
                    return Some(Topology::Single(Address::Unix(PathBuf::from(url))));
                }
                let addresses = addresses(variables, &url_name, [url.as_str()])?;
                Some(Topology::Single(addresses.into_iter().next()?))
            }
            1 => {
                let mut items = url.split(',').map(str::trim);
                let master = items.next().unwrap_or_default();
                let sentinels = addresses(variables, &url_name, items)?;
                if sentinels.is_empty() || master.is_empty() {
                    variables.refuse_hidden(
                        &url_name,
                        "expected the master's name and sentinels: `main,sentinel-1:26379,…`",
                    );
                    return None;
                }
                let auth = variables.filled(&self.names.of("SENTINEL_AUTH"));
                Some(Topology::Sentinel {
                    master: master.to_owned(),
                    sentinels,
                    auth: auth.as_deref().map(Auth::parse),
                })
            }
            _ => {
                let nodes = addresses(variables, &url_name, url.split(',').map(str::trim))?;
                Some(Topology::Cluster(nodes))
            }
        }
    }
}

/// How long one operation may take, if it is said.
fn operation_timeout(variables: &mut Variables<'_>, name: &str) -> Option<Duration> {
    variables.filled(name)?;
    let timeout = variables.duration(name, LONGEST_OPERATION);
    if timeout.is_zero() {
        variables.refuse(name, "must be longer than nothing");
    }
    Some(timeout)
}

/// Addresses may be written as URLs, as the reference takes them.
fn addresses<'a>(
    variables: &mut Variables<'_>,
    name: &str,
    texts: impl IntoIterator<Item = &'a str>,
) -> Option<Vec<Address>> {
    let mut addresses = Vec::new();
    for text in texts {
        let bare = text.strip_prefix("redis://").unwrap_or(text);
        let bare = bare.rsplit_once('@').map_or(bare, |(_, host)| host);
        let bare = bare.split('/').next().unwrap_or_default();
        let with_port = match bare.rsplit_once(':') {
            // Go takes no host for this machine.
            Some(("", port)) => format!("localhost:{port}"),
            _ => bare.to_owned(),
        };
        match with_port.parse::<Address>() {
            Ok(address @ Address::Tcp { .. }) => addresses.push(address),
            _ => {
                // It may hold a password.
                variables.refuse_hidden(name, "expected `host:port`");
                return None;
            }
        }
    }
    Some(addresses)
}

fn memcached(variables: &mut Variables<'_>, counting: &Counting) -> Option<MemcachedSettings> {
    variables.no_effect(
        "MEMCACHE_MAX_IDLE_CONNS",
        "all requests share a connection to each server",
    );
    if variables.filled("MEMCACHE_SRV").is_some() {
        variables.refuse(
            "MEMCACHE_SRV",
            "servers are not looked up in DNS here: list them in MEMCACHE_HOST_PORT",
        );
        return None;
    }
    let mut servers = Vec::new();
    for text in variables.list("MEMCACHE_HOST_PORT") {
        let text = match text.contains(':') {
            true => text,
            false => format!("{text}:{MEMCACHED_PORT}"),
        };
        match text.parse() {
            Ok(address) => servers.push(address),
            Err(_) => variables.refuse("MEMCACHE_HOST_PORT", "expected `host:port` between commas"),
        }
    }
    if servers.is_empty() {
        variables.refuse(
            "MEMCACHE_HOST_PORT",
            "needed, since BACKEND_TYPE is `memcache`",
        );
        return None;
    }
    let tls = match variables.flag("MEMCACHE_TLS", false) {
        true => Some(client_tls(variables, "MEMCACHE_TLS")?),
        false => None,
    };
    Some(MemcachedSettings {
        servers,
        tls,
        timeout: operation_timeout(variables, "MEMCACHE_OPERATION_TIMEOUT")
            .unwrap_or(LONGEST_OPERATION),
        connect_timeout: Duration::from_secs(1),
        key_prefix: counting.key_prefix.clone(),
        expiry_jitter: counting.expiry_jitter,
    })
}

/// TLS by `<prefix>_CLIENT_CERT`, `_CLIENT_KEY`, `_CACERT` and `_SKIP_HOSTNAME_VERIFICATION`.
fn client_tls(variables: &mut Variables<'_>, prefix: &str) -> Option<ClientTls> {
    let of = |name: &str| format!("{prefix}_{name}");
    let file = |name: &str| variables.filled(&of(name)).map(PathBuf::from);
    let files = ClientFiles {
        ca: file("CACERT"),
        // The reference presents a certificate only with its key.
        identity: file("CLIENT_CERT").zip(file("CLIENT_KEY")),
        sni: None,
        alpn: Vec::new(),
    };
    let loaded = match variables.flag(&of("SKIP_HOSTNAME_VERIFICATION"), false) {
        true => ClientTls::load_for_any_name(files),
        false => ClientTls::load(files),
    };
    match loaded {
        Ok(tls) => Some(tls),
        Err(error) => {
            variables.refuse(prefix, error.to_string());
            None
        }
    }
}

const ONE_CONNECTION: &str = "all requests share a connection, and what waits is sent together";

fn without_effect(variables: &mut Variables<'_>) {
    for name in [
        "REDIS_POOL_SIZE",
        "REDIS_POOL_ON_EMPTY_BEHAVIOR",
        "REDIS_PIPELINE_WINDOW",
        "REDIS_PIPELINE_LIMIT",
        "REDIS_CLUSTER_PIPELINE_PARALLELISM",
        "REDIS_PERSECOND_POOL_SIZE",
        "REDIS_PERSECOND_POOL_ON_EMPTY_BEHAVIOR",
        "REDIS_PERSECOND_PIPELINE_WINDOW",
        "REDIS_PERSECOND_PIPELINE_LIMIT",
        "REDIS_PERSECOND_CLUSTER_PIPELINE_PARALLELISM",
    ] {
        variables.no_effect(name, ONE_CONNECTION);
    }
}
