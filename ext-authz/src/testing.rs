//! Testing an authorizer in memory: what would client and upstream see?
//!
//! ```
//! use attache_ext_authz::server::{Authorizer, CheckError, CheckRequestView, Decision};
//! use attache_ext_authz::testing::{Harness, Outcome};
//!
//! struct TagPath;
//! impl Authorizer for TagPath {
//!     async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
//!         Ok(Decision::allow().set("x-path", request.path().unwrap_or_default()).into())
//!     }
//! }
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
//! # runtime.block_on(async {
//! let request = http::Request::get("http://example.com/a?b=1").body("").unwrap();
//! let Outcome::Allowed(allowed) = Harness::new(TagPath).check(request).await else {
//!     panic!("not allowed");
//! };
//! assert_eq!(allowed.request.headers()["x-path"], "/a");
//! # });
//! # Ok::<(), std::io::Error>(())
//! ```

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use attache_filter::{ConnectionInfo, RequestContext, matcher::ForwardedHeaders};
use attache_proto::{
    auth::{AttributeContext, CheckRequest},
    core::Metadata,
};
use attache_service::channel::FRAME_HEADER;
use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use prost::Message as _;
use prost_types::Struct;

use crate::{
    client::{
        answer::{Invalid, Reading, Reply, ResponseVerb, Verdict, check_response},
        apply::{self, HeaderLimits},
        encode::{self, CheckBody, Content},
    },
    server::{Authorizer, AuthorizerService, CheckError, CheckRequestView, Decision, OnFailure},
};

/// Plays the proxy around an authorizer. The defaults are Envoy's, but that everything is shown:
/// bodies, certificates, TLS sessions.
#[derive(Debug)]
pub struct Harness<A> {
    service: AuthorizerService<A>,
    connection: Arc<ConnectionInfo>,
    extensions: Vec<(String, String)>,
    metadata: BTreeMap<String, Struct>,
    route_metadata: BTreeMap<String, Struct>,
    call: HeaderMap,
    raw_headers: bool,
    raw_body: bool,
    max_request_bytes: usize,
    deadline: Duration,
    failure_mode_allow: bool,
    status_on_error: StatusCode,
}

/// What came of a request.
#[derive(Debug)]
pub enum Outcome {
    /// It goes on to the upstream.
    Allowed(Allowed),
    /// The client gets this answer.
    Denied(Response<Bytes>),
    /// The check failed, and the proxy does not let requests pass then.
    Failed(Failed),
}

/// What came of a TCP connection, as Envoy's network filter has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpOutcome {
    /// It may go on.
    Open,
    /// It is closed.
    Closed,
    /// The check failed, and it is closed for that.
    Failed,
}

/// A request that goes on.
#[derive(Debug)]
pub struct Allowed {
    /// The request as the upstream gets it.
    pub request: Request<()>,
    /// Dynamic metadata that came with the decision.
    pub metadata: Option<Struct>,
    /// Whether it goes on though the check failed (`failure_mode_allow`).
    pub failed: bool,
    response: Vec<(ResponseVerb, HeaderName, HeaderValue)>,
}

/// A check that failed.
#[derive(Debug)]
pub struct Failed {
    /// What the client gets.
    pub response: Response<Bytes>,
    /// How it failed.
    pub reason: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.response.status(), self.reason)
    }
}

impl Allowed {
    /// The upstream's response as the client gets it.
    pub fn response<B>(&self, upstream: Response<B>) -> Response<B> {
        let (mut parts, body) = upstream.into_parts();
        apply::response(&mut parts, self.response.clone(), None);
        Response::from_parts(parts, body)
    }
}

impl Outcome {
    /// The status of an answer in place of the upstream's.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Allowed(_) => None,
            Self::Denied(response) => Some(response.status()),
            Self::Failed(failed) => Some(failed.response.status()),
        }
    }
}

impl<A: Authorizer> Harness<A> {
    /// A harness with a deadline of a second and a connection without addresses or TLS.
    pub fn new(authorizer: A) -> Self {
        Self::of(AuthorizerService::new(authorizer))
    }

