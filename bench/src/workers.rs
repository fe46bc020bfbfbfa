//! Two workers of ours beside one: whether the second does as much again.
//!
//! Where load, origin and proxy share two cores, the rate cannot double: what can be seen is what a
//! request costs, and whether both workers do the same share. So it is measured once more with each
//! worker held to a part of a core, which leaves the others what they need, as cores of their own do.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::config::{Proxy, Run};
use crate::cpu::{self, Process};
use crate::proxies::Scene;
use crate::row::Row;
use crate::window::Measured;

/// How often a worker that is held gets its part.
const PERIOD: Duration = Duration::from_millis(10);
/// The part: with two workers, load and origin have 1.4 of two cores.
const PART: Duration = Duration::from_millis(3);

/// What the workers may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cores {
    /// What load and origin leave of all.
    Shared,
    /// Each a fixed part of one, before all others.
    Held,
}

impl Cores {
    /// What the table says of it.
    pub(crate) fn title(self) -> String {
        match self {
            Cores::Shared => "load and origin on the same cores".to_owned(),
            Cores::Held => format!(
                "each held to {:.0} % of a core",
                100.0 * PART.as_secs_f64() / PERIOD.as_secs_f64()
            ),
        }
    }
}

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

/// Measures one worker and two, taking turns: with the cores shared, then with each worker held.
pub(crate) async fn measure(run: &Run) -> anyhow::Result<[(Cores, Vec<WorkersResult>); 2]> {
    let scene = Scene::start(run)?;
    Ok([
        (Cores::Shared, measure_on(&scene, Cores::Shared).await?),
        (Cores::Held, measure_on(&scene, Cores::Held).await?),
    ])
}

async fn measure_on(scene: &Scene<'_>, cores: Cores) -> anyhow::Result<Vec<WorkersResult>> {
    let row = Row::Plain;
    let mut started = Vec::new();
    let mut results = Vec::new();
    for workers in [1, 2] {
        eprintln!("measuring: {workers} workers, {}", cores.title());
        let protocol = row.protocol();
        let proxy = scene.proxy_with(Proxy::Ours, row, protocol, workers, |_| ());
        let proxy = proxy.await?;
        if cores == Cores::Held {
            hold(proxy.child.process(), workers)?;
        }
        started.push(proxy);
        results.push(WorkersResult {
            workers,
            rounds: Vec::new(),
            busiest: Vec::new(),
        });
    }
    for _ in 0..scene.run.rounds() {
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

/// Gives each worker its part of a core by the kernel's deadline scheduling, which only root may do.
fn hold(process: Process, workers: u32) -> anyhow::Result<()> {
    let mut held = 0;
    for thread in cpu::threads_named(process, "worker-")? {
        let chrt = Command::new("chrt")
            .args(["--deadline", "--reset-on-fork"])
            .args(["--sched-runtime", &PART.as_nanos().to_string()])
            .args(["--sched-deadline", &PERIOD.as_nanos().to_string()])
            .args(["--sched-period", &PERIOD.as_nanos().to_string()])
            .args(["--pid", "0", &thread.to_string()])
            .output();
        let output = chrt.context("cannot start chrt")?;
        ensure!(
            output.status.success(),
            "chrt: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        held += 1;
    }
    ensure!(held == workers, "{held} threads are workers, not {workers}");
    Ok(())
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
