//! The gRPC client of the policy layers.
//!
//! A [`Channel`] belongs to one worker. It keeps one multiplexed HTTP/2 connection to each
//! endpoint of a cluster, opens it early, re-opens it with backoff and jitter, and hands out
//! calls: [`Channel::unary`] and [`Channel::stream`]. It drives `h2` directly: messages are
//! [`bytes::Bytes`] in and out, without boxed service stacks.
//!
//! A call that finds no connection waits while one is being made for the first time or right
//! after a loss, at most the connect timeout; while the service is known to be unreachable it
//! fails at once. Reconnection goes on in the background, at least once a second.
//!
//! | what happens | status |
//! |---|---|
//! | the service answers with a status | that status |
//! | not reachable, connection lost, stream reset, no room within `circuit_breakers` | `Unavailable` |
//! | no answer within the timeout of a unary call | `DeadlineExceeded` |
//! | an HTTP answer other than 200, without `grpc-status` | by gRPC's table: 503 is `Unavailable`, … |
//! | an answer that is not gRPC, or ends without a status | `Unknown` |
//! | a malformed or compressed message, no or a second unary answer | `Internal` |
//! | a message larger than allowed | `ResourceExhausted` |

mod connect;
mod endpoint;
mod frame;
mod link;
mod status;
mod stream;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Uri,
    header::{CONTENT_TYPE, TE},
    uri::{Authority, PathAndQuery, Scheme},
};
use tokio::{io::DuplexStream, sync::Notify};
use tonic::Status;

use crate::{
    address::Address,
    cluster::{
        self, Balance, Balancer, Endpoints, Guards, Local,
        breakers::{Breakers, Permit, Resource},
        outlier::Outcome,
    },
    tls::ClientTls,
};

pub use frame::{Deframer, FRAME_HEADER, Pieces, encode_message, frame_in_place, frame_message};
pub use status::TransportFailure;
pub use stream::GrpcStream;

pub(crate) use connect::notice_vanished_peers;
use endpoint::{Connection, Endpoint};
use link::Link;

/// Opens one in-memory connection to a service that lives in this process.
pub type EmbeddedConnector = Arc<dyn Fn() -> DuplexStream + Send + Sync>;

/// Where the calls of a channel go.
#[derive(Clone)]
pub enum Target {
    /// A socket address.
    Address(Address),
    /// A service of this process, reached without a socket.
    Embedded(EmbeddedConnector),
}

impl Target {
    /// Whether both are the same place.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Address(one), Self::Address(other)) => one == other,
            (Self::Embedded(one), Self::Embedded(other)) => Arc::ptr_eq(one, other),
            (Self::Address(_), Self::Embedded(_)) | (Self::Embedded(_), Self::Address(_)) => false,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Embedded(_) => f.write_str("the embedded service"),
        }
    }
}

/// What a [`Channel`] needs to know about its cluster.
#[derive(Clone)]
pub struct ChannelSettings {
    /// Name of the cluster: the `:authority` of calls, and what errors name.
    pub name: Arc<str>,
    /// The endpoints.
    pub endpoints: Arc<Endpoints>,
    /// How endpoints are chosen among those that are connected.
    pub balance: Balance,
    /// TLS to the endpoints; plain text when absent.
    pub tls: Option<ClientTls>,
    /// Bound on establishing one connection, TLS and HTTP/2 included. Default 1 s.
    pub connect_timeout: Duration,
    /// A connection this old takes no further calls, give or take a tenth; those on it go on.
    /// Default: no bound.
    pub max_connection_duration: Option<Duration>,
    /// How often each connection is asked for a sign of life, give or take a tenth; one that gives
    /// none within 5 s is ended. Many servers end connections that ask more often than every
    /// 5 minutes. Default: only after calls that were given up.
    pub keepalive: Option<Duration>,
    /// Largest message accepted from the service, in bytes. Default 16 MiB.
    pub max_message_size: usize,
    /// Who logs outages. Default [`OutageLog::Channel`].
    pub outage_log: OutageLog,
    /// What bounds calls, and judges endpoints by how they answer. Default: nothing.
    pub guards: Option<Guards>,
}

/// Who logs that an endpoint cannot be reached, and that it is reached again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutageLog {
    /// The channel: each outage once.
    #[default]
    Channel,
    /// The caller, who makes a channel for each attempt and gets the reason as the call's error.
    Caller,
}

impl ChannelSettings {
    /// Settings with defaults for a cluster `name` with these targets.
    pub fn new(name: impl Into<Arc<str>>, targets: Vec<Target>) -> Self {
        let name = name.into();
        Self::of(Endpoints::new(name, targets))
    }

