//! Starting, reloading and stopping the proxy.

use std::{
    io,
    num::NonZero,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use attache_service::{
    Address, Metrics, Shutdown, handover,
    listen::{Bound, ListenAddress, ListenError},
    metrics::Counter,
    trace::{Exporter, TraceError},
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    access_log::{AccessLogs, Files, Sink},
    drain::Queue,
    edge::Everywhere,
    live::Live,
    overload::Overload,
    plan::{ClusterPlan, Plan},
    shares::{Shares, assign, clash, is_any_port, no_log},
    status::Status,
    trace::Tracing,
    worker::{self, Command, Setup, SharedListener},
};

/// Bound on the wait for the first endpoints of clusters whose endpoints must be looked up.
const FIRST_LOOKUPS: Duration = Duration::from_secs(6);

/// Why the proxy did not start, or does not run a new plan.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot have its address.
    #[error("listener `{listener}`: {source}")]
    Listen {
        /// Its name.
        listener: String,
        /// Why, with the address.
        source: ListenError,
    },
    /// Two listeners want the same address.
    #[error("listeners `{0}` and `{1}` have the same address")]
    SameAddress(String, String),
    /// The access log of a listener cannot be written.
    #[error("access log of listener `{listener}` ({sink}): {source}")]
    AccessLog {
        /// The listener's name.
        listener: String,
        /// Where the log should go.
        sink: Sink,
        /// What the system said.
        source: io::Error,
    },
    /// Traces cannot be sent.
    #[error("{0}")]
    Traces(#[from] TraceError),
    /// A worker's thread or runtime cannot be made.
    #[error("cannot start a worker: {0}")]
    Worker(#[from] io::Error),
    /// The workers have ended.
    #[error("the proxy has stopped")]
    Stopped,
}

/// The proxy.
#[derive(Debug)]
pub struct Proxy;

impl Proxy {
    /// Starts the workers of `plan`; returns when all of them listen.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub async fn start(plan: Plan, metrics: Metrics) -> Result<Running, StartError> {
        let running = Self::start_on(plan, metrics, &[]).await?;
        running.take_over();
        Ok(running)
    }

    /// Starts the workers of `plan` on sockets of a predecessor, where those are at the addresses
    /// of the listeners; see [`handover`]. The predecessor goes on alone until
    /// [`Running::take_over`], so that listeners, routes and endpoints of a control plane can come
    /// before.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub async fn start_on(
        plan: Plan,
        metrics: Metrics,
        inherited: &[Bound],
    ) -> Result<Running, StartError> {
        let plan = Arc::new(plan);
        plan.guard(&metrics);
        let shutdown = Shutdown::new();
        let files = Files::default();
        let live = Live::new(&metrics);
        live.mask(plan.masks.clone());
        let workers = match plan.workers {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            count => count,
        };
        let everywhere = Arc::<Everywhere>::default();
        let shares = Shares {
            before: &[],
            overload: None,
            inherited,
            workers,
            everywhere: &everywhere,
            files: &files,
            live: &live,
        };
        let mut assignment = assign(plan.clone(), &shares, &metrics).await?;
        let exporter = Export::start(&plan, None, &metrics)?;
        assignment.tracing = exporter.as_ref().map(|export| export.tracing.clone());
        follow_sources(&plan, &[], &metrics).await;
        let mut running = Running {
            reloads: metrics.counter(
                "attache_config_reloads",
                "Configurations taken over while running.",
                &[("result", "ok")],
            ),
            failed_reloads: metrics.counter(
                "attache_config_reloads",
                "Configurations taken over while running.",
                &[("result", "failed")],
            ),
            plan: Arc::new(ArcSwap::new(plan)),
            exporter: Mutex::new(exporter),
            listeners: Mutex::new(assignment.listeners.clone()),
            overload: Mutex::new(assignment.overload.clone()),
            everywhere: everywhere.clone(),
            queue: Arc::default(),
            metrics,
            files,
            live,
            shutdown,
            workers: Vec::new(),
            reloading: tokio::sync::Mutex::new(()),
            inherited: Mutex::new(inherited.to_vec()),
            accepting: watch::Sender::new(false),
        };
        let mut answers = Vec::new();
        for index in 0..workers {
            let (commands, receiver) = mpsc::unbounded_channel();
            let (started, answer) = channel();
            let (ended, end) = oneshot::channel();
            worker::spawn(Setup {
                index,
                count: workers,
                assignment: assignment.clone(),
                metrics: running.metrics.clone(),
                shutdown: running.shutdown.clone(),
                queue: running.queue.clone(),
                accepting: running.accepting.subscribe(),
                commands: receiver,
                started,
                ended,
            })?;
            running.workers.push(Handle { commands, end });
            answers.push(answer);
        }
        // On an error the handle is dropped, which stops the workers that did start.
        all(answers).await.map_err(|error| running.located(error))?;
        Ok(running)
    }
}

