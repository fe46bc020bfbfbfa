//! The rate limit service, and the commands around it.

use std::{fmt, num::NonZeroU32, ops::RangeInclusive, path::PathBuf, time::Duration};

use attache_service::Address;
use clap::{Args as ClapArgs, Subcommand, ValueEnum, value_parser};

use super::{
    duration,
    probe::{ClientTlsArgs, pair},
    services::ServiceArgs,
};

#[derive(Debug, ClapArgs)]
pub(crate) struct RatelimitArgs {
    #[command(subcommand)]
    pub(crate) command: Option<RatelimitCommand>,
    /// The folder with the rate limit files, one domain each, or a single file. Read again when
    /// it changes.
    #[arg(long, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// Where to listen for gRPC: `host:port` or `unix:/path`. Default: 127.0.0.1:8081; in the
    /// place of envoyproxy/ratelimit, what its variables say.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<Address>,
    /// Where the counters live: `memory`, or a store shared by several instances:
    /// `redis://host:port/db`, `unix:///path`, `redis+sentinel://host,host/master/db`,
    /// `redis+cluster://host,host` (with `rediss` it speaks TLS) or `memcached://host,host`. A URL with a password is better
    /// given by the environment, where other users of the machine do not see it. Default:
    /// `memory`; in the place of envoyproxy/ratelimit, what its variables say.
    #[arg(
        long,
        value_name = "STORE",
        env = "ATTACHE_STORE",
        hide_env_values = true
    )]
    pub(crate) store: Option<String>,
    /// How many instances share the store: each has this part of a limit while the store is away,
    /// for rules that say so, and leases so much less.
    #[arg(
        long,
        value_name = "COUNT",
        env = "ATTACHE_INSTANCES",
        default_value = "1"
    )]
    pub(crate) instances: NonZeroU32,
    /// How counters are called in Redis.
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        env = "ATTACHE_REDIS_KEYS",
        default_value = "reference"
    )]
    pub(crate) redis_keys: RedisKeys,
    #[command(flatten)]
    pub(crate) service: ServiceArgs,
}

/// How counters are called in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RedisKeys {
    /// As by envoyproxy/ratelimit, which can count on the same Redis. When a rule changes its
    /// unit, hits of the old unit's window may count in the new one until that ends.
    Reference,
    /// With the length of their window: each unit has its own counter.
    WithLength,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RatelimitCommand {
    /// Validate rate limit files as the service would load them, and say how many limits they
    /// have.
    ///
    /// All files together are one configuration. Every mistake is printed with its place, in the
    /// words of envoyproxy/ratelimit where that refuses it too.
    ///
    /// Exit codes, as those of its config checker: 0 when all is well, 1 when anything is wrong.
    Check(RatelimitCheckArgs),
    /// Say which rules a request's descriptors get, and why.
    ///
    /// Prints what each entry matched on its way down the rules (a key with its value, a
    /// wildcard, a key alone, or nothing and what comes near), the limit, its counter's key in
    /// the store, its path in statistics, which rules replace which, and what envoyproxy/ratelimit
    /// would do otherwise. Asks no service and counts nothing.
    ///
    /// Exit codes: 0 whatever applies, 2 when the command line or the configuration is wrong.
    Explain(RatelimitExplainArgs),
    /// Send rate limit requests to a service and print how long its answers take.
    ///
    /// At a rate (`--rate`), requests are due at even intervals whether earlier ones are answered
    /// or not, and latency counts from the moment at which a request was due, so that a service
    /// that stalls cannot hide it. With `--concurrency`, each of so many callers sends its next
    /// request when the last one is answered, and latency counts from then. Works with any rate
    /// limit service that Envoy works with. The service counts what it is asked.
    ///
    /// A line shows each second, a histogram the whole. Ctrl-C ends the test early and prints
    /// what there is. `--once` sends one request and prints the answer.
    ///
    /// Exit codes: 0 when all requests were answered, whatever the answers; 1 when some were not;
    /// 2 when the command line is wrong or there is no service to be reached.
    Load(Box<LoadArgs>),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RatelimitCheckArgs {
    /// Files, or folders whose files to validate.
    #[arg(required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// Let files have the same domain: their descriptors are put together, as the reference does
    /// with MERGE_DOMAIN_CONFIG=true.
    #[arg(long)]
    pub(crate) merge_domain_configs: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RatelimitExplainArgs {
    /// The folder with the rate limit files, or a single file.
    #[arg(long, value_name = "PATH")]
    pub(crate) config: PathBuf,
    /// Let files have the same domain, as the reference does with MERGE_DOMAIN_CONFIG=true.
    #[arg(long)]
    pub(crate) merge_domain_configs: bool,
    /// The domain of the request.
    pub(crate) domain: String,
    /// The request's descriptors, each `key=value,key=value`; a comma in a value is written `\,`.
    #[arg(required = true, value_name = "ENTRIES", value_parser = entries)]
    pub(crate) descriptors: Vec<Entries>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct LoadArgs {
    /// Where the service is: `host:port` or `unix:/path`.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) address: Address,
    /// The domain of the requests.
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) domain: String,
    /// A descriptor of each request: `key=value,key=value`; a comma in a value is written `\,`.
    /// May be repeated.
    #[arg(
        long = "descriptor",
        required = true,
        value_name = "ENTRIES",
        value_parser = entries
    )]
    pub(crate) descriptors: Vec<Entries>,
    /// Put a number of this range, drawn anew for each request, into the entries of this key:
    /// `key=1..100000`. May be repeated.
    #[arg(long, value_name = "KEY=FROM..TO", value_parser = spread)]
    pub(crate) spread: Vec<Spread>,
    /// Hits of each descriptor (`hits_addend`); 0 only looks, where the service knows that.
    /// Default: not sent, which means 1.
    #[arg(long, value_name = "N")]
    pub(crate) hits: Option<u64>,
    /// Send one request, and print the answer.
    #[arg(long, conflicts_with_all = ["rate", "concurrency", "duration"])]
    pub(crate) once: bool,
    /// Requests per second, at even intervals. Default: 100.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=1_000_000), conflicts_with = "concurrency", help_heading = "Pace")]
    pub(crate) rate: Option<u32>,
    /// Callers that each wait for an answer before they send again.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=100_000), help_heading = "Pace")]
    pub(crate) concurrency: Option<u32>,
    /// How long to send.
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = duration, help_heading = "Pace")]
    pub(crate) duration: Duration,
    /// How long an answer may take. Requests that run out of time are failures, and count with
    /// this latency or more.
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = duration, help_heading = "Pace")]
    pub(crate) timeout: Duration,
    /// Requests that may wait for their answers at once; at a rate, more are sent late.
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = value_parser!(u32).range(1..=1_000_000), help_heading = "Pace")]
    pub(crate) max_in_flight: u32,
    /// Connections to the service, used in turn.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = value_parser!(u32).range(1..=1_000), help_heading = "Pace")]
    pub(crate) connections: u32,
    /// gRPC metadata of each call: `name: value`. May be repeated.
    #[arg(long, value_name = "NAME: VALUE", value_parser = pair)]
    pub(crate) metadata: Vec<(String, String)>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) tls: ClientTlsArgs,
}

