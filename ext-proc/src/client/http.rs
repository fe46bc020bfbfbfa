//! Processors that are asked over plain HTTP (`http_service`): one POST of JSON for each message.
//!
//! Only headers can be processed this way. The answer must be a 200 with a `ProcessingResponse`
//! as JSON; anything else is a failure of the processor.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use attache_filter::CallMetadata;
use attache_proto::ext_proc::{ProcessingRequest, ProcessingResponse};
use attache_service::{
    HttpClient,
    channel::FRAME_HEADER,
    config::{Errors, Located},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header, request};
use prost::Message as _;

use super::{BodyMode, Modes, config::HttpService};
use crate::json;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A processor that is asked over plain HTTP.
#[derive(Debug, Clone)]
pub struct HttpCall {
    /// The cluster of the processor.
    pub cluster: Located<String>,
    /// Where requests go: host, path and query.
    pub uri: Uri,
    /// Bound on one answer.
    pub timeout: Duration,
    /// Headers of each request.
    pub headers: HeaderMap,
}

impl HttpCall {
    pub(super) fn plan(raw: &HttpService, errors: &mut Errors) -> Option<Self> {
        let target = &raw.http_uri;
        let headers = raw.request_headers_to_add.iter();
        let headers: Vec<_> = headers.map(|option| option.header.clone()).collect();
        let headers = CallMetadata::plan(&headers, errors);
        if !headers.is_fixed() {
            let message = "values of the request are not filled in here, as in Envoy";
            errors.push(&target.uri, message);
        }
        let uri = target.uri.parse::<Uri>().ok();
        let Some(uri) = uri.filter(|uri| uri.authority().is_some()) else {
            errors.push(
                &target.uri,
                "expected a URI with a host, such as `http://processor/process`",
            );
            return None;
        };
        Some(Self {
            cluster: target.cluster.clone(),
            uri,
            timeout: target.timeout,
            headers: headers.fixed,
        })
    }

    /// Headers are all that can be asked about.
    pub(super) fn check_modes(modes: Modes, at: &Located<String>, errors: &mut Errors) {
        let headers_only = modes.request_body == BodyMode::None
            && modes.response_body == BodyMode::None
            && !modes.request_trailers
            && !modes.response_trailers;
        if !headers_only {
            errors.push(
                at,
                "an `http_service` is asked about headers only: leave the modes of bodies and \
                 trailers out of `processing_mode`",
            );
        }
    }

    /// The headers of the requests about one exchange.
    pub(super) fn headers(&self, request: &request::Parts) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(id) = request.headers.get(REQUEST_ID) {
            headers.insert(REQUEST_ID, id.clone());
        }
        headers
    }
}

/// A failed call.
pub(super) struct HttpFailure {
    /// There was an answer, with another status than 200.
    pub(super) not_ok: bool,
}

type Answer = Pin<Box<dyn Future<Output = Result<Bytes, HttpFailure>> + Send>>;

/// The calls about one exchange, one after the other.
pub(super) struct HttpLink {
    client: Option<HttpClient>,
    uri: Uri,
    timeout: Duration,
    headers: HeaderMap,
    /// Messages in gRPC frames, as exchanges write them; two at most, as directions have one.
    waiting: VecDeque<Bytes>,
    running: Option<Answer>,
}

impl HttpLink {
    /// `client` is `None` when the configured cluster does not exist.
    pub(super) fn new(call: &HttpCall, client: Option<HttpClient>, headers: HeaderMap) -> Self {
        Self {
            client,
            uri: call.uri.clone(),
            timeout: call.timeout,
            headers,
            waiting: VecDeque::new(),
            running: None,
        }
    }

    pub(super) fn send(&mut self, message: Bytes) {
        self.waiting.push_back(message);
    }

    /// The next answer, as an encoded `ProcessingResponse`. Pending while nothing is asked.
    pub(super) fn poll_message(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, HttpFailure>> {
        if self.running.is_none()
            && let Some(message) = self.waiting.pop_front()
        {
            self.running = Some(self.ask(&message));
        }
        let Some(running) = &mut self.running else {
            return Poll::Pending;
        };
        let answer = std::task::ready!(running.as_mut().poll(cx));
        self.running = None;
        Poll::Ready(answer)
    }

    fn ask(&self, framed: &[u8]) -> Answer {
        let message = framed.get(FRAME_HEADER..).unwrap_or_default();
        let request = self.request(message);
        let client = self.client.clone();
        let timeout = self.timeout;
        Box::pin(async move {
            let failed = HttpFailure { not_ok: false };
            let (Some(client), Some(request)) = (client, request) else {
                return Err(failed);
            };
            let answer = match client.request(request, timeout, MAX_ANSWER).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(%error, "the processor was not asked");
                    return Err(failed);
                }
            };
            if answer.status() != StatusCode::OK {
                tracing::debug!(status = %answer.status(), "the processor refused to answer");
                return Err(HttpFailure { not_ok: true });
            }
            let answer: ProcessingResponse =
                json::decode_response(answer.body()).map_err(|error| {
                    tracing::debug!(%error, "the processor's answer is not valid");
                    failed
                })?;
            Ok(answer.encode_to_vec().into())
        })
    }

    /// `None` for a message without a JSON form.
    fn request(&self, message: &[u8]) -> Option<Request<Bytes>> {
        let message = ProcessingRequest::decode(message).ok()?;
        let text = json::encode_request(&message)
            .inspect_err(|error| tracing::debug!(%error, "a message cannot be sent as JSON"))
            .ok()?;
        let mut request = Request::post(self.uri.clone()).body(text.into()).ok()?;
        *request.headers_mut() = self.headers.clone();
        Some(request)
    }
}