/// How long lines of access logs that wait may take to be written when the workers have ended.
const LAST_LINES: Duration = Duration::from_secs(5);

/// How long spans that wait may take to be sent when their exporter ends.
const LAST_SPANS: Duration = Duration::from_secs(5);

/// The sending of spans, kept over reloads that leave it as it is.
struct Export {
    exporter: Arc<Exporter>,
    tracing: Tracing,
    written: String,
}

impl Export {
    fn start(
        plan: &Plan,
        before: Option<Self>,
        metrics: &Metrics,
    ) -> Result<Option<Self>, TraceError> {
        let Some(traces) = &plan.tracing else {
            return Ok(None);
        };
        if let Some(before) = before.filter(|before| before.written == traces.written) {
            return Ok(Some(before));
        }
        let mut settings = traces.settings.clone();
        if let Some(name) = &traces.cluster {
            let mut clusters = plan.clusters.iter();
            if let Some(cluster) = clusters.find(|cluster| cluster.name == *name) {
                settings = settings.with_collector(cluster.channel(metrics));
            }
        }
        let (exporter, tracer) = Exporter::start(settings, metrics)?;
        Ok(Some(Self {
            exporter: Arc::new(exporter),
            tracing: Tracing {
                tracer,
                sampling: traces.sampling,
            },
            written: traces.written.clone(),
        }))
    }

    fn kept(&self) -> Self {
        Self {
            exporter: self.exporter.clone(),
            tracing: self.tracing.clone(),
            written: self.written.clone(),
        }
    }

    /// The exporter, where nobody else sends spans through it.
    fn last(self) -> Option<Exporter> {
        Arc::into_inner(self.exporter)
    }
}

struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    end: oneshot::Receiver<()>,
}

/// A proxy that runs. Dropping it stops it at once.
pub struct Running {
    plan: Arc<ArcSwap<Plan>>,
    /// Sends the spans of the plan.
    exporter: Mutex<Option<Export>>,
    listeners: Mutex<Vec<SharedListener>>,
    /// Looks at the memory, kept over reloads that leave its settings as they are.
    overload: Mutex<Option<Arc<Overload>>>,
    everywhere: Arc<Everywhere>,
    queue: Arc<OnceLock<Queue>>,
    metrics: Metrics,
    files: Files,
    live: Live,
    shutdown: Shutdown,
    workers: Vec<Handle>,
    reloading: tokio::sync::Mutex<()>,
    /// Sockets of a predecessor, for listeners that may still come.
    inherited: Mutex<Vec<Bound>>,
    /// Whether connections are accepted.
    accepting: watch::Sender<bool>,
    reloads: Counter,
    failed_reloads: Counter,
}

impl Running {
    /// Accepts connections, and lets go of sockets of a predecessor that no listener has: gives
    /// where those are.
    pub fn take_over(&self) -> Vec<Address> {
        let mut inherited = std::mem::take(&mut *self.inherited());
        let ours = self.listeners();
        let is_ours = |socket: &Bound| {
            let mut sockets = ours.iter().flat_map(|listener| &listener.sockets);
            sockets.any(|own| own.address() == socket.address())
        };
        inherited.retain(|socket| !is_ours(socket));
        inherited.dedup_by(|one, other| one.address() == other.address());
        self.accepting.send_replace(true);
        let unclaimed = inherited.iter().map(|socket| socket.address().clone());
        unclaimed.collect()
    }

    /// Where the listeners listen, in the plan's order, with the ports that the system chose.
    pub fn addresses(&self) -> Vec<Address> {
        self.listeners()
            .iter()
            .map(|listener| listener.address.clone())
            .collect()
    }

    /// The plan that new requests run on.
    pub fn plan(&self) -> Arc<Plan> {
        self.plan.load_full()
    }

