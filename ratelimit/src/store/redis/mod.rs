//! Counters shared by any number of instances through Redis.
//!
//! Keys are those of the reference service, so both can run side by side on one Redis while one
//! takes over from the other.
//!
//! - [`settings`]: which servers, how to log in, how keys are written.
//! - `connect`: connections, to the master that sentinels name too.
//! - `link`: one server: the queue, the connection's life.
//! - `flight`: requests that leave in one write.
//! - `cluster`: which server has which keys.
//! - `command`: what a server is asked, by plain commands or the script `charge.lua`.
//! - `plan`: charges as commands, answers as readings.
//! - `together`: charges that are carried out all or none.
//! - `inspect`: counters as operators see them.

mod cluster;
mod command;
mod connect;
mod flight;
mod inspect;
mod link;
mod plan;
pub mod settings;
mod together;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use attache_service::{
    Address, Metrics,
    metrics::{Counter, Gauge},
};
use tokio::runtime::Handle;

use self::{
    cluster::{Cluster, Server},
    command::{Answer, Command, Refusal},
    connect::Target,
    link::{Link, Waiting},
};
use super::{Batch, Charge, Meter, Reading, Store, StoreError};

pub use settings::{Auth, DEFAULT_TIMEOUT, InvalidUrl, KeyFormat, RedisSettings, Topology};

/// How often a command follows a key through the cluster, or tries again while it moves.
const ROUNDS: usize = 16;

/// The wait for keys that are being moved.
const MOVING: Duration = Duration::from_millis(1);

/// Counters in Redis.
///
/// All requests share one connection to each server (or a few, if the settings say so). What
/// waits while the connection writes leaves in one write, and additions to the same counter leave
/// as one: each request still learns its own place in the sum, so limits hold exactly. A counter
/// of a fixed window costs one command for each hit or less, and another one when this instance
/// meets it first after others; other meters and charges that depend on what fits run as a script.
///
/// An operation that is not answered within the timeout fails, and while there is no connection
/// operations fail at once, so that the caller's failure mode applies without delay. A lost or
/// stalled connection is replaced in the background. Windows are cut by the clock of Redis.
#[derive(Clone)]
pub struct RedisStore {
    inner: Arc<Inner>,
}

struct Inner {
    main: Backend,
    /// For the counters of windows of one second.
    per_second: Option<Backend>,
    timeout: Duration,
}

/// One Redis, whatever it is made of.
struct Backend {
    context: Arc<Context>,
    servers: Servers,
}

enum Servers {
    One { server: Server, target: Target },
    Cluster(Arc<Cluster>),
}

/// What all connections of one Redis share.
struct Context {
    settings: RedisSettings,
    /// Where connections are driven: not on the runtime of whichever request finds one lost.
    runtime: Handle,
    /// How far the clock of Redis is ahead of ours, in microseconds.
    offset: AtomicI64,
    metrics: StoreMetrics,
}

struct StoreMetrics {
    connected: Gauge,
    opened: Counter,
    closed: Counter,
    commands: Counter,
    errors: Counter,
    timeouts: Counter,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("settings", &self.inner.main.context.settings)
            .finish_non_exhaustive()
    }
}

impl RedisStore {
    /// A store that tries to connect once before it returns, and goes on trying in the background
    /// if that fails.
    ///
    /// Must run in a tokio runtime that lives as long as the store: the connections are driven by
    /// it.
    pub async fn connect(settings: RedisSettings, metrics: &Metrics) -> Self {
        let mut settings = settings;
        let per_second = settings.per_second.take();
        let mut timeout = settings.timeout;
        let per_second = match per_second {
            None => None,
            Some(settings) => {
                timeout = timeout.max(settings.timeout);
                let metrics = StoreMetrics::new(metrics, "per_second");
                Some(Backend::connect(*settings, metrics).await)
            }
        };
        let main = Backend::connect(settings, StoreMetrics::new(metrics, "main")).await;
        Self {
            inner: Arc::new(Inner {
                main,
                per_second,
                timeout,
            }),
        }
    }

    /// Whether Redis can be asked; of a cluster, one of its nodes.
    pub fn is_connected(&self) -> bool {
        let per_second = self.inner.per_second.as_ref();
        self.inner.main.is_connected() && per_second.is_none_or(Backend::is_connected)
    }
}

impl Store for RedisStore {
    async fn charge(&self, batch: &Batch, readings: &mut Vec<Reading>) -> Result<(), StoreError> {
        let inner = &*self.inner;
        let charged = tokio::time::timeout(inner.timeout, inner.charge(batch, readings)).await;
        charged.unwrap_or_else(|_| {
            readings.clear();
            inner.main.context.metrics.timeouts.inc();
            Err(StoreError::Timeout {
                store: "redis",
                address: inner.main.name(),
                millis: inner.timeout.as_millis(),
            })
        })
    }