    /// Settings with defaults for a cluster with these endpoints.
    pub fn of(endpoints: Arc<Endpoints>) -> Self {
        Self {
            name: endpoints.name().clone(),
            endpoints,
            balance: Balance::default(),
            tls: None,
            connect_timeout: Duration::from_secs(1),
            max_connection_duration: None,
            keepalive: None,
            max_message_size: 16 << 20,
            outage_log: OutageLog::default(),
            guards: None,
        }
    }
}

/// A gRPC method, by its full path (`/package.Service/Method`).
#[derive(Clone, Debug)]
pub struct Method {
    path: PathAndQuery,
    authority: Option<Authority>,
}

impl Method {
    /// A method from its path, which starts with a slash.
    pub fn new(path: &'static str) -> Self {
        Self {
            path: PathAndQuery::from_static(path),
            authority: None,
        }
    }

    /// Calls it with this `:authority` instead of the cluster's name (`authority` of Envoy's
    /// `EnvoyGrpc`).
    #[must_use]
    pub fn authority(mut self, authority: Authority) -> Self {
        self.authority = Some(authority);
        self
    }
}

/// A gRPC client for one cluster, owned by one worker. Cheap to clone.
#[derive(Clone)]
pub struct Channel {
    inner: Arc<Inner>,
}

struct Inner {
    settings: ChannelSettings,
    scheme: Scheme,
    authority: Authority,
    balancer: Balancer<Endpoint>,
    /// Notified when the state of any endpoint changes.
    changed: Arc<Notify>,
}

/// How a call begins, as long as it may have to begin again. Most have no metadata: to keep it
/// costs nothing then.
struct Head {
    method: Method,
    metadata: HeaderMap,
    timeout: Option<Duration>,
}

/// What a call that looks for an endpoint finds.
enum Picked {
    Ready(Arc<Local<Endpoint>>, Arc<Link>),
    Wait,
    Failed(Arc<str>),
    NoEndpoint,
}

impl Channel {
    /// A channel that connects on its first call or on [`Channel::warm_up`].
    pub fn new(settings: ChannelSettings) -> Self {
        let changed = Arc::new(Notify::new());
        let balancer = {
            let (settings, changed) = (settings.clone(), changed.clone());
            let endpoints = settings.endpoints.clone();
            Balancer::new(endpoints, settings.balance, move |endpoint| {
                Endpoint::new(endpoint.clone(), &settings, changed.clone())
            })
        };
        let authority = settings.name.parse();
        Self {
            inner: Arc::new(Inner {
                scheme: match settings.tls {
                    Some(_) => Scheme::HTTPS,
                    None => Scheme::HTTP,
                },
                // Cluster names are free text; servers do not care, as long as it is valid.
                authority: authority.unwrap_or_else(|_| Authority::from_static("localhost")),
                settings,
                balancer,
                changed,
            }),
        }
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.inner.settings.name
    }

    /// What may be in use of the cluster at a time, where somebody bounds it.
    pub fn breakers(&self) -> Option<&Breakers> {
        Some(&*self.inner.settings.guards.as_ref()?.breakers)
    }

    /// Starts connecting to every endpoint in the background.
    ///
    /// # Panics
    /// Outside a tokio runtime, as all calls.
    pub fn warm_up(&self) {
        for endpoint in self.inner.balancer.usable() {
            endpoint.own.connection();
        }
    }

    /// Follows the cluster's endpoints until dropped: connects to those that come, before a call
    /// needs them, and lets go of those that are gone.
    pub async fn follow(&self) {
        let endpoints = self.inner.settings.endpoints.clone();
        let mut version = endpoints.version();
        loop {
            self.warm_up();
            version = endpoints.changed(version).await;
        }
    }

    /// Calls `method` with one message and waits for the one answer.
    ///
    /// `message` is an encoded message without the gRPC frame header; to spare its copy, use
    /// [`Channel::unary_framed`]. `timeout` bounds the whole call, connecting included; it is
    /// also sent as `grpc-timeout`. `None` waits as long as the service does.
    ///
    /// # Errors
    /// See the [module](self).
    pub async fn unary(
        &self,
        method: &Method,
        message: &[u8],
        metadata: HeaderMap,
        timeout: Option<Duration>,
    ) -> Result<Bytes, Status> {
        self.unary_framed(method, frame_message(message), metadata, timeout)
            .await
    }

    /// [`Channel::unary`] with a message that is framed already: see [`encode_message`].
    ///
    /// # Errors
    /// See the [module](self).
    pub async fn unary_framed(
        &self,
        method: &Method,
        message: Bytes,
        metadata: HeaderMap,
        timeout: Option<Duration>,
    ) -> Result<Bytes, Status> {
        let head = Head {
            method: method.clone(),
            metadata,
            timeout,
        };
        let mut call = GrpcStream::open(self.clone(), head);
        call.send(message);
        call.finish();
        match timeout {
            None => call.unary().await,
            Some(timeout) => match tokio::time::timeout(timeout, call.unary()).await {
                Ok(answer) => answer,
                Err(_) => {
                    call.timed_out();
                    Err(status::too_late(self.name(), timeout))
                }
            },
        }
    }