    fn of(service: AuthorizerService<A>) -> Self {
        Self {
            service,
            connection: Arc::default(),
            extensions: Vec::new(),
            metadata: BTreeMap::new(),
            route_metadata: BTreeMap::new(),
            call: HeaderMap::new(),
            raw_headers: false,
            raw_body: false,
            max_request_bytes: usize::MAX,
            deadline: Duration::from_secs(1),
            failure_mode_allow: false,
            status_on_error: StatusCode::FORBIDDEN,
        }
    }

    /// What the proxy is told when a check fails; see [`Server`](crate::server::Server).
    #[must_use]
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.service = self.service.on_failure(on_failure);
        self
    }

    /// The connection that requests come in on: addresses, the client's certificate, the name that
    /// it asked for.
    #[must_use]
    pub fn connection(mut self, connection: ConnectionInfo) -> Self {
        self.connection = Arc::new(connection);
        self
    }

    /// Adds an entry to the route's `context_extensions`.
    #[must_use]
    pub fn context_extension(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.extensions.push((key.into(), value.into()));
        self
    }

    /// Sets dynamic metadata of a namespace.
    #[must_use]
    pub fn metadata(mut self, namespace: impl Into<String>, fields: Struct) -> Self {
        self.metadata.insert(namespace.into(), fields);
        self
    }

    /// Sets the route's metadata of a namespace.
    #[must_use]
    pub fn route_metadata(mut self, namespace: impl Into<String>, fields: Struct) -> Self {
        self.route_metadata.insert(namespace.into(), fields);
        self
    }

    /// Metadata of the gRPC call (`initial_metadata`, `traceparent`).
    #[must_use]
    pub fn call(mut self, metadata: HeaderMap) -> Self {
        self.call = metadata;
        self
    }

    /// Sends headers as `header_map` (`encode_raw_headers`).
    #[must_use]
    pub fn raw_headers(mut self) -> Self {
        self.raw_headers = true;
        self
    }

    /// Sends bodies as bytes (`pack_as_bytes`). Otherwise what is not UTF-8 becomes `!`.
    #[must_use]
    pub fn pack_as_bytes(mut self) -> Self {
        self.raw_body = true;
        self
    }

    /// Shows no more than this of a body (`max_request_bytes` with `allow_partial_message`); with
    /// 0 nothing.
    #[must_use]
    pub fn max_request_bytes(mut self, bytes: usize) -> Self {
        self.max_request_bytes = bytes;
        self
    }

    /// Bound on a check.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Lets requests pass when a check fails.
    #[must_use]
    pub fn failure_mode_allow(mut self) -> Self {
        self.failure_mode_allow = true;
        self
    }

    /// The status of failed checks that name none. Default 403.
    #[must_use]
    pub fn status_on_error(mut self, status: StatusCode) -> Self {
        self.status_on_error = status;
        self
    }

    /// Checks a request and carries out the answer.
    pub async fn check<B: AsRef<[u8]>>(&self, request: Request<B>) -> Outcome {
        let body = request.body().as_ref();
        let data = body.get(..self.max_request_bytes).unwrap_or(body);
        let shown = (!data.is_empty()).then_some(CheckBody {
            data,
            partial: data.len() < body.len(),
            received: data.len(),
        });
        let message = self.message(&request, shown);
        let (mut parts, _) = request.into_parts();
        let (verdict, metadata) = self.verdict(message).await;
        match verdict {
            Verdict::Allow(mut effects) => {
                let limits = HeaderLimits::default();
                match apply::request(&mut parts, &mut effects, None, limits) {
                    Ok(()) => Outcome::Allowed(Allowed {
                        request: Request::from_parts(parts, ()),
                        metadata,
                        failed: false,
                        response: effects.response,
                    }),
                    Err(invalid) => refused(invalid),
                }
            }
            Verdict::Deny(reply) => Outcome::Denied(response(reply)),
            Verdict::Error(_) if self.failure_mode_allow => Outcome::Allowed(Allowed {
                request: Request::from_parts(parts, ()),
                metadata: None,
                failed: true,
                response: Vec::new(),
            }),
            Verdict::Error(reply) => Outcome::Failed(Failed {
                response: response(reply.unwrap_or_else(|| empty(self.status_on_error))),
                reason: "the check failed".to_owned(),
            }),
            Verdict::Invalid(invalid) => refused(invalid),
        }
    }

    /// Checks the connection as a TCP connection: no request comes with it.
    pub async fn connect(&self) -> TcpOutcome {
        let mut message = self.message(&Request::new(()), None);
        if let Some(attributes) = &mut message.attributes {
            attributes.request = None;
            let tls = self.connection.tls.as_ref();
            if let Some(name) = tls.and_then(|tls| tls.sni.clone()) {
                attributes.destination.get_or_insert_default().service = name;
            }
        }
        match self.verdict(message).await.0 {
            Verdict::Allow(_) => TcpOutcome::Open,
            Verdict::Error(_) if self.failure_mode_allow => TcpOutcome::Open,
            Verdict::Error(_) => TcpOutcome::Failed,
            Verdict::Deny(_) | Verdict::Invalid(_) => TcpOutcome::Closed,
        }
    }

    fn message<B>(&self, request: &Request<B>, body: Option<CheckBody<'_>>) -> CheckRequest {
        let entries = self.extensions.iter();
        let extensions = encode::context_extensions(entries.map(|(k, v)| (k.as_str(), v.as_str())));
        let content = Content {
            raw_headers: self.raw_headers,
            raw_body: self.raw_body,
            peer_certificate: true,
            tls_session: true,
            extensions: &extensions,
            ..Content::default()
        };
        let mut message = encoded(request, self.connection.clone(), body, content);
        let attributes = message
            .attributes
            .get_or_insert_with(AttributeContext::default);
        let metadata = |namespaces: &BTreeMap<_, _>| {
            Some(Metadata {
                filter_metadata: namespaces.clone(),
                ..Metadata::default()
            })
        };
        attributes.metadata_context = metadata(&self.metadata);
        attributes.route_metadata_context = metadata(&self.route_metadata);
        message
    }

    async fn verdict(&self, message: CheckRequest) -> (Verdict, Option<Struct>) {
        let view = CheckRequestView::new(message, self.call.clone());
        let Ok(response) = self.service.decide(&view, self.deadline).await else {
            return (Verdict::Error(None), None);
        };
        let reading = Reading {
            validate: false,
            status_on_error: self.status_on_error,
            max_denied_body: 0,
        };
        let answer = check_response::read(response, reading);
        (answer.verdict, answer.metadata)
    }
}