    fn is_connected(&self) -> bool {
        Self::is_connected(self)
    }

    fn ahead(&self) -> i64 {
        self.inner.main.context.offset.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn backend(&self, charge: &Charge) -> &Backend {
        let is_second = match charge.terms.meter {
            Meter::FixedWindow(window) | Meter::SlidingWindow(window) => window.length == 1,
            Meter::TokenBucket { period, .. } => period == 1,
        };
        match &self.per_second {
            Some(per_second) if is_second => per_second,
            _ => &self.main,
        }
    }

    async fn charge(&self, batch: &Batch, readings: &mut Vec<Reading>) -> Result<(), StoreError> {
        if batch.is_together() {
            return self.charge_together(batch, readings).await;
        }
        let mut main = Vec::with_capacity(batch.len());
        let mut per_second = Vec::new();
        for (key, charge) in batch.iter() {
            let backend = self.backend(charge);
            let command = plan::command(key, charge, &backend.context.settings);
            match std::ptr::eq(backend, &self.main) {
                true => main.push(command),
                false => per_second.push(command),
            }
        }
        let (main, per_second) = match &self.per_second {
            Some(backend) if main.is_empty() => (Vec::new(), backend.run(per_second).await?),
            Some(backend) if !per_second.is_empty() => {
                tokio::try_join!(self.main.run(main), backend.run(per_second))?
            }
            _ => (self.main.run(main).await?, Vec::new()),
        };
        let (mut main, mut per_second) = (main.into_iter(), per_second.into_iter());
        for (_, charge) in batch.iter() {
            let backend = self.backend(charge);
            let answer = match std::ptr::eq(backend, &self.main) {
                true => main.next(),
                false => per_second.next(),
            };
            let reading = answer.and_then(|answer| plan::reading(batch, charge, &answer));
            readings.push(reading.ok_or_else(|| backend.failed("an answer of another kind"))?);
        }
        Ok(())
    }
}

impl Backend {
    async fn connect(settings: RedisSettings, metrics: StoreMetrics) -> Self {
        let context = Arc::new(Context {
            settings,
            runtime: Handle::current(),
            offset: AtomicI64::new(0),
            metrics,
        });
        let servers = match Target::of(&context.settings.topology) {
            Ok(target) => {
                let server = Server::start(&target, true, &context);
                server.tried().await;
                Servers::One { server, target }
            }
            Err(seeds) => Servers::Cluster(Cluster::start(seeds, &context).await),
        };
        Self { context, servers }
    }

    fn is_connected(&self) -> bool {
        match &self.servers {
            Servers::One { server, .. } => server.is_connected(),
            Servers::Cluster(cluster) => cluster.is_connected(),
        }
    }

    /// What stands in errors.
    fn name(&self) -> String {
        match &self.context.settings.topology {
            Topology::Single(address) => address.to_string(),
            Topology::Sentinel { master, .. } => format!("master {master}"),
            Topology::Cluster(seeds) => {
                let seeds: Vec<_> = seeds.iter().map(ToString::to_string).collect();
                seeds.join(",")
            }
        }
    }

    fn failed(&self, reason: &str) -> StoreError {
        self.context.metrics.errors.inc();
        StoreError::Failed {
            store: "redis",
            address: self.name(),
            reason: reason.to_owned(),
        }
    }

    /// Carries out commands, on several servers at once if need be.
    async fn run(&self, commands: Vec<Command>) -> Result<Vec<Answer>, StoreError> {
        if let Servers::One { server, .. } = &self.servers
            && let Some(link) = server.only_link()
        {
            return self.run_on(link, commands).await;
        }
        let count = commands.len();
        let mut answers: Vec<Option<Answer>> = Vec::new();
        answers.resize(count, None);
        let mut pending: Vec<Pending> = commands
            .into_iter()
            .enumerate()
            .map(|(place, command)| Pending {
                place,
                command,
                way: Way::Key,
            })
            .collect();
        for _ in 0..ROUNDS {
            let is_moving = self.round(&mut pending, &mut answers).await?;
            if pending.is_empty() {
                let answers: Vec<_> = answers.into_iter().flatten().collect();
                return match answers.len() == count {
                    true => Ok(answers),
                    false => Err(self.failed("an answer is missing")),
                };
            }
            if is_moving {
                tokio::time::sleep(MOVING).await;
            }
        }
        Err(self.failed("the keys keep moving"))
    }

    /// Carries out commands that there is only one way for.
    async fn run_on(&self, link: &Link, commands: Vec<Command>) -> Result<Vec<Answer>, StoreError> {
        let waiting = link.send(commands, false, &self.context)?;
        let reply = link.reply(waiting, &self.context).await?;
        let failed = |refusal: Refusal| link.failed(&refusal, &self.context);
        let answers = reply.outcomes.into_iter();
        answers.map(|answer| answer.map_err(failed)).collect()
    }

