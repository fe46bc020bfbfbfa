//! One check: the question to the auth service, in time and as often as its policy says.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attache_filter::{Channels, RequestContext, grpc_service::call_unary, retry::Failure};
use attache_proto::auth::CheckResponse;
use attache_service::{Channel, HttpClient, HttpError, Method, channel, trace::SpanId};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, request};
use prost::Message as _;
use tonic::Status;

use super::{
    answer::{Answer, check_response},
    body::Shown,
    encode::{self, CheckBody, Content},
    http::{
        HttpCall,
        request::{NotAskable, check_request},
    },
    plan::{AuthService, BodyPlan, Filter, GrpcCall, PerRoute},
};

/// Longest answer over plain HTTP that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// An auth service and the way to it; nothing where its cluster does not exist.
#[derive(Clone)]
pub(crate) enum Link {
    Grpc(Arc<GrpcCall>, Option<Channel>),
    Http(Arc<HttpCall>, Option<HttpClient>),
}

impl Link {
    pub(crate) fn to(service: &AuthService, channels: &Channels) -> Self {
        match service {
            AuthService::Grpc(grpc) => {
                Self::Grpc(grpc.clone(), channels.get(&grpc.call.cluster).cloned())
            }
            AuthService::Http(http) => {
                Self::Http(http.clone(), channels.http(&http.cluster).cloned())
            }
        }
    }
}

/// What a check is about.
pub(crate) struct Question<'q> {
    pub(crate) filter: &'q Filter,
    pub(crate) per_route: Option<&'q PerRoute>,
    pub(crate) parts: &'q request::Parts,
    pub(crate) context: &'q RequestContext,
    pub(crate) shown: &'q Shown,
    pub(crate) body_plan: Option<BodyPlan>,
}

