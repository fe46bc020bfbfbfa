//! Load for a processor: exchanges as a proxy's worker has them, many at a time on one HTTP/2
//! connection, each a stream of its own with several messages and answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use attache_proto::core::{HeaderMap, HeaderValue, Metadata};
use attache_proto::ext_proc::{
    HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
    body_mutation::Mutation, processing_request, processing_response::Response as Said,
};
use attache_proto::ext_proc_filter::processing_mode::BodySendMode;
use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use prost::Message;

use crate::cpu::Process;
use crate::grpc::{connect, framed, request, succeeded};
use crate::row;
use crate::samples::Samples;
use crate::window::{Clients, Gate, Measured, Window};

/// `package.Service/Method` of every processor.
pub(crate) const PATH: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// How large the pieces of a streamed body are.
const PIECE: usize = 16 * 1024;

/// One exchange: what is said in turns, each answered message by message.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    turns: Vec<Turn>,
}

/// Messages that are sent at once, and what their answers must be.
#[derive(Debug, Clone)]
struct Turn {
    messages: Bytes,
    answers: Vec<Answer>,
}

/// What an answer must be.
#[derive(Debug, Clone)]
enum Answer {
    RequestHeader,
    ResponseHeader,
    ResponseBody(Bytes),
}

impl Exchange {
    /// The heads of a request and its response.
    pub(crate) fn headers() -> anyhow::Result<Exchange> {
        let turns = vec![request_turn(BodySendMode::None)?, response_turn(true)?];
        Ok(Exchange { turns })
    }

    /// The same with a streamed response body of 64 KiB in four pieces.
    pub(crate) fn body() -> anyhow::Result<Exchange> {
        let mut turns = vec![request_turn(BodySendMode::Streamed)?, response_turn(false)?];
        let body = row::large_body();
        let last = body.len().div_ceil(PIECE) - 1;
        let mut pieces = Turn {
            messages: Bytes::new(),
            answers: Vec::new(),
        };
        let mut messages = BytesMut::new();
        for (number, piece) in body.chunks(PIECE).enumerate() {
            let body = HttpBody {
                body: Bytes::copy_from_slice(piece),
                end_of_stream: number == last,
                ..HttpBody::default()
            };
            let asked = processing_request::Request::ResponseBody(body);
            messages.extend_from_slice(&framed(&message(asked))?);
            let capitals = piece.to_ascii_uppercase().into();
            pieces.answers.push(Answer::ResponseBody(capitals));
        }
        pieces.messages = messages.freeze();
        turns.push(pieces);
        Ok(Exchange { turns })
    }

    /// Has the exchange once.
    pub(crate) async fn probe(&self, target: SocketAddr) -> anyhow::Result<()> {
        let client = connect(target).await?;
        self.once(client, target).await
    }

    /// Has the exchange `streams` at a time through the window.
    pub(crate) async fn run(
        &self,
        target: SocketAddr,
        streams: u32,
        window: &Window,
        processes: &[Process],
    ) -> anyhow::Result<Measured> {
        let gate = window.gate();
        let client = connect(target).await?;
        let exchange = Arc::new(self.clone());
        let mut clients = Clients::new();
        for _ in 0..streams {
            let (exchange, client, gate) = (exchange.clone(), client.clone(), gate.clone());
            clients.spawn(async move { exchange.repeat(client, target, &gate).await });
        }
        window.measure(clients, &gate, processes).await
    }

    async fn repeat(
        &self,
        client: SendRequest<Bytes>,
        target: SocketAddr,
        gate: &Gate,
    ) -> anyhow::Result<Samples> {
        let mut samples = Samples::default();
        let mut start = Instant::now();
        while gate.open() {
            self.once(client.clone(), target).await?;
            let now = Instant::now();
            if gate.counts() {
                samples.add(now - start);
            }
            start = now;
        }
        Ok(samples)
    }

    async fn once(&self, client: SendRequest<Bytes>, target: SocketAddr) -> anyhow::Result<()> {
        let mut open = Open::begin(client, target).await?;
        for turn in &self.turns {
            open.turn(turn).await?;
        }
        open.end().await
    }

    /// Has the first turn of an exchange and leaves it open.
    pub(crate) async fn open(
        &self,
        client: SendRequest<Bytes>,
        target: SocketAddr,
    ) -> anyhow::Result<Open> {
        let mut open = Open::begin(client, target).await?;
        if let Some(turn) = self.turns.first() {
            open.turn(turn).await?;
        }
        Ok(open)
    }
}

/// An exchange under way.
pub(crate) struct Open {
    send: h2::SendStream<Bytes>,
    response: Option<h2::client::ResponseFuture>,
    body: Option<RecvStream>,
    received: BytesMut,
}

impl Open {
    async fn begin(client: SendRequest<Bytes>, target: SocketAddr) -> anyhow::Result<Open> {
        let mut client = client.ready().await.context("the connection is gone")?;
        let (response, send) = client.send_request(request(target, PATH)?, false)?;
        Ok(Open {
            send,
            response: Some(response),
            body: None,
            received: BytesMut::new(),
        })
    }

    async fn turn(&mut self, turn: &Turn) -> anyhow::Result<()> {
        self.send.send_data(turn.messages.clone(), false)?;
        for answer in &turn.answers {
            let message = self
                .message()
                .await?
                .context("the processor said no more")?;
            answer.check(ProcessingResponse::decode(message)?)?;
        }
        Ok(())
    }