    /// The live page: [`Live::part`] is for an admin endpoint.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// A look at what runs.
    pub fn status(&self) -> Status {
        Status {
            plan: self.plan.clone(),
            everywhere: self.everywhere.clone(),
        }
    }

    /// Replaces the plan. Requests in flight finish on the old one; connections stay, unless
    /// their listener is gone: then they are drained.
    ///
    /// # Errors
    /// The old plan goes on running.
    pub async fn reload(&self, mut plan: Plan) -> Result<(), StartError> {
        let _one_at_a_time = self.reloading.lock().await;
        plan.succeed(&self.plan());
        plan.guard(&self.metrics);
        let result = self.replace(Arc::new(plan)).await;
        match &result {
            Ok(()) => self.reloads.inc(),
            Err(_) => self.failed_reloads.inc(),
        };
        result
    }

    async fn replace(&self, plan: Arc<Plan>) -> Result<(), StartError> {
        let planned = self.plan().listeners.clone();
        let before: Vec<_> = planned
            .into_iter()
            .zip(self.listeners().iter().cloned())
            .collect();
        let inherited = self.inherited().clone();
        let overload = self.overload().clone();
        let shares = Shares {
            before: &before,
            overload: overload.as_ref(),
            inherited: &inherited,
            workers: self.workers.len(),
            everywhere: &self.everywhere,
            files: &self.files,
            live: &self.live,
        };
        let mut assignment = assign(plan.clone(), &shares, &self.metrics).await?;
        let before = self.exporter().as_ref().map(Export::kept);
        let exporter = Export::start(&plan, before, &self.metrics)?;
        assignment.tracing = exporter.as_ref().map(|export| export.tracing.clone());
        let running = self.plan();
        follow_sources(&plan, &running.clusters, &self.metrics).await;
        let mut answers = Vec::new();
        for worker in &self.workers {
            let (answer, receiver) = channel();
            let command = Command::Prepare(assignment.clone(), answer);
            worker
                .commands
                .send(command)
                .map_err(|_| StartError::Stopped)?;
            answers.push(receiver);
        }
        if let Err(error) = all(answers).await {
            for worker in &self.workers {
                // A worker that is gone has nothing to forget.
                let _ = worker.commands.send(Command::Abort);
            }
            return Err(located(&plan, error));
        }
        let mut answers = Vec::new();
        for worker in &self.workers {
            let (answer, receiver) = channel();
            let command = Command::Commit(answer);
            worker
                .commands
                .send(command)
                .map_err(|_| StartError::Stopped)?;
            answers.push(receiver);
        }
        all(answers).await.map_err(|error| located(&plan, error))?;
        *self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = assignment.listeners;
        *self.overload() = assignment.overload;
        self.live.mask(plan.masks.clone());
        self.plan.store(plan);
        let before = std::mem::replace(&mut *self.exporter(), exporter);
        if let Some(before) = before.and_then(Export::last) {
            // Requests in flight have some time to end.
            tokio::spawn(before.finish(LAST_SPANS));
        }
        Ok(())
    }