/// A check that is over.
pub(crate) struct Asked {
    pub(crate) answer: Result<Answer, CheckFailed>,
    pub(crate) latency: Duration,
    /// Bytes of the question and of the answer: gRPC messages with their frames, or bodies.
    pub(crate) sent: usize,
    pub(crate) received: usize,
    /// The span that the service was told of.
    pub(crate) span: Option<SpanId>,
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckFailed {
    #[error("{0}")]
    Grpc(Status),
    #[error("{0}")]
    Http(#[from] HttpError),
    #[error("{0}")]
    NotAskable(#[from] NotAskable),
    #[error("there is no cluster `{0}`")]
    NoCluster(String),
}

impl CheckFailed {
    /// Whether there was no answer in time.
    pub(crate) fn is_timeout(&self) -> bool {
        self.grpc_status() == tonic::Code::DeadlineExceeded as i32
    }

    /// The gRPC status of the call, for the access log; that of the failure's kind over plain
    /// HTTP.
    pub(crate) fn grpc_status(&self) -> i32 {
        let code = match self {
            Self::Grpc(status) => status.code(),
            Self::Http(HttpError::Timeout { .. }) => tonic::Code::DeadlineExceeded,
            Self::Http(_) | Self::NoCluster(_) => tonic::Code::Unavailable,
            Self::NotAskable(_) => tonic::Code::Internal,
        };
        code as i32
    }
}

impl Question<'_> {
    /// Asks the auth service.
    pub(crate) async fn ask(&self, link: &Link, method: &Method) -> Asked {
        match link {
            Link::Grpc(grpc, channel) => self.ask_grpc(grpc, channel.as_ref(), method).await,
            Link::Http(http, client) => self.ask_http(http, client.as_ref()).await,
        }
    }

    async fn ask_grpc(&self, grpc: &GrpcCall, channel: Option<&Channel>, method: &Method) -> Asked {
        let Some(channel) = channel else {
            return unanswered(CheckFailed::NoCluster(grpc.call.cluster.value.clone()));
        };
        let filter = self.filter;
        let content = Content {
            raw_headers: filter.raw_headers,
            peer_certificate: filter.peer_certificate,
            tls_session: filter.tls_session,
            raw_body: self.body_plan.is_some_and(|plan| plan.as_bytes),
            extensions: self
                .per_route
                .map_or(&[], |route| &route.encoded_extensions),
            labels: &filter.labels,
            namespaces: filter.namespaces(),
        };
        let message = encode::check_request(
            self.parts,
            self.context,
            self.body(),
            content,
            &filter.shown,
        );
        let mut metadata = grpc.call.metadata.of(self.parts, self.context);
        let span = self.propagate(&mut metadata);
        let sent = message.len();
        let asked = Instant::now();
        let retry = grpc.call.retry.as_ref();
        let answered = call_unary(channel, method, message, metadata, grpc.timeout, retry).await;
        let latency = asked.elapsed();
        let received = answered
            .as_ref()
            .map_or(0, |bytes| bytes.len() + channel::FRAME_HEADER);
        let answer = answered.and_then(|bytes| {
            CheckResponse::decode(bytes)
                .map_err(|error| Status::internal(format!("malformed answer: {error}")))
        });
        Asked {
            answer: answer
                .map(|response| check_response::read(response, filter.reading))
                .map_err(CheckFailed::Grpc),
            latency,
            sent,
            received,
            span,
        }
    }

    async fn ask_http(&self, http: &HttpCall, client: Option<&HttpClient>) -> Asked {
        let Some(client) = client else {
            return unanswered(CheckFailed::NoCluster(http.cluster.value.clone()));
        };
        let filter = self.filter;
        let request = check_request(
            http,
            self.parts,
            self.context,
            self.body(),
            filter.raw_headers,
            &filter.shown,
        );
        let mut request = match request {
            Ok(request) => request,
            Err(fault) => return unanswered(fault.into()),
        };
        let span = self.propagate(request.headers_mut());
        let sent = request.body().len();
        let asked = Instant::now();
        let answered = fetch(client, request, http).await;
        let latency = asked.elapsed();
        let received = answered.as_ref().map_or(0, |answer| answer.body().len());
        Asked {
            answer: answered
                .map(|response| http.answers.read(response, filter.reading))
                .map_err(CheckFailed::Http),
            latency,
            sent,
            received,
            span,
        }
    }

    /// Tells the service which trace the check belongs to.
    fn propagate(&self, headers: &mut HeaderMap) -> Option<SpanId> {
        let trace = self.context.trace.as_ref()?;
        let of_route = self.per_route.and_then(|route| route.emit_client_span);
        trace.propagate(headers, of_route.unwrap_or(self.filter.emit_client_span))
    }

    fn body(&self) -> Option<CheckBody<'_>> {
        let shown = self.shown;
        (!shown.data.is_empty()).then_some(CheckBody {
            data: &shown.data,
            partial: shown.partial,
            received: shown.received,
        })
    }
}

fn unanswered(failed: CheckFailed) -> Asked {
    Asked {
        answer: Err(failed),
        latency: Duration::ZERO,
        sent: 0,
        received: 0,
        span: None,
    }
}

async fn fetch(
    client: &HttpClient,
    request: Request<Bytes>,
    http: &HttpCall,
) -> Result<Response<Bytes>, HttpError> {
    let forever = Duration::MAX;
    let timeout = http.timeout.unwrap_or(forever);
    let Some(retry) = &http.retry else {
        return client.request(request, timeout, MAX_ANSWER).await;
    };
    let bound = retry.of_attempt(http.timeout).unwrap_or(forever);
    let attempts = retry.run(
        client.breakers(),
        || client.request(request.clone(), bound, MAX_ANSWER),
        |answer| {
            Some(match answer {
                Ok(response) => Failure::Http(response.status()),
                Err(error) => Failure::of_http(error),
            })
        },
    );
    tokio::time::timeout(timeout, attempts)
        .await
        .unwrap_or_else(|_| {
            Err(HttpError::Timeout {
                cluster: client.name().clone(),
                timeout,
            })
        })
}
