//! How to reach Redis.

use std::{path::PathBuf, str::FromStr, time::Duration};

use attache_service::{Address, config::Hidden, tls::ClientTls};
use percent_encoding::percent_decode_str;

/// Bound on one operation by default: half of what Envoy waits for a rate limit service.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(10);

/// The port of Redis and the port of Sentinel when none is written.
const PORTS: (u16, u16) = (6379, 26379);

/// How to reach Redis, and how to keep counters there.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// Which servers there are.
    pub topology: Topology,
    /// The database, with `SELECT`; a cluster has only 0. Default 0.
    pub database: u32,
    /// Who we are. Default: nobody in particular.
    pub auth: Option<Auth>,
    /// TLS to Redis, and to the sentinels. Default: none.
    pub tls: Option<ClientTls>,
    /// Bound on one operation. Default [`DEFAULT_TIMEOUT`].
    pub timeout: Duration,
    /// Bound on establishing a connection. Default 1 s.
    pub connect_timeout: Duration,
    /// Connections to each server, at least 1. Default 1: all requests share it, and one is
    /// enough unless TLS or a far server is its bound.
    pub connections: usize,
    /// Put before every key. Default empty.
    pub key_prefix: String,
    /// How keys of fixed windows are written. Default [`KeyFormat::Reference`].
    pub key_format: KeyFormat,
    /// Counters outlive their window by a random time up to this, so that not all of a window
    /// expire at once. Default 2 s; the reference service has 300 s.
    pub expiry_jitter: Duration,
    /// Another Redis, for the counters of windows of one second. Its own `per_second` is passed
    /// over.
    pub per_second: Option<Box<RedisSettings>>,
}

/// Which servers there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    Single(Address),
    /// The server that sentinels name as master, for as long as they do.
    Sentinel {
        /// What the sentinels call the master.
        master: String,
        /// The sentinels; the first that answers is believed.
        sentinels: Vec<Address>,
        /// Who we are to the sentinels.
        auth: Option<Auth>,
    },
    /// Redis Cluster, found through any of these nodes.
    Cluster(Vec<Address>),
}

/// Who we are to Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// The ACL user; the default user when absent.
    pub user: Option<String>,
    /// The password.
    pub password: Hidden,
}

/// How keys of fixed windows are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KeyFormat {
    /// Byte for byte as by the reference service, so that it can count on the same Redis.
    ///
    /// The key names the start of the window but not its length. When a rule changes its unit,
    /// the hits of the old unit's window count in a new window that starts at the same time.
    #[default]
    Reference,
    /// Followed by the length of the window, so that a rule with another unit has another
    /// counter. For instances that share Redis only with their like.
    WithLength,
}

/// A store's URL that cannot be used. Does not show the URL, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the URL of the store is not valid: {0}")]
pub struct InvalidUrl(String);

impl InvalidUrl {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl RedisSettings {
    /// Settings with defaults.
    pub fn new(topology: Topology) -> Self {
        Self {
            topology,
            database: 0,
            auth: None,
            tls: None,
            timeout: DEFAULT_TIMEOUT,
            connect_timeout: Duration::from_secs(1),
            connections: 1,
            key_prefix: String::new(),
            key_format: KeyFormat::default(),
            expiry_jitter: Duration::from_secs(2),
            per_second: None,
        }
    }

    /// Reads a URL, with defaults for the rest.
    ///
    /// - `redis://[[user]:password@]host[:port][/database]`: one server.
    /// - `redis+sentinel://[...@]host[:port],host[:port].../master[/database]`: the master of
    ///   that name; user and password are for Redis, not for the sentinels.
    /// - `redis+cluster://[...@]host[:port],host[:port]...`: a cluster.
    /// - `unix:///path`: one server.
    ///
    /// With `rediss` instead of `redis` it speaks TLS, trusting the system's authorities. User
    /// and password are percent-encoded.
    ///
    /// # Errors
    /// When the URL is none of these, or TLS cannot be set up.
    pub fn parse(url: &str) -> Result<Self, InvalidUrl> {
        let invalid = |reason: &str| InvalidUrl::new(reason);
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| invalid("it has no scheme such as `redis://`"))?;
        if matches!(scheme, "unix" | "redis+unix") {
            let path = PathBuf::from(rest);
            return match path.is_absolute() {
                true => Ok(Self::new(Topology::Single(Address::Unix(path)))),
                false => Err(invalid("`unix://` needs an absolute path")),
            };
        }
        let (auth, rest) = match rest.rsplit_once('@') {
            Some((credentials, rest)) => (Some(Auth::of_url(credentials)?), rest),
            None => (None, rest),
        };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let addresses = |port| {
            hosts
                .split(',')
                .map(|host| address(host, port))
                .collect::<Result<Vec<_>, _>>()
        };
        let (tls, kind) = match scheme.strip_prefix("rediss") {
            Some(kind) => (true, kind),
            None => (false, scheme.strip_prefix("redis").unwrap_or("?")),
        };
        let (topology, database) = match kind {
            "" => (Topology::Single(address(hosts, PORTS.0)?), path),
            "+cluster" => (Topology::Cluster(addresses(PORTS.0)?), path),
            "+sentinel" => {
                let (master, database) = path.split_once('/').unwrap_or((path, ""));
                if master.is_empty() {
                    return Err(invalid(
                        "a sentinel URL ends with `/` and the master's name",
                    ));
                }
                let topology = Topology::Sentinel {
                    master: master.to_owned(),
                    sentinels: addresses(PORTS.1)?,
                    auth: None,
                };
                (topology, database)
            }
            _ => {
                return Err(invalid(
                    "its scheme is none of redis, rediss, redis+sentinel, rediss+sentinel, \
                     redis+cluster, rediss+cluster, unix and memcached",
                ));
            }
        };
        let database = match database {
            "" => 0,
            number => number
                .parse()
                .map_err(|_| InvalidUrl(format!("`{number}` is not the number of a database")))?,
        };
        if database != 0 && matches!(topology, Topology::Cluster(_)) {
            return Err(invalid("a cluster has no databases"));
        }
        let tls = match tls {
            true => Some(
                ClientTls::load(attache_service::tls::ClientFiles::default())
                    .map_err(|error| InvalidUrl(error.to_string()))?,
            ),
            false => None,
        };
        Ok(Self {
            database,
            auth,
            tls,
            ..Self::new(topology)
        })
    }
}

