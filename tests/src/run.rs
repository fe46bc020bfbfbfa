//! One scenario from start to verdict.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinSet;

use crate::board::{Board, brief, pretty};
use crate::envoy::Envoy;
use crate::origin::Origin;
use crate::scenario::{Expect, Scenario};
use crate::service::Service;
use crate::{client, envoy_config, expect, noise, ours};

/// How long counters and access logs may lag behind.
const BOOKS: Duration = Duration::from_secs(5);

/// How long a scenario may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A cluster of a scenario.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Its name in the scenario.
    pub name: String,
    /// Where its only endpoint is.
    pub address: SocketAddr,
    /// Whether it is spoken to in HTTP/2.
    pub http2: bool,
}

/// The sockets of a scenario's origins and services. They exist before the
/// proxy starts, so that its configuration can name them.
#[derive(Debug)]
pub struct Sockets {
    origins: Vec<(&'static str, TcpListener)>,
    services: BTreeMap<String, TcpListener>,
}

impl Sockets {
    /// Binds the sockets of a scenario.
    pub fn bind(scenario: &Scenario) -> Result<Self, String> {
        let bind = || TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string());
        let services: Result<_, String> = scenario
            .scripts()?
            .into_keys()
            .map(|name| Ok((name, bind()?)))
            .collect();
        Ok(Self {
            origins: vec![("web", bind()?), ("alt", bind()?)],
            services: services?,
        })
    }

    /// The clusters of a scenario. Nobody listens at the one named `dead`.
    pub fn clusters(&self, scenario: &Scenario) -> Vec<Cluster> {
        let of = |name: &str, socket: &TcpListener, http2: bool| Cluster {
            name: name.to_owned(),
            address: socket.local_addr().expect("a bound socket"),
            http2,
        };
        let http2 = scenario.origin.is_h2();
        let origins = self
            .origins
            .iter()
            .map(|(name, socket)| of(name, socket, http2));
        // The same service, spoken to in HTTP/1.1.
        let plain = (self.services.iter())
            .filter(|_| scenario.calls_http())
            .map(|(name, socket)| of(&format!("{name}-http"), socket, false));
        let services = self
            .services
            .iter()
            .map(|(name, socket)| of(name, socket, true));
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let dead = Cluster {
            name: "dead".to_owned(),
            address: nowhere,
            http2: true,
        };
        let all = origins.chain(services).chain(plain);
        all.chain([dead]).collect()
    }

    /// The same sockets for another run: both proxies have the very same
    /// configuration.
    fn again(&self) -> Result<Self, String> {
        let same = |socket: &TcpListener| socket.try_clone().map_err(|e| e.to_string());
        let origins = self.origins.iter().map(|(name, s)| Ok((*name, same(s)?)));
        let services = self
            .services
            .iter()
            .map(|(name, s)| Ok((name.clone(), same(s)?)));
        Ok(Self {
            origins: origins.collect::<Result<_, String>>()?,
            services: services.collect::<Result<_, String>>()?,
        })
    }

    fn serve(self, scenario: &Scenario, board: &Board) -> Result<JoinSet<()>, String> {
        let mut tasks = JoinSet::new();
        let listener = |socket: TcpListener| {
            socket.set_nonblocking(true).map_err(|e| e.to_string())?;
            tokio::net::TcpListener::from_std(socket).map_err(|e| e.to_string())
        };
        for (cluster, socket) in self.origins {
            tasks.spawn(Origin::new(cluster, &scenario.origin, board).serve(listener(socket)?));
        }
        let mut scripts = scenario.scripts()?;
        for (name, socket) in self.services {
            let script = scripts.remove(&name).unwrap_or_default();
            let service = Service {
                name,
                script,
                checks_http: scenario.checks_http(),
                board: board.clone(),
            };
            tasks.spawn(service.serve(listener(socket)?));
        }
        Ok(tasks)
    }
}

/// What a proxy tells about its own work.
trait Books {
    /// Its counters of the filter `kind`.
    fn stats(&self, kind: &str) -> impl Future<Output = Value>;
    /// The last line of its access log.
    fn log(&self) -> Value;
}

/// Runs a scenario through the proxy at `address`.
async fn observe(
    scenario: &Scenario,
    expect: &Expect,
    sockets: Sockets,
    address: SocketAddr,
    prefix: &str,
    books: &impl Books,
) -> Result<Value, String> {
    let board = Board::new();
    let tasks = sockets.serve(scenario, &board)?;
    let request = scenario.request.naming(prefix);
    let run = client::run(address, &request, &board);
    match tokio::time::timeout(LIMIT, run).await {
        Ok(result) => result?,
        Err(_) => board.error("the client waited in vain for the end of its response"),
    }
    // Some calls begin when the client has all that it waits for.
    board.wait_messages(&expect.messages()).await;
    board.wait_idle().await;
    drop(tasks);
    let mut seen = board.observation()?;
    if let Some(requests) = seen["origin"]
        .as_array_mut()
        .filter(|_| scenario.by_cluster)
    {
        requests.sort_by(|a, b| a["cluster"].as_str().cmp(&b["cluster"].as_str()));
    }
    // The books are written a moment later than everything else happens.
    let start = Instant::now();
    loop {
        if scenario.is_counted() {
            seen["stats"] = books.stats(scenario.kind()).await;
        }
        if scenario.is_logged() {
            seen["log"] = books.log();
        }
        let closed = !scenario.is_counted() && !scenario.is_logged();
        let found = if closed {
            Vec::new()
        } else {
            expect.books(&seen)
        };
        let unwritten = scenario.is_logged() && seen["log"]["status"].is_null();
        if (found.is_empty() && !unwritten) || start.elapsed() > BOOKS {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    noise::clean(&mut seen, prefix);
    Ok(seen)
}

struct EnvoyBooks<'a>(&'a Envoy, usize);

impl Books for EnvoyBooks<'_> {
    async fn stats(&self, kind: &str) -> Value {
        self.0.stats(self.1, kind).await
    }

    fn log(&self) -> Value {
        self.0.log(self.1)
    }
}