fn refused(invalid: Invalid) -> Outcome {
    Outcome::Failed(Failed {
        response: response(empty(StatusCode::INTERNAL_SERVER_ERROR)),
        reason: format!("the answer is refused: {invalid:?}"),
    })
}

fn empty(status: StatusCode) -> Reply {
    Reply {
        status,
        headers: HeaderMap::new(),
        body: Bytes::new(),
    }
}

fn response(reply: Reply) -> Response<Bytes> {
    let mut response = Response::new(reply.body);
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response
}

/// The check that a proxy would send for a request without a body.
pub fn request<B>(request: &Request<B>) -> CheckRequest {
    encoded(request, Arc::default(), None, Content::default())
}

/// The same, ready to read.
pub fn view<B>(http: &Request<B>) -> CheckRequestView {
    request(http).into()
}

fn encoded<B>(
    request: &Request<B>,
    connection: Arc<ConnectionInfo>,
    body: Option<CheckBody<'_>>,
    content: Content<'_>,
) -> CheckRequest {
    let context = RequestContext::new(connection, request.version());
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = request.method().clone();
    parts.uri = request.uri().clone();
    parts.version = request.version();
    parts.headers = request.headers().clone();
    let shown = ForwardedHeaders::default();
    let mut message = encode::check_request(&parts, &context, body, content, &shown);
    message.advance(FRAME_HEADER);
    // What we encoded ourselves decodes; were it not so, the view would be empty and tests fail.
    CheckRequest::decode(message).unwrap_or_default()
}

/// A fixed decision is an authorizer too, for tests of what is around it.
impl Authorizer for Decision {
    async fn check(&self, _request: &CheckRequestView) -> Result<Decision, CheckError> {
        Ok(self.clone())
    }
}
