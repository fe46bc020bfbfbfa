//! The comparison of the proxies: row by row, both before the same servers,
//! taking turns.

use std::net::SocketAddr;

use anyhow::Context;
use serde_json::Value;
use tempfile::TempDir;

use crate::certificates::Certificates;
use crate::child::{Child, free_address};
use crate::config::{Proxy, Run};
use crate::cpu::Process;
use crate::downstream::{Asked, Downstream};
use crate::load::Load;
use crate::protocol::Protocol;
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
    /// Starts them.
    pub(crate) fn start() -> anyhow::Result<Backends> {
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

/// A proxy that runs for a row.
pub(crate) struct Started {
    /// Its process.
    pub(crate) child: Child,
    /// Where it listens.
    pub(crate) target: SocketAddr,
    /// How clients connect to it.
    pub(crate) downstream: Downstream,
}

/// What all rows share.
pub(crate) struct Scene<'a> {
    /// How to measure.
    pub(crate) run: &'a Run,
    /// What is behind the proxies.
    pub(crate) backends: Backends,
    certificates: Certificates,
    folder: TempDir,
}

impl Scene<'_> {
    /// Starts what is behind the proxies.
    pub(crate) fn start(run: &Run) -> anyhow::Result<Scene<'_>> {
        let folder = tempfile::tempdir().context("no folder for configurations")?;
        Ok(Scene {
            run,
            backends: Backends::start()?,
            certificates: Certificates::new(folder.path())?,
            folder,
        })
    }

    /// Starts a proxy for a row and waits until it gives the right answer.
    pub(crate) async fn proxy(&self, proxy: Proxy, row: Row) -> anyhow::Result<Started> {
        self.proxy_with(proxy, row, row.protocol(), 1, |_| ()).await
    }

    /// The same with a listener for another protocol, so many workers (of ours), and a
    /// configuration that `change` has changed.
    pub(crate) async fn proxy_with(
        &self,
        proxy: Proxy,
        row: Row,
        protocol: Protocol,
        workers: u32,
        change: impl FnOnce(&mut Value),
    ) -> anyhow::Result<Started> {
        let target = free_address()?;
        let name = format!("{proxy}-{row:?}-{}", target.port());
        let file = self.folder.path().join(format!("{name}.yaml"));
        let (mut config, mut command) = match proxy {
            Proxy::Envoy => (
                envoy::config(row, target, &self.backends, &self.certificates),
                envoy::command(&self.run.envoy, &file),
            ),
            Proxy::Ours => (
                ours::config(row, target, &self.backends, &self.certificates),
                ours::command(&self.run.attache, &file, workers),
            ),
        };
        change(&mut config);
        std::fs::write(&file, format!("{config:#}\n"))
            .with_context(|| file.display().to_string())?;
        let mut child = Child::program(&name, &mut command, self.folder.path())?;
        let downstream = Downstream::new(protocol, &self.certificates)?;
        let asked = Asked::new(row.path(), row.expected(), protocol)?;
        child.ready(|| downstream.probe(target, &asked)).await?;
        Ok(Started {
            child,
            target,
            downstream,
        })
    }

    /// The load of a row on a proxy that runs, and what is asked.
    pub(crate) fn load(&self, row: Row, started: &Started) -> anyhow::Result<(Load, Asked)> {
        let load = Load {
            target: started.target,
            downstream: started.downstream.clone(),
            connections: self.run.connections,
            window: self.run.window(),
        };
        let asked = Asked::new(row.path(), row.expected(), started.downstream.protocol())?;
        Ok((load, asked))
    }

    /// The processes whose CPU is watched: the proxy's first, then those of the services.
    pub(crate) fn watched(&self, started: &Started) -> Vec<Process> {
        let mut watched = vec![started.child.process()];
        watched.extend(&self.backends.services);
        watched
    }
}

/// Measures all rows.
pub(crate) async fn measure(run: &Run) -> anyhow::Result<Vec<RowResult>> {
    let scene = Scene::start(run)?;
    let mut results = Vec::new();
    for row in run.rows() {
        eprintln!("measuring: {}", row.title());
        results.push(measure_row(&scene, *row).await?);
    }
    Ok(results)
}

async fn measure_row(scene: &Scene<'_>, row: Row) -> anyhow::Result<RowResult> {
    let mut started = Vec::new();
    let mut proxies = Vec::new();
    for proxy in scene.run.proxies() {
        started.push(scene.proxy(*proxy, row).await?);
        proxies.push((*proxy, Vec::new()));
    }
    for _ in 0..scene.run.rounds() {
        for ((proxy, rounds), started) in proxies.iter_mut().zip(&started) {
            let (load, asked) = scene.load(row, started)?;
            let measured = load.run(asked, &scene.watched(started)).await;
            rounds.push(measured.with_context(|| format!("row `{}`, {proxy}", row.title()))?);
        }
    }
    Ok(RowResult { row, proxies })
}
