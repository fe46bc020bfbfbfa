//! One worker: a thread with its own runtime, listening sockets, upstream pools and channels.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, atomic::AtomicUsize, mpsc::Sender},
    time::Duration,
};

use arc_swap::ArcSwap;
use attache_filter::Channels;
use attache_service::{
    Address, Channel, ChannelSettings, HttpClient, Metrics, Shutdown,
    channel::Target,
    listen::{ListenError, Listener},
};
use tokio::{runtime::Builder, sync::mpsc, task::AbortHandle};
use tokio_util::task::TaskTracker;

use crate::{
    access_log::AccessLog,
    connection::{self, Listening},
    edge::Edge,
    filters::{Site, Stack},
    plan::{ClusterPlan, Plan, Protocol},
    router::{Innermost, Rerouted, Router},
    stats::ListenerStats,
    upstream::{Cluster, SWEEPS_PER_IDLE_TIMEOUT},
};

/// What all workers share of one listener.
#[derive(Clone)]
pub(crate) struct SharedListener {
    /// Where to listen, with the port that the system chose.
    pub(crate) address: Address,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) log: Option<AccessLog>,
}

/// A plan with what all workers share; listeners in the plan's order.
#[derive(Clone)]
pub(crate) struct Assignment {
    pub(crate) plan: Arc<Plan>,
    pub(crate) listeners: Vec<SharedListener>,
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
    pub(crate) assignment: Assignment,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    pub(crate) started: Sender<Result<(), ListenError>>,
    pub(crate) ended: tokio::sync::oneshot::Sender<()>,
}

/// Starts the thread.
pub(crate) fn spawn(setup: Setup) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name(format!("worker-{}", setup.index))
        .spawn(move || {
            runtime.block_on(run(setup));
            runtime.shutdown_background();
        })?;
    Ok(())
}

struct Worker {
    index: usize,
    metrics: Metrics,
    shutdown: Shutdown,
    connections: TaskTracker,
    /// Listeners that accept now, by address.
    listening: HashMap<Address, Arc<Listening>>,
    /// Tasks of the current plan: the pools' clock, certificate reload.
    helpers: Vec<AbortHandle>,
    prepared: Option<Prepared>,
}

/// All that a plan needs of this worker, nothing of it running yet.
struct Prepared {
    plan: Arc<Plan>,
    router: Arc<Router>,
    edges: Vec<(SharedListener, Arc<Edge>)>,
    sockets: HashMap<Address, Listener>,
}

async fn run(setup: Setup) {
    let mut worker = Worker {
        index: setup.index,
        metrics: setup.metrics,
        shutdown: setup.shutdown,
        connections: TaskTracker::new(),
        listening: HashMap::new(),
        helpers: Vec::new(),
        prepared: None,
    };
    let mut commands = setup.commands;
    let mut drain_timeout = setup.assignment.plan.drain_timeout;
    let prepared = worker.prepare(setup.assignment).await;
    let failed = prepared.is_err();
    if !failed {
        worker.commit();
    }
    // The starter waits for this; when it is gone, the shutdown handle tells.
    let _ = setup.started.send(prepared);
    if failed {
        return;
    }
    loop {
        let command = tokio::select! {
            biased;
            () = worker.shutdown.recv() => break,
            command = commands.recv() => command,
        };
        match command {
            Some(Command::Prepare(assignment, answer)) => {
                let _ = answer.send(worker.prepare(assignment).await);
            }
            Some(Command::Commit(answer)) => {
                if let Some(prepared) = &worker.prepared {
                    drain_timeout = prepared.plan.drain_timeout;
                }
                worker.commit();
                let _ = answer.send(Ok(()));
            }
            Some(Command::Abort) => worker.prepared = None,
            None => break,
        }
    }
    worker.drain(drain_timeout).await;
    let _ = setup.ended.send(());
}

