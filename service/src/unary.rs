//! A gRPC method with one request and one answer, served straight over HTTP bodies.
//!
//! What tonic's generated servers do in many boxed layers is done here in one future, which is
//! short: these methods are asked for every request of a proxy.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::{Body as _, Frame};
use prost::Message;
use tonic::{Code, Status, body::Body, server::NamedService};

use crate::channel::{Deframer, encode_message};

/// Largest request that is accepted by default, in bytes: 4 MiB, as in other gRPC servers.
const MAX_MESSAGE: usize = 4 << 20;

/// A gRPC method with one request and one answer.
pub trait UnaryMethod: Send + Sync + 'static {
    /// What is asked.
    type Request: Message + Default;
    /// What is answered.
    type Answer: Message;
    /// The service that the method belongs to: `package.Service`.
    const SERVICE: &'static str;
    /// Its name in the service.
    const METHOD: &'static str;

    /// Answers one request, which came with these headers.
    ///
    /// # Errors
    /// What the caller gets in the place of an answer.
    fn answer(
        &self,
        headers: HeaderMap,
        request: Self::Request,
    ) -> impl Future<Output = Result<Self::Answer, Status>> + Send;
}

/// A service of one [`UnaryMethod`]: for [`Host::service`](crate::Host::service), or for a tonic
/// server.
///
/// Requests are taken as they are: one that is compressed is answered with `UNIMPLEMENTED`, one
/// that is too large with `RESOURCE_EXHAUSTED`.
#[derive(Debug)]
pub struct Unary<M> {
    method: Arc<M>,
    max_message: usize,
}

impl<M: UnaryMethod> Unary<M> {
    /// Serves `method`, with requests of at most 4 MiB.
    pub fn new(method: M) -> Self {
        Self {
            method: Arc::new(method),
            max_message: MAX_MESSAGE,
        }
    }

    /// The largest request that is accepted, in bytes.
    #[must_use]
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.max_message = bytes;
        self
    }
}

impl<M> Clone for Unary<M> {
    fn clone(&self) -> Self {
        Self {
            method: self.method.clone(),
            max_message: self.max_message,
        }
    }
}

impl<M: UnaryMethod> NamedService for Unary<M> {
    const NAME: &'static str = M::SERVICE;
}

impl<M: UnaryMethod> tower::Service<Request<Body>> for Unary<M> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let (_, method) = head.uri.path().rsplit_once('/').unwrap_or_default();
            if method != M::METHOD {
                return Ok(Status::unimplemented("no such method here").into_http());
            }
            let message = match message(body, service.max_message).await {
                Ok(message) => message,
                Err(status) => return Ok(refusal(status, &head.headers).into_http()),
            };
            let request = match M::Request::decode(message) {
                Ok(request) => request,
                Err(error) => return Ok(Status::internal(error.to_string()).into_http()),
            };
            Ok(match service.method.answer(head.headers, request).await {
                Ok(answer) => success(encode_message(&answer)),
                Err(status) => status.into_http(),
            })
        })
    }
}

/// The only message of a request's body.
async fn message(mut body: Body, max: usize) -> Result<Bytes, Status> {
    let mut deframer = Deframer::default();
    let mut message = None;
    while let Some(frame) = next_frame(&mut body).await {
        // Trailers say nothing.
        let Ok(data) = frame?.into_data() else { break };
        deframer.push(data);
        if message.is_none() {
            message = deframer.next(max)?;
        }
        if message.is_some() && !deframer.is_empty() {
            return Err(Status::internal("more than one message"));
        }
        if body.is_end_stream() {
            break;
        }
    }
    message.ok_or_else(|| Status::internal("no whole message"))
}

async fn next_frame(body: &mut Body) -> Option<Result<Frame<Bytes>, Status>> {
    std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
}

/// Why a request is not read. By gRPC's rules a caller that compresses is told what it may use.
fn refusal(status: Status, headers: &HeaderMap) -> Status {
    let encoding = headers.get("grpc-encoding");
    if status.code() != Code::Internal || encoding.is_none_or(|encoding| encoding == "identity") {
        return status;
    }
    let mut status = Status::unimplemented("compressed requests are not read here");
    let accepted = tonic::metadata::MetadataValue::from_static("identity");
    status
        .metadata_mut()
        .insert("grpc-accept-encoding", accepted);
    status
}

fn success(message: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::new(Answer::Message(message)));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}

/// What is left to send of an answer.
enum Answer {
    /// The framed message, and how the call ended.
    Message(Bytes),
    /// How it ended: well.
    Status,
    Nothing,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let (frame, rest) = match std::mem::replace(&mut *self, Self::Nothing) {
            Self::Message(message) => (Frame::data(message), Self::Status),
            Self::Status => (Frame::trailers(ok()), Self::Nothing),
            Self::Nothing => return Poll::Ready(None),
        };
        *self = rest;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

fn ok() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

#[cfg(test)]
mod tests {
    use attache_proto::ratelimit::{RateLimitRequest, RateLimitResponse};
    use http_body_util::{BodyExt as _, StreamBody};
    use tower::ServiceExt as _;

