//! One check of one endpoint, over a connection that the next may use again.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header, uri};
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    config::{CHECKER, GrpcQuestion, HealthPlan, HttpQuestion, Question},
    state::Verdict,
};
use crate::{
    channel::frame_message,
    cluster::{Endpoint, Io},
    tls::ClientTls,
};

/// Most bytes of an answer; longer ones are no health answers.
const LONGEST_ANSWER: usize = 64 << 10;

/// Why an endpoint has not passed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It is there and says so.
    #[error("{0}")]
    Refused(String),
    /// It says so, but only for a while, or cannot be understood.
    #[error("{0}")]
    Unclear(String),
    /// Connection or stream.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// HTTP.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(std::time::Duration),
}

impl Failure {
    pub(super) fn verdict(&self) -> Verdict {
        match self {
            Self::Refused(_) => Verdict::Refused,
            Self::Unclear(_) | Self::Io(_) | Self::Http(_) | Self::TimedOut(_) => Verdict::Unclear,
        }
    }
}

type Body = Full<Bytes>;

/// A connection to an endpoint between two checks.
enum Kept {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
    Tcp(Box<dyn Io>),
}

/// Asks one endpoint.
pub(super) struct Prober {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) plan: Arc<HealthPlan>,
    pub(super) tls: Option<ClientTls>,
    /// Never locked: a connection is for one at a time, while what asks is shared.
    kept: Mutex<Option<Kept>>,
}

impl Prober {
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        plan: Arc<HealthPlan>,
        tls: Option<ClientTls>,
    ) -> Self {
        Self {
            endpoint,
            plan,
            tls,
            kept: Mutex::default(),
        }
    }

    /// One check.
    pub(super) async fn check(&mut self) -> Result<(), Failure> {
        let limit = self.plan.timeout;
        let kept = self.kept().take();
        let outcome = tokio::time::timeout(limit, self.ask(kept)).await;
        let (outcome, kept) = outcome.unwrap_or((Err(Failure::TimedOut(limit)), None));
        *self.kept() = kept.filter(|_| self.plan.reuse);
        outcome
    }

    fn kept(&mut self) -> &mut Option<Kept> {
        self.kept.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, kept: Option<Kept>) -> (Result<(), Failure>, Option<Kept>) {
        match &self.plan.question {
            Question::Http(question) => {
                let request = question.request(self.tls.is_some());
                match self.exchange(kept, question.http2, request).await {
                    Ok((answer, kept)) => (question.judge(answer.status), kept),
                    Err(failure) => (Err(failure), None),
                }
            }
            Question::Grpc(question) => {
                let request = question.request(self.tls.is_some());
                match self.exchange(kept, true, request).await {
                    Ok((answer, kept)) => (question.judge(&answer), kept),
                    Err(failure) => (Err(failure), None),
                }
            }
            Question::Tcp { send, receive } => {
                let io = match kept {
                    Some(Kept::Tcp(io)) => Ok(io),
                    _ => self.open().await,
                };
                match io {
                    Err(error) => (Err(error.into()), None),
                    Ok(mut io) => match converse(&mut io, send, receive).await {
                        // One that was only opened is opened again, or it would tell nothing.
                        Ok(()) if receive.is_empty() => (Ok(()), None),
                        Ok(()) => (Ok(()), Some(Kept::Tcp(io))),
                        Err(failure) => (Err(failure), None),
                    },
                }
            }
        }
    }

    /// One request and its whole answer.
    async fn exchange(
        &self,
        kept: Option<Kept>,
        http2: bool,
        request: Request<Body>,
    ) -> Result<(Answer, Option<Kept>), Failure> {
        match kept {
            Some(Kept::Http1(mut sender)) if sender.is_ready() => {
                match sender.try_send_request(request).await {
                    Ok(response) => {
                        let answer = Answer::read(response).await?;
                        return Ok((answer, Some(Kept::Http1(sender))));
                    }
                    // The endpoint has closed it meanwhile.
                    Err(mut error) => match error.take_message() {
                        Some(unsent) => return self.anew(http2, unsent).await,
                        None => return Err(error.into_error().into()),
                    },
                }
            }
            Some(Kept::Http2(mut sender)) if sender.is_ready() => {
                match sender.try_send_request(request).await {
                    Ok(response) => {
                        let answer = Answer::read(response).await?;
                        return Ok((answer, Some(Kept::Http2(sender))));
                    }
                    Err(mut error) => match error.take_message() {
                        Some(unsent) => return self.anew(http2, unsent).await,
                        None => return Err(error.into_error().into()),
                    },
                }
            }
            _ => {}
        }
        self.anew(http2, request).await
    }

    /// The same over a connection of its own.
    async fn anew(
        &self,
        http2: bool,
        request: Request<Body>,
    ) -> Result<(Answer, Option<Kept>), Failure> {
        let io = TokioIo::new(self.open().await?);
        if http2 {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            let response = sender.send_request(request).await?;
            let answer = Answer::read(response).await?;
            Ok((answer, Some(Kept::Http2(sender))))
        } else {
            let (mut sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            let response = sender.send_request(request).await?;
            let answer = Answer::read(response).await?;
            Ok((answer, Some(Kept::Http1(sender))))
        }
    }

    async fn open(&self) -> io::Result<Box<dyn Io>> {
        let opened = self.endpoint.open().await?;
        opened
            .secured(self.tls.as_ref(), self.endpoint.hostname())
            .await
    }
}