impl FromStr for RedisSettings {
    type Err = InvalidUrl;

    fn from_str(url: &str) -> Result<Self, InvalidUrl> {
        Self::parse(url)
    }
}

impl Auth {
    /// The reference service's way to write it: `password`, or `user:password`.
    pub fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some((user, password)) => Self::new(user, password),
            None => Self::new("", text),
        }
    }

    fn new(user: &str, password: &str) -> Self {
        Self {
            user: (!user.is_empty()).then(|| user.to_owned()),
            password: Hidden::new(password),
        }
    }

    fn of_url(credentials: &str) -> Result<Self, InvalidUrl> {
        let (user, password) = credentials.split_once(':').ok_or_else(|| {
            InvalidUrl("a password stands behind a colon: `user:password@` or `:password@`".into())
        })?;
        let decode = |text| {
            percent_decode_str(text)
                .decode_utf8()
                .map_err(|_| InvalidUrl("user and password are UTF-8, percent-encoded".into()))
        };
        Ok(Self::new(&decode(user)?, &decode(password)?))
    }
}

/// A host with or without its port.
pub(in crate::store) fn address(text: &str, default_port: u16) -> Result<Address, InvalidUrl> {
    let has_port = match text.rfind(']') {
        Some(end) => text.get(end..).is_some_and(|rest| rest.contains(':')),
        None => text.contains(':'),
    };
    let address = match has_port {
        true => text.parse(),
        false => format!("{text}:{default_port}").parse(),
    };
    address.map_err(|error: attache_service::address::AddressError| InvalidUrl(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(url: &str) -> Topology {
        RedisSettings::parse(url).unwrap().topology
    }

    fn addresses(texts: &[&str]) -> Vec<Address> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn urls_name_the_topology() {
        let single = |text: &str| Topology::Single(text.parse().unwrap());
        for (url, expected) in [
            ("redis://cache", single("cache:6379")),
            ("redis://cache:1/", single("cache:1")),
            ("redis://[::1]", single("[::1]:6379")),
            ("redis://[::1]:7", single("[::1]:7")),
            ("rediss://cache", single("cache:6379")),
            ("unix:///run/redis.sock", single("unix:/run/redis.sock")),
            (
                "redis+cluster://a,b:7",
                Topology::Cluster(addresses(&["a:6379", "b:7"])),
            ),
            (
                "redis+sentinel://a,b:7/main",
                Topology::Sentinel {
                    master: "main".to_owned(),
                    sentinels: addresses(&["a:26379", "b:7"]),
                    auth: None,
                },
            ),
        ] {
            assert_eq!(topology(url), expected, "{url}");
        }
        assert!(RedisSettings::parse("rediss://a").unwrap().tls.is_some());
    }

    #[test]
    fn urls_carry_user_password_and_database() {
        let settings = RedisSettings::parse("redis://me:p%40ss%3A@cache/3").unwrap();
        assert_eq!(settings.database, 3);
        assert_eq!(settings.auth, Some(Auth::parse("me:p@ss:")));
        let settings = RedisSettings::parse("redis+sentinel://:pw@s/main/2").unwrap();
        assert_eq!(settings.database, 2);
        assert_eq!(settings.auth, Some(Auth::parse("pw")));
        assert!(!format!("{settings:?}").contains("pw"));
    }

    #[test]
    fn bad_urls_are_refused_without_being_shown() {
        for (url, reason) in [
            ("nonsense", "no scheme"),
            ("http://user:secret@host", "its scheme is none of"),
            ("redis://user:secret@host:99999999", "`99999999`"),
            ("redis://secret@host", "behind a colon"),
            ("redis://:secret@", "no valid host"),
            ("redis://host/secret1", "not the number"),
            ("redis+sentinel://user:secret@host", "the master's name"),
            ("redis+cluster://host/1", "no databases"),
            ("redis://:%ff@host", "UTF-8"),
            ("unix://here", "absolute"),
        ] {
            let error = RedisSettings::parse(url).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
            assert!(!error.contains("secret@"), "{url}: {error}");
        }
    }
}
