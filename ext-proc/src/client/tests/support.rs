//! A processor that does as told, an upstream, and a caller.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
};

use attache_filter::{Body, BoxError, Channels, RequestContext};
use attache_proto::{
    core::{HeaderValue, HeaderValueOption},
    ext_proc::{
        BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse,
        ImmediateResponse, ProcessingRequest, ProcessingResponse, TrailersResponse,
        body_mutation::Mutation,
        external_processor_server::{ExternalProcessor, ExternalProcessorServer},
        processing_request::Request as Part,
        processing_response::Response as Answer,
    },
    types::HttpStatus,
};
use attache_service::{Channel, ChannelSettings, Metrics, channel::Target, host::Host};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tonic::{Status, Streaming, service::Routes};
use tower::{Layer, ServiceExt, service_fn};

use crate::client::{ExtProcLayer, Filter};

/// What a processor does when a message arrives.
pub(super) enum Act {
    Send(Answer),
    /// A message with more than an answer.
    Raw(Box<ProcessingResponse>),
    /// Ends the stream with this status; OK closes it cleanly.
    End(Status),
    /// Answers nothing, for ever.
    Stall,
}

pub(super) type Script = Arc<dyn Fn(&Part) -> Vec<Act> + Send + Sync>;

struct Scripted {
    script: Script,
    seen: Arc<Mutex<Vec<ProcessingRequest>>>,
    metadata: Arc<Mutex<HeaderMap>>,
}

#[tonic::async_trait]
impl ExternalProcessor for Scripted {
    type ProcessStream = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

    async fn process(
        &self,
        request: tonic::Request<Streaming<ProcessingRequest>>,
    ) -> Result<tonic::Response<Self::ProcessStream>, Status> {
        let script = self.script.clone();
        let seen = self.seen.clone();
        let (send, receive) = mpsc::unbounded_channel();
        let (metadata, _, mut messages) = request.into_parts();
        *self.metadata.lock().unwrap() = metadata.into_headers();
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                let acts = message.request.as_ref().map(|part| script(part));
                seen.lock().unwrap().push(message);
                for act in acts.into_iter().flatten() {
                    let sent = match act {
                        Act::Send(answer) => send.send(Ok(ProcessingResponse {
                            response: Some(answer),
                            ..ProcessingResponse::default()
                        })),
                        Act::Raw(message) => send.send(Ok(*message)),
                        Act::End(status) if status.code() == tonic::Code::Ok => return,
                        Act::End(status) => send.send(Err(status)),
                        Act::Stall => Ok(()),
                    };
                    if sent.is_err() {
                        return;
                    }
                }
            }
        });
        let replies = futures_util::stream::unfold(receive, |mut receive| async {
            receive.recv().await.map(|reply| (reply, receive))
        });
        Ok(tonic::Response::new(Box::pin(replies)))
    }
}

/// One request through the layer and what everybody saw of it.
pub(super) struct Exchanged {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// `Err` when the response body broke off.
    pub(super) body: Result<Bytes, String>,
    pub(super) trailers: Option<HeaderMap>,
    /// What the upstream received; `None` when it was not asked.
    pub(super) upstream: Option<Received>,
    /// The messages that the processor saw.
    pub(super) messages: Vec<ProcessingRequest>,
    /// The metadata of its stream.
    pub(super) metadata: HeaderMap,
    pub(super) details: Option<String>,
    pub(super) context: Arc<RequestContext>,
    metrics: String,
}

impl Exchanged {
    /// The value of one of the filter's counters.
    pub(super) fn count(&self, name: &str) -> u64 {
        let line = format!("attache_ext_proc_{name}_total{{filter=\"f\"}} ");
        let found = self.metrics.lines().find_map(|l| l.strip_prefix(&line));
        found
            .unwrap_or_else(|| panic!("no {name}"))
            .parse()
            .unwrap()
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(self.body.as_ref().unwrap()).unwrap()
    }

    /// The messages in short: `request_headers eos`, `request_body[hello] eos`, ...
    pub(super) fn transcript(&self) -> Vec<String> {
        self.messages.iter().map(short).collect()
    }
}

