//! What one decision on a limit costs: our service beside Limitador's engine and beside
//! envoyproxy/ratelimit, over gRPC.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use attache_proto::common_ratelimit::{RateLimitDescriptor, rate_limit_descriptor::Entry};
use attache_proto::ratelimit::rate_limit_response::Code;
use attache_proto::ratelimit::{RateLimitRequest, RateLimitResponse};
use prost::Message as _;

use crate::child::{Child, free_address};
use crate::config::{Proxy, Run};
use crate::grpc::Call;
use crate::ours;
use crate::redis::Redis;
use crate::window::{Measured, Window};

/// The domain of all requests.
pub(crate) const DOMAIN: &str = "bench";
/// The key of their only entry.
pub(crate) const KEY: &str = "user";
/// The limit of each value: never reached.
pub(crate) const REQUESTS_PER_HOUR: u32 = u32::MAX;
/// So many values where they are spread.
const SPREAD: u32 = 100_000;
/// A step through them that meets each once before it meets one again: both are coprime.
const STEP: u32 = 7_919;
/// How long it may take to ask for each of them once.
const TOUCH: Duration = Duration::from_secs(120);

/// One line of the table.
#[derive(Debug)]
pub(crate) struct LimitResult {
    /// Who decides.
    pub(crate) which: &'static str,
    /// Over which keys.
    pub(crate) keys: &'static str,
    /// Its rounds; the CPU time of its Redis stands second.
    pub(crate) rounds: Vec<Measured>,
    /// Commands to Redis for each decision, over all rounds.
    pub(crate) commands: Option<f64>,
}

/// Who decides.
struct Peer {
    which: &'static str,
    target: SocketAddr,
    child: Child,
    redis: Option<Redis>,
}

impl Peer {
    /// A program, when it answers.
    async fn start(
        which: &'static str,
        target: SocketAddr,
        command: &mut Command,
        redis: Option<Redis>,
        folder: &Path,
    ) -> anyhow::Result<Peer> {
        let call = hot_key()?;
        let mut child = Child::program(&which.replace(' ', "-"), command, folder)?;
        child.ready(|| call.probe(target)).await?;
        Ok(Peer {
            which,
            target,
            child,
            redis,
        })
    }

    /// Asks for every key once, so that none is seen for the first time while it counts.
    async fn touch_all(&self, call: &Call, run: &Run) -> anyhow::Result<()> {
        // The one hot key was asked for when the program came up.
        if call.requests() == 1 {
            return Ok(());
        }
        let once = Window {
            warm_up: Duration::ZERO,
            seconds: TOUCH,
            most: call.requests(),
        };
        call.run(self.target, run.streams, &once, &[]).await?;
        Ok(())
    }

    async fn commands(&self) -> anyhow::Result<u64> {
        match &self.redis {
            Some(redis) => redis.commands().await,
            None => Ok(0),
        }
    }
}

/// Measures all who decide, in turn, over spread keys and over one.
pub(crate) async fn measure(run: &Run) -> anyhow::Result<Vec<LimitResult>> {
    let folder = tempfile::tempdir().context("no folder for configurations")?;
    let peers = start(run, folder.path()).await?;
    let mut results = Vec::new();
    for (keys, call) in [("100,000", spread_keys()?), ("one", hot_key()?)] {
        eprintln!("measuring: decisions, keys: {keys}");
        for peer in &peers {
            peer.touch_all(&call, run).await?;
        }
        let mut lines: Vec<LimitResult> = Vec::new();
        let mut asked = vec![(0, 0); peers.len()];
        for round in 0..run.rounds() {
            for (peer, asked) in peers.iter().zip(&mut asked) {
                let (commands, made) = (peer.commands().await?, call.made());
                let redis = peer.redis.as_ref().map(Redis::process);
                let watched: Vec<_> = [peer.child.process()].into_iter().chain(redis).collect();
                let window = run.window();
                let measured = call
                    .run(peer.target, run.streams, &window, &watched)
                    .await?;
                asked.0 += peer.commands().await?.saturating_sub(commands);
                asked.1 += call.made().saturating_sub(made);
                if round == 0 {
                    lines.push(LimitResult {
                        which: peer.which,
                        keys,
                        rounds: Vec::new(),
                        commands: None,
                    });
                }
                let line = lines.iter_mut().find(|line| line.which == peer.which);
                line.context("a line for each")?.rounds.push(measured);
            }
        }
        for ((line, peer), (commands, made)) in lines.iter_mut().zip(&peers).zip(asked) {
            line.commands = (peer.redis.is_some()).then(|| commands as f64 / made.max(1) as f64);
        }
        results.append(&mut lines);
    }
    Ok(results)
}

