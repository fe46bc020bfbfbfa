//! Upstream clusters as one worker sees them: endpoints, their connections, and the exchange of
//! one request for one response.

mod body;
mod breakers;
mod connect;
mod destination;
mod error;
mod framing;
mod pool;
mod replay;
mod wait;

use std::{net::SocketAddr, sync::Arc};

use attache_filter::RequestContext;
use attache_service::{
    Metrics,
    cluster::{
        Balancer, Guards, InFlight, Local,
        breakers::{Overflow, Permit, Resource},
        outlier::Outcome,
    },
};
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use tokio::time::Instant;

use destination::Destinations;
use pool::Http1;

pub(crate) use body::{Upload, UploadBody, UpstreamBody};
pub(crate) use error::UpstreamError;
pub(crate) use pool::{Lease, Pool, SWEEPS_PER_IDLE_TIMEOUT};
pub(crate) use replay::Replay;
pub(crate) use wait::{Lifetime, LifetimeOf, Limits, Waited, within};

use crate::{
    plan::{ClusterPlan, Protocol},
    stats::ClusterStats,
};

/// An endpoint that a request has been given, with the worker's connections to it.
pub(crate) type Endpoint = InFlight<Pool>;

/// One cluster in one worker.
pub(crate) struct Cluster {
    pub(crate) plan: Arc<ClusterPlan>,
    balancer: Balancer<Pool>,
    pub(crate) guards: Guards,
    /// The endpoints that requests have named, where they do that themselves.
    destinations: Option<Destinations>,
    pub(crate) stats: ClusterStats,
}

impl Cluster {
    pub(crate) fn new(plan: Arc<ClusterPlan>, metrics: &Metrics) -> Self {
        let stats = ClusterStats::new(&plan.name, metrics);
        plan.endpoints.describe(metrics);
        let balancer = {
            let plan = plan.clone();
            let endpoints = plan.endpoints.clone();
            Balancer::new(endpoints, plan.balance, move |endpoint| {
                Pool::new(endpoint.clone(), plan.clone())
            })
        };
        let destinations = plan.destination.is_some();
        let destinations = destinations.then(|| Destinations::new(plan.clone(), metrics));
        Self {
            guards: plan.guards(metrics).clone(),
            stats,
            destinations,
            plan,
            balancer,
        }
    }

    /// What is to be known of a request for its endpoint to be picked; `key` is its hash.
    pub(crate) fn wanted(
        &self,
        key: Option<u64>,
        headers: &HeaderMap,
        context: &RequestContext,
    ) -> Wanted {
        match &self.destinations {
            None => Wanted::Balanced(key),
            Some(destinations) => Wanted::At(destinations.named(headers, context)),
        }
    }

    /// The endpoint for an attempt; the first is number 0.
    pub(crate) fn pick(&self, wanted: &Wanted, attempt: u32) -> Option<Endpoint> {
        let local = match (wanted, &self.destinations) {
            (Wanted::Balanced(key), _) => self.balancer.pick(*key)?,
            (Wanted::At(named), Some(destinations)) => destinations.pick(named, attempt)?,
            (Wanted::At(_), None) => return None,
        };
        Some(InFlight::new(local))
    }

    /// The same, if possible none of those `tried`, which is looked for so often.
    pub(crate) fn pick_other(
        &self,
        wanted: &Wanted,
        attempt: u32,
        tried: &[Arc<Local<Pool>>],
        searches: u32,
    ) -> Option<Endpoint> {
        let is_new = |local: &Arc<Local<Pool>>| !tried.iter().any(|t| Arc::ptr_eq(t, local));
        let picked = self.pick(wanted, attempt)?;
        let Wanted::Balanced(key) = wanted else {
            return Some(picked);
        };
        if is_new(picked.local()) {
            return Some(picked);
        }
        // Chosen by a hash, it is the same again and again.
        let searches = if key.is_some() { 0 } else { searches };
        let other = (0..searches)
            .filter_map(|_| self.balancer.pick(*key))
            .find(is_new);
        let other = other.or_else(|| self.balancer.usable().into_iter().find(is_new));
        Some(other.map_or(picked, InFlight::new))
    }

    /// When a stream that is sent here at `from` ends, where the route's and the listener's
    /// bound is `downstream`.
    pub(crate) fn lifetime(&self, downstream: Option<Lifetime>, from: Instant) -> Option<Lifetime> {
        let own = self.plan.max_stream_duration;
        let own = own.and_then(|bound| from.checked_add(bound));
        let own = own.map(|until| Lifetime {
            until,
            of: LifetimeOf::Upstream,
        });
        Lifetime::earlier(downstream, own)
    }

    /// Room for a request, where the cluster limits them.
    pub(crate) fn admit(&self) -> Result<Option<Permit>, Overflow> {
        self.guards.admit(Resource::Requests)
    }

    /// Tells all that judge the endpoint how a request went.
    pub(crate) fn note(&self, endpoint: &mut Endpoint, ended: &Ended) {
        note(endpoint, ended);
        let (endpoints, endpoint) = (&self.plan.endpoints, &endpoint.endpoint);
        if let Waited::Done(Ok((response, _))) = ended {
            let (status, headers) = (response.status(), response.headers());
            self.guards.answered(endpoints, endpoint, status, headers);
        } else if let Some(outcome) = outcome(ended) {
            self.guards.ended(endpoints, endpoint, outcome);
        }
    }

