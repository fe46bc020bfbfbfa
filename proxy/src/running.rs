//! Starting, reloading and stopping the proxy.

use std::{
    io,
    num::NonZero,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, channel},
    },
};

use arc_swap::ArcSwap;
use attache_service::{
    Address, Metrics, Shutdown,
    listen::{ListenError, Listener},
    metrics::Counter,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    access_log::{AccessLog, Sink},
    plan::{ListenerPlan, Plan},
    worker::{self, Assignment, Command, Setup, SharedListener},
};

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
    #[error("access log of listener `{listener}`{}: {source}", at(.sink))]
    AccessLog {
        /// The listener's name.
        listener: String,
        /// Where the log should go.
        sink: Sink,
        /// What the system said.
        source: io::Error,
    },
    /// A worker's thread or runtime cannot be made.
    #[error("cannot start a worker: {0}")]
    Worker(#[from] io::Error),
    /// The workers have ended.
    #[error("the proxy has stopped")]
    Stopped,
}

fn at(sink: &Sink) -> String {
    match sink {
        Sink::Stdout => String::new(),
        Sink::File(path) => format!(" ({})", path.display()),
    }
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
        let plan = Arc::new(plan);
        let shutdown = Shutdown::new();
        let (assignment, _held) = assign(plan.clone(), &[], &metrics).await?;
        let workers = match plan.workers {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            count => count,
        };
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
            plan: ArcSwap::new(plan),
            listeners: Mutex::new(assignment.listeners.clone()),
            metrics,
            shutdown,
            workers: Vec::new(),
            reloading: tokio::sync::Mutex::new(()),
        };
        let mut answers = Vec::new();
        for index in 0..workers {
            let (commands, receiver) = mpsc::unbounded_channel();
            let (started, answer) = channel();
            let (ended, end) = oneshot::channel();
            worker::spawn(Setup {
                index,
                assignment: assignment.clone(),
                metrics: running.metrics.clone(),
                shutdown: running.shutdown.clone(),
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

struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    end: oneshot::Receiver<()>,
}

/// A proxy that runs. Dropping it stops it at once.
pub struct Running {
    plan: ArcSwap<Plan>,
    listeners: Mutex<Vec<SharedListener>>,
    metrics: Metrics,
    shutdown: Shutdown,
    workers: Vec<Handle>,
    reloading: tokio::sync::Mutex<()>,
    reloads: Counter,
    failed_reloads: Counter,
}

impl Running {
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

    /// Replaces the plan. Requests in flight finish on the old one; connections stay, unless
    /// their listener is gone: then they are drained.
    ///
    /// # Errors
    /// The old plan goes on running.
    pub async fn reload(&self, plan: Plan) -> Result<(), StartError> {
        let _one_at_a_time = self.reloading.lock().await;
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
        let (assignment, _held) = assign(plan.clone(), &before, &self.metrics).await?;
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
        self.plan.store(plan);
        Ok(())
    }

    /// The handle that stops the workers: trigger it to drain, or to drop what runs.
    pub fn stopper(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Stops accepting, lets requests in flight finish within the plan's `drain_timeout`, and
    /// returns when all workers have ended.
    pub async fn shutdown(mut self) {
        self.shutdown.trigger();
        for worker in self.workers.drain(..) {
            let _ = worker.end.await;
        }
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, Vec<SharedListener>> {
        self.listeners
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

/// Decides addresses, and opens what all workers share. The sockets hold ports that the system
/// chose until the workers have them.
///
/// `before` are the listeners that run now, each as it was planned. A port that the system chose
/// stays with the listener's name.
async fn assign(
    plan: Arc<Plan>,
    before: &[(Arc<ListenerPlan>, SharedListener)],
    metrics: &Metrics,
) -> Result<(Assignment, Vec<Listener>), StartError> {
    let mut listeners: Vec<SharedListener> = Vec::new();
    let mut held = Vec::new();
    for (index, listener) in plan.listeners.iter().enumerate() {
        let clash = plan
            .listeners
            .iter()
            .take(index)
            .find(|other| other.address == listener.address && !is_any_port(&other.address));
        if let Some(other) = clash {
            return Err(StartError::SameAddress(
                other.name.to_string(),
                listener.name.to_string(),
            ));
        }
        let log = access_log(listener, metrics)?;
        let known = before.iter().find(|(planned, old)| {
            let chosen = is_any_port(&listener.address)
                && planned.address == listener.address
                && planned.name == listener.name;
            chosen || old.address == listener.address
        });
        listeners.push(match known {
            Some((_, old)) => SharedListener { log, ..old.clone() },
            None => SharedListener {
                address: probe(listener, &mut held).await?,
                connections: Arc::default(),
                log,
            },
        });
    }
    Ok((Assignment { plan, listeners }, held))
}

fn is_any_port(address: &Address) -> bool {
    matches!(address, Address::Tcp { port: 0, .. })
}

/// Makes sure that nobody else has the address, which the workers' shared sockets would not
/// notice, and finds out the port.
async fn probe(listener: &ListenerPlan, held: &mut Vec<Listener>) -> Result<Address, StartError> {
    let any_port = is_any_port(&listener.address);
    let bound = match any_port {
        true => Listener::bind_shared(&listener.address).await,
        false => Listener::bind(&listener.address).await,
    };
    let bound = bound.map_err(|source| StartError::Listen {
        listener: listener.name.to_string(),
        source,
    })?;
    let address = bound.address().clone();
    if any_port {
        // The system may give a port that nobody has to somebody else.
        held.push(bound);
    }
    Ok(address)
}

fn access_log(listener: &ListenerPlan, metrics: &Metrics) -> Result<Option<AccessLog>, StartError> {
    let Some(plan) = &listener.access_log else {
        return Ok(None);
    };
    let dropped = metrics.counter(
        "attache_access_log_dropped",
        "Access log lines lost because the writer was behind.",
        &[("listener", &listener.name)],
    );
    AccessLog::start(plan, dropped)
        .map(Some)
        .map_err(|source| StartError::AccessLog {
            listener: listener.name.to_string(),
            sink: plan.sink.clone(),
            source,
        })
}
