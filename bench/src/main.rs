//! Side-by-side measurements: real Envoy and our proxy before the same origin
//! and the same policy services; our policy services beside one that does
//! nothing. `bench/README.md` says what is measured and how.

mod balance;
mod calls;
mod certificates;
mod child;
mod config;
mod connections;
mod cpu;
mod downstream;
mod envoy;
mod exchange;
mod filters;
mod grpc;
mod latency;
mod library;
mod limits;
mod load;
mod memory;
mod origin;
mod ours;
mod protocol;
mod proxies;
mod redis;
mod response;
mod row;
mod samples;
mod serve;
mod services;
mod soak;
mod table;
mod tokens;
mod window;
mod workers;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// Measures Envoy and Attaché side by side.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the comparison and print its tables.
    Run(config::Run),
    /// Run the proxy with all policies for long while everything around it is reloaded, restarted
    /// and rotated, and count what fails.
    Soak(soak::Soak),
    /// Serve as an origin of `soak`.
    SoakOrigin(Listen),
    /// Load one HTTP/1.1 server, as `run` does, and print what it and we cost.
    Load(config::Load),
    /// Serve as the origin: `/small`, `/large` and `/huge`.
    Origin(Origin),
    /// Serve ext_authz: always OK, sets one request header.
    SvcAuthz(Listen),
    /// The same on as many threads as tonic takes by default.
    SvcAuthzThreads(Listen),
    /// Serve rate limits: always OK, sets one response header.
    SvcRatelimit(Listen),
    /// Serve rate limits of Limitador's engine, in memory.
    SvcLimitador(Listen),
    /// Serve ext_proc: sets one header each way; capitals for the response body.
    SvcExtProc(Listen),
    /// The same processor, written with our framework.
    SvcProcessor(Listen),
}

/// A server that prints `listening ADDRESS` and ends with its standard input.
#[derive(clap::Args)]
struct Listen {
    /// Address to listen on; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

/// How the origin serves.
#[derive(clap::Args)]
struct Origin {
    #[command(flatten)]
    at: Listen,
    /// Milliseconds to wait before each answer.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("attache-bench: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let mut runtime = match command {
        Command::SvcExtProc(_) | Command::SvcAuthzThreads(_) => {
            tokio::runtime::Builder::new_multi_thread()
        }
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let done = runtime.block_on(async {
        match command {
            Command::Run(run) => tokio::select! {
                done = run_all(&run) => done,
                stopped = stopped() => stopped,
            },
            Command::Soak(soak) => tokio::select! {
                done = soak.run() => done,
                stopped = stopped() => stopped,
            },
            Command::SoakOrigin(at) => soak::origin::serve(at.listen).await,
            Command::Load(target) => load_one(&target).await,
            Command::Origin(origin) => {
                let delay = Duration::from_millis(origin.delay_ms);
                origin::serve(origin.at.listen, delay).await
            }
            Command::SvcAuthz(at) | Command::SvcAuthzThreads(at) => {
                services::authz::serve(at.listen).await
            }
            Command::SvcRatelimit(at) => services::ratelimit::serve(at.listen).await,
            Command::SvcLimitador(at) => services::limitador::serve(at.listen).await,
            Command::SvcExtProc(at) => services::ext_proc::serve(at.listen).await,
            Command::SvcProcessor(at) => services::processor::serve(at.listen).await,
        }
    });
    // A blocked read of standard input must not keep a server alive.
    runtime.shutdown_timeout(Duration::ZERO);
    done
}

async fn run_all(run: &config::Run) -> anyhow::Result<()> {
    println!("{}", machine());
    if run.measures(config::Part::Proxies) {
        table::print_proxies(&proxies::measure(run).await?);
    }
    if run.measures(config::Part::Latency) {
        table::print_latency(&latency::measure(run).await?);
    }
    if run.measures(config::Part::Workers) {
        for (cores, results) in workers::measure(run).await? {
            table::print_workers(cores, &results);
        }
    }
    if run.measures(config::Part::Connections) {
        table::print_connections(&connections::measure(run).await?);
    }
    if run.measures(config::Part::Balance) {
        table::print_balance(&balance::measure(run).await?);
    }
    if run.measures(config::Part::Limits) {
        table::print_limits(&limits::measure(run).await?);
        table::print_library(&library::measure(run)?);
    }
    if run.measures(config::Part::Services) {
        table::print_calls(&calls::measure(run).await?);
        table::print_paced(&calls::measure_paced(run).await?);
        table::print_held(&calls::measure_held(run).await?);
    }
    Ok(())
}

/// Waits to be told to stop. Giving up the run then ends its processes.
async fn stopped() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    bail!("stopped before the end")
}

async fn load_one(target: &config::Load) -> anyhow::Result<()> {
    let (path, body) = if target.large {
        (row::LARGE_PATH, row::large_body())
    } else {
        (row::SMALL_PATH, row::small_body())
    };
    let expected = response::Expected {
        status: 200,
        headers: Vec::new(),
        body,
    };
    let http1 = protocol::Protocol::Http1;
    let load = load::Load {
        target: target.target,
        downstream: downstream::Downstream::plain(http1),
        connections: target.connections,
        window: window::Window {
            warm_up: Duration::from_secs(1),
            seconds: target.seconds,
            most: u64::MAX,
        },
    };
    let asked = downstream::Asked::new(path, expected, http1)?;
    let measured = load.run(asked, &[]).await?;
    println!("{}", table::one_line(&measured));
    Ok(())
}

/// The machine, for whoever reads the figures later.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?");
    format!("{cores} cores, load before the run {load}")
}
