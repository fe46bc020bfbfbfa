//! A Redis for services under test, and what it was asked.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::child::{Child, free_address};
use crate::cpu::Process;

/// A running Redis, with nothing kept on disk.
pub(crate) struct Redis {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    child: Child,
}

/// Commands that no decision needs.
const ASIDE: [&str; 6] = ["info", "ping", "hello", "client", "config", "command"];

impl Redis {
    /// Starts it and waits until it answers.
    pub(crate) async fn start(program: &Path, name: &str, folder: &Path) -> anyhow::Result<Redis> {
        let address = free_address()?;
        let mut command = Command::new(program);
        command
            .args(["--bind", "127.0.0.1"])
            .args(["--port", &address.port().to_string()])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(folder);
        let mut child = Child::program(name, &mut command, folder)?;
        child
            .ready(|| async { info(address).await.map(|_| ()) })
            .await?;
        Ok(Redis { address, child })
    }

    /// For reading its CPU time.
    pub(crate) fn process(&self) -> Process {
        self.child.process()
    }

    /// How many commands it has run for its clients.
    pub(crate) async fn commands(&self) -> anyhow::Result<u64> {
        let info = info(self.address).await?;
        Ok(counted(&info))
    }
}

async fn info(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    stream.write_all(b"INFO commandstats\r\n").await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let length = line.trim_end().strip_prefix('$');
    let Some(length) = length.and_then(|length| length.parse().ok()) else {
        bail!("Redis answers `{}`", line.trim_end());
    };
    let mut text = vec![0; length];
    stream.read_exact(&mut text).await?;
    String::from_utf8(text).context("no text from Redis")
}

/// The sum of `calls` over all commands of `INFO commandstats`.
fn counted(info: &str) -> u64 {
    let calls = info.lines().filter_map(|line| {
        let (name, figures) = line.strip_prefix("cmdstat_")?.split_once(':')?;
        let name = name.split('|').next().unwrap_or(name);
        if ASIDE.contains(&name) {
            return None;
        }
        let calls = figures.strip_prefix("calls=")?.split(',').next()?;
        calls.parse::<u64>().ok()
    });
    calls.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_decisions_need_is_counted() {
        let info = "# Commandstats\r\n\
            cmdstat_incrby:calls=7,usec=3,usec_per_call=0.4\r\n\
            cmdstat_expire:calls=5,usec=3,usec_per_call=0.4\r\n\
            cmdstat_client|setinfo:calls=2,usec=1,usec_per_call=0.5\r\n\
            cmdstat_info:calls=2,usec=1,usec_per_call=0.5\r\n";
        assert_eq!(counted(info), 12);
    }
}