/// The entries of a descriptor, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entries(pub(crate) Vec<(String, String)>);

/// As on the command line.
impl fmt::Display for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escape = |text: &str| text.replace('\\', r"\\").replace(',', r"\,");
        for (number, (key, value)) in self.0.iter().enumerate() {
            let comma = if number > 0 { "," } else { "" };
            let key = escape(key).replace('=', r"\=");
            write!(f, "{comma}{key}={}", escape(value))?;
        }
        Ok(())
    }
}

/// A key whose values are drawn from a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spread {
    pub(crate) key: String,
    pub(crate) range: RangeInclusive<u64>,
}

/// `key=value,key=value`. A backslash takes the meaning from what follows; an entry without `=`
/// has an empty value.
fn entries(text: &str) -> Result<Entries, String> {
    let mut entries = vec![(String::new(), None::<String>)];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let Some((key, value)) = entries.last_mut() else {
            break;
        };
        match (character, value) {
            (',', _) => entries.push((String::new(), None)),
            ('=', value @ None) => *value = Some(String::new()),
            ('\\', value) => {
                let escaped = characters
                    .next()
                    .ok_or("there is nothing behind the last `\\`")?;
                value.as_mut().unwrap_or(key).push(escaped);
            }
            (character, value) => value.as_mut().unwrap_or(key).push(character),
        }
    }
    if entries.iter().any(|(key, _)| key.is_empty()) {
        return Err("expected `key=value`, separated by commas".to_owned());
    }
    let entry = |(key, value): (String, Option<String>)| (key, value.unwrap_or_default());
    Ok(Entries(entries.into_iter().map(entry).collect()))
}

/// `key=from..to`.
fn spread(text: &str) -> Result<Spread, String> {
    let wrong = || "expected `key=1..100000`".to_owned();
    let (key, range) = text.rsplit_once('=').ok_or_else(wrong)?;
    let (from, to) = range.split_once("..").ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let range = number(from)?..=number(to)?;
    if key.is_empty() || range.is_empty() {
        return Err(wrong());
    }
    Ok(Spread {
        key: key.to_owned(),
        range,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_keys_with_values_or_without() {
        let table: &[(&str, &[(&str, &str)])] = &[
            ("a=1", &[("a", "1")]),
            ("a=1,b=2", &[("a", "1"), ("b", "2")]),
            ("a,b=", &[("a", ""), ("b", "")]),
            (r"path=/a\,b=c,x=\\", &[("path", "/a,b=c"), ("x", r"\")]),
            (r"a\=b=c", &[("a=b", "c")]),
        ];
        for (text, expected) in table {
            let expected = expected.iter();
            let expected = expected.map(|(key, value)| (key.to_string(), value.to_string()));
            let expected = Entries(expected.collect());
            assert_eq!(
                entries(&expected.to_string()),
                Ok(expected.clone()),
                "{text}"
            );
            assert_eq!(entries(text), Ok(expected), "{text}");
        }
        for wrong in ["", "=1", "a=1,", "a=1,,b=2", r"a=1\"] {
            assert!(entries(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_spread_is_a_key_and_a_range_that_is_not_empty() {
        let expected = Spread {
            key: "user".to_owned(),
            range: 1..=100_000,
        };
        assert_eq!(spread("user=1..100000"), Ok(expected));
        assert_eq!(spread("a=7..7").unwrap().range, 7..=7);
        for wrong in [
            "",
            "user",
            "user=1",
            "user=2..1",
            "=1..2",
            "user=a..b",
            "user=-1..2",
        ] {
            assert!(spread(wrong).is_err(), "{wrong}");
        }
    }
}
