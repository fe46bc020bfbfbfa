//! What the layers know of a request beyond its head: connection, route, dynamic metadata.
//!
//! The proxy puts an [`RequestContext`] into the request's extensions; in any other tower stack
//! [`RequestContext::of`] makes a plain one, so the layers work there too.

mod filter_configs;
mod flag;
mod times;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, Response, StatusCode, request};

pub use filter_configs::FilterConfigs;
pub use flag::ResponseFlag;
pub use times::{Handshake, Times, UpstreamConnection, UpstreamTimes};

use attache_service::{
    tls::Certificate,
    trace::{RequestTrace, SpanId},
};

use crate::{
    Body,
    calls::{FilterKind, PolicyCall, Recording},
    changes::HeaderChange,
    metadata::RouteMetadata,
    tap::Tap,
};

/// The downstream connection that a request came in on.
#[derive(Debug, Clone, Default)]
pub struct ConnectionInfo {
    /// Address of the peer; absent on Unix sockets.
    pub peer: Option<SocketAddr>,
    /// Our side of the connection; absent on Unix sockets.
    pub local: Option<SocketAddr>,
    /// TLS facts, when the connection is encrypted.
    pub tls: Option<TlsInfo>,
    /// When it was accepted, if anybody wants to know.
    pub accepted: Option<Instant>,
}

/// What TLS told us of a downstream connection.
#[derive(Debug, Clone, Default)]
pub struct TlsInfo {
    /// Server name the client asked for.
    pub sni: Option<String>,
    /// Negotiated application protocol.
    pub alpn: Option<String>,
    /// Version of TLS, as OpenSSL calls it: `TLSv1.3`.
    pub version: Option<&'static str>,
    /// The client's leaf certificate, DER.
    pub peer_certificate: Option<Arc<[u8]>>,
    /// What that certificate says.
    pub peer: Option<Arc<Certificate>>,
    /// Who the client is: first URI SAN, else first DNS SAN, else the subject.
    pub peer_principal: Option<String>,
    /// Who we are on this connection, by the same rule.
    pub local_principal: Option<String>,
    /// When it was agreed on, if anybody wants to know.
    pub handshake: Option<Handshake>,
    /// What our certificate says.
    pub local: Option<Arc<Certificate>>,
}

/// The route picked for a request, as far as the layers may know it.
#[derive(Debug, Default)]
pub struct Route {
    /// Name of the route for logs; may be empty.
    pub name: String,
    /// The cluster that the request goes to, if it goes anywhere.
    pub cluster: Option<Arc<str>>,
    /// Bytes of one body that a layer may hold back on this route, when that is more than the
    /// layer is set to (Envoy's `request_body_buffer_limit`, for either direction).
    pub buffer_limit: Option<usize>,
    /// Longest silence of a stream.
    pub idle_timeout: IdleTimeout,
    /// Metadata of the route, for policies to show.
    pub metadata: RouteMetadata,
    /// Metadata of the cluster that the request goes to.
    pub cluster_metadata: Arc<RouteMetadata>,
    /// `typed_per_filter_config` of the route, planned.
    pub filters: FilterConfigs,
    /// What filters have worked out ahead of requests from the whole configuration of the route.
    pub resolved: FilterConfigs,
}

/// What a route says of the longest silence of a stream (Envoy's `idle_timeout`).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum IdleTimeout {
    /// Nothing: Envoy's `stream_idle_timeout` counts, by default 300 s.
    #[default]
    Inherited,
    /// This long.
    After(Duration),
    /// Silence has no bound; written as zero.
    Never,
}

impl IdleTimeout {
    /// The bound, where `inherited` is what counts if the route says nothing.
    pub fn or(self, inherited: Duration) -> Option<Duration> {
        match self {
            Self::Inherited => Some(inherited),
            Self::After(timeout) => Some(timeout),
            Self::Never => None,
        }
    }
}

