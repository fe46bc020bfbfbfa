//! One worker: a thread with its own runtime, listening sockets, upstream pools and channels.

use std::{
    collections::{HashMap, HashSet},
    io,
    pin::pin,
    sync::{Arc, OnceLock, atomic::AtomicUsize, mpsc::Sender},
    time::Duration,
};

use arc_swap::ArcSwap;
use attache_filter::Channels;
use attache_service::{
    Address, Channel, HttpClient, Metrics, Shutdown,
    listen::{Bound, ListenError, Listener},
};
use tokio::{
    runtime::Builder,
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
};
use tokio_util::task::TaskTracker;

use crate::{
    access_log::AccessLogs,
    connection::{self, Listening},
    drain::{Drain, LAST_REQUESTS, Queue},
    edge::{Edge, Everywhere, Notes},
    filters::{Site, Stack},
    live::Live,
    mirror::Mirrors,
    overload::{Gate, Overload},
    plan::{ClusterPlan, Plan, Protocol},
    route::RouteTable,
    router::{Innermost, Rerouted, Router},
    stats::ListenerStats,
    tcp::TcpStats,
    trace::Tracing,
    upstream::Cluster,
};

/// What all workers share of one listener.
#[derive(Clone)]
pub(crate) struct SharedListener {
    /// Where it listens, with the port that the system chose.
    pub(crate) address: Address,
    /// The sockets that the workers share out among them.
    pub(crate) sockets: Vec<Bound>,
    pub(crate) connections: Arc<AtomicUsize>,
    /// Requests in flight in all workers, counted where they are bounded.
    pub(crate) requests: Arc<AtomicUsize>,
    pub(crate) log: Option<AccessLogs>,
}

/// A plan with what all workers share; listeners in the plan's order.
#[derive(Clone)]
pub(crate) struct Assignment {
    pub(crate) plan: Arc<Plan>,
    pub(crate) listeners: Vec<SharedListener>,
    pub(crate) everywhere: Arc<Everywhere>,
    pub(crate) overload: Option<Arc<Overload>>,
    pub(crate) tracing: Option<Tracing>,
    pub(crate) live: Live,
}

/// What a worker is told to do.
pub(crate) enum Command {
    /// Prepare for a new plan: whatever can fail is done now.
    Prepare(Assignment, Sender<Result<(), ListenError>>),
    /// Run what was prepared.
    Commit(Sender<Result<(), ListenError>>),
    /// Forget what was prepared.
    Abort,
}

/// What a worker is made of.
pub(crate) struct Setup {
    pub(crate) index: usize,
    /// How many workers there are.
    pub(crate) count: usize,
    pub(crate) assignment: Assignment,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
    /// What becomes of waiting connections after `shutdown`; by default they are served.
    pub(crate) queue: Arc<OnceLock<Queue>>,
    /// Whether connections are accepted.
    pub(crate) accepting: watch::Receiver<bool>,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    pub(crate) started: Sender<Result<(), ListenError>>,
    /// Told when nothing of the worker is left: requests that were dropped are logged by then.
    pub(crate) ended: oneshot::Sender<()>,
}

/// Starts the thread.
pub(crate) fn spawn(setup: Setup) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name(format!("worker-{}", setup.index))
        .spawn(move || {
            let ended = runtime.block_on(run(setup));
            runtime.shutdown_background();
            let _ = ended.send(());
        })?;
    Ok(())
}

struct Worker {
    index: usize,
    count: usize,
    metrics: Metrics,
    shutdown: Shutdown,
    queue: Arc<OnceLock<Queue>>,
    accepting: watch::Receiver<bool>,
    /// Connections, and what accepts them.
    connections: TaskTracker,
    /// Listeners that accept now, by address.
    listening: HashMap<Address, Arc<Listening>>,
    /// Tasks of the current plan: the pools' clock, certificate reload.
    helpers: Vec<AbortHandle>,
    /// The clients of the current plan's clusters.
    clients: Vec<Clients>,
    /// Copies of requests, whichever plan they were made by.
    mirrors: Mirrors,
    prepared: Option<Prepared>,
}

