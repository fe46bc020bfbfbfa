//! What open exchanges cost a processor in memory.

use std::net::SocketAddr;

use anyhow::Context;

use crate::child::Child;
use crate::config::Run;
use crate::cpu::Process;
use crate::exchange::{Exchange, Open};
use crate::grpc::connect;

/// Exchanges on one connection: what servers allow without being told.
const PER_CONNECTION: usize = 100;

/// What open exchanges cost.
#[derive(Debug)]
pub(crate) struct Held {
    /// How many there were.
    pub(crate) exchanges: usize,
    /// Resident bytes of the process for each, connections and buffers included.
    pub(crate) bytes_each: f64,
}

/// Holds exchanges open after their first answer, all at the same time.
pub(crate) async fn hold(run: &Run, child: &Child, target: SocketAddr) -> anyhow::Result<Held> {
    let exchange = Exchange::headers()?;
    let before = resident(child.process())?;
    let mut open: Vec<Open> = Vec::new();
    let mut client = connect(target).await?;
    for number in 0..run.open {
        if number > 0 && number % PER_CONNECTION == 0 {
            client = connect(target).await?;
        }
        open.push(exchange.open(client.clone(), target).await?);
    }
    let after = resident(child.process())?;
    let exchanges = open.len();
    Ok(Held {
        exchanges,
        bytes_each: after.saturating_sub(before) as f64 / exchanges.max(1) as f64,
    })
}

/// Resident bytes of a process.
pub(crate) fn resident(process: Process) -> anyhow::Result<u64> {
    let path = format!("/proc/{}/status", process.0);
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib
        .and_then(|kib| kib.trim().parse().ok())
        .with_context(|| format!("{path}: no VmRSS"))?;
    Ok(kib * 1024)
}