    /// Sends what is pending and leaves there what has to be sent again. Says whether that needs
    /// a pause.
    async fn round(
        &self,
        pending: &mut Vec<Pending>,
        answers: &mut [Option<Answer>],
    ) -> Result<bool, StoreError> {
        let mut parcels: Vec<Parcel> = Vec::with_capacity(1);
        for Pending {
            place,
            command,
            way,
        } in pending.drain(..)
        {
            let (link, asking) = self.way(&command, way).await?;
            let parcel = parcels
                .iter_mut()
                .find(|parcel| parcel.asking == asking && parcel.link.is(&link));
            match parcel {
                Some(parcel) => {
                    parcel.places.push(place);
                    parcel.commands.push(command);
                }
                None => parcels.push(Parcel {
                    link,
                    asking,
                    places: vec![place],
                    commands: vec![command],
                }),
            }
        }
        let mut sent: Vec<(Link, Vec<usize>, Waiting)> = Vec::with_capacity(parcels.len());
        let mut failure = None;
        for parcel in parcels {
            match parcel
                .link
                .send(parcel.commands, parcel.asking, &self.context)
            {
                Ok(waiting) => sent.push((parcel.link, parcel.places, waiting)),
                Err(error) => failure = Some(error),
            }
        }
        let mut is_moving = false;
        for (link, places, waiting) in sent {
            let reply = match link.reply(waiting, &self.context).await {
                Ok(reply) => reply,
                Err(error) => {
                    failure = Some(error);
                    continue;
                }
            };
            let commands = reply.commands.into_iter().zip(reply.outcomes);
            for (place, (command, outcome)) in places.into_iter().zip(commands) {
                let way = match outcome {
                    Ok(answer) => {
                        if let Some(slot) = answers.get_mut(place) {
                            *slot = Some(answer);
                        }
                        continue;
                    }
                    Err(Refusal::Moved(to)) => {
                        self.note_change();
                        Way::Moved(cluster::named(&to, link.name()))
                    }
                    Err(Refusal::Ask(to)) => Way::Ask(cluster::named(&to, link.name())),
                    Err(Refusal::TryAgain) => {
                        is_moving = true;
                        Way::Key
                    }
                    Err(refusal) => {
                        failure = Some(link.failed(&refusal, &self.context));
                        continue;
                    }
                };
                pending.push(Pending {
                    place,
                    command,
                    way,
                });
            }
        }
        match failure {
            None => Ok(is_moving),
            Some(error) => {
                self.note_change();
                Err(error)
            }
        }
    }

    async fn way(&self, command: &Command, way: Way) -> Result<(Link, bool), StoreError> {
        let key = command.key();
        match (&self.servers, way) {
            (Servers::One { server, .. }, _) => match server.link(key) {
                Some(link) => Ok((link.clone(), false)),
                None => Err(self.failed("there is no connection")),
            },
            (Servers::Cluster(cluster), Way::Key) => Ok((cluster.link(key)?, false)),
            (Servers::Cluster(cluster), Way::Moved(to)) => {
                Ok((cluster.link_at(to, key).await?, false))
            }
            (Servers::Cluster(cluster), Way::Ask(to)) => {
                Ok((cluster.link_at(to, key).await?, true))
            }
        }
    }

    /// Something shows that the cluster has changed.
    fn note_change(&self) {
        if let Servers::Cluster(cluster) = &self.servers {
            cluster.refresh();
        }
    }
}

/// A command that is to be sent.
struct Pending {
    place: usize,
    command: Command,
    way: Way,
}

/// How a server is chosen.
enum Way {
    /// By the key.
    Key,
    /// As another server has said; nowhere, if that cannot be understood.
    Moved(Option<Address>),
    /// As another server has said, for this once.
    Ask(Option<Address>),
}

/// Commands for one server.
struct Parcel {
    link: Link,
    asking: bool,
    places: Vec<usize>,
    commands: Vec<Command>,
}

impl StoreMetrics {
    fn new(metrics: &Metrics, pool: &str) -> Self {
        let labels = [("redis", pool)];
        let counter = |name, help| metrics.counter(name, help, &labels);
        Self {
            connected: metrics.gauge(
                "attache_ratelimit_redis_connected",
                "Connections to Redis that can be used.",
                &labels,
            ),
            opened: counter(
                "attache_ratelimit_redis_opened",
                "Connections to Redis made.",
            ),
            closed: counter(
                "attache_ratelimit_redis_closed",
                "Connections to Redis given up or lost.",
            ),
            commands: counter(
                "attache_ratelimit_redis_commands",
                "Commands sent to count hits.",
            ),
            errors: counter(
                "attache_ratelimit_redis_errors",
                "Operations that failed, other than by time.",
            ),
            timeouts: counter(
                "attache_ratelimit_redis_timeouts",
                "Operations that Redis did not answer in time.",
            ),
        }
    }
}
