//! The soak: the proxy with all three policies under load, for as long as one likes, while its
//! configuration, its certificates and everything behind it change. No request may fail that was
//! not meant to, and the process may not grow.

mod client;
pub(crate) mod origin;
mod plan;
mod schedule;
mod stage;
mod tally;
mod visit;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use client::Client;
use schedule::Happened;
use stage::Stage;
use tally::Tally;
use visit::Bodies;
use watch::{Watch, mebibytes};

use crate::protocol::Protocol;

/// The arguments of `attache-bench soak`.
#[derive(Debug, Args)]
pub(crate) struct Soak {
    /// Requests to make
    #[arg(long, default_value_t = 200_000)]
    requests: u64,

    /// Requests a second to make at most
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,

    /// Seconds between one thing that happens and the next
    #[arg(long, default_value_t = 2)]
    pause: u64,

    /// HTTP/1.1 connections, without TLS and as many with it
    #[arg(long, default_value_t = 8)]
    connections: u32,

    /// Requests at a time on each of four HTTP/2 connections, two of which are over TLS
    #[arg(long, default_value_t = 8)]
    streams: u32,

    /// Workers of the proxy
    #[arg(long, default_value_t = 2)]
    workers: u32,

    /// Where configurations and logs are kept [default: a folder that is removed at the end]
    #[arg(long)]
    folder: Option<PathBuf>,

    /// The Redis of the rate-limit services
    #[arg(
        long,
        env = "ATTACHE_REDIS",
        default_value = "target/tools/redis-server"
    )]
    redis: PathBuf,

    /// The Attaché to soak
    #[arg(long, env = "ATTACHE_BIN", default_value = "target/release/attache")]
    attache: PathBuf,
}

/// Seconds between two lines that tell how far it is.
const TELL: usize = 10;

impl Soak {
    /// Runs it and prints its table; an error when something failed or grew.
    pub(crate) async fn run(&self) -> anyhow::Result<()> {
        let own = tempfile::tempdir().context("no folder for configurations")?;
        let folder = self.folder.as_deref().unwrap_or(own.path());
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let folder = folder.canonicalize()?;
        let mut stage = Stage::start(self, &folder).await?;
        let process = stage.proxy()?.process();
        stage.healthy().await?;

        let tally = Arc::new(Tally::new(self.requests));
        let mut clients = self.clients(&stage, &tally)?;
        let happened = Happened::default();
        let mut watch = Watch::default();
        {
            let tell = |second: usize, sample: watch::Sample| {
                if second.is_multiple_of(TELL) {
                    println!(
                        "{:>9.2} s  {} answered, {} failures, {}, {} files, {} threads",
                        tally.at(),
                        tally.total(),
                        tally.failures(),
                        mebibytes(sample.resident),
                        sample.files,
                        sample.threads
                    );
                }
            };
            let warm = || tally.share() >= 0.1 && happened.rounds.get() >= 1;
            let pause = Duration::from_secs(self.pause);
            let done = async { while clients.join_next().await.is_some() {} };
            tokio::select! {
                () = done => {}
                () = schedule::run(&mut stage, &tally, pause, &happened) => {}
                watched = watch.run(process, warm, tell) => watched?,
            }
        }
        tally.print();
        println!("{:<24} {:>12}", "configurations", happened.reloads.get());
        println!("{:<24} {:>12}", "certificates", happened.rotations.get());
        println!("{:<24} {:>12}", "restarts", happened.restarts.get());
        let mut faults = watch.judge();
        if tally.failures() > 0 {
            faults.insert(0, format!("{} failures", tally.failures()));
            println!("\nlast lines of the proxy:\n{}", stage.proxy()?.said());
        }
        if let Err(why) = stage.end().await {
            faults.push(format!("{why:#}"));
        }
        if faults.is_empty() {
            println!("\nnothing failed that was not meant to, and memory is flat");
            Ok(())
        } else {
            bail!("{}", faults.join("; "))
        }
    }

    /// Starts all clients.
    fn clients(&self, stage: &Stage, tally: &Arc<Tally>) -> anyhow::Result<JoinSet<()>> {
        let bodies = Arc::new(Bodies::new());
        let (plain, secure) = stage.targets();
        let mut clients = JoinSet::new();
        let mut first = 0;
        for (protocol, connections, slots) in [
            (Protocol::Http1, self.connections, 1),
            (Protocol::Http2, 2, self.streams),
            (Protocol::Tls1, self.connections, 1),
            (Protocol::Tls2, 2, self.streams),
        ] {
            let tls = protocol.alpn();
            let tls = tls.map(|alpn| stage.certificates.connector(alpn));
            let tls = tls.transpose()?;
            for _ in 0..connections {
                let client = Arc::new(Client {
                    protocol,
                    target: if tls.is_some() { secure } else { plain },
                    tls: tls.clone(),
                    tally: tally.clone(),
                    bodies: bodies.clone(),
                    rate: f64::from(self.rate),
                    live: Mutex::default(),
                });
                for _ in 0..slots {
                    first += 7;
                    let client = client.clone();
                    clients.spawn(async move { client.run(first).await });
                }
            }
        }
        Ok(clients)
    }
}
