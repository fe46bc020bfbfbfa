//! What the command line says.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::row::Row;
use crate::window::Window;

/// Which part of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The proxies, row by row
    Proxies,
    /// The policy services alone
    Services,
    /// Decisions on rate limits, beside other services that decide
    Limits,
    /// Latencies at half of the rate that Envoy reaches
    Latency,
    /// One worker of ours and two
    Workers,
    /// Memory of idle connections
    Connections,
    /// Balancing policies, with one slow origin among four
    Balance,
}

/// One of the two proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Proxy {
    /// Real Envoy
    Envoy,
    /// The proxy of Attaché
    Ours,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Proxy::Envoy => "Envoy",
            Proxy::Ours => "ours",
        })
    }
}

/// The arguments of `attache-bench run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// One short round of each: for a first look, not for figures
    #[arg(long)]
    quick: bool,

    /// Rows to measure, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "ROW,…")]
    rows: Vec<Row>,

    /// Measure only one part
    #[arg(long)]
    pub(crate) part: Option<Part>,

    /// Measure one proxy alone; with `envoy`, nothing of Attaché is needed
    #[arg(long)]
    pub(crate) only: Option<Proxy>,

    /// Rounds; the tables show their medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,

    /// Seconds counted in each round
    #[arg(long, default_value = "4", value_parser = seconds)]
    seconds: Duration,

    /// Seconds of load before counting
    #[arg(long, default_value = "1", value_parser = seconds)]
    warm_up: Duration,

    /// Requests at a time to a proxy: each on an HTTP/1.1 connection of its own, or eight on each
    /// HTTP/2 connection
    #[arg(long, default_value_t = 32)]
    pub(crate) connections: u32,

    /// Concurrent calls on the one HTTP/2 connection to a policy service
    #[arg(long, default_value_t = 64)]
    pub(crate) streams: u32,

    /// Exchanges held open at the same time, for what each costs in memory
    #[arg(long, default_value_t = 10_000)]
    pub(crate) open: usize,

    /// Idle connections, for what each costs in memory
    #[arg(long, default_value_t = 10_000)]
    pub(crate) idle: usize,

    /// End a round after this many requests
    #[arg(long, default_value_t = 2_000_000)]
    most: u64,

    /// The Envoy to measure
    #[arg(long, env = "ATTACHE_ENVOY", default_value = "target/tools/envoy")]
    pub(crate) envoy: PathBuf,

    /// The Open Policy Agent to measure, with its plugin for Envoy
    #[arg(long, env = "ATTACHE_OPA", default_value = "target/tools/opa")]
    pub(crate) opa: PathBuf,

    /// The rate limit service to measure, envoyproxy/ratelimit
    #[arg(
        long,
        env = "ATTACHE_RATELIMIT_REFERENCE",
        default_value = "target/tools/ratelimit"
    )]
    pub(crate) reference: PathBuf,

    /// The Redis of rate limit services
    #[arg(
        long,
        env = "ATTACHE_REDIS",
        default_value = "target/tools/redis-server"
    )]
    pub(crate) redis: PathBuf,

    /// The Attaché to measure
    #[arg(long, env = "ATTACHE_BIN", default_value = "target/release/attache")]
    pub(crate) attache: PathBuf,
}

impl Run {
    /// How long one round is.
    pub(crate) fn window(&self) -> Window {
        let (warm_up, seconds) = if self.quick {
            (Duration::from_millis(500), Duration::from_secs(1))
        } else {
            (self.warm_up, self.seconds)
        };
        Window {
            warm_up,
            seconds,
            most: self.most,
        }
    }

    /// Whether a part is to be measured.
    pub(crate) fn measures(&self, part: Part) -> bool {
        self.part.is_none_or(|only| only == part)
    }

    /// How many rounds there are.
    pub(crate) fn rounds(&self) -> u32 {
        if self.quick { 1 } else { self.rounds }
    }

    /// The rows to measure.
    pub(crate) fn rows(&self) -> &[Row] {
        if self.rows.is_empty() {
            Row::value_variants()
        } else {
            &self.rows
        }
    }

    /// The proxies to measure, in the order of each round.
    pub(crate) fn proxies(&self) -> &[Proxy] {
        match &self.only {
            Some(one) => std::slice::from_ref(one),
            None => &[Proxy::Envoy, Proxy::Ours],
        }
    }
}

/// The arguments of `attache-bench load`.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// The server: `attache-bench origin`, or a proxy before it
    pub(crate) target: SocketAddr,

    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 32)]
    pub(crate) connections: u32,

    /// Seconds counted
    #[arg(long, default_value = "4", value_parser = seconds)]
    pub(crate) seconds: Duration,

    /// Ask for the large body instead of the small one
    #[arg(long)]
    pub(crate) large: bool,
}

/// A length of time that a measurement may have.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a number of seconds from 0 to 600 is wanted".to_owned()),
    }
}
