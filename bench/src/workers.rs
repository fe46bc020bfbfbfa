//! Two workers of ours beside one: whether the second does as much again. Where load, origin and
//! proxy share two cores, the rate cannot double; what can be seen is what a request costs, and
//! whether both workers do the same share.

use std::time::Duration;

use anyhow::Context;

use crate::config::{Proxy, Run};
use crate::cpu::{self, Process};
use crate::proxies::Scene;
use crate::row::Row;
use crate::window::Measured;

/// What was measured with so many workers.
#[derive(Debug)]
pub(crate) struct WorkersResult {
    /// How many.
    pub(crate) workers: u32,
    /// The rounds.
    pub(crate) rounds: Vec<Measured>,
    /// Share of the busiest thread in the CPU time of all, for each round.
    pub(crate) busiest: Vec<f64>,
}

/// Measures one worker and two, taking turns.
pub(crate) async fn measure(run: &Run) -> anyhow::Result<Vec<WorkersResult>> {
    let scene = Scene::start(run)?;
    let row = Row::Plain;
    let mut started = Vec::new();
    let mut results = Vec::new();
    for workers in [1, 2] {
        eprintln!("measuring: {workers} workers");
        let protocol = row.protocol();
        let proxy = scene.proxy_with(Proxy::Ours, row, protocol, workers, |_| ());
        started.push(proxy.await?);
        results.push(WorkersResult {
            workers,
            rounds: Vec::new(),
            busiest: Vec::new(),
        });
    }
    for _ in 0..run.rounds() {
        for (result, started) in results.iter_mut().zip(&started) {
            let process = started.child.process();
            let before = cpu::threads(process)?;
            let (load, asked) = scene.load(row, started)?;
            let measured = load.run(asked, &[process]).await;
            result
                .rounds
                .push(measured.with_context(|| format!("{} workers", result.workers))?);
            result.busiest.push(busiest(&before, process)?);
        }
    }
    Ok(results)
}

/// Share of the thread that used most CPU time since `before`.
fn busiest(before: &[(u32, Duration)], process: Process) -> anyhow::Result<f64> {
    let mut used = Vec::new();
    for (thread, time) in cpu::threads(process)? {
        let earlier = before.iter().find(|(other, _)| *other == thread);
        let earlier = earlier.map_or(Duration::ZERO, |(_, time)| *time);
        used.push(time.saturating_sub(earlier).as_secs_f64());
    }
    let all: f64 = used.iter().sum();
    let most = used.into_iter().fold(0.0, f64::max);
    Ok(if all > 0.0 { most / all } else { 1.0 })
}
