//! The connections to one endpoint: kept HTTP/1.1 ones, last used first, and the one HTTP/2.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use attache_service::{Address, channel::Target};
use hyper::client::conn::{http1, http2};

use super::{UploadBody, UpstreamError, connect};
use crate::{
    plan::{ClusterPlan, Protocol},
    tunnel::Io,
};

/// Kept connections per endpoint and worker; more are closed when their response ends.
const MAX_KEPT: usize = 1024;

/// The worker's clock calls [`Endpoint::sweep`] this many times per idle timeout.
pub(crate) const SWEEPS_PER_IDLE_TIMEOUT: u32 = 4;

type Http1 = http1::SendRequest<UploadBody>;
type Http2 = http2::SendRequest<UploadBody>;

/// One endpoint of a cluster in one worker.
pub(crate) struct Endpoint {
    pub(super) target: Target,
    /// The address, where it is known without asking for it.
    pub(crate) address: Option<SocketAddr>,
    pub(super) cluster: Arc<ClusterPlan>,
    kept: Mutex<Vec<Kept>>,
    sweeps: AtomicU32,
    http2: Mutex<Option<Http2>>,
    /// Held while the HTTP/2 connection is made, so that it is made once.
    connecting: tokio::sync::Mutex<()>,
}

struct Kept {
    sender: Http1,
    /// Count of sweeps when it was put here.
    since: u32,
}

impl Endpoint {
    pub(super) fn new(target: Target, cluster: Arc<ClusterPlan>) -> Self {
        let address = match &target {
            Target::Address(Address::Tcp { host, port }) => {
                let ip = host.parse().ok();
                ip.map(|ip| SocketAddr::new(ip, *port))
            }
            _ => None,
        };
        Self {
            target,
            address,
            cluster,
            kept: Mutex::default(),
            sweeps: AtomicU32::new(0),
            http2: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.cluster.protocol
    }

    /// The address, for logs.
    pub(crate) fn name(&self) -> String {
        crate::plan::Endpoint(self.target.clone()).to_string()
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
                Some(one) if one.sender.is_ready() => break Some(one.sender),
                Some(one) if one.sender.is_closed() || not_yet.is_some() => {}
                // Its task has not seen the end of the last response yet.
                Some(one) => not_yet = Some(one),
            }
        };
        kept.extend(not_yet);
        found
    }

    pub(super) fn keep(&self, sender: Http1) {
        if sender.is_closed() {
            return;
        }
        let since = self.sweeps.load(Ordering::Relaxed);
        let mut kept = self.kept();
        if kept.len() < MAX_KEPT {
            kept.push(Kept { sender, since });
        }
    }

    pub(super) fn sweep(&self) {
        let now = self.sweeps.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.kept().retain(|one| {
            !one.sender.is_closed() && now.wrapping_sub(one.since) <= SWEEPS_PER_IDLE_TIMEOUT
        });
    }

    pub(super) async fn connect_http1(&self) -> Result<Http1, UpstreamError> {
        connect::http1(self).await
    }

    /// A connection of one's own, without HTTP on it.
    pub(crate) async fn connect_plain(&self) -> Result<Box<dyn Io>, UpstreamError> {
        connect::plain(self).await
    }

    fn http2_now(&self) -> Option<Http2> {
        let current = self.http2.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().filter(|c| !c.is_closed()).cloned()
    }

    pub(super) fn discard_http2(&self) {
        *self.http2.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The HTTP/2 connection, made when there is none.
    pub(super) async fn http2(&self) -> Result<Http2, UpstreamError> {
        if let Some(sender) = self.http2_now() {
            return Ok(sender);
        }
        let _making = self.connecting.lock().await;
        if let Some(sender) = self.http2_now() {
            return Ok(sender);
        }
        let sender = connect::http2(self).await?;
        *self.http2.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender.clone());
        Ok(sender)
    }
}

/// The right to an HTTP/1.1 connection while its response is read. Returned to the pool by
/// [`Lease::release`]; dropped otherwise, which closes the connection.
pub(crate) struct Lease(Option<(Arc<Endpoint>, Http1)>);

impl Lease {
    pub(super) fn none() -> Self {
        Self(None)
    }

    pub(super) fn http1(endpoint: Arc<Endpoint>, sender: Http1) -> Self {
        Self(Some((endpoint, sender)))
    }

    /// Keeps the connection for the next request.
    pub(crate) fn release(&mut self) {
        if let Some((endpoint, sender)) = self.0.take() {
            endpoint.keep(sender);
        }
    }
}
