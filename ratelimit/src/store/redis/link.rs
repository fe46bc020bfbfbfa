//! One server: its connection, the queue before it, and the task that joins the two.
//!
//! What waits when the connection is free leaves in one write; adds to the same key leave as one.
//! Nobody waits for company: there is no timer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    Context,
    command::{Command, Refusal},
    connect::{Connection, Target, clock_offset},
    flight::{Flight, Job, Landed, Reply, Touched},
};
use crate::store::StoreError;

/// Requests that wait for the connection at once; more fail at once.
const QUEUE: usize = 4096;

/// Requests that leave in one write.
const BATCH: usize = 512;

/// Writes that wait for their answers at once. The fewer, the more is put together.
const IN_FLIGHT: usize = 4;

/// A write that is not answered for this many operations' time shows a stalled connection.
const STALLED: u32 = 20;

/// Waits between attempts to connect grow from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// How often the server's clock, and the sentinels, are asked.
const CHECK: Duration = Duration::from_secs(5);

/// A clock further away than this is broken, and not followed.
const FURTHEST_CLOCK: i64 = 3_600_000_000;

/// The way to one server. Clones share it; with the last it ends.
#[derive(Clone)]
pub(super) struct Link {
    queue: mpsc::Sender<Job>,
    state: Arc<State>,
    /// Whether connecting has been tried.
    tried: watch::Receiver<bool>,
}

struct State {
    /// Where the server is, without credentials.
    name: String,
    connected: AtomicBool,
    /// Why there is no connection.
    reason: ArcSwapOption<String>,
}

/// A request on its way.
pub(super) struct Waiting(oneshot::Receiver<Reply>);

impl Link {
    /// Connects, and goes on connecting. With `keeps_time` this server's clock is the one that
    /// windows are cut by.
    pub(super) fn start(target: Target, keeps_time: bool, context: &Arc<Context>) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let (trying, tried) = watch::channel(false);
        let state = Arc::new(State {
            name: target.name(),
            connected: AtomicBool::new(false),
            reason: ArcSwapOption::empty(),
        });
        let driver = Driver {
            target,
            keeps_time,
            jobs,
            state: state.clone(),
            context: context.clone(),
            trying,
        };
        context.runtime.spawn(driver.run());
        Self {
            queue,
            state,
            tried,
        }
    }

    /// Whether both are the same way.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// Waits until connecting was tried once.
    pub(super) async fn tried(&self) {
        // An error says that the driver has ended.
        let _ = self.tried.clone().wait_for(|tried| *tried).await;
    }

    /// Where the server is, without credentials.
    pub(super) fn name(&self) -> &str {
        &self.state.name
    }

    pub(super) fn is_connected(&self) -> bool {
        self.state.connected.load(Ordering::Acquire)
    }

    /// Hands the commands over.
    pub(super) fn send(
        &self,
        commands: Vec<Command>,
        asking: bool,
        context: &Context,
    ) -> Result<Waiting, StoreError> {
        if !self.is_connected() {
            return Err(self.state.not_connected(context));
        }
        let (reply, receiver) = oneshot::channel();
        let job = Job {
            commands,
            asking,
            reply,
        };
        match self.queue.try_send(job) {
            Ok(()) => Ok(Waiting(receiver)),
            Err(mpsc::error::TrySendError::Full(_)) => {
                context.metrics.errors.inc();
                Err(StoreError::Failed {
                    store: "redis",
                    address: self.state.name.clone(),
                    reason: format!("{QUEUE} requests are waiting"),
                })
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(self.state.not_connected(context)),
        }
    }

    /// Waits for what was handed over.
    pub(super) async fn reply(
        &self,
        waiting: Waiting,
        context: &Context,
    ) -> Result<Reply, StoreError> {
        waiting
            .0
            .await
            .map_err(|_| self.state.not_connected(context))
    }

    /// Says what a refusal means to a request.
    pub(super) fn failed(&self, refusal: &Refusal, context: &Context) -> StoreError {
        context.metrics.errors.inc();
        StoreError::Failed {
            store: "redis",
            address: self.state.name.clone(),
            reason: refusal.to_string(),
        }
    }
}

impl State {
    fn not_connected(&self, context: &Context) -> StoreError {
        context.metrics.errors.inc();
        let reason = self.reason.load_full();
        StoreError::NotConnected {
            store: "redis",
            address: self.name.clone(),
            reason: reason.map_or_else(String::new, |reason| (*reason).clone()),
        }
    }

    /// Keeps the reason for callers; true when it is a new one.
    fn note(&self, reason: String) -> bool {
        let news = self.reason.load().as_deref() != Some(&reason);
        if news {
            self.reason.store(Some(Arc::new(reason)));
        }
        news
    }
}

/// The task behind a link.
struct Driver {
    target: Target,
    keeps_time: bool,
    jobs: mpsc::Receiver<Job>,
    state: Arc<State>,
    context: Arc<Context>,
    trying: watch::Sender<bool>,
}

/// Why a connection is used no more.
enum End {
    /// Nobody needs it.
    Idle,
    Lost(String),
}