fn short(message: &ProcessingRequest) -> String {
    let eos = |eos: bool| if eos { " eos" } else { "" };
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    match message.request.as_ref().unwrap() {
        Part::RequestHeaders(h) => format!("request_headers{}", eos(h.end_of_stream)),
        Part::ResponseHeaders(h) => format!("response_headers{}", eos(h.end_of_stream)),
        Part::RequestBody(b) => format!("request_body[{}]{}", text(&b.body), eos(b.end_of_stream)),
        Part::ResponseBody(b) => {
            format!("response_body[{}]{}", text(&b.body), eos(b.end_of_stream))
        }
        Part::RequestTrailers(_) => "request_trailers".to_owned(),
        Part::ResponseTrailers(_) => "response_trailers".to_owned(),
    }
}

#[derive(Debug)]
pub(super) struct Received {
    pub(super) head: http::request::Parts,
    /// `Err` when the request body broke off.
    pub(super) body: Result<Bytes, String>,
    pub(super) trailers: Option<HeaderMap>,
}

/// A body of these frames, of which the first comes at once and each other when polled again.
pub(super) fn chunked(frames: Vec<Result<Frame<Bytes>, BoxError>>) -> Body {
    Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(
        frames,
    )))
}

pub(super) fn chunks(pieces: &[&'static str]) -> Body {
    chunked(
        pieces
            .iter()
            .map(|p| Ok(Frame::data(Bytes::from_static(p.as_bytes()))))
            .collect(),
    )
}

pub(super) fn data(text: &'static str) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

pub(super) fn trailers(name: &'static str, value: &'static str) -> Result<Frame<Bytes>, BoxError> {
    let mut map = HeaderMap::new();
    map.insert(name, value.parse().unwrap());
    Ok(Frame::trailers(map))
}

pub(super) fn get() -> Request<Body> {
    Request::builder()
        .uri("/p")
        .header("host", "h")
        .body(Body::empty())
        .unwrap()
}

pub(super) fn post(body: Body) -> Request<Body> {
    Request::builder()
        .method("POST")
        .uri("/p")
        .header("host", "h")
        .body(body)
        .unwrap()
}

/// POST with `content-length`.
pub(super) fn post_hello() -> Request<Body> {
    let mut request = post(Body::from("hello"));
    request.headers_mut().insert("content-length", 5.into());
    request
}

/// The usual answer of the upstream: 200, 13 bytes.
pub(super) fn upstream_body() -> Response<Body> {
    Response::builder()
        .header("content-length", 13)
        .body(Body::from("upstream-body"))
        .unwrap()
}

pub(super) struct Setup {
    pub(super) filter: Filter,
    script: Script,
    answer: Arc<dyn Fn() -> Response<Body> + Send + Sync>,
}

/// A filter with defaults, changed by `change`, and a processor with this script.
pub(super) fn setup(
    change: impl FnOnce(&mut Filter),
    script: impl Fn(&Part) -> Vec<Act> + Send + Sync + 'static,
) -> Setup {
    let mut filter = Filter::new("f", "processor");
    change(&mut filter);
    Setup {
        filter,
        script: Arc::new(script),
        answer: Arc::new(upstream_body),
    }
}

impl Setup {
    pub(super) fn upstream(
        mut self,
        answer: impl Fn() -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        self.answer = Arc::new(answer);
        self
    }

    pub(super) async fn send(self, request: Request<Body>) -> Exchanged {
        let answer = self.answer.clone();
        self.send_with(request, move |request| {
            let answer = answer.clone();
            async move {
                let received = receive(request).await;
                (answer(), received)
            }
        })
        .await
    }

    /// Sends `request`; `upstream` answers it and says what it received.
    pub(super) async fn send_with<F, A>(self, mut request: Request<Body>, upstream: F) -> Exchanged
    where
        F: Fn(Request<Body>) -> A + Clone + Send + 'static,
        A: Future<Output = (Response<Body>, Received)> + Send + 'static,
    {
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let called = Arc::<Mutex<HeaderMap>>::default();
        let service = Scripted {
            script: self.script,
            seen: seen.clone(),
            metadata: called.clone(),
        };
        let host = Host::new(Routes::new(ExternalProcessorServer::new(service)));
        let settings = ChannelSettings::new("processor", vec![Target::Embedded(host.embedded())]);
        let channels: Channels = [Channel::new(settings)].into_iter().collect();
        let metrics = Metrics::default();
        let received = Arc::<Mutex<Option<Received>>>::default();
        let notes = received.clone();
        let inner = service_fn(move |request: Request<Body>| {
            let answered = upstream.clone()(request);
            let notes = notes.clone();
            async move {
                let (response, received) = answered.await;
                *notes.lock().unwrap() = Some(received);
                Ok::<_, Infallible>(response)
            }
        });
        let layer = ExtProcLayer::new(Arc::new(self.filter), &channels, &metrics);
        let context = RequestContext::of(&mut request);
        let response = layer.layer(inner).oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let (body, trailers) = collect(body).await;
        let upstream = received.lock().unwrap().take();
        // What was sent last may still be on its way to the processor.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        let messages = std::mem::take(&mut *seen.lock().unwrap());
        Exchanged {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            trailers,
            upstream,
            messages,
            metadata: std::mem::take(&mut *called.lock().unwrap()),
            details: context.details().map(|d| d.into_owned()),
            context,
            metrics: metrics.render(),
        }
    }
}

/// Reads a request to its end.
pub(super) async fn receive(request: Request<Body>) -> Received {
    let (head, body) = request.into_parts();
    let (body, trailers) = collect(body).await;
    Received {
        head,
        body,
        trailers,
    }
}

async fn collect(body: Body) -> (Result<Bytes, String>, Option<HeaderMap>) {
    match body.collect().await {
        Ok(collected) => {
            let trailers = collected.trailers().cloned();
            (Ok(collected.to_bytes()), trailers)
        }
        Err(error) => (Err(error.to_string()), None),
    }
}

// ---- answers

/// The plain "continue" to any message.
pub(super) fn pass(part: &Part) -> Act {
    Act::Send(answer(part, CommonResponse::default()))
}

pub(super) fn answer(part: &Part, common: CommonResponse) -> Answer {
    let response = Some(common.clone());
    match part {
        Part::RequestHeaders(_) => Answer::RequestHeaders(HeadersResponse { response }),
        Part::ResponseHeaders(_) => Answer::ResponseHeaders(HeadersResponse { response }),
        Part::RequestBody(_) => Answer::RequestBody(BodyResponse { response }),
        Part::ResponseBody(_) => Answer::ResponseBody(BodyResponse { response }),
        Part::RequestTrailers(_) => Answer::RequestTrailers(TrailersResponse {
            header_mutation: common.header_mutation,
        }),
        Part::ResponseTrailers(_) => Answer::ResponseTrailers(TrailersResponse {
            header_mutation: common.header_mutation,
        }),
    }
}

pub(super) fn option(key: &str, raw_value: &[u8]) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.to_owned(),
            raw_value: Bytes::copy_from_slice(raw_value),
            ..HeaderValue::default()
        }),
        ..HeaderValueOption::default()
    }
}

