//! The processes of a run. Each is ended by its own handle when its value goes
//! away, on failure too.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::cpu::Process;
use crate::serve;

/// How long a process may take until it answers.
const START: Duration = Duration::from_secs(20);

/// Ports below those that Linux gives to connections.
const FIRST_PORT: u16 = 20_000;
const OWN_PORTS: u16 = 10_000;

/// A process that we started.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    process: std::process::Child,
    log: Option<PathBuf>,
}

impl Child {
    /// Starts a server of this very program; gives its address.
    pub(crate) fn server(subcommand: &str) -> anyhow::Result<(Child, SocketAddr)> {
        Child::server_with(subcommand, &[])
    }

    /// The same, with further arguments.
    pub(crate) fn server_with(
        subcommand: &str,
        arguments: &[&str],
    ) -> anyhow::Result<(Child, SocketAddr)> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut process = Command::new(program)
            .arg(subcommand)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {subcommand}"))?;
        let output = process.stdout.take().context("no standard output")?;
        let child = Child {
            name: subcommand.to_owned(),
            process,
            log: None,
        };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line
            .trim()
            .strip_prefix(serve::READY)
            .and_then(|address| address.parse().ok())
            .with_context(|| format!("{subcommand} did not start: `{}`", line.trim()))?;
        Ok((child, address))
    }

    /// Starts a program under test; what it prints goes to a file in `folder`.
    pub(crate) fn program(
        name: &str,
        command: &mut Command,
        folder: &Path,
    ) -> anyhow::Result<Child> {
        let log = folder.join(format!("{name}.log"));
        let out = File::create(&log).with_context(|| log.display().to_string())?;
        let process = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Child {
            name: name.to_owned(),
            process,
            log: Some(log),
        })
    }

    /// For reading its CPU time.
    pub(crate) fn process(&self) -> Process {
        Process(self.process.id())
    }

    /// Repeats `probe` until it succeeds once; an error when the process ends
    /// or takes too long, with what it printed.
    pub(crate) async fn ready<F>(&mut self, probe: impl Fn() -> F) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let start = Instant::now();
        loop {
            let failed = match probe().await {
                Ok(()) => return Ok(()),
                Err(failed) => failed,
            };
            if let Some(status) = self.process.try_wait()? {
                bail!("{} ended at once ({status}):\n{}", self.name, self.said());
            }
            if start.elapsed() > START {
                return Err(failed.context(format!(
                    "{} is not ready after {START:?}; it printed:\n{}",
                    self.name,
                    self.said()
                )));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.process), signal)
            .with_context(|| format!("cannot signal {}", self.name))
    }

    /// Asks it to end and waits until it has, by itself and without an error.
    pub(crate) async fn terminate(mut self, within: Duration) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        let start = Instant::now();
        while start.elapsed() < within {
            if let Some(status) = self.process.try_wait()? {
                ensure!(status.success(), "{} ended with {status}", self.name);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("{} did not end within {within:?}", self.name)
    }

    /// The end of what it printed.
    pub(crate) fn said(&self) -> String {
        let text = self.log.as_ref().map(std::fs::read_to_string);
        let text = text.and_then(Result::ok).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.len().saturating_sub(20);
        lines.get(last..).unwrap_or_default().join("\n")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An address that was free a moment ago, for programs that can't tell which
/// one they took.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port")?;
    Ok(listener.local_addr()?)
}

/// An address that is free, also after a server left it: of a port that no connection gets for
/// itself, unlike those that the kernel picks.
pub(crate) fn lasting_address() -> anyhow::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let seed = u16::try_from(std::process::id() % 500).unwrap_or_default() * 20;
    for _ in 0..OWN_PORTS {
        let port = FIRST_PORT + (seed + NEXT.fetch_add(1, Ordering::Relaxed)) % OWN_PORTS;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port from {FIRST_PORT} on")
}
