//! The connections of one worker to one endpoint: kept HTTP/1.1 ones, last used first, and the one
//! HTTP/2.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, Ordering},
};

use attache_filter::context::UpstreamConnection;
use attache_service::cluster::{Endpoint, Io, Room, Rooms, jittered};
use hyper::client::conn::{http1, http2};
use tokio::time::Instant;

use super::{UploadBody, UpstreamError, connect};
use crate::plan::{ClusterPlan, Protocol};

/// Kept connections per endpoint and worker; more are closed when their response ends.
const MAX_KEPT: usize = 1024;

/// The worker's clock calls [`Pool::sweep`] this many times per idle timeout.
pub(crate) const SWEEPS_PER_IDLE_TIMEOUT: u32 = 4;

pub(super) type Http1 = Connection<http1::SendRequest<UploadBody>>;
pub(super) type Http2 = http2::SendRequest<UploadBody>;

/// The connections to one endpoint in one worker.
pub(crate) struct Pool {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) cluster: Arc<ClusterPlan>,
    kept: Mutex<Vec<Kept>>,
    sweeps: AtomicU32,
    http2: Mutex<Option<Connection<Http2>>>,
    /// Held while the HTTP/2 connection is made, so that it is made once.
    connecting: tokio::sync::Mutex<()>,
    /// Counts the connections, where they are limited.
    pub(super) open: Rooms,
}

/// A connection with how much longer it may be used.
pub(super) struct Connection<S> {
    pub(super) sender: S,
    life: Box<Life>,
}

struct Life {
    made: Made,
    ends: Option<Instant>,
    requests_left: Option<u32>,
    _room: Option<Room>,
}

/// When a connection was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    pub(crate) begun: Instant,
    /// The transport below TLS stood.
    pub(crate) connected: Instant,
    /// TLS stood, where there is TLS.
    pub(crate) secured: Option<Instant>,
    /// Requests could be sent on it; later where one waited until others were done with it.
    pub(crate) ready: Instant,
}

impl From<Made> for UpstreamConnection {
    fn from(made: Made) -> Self {
        Self {
            begun: made.begun.into_std(),
            connected: made.connected.into_std(),
            secured: made.secured.map(Instant::into_std),
        }
    }
}

struct Kept {
    connection: Http1,
    /// Count of sweeps when it was put here.
    since: u32,
}

impl<S> Connection<S> {
    pub(super) fn new(sender: S, made: Made, cluster: &ClusterPlan, room: Option<Room>) -> Self {
        let max_age = cluster.max_connection_duration;
        let max_requests = cluster.max_requests_per_connection;
        let life = Box::new(Life {
            made,
            ends: max_age.and_then(|age| made.ready.checked_add(jittered(age))),
            requests_left: max_requests.map(std::num::NonZero::get),
            _room: room,
        });
        Self { sender, life }
    }

    /// When it was made.
    pub(super) fn made(&self) -> Made {
        self.life.made
    }

    /// Counts a request that is sent on it.
    pub(super) fn count(&mut self) {
        if let Some(left) = &mut self.life.requests_left {
            *left = left.saturating_sub(1);
        }
    }

    /// A request has waited until it could be sent on it.
    pub(super) fn waited_for(&mut self) {
        self.life.made.ready = Instant::now();
    }

    /// It takes no further request.
    fn is_spent(&self) -> bool {
        self.life.requests_left == Some(0)
            || self.life.ends.is_some_and(|ends| ends <= Instant::now())
    }
}

impl Pool {
    pub(super) fn new(endpoint: Arc<Endpoint>, cluster: Arc<ClusterPlan>) -> Self {
        Self {
            endpoint,
            cluster,
            kept: Mutex::default(),
            sweeps: AtomicU32::new(0),
            http2: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            open: Rooms::default(),
        }
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.cluster.protocol
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kept connection that can take a request now.
    pub(super) fn take_kept(&self) -> Option<Http1> {
        let mut kept = self.kept();
        let mut not_yet = None;
        let found = loop {
            match kept.pop() {
                None => break None,
                Some(one) if one.connection.is_spent() => {}
                Some(one) if one.connection.sender.is_ready() => break Some(one.connection),
                Some(one) if one.connection.sender.is_closed() || not_yet.is_some() => {}
                // Its task has not seen the end of the last response yet.
                Some(one) => not_yet = Some(one),
            }
        };
        kept.extend(not_yet);
        found
    }

    fn keep(&self, connection: Http1) {
        if connection.sender.is_closed() || connection.is_spent() {
            return;
        }
        let since = self.sweeps.load(Ordering::Relaxed);
        let mut kept = self.kept();
        if kept.len() < MAX_KEPT {
            kept.push(Kept { connection, since });
        }
    }

    pub(super) fn sweep(&self) {
        let now = self.sweeps.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.kept().retain(|one| {
            !one.connection.sender.is_closed()
                && !one.connection.is_spent()
                && now.wrapping_sub(one.since) <= SWEEPS_PER_IDLE_TIMEOUT
        });
        self.http2_slot()
            .take_if(|connection| connection.is_spent());
    }

    /// A connection of one's own, without HTTP on it.
    pub(crate) async fn connect_plain(&self) -> Result<Box<dyn Io>, UpstreamError> {
        connect::plain(self).await
    }

    fn http2_slot(&self) -> MutexGuard<'_, Option<Connection<Http2>>> {
        self.http2.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those on a connection that is let go of go on.
    fn http2_now(&self) -> Option<Http2> {
        let mut slot = self.http2_slot();
        slot.take_if(|connection| connection.sender.is_closed() || connection.is_spent());
        let connection = slot.as_mut()?;
        connection.count();
        Some(connection.sender.clone())
    }

    /// When the connection was made that a request was answered on.
    pub(crate) fn made(&self, lease: &Lease) -> Option<Made> {
        match &lease.0 {
            Some(connection) => Some(connection.made()),
            None => self.http2_made(),
        }
    }

    /// The same of the HTTP/2 connection.
    pub(super) fn http2_made(&self) -> Option<Made> {
        Some(self.http2_slot().as_ref()?.life.made)
    }

    pub(super) fn discard_http2(&self) {
        *self.http2_slot() = None;
    }

    /// The HTTP/2 connection, made when there is none.
    pub(super) async fn http2(&self) -> Result<Http2, UpstreamError> {
        if let Some(sender) = self.http2_now() {
            return Ok(sender);
        }
        let _pending = self.pending()?;
        let _making = self.connecting.lock().await;
        if let Some(sender) = self.http2_now() {
            return Ok(sender);
        }
        let mut connection = self.connect_http2().await?;
        let sender = connection.sender.clone();
        connection.count();
        *self.http2_slot() = Some(connection);
        Ok(sender)
    }
}

/// The right to an HTTP/1.1 connection while its response is read. Returned to the pool by
/// [`Lease::release`]; dropped otherwise, which closes the connection.
pub(crate) struct Lease(Option<Http1>);

impl Lease {
    pub(super) fn none() -> Self {
        Self(None)
    }

    pub(super) fn http1(connection: Http1) -> Self {
        Self(Some(connection))
    }

    /// Keeps the connection in `pool`, where it is from, for the next request.
    pub(crate) fn release(&mut self, pool: &Pool) {
        if let Some(connection) = self.0.take() {
            pool.keep(connection);
        }
    }
}