impl Driver {
    async fn run(mut self) {
        let (mut wait, longest) = RETRY;
        loop {
            let (target, context) = (self.target.clone(), self.context.clone());
            let attempt = async move { target.connect(&context.settings).await };
            let Some(attempt) = self.refuse_during(attempt).await else {
                return;
            };
            match attempt {
                Ok(connection) => {
                    let since = Instant::now();
                    let address = connection.address.clone();
                    match self.serve(connection).await {
                        End::Idle => return,
                        End::Lost(reason) => {
                            tracing::warn!(%address, %reason, "lost the connection to Redis");
                            self.state.note(reason);
                        }
                    }
                    if since.elapsed() > longest {
                        wait = RETRY.0;
                    }
                }
                Err(error) => {
                    let reason = error.to_string();
                    if self.state.note(reason.clone()) {
                        tracing::warn!(server = %self.state.name, %reason, "cannot connect to Redis");
                    }
                    self.trying.send_replace(true);
                }
            }
            // Up to a quarter more, so that many instances do not come back at the same time.
            let pause = wait.mul_f64(1.0 + rand::random::<f64>() / 4.0);
            wait = (wait * 2).min(longest);
            if self
                .refuse_during(tokio::time::sleep(pause))
                .await
                .is_none()
            {
                return;
            }
        }
    }

    /// Turns requests away until `step` is done; `None` when nobody can make any more.
    async fn refuse_during<T>(&mut self, step: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(step);
        loop {
            tokio::select! {
                biased;
                done = &mut step => return Some(done),
                job = self.jobs.recv() => {
                    // Dropped with its reply, which says so.
                    job?;
                }
            }
        }
    }

    async fn serve(&mut self, connection: Connection) -> End {
        let context = self.context.clone();
        let metrics = &context.metrics;
        metrics.opened.inc();
        metrics.connected.inc();
        tracing::info!(address = %connection.address, "connected to Redis");
        // In the right window from the first request on.
        let stalled = self.context.settings.timeout * STALLED;
        let measured = tokio::time::timeout(stalled, clock_offset(connection.handle.clone())).await;
        if let (Ok(Ok(offset)), true) = (measured, self.keeps_time) {
            self.context.set_offset(offset);
        }
        self.state.connected.store(true, Ordering::Release);
        self.trying.send_replace(true);

        let end = self.pump(&connection, stalled).await;

        self.state.connected.store(false, Ordering::Release);
        metrics.connected.dec();
        metrics.closed.inc();
        end
    }

    /// Moves requests to the connection and answers back.
    async fn pump(&mut self, connection: &Connection, stalled: Duration) -> End {
        let mut jobs = Vec::new();
        let mut touched = Touched::new();
        let mut script_known = false;
        let mut flights: JoinSet<Result<Landed, String>> = JoinSet::new();
        let mut checks: JoinSet<Option<String>> = JoinSet::new();
        let mut check = tokio::time::interval_at(Instant::now() + CHECK, CHECK);
        loop {
            tokio::select! {
                biased;
                Some(landed) = flights.join_next() => match landed {
                    Ok(Ok(landed)) => script_known |= landed.script_known,
                    Ok(Err(reason)) => return End::Lost(reason),
                    Err(error) => return End::Lost(error.to_string()),
                },
                received = self.jobs.recv_many(&mut jobs, BATCH), if flights.len() < IN_FLIGHT => {
                    if received == 0 {
                        return End::Idle;
                    }
                    // Who has given up must not be charged.
                    jobs.retain(|job| !job.reply.is_closed());
                    if jobs.is_empty() {
                        continue;
                    }
                    let jobs = std::mem::take(&mut jobs);
                    let flight = Flight::load(jobs, &mut touched, script_known);
                    self.context.metrics.commands.inc_by(flight.commands());
                    let handle = connection.handle.clone();
                    flights.spawn(async move {
                        tokio::time::timeout(stalled, flight.fly(handle))
                            .await
                            .unwrap_or_else(|_| Err(format!("no answer for {stalled:?}")))
                    });
                }
                Some(found) = checks.join_next() => {
                    if let Ok(Some(reason)) = found {
                        return End::Lost(reason);
                    }
                }
                _ = check.tick(), if checks.is_empty() => {
                    checks.spawn(check_up(
                        self.target.clone(),
                        self.keeps_time,
                        connection.handle.clone(),
                        connection.address.clone(),
                        self.context.clone(),
                        stalled,
                    ));
                }
            }
        }
    }
}

/// Sets the clock by the server and sees whether it is still the one to use. Says why not.
async fn check_up(
    target: Target,
    keeps_time: bool,
    handle: redis::aio::MultiplexedConnection,
    address: attache_service::Address,
    context: Arc<Context>,
    stalled: Duration,
) -> Option<String> {
    match tokio::time::timeout(stalled, clock_offset(handle)).await {
        Ok(Ok(offset)) if keeps_time => context.set_offset(offset),
        Ok(Ok(_)) => {}
        Ok(Err(error)) if error.is_io_error() => return Some(error.to_string()),
        // Not every user may ask for the time.
        Ok(Err(_)) => {}
        Err(_) => return Some(format!("no answer for {stalled:?}")),
    }
    if matches!(target, Target::Server(_)) {
        return None;
    }
    // Without a sentinel things stay as they are.
    let named = target.resolve(&context.settings).await.ok()?;
    (named != address).then(|| format!("the sentinels name {named} as master"))
}

impl Context {
    pub(super) fn set_offset(&self, offset: i64) {
        if offset.abs() > FURTHEST_CLOCK {
            tracing::warn!(
                micros = offset,
                "the clock of Redis is too far away to be followed"
            );
            return;
        }
        self.offset.store(offset, Ordering::Relaxed);
    }
}