    /// The same of a connection for what is not requests.
    pub(crate) fn note_connect<IO>(
        &self,
        endpoint: &mut Endpoint,
        connected: &Result<IO, UpstreamError>,
    ) {
        let endpoints = &self.plan.endpoints;
        match connected {
            Ok(_) => {
                endpoint.answered();
                let endpoint = &endpoint.endpoint;
                self.guards.ended(endpoints, endpoint, Outcome::Connected);
            }
            Err(error) => {
                endpoint.failed();
                if let Some(outcome) = failure(error) {
                    self.guards.ended(endpoints, &endpoint.endpoint, outcome);
                }
            }
        }
    }

    /// Drops connections that were unused for long or are too old, and those to endpoints that
    /// are gone; called by the worker's clock.
    pub(crate) fn sweep(&self) {
        for local in self.balancer.all() {
            local.own.sweep();
        }
        if let Some(destinations) = &self.destinations {
            destinations.sweep();
        }
    }
}

/// How an exchange ended.
pub(crate) type Ended = Waited<Result<(Response<Incoming>, Lease), UpstreamError>>;

/// Tells the balancer how long an answer took, or that there is none.
pub(crate) fn note(endpoint: &mut Endpoint, ended: &Ended) {
    match ended {
        Waited::Done(Ok(_)) => endpoint.answered(),
        _ => endpoint.failed(),
    }
}

/// What an exchange without an answer says of its endpoint; `None` where it says nothing.
fn outcome(ended: &Ended) -> Option<Outcome> {
    match ended {
        Waited::Done(Err(error)) => failure(error),
        Waited::Timeout | Waited::AttemptTimeout | Waited::AttemptIdle => Some(Outcome::TimedOut),
        Waited::Done(Ok(_)) | Waited::Idle | Waited::Lifetime(_) => None,
    }
}

fn failure(error: &UpstreamError) -> Option<Outcome> {
    match error {
        // The client's fault, or ours.
        UpstreamError::Reset(error) if error.is_user() => None,
        UpstreamError::Overflow(_) => None,
        _ => Some(Outcome::Broken),
    }
}

/// What an endpoint is picked by.
pub(crate) enum Wanted {
    /// One of the cluster's, by this hash where there is one.
    Balanced(Option<u64>),
    /// The one at the first of these addresses; those after it are for further attempts.
    At(Vec<SocketAddr>),
}

/// Sends `request`, in the form that the cluster's protocol wants, and waits for the head of the
/// response.
///
/// A kept connection may have died unseen. When it did so before any of the request was written,
/// the request is sent again, at last on a new connection.
///
/// The request is taken from its place, so that the future need not have room for it.
pub(crate) async fn exchange(
    pool: &Pool,
    request: &mut Request<UploadBody>,
) -> Result<(Response<Incoming>, Lease), UpstreamError> {
    match pool.protocol() {
        Protocol::Http1 => http1(pool, request).await,
        // Boxed, so that the common case does not carry its size.
        Protocol::Http2 => Box::pin(http2(pool, std::mem::take(request))).await,
    }
}

async fn http1(
    pool: &Pool,
    request: &mut Request<UploadBody>,
) -> Result<(Response<Incoming>, Lease), UpstreamError> {
    while let Some(mut connection) = pool.take_kept() {
        connection.count();
        request.body().leaves(|| Some(connection.made()));
        let sender = &mut connection.sender;
        let sent = sender.try_send_request(std::mem::take(request)).await;
        match sent {
            Ok(response) => return read(response, connection),
            Err(mut error) => match error.take_message() {
                Some(unsent) => *request = unsent,
                None => return Err(UpstreamError::Reset(error.into_error())),
            },
        }
    }
    // Boxed: connecting is rare, and its state with TLS is large.
    let mut connection = Box::pin(pool.connect_http1()).await?;
    connection.count();
    request.body().leaves(|| Some(connection.made()));
    let sender = &mut connection.sender;
    match sender.try_send_request(std::mem::take(request)).await {
        Ok(response) => read(response, connection),
        Err(error) => Err(UpstreamError::Reset(error.into_error())),
    }
}

/// Takes a response whose end is certain; else the connection ends with it.
fn read(
    response: Response<Incoming>,
    connection: Http1,
) -> Result<(Response<Incoming>, Lease), UpstreamError> {
    framing::check(response.status(), response.headers())?;
    Ok((response, Lease::http1(connection)))
}

async fn http2(
    pool: &Pool,
    request: Request<UploadBody>,
) -> Result<(Response<Incoming>, Lease), UpstreamError> {
    let mut sender = pool.http2().await?;
    request.body().leaves(|| pool.http2_made());
    match sender.try_send_request(request).await {
        Ok(response) => Ok((response, Lease::none())),
        Err(mut error) => match error.take_message() {
            Some(unsent) => {
                pool.discard_http2();
                let mut sender = pool.http2().await?;
                unsent.body().leaves(|| pool.http2_made());
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
