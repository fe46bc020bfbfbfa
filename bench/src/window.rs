//! One measurement in time: warm up, count, stop. The clients that make the
//! load share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::task::JoinSet;

use crate::cpu::Process;
use crate::samples::Samples;

/// No answer takes this long; a peer that hangs ends the run.
pub(crate) const STALLED: Duration = Duration::from_secs(20);

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// How long to run before counting.
    pub(crate) warm_up: Duration,
    /// How long to count.
    pub(crate) seconds: Duration,
    /// Stop after this many requests, whatever the time.
    pub(crate) most: u64,
}

/// What one measurement found. Every answer in it was the expected one.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Answers counted.
    pub(crate) requests: u64,
    /// Answers per second.
    pub(crate) rate: f64,
    /// Median latency, µs.
    pub(crate) p50: f64,
    /// 99th percentile of latency, µs.
    pub(crate) p99: f64,
    /// CPU µs per request of each process that was watched.
    pub(crate) cpu: Vec<f64>,
    /// CPU µs per request of the load itself.
    pub(crate) own_cpu: f64,
}

/// What the clients of one measurement look at.
#[derive(Debug)]
pub(crate) struct Gate {
    phase: AtomicU8,
    sent: AtomicU64,
    most: u64,
}

const WARMING: u8 = 0;
const COUNTING: u8 = 1;
const STOPPING: u8 = 2;

impl Gate {
    /// Whether to send one more request.
    pub(crate) fn open(&self) -> bool {
        self.phase.load(Ordering::Relaxed) != STOPPING
            && self.sent.fetch_add(1, Ordering::Relaxed) < self.most
    }

    /// Whether the answer that just came counts.
    pub(crate) fn counts(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == COUNTING
    }
}

/// The clients: each a task that asks while the gate is open and gives the
/// latencies of what counted, or says which answer was wrong.
pub(crate) type Clients = JoinSet<anyhow::Result<Samples>>;

impl Window {
    /// The gate for the clients of one measurement.
    pub(crate) fn gate(&self) -> Arc<Gate> {
        Arc::new(Gate {
            phase: AtomicU8::new(WARMING),
            sent: AtomicU64::new(0),
            most: self.most,
        })
    }

    /// Runs the clients through the window and watches the CPU of `processes`.
    pub(crate) async fn measure(
        &self,
        mut clients: Clients,
        gate: &Gate,
        processes: &[Process],
    ) -> anyhow::Result<Measured> {
        let mut samples = Samples::default();
        wait(&mut clients, &mut samples, self.warm_up).await?;
        let before = cpu(processes)?;
        let start = Instant::now();
        gate.phase.store(COUNTING, Ordering::Relaxed);
        wait(&mut clients, &mut samples, self.seconds).await?;
        let took = start.elapsed();
        let after = cpu(processes)?;
        gate.phase.store(STOPPING, Ordering::Relaxed);
        let ended = wait(&mut clients, &mut samples, STALLED).await?;
        ensure!(ended, "requests without an answer for {STALLED:?}");

        let requests = samples.count();
        if requests == 0 {
            bail!("no request was answered in {took:?}");
        }
        let mut per_request: Vec<f64> = before
            .iter()
            .zip(after)
            .map(|(before, after)| after.saturating_sub(*before))
            .map(|cpu| cpu.as_secs_f64() * 1e6 / requests as f64)
            .collect();
        let own_cpu = per_request.pop().unwrap_or_default();
        let [p50, p99] = samples.percentiles([50.0, 99.0]);
        Ok(Measured {
            requests,
            rate: requests as f64 / took.as_secs_f64(),
            p50,
            p99,
            cpu: per_request,
            own_cpu,
        })
    }
}

/// The CPU time of each process, and of this one behind them.
fn cpu(processes: &[Process]) -> anyhow::Result<Vec<Duration>> {
    processes
        .iter()
        .copied()
        .chain([Process::own()])
        .map(Process::cpu)
        .collect()
}

/// Waits for `time` or until all clients are done, whichever is first; says
/// whether they are. The first wrong answer ends everything.
async fn wait(
    clients: &mut Clients,
    samples: &mut Samples,
    time: Duration,
) -> anyhow::Result<bool> {
    let collect = async {
        while let Some(done) = clients.join_next().await {
            samples.append(done.context("a client's task failed")??);
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(time, collect).await {
        Ok(done) => done.map(|()| true),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(most: u64) -> Window {
        Window {
            warm_up: Duration::ZERO,
            seconds: Duration::from_secs(3600),
            most,
        }
    }

    #[tokio::test]
    async fn a_window_ends_early_at_its_most_requests() {
        let window = window(10);
        let gate = window.gate();
        let mut clients = Clients::new();
        let client = gate.clone();
        clients.spawn(async move {
            let mut samples = Samples::default();
            // Nothing counts before the warm-up is over.
            while !client.counts() {
                tokio::task::yield_now().await;
            }
            while client.open() {
                samples.add(Duration::from_micros(7));
            }
            Ok(samples)
        });
        let measured = window.measure(clients, &gate, &[]).await.unwrap();
        assert_eq!(measured.requests, 10);
        assert_eq!(measured.p50, 7.0);
    }

    #[tokio::test]
    async fn one_wrong_answer_fails_the_measurement() {
        let window = window(10);
        let mut clients = Clients::new();
        clients.spawn(async { bail!("a wrong body") });
        clients.spawn(std::future::pending());
        let failed = window.measure(clients, &window.gate(), &[]).await;
        assert_eq!(failed.unwrap_err().to_string(), "a wrong body");
    }
}
