//! One server: its connection, the queue before it, and the task that joins the two.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use attache_service::Address;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{TcpStream, UnixStream},
    sync::{mpsc, oneshot, watch},
};

use super::{
    Context, MemcachedSettings,
    protocol::{self, Answer, Command},
};
use crate::store::StoreError;

/// Commands that wait for the connection at once; more fail at once.
const QUEUE: usize = 4096;

/// Commands that leave in one write.
const BATCH: usize = 512;

/// A write that is not answered for this many operations' time shows a stalled connection.
const STALLED: u32 = 20;

/// Waits between attempts to connect grow from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// The way to one server; it ends when dropped.
pub(super) struct Link {
    queue: mpsc::Sender<Job>,
    state: Arc<State>,
    tried: watch::Receiver<bool>,
}

struct State {
    address: Address,
    connected: AtomicBool,
    /// Why there is no connection.
    reason: ArcSwapOption<String>,
}

struct Job {
    command: Command,
    reply: oneshot::Sender<Answer>,
}

struct Driver {
    jobs: mpsc::Receiver<Job>,
    state: Arc<State>,
    context: Arc<Context>,
    trying: watch::Sender<bool>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Link {
    pub(super) fn start(address: Address, context: &Arc<Context>) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let (trying, tried) = watch::channel(false);
        let state = Arc::new(State {
            address,
            connected: AtomicBool::new(false),
            reason: ArcSwapOption::empty(),
        });
        let driver = Driver {
            jobs,
            state: state.clone(),
            context: context.clone(),
            trying,
        };
        tokio::spawn(driver.run());
        Self {
            queue,
            state,
            tried,
        }
    }

    /// Waits until connecting was tried once.
    pub(super) async fn tried(&self) {
        // An error says that the driver has ended.
        let _ = self.tried.clone().wait_for(|tried| *tried).await;
    }

    pub(super) fn is_connected(&self) -> bool {
        self.state.connected.load(Ordering::Acquire)
    }

    pub(super) async fn ask(&self, command: Command) -> Result<Answer, StoreError> {
        if !self.is_connected() {
            return Err(self.not_connected());
        }
        let (reply, answer) = oneshot::channel();
        match self.queue.try_send(Job { command, reply }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Err(self.failed(format!("{QUEUE} commands are waiting")));
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(self.not_connected()),
        }
        match answer.await {
            Ok(Answer::Error(said)) => Err(self.failed(said)),
            Ok(answer) => Ok(answer),
            Err(_) => Err(self.not_connected()),
        }
    }

    pub(super) fn failed(&self, reason: String) -> StoreError {
        StoreError::Failed {
            store: "memcached",
            address: self.state.address.to_string(),
            reason,
        }
    }

    fn not_connected(&self) -> StoreError {
        let reason = self.state.reason.load_full();
        StoreError::NotConnected {
            store: "memcached",
            address: self.state.address.to_string(),
            reason: reason.map_or_else(String::new, |reason| (*reason).clone()),
        }
    }
}

impl Driver {
    async fn run(mut self) {
        let (mut wait, longest) = RETRY;
        loop {
            let (address, context) = (self.state.address.clone(), self.context.clone());
            let Some(opened) = self.refuse_during(open(address, context)).await else {
                return;
            };
            let reason = match opened {
                Ok(stream) => {
                    wait = RETRY.0;
                    tracing::info!(address = %self.state.address, "connected to memcached");
                    self.state.connected.store(true, Ordering::Release);
                    self.context.connected.inc();
                    self.trying.send_replace(true);
                    let ended = self.pump(stream).await;
                    self.state.connected.store(false, Ordering::Release);
                    self.context.connected.dec();
                    match ended {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            self.note(reason.to_string());
            self.trying.send_replace(true);
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

    /// Keeps the reason for callers; logs it when it is a new one.
    fn note(&self, reason: String) {
        if self.state.reason.load().as_deref() != Some(&reason) {
            tracing::warn!(address = %self.state.address, %reason, "no connection to memcached");
            self.state.reason.store(Some(Arc::new(reason)));
        }
    }

    /// Turns commands away until `step` is done; `None` when nobody can send any more.
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

    /// Moves commands to the connection and answers back, until nobody needs it.
    async fn pump(&mut self, stream: Box<dyn Stream>) -> io::Result<()> {
        let stalled = self.context.settings.timeout * STALLED;
        let mut stream = BufReader::new(stream);
        let mut jobs = Vec::new();
        let mut buffer = Vec::new();
        while self.jobs.recv_many(&mut jobs, BATCH).await > 0 {
            // Who has given up must not be charged.
            jobs.retain(|job| !job.reply.is_closed());
            buffer.clear();
            for job in &jobs {
                job.command.encode(&mut buffer);
            }
            let exchange = async {
                stream.write_all(&buffer).await?;
                stream.flush().await?;
                for job in jobs.drain(..) {
                    let answer = protocol::read(&mut stream).await?;
                    // Who has given up does not want it.
                    let _ = job.reply.send(answer);
                }
                Ok::<_, io::Error>(())
            };
            match tokio::time::timeout(stalled, exchange).await {
                Ok(done) => done?,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
        Ok(())
    }
}

async fn open(address: Address, context: Arc<Context>) -> io::Result<Box<dyn Stream>> {
    let within = context.settings.connect_timeout;
    tokio::time::timeout(within, dial(&address, &context.settings))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn dial(address: &Address, settings: &MemcachedSettings) -> io::Result<Box<dyn Stream>> {
    let (host, port) = match address {
        Address::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
        Address::Tcp { host, port } => (host.as_str(), *port),
    };
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    match &settings.tls {
        None => Ok(Box::new(stream)),
        Some(tls) => Ok(Box::new(tls.connect(host, stream).await?)),
    }
}