    use super::*;
    use crate::channel::frame_message;

    /// Answers with the domain, unless it is to fail.
    struct Echo;

    impl UnaryMethod for Echo {
        type Request = RateLimitRequest;
        type Answer = RateLimitResponse;
        const SERVICE: &'static str = "package.Service";
        const METHOD: &'static str = "Method";

        async fn answer(
            &self,
            headers: HeaderMap,
            request: RateLimitRequest,
        ) -> Result<RateLimitResponse, Status> {
            if headers.contains_key("fail") {
                return Err(Status::permission_denied("not you"));
            }
            Ok(RateLimitResponse {
                raw_body: request.domain.into(),
                ..RateLimitResponse::default()
            })
        }
    }

    fn framed(domain: &str) -> Bytes {
        encode_message(&RateLimitRequest {
            domain: domain.to_owned(),
            ..RateLimitRequest::default()
        })
    }

    /// A call with these pieces for a body.
    fn call(pieces: Vec<Bytes>) -> Request<Body> {
        let frames = pieces.into_iter().map(Frame::data).map(Ok::<_, Status>);
        let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
        let request = Request::post("/package.Service/Method");
        request.body(body).unwrap()
    }

    /// What a call was answered with: text, or a status and its headers.
    async fn answer(request: Request<Body>) -> Result<String, (Code, HeaderMap)> {
        let service = Unary::new(Echo).max_message(1000);
        let response = service.oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        assert_eq!(head.headers[header::CONTENT_TYPE], "application/grpc");
        let body = body.collect().await.unwrap();
        let ended = body.trailers().cloned().unwrap_or(head.headers);
        let status = Status::from_header_map(&ended).unwrap();
        if status.code() != Code::Ok {
            return Err((status.code(), ended));
        }
        let mut deframer = Deframer::default();
        deframer.push(body.to_bytes());
        let message = deframer.next(usize::MAX).unwrap().unwrap();
        let answer = RateLimitResponse::decode(message).unwrap();
        Ok(String::from_utf8(answer.raw_body.to_vec()).unwrap())
    }

    async fn code(request: Request<Body>) -> Code {
        answer(request).await.unwrap_err().0
    }

    #[tokio::test]
    async fn a_request_is_answered_however_it_comes_in_pieces() {
        let message = framed("hello");
        let whole = answer(call(vec![message.clone()])).await;
        assert_eq!(whole.unwrap(), "hello");
        let bytes = message.chunks(1).map(Bytes::copy_from_slice);
        assert_eq!(answer(call(bytes.collect())).await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn a_method_that_fails_sends_its_status() {
        let mut request = call(vec![framed("hello")]);
        request
            .headers_mut()
            .insert("fail", HeaderValue::from_static("1"));
        assert_eq!(code(request).await, Code::PermissionDenied);
    }

    #[tokio::test]
    async fn other_methods_are_not_here() {
        let mut request = call(vec![framed("hello")]);
        *request.uri_mut() = "/package.Service/Other".parse().unwrap();
        assert_eq!(code(request).await, Code::Unimplemented);
    }

    #[tokio::test]
    async fn a_body_that_is_not_one_message_is_refused() {
        let message = framed("hello");
        assert_eq!(code(call(Vec::new())).await, Code::Internal);
        let half = message.slice(..message.len() - 1);
        assert_eq!(code(call(vec![half])).await, Code::Internal);
        let twice = vec![message.clone(), message];
        assert_eq!(code(call(twice)).await, Code::Internal);
        let garbage = frame_message(&[0xff; 4]);
        assert_eq!(code(call(vec![garbage])).await, Code::Internal);
    }

    #[tokio::test]
    async fn a_request_that_is_too_large_is_refused_before_it_has_come() {
        let announced = framed(&"x".repeat(1001)).slice(..10);
        let refused = code(call(vec![announced])).await;
        assert_eq!(refused, Code::ResourceExhausted);
    }

    #[tokio::test]
    async fn a_caller_that_compresses_is_told_not_to() {
        let mut message = framed("hello").to_vec();
        message[0] = 1;
        let mut request = call(vec![message.into()]);
        request
            .headers_mut()
            .insert("grpc-encoding", HeaderValue::from_static("gzip"));
        let (code, headers) = answer(request).await.unwrap_err();
        assert_eq!(code, Code::Unimplemented);
        assert_eq!(headers["grpc-accept-encoding"], "identity");
    }
}
