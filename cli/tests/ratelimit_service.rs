//! Every scenario of the rate limit service as a test of its own: the reference and ours, started
//! with the same environment, are asked the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use attache_tests::ratelimit_service::redis::Redis;
use attache_tests::ratelimit_service::run::{self, Outcome, Peer};
use attache_tests::ratelimit_service::scenario::Group;
use attache_tests::ratelimit_service::service::{Service, Side, Start};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, OnceCell};

/// Scenarios mostly wait, so more of them run at once than there are cores; but ours gives its
/// Redis little time, which others must not take.
const AT_ONCE: usize = 4;

/// What there is to run them with.
struct Programs {
    redis: PathBuf,
    reference: Option<PathBuf>,
    ours: PathBuf,
    /// Whether the reference is the pinned version.
    pinned: bool,
}

/// A group with its services, which start with the first of its scenarios. The scenarios run one
/// after the other: some change the files of all.
struct Stage {
    group: Group,
    peers: Mutex<Option<Result<Peers, String>>>,
}

type Peers = Vec<(Peer, Arc<Mutex<Redis>>)>;

/// A Redis for each side, for all groups that need no other.
#[derive(Default)]
struct Stores {
    reference: OnceCell<Arc<Mutex<Redis>>>,
    ours: OnceCell<Arc<Mutex<Redis>>>,
}

struct Suite {
    /// What ours lacks yet, and how many scenarios that are about it.
    not_yet: BTreeMap<String, usize>,
    /// Those of them that pass all the same.
    ready: Mutex<Vec<String>>,
    programs: Programs,
    stores: Stores,
    runtime: Runtime,
}

impl Suite {
    async fn store(&self, side: Side, own: bool) -> Result<Arc<Mutex<Redis>>, String> {
        let start = async || {
            let redis = Redis::start(&self.programs.redis).await?;
            Ok::<_, String>(Arc::new(Mutex::new(redis)))
        };
        let shared = match side {
            _ if own => return start().await,
            Side::Reference => &self.stores.reference,
            Side::Ours => &self.stores.ours,
        };
        shared.get_or_try_init(start).await.cloned()
    }

    async fn start(&self, group: &Group) -> Result<Peers, String> {
        let programs = [
            (Side::Reference, self.programs.reference.as_ref()),
            (Side::Ours, Some(&self.programs.ours)),
        ];
        let mut peers = Vec::new();
        for (side, program) in programs {
            let Some(program) = program else { continue };
            let redis = self.store(side, group.own_redis).await?;
            let pinned = side == Side::Reference && self.programs.pinned;
            let address = redis.lock().await.address;
            let files = group.first_files(pinned);
            let second_redis = match group.second_redis {
                true => Some(Redis::start(&self.programs.redis).await?),
                false => None,
            };
            let service = Service::start(Start {
                side,
                program,
                variables: &group.env,
                files: &files,
                layout: group.layout,
                redis: address,
                second_redis: second_redis.as_ref().map(|redis| redis.address),
                outage: group.own_redis,
                tls: group.tls.clone(),
            });
            let service = service
                .await
                .map_err(|error| format!("{side:?}: {error}"))?;
            let peer = Peer {
                side,
                pinned,
                service,
                second_redis,
            };
            peers.push((peer, redis));
        }
        Ok(peers)
    }

    async fn run(&self, stage: &Stage, nth: usize) -> Result<(), String> {
        let mut peers = stage.peers.lock().await;
        if peers.is_none() {
            *peers = Some(self.start(&stage.group).await);
        }
        let peers = match peers.as_mut() {
            Some(Ok(peers)) => peers,
            Some(Err(error)) => return Err(error.clone()),
            None => return Err("nothing was started".to_owned()),
        };
        let scenario = &stage.group.scenarios[nth];
        run::settle(scenario).await;
        let mut outcomes = Vec::new();
        for (peer, redis) in peers {
            if peer.pinned && scenario.newer.is_some() {
                continue;
            }
            let mut redis = redis.lock().await;
            outcomes.push((peer.side, run::observe(scenario, peer, &mut redis).await));
        }
        if scenario.not_yet.is_none() {
            return run::verdict(scenario, &outcomes);
        }
        if run::verdict(scenario, &outcomes).is_ok() && outcomes.iter().any(is_ours) {
            let title = format!("{}: {}", stage.group.name, scenario.name);
            self.ready.lock().await.push(title);
        }
        outcomes.retain(|outcome| !is_ours(outcome));
        run::verdict(scenario, &outcomes)
    }

    /// What ours lacks yet, in a line for each reason, and what it has already.
    async fn pending(&self) -> Vec<String> {
        let mut lines: Vec<_> = (self.not_yet.iter())
            .map(|(reason, count)| format!("not yet of ours: {reason} ({count} scenarios)"))
            .collect();
        let ready = self.ready.lock().await;
        lines.extend(
            ready
                .iter()
                .map(|title| format!("passes already, so remove `not_yet`: {title}")),
        );
        lines
    }
}

fn is_ours((side, _): &(Side, Outcome)) -> bool {
    *side == Side::Ours
}

/// A program: what the variable names, else what the workspace's tools have.
fn program(variable: &str, name: &str) -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let program = std::env::var_os(variable).map_or_else(|| tools.join(name), PathBuf::from);
    program.is_file().then_some(program)
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(AT_ONCE));
    let groups = match Group::load_all() {
        Ok(groups) => groups,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let reference = program("ATTACHE_RATELIMIT_REFERENCE", "ratelimit");
    let required = std::env::var("ATTACHE_REQUIRE_ALL").as_deref() == Ok("1");
    let Some(redis) = program("ATTACHE_REDIS", "redis-server") else {
        eprintln!("skipped: there is no Redis (run cargo xtask test)");
        return ExitCode::from(u8::from(required));
    };
    if reference.is_none() && !arguments.list {
        println!("skipped: the reference of the rate limit service (run cargo xtask test)");
        if required {
            return ExitCode::FAILURE;
        }
    }
    let mut not_yet = BTreeMap::<String, usize>::new();
    for reason in groups
        .iter()
        .flat_map(|group| &group.scenarios)
        .filter_map(|s| s.not_yet.clone())
    {
        *not_yet.entry(reason).or_default() += 1;
    }
    let suite = Arc::new(Suite {
        not_yet,
        ready: Mutex::default(),
        programs: Programs {
            redis,
            reference,
            ours: PathBuf::from(env!("CARGO_BIN_EXE_attache")),
            pinned: std::env::var_os("ATTACHE_RATELIMIT_REFERENCE_IS_NEWER").is_none(),
        },
        stores: Stores::default(),
        runtime: tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap(),
    });
    let mut trials = Vec::new();
    for group in groups {
        let stage = Arc::new(Stage {
            group,
            peers: Mutex::default(),
        });
        for (nth, scenario) in stage.group.scenarios.iter().enumerate() {
            let title = format!("{}: {}", stage.group.name, scenario.name);
            let (suite, stage) = (Arc::clone(&suite), Arc::clone(&stage));
            trials.push(Trial::ignorable_test(title, move || {
                let ran = suite.runtime.block_on(suite.run(&stage, nth));
                ran.map(|()| Completion::Completed).map_err(Failed::from)
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        for line in suite.runtime.block_on(suite.pending()) {
            println!("{line}");
        }
    }
    // Services and stores end here, with the last hold on them.
    drop(suite);
    conclusion.exit_code()
}