    /// Opens a bidirectional call. Nothing is awaited: messages sent before the connection
    /// stands are queued and leave when [`GrpcStream::poll_message`] is driven.
    pub fn stream(&self, method: &Method, metadata: HeaderMap) -> GrpcStream {
        let head = Head {
            method: method.clone(),
            metadata,
            timeout: None,
        };
        GrpcStream::open(self.clone(), head)
    }

    /// The request that begins a call.
    fn request(&self, head: &Head) -> http::Request<()> {
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(self.inner.scheme.clone());
        uri.authority = Some(match &head.method.authority {
            Some(authority) => authority.clone(),
            None => self.inner.authority.clone(),
        });
        uri.path_and_query = Some(head.method.path.clone());
        let mut headers = head.metadata.clone();
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if let Some(timeout) = head.timeout {
            headers.insert(GRPC_TIMEOUT, grpc_timeout(timeout));
        }
        let mut request = http::Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        // Has all three parts, so it cannot fail.
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        *request.headers_mut() = headers;
        request
    }

    /// The endpoint for the next call: the one that the policy picks, or another when that one is
    /// not connected or has just `refused` the call. Those that are looked at begin to connect.
    fn pick(&self, refused: Option<&Arc<Local<Endpoint>>>) -> Picked {
        let balancer = &self.inner.balancer;
        let Some(first) = balancer.pick(None) else {
            return Picked::NoEndpoint;
        };
        let mut picked = match first.own.connection() {
            Connection::Ready(link) => Picked::Ready(first.clone(), link),
            Connection::Wait => Picked::Wait,
            Connection::Failed(why) => Picked::Failed(why),
        };
        let refused = refused.is_some_and(|refused| Arc::ptr_eq(refused, &first));
        if matches!(picked, Picked::Ready(..)) && !refused {
            return picked;
        }
        let unreachable = matches!(picked, Picked::Failed(_));
        let usable = balancer.usable();
        let turn = usable.iter().position(|other| Arc::ptr_eq(other, &first));
        let (before, from) = usable.split_at(turn.unwrap_or_default());
        for other in from.iter().skip(1).chain(before) {
            match other.own.connection() {
                Connection::Ready(link) => {
                    picked = Picked::Ready(other.clone(), link);
                    break;
                }
                Connection::Wait if matches!(picked, Picked::Failed(_)) => picked = Picked::Wait,
                Connection::Wait | Connection::Failed(_) => {}
            }
        }
        // Who waits picks again.
        if unreachable && !matches!(picked, Picked::Wait) {
            self.failed(&first.endpoint, Outcome::Broken);
        }
        picked
    }

    /// Room for a call, where the cluster limits them.
    fn admit(&self, resource: Resource) -> Result<Option<Permit>, Status> {
        match &self.inner.settings.guards {
            Some(guards) => guards
                .admit(resource)
                .map_err(|overflow| status::overflow(self.name(), overflow)),
            None => Ok(None),
        }
    }

    /// Tells who judges endpoints that one has answered with this head.
    fn answered(&self, endpoint: &cluster::Endpoint, head: &http::response::Parts) {
        let settings = &self.inner.settings;
        if let Some(guards) = &settings.guards {
            guards.answered(&settings.endpoints, endpoint, head.status, &head.headers);
        }
    }

    /// The same where there is no answer.
    fn failed(&self, endpoint: &cluster::Endpoint, outcome: Outcome) {
        let settings = &self.inner.settings;
        if let Some(guards) = &settings.guards {
            guards.ended(&settings.endpoints, endpoint, outcome);
        }
    }
}

const GRPC_TIMEOUT: http::HeaderName = http::HeaderName::from_static("grpc-timeout");

/// The `grpc-timeout` value of a duration: at most eight digits and a unit.
fn grpc_timeout(timeout: Duration) -> HeaderValue {
    const LIMIT: u128 = 100_000_000;
    let (number, unit) = match timeout {
        t if t.as_micros() < LIMIT => (t.as_micros(), b'u'),
        t if t.as_millis() < LIMIT => (t.as_millis(), b'm'),
        t => (u128::from(t.as_secs()).min(LIMIT - 1), b'S'),
    };
    // Written from the end, on the stack.
    let mut text = [0; 9];
    let mut left = number;
    let mut start = text.len();
    for (i, place) in text.iter_mut().enumerate().rev() {
        *place = match i {
            8 => unit,
            _ => b'0' + (left % 10) as u8,
        };
        start = i;
        if i < 8 {
            left /= 10;
            if left == 0 {
                break;
            }
        }
    }
    let text = text.get(start..).unwrap_or(b"0u");
    HeaderValue::from_bytes(text).unwrap_or_else(|_| HeaderValue::from_static("99999999S"))
}

#[cfg(test)]
mod tests;
