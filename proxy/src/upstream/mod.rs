//! Upstream clusters as one worker sees them: endpoints, their connections, and the exchange of
//! one request for one response.

mod body;
mod connect;
mod error;
mod pool;
mod replay;
mod wait;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use attache_service::Metrics;
use http::{Request, Response};
use hyper::body::Incoming;

pub(crate) use body::{Upload, UploadBody, UpstreamBody};
pub(crate) use error::UpstreamError;
pub(crate) use pool::{Endpoint, Lease, SWEEPS_PER_IDLE_TIMEOUT};
pub(crate) use replay::Replay;
pub(crate) use wait::{Limits, Waited, within};

use crate::{
    plan::{ClusterPlan, Protocol},
    stats::ClusterStats,
};

/// One cluster in one worker.
pub(crate) struct Cluster {
    pub(crate) plan: Arc<ClusterPlan>,
    endpoints: Vec<Arc<Endpoint>>,
    next: AtomicUsize,
    pub(crate) stats: ClusterStats,
}

impl Cluster {
    pub(crate) fn new(plan: Arc<ClusterPlan>, metrics: &Metrics) -> Self {
        let endpoints = plan
            .targets
            .iter()
            .map(|target| Arc::new(Endpoint::new(target.0.clone(), plan.clone())))
            .collect();
        Self {
            stats: ClusterStats::new(&plan.name, metrics),
            plan,
            endpoints,
            next: AtomicUsize::new(0),
        }
    }

    /// The endpoint whose turn it is.
    pub(crate) fn pick(&self) -> Option<&Arc<Endpoint>> {
        match self.endpoints.as_slice() {
            [] => None,
            [one] => Some(one),
            many => many.get(self.next.fetch_add(1, Ordering::Relaxed) % many.len()),
        }
    }

    /// Drops connections that were unused for long; called by the worker's clock.
    pub(crate) fn sweep(&self) {
        for endpoint in &self.endpoints {
            endpoint.sweep();
        }
    }
}

/// Sends `request`, in the form that the cluster's protocol wants, and waits for the head of the
/// response.
///
/// A kept connection may have died unseen. When it did so before any of the request was written,
/// the request is sent again, at last on a new connection.
///
/// The request is taken from its place, so that the future need not have room for it.
pub(crate) async fn exchange(
    endpoint: &Arc<Endpoint>,
    request: &mut Request<UploadBody>,
) -> Result<(Response<Incoming>, Lease), UpstreamError> {
    match endpoint.protocol() {
        Protocol::Http1 => http1(endpoint, request).await,
        // Boxed, so that the common case does not carry its size.
        Protocol::Http2 => Box::pin(http2(endpoint, std::mem::take(request))).await,
    }
}

async fn http1(
    endpoint: &Arc<Endpoint>,
    request: &mut Request<UploadBody>,
) -> Result<(Response<Incoming>, Lease), UpstreamError> {
    while let Some(mut sender) = endpoint.take_kept() {
        let sent = sender.try_send_request(std::mem::take(request)).await;
        match sent {
            Ok(response) => return Ok((response, Lease::http1(endpoint.clone(), sender))),
            Err(mut error) => match error.take_message() {
                Some(unsent) => *request = unsent,
                None => return Err(UpstreamError::Reset(error.into_error())),
            },
        }
    }
    // Boxed: connecting is rare, and its state with TLS is large.
    let mut sender = Box::pin(endpoint.connect_http1()).await?;
    match sender.try_send_request(std::mem::take(request)).await {
        Ok(response) => Ok((response, Lease::http1(endpoint.clone(), sender))),
        Err(error) => Err(UpstreamError::Reset(error.into_error())),
    }
}

async fn http2(
    endpoint: &Arc<Endpoint>,
    request: Request<UploadBody>,
) -> Result<(Response<Incoming>, Lease), UpstreamError> {
    let mut sender = endpoint.http2().await?;
    match sender.try_send_request(request).await {
        Ok(response) => Ok((response, Lease::none())),
        Err(mut error) => match error.take_message() {
            Some(unsent) => {
                endpoint.discard_http2();
                let mut sender = endpoint.http2().await?;
                sender
                    .send_request(unsent)
                    .await
                    .map(|response| (response, Lease::none()))
                    .map_err(UpstreamError::Reset)
            }
            None => Err(UpstreamError::Reset(error.into_error())),
        },
    }
}
