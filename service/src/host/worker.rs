//! The threads of a host.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpStream, UnixStream},
    sync::mpsc,
};
use tokio_util::task::TaskTracker;

use super::connection::Server;
use crate::{listen::Socket, metrics::Gauge};

/// One thread with its own current-thread runtime, fed with accepted connections.
pub(super) struct Worker {
    sockets: mpsc::UnboundedSender<Handed>,
    open: Arc<AtomicUsize>,
    /// The same for all workers together, for people.
    all_open: Gauge,
}

/// A socket on its way to another runtime, and its place in the count of open connections.
struct Handed {
    socket: Detached,
    open: Open,
}

enum Detached {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

/// Counts one connection for as long as it lives.
struct Open {
    worker: Arc<AtomicUsize>,
    all: Gauge,
}

impl Open {
    fn new(worker: Arc<AtomicUsize>, all: Gauge) -> Self {
        worker.fetch_add(1, Ordering::Relaxed);
        all.inc();
        Self { worker, all }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.fetch_sub(1, Ordering::Relaxed);
        self.all.dec();
    }
}

impl Worker {
    /// Starts the thread. It ends when the `Worker` is dropped and its connections have
    /// finished, at most `drain_timeout` after the drain began; `alive` is dropped then.
    pub(super) fn start(
        index: usize,
        server: Server,
        drain_timeout: Duration,
        all_open: Gauge,
        alive: mpsc::Sender<()>,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (sockets, handed) = mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name(format!("host-{index}"))
            .spawn(move || {
                runtime.block_on(run(server, handed, drain_timeout));
                // A handler that blocks a pool thread must not hold up the exit.
                runtime.shutdown_background();
                drop(alive);
            })?;
        Ok(Self {
            sockets,
            open: Arc::default(),
            all_open,
        })
    }

    /// Connections that this worker has now.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Hands a connection over. The queue is bounded by the host's cap on connections.
    pub(super) fn hand(&self, socket: Socket) -> io::Result<()> {
        let open = Open::new(self.open.clone(), self.all_open.clone());
        let socket = match socket {
            Socket::Tcp(stream) => Detached::Tcp(stream.into_std()?),
            Socket::Unix(stream) => Detached::Unix(stream.into_std()?),
        };
        self.sockets
            .send(Handed { socket, open })
            .map_err(|_| io::Error::other("the worker has ended"))
    }
}

async fn run(
    mut server: Server,
    mut handed: mpsc::UnboundedReceiver<Handed>,
    drain_timeout: Duration,
) {
    let stop = std::mem::take(&mut server.drain);
    // Every connection looks at its drain whenever it is polled: one of the thread's own keeps
    // workers off each other's locks.
    let drain = server.drain.clone();
    let connections = TaskTracker::new();
    while let Some(Handed { socket, open }) = handed.recv().await {
        let attached = match socket {
            Detached::Tcp(stream) => TcpStream::from_std(stream).map(Socket::Tcp),
            Detached::Unix(stream) => UnixStream::from_std(stream).map(Socket::Unix),
        };
        match attached {
            Ok(socket) => {
                let serving = server.clone().serve_socket(socket);
                connections.spawn(async move {
                    serving.await;
                    drop(open);
                });
            }
            Err(error) => tracing::warn!(%error, "cannot take over a connection"),
        }
    }
    connections.close();
    stop.recv().await;
    drain.trigger();
    tokio::select! {
        () = connections.wait() => {}
        () = stop.recv_immediate() => {}
        () = tokio::time::sleep(drain_timeout) => {
            tracing::warn!(open = connections.len(), "calls cut off: not finished within {drain_timeout:?}");
        }
    }
}