/// All that a plan needs of this worker, nothing of it running yet.
struct Prepared {
    plan: Arc<Plan>,
    clients: Vec<Clients>,
    edges: Vec<(SharedListener, Arc<Edge>)>,
    sockets: HashMap<Address, Vec<Listener>>,
    overload: Option<Arc<Overload>>,
}

/// What is to be told when all is over.
async fn run(setup: Setup) -> oneshot::Sender<()> {
    let mut worker = Worker {
        index: setup.index,
        count: setup.count,
        metrics: setup.metrics,
        shutdown: setup.shutdown,
        queue: setup.queue,
        accepting: setup.accepting,
        connections: TaskTracker::new(),
        listening: HashMap::new(),
        helpers: Vec::new(),
        clients: Vec::new(),
        mirrors: Mirrors::default(),
        prepared: None,
    };
    let mut commands = setup.commands;
    let mut plan = setup.assignment.plan.clone();
    let prepared = worker.prepare(setup.assignment);
    let failed = prepared.is_err();
    if !failed {
        worker.commit();
    }
    // The starter waits for this; when it is gone, the shutdown handle tells.
    let _ = setup.started.send(prepared);
    if failed {
        return setup.ended;
    }
    loop {
        let command = tokio::select! {
            biased;
            () = worker.shutdown.recv() => break,
            command = commands.recv() => command,
        };
        match command {
            Some(Command::Prepare(assignment, answer)) => {
                let _ = answer.send(worker.prepare(assignment));
            }
            Some(Command::Commit(answer)) => {
                if let Some(prepared) = &worker.prepared {
                    plan = prepared.plan.clone();
                }
                worker.commit();
                let _ = answer.send(Ok(()));
            }
            Some(Command::Abort) => worker.prepared = None,
            None => break,
        }
    }
    worker.drain(&plan).await;
    setup.ended
}

impl Worker {
    fn prepare(&mut self, assignment: Assignment) -> Result<(), ListenError> {
        let mut sockets = HashMap::new();
        for listener in &assignment.listeners {
            let address = &listener.address;
            if self.listening.contains_key(address) {
                continue;
            }
            let mine = share(&listener.sockets, self.index, self.count);
            let mine: Result<Vec<_>, _> = mine.map(Bound::listen).collect();
            sockets.insert(address.clone(), mine?);
        }
        let plan = assignment.plan;
        let overload = assignment.overload;
        let clients = self.clients(&plan);
        let channels = channels(&plan, &clients);
        let notes_upstream = plan.listeners.iter().any(|l| !l.access_logs.is_empty());
        let of = |routes: &Arc<RouteTable>| {
            Arc::new(Router {
                routes: routes.clone(),
                clusters: clients.iter().map(|c| c.cluster.clone()).collect(),
                mirrors: self.mirrors.clone(),
                notes_upstream,
            })
        };
        let shared_router = of(&plan.routes);
        let edges = plan.listeners.iter().zip(assignment.listeners);
        let edges = edges
            .map(|(listener, shared)| {
                let own = listener.routes.as_ref().map(of);
                let router = own.unwrap_or_else(|| shared_router.clone());
                let innermost = Innermost {
                    router: router.clone(),
                    listener: listener.clone(),
                };
                let site = Site {
                    channels: &channels,
                    metrics: &self.metrics,
                    buffer_limit: listener.buffer_limit,
                    limits: listener.limits,
                };
                let between = |inner| {
                    let router = router.clone();
                    Stack::of(Rerouted { router, inner })
                };
                let stack =
                    plan.filters
                        .stack(&listener.filters, innermost.stack(), between, &site);
                let edge = Edge {
                    plan: listener.clone(),
                    router: router.clone(),
                    stack,
                    log: shared.log.clone(),
                    notes: Notes::of(listener),
                    tracing: assignment.tracing.clone(),
                    live: assignment.live.clone(),
                    gate: Gate {
                        requests: (listener.limits.max_requests)
                            .map(|limit| (limit, shared.requests.clone())),
                        overload: overload.clone(),
                    },
                    stats: ListenerStats::new(&listener.name, &self.metrics),
                    tcp_stats: listener
                        .passes_on()
                        .then(|| TcpStats::new(&listener.name, &self.metrics)),
                    everywhere: assignment.everywhere.clone(),
                    max_everywhere: plan.max_connections,
                };
                (shared, Arc::new(edge))
            })
            .collect();
        self.prepared = Some(Prepared {
            plan,
            clients,
            edges,
            sockets,
            overload,
        });
        Ok(())
    }

