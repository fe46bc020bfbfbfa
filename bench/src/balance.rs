//! Balancing over four origins, one of which is slow: the same proxy and the
//! same load with each policy, taking turns.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;
use serde_json::json;

use crate::child::{Child, free_address};
use crate::config::Run;
use crate::downstream::{Asked, Downstream};
use crate::load::Load;
use crate::ours;
use crate::protocol::Protocol;
use crate::row::Row;
use crate::window::Measured;

/// How long the slow origin waits before each answer, in milliseconds.
pub(crate) const SLOW: u64 = 50;

const POLICIES: [&str; 3] = ["ROUND_ROBIN", "LEAST_REQUEST", "PEAK_EWMA"];

/// What was measured with one policy.
#[derive(Debug)]
pub(crate) struct PolicyResult {
    /// Its name.
    pub(crate) policy: &'static str,
    /// The rounds.
    pub(crate) rounds: Vec<Measured>,
}

/// Measures all policies.
pub(crate) async fn measure(run: &Run) -> anyhow::Result<Vec<PolicyResult>> {
    let folder = tempfile::tempdir().context("no folder for configurations")?;
    let mut origins = Vec::new();
    for delay in [0, 0, 0, SLOW] {
        let delay = delay.to_string();
        origins.push(Child::server_with("origin", &["--delay-ms", &delay])?);
    }
    let at: Vec<SocketAddr> = origins.iter().map(|(_, at)| *at).collect();
    let mut proxies = Vec::new();
    let mut results = Vec::new();
    for policy in POLICIES {
        eprintln!("measuring: {policy}");
        proxies.push(start(run, policy, &at, folder.path()).await?);
        results.push(PolicyResult {
            policy,
            rounds: Vec::new(),
        });
    }
    for _ in 0..run.rounds() {
        for (result, (child, target)) in results.iter_mut().zip(&proxies) {
            let load = Load {
                target: *target,
                downstream: Downstream::plain(Protocol::Http1),
                connections: run.connections,
                window: run.window(),
            };
            let measured = load.run(asked()?, &[child.process()]).await;
            result.rounds.push(measured.context(result.policy)?);
        }
    }
    Ok(results)
}

/// Starts the proxy with a policy and waits until it gives the right answer.
async fn start(
    run: &Run,
    policy: &str,
    origins: &[SocketAddr],
    folder: &Path,
) -> anyhow::Result<(Child, SocketAddr)> {
    let target = free_address()?;
    let file = folder.join(format!("{policy}.yaml"));
    let origins: Vec<String> = origins.iter().map(ToString::to_string).collect();
    let config = json!({
        "listeners": [{ "name": "bench", "address": target.to_string() }],
        "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "origin" } }],
        "clusters": [{ "name": "origin", "endpoints": origins, "lb_policy": policy }],
    });
    std::fs::write(&file, format!("{config:#}\n")).with_context(|| file.display().to_string())?;
    let mut command = ours::command(&run.attache, &file, 1);
    let mut child = Child::program(policy, &mut command, folder)?;
    let (downstream, asked) = (Downstream::plain(Protocol::Http1), asked()?);
    child.ready(|| downstream.probe(target, &asked)).await?;
    Ok((child, target))
}

fn asked() -> anyhow::Result<Asked> {
    let row = Row::Plain;
    Asked::new(row.path(), row.expected(), row.protocol())
}