impl Worker {
    async fn prepare(&mut self, assignment: Assignment) -> Result<(), ListenError> {
        let mut sockets = HashMap::new();
        for listener in &assignment.listeners {
            let address = &listener.address;
            // One worker accepts for all on a Unix socket: its file can be bound only once.
            let mine = self.index == 0 || matches!(address, Address::Tcp { .. });
            if mine && !self.listening.contains_key(address) {
                sockets.insert(address.clone(), Listener::bind_shared(address).await?);
            }
        }
        let plan = assignment.plan;
        let channels = channels(&plan);
        let router = Arc::new(Router {
            routes: plan.routes.clone(),
            clusters: plan
                .clusters
                .iter()
                .map(|cluster| Cluster::new(cluster.clone(), &self.metrics))
                .collect(),
            notes_upstream: plan.listeners.iter().any(|l| l.access_log.is_some()),
        });
        let edges = plan.listeners.iter().zip(assignment.listeners);
        let edges = edges
            .map(|(listener, shared)| {
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
                    tunnels_in_body: plan.filters.see_tunnels(&listener.filters, &plan.routes),
                    stack,
                    log: shared.log.clone(),
                    stats: ListenerStats::new(&listener.name, &self.metrics),
                };
                (shared, Arc::new(edge))
            })
            .collect();
        self.prepared = Some(Prepared {
            plan,
            router,
            edges,
            sockets,
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
            } else if let Some(socket) = prepared.sockets.remove(&address) {
                let listening = Arc::new(Listening {
                    edge: ArcSwap::new(edge),
                    connections: shared.connections,
                    drain: Shutdown::new(),
                });
                self.listening.insert(address, listening.clone());
                tokio::spawn(accept(socket, listening, self.connections.clone()));
            }
        }
        for removed in before.into_values() {
            removed.drain.trigger();
        }
        self.helpers = helpers(&prepared.plan, &prepared.router, self.index == 0);
    }

    async fn drain(self, limit: Duration) {
        for listening in self.listening.values() {
            listening.drain.trigger();
        }
        self.connections.close();
        tokio::select! {
            () = self.connections.wait() => {}
            () = self.shutdown.recv_immediate() => {}
            () = tokio::time::sleep(limit) => {
                tracing::warn!(
                    connections = self.connections.len(),
                    "requests still in flight after {limit:?} are dropped"
                );
            }
        }
    }
}

/// Clients for the policies: gRPC channels to what speaks HTTP/2, HTTP clients to everything.
/// Only the channels that filters name connect before they are used; routes may name others.
fn channels(plan: &Plan) -> Channels {
    let named: HashSet<String> = plan.filters.clusters().collect();
    let settings = |cluster: &ClusterPlan| ChannelSettings {
        tls: cluster.tls.clone(),
        connect_timeout: cluster.connect_timeout,
        ..ChannelSettings::new(
            cluster.name.clone(),
            cluster.targets.iter().map(|t| t.0.clone()).collect(),
        )
    };
    let embedded = |cluster: &ClusterPlan| {
        let mut targets = cluster.targets.iter();
        targets.any(|target| matches!(target.0, Target::Embedded(_)))
    };
    let speaks_grpc =
        |cluster: &ClusterPlan| cluster.protocol == Protocol::Http2 || embedded(cluster);
    let clusters = plan.clusters.iter();
    let channels: Channels = clusters
        .clone()
        .filter(|cluster| speaks_grpc(cluster))
        .map(|cluster| {
            let channel = Channel::new(settings(cluster));
            if named.contains(&*cluster.name) {
                channel.warm_up();
            }
            channel
        })
        .collect();
    channels.with_http(
        clusters
            .map(|cluster| HttpClient::new(settings(cluster), cluster.protocol == Protocol::Http2)),
    )
}

fn helpers(plan: &Arc<Plan>, router: &Arc<Router>, first: bool) -> Vec<AbortHandle> {
    let mut helpers = Vec::new();
    for (index, cluster) in plan.clusters.iter().enumerate() {
        let every = (cluster.idle_timeout / SWEEPS_PER_IDLE_TIMEOUT).max(Duration::from_millis(10));
        let router = router.clone();
        let sweep = async move {
            loop {
                tokio::time::sleep(every).await;
                if let Some(cluster) = router.clusters.get(index) {
                    cluster.sweep();
                }
            }
        };
        helpers.push(tokio::spawn(sweep).abort_handle());
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

async fn accept(socket: Listener, listening: Arc<Listening>, connections: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = listening.drain.recv() => return,
        };
        connections.spawn(connection::serve(listening.clone(), accepted));
    }
}