impl Books for ours::RunningProxy {
    async fn stats(&self, kind: &str) -> Value {
        self.counters(kind)
    }

    fn log(&self) -> Value {
        self.log_line()
    }
}

/// A scenario that is ready to run.
#[derive(Debug)]
pub struct Prepared {
    /// Its place among all scenarios.
    nth: usize,
    sockets: Sockets,
    /// The configuration of our proxy.
    config: String,
    /// Why our proxy refuses it.
    refusal: Option<String>,
    /// Its part of Envoy's bootstrap.
    pub bootstrap: Value,
}

impl Prepared {
    /// Binds sockets and writes the configurations of the n-th scenario.
    pub fn new(nth: usize, scenario: &Scenario) -> Result<Self, String> {
        let sockets = Sockets::bind(scenario)?;
        let clusters = sockets.clusters(scenario);
        let config = ours::config(scenario, &clusters)?;
        let (mut bootstrap, refusal) = match ours::read(&config) {
            Ok((config, _)) => (envoy_config::exported(nth, &config)?, None),
            Err(refusal) => {
                let (frame, _) = ours::read(&ours::frame(scenario, &clusters)?)?;
                let bootstrap = envoy_config::by_hand(nth, &frame, scenario)?;
                (bootstrap, Some(refusal))
            }
        };
        if scenario.is_logged() {
            envoy_config::log_requests(&mut bootstrap, nth, scenario)?;
        }
        Ok(Self {
            nth,
            sockets,
            config,
            refusal,
            bootstrap,
        })
    }

    /// Runs the scenario through Envoy.
    pub async fn through_envoy(&self, scenario: &Scenario, envoy: &Envoy) -> Result<Value, String> {
        let address = envoy
            .address(self.nth)
            .ok_or("Envoy has no listener for this scenario")?;
        let prefix = envoy_config::prefix(self.nth);
        let books = EnvoyBooks(envoy, self.nth);
        let sockets = self.sockets.again()?;
        let expect = &scenario.expect;
        let seen = observe(scenario, expect, sockets, address, &prefix, &books).await?;
        keep("envoy", scenario, &seen)?;
        Ok(seen)
    }

    /// Runs the scenario through our proxy; `None` where the scenario says
    /// that our proxy has no such settings yet.
    pub async fn through_ours(&self, scenario: &Scenario) -> Result<Option<Value>, String> {
        match (&scenario.not_yet, &self.refusal) {
            _ if scenario.envoy_only.is_some() => return Ok(None),
            (None, None) => {}
            (Some(_), None) if scenario.is_pending() => {}
            (Some(part), Some(refusal)) if refusal.contains(part) => return Ok(None),
            (_, Some(refusal)) => return Err(format!("refused: {refusal}")),
            (Some(_), None) => {
                return Err("takes this configuration now: remove `not_yet`".to_owned());
            }
        }
        let proxy = ours::start(&self.config, scenario.is_logged()).await?;
        let sockets = self.sockets.again()?;
        let expect = scenario.expect_ours.as_ref().unwrap_or(&scenario.expect);
        let seen = observe(scenario, expect, sockets, proxy.address, "", &proxy).await?;
        keep("ours", scenario, &seen)?;
        Ok(Some(seen))
    }
}

/// Writes an observation to the folder that `ATTACHE_SEEN` names, for people
/// to read and to compare.
fn keep(proxy: &str, scenario: &Scenario, seen: &Value) -> Result<(), String> {
    let Some(folder) = std::env::var_os("ATTACHE_SEEN") else {
        return Ok(());
    };
    let folder = Path::new(&folder).join(proxy);
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let name = scenario.title().replace('/', "-");
    std::fs::write(folder.join(format!("{name}.json")), pretty(seen)).map_err(|e| e.to_string())
}

/// Says what is wrong with the observations, if anything is.
pub fn verdict(
    scenario: &Scenario,
    envoy: Option<&Value>,
    ours: Option<&Value>,
) -> Result<(), String> {
    let mut wrong = Vec::new();
    if let Some(seen) = envoy {
        check("Envoy", &scenario.expect, seen, &mut wrong);
    }
    if let Some(seen) = ours {
        let expect = scenario.expect_ours.as_ref().unwrap_or(&scenario.expect);
        check("ours", expect, seen, &mut wrong);
    }
    if let (Some(envoy), Some(ours), None) = (envoy, ours, &scenario.deviates) {
        let mut found = Vec::new();
        expect::between("", envoy, ours, &mut found);
        let lucky = |line: &String| {
            let mut racy = scenario.racy.iter();
            racy.any(|part| line.starts_with(&format!("/{part}")))
        };
        wrong.extend(found.into_iter().filter(|line| !lucky(line)));
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n"))
    }
}

fn check(proxy: &str, expect: &Expect, seen: &Value, wrong: &mut Vec<String>) {
    let found = expect.differences(seen);
    if !found.is_empty() {
        wrong.push(format!("through {proxy}:\n  {}", found.join("\n  ")));
        wrong.push(format!("seen through {proxy}: {}", pretty(&brief(seen))));
        return;
    }
    let toothless = expect.toothless(seen);
    if !toothless.is_empty() {
        wrong.push(format!(
            "these parts would match anything: {}",
            toothless.join(", ")
        ));
    }
}