    fn commit(&mut self) {
        let Some(mut prepared) = self.prepared.take() else {
            return;
        };
        for helper in self.helpers.drain(..) {
            helper.abort();
        }
        let mut before = std::mem::take(&mut self.listening);
        for (shared, edge) in prepared.edges {
            let address = shared.address;
            if let Some(listening) = before.remove(&address) {
                listening.edge.store(edge);
                self.listening.insert(address, listening);
            } else if let Some(sockets) = prepared.sockets.remove(&address) {
                let exhausted = edge.stats.exhausted.clone();
                let listening = Arc::new(Listening {
                    edge: ArcSwap::new(edge),
                    connections: shared.connections,
                    drain: Drain::new(),
                });
                self.listening.insert(address, listening.clone());
                for socket in sockets {
                    let socket = socket.counting(exhausted.clone());
                    let tracker = self.connections.clone();
                    let accepting = self.accepting.clone();
                    self.connections
                        .spawn(accept(socket, listening.clone(), tracker, accepting));
                }
            }
        }
        let limit = prepared.plan.drain_timeout;
        for removed in before.into_values() {
            tokio::spawn(end(removed, limit));
        }
        self.helpers = helpers(&prepared.plan, &prepared.clients, self.index == 0);
        self.clients = prepared.clients;
        if let Some(overload) = prepared.overload.filter(|_| self.index == 0) {
            let watch = tokio::spawn(async move { overload.watch().await });
            self.helpers.push(watch.abort_handle());
        }
    }

    /// The clients of all clusters; those of clusters that stay are the ones that there are.
    fn clients(&self, plan: &Plan) -> Vec<Clients> {
        let each = plan.clusters.iter().map(|cluster| {
            let mut known = self.clients.iter();
            let known = known.find(|clients| Arc::ptr_eq(&clients.cluster.plan, cluster));
            known
                .cloned()
                .unwrap_or_else(|| Clients::new(cluster, &self.metrics))
        });
        each.collect()
    }

    /// Clients are told to go; after `drain_min` nobody new comes in; when they had time for a
    /// last request, what has none ends; after `drain_timeout`, everything.
    async fn drain(self, plan: &Plan) {
        let queue = self.queue.get().copied().unwrap_or(Queue::Served);
        let open = match queue {
            Queue::Served => plan.drain_min,
            // Somebody else listens already.
            Queue::HandedOver => Duration::ZERO,
        };
        let stages = async {
            let drains = || self.listening.values().map(|listening| &listening.drain);
            drains().for_each(|drain| drain.leave(open));
            tokio::time::sleep(open).await;
            drains().for_each(|drain| drain.close(queue));
            let last = plan.drain_min.max(LAST_REQUESTS).saturating_sub(open);
            tokio::time::sleep(last).await;
            drains().for_each(Drain::end);
            std::future::pending::<()>().await;
        };
        let limit = plan.drain_timeout;
        self.connections.close();
        tokio::select! {
            () = self.connections.wait() => {}
            () = stages => {}
            () = self.shutdown.recv_immediate() => {}
            () = tokio::time::sleep(limit) => {
                tracing::warn!(
                    connections = self.connections.len(),
                    "requests and tunnels still in flight after {limit:?} are dropped"
                );
            }
        }
    }
}

/// The sockets that one of `count` workers accepts on. Each socket has a worker, and each worker a
/// socket: where there are fewer, workers share them.
fn share(sockets: &[Bound], index: usize, count: usize) -> impl Iterator<Item = &Bound> {
    let own = sockets.iter().skip(index).step_by(count.max(1));
    let shared = match index < sockets.len() {
        true => None,
        false => sockets.get(index.checked_rem(sockets.len()).unwrap_or(0)),
    };
    own.chain(shared)
}