/// A whole answer.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    trailers: Option<HeaderMap>,
    body: Bytes,
}

impl Answer {
    async fn read(response: http::Response<hyper::body::Incoming>) -> Result<Self, Failure> {
        let (head, body) = response.into_parts();
        let body = Limited::new(body, LONGEST_ANSWER).collect().await;
        let body: Collected<Bytes> =
            body.map_err(|error| Failure::Unclear(format!("its answer broke off: {error}")))?;
        Ok(Self {
            status: head.status,
            headers: head.headers,
            trailers: body.trailers().cloned(),
            body: body.to_bytes(),
        })
    }
}

fn whole(
    method: Method,
    authority: &HeaderValue,
    path: uri::PathAndQuery,
    tls: bool,
    http2: bool,
) -> Request<Body> {
    let mut request = Request::new(Body::default());
    *request.method_mut() = method;
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, CHECKER);
    if http2 {
        let scheme = if tls {
            uri::Scheme::HTTPS
        } else {
            uri::Scheme::HTTP
        };
        let authority = uri::Authority::try_from(authority.as_bytes());
        let whole = Uri::builder()
            .scheme(scheme)
            .authority(authority.unwrap_or_else(|_| uri::Authority::from_static("localhost")))
            .path_and_query(path);
        // Has all three parts, so it cannot fail.
        *request.uri_mut() = whole.build().unwrap_or_default();
        *request.version_mut() = Version::HTTP_2;
    } else {
        headers.insert(header::HOST, authority.clone());
        *request.uri_mut() = path.into();
    }
    request
}

impl HttpQuestion {
    fn request(&self, tls: bool) -> Request<Body> {
        let method = self.method.clone();
        whole(method, &self.host, self.path.clone(), tls, self.http2)
    }

    fn judge(&self, status: StatusCode) -> Result<(), Failure> {
        if self.expects(status) {
            return Ok(());
        }
        let answer = format!("it answers {}", status.as_u16());
        Err(match self.is_retriable(status) {
            true => Failure::Unclear(answer),
            false => Failure::Refused(answer),
        })
    }
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; a status of 1 is `SERVING`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl GrpcQuestion {
    fn request(&self, tls: bool) -> Request<Body> {
        let authority = HeaderValue::from_str(self.authority.as_str());
        let authority = authority.unwrap_or_else(|_| HeaderValue::from_static("localhost"));
        let path = uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let mut request = whole(Method::POST, &authority, path, tls, true);
        let headers = request.headers_mut();
        let grpc = HeaderValue::from_static("application/grpc");
        headers.insert(header::CONTENT_TYPE, grpc);
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        let message = HealthCheckRequest {
            service: self.service.to_string(),
        };
        *request.body_mut() = Body::new(frame_message(&message.encode_to_vec()));
        request
    }

    fn judge(&self, answer: &Answer) -> Result<(), Failure> {
        let trailers = answer.trailers.as_ref().unwrap_or(&answer.headers);
        let code = trailers.get("grpc-status").and_then(|c| c.to_str().ok());
        match code {
            Some("0") => {}
            Some(code) => return Err(Failure::Refused(format!("its gRPC status is {code}"))),
            None => {
                let status = answer.status.as_u16();
                return Err(Failure::Refused(format!(
                    "it answers {status} without gRPC"
                )));
            }
        }
        // One frame: whether it is compressed, its length, the message.
        let message = match answer.body.split_at_checked(5) {
            Some(([0, length @ ..], message)) => {
                let length = <[u8; 4]>::try_from(length).map(u32::from_be_bytes);
                length
                    .is_ok_and(|length| usize::try_from(length) == Ok(message.len()))
                    .then_some(message)
            }
            _ => None,
        };
        match message.map(HealthCheckResponse::decode) {
            Some(Ok(HealthCheckResponse { status: 1 })) => Ok(()),
            Some(Ok(_)) => Err(Failure::Refused("it is not serving".to_owned())),
            _ => Err(Failure::Refused("its answer is malformed".to_owned())),
        }
    }
}

/// Says `send` and waits for all of `receive`, in their order, whatever stands between.
async fn converse(io: &mut Box<dyn Io>, send: &Bytes, receive: &[Bytes]) -> Result<(), Failure> {
    if !send.is_empty() {
        io.write_all(send).await?;
        io.flush().await?;
    }
    let mut wanted = receive.iter();
    let mut next = wanted.next();
    let mut seen = BytesMut::new();
    loop {
        while let Some(part) = next {
            let Some(at) = position(&seen, part) else {
                break;
            };
            let _ = seen.split_to((at + part.len()).min(seen.len()));
            next = wanted.next();
        }
        if next.is_none() {
            return Ok(());
        }
        if seen.len() >= LONGEST_ANSWER {
            return Err(Failure::Unclear("its answer is another".to_owned()));
        }
        let mut limited = (&mut seen).limit(LONGEST_ANSWER);
        if io.read_buf(&mut limited).await? == 0 {
            return Err(Failure::Unclear(
                "it closed the connection before its answer".to_owned(),
            ));
        }
    }
}

fn position(seen: &[u8], part: &[u8]) -> Option<usize> {
    seen.windows(part.len().max(1)).position(|at| at == part)
}