    /// Whether a listener of `plan`, which does not run yet, could have its address and its access
    /// logs, as far as that can be told ahead.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn could_run(&self, plan: &Plan, name: &str) -> Result<(), StartError> {
        let mut listeners = plan.listeners.iter();
        let Some(index) = listeners.position(|listener| &*listener.name == name) else {
            return Ok(());
        };
        let clash = |at| clash(&plan.listeners, at);
        if let Some(error) = (0..plan.listeners.len()).filter_map(clash).find(|error| {
            matches!(error, StartError::SameAddress(one, other) if one == name || other == name)
        }) {
            return Err(error);
        }
        let Some(listener) = plan.listeners.get(index) else {
            return Ok(());
        };
        AccessLogs::could_start(&listener.access_logs, &self.files)
            .map_err(|(sink, source)| no_log(listener, sink, source))?;
        let ListenAddress::At(address @ Address::Tcp { .. }) = &listener.address else {
            return Ok(());
        };
        let running = self.plan().listeners.clone();
        let ours = running.into_iter().zip(self.addresses());
        let is_ours = ours
            .into_iter()
            .any(|(planned, bound)| planned.address == listener.address || bound == *address);
        let inherited = self.inherited().clone();
        if is_ours
            || is_any_port(&listener.address)
            || !handover::at(&inherited, address).await.is_empty()
        {
            return Ok(());
        }
        match Bound::bind(address).await {
            Ok(_) => Ok(()),
            Err(source) => Err(StartError::Listen {
                listener: name.to_owned(),
                source,
            }),
        }
    }

    /// Has the files of access logs opened anew, each before its next line: they were moved away.
    pub fn reopen_logs(&self) {
        self.files.reopen();
    }

    /// The handle that stops the workers: trigger it to drain, or to drop what runs.
    pub fn stopper(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// The sockets of all listeners, for a successor: see [`handover`].
    pub fn sockets(&self) -> Vec<Bound> {
        let listeners = self.listeners();
        let sockets = listeners.iter().flat_map(|listener| &listener.sockets);
        sockets.cloned().collect()
    }

    /// Tells clients to go, stops accepting after the plan's `drain_min`, lets requests in flight
    /// finish within its `drain_timeout`, and returns when all workers have ended.
    pub async fn shutdown(self) {
        self.end(Queue::Served).await;
    }

    /// Like [`Running::shutdown`], when a successor listens on the same sockets: accepting stops at
    /// once, and the files of sockets stay.
    pub async fn hand_over(self) {
        for socket in self.sockets() {
            socket.leave_file();
        }
        self.end(Queue::HandedOver).await;
    }

    async fn end(mut self, queue: Queue) {
        // Nobody else calls this; the first value stays.
        let _ = self.queue.set(queue);
        // The workers have their own; a socket closes with its last.
        self.listeners().clear();
        self.inherited().clear();
        self.shutdown.trigger();
        for worker in self.workers.drain(..) {
            let _ = worker.end.await;
        }
        self.files.finish(LAST_LINES).await;
        let export = self.exporter().take();
        if let Some(exporter) = export.and_then(Export::last) {
            exporter.finish(LAST_SPANS).await;
        }
    }

    fn exporter(&self) -> std::sync::MutexGuard<'_, Option<Export>> {
        self.exporter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, Vec<SharedListener>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn overload(&self) -> std::sync::MutexGuard<'_, Option<Arc<Overload>>> {
        self.overload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inherited(&self) -> std::sync::MutexGuard<'_, Vec<Bound>> {
        self.inherited
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn located(&self, error: Failed) -> StartError {
        located(&self.plan.load(), error)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.trigger_immediate();
    }
}

/// Begins to follow the sources of clusters that do not run yet, and waits for their first answer
/// as long as is sensible: a name server that is slow delays the start, and does not prevent it.
async fn follow_sources(plan: &Plan, running: &[Arc<ClusterPlan>], metrics: &Metrics) {
    let new = plan.clusters.iter().filter(|cluster| {
        let mut running = running.iter();
        !running.any(|other| Arc::ptr_eq(other, cluster))
    });
    let mut asked = Vec::new();
    for cluster in new {
        cluster.endpoints.describe(metrics);
        if let Some(source) = &cluster.source {
            asked.push(cluster.endpoints.follow(source.clone()));
        }
    }
    let all = async {
        for asked in &mut asked {
            // It ends early only with the cluster.
            let _ = asked.wait_for(|asked| *asked).await;
        }
    };
    let _slow = tokio::time::timeout(FIRST_LOOKUPS, all).await;
}

/// A worker could not do as told.
enum Failed {
    Listen(ListenError),
    Gone,
}

/// Waits for all workers; the first failure counts.
async fn all(answers: Vec<Receiver<Result<(), ListenError>>>) -> Result<(), Failed> {
    let wait = move || {
        let mut result = Ok(());
        for answer in answers {
            let one = match answer.recv() {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(Failed::Listen(error)),
                Err(_) => Err(Failed::Gone),
            };
            result = result.and(one);
        }
        result
    };
    tokio::task::spawn_blocking(wait)
        .await
        .unwrap_or(Err(Failed::Gone))
}

fn located(plan: &Plan, error: Failed) -> StartError {
    match error {
        Failed::Gone => StartError::Stopped,
        Failed::Listen(source) => {
            let text = source.to_string();
            let listener = plan
                .listeners
                .iter()
                .find(|listener| text.contains(&listener.address.to_string()));
            StartError::Listen {
                listener: listener.map_or_else(String::new, |listener| listener.name.to_string()),
                source,
            }
        }
    }
}