    /// Ends the exchange; the processor must end it too, without a word.
    async fn end(mut self) -> anyhow::Result<()> {
        self.send.send_data(Bytes::new(), true)?;
        if self.message().await?.is_some() {
            bail!("an answer to nothing");
        }
        let body = self.body.as_mut().context("no response")?;
        let trailers = body.trailers().await?.context("no trailers")?;
        succeeded(&trailers)
    }

    async fn message(&mut self) -> anyhow::Result<Option<Bytes>> {
        if let Some(response) = self.response.take() {
            let response = response.await.context("no response")?;
            ensure!(response.status() == 200, "status {}", response.status());
            self.body = Some(response.into_body());
        }
        let body = self.body.as_mut().context("no response")?;
        loop {
            if let Some(&[compressed, a, b, c, d]) = self.received.first_chunk::<5>() {
                ensure!(compressed == 0, "a compressed message");
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if self.received.len() >= 5 + length {
                    self.received.advance(5);
                    return Ok(Some(self.received.split_to(length).freeze()));
                }
            }
            let Some(piece) = body.data().await else {
                ensure!(self.received.is_empty(), "half a message");
                return Ok(None);
            };
            let piece = piece?;
            body.flow_control().release_capacity(piece.len())?;
            self.received.extend_from_slice(&piece);
        }
    }
}

impl Answer {
    fn check(&self, message: ProcessingResponse) -> anyhow::Result<()> {
        let said = message.response.context("an empty answer")?;
        match (self, said) {
            (Answer::RequestHeader, Said::RequestHeaders(answer)) => {
                sets(answer.response, row::PROC_REQUEST_HEADER)
            }
            (Answer::ResponseHeader, Said::ResponseHeaders(answer)) => {
                sets(answer.response, row::PROC_RESPONSE_HEADER)
            }
            (Answer::ResponseBody(expected), Said::ResponseBody(answer)) => {
                let body = answer.response.and_then(|common| common.body_mutation);
                match body.and_then(|body| body.mutation) {
                    Some(Mutation::Body(body)) if body == expected => Ok(()),
                    _ => bail!("not the body in capitals"),
                }
            }
            (expected, said) => bail!("expected {expected:?}, got {said:?}"),
        }
    }
}

fn sets(common: Option<attache_proto::ext_proc::CommonResponse>, name: &str) -> anyhow::Result<()> {
    let mutation = common.and_then(|common| common.header_mutation);
    let set = mutation.and_then(|mutation| mutation.set_headers.into_iter().next());
    let header = set.and_then(|set| set.header).context("sets no header")?;
    ensure!(
        header.key == name && header.raw_value == "1",
        "sets {header:?}"
    );
    Ok(())
}

fn message(request: processing_request::Request) -> ProcessingRequest {
    ProcessingRequest {
        request: Some(request),
        metadata_context: Some(Metadata::default()),
        ..ProcessingRequest::default()
    }
}

fn request_turn(response_body: BodySendMode) -> anyhow::Result<Turn> {
    let headers = headers(
        &[
            (":authority", "shop.example.com"),
            (":path", row::SMALL_PATH),
            (":method", "GET"),
            (":scheme", "http"),
            (
                "user-agent",
                "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0",
            ),
            ("accept", "application/json, text/plain, */*"),
            ("accept-language", "en-GB,en;q=0.8,de;q=0.5"),
            ("accept-encoding", "gzip, deflate, br, zstd"),
            (
                "authorization",
                "Bearer c2VjcmV0LXRva2VuLW9mLXRoZS1iZW5jaG1hcms",
            ),
            (
                "cookie",
                "session=6f1c2a9e4b7d4c0f8e3a; theme=dark; consent=1",
            ),
            ("x-tenant", "acme"),
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-proto", "http"),
            ("x-request-id", "2f7a5a86-1c7d-4b8e-9c59-9d0c6d3c1b7e"),
        ],
        true,
    );
    let mut message = message(processing_request::Request::RequestHeaders(headers));
    message.protocol_config = Some(ProtocolConfiguration {
        response_body_mode: response_body.into(),
        ..ProtocolConfiguration::default()
    });
    Ok(Turn {
        messages: framed(&message)?,
        answers: vec![Answer::RequestHeader],
    })
}

fn response_turn(end_of_stream: bool) -> anyhow::Result<Turn> {
    let headers = headers(
        &[
            (":status", "200"),
            ("date", "Fri, 21 Nov 2025 10:00:00 GMT"),
            ("content-type", "application/json"),
            ("cache-control", "private, max-age=0"),
            ("x-envoy-upstream-service-time", "1"),
        ],
        end_of_stream,
    );
    let asked = processing_request::Request::ResponseHeaders(headers);
    Ok(Turn {
        messages: framed(&message(asked))?,
        answers: vec![Answer::ResponseHeader],
    })
}

fn headers(fields: &[(&str, &str)], end_of_stream: bool) -> HttpHeaders {
    let field = |(key, value): &(&str, &str)| HeaderValue {
        key: (*key).to_owned(),
        raw_value: Bytes::copy_from_slice(value.as_bytes()),
        ..HeaderValue::default()
    };
    HttpHeaders {
        headers: Some(HeaderMap {
            headers: fields.iter().map(field).collect(),
        }),
        end_of_stream,
        ..HttpHeaders::default()
    }
}