/// What one worker has to speak to a cluster with.
#[derive(Clone)]
struct Clients {
    /// For requests that are passed on.
    cluster: Arc<Cluster>,
    /// For policies that call it over gRPC; only where it speaks HTTP/2.
    channel: Option<Channel>,
    /// For policies that call it over plain HTTP.
    http: HttpClient,
}

impl Clients {
    fn new(plan: &Arc<ClusterPlan>, metrics: &Metrics) -> Self {
        let settings = plan.channel(metrics);
        let speaks_http2 = plan.protocol == Protocol::Http2;
        Self {
            cluster: Arc::new(Cluster::new(plan.clone(), metrics)),
            channel: speaks_http2.then(|| Channel::new(settings.clone())),
            http: HttpClient::new(settings, speaks_http2),
        }
    }
}

/// Clients for the policies. Only the channels that filters name connect before they are used;
/// routes may name others.
fn channels(plan: &Plan, clients: &[Clients]) -> Channels {
    let named: HashSet<String> = plan.filters.clusters().collect();
    let channels = clients.iter().filter_map(|clients| clients.channel.clone());
    let channels: Channels = channels
        .inspect(|channel| {
            if named.contains(channel.name()) {
                channel.warm_up();
            }
        })
        .collect();
    channels.with_http(clients.iter().map(|clients| clients.http.clone()))
}

fn helpers(plan: &Plan, clients: &[Clients], first: bool) -> Vec<AbortHandle> {
    let named: HashSet<String> = plan.filters.clusters().collect();
    let mut helpers = Vec::new();
    for clients in clients {
        let cluster = clients.cluster.clone();
        let every = cluster.plan.sweeps_every();
        let sweep = async move {
            loop {
                tokio::time::sleep(every).await;
                cluster.sweep();
            }
        };
        helpers.push(tokio::spawn(sweep).abort_handle());
        if let Some(channel) = clients.channel.clone()
            && named.contains(channel.name())
        {
            helpers.push(tokio::spawn(async move { channel.follow().await }).abort_handle());
        }
    }
    if first {
        for tls in plan.listeners.iter().filter_map(|l| l.tls.clone()) {
            helpers.push(tokio::spawn(async move { tls.follow_files().await }).abort_handle());
        }
        for tls in plan.clusters.iter().filter_map(|c| c.tls.clone()) {
            helpers.push(tokio::spawn(async move { tls.follow_files().await }).abort_handle());
        }
    }
    helpers
}

/// Ends a listener that a reload removed: requests have a moment to come, and what is in flight has
/// until `limit` to end.
async fn end(removed: Arc<Listening>, limit: Duration) {
    let last = LAST_REQUESTS.min(limit / 2);
    removed.drain.leave(Duration::ZERO);
    removed.drain.close(Queue::Served);
    tokio::time::sleep(last).await;
    removed.drain.end();
    // Its connections alone keep it from here.
    let left = Arc::downgrade(&removed);
    drop(removed);
    tokio::time::sleep(limit.saturating_sub(last)).await;
    if let Some(left) = left.upgrade() {
        let listener = left.edge.load().plan.name.clone();
        tracing::warn!(%listener, "connections of a removed listener after {limit:?} are dropped");
        left.drain.cut();
    }
}

/// Waits until connections are to be accepted; false when they never are, and those that wait are
/// somebody else's.
async fn begins(mut accepting: watch::Receiver<bool>, drain: &Drain) -> bool {
    let accepting = async { accepting.wait_for(|yes| *yes).await.is_ok() };
    tokio::select! {
        biased;
        accepting = accepting => accepting,
        _ = drain.closed() => false,
    }
}

async fn accept(
    socket: Listener,
    listening: Arc<Listening>,
    connections: TaskTracker,
    accepting: watch::Receiver<bool>,
) {
    if !begins(accepting, &listening.drain).await {
        return;
    }
    let serve = |accepted| {
        let serving = connection::serve(listening.clone(), accepted, connections.token());
        tokio::spawn(serving);
    };
    let mut closed = pin!(listening.drain.closed());
    let queue = loop {
        tokio::select! {
            accepted = socket.accept() => serve(accepted),
            queue = &mut closed => break queue,
        }
    };
    if queue == Queue::Served {
        socket.close().into_iter().for_each(serve);
    }
}