async fn start(run: &Run, folder: &Path) -> anyhow::Result<Vec<Peer>> {
    let rules = folder.join("limits/config");
    std::fs::create_dir_all(&rules)?;
    std::fs::write(rules.join("bench.yaml"), rules_file())?;
    let mut peers = Vec::new();
    let (child, target) = Child::server("svc-limitador")?;
    peers.push(Peer {
        which: "Limitador",
        target,
        child,
        redis: None,
    });
    let redis = Redis::start(&run.redis, "redis-of-reference", folder).await?;
    let target = free_address()?;
    let mut command = reference(run, target, redis.address, folder)?;
    let name = "ratelimit";
    peers.push(Peer::start(name, target, &mut command, Some(redis), folder).await?);
    if run.only != Some(Proxy::Envoy) {
        let target = free_address()?;
        let mut command = ours::service(&run.attache, "ratelimit", &rules, target);
        peers.push(Peer::start("ours", target, &mut command, None, folder).await?);
        let redis = Redis::start(&run.redis, "redis-of-ours", folder).await?;
        let target = free_address()?;
        let mut command = ours::service(&run.attache, "ratelimit", &rules, target);
        command.args(["--store", &format!("redis://{}", redis.address)]);
        let name = "ours, Redis";
        peers.push(Peer::start(name, target, &mut command, Some(redis), folder).await?);
    }
    Ok(peers)
}

/// The command that runs envoyproxy/ratelimit with the rules in `folder`.
fn reference(
    run: &Run,
    target: SocketAddr,
    redis: SocketAddr,
    folder: &Path,
) -> anyhow::Result<Command> {
    let mut command = Command::new(&run.reference);
    command
        .env_clear()
        .envs([("HOST", "127.0.0.1"), ("DEBUG_HOST", "127.0.0.1")])
        .env("PORT", free_address()?.port().to_string())
        .env("DEBUG_PORT", free_address()?.port().to_string())
        .env("GRPC_HOST", "127.0.0.1")
        .env("GRPC_PORT", target.port().to_string())
        .env("RUNTIME_ROOT", folder)
        .env("RUNTIME_SUBDIRECTORY", "limits")
        .env("RUNTIME_WATCH_ROOT", "false")
        .env("LOG_LEVEL", "error")
        .env("DISABLE_STATS", "true")
        .env("REDIS_SOCKET_TYPE", "tcp")
        .env("REDIS_URL", redis.to_string());
    Ok(command)
}

/// The only rule, for all services.
pub(crate) fn rules_file() -> String {
    format!(
        "domain: {DOMAIN}\ndescriptors:\n\
         - {{ key: {KEY}, rate_limit: {{ unit: hour, requests_per_unit: {REQUESTS_PER_HOUR} }} }}\n"
    )
}

/// Requests over all values in turn.
pub(crate) fn spread_requests() -> Vec<RateLimitRequest> {
    spread_values().map(request).collect()
}

/// All values, in an order in which none is beside the last.
pub(crate) fn spread_values() -> impl Iterator<Item = u32> + Clone {
    (0..SPREAD).map(|number| number * STEP % SPREAD)
}

fn request(value: u32) -> RateLimitRequest {
    RateLimitRequest {
        domain: DOMAIN.to_owned(),
        descriptors: vec![RateLimitDescriptor {
            entries: vec![Entry {
                key: KEY.to_owned(),
                value: format!("user-{value:06}"),
            }],
            ..RateLimitDescriptor::default()
        }],
        ..RateLimitRequest::default()
    }
}

/// Calls over all values in turn.
fn spread_keys() -> anyhow::Result<Call> {
    call(&spread_requests())
}

/// Calls over one value.
fn hot_key() -> anyhow::Result<Call> {
    call(&[request(0)])
}

fn call(requests: &[RateLimitRequest]) -> anyhow::Result<Call> {
    Call::of_many(
        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
        requests,
        |answer| {
            let answer = RateLimitResponse::decode(answer)?;
            ensure!(answer.overall_code() == Code::Ok, "over the limit");
            Ok(())
        },
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_value_has_its_turn() {
        let values: HashSet<u32> = (0..SPREAD).map(|number| number * STEP % SPREAD).collect();
        assert_eq!(values.len(), SPREAD as usize);
    }
}
