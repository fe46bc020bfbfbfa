//! The comparison of the proxies: row by row, both before the same servers,
//! taking turns.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;

use crate::child::{Child, free_address};
use crate::config::{Proxy, Run};
use crate::cpu::Process;
use crate::load::{self, Load};
use crate::row::Row;
use crate::window::Measured;
use crate::{envoy, ours};

/// What was measured in one row.
#[derive(Debug)]
pub(crate) struct RowResult {
    /// The row.
    pub(crate) row: Row,
    /// The rounds of each proxy. In the CPU times of a round the proxy comes
    /// first, then the policy services.
    pub(crate) proxies: Vec<(Proxy, Vec<Measured>)>,
}

/// The servers behind the proxies; the same processes for all rows.
pub(crate) struct Backends {
    /// Where the origin listens.
    pub(crate) origin: SocketAddr,
    auth: SocketAddr,
    limits: SocketAddr,
    rewrite: SocketAddr,
    services: Vec<Process>,
    /// Ended with this value.
    _children: Vec<Child>,
}

impl Backends {
    fn start() -> anyhow::Result<Backends> {
        let (origin_child, origin) = Child::server("origin")?;
        let (auth_child, auth) = Child::server("svc-authz")?;
        let (limits_child, limits) = Child::server("svc-ratelimit")?;
        let (rewrite_child, rewrite) = Child::server("svc-processor")?;
        let services = vec![auth_child, limits_child, rewrite_child];
        Ok(Backends {
            origin,
            auth,
            limits,
            rewrite,
            services: services.iter().map(Child::process).collect(),
            _children: services.into_iter().chain([origin_child]).collect(),
        })
    }

    /// Addresses alone, without servers: for looking at configurations.
    #[cfg(test)]
    pub(crate) fn at(address: SocketAddr) -> Backends {
        Backends {
            origin: address,
            auth: address,
            limits: address,
            rewrite: address,
            services: Vec::new(),
            _children: Vec::new(),
        }
    }

    /// Where the service of a filter listens.
    pub(crate) fn of(&self, filter: &str) -> SocketAddr {
        match filter {
            "auth" => self.auth,
            "limits" => self.limits,
            _ => self.rewrite,
        }
    }
}

/// Measures all rows.
pub(crate) async fn measure(run: &Run) -> anyhow::Result<Vec<RowResult>> {
    let folder = tempfile::tempdir().context("no folder for configurations")?;
    let backends = Backends::start()?;
    let mut results = Vec::new();
    for row in run.rows() {
        eprintln!("measuring: {}", row.title());
        results.push(measure_row(run, *row, &backends, folder.path()).await?);
    }
    Ok(results)
}

async fn measure_row(
    run: &Run,
    row: Row,
    backends: &Backends,
    folder: &Path,
) -> anyhow::Result<RowResult> {
    let mut started = Vec::new();
    let mut proxies = Vec::new();
    for proxy in run.proxies() {
        started.push(start(run, *proxy, row, backends, folder).await?);
        proxies.push((*proxy, Vec::new()));
    }
    for _ in 0..run.rounds() {
        for ((proxy, rounds), (child, target)) in proxies.iter_mut().zip(&started) {
            let load = Load {
                target: *target,
                connections: run.connections,
                window: run.window(),
            };
            let mut watched = vec![child.process()];
            watched.extend(&backends.services);
            let measured = load.run(row.path(), row.expected(), &watched).await;
            rounds.push(measured.with_context(|| format!("row `{}`, {proxy}", row.title()))?);
        }
    }
    Ok(RowResult { row, proxies })
}

/// Starts a proxy for a row and waits until it gives the right answer.
async fn start(
    run: &Run,
    proxy: Proxy,
    row: Row,
    backends: &Backends,
    folder: &Path,
) -> anyhow::Result<(Child, SocketAddr)> {
    let target = free_address()?;
    let file = folder.join(format!("{proxy}-{row:?}.yaml"));
    let (config, mut command) = match proxy {
        Proxy::Envoy => (
            envoy::config(row, target, backends),
            envoy::command(&run.envoy, &file),
        ),
        Proxy::Ours => (
            ours::config(row, target, backends),
            ours::command(&run.attache, &file),
        ),
    };
    std::fs::write(&file, format!("{config:#}\n")).with_context(|| file.display().to_string())?;
    let mut child = Child::program(&format!("{proxy}-{row:?}"), &mut command, folder)?;
    let expected = row.expected();
    child
        .ready(|| load::probe(target, row.path(), &expected))
        .await?;
    Ok((child, target))
}
