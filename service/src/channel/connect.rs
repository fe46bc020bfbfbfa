//! Making one HTTP/2 connection.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::{Ping, PingPong, client::SendRequest};
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, task::JoinError};
use tokio_util::task::AbortOnDropHandle;

use super::{ChannelSettings, OutageLog, Target};
use crate::{
    Io,
    cluster::{
        Endpoint, Guards, Opened,
        breakers::{Permit, Resource},
        jittered,
    },
    gather::gather,
    tls::ClientTls,
};

/// What one call may have unread. Small beside [`CONNECTION_WINDOW`], so that calls whose reader
/// has stopped do not stop the others on the connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 64 << 20;
/// Large enough for a 64 KiB body chunk with its frame in one DATA frame.
const MAX_FRAME_SIZE: u32 = 128 << 10;
const MAX_HEADER_LIST_SIZE: u32 = 64 << 10;
/// Cancelled calls that are remembered for a second, to tell their late answers from nonsense.
const REMEMBERED_RESETS: usize = 1024;
/// A TCP peer that acknowledges nothing for this long is gone.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);
/// Silence after which the kernel asks whether the TCP peer is still there, and how it insists.
const TCP_KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(15))
    .with_interval(Duration::from_secs(5))
    .with_retries(3);

/// How to reach one endpoint.
pub(super) struct Connector {
    endpoint: Arc<Endpoint>,
    tls: Option<ClientTls>,
    timeout: Duration,
    max_age: Option<Duration>,
    keepalive: Option<Duration>,
    cluster: Arc<str>,
    guards: Option<Guards>,
    pub(super) outage_log: OutageLog,
}

/// A new connection on which the peer has spoken HTTP/2.
pub(super) struct Connected {
    pub(super) send: SendRequest<Bytes>,
    pub(super) ping: PingPong,
    pub(super) driver: Driver,
}

/// The task that moves a connection's bytes; ends with the connection.
pub(super) type Driver = AbortOnDropHandle<Result<(), h2::Error>>;

impl Connector {
    pub(super) fn new(endpoint: Arc<Endpoint>, settings: &ChannelSettings) -> Self {
        Self {
            endpoint,
            tls: settings.tls.clone(),
            timeout: settings.connect_timeout,
            max_age: settings.max_connection_duration,
            keepalive: settings.keepalive,
            cluster: settings.name.clone(),
            guards: settings.guards.clone(),
            outage_log: settings.outage_log,
        }
    }

    /// Connects within the timeout; the error names the endpoint and the cluster.
    pub(super) async fn connect(&self) -> Result<Connected, Arc<str>> {
        let attempt = async {
            match tokio::time::timeout(self.timeout, self.open()).await {
                Ok(outcome) => outcome.map_err(|error| error.to_string()),
                Err(_) => Err(format!("not connected within {:?}", self.timeout)),
            }
        };
        let outcome = self.endpoint.counted(attempt).await;
        outcome.map_err(|error| format!("cannot reach {self}: {error}").into())
    }

    /// The place of a connection among those of the cluster. Each endpoint may have one in any
    /// case, so that one more than the limit has none.
    pub(super) fn room(&self) -> Option<Permit> {
        let breakers = &self.guards.as_ref()?.breakers;
        match breakers.limit() {
            true => breakers.try_acquire(Resource::Connections),
            false => None,
        }
    }

    /// Waits until a connection that begins now is as old as it may get.
    pub(super) async fn aged(&self) {
        passed(self.max_age).await;
    }

    /// Waits until it is to be asked for a sign of life.
    pub(super) async fn unheard(&self) {
        passed(self.keepalive).await;
    }

    async fn open(&self) -> io::Result<Connected> {
        let opened = self.endpoint.open().await?;
        if let Opened::Tcp(io) = &opened {
            notice_vanished_peers(io)?;
            send_unpaced_on_this_host(io);
        }
        let host = self.endpoint.hostname();
        handshake(opened.secured(self.tls.as_ref(), host).await?).await
    }
}

async fn passed(about: Option<Duration>) {
    match about {
        Some(about) => tokio::time::sleep(jittered(about)).await,
        None => std::future::pending().await,
    }
}

impl std::fmt::Display for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.endpoint.target() {
            Target::Address(_) => write!(f, "{} of cluster `{}`", self.endpoint, self.cluster),
            Target::Embedded(_) => write!(f, "the embedded service `{}`", self.cluster),
        }
    }
}

/// Between two processes of one host no link can be congested, while an algorithm that paces what
/// is sent, as BBR does, spends timers and small segments on it.
#[cfg(target_os = "linux")]
fn send_unpaced_on_this_host(io: &TcpStream) {
    if io.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()) {
        // Where it may not be chosen, all goes on as the host has it.
        let _ = SockRef::from(io).set_tcp_congestion(b"reno");
    }
}

#[cfg(not(target_os = "linux"))]
fn send_unpaced_on_this_host(_: &TcpStream) {}

pub(crate) fn notice_vanished_peers(io: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(io);
    socket.set_tcp_keepalive(&TCP_KEEPALIVE)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    Ok(())
}

/// HTTP/2 up to the answer to a first PING. That answer proves that the peer speaks HTTP/2, and
/// its settings (how many calls, how large) have arrived before it.
async fn handshake(io: Box<dyn Io>) -> io::Result<Connected> {
    let (io, sender) = gather(io);
    let (send, mut connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_SIZE)
        .max_header_list_size(MAX_HEADER_LIST_SIZE)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        // Late answers to forgotten calls count as errors of the peer; any number of timeouts
        // must not cost the connection.
        .max_local_error_reset_streams(None)
        .enable_push(false)
        .handshake::<_, Bytes>(io)
        .await
        .map_err(io::Error::other)?;
    let ping = connection.ping_pong();
    let mut driver = AbortOnDropHandle::new(tokio::spawn(sender.run(connection)));
    let mut ping = ping.ok_or_else(|| io::Error::other("no PING on a new connection"))?;
    let answered = tokio::select! {
        answered = ping.ping(Ping::opaque()) => answered.is_ok(),
        ended = &mut driver => return Err(before_ready(ended)),
    };
    match answered {
        true => Ok(Connected { send, ping, driver }),
        // The connection has ended; its driver knows why.
        false => Err(before_ready(driver.await)),
    }
}

fn before_ready(ended: Result<Result<(), h2::Error>, JoinError>) -> io::Error {
    match ended {
        Ok(Err(error)) => io::Error::other(format!("no HTTP/2: {error}")),
        Ok(Ok(())) | Err(_) => io::Error::other("closed before HTTP/2 was established"),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_paced_between_processes_of_one_host() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let io = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();

        send_unpaced_on_this_host(&io);

        let algorithm = SockRef::from(&io).tcp_congestion().unwrap();
        assert!(algorithm.starts_with(b"reno"), "{algorithm:?}");
    }
}