impl From<Option<Duration>> for IdleTimeout {
    /// A setting of a route, as it is written.
    fn from(written: Option<Duration>) -> Self {
        match written {
            None => Self::Inherited,
            Some(Duration::ZERO) => Self::Never,
            Some(timeout) => Self::After(timeout),
        }
    }
}

/// One time that a request was sent to an upstream.
#[derive(Debug, Clone)]
pub struct UpstreamAttempt {
    /// The endpoint.
    pub endpoint: String,
    /// When it was sent, since the request began.
    pub begun: Duration,
    /// When the head of the answer came, if it did.
    pub answered: Option<Duration>,
    /// When this was over or the answer's body began.
    pub ended: Duration,
    /// The answer's status.
    pub status: Option<StatusCode>,
    /// The span that the upstream was told of.
    pub span: Option<SpanId>,
    /// How long it waited for a connection, or in vain; 0 where one was there. Nothing where
    /// that is not known, as it was broken off.
    pub waited: Option<Duration>,
    /// Why no connection could be made, if that was so.
    pub failure: Option<String>,
}

/// What is known of one request. Shared by all its layers, request and response side.
#[derive(Debug)]
pub struct RequestContext {
    /// Number of the request in this process, Envoy's stream id.
    pub id: u64,
    /// The downstream connection.
    pub connection: Arc<ConnectionInfo>,
    /// The client's address after trusted hops are taken into account.
    pub client_ip: Option<IpAddr>,
    /// Protocol of the downstream request; HTTP/0.9 of a connection that is passed on as it is.
    pub protocol: http::Version,
    /// When the request head had arrived, for durations.
    pub started: Instant,
    /// What is noted of the calls that policies make.
    pub recording: Recording,
    /// Keep the head of the request as it went on, for who looks at it later.
    pub keeps_head: bool,
    /// Keep points in its time, for who looks at them later.
    pub keeps_times: bool,
    /// Keeps the beginnings of the bodies, where somebody looks at the request in full.
    pub tap: Option<Arc<Tap>>,
    /// Where the request stands in a trace; nothing where there are no traces.
    pub trace: Option<Box<RequestTrace>>,
    start_time: OnceLock<SystemTime>,
    upstream: OnceLock<SocketAddr>,
    marks: AtomicU8,
    state: Mutex<State>,
}

/// The route is to be picked again.
const ROUTE_CLEARED: u8 = 1;
/// The innermost service takes part in replies of layers.
const REPLIES_INWARD: u8 = 1 << 1;
/// A layer has made the response already.
const ANSWERED: u8 = 1 << 2;
/// The bytes of a tunnel are the bodies of its request and response.
const TUNNELS_IN_BODY: u8 = 1 << 3;
/// The innermost service has given its response.
const RESPONDED: u8 = 1 << 4;
/// The response was made by a layer in its response phase.
const DIRECT: u8 = 1 << 5;

#[derive(Debug, Default)]
struct State {
    route: Option<Arc<Route>>,
    routed: bool,
    reply: Option<Box<Response<Body>>>,
    metadata: BTreeMap<String, prost_types::Struct>,
    typed_metadata: BTreeMap<String, prost_types::Any>,
    filter_state: Vec<(Arc<str>, prost_types::Struct)>,
    charged: Option<StatusCode>,
    details: Option<Cow<'static, str>>,
    flags: Vec<ResponseFlag>,
    calls: Vec<PolicyCall>,
    attempts: Vec<UpstreamAttempt>,
    times: Option<Box<Times>>,
    head: Option<Arc<request::Parts>>,
    upstream_head: Option<Box<(StatusCode, HeaderMap)>>,
}