/// Sets these headers and removes those.
pub(super) fn mutation(set: &[(&str, &str)], remove: &[&str]) -> HeaderMutation {
    HeaderMutation {
        set_headers: set.iter().map(|(k, v)| option(k, v.as_bytes())).collect(),
        remove_headers: remove.iter().map(|s| (*s).to_owned()).collect(),
    }
}

pub(super) fn set(headers: &[(&str, &str)]) -> CommonResponse {
    CommonResponse {
        header_mutation: Some(mutation(headers, &[])),
        ..CommonResponse::default()
    }
}

pub(super) fn body(bytes: &'static str) -> CommonResponse {
    CommonResponse {
        body_mutation: Some(BodyMutation {
            mutation: Some(Mutation::Body(bytes.into())),
        }),
        ..CommonResponse::default()
    }
}

pub(super) fn clear() -> CommonResponse {
    CommonResponse {
        body_mutation: Some(BodyMutation {
            mutation: Some(Mutation::ClearBody(true)),
        }),
        ..CommonResponse::default()
    }
}

pub(super) fn deny(code: i32, text: &'static str) -> ImmediateResponse {
    ImmediateResponse {
        status: Some(HttpStatus { code }),
        body: text.into(),
        details: "my details".to_owned(),
        ..ImmediateResponse::default()
    }
}
