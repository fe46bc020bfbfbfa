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
//!     panic!("denied");
//! };
//! assert_eq!(allowed.request.headers()["x-path"], "/a");
//! # });
//! # Ok::<(), std::io::Error>(())
//! ```

use std::{sync::Arc, time::Duration};

use attache_filter::{ConnectionInfo, RequestContext, matcher::ForwardedHeaders};
use attache_proto::auth::CheckRequest;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use prost::Message as _;
use tonic::Status;

use crate::{
    client::{
        answer::{self, Invalid, Reading, ResponseVerb, Verdict},
        apply::{self, HeaderLimits},
        encode::{self, CheckBody, Content},
    },
    server::{Authorizer, AuthorizerService, CheckError, CheckRequestView, Decision},
};

/// Plays the proxy around an authorizer, with Envoy's default settings.
#[derive(Debug)]
pub struct Harness<A> {
    service: AuthorizerService<A>,
    connection: Arc<ConnectionInfo>,
    extensions: Vec<(String, String)>,
    deadline: Duration,
}

/// What came of a request.
#[derive(Debug)]
pub enum Outcome {
    /// It goes on to the upstream.
    Allowed(Allowed),
    /// The client gets this answer.
    Denied(Response<Bytes>),
    /// The check failed; the proxy's failure mode decides.
    Failed(Status),
}

/// A request that goes on.
#[derive(Debug)]
pub struct Allowed {
    /// The request as the upstream gets it.
    pub request: Request<()>,
    response: Vec<(ResponseVerb, HeaderName, HeaderValue)>,
}

impl Allowed {
    /// The upstream's response as the client gets it.
    pub fn response<B>(&self, upstream: Response<B>) -> Response<B> {
        let (mut parts, body) = upstream.into_parts();
        apply::response(&mut parts, self.response.clone(), None);
        Response::from_parts(parts, body)
    }
}

impl<A: Authorizer> Harness<A> {
    /// A harness with a deadline of a second and a connection without addresses or TLS.
    pub fn new(authorizer: A) -> Self {
        Self {
            service: AuthorizerService::new(authorizer),
            connection: Arc::default(),
            extensions: Vec::new(),
            deadline: Duration::from_secs(1),
        }
    }

    /// The connection that requests come in on.
    pub fn connection(mut self, connection: ConnectionInfo) -> Self {
        self.connection = Arc::new(connection);
        self
    }

    /// Adds an entry to the route's `context_extensions`.
    pub fn context_extension(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.extensions.push((key.into(), value.into()));
        self
    }

    /// Bound on a check.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Checks a request and carries out the answer. A body that is not empty is shown whole.
    pub async fn check<B: AsRef<[u8]>>(&self, request: Request<B>) -> Outcome {
        let entries = self.extensions.iter();
        let extensions = encode::context_extensions(entries.map(|(k, v)| (k.as_str(), v.as_str())));
        let message = encoded(&request, self.connection.clone(), &extensions);
        let response = match self.service.decide(message, self.deadline).await {
            Ok(response) => response,
            Err(status) => return Outcome::Failed(status),
        };
        let reading = Reading {
            validate: false,
            status_on_error: StatusCode::FORBIDDEN,
            max_denied_body: 0,
        };
        let invalid = |invalid: Invalid| {
            Outcome::Failed(Status::internal(format!(
                "the answer is refused: {invalid:?}"
            )))
        };
        match answer::read(response, reading).verdict {
            Verdict::Allow(mut effects) => {
                let (mut parts, _) = request.into_parts();
                let limits = HeaderLimits::default();
                match apply::request(&mut parts, &mut effects, None, limits) {
                    Ok(()) => Outcome::Allowed(Allowed {
                        request: Request::from_parts(parts, ()),
                        response: effects.response,
                    }),
                    Err(error) => invalid(error),
                }
            }
            Verdict::Deny(reply) => {
                let mut response = Response::new(reply.body);
                *response.status_mut() = reply.status;
                *response.headers_mut() = reply.headers;
                Outcome::Denied(response)
            }
            Verdict::Error(_) => Outcome::Failed(Status::unavailable("the service failed")),
            Verdict::Invalid(error) => invalid(error),
        }
    }
}

/// The check that a proxy would send for a request without a body.
pub fn request<B>(request: &Request<B>) -> CheckRequest {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = request.method().clone();
    parts.uri = request.uri().clone();
    parts.version = request.version();
    parts.headers = request.headers().clone();
    encoded(&Request::from_parts(parts, ""), Arc::default(), &[])
}

/// The same, ready to read.
pub fn view<B>(http: &Request<B>) -> CheckRequestView {
    request(http).into()
}

fn encoded<B: AsRef<[u8]>>(
    request: &Request<B>,
    connection: Arc<ConnectionInfo>,
    extensions: &[u8],
) -> CheckRequest {
    let context = RequestContext::new(connection, request.version());
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = request.method().clone();
    parts.uri = request.uri().clone();
    parts.version = request.version();
    parts.headers = request.headers().clone();
    let data = request.body().as_ref();
    let body = (!data.is_empty()).then_some(CheckBody {
        data,
        partial: false,
        received: data.len(),
    });
    let content = Content {
        peer_certificate: true,
        tls_session: true,
        extensions,
        ..Content::default()
    };
    let shown = ForwardedHeaders::default();
    let message = encode::check_request(&parts, &context, body, content, &shown);
    // What we encoded ourselves decodes; were it not so, the view would be empty and tests fail.
    CheckRequest::decode(message.as_ref()).unwrap_or_default()
}

/// A fixed decision is an authorizer too, for tests of what is around it.
impl Authorizer for Decision {
    async fn check(&self, _request: &CheckRequestView) -> Result<Decision, CheckError> {
        Ok(self.clone())
    }
}