/// Most calls to policy services that are noted of one request. A filter makes six about one
/// message at most.
pub const MAX_CALLS: usize = 128;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl RequestContext {
    /// A context for a request that just arrived on `connection`.
    pub fn new(connection: Arc<ConnectionInfo>, protocol: http::Version) -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            client_ip: connection.peer.map(|peer| peer.ip()),
            connection,
            protocol,
            started: Instant::now(),
            recording: Recording::default(),
            keeps_head: false,
            keeps_times: false,
            tap: None,
            trace: None,
            start_time: OnceLock::new(),
            upstream: OnceLock::new(),
            marks: AtomicU8::new(0),
            state: Mutex::default(),
        }
    }

    /// The context of a request, made and attached when it has none yet.
    pub fn of<B>(request: &mut http::Request<B>) -> Arc<Self> {
        if let Some(context) = request.extensions().get::<Arc<Self>>() {
            return context.clone();
        }
        let context = Arc::new(Self::new(Arc::default(), request.version()));
        request.extensions_mut().insert(context.clone());
        context
    }

    /// Wall-clock time of the request's start.
    pub fn start_time(&self) -> SystemTime {
        *self
            .start_time
            .get_or_init(|| SystemTime::now() - self.started.elapsed())
    }

    /// The endpoint that the request was sent to, once it was.
    pub fn upstream(&self) -> Option<SocketAddr> {
        self.upstream.get().copied()
    }

    /// Notes the endpoint that the request is sent to; the first one stays.
    pub fn set_upstream(&self, endpoint: SocketAddr) {
        let _ = self.upstream.set(endpoint);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The route picked for the request.
    pub fn route(&self) -> Option<Arc<Route>> {
        self.state().route.clone()
    }

    /// Whether a router looked for a route and found none: the answer will be 404, and nobody
    /// needs to be asked. False where there is no router at all.
    pub fn has_no_route(&self) -> bool {
        let state = self.state();
        state.routed && state.route.is_none()
    }

    /// Sets the route, or that there is none; the proxy's router does.
    pub fn set_route(&self, route: Option<Arc<Route>>) {
        let mut state = self.state();
        state.route = route;
        state.routed = true;
        drop(state);
        self.marks.fetch_and(!ROUTE_CLEARED, Ordering::Relaxed);
    }

    /// Asks for the route to be picked again, since what it depends on was changed.
    pub fn clear_route(&self) {
        self.mark(ROUTE_CLEARED);
    }

    /// Whether [`RequestContext::clear_route`] was called since the route was set.
    pub fn is_route_cleared(&self) -> bool {
        self.is_marked(ROUTE_CLEARED)
    }

    /// Says that the innermost service returns replies that layers hand to it with
    /// [`RequestContext::hand_inward`]; the proxy's router does.
    pub fn take_replies_inward(&self) {
        self.mark(REPLIES_INWARD);
    }

    /// Hands a response that a layer has made to the layers further inside: the inner service
    /// returns it after those have had their say (Envoy: local replies pass the response phase
    /// of all filters). While an answer is on its way, a later one is dropped.
    ///
    /// # Errors
    /// Gives `response` back where no innermost service takes it: there is none that does, or
    /// it has given its own response already.
    pub fn hand_inward(&self, response: Response<Body>) -> Result<(), Box<Response<Body>>> {
        let response = Box::new(response);
        if self.is_marked(RESPONDED) {
            self.answer_direct();
            return Err(response);
        }
        if !self.is_marked(REPLIES_INWARD) {
            return Err(response);
        }
        self.state().reply.get_or_insert(response);
        self.mark(ANSWERED);
        Ok(())
    }

    /// Whether a layer further outside has made the response: the request is not for anybody to
    /// see or judge any more.
    pub fn is_answered(&self) -> bool {
        self.is_marked(ANSWERED)
    }

    /// The response that a layer handed inward; the innermost service takes it.
    pub fn take_reply(&self) -> Option<Response<Body>> {
        if !self.is_answered() {
            return None;
        }
        self.state().reply.take().map(|reply| *reply)
    }

    /// Says that the innermost service has its response: what layers answer from now on goes
    /// straight out.
    pub fn begin_response(&self) {
        self.mark(RESPONDED);
    }

    /// Says that a layer puts an answer of its own in the place of a response. The layers
    /// further outside pass such an answer on as it is, as Envoy does.
    pub fn answer_direct(&self) {
        self.mark(DIRECT);
    }

    /// Begins anew for a request that passes all layers again, since it goes elsewhere. What
    /// they know of its first way is forgotten; filter state and the calls stay.
    pub fn begin_again(&self) {
        let mut state = self.state();
        *state = State {
            filter_state: std::mem::take(&mut state.filter_state),
            calls: std::mem::take(&mut state.calls),
            attempts: std::mem::take(&mut state.attempts),
            ..State::default()
        };
        drop(state);
        self.marks.store(0, Ordering::Relaxed);
    }

    /// Whether the response is an answer that layers pass on as it is.
    pub fn is_direct(&self) -> bool {
        self.is_marked(DIRECT)
    }

    /// Says that what a layer has decided counts as a response of the route's cluster with this
    /// status (Envoy's `charge_cluster_response_stats`).
    pub fn charge_cluster(&self, status: StatusCode) {
        self.state().charged = Some(status);
    }

    /// The status that the decision of a layer counts as, for the route's cluster.
    pub fn cluster_charge(&self) -> Option<StatusCode> {
        self.state().charged
    }

    /// Says that what goes through the tunnel that this request asks for (`Upgrade`, `CONNECT`)
    /// passes the layers as bodies of request and response; the proxy does.
    pub fn tunnel_in_body(&self) {
        self.mark(TUNNELS_IN_BODY);
    }

    /// Whether the bytes of the tunnel that this request asks for are the bodies of its request
    /// and of the response that opens it. Such bodies end with the tunnel. Otherwise a tunnel is
    /// not for layers to see.
    pub fn tunnels_in_body(&self) -> bool {
        self.is_marked(TUNNELS_IN_BODY)
    }

    fn mark(&self, mark: u8) {
        self.marks.fetch_or(mark, Ordering::Relaxed);
    }

    fn is_marked(&self, mark: u8) -> bool {
        self.marks.load(Ordering::Relaxed) & mark != 0
    }

    /// Merges `fields` into the dynamic metadata of `namespace`, top-level key by key.
    pub fn merge_metadata(&self, namespace: &str, fields: prost_types::Struct) {
        let mut state = self.state();
        match state.metadata.get_mut(namespace) {
            Some(existing) => existing.fields.extend(fields.fields),
            None => {
                state.metadata.insert(namespace.to_owned(), fields);
            }
        }
    }

    /// A copy of the dynamic metadata of `namespace`.
    pub fn metadata(&self, namespace: &str) -> Option<prost_types::Struct> {
        self.state().metadata.get(namespace).cloned()
    }

    /// Looks at the dynamic metadata of `namespace` where it is, without a copy.
    pub fn with_metadata<T>(
        &self,
        namespace: &str,
        look: impl FnOnce(Option<&prost_types::Struct>) -> T,
    ) -> T {
        look(self.state().metadata.get(namespace))
    }

    /// Whether there is any dynamic metadata, typed or not.
    pub fn has_metadata(&self) -> bool {
        let state = self.state();
        !state.metadata.is_empty() || !state.typed_metadata.is_empty()
    }

    /// Sets the typed dynamic metadata of `namespace`.
    pub fn set_typed_metadata(&self, namespace: &str, value: prost_types::Any) {
        let mut state = self.state();
        state.typed_metadata.insert(namespace.to_owned(), value);
    }

    /// A copy of the typed dynamic metadata of `namespace`.
    pub fn typed_metadata(&self, namespace: &str) -> Option<prost_types::Any> {
        self.state().typed_metadata.get(namespace).cloned()
    }

    /// Leaves `state` of a filter for the access log (Envoy's filter state). False when there is
    /// state of that name already; it stays.
    pub fn set_filter_state(&self, name: &Arc<str>, state: prost_types::Struct) -> bool {
        let mut known = self.state();
        let free = known.filter_state.iter().all(|(other, _)| other != name);
        if free {
            known.filter_state.push((name.clone(), state));
        }
        free
    }

    /// What filters have left for the access log.
    pub fn filter_state(&self) -> Vec<(Arc<str>, prost_types::Struct)> {
        self.state().filter_state.clone()
    }

    /// Says why the answer is what it is (`%RESPONSE_CODE_DETAILS%`); blanks become `_`.
    pub fn set_details(&self, details: impl Into<Cow<'static, str>>) {
        let details = details.into();
        let details = if details.contains(' ') {
            details.replace(' ', "_").into()
        } else {
            details
        };
        self.state().details = Some(details);
    }

    /// The response code details set last.
    pub fn details(&self) -> Option<Cow<'static, str>> {
        self.state().details.clone()
    }

    /// Adds a response flag.
    pub fn add_flag(&self, flag: ResponseFlag) {
        let mut state = self.state();
        if !state.flags.contains(&flag) {
            state.flags.push(flag);
        }
    }

    /// The response flags so far.
    pub fn flags(&self) -> Vec<ResponseFlag> {
        self.state().flags.clone()
    }

    /// Whether anybody wants to know of the calls to policy services.
    pub fn records_calls(&self) -> bool {
        self.recording >= Recording::Calls
    }

    /// Whether anybody wants to know what those calls change in headers.
    pub fn records_changes(&self) -> bool {
        self.recording >= Recording::Changes
    }

    /// Notes a call to a policy service, if anybody wants to know. Those beyond [`MAX_CALLS`] are
    /// left out.
    pub fn record_call(&self, call: PolicyCall) {
        if self.records_calls() {
            let mut state = self.state();
            if state.calls.len() < MAX_CALLS {
                state.calls.push(call);
            }
        }
    }

    /// Adds to the last call of the filter what its answer has changed in the response.
    pub fn record_response_changes(
        &self,
        filter: &str,
        kind: FilterKind,
        changes: Vec<HeaderChange>,
    ) {
        let mut state = self.state();
        let mut calls = state.calls.iter_mut().rev();
        let call = calls.find(|call| call.kind == kind && *call.filter == *filter);
        if let Some(call) = call.filter(|_| !changes.is_empty()) {
            call.changes
                .get_or_insert_default()
                .response
                .extend(changes);
        }
    }

    /// Notes that the request was sent to an upstream, if anybody wants to know.
    pub fn record_attempt(&self, attempt: UpstreamAttempt) {
        if self.records_calls() {
            let mut state = self.state();
            if state.attempts.len() < MAX_CALLS {
                state.attempts.push(attempt);
            }
        }
    }

    /// The times that the request was sent to an upstream.
    pub fn attempts(&self) -> Vec<UpstreamAttempt> {
        self.state().attempts.clone()
    }

    /// Notes points in time, if anybody wants to know.
    pub fn note_times(&self, note: impl FnOnce(&mut Times)) {
        if self.keeps_times {
            note(self.state().times.get_or_insert_default());
        }
    }

    /// The points in time that were noted.
    pub fn times(&self) -> Times {
        self.state().times.as_deref().copied().unwrap_or_default()
    }

    /// Keeps the head of the request as it is, if anybody wants to know.
    pub fn keep_head(&self, head: &request::Parts) {
        if self.keeps_head {
            let copy = crate::head::copy(head);
            self.state().head = Some(Arc::new(copy));
        }
    }

    /// The head of the request as it went on last.
    pub fn take_head(&self) -> Option<Arc<request::Parts>> {
        self.state().head.take()
    }

    /// Keeps the head of a response as it came from an upstream, if somebody watches.
    pub fn keep_upstream_head(&self, status: StatusCode, headers: &HeaderMap) {
        if self.records_changes() {
            self.state().upstream_head = Some(Box::new((status, headers.clone())));
        }
    }

    /// Status and headers of the last response that came from an upstream.
    pub fn take_upstream_head(&self) -> Option<Box<(StatusCode, HeaderMap)>> {
        self.state().upstream_head.take()
    }

    /// The calls made to policy services so far.
    pub fn calls(&self) -> Vec<PolicyCall> {
        self.state().calls.clone()
    }
}
