//! A scripted policy service: gRPC, written on bare HTTP/2, so that it can
//! also do what no gRPC library would do.

use std::collections::HashMap;
use std::future::poll_fn;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use prost_reflect::MessageDescriptor;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::board::Board;
use crate::h1::{self, Framing, Reader};
use crate::script::{HttpAnswer, Script, Step, streamed};
use crate::{message, noise, text};

/// A service with its name in the scenario.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name, which is its cluster's name.
    pub name: String,
    /// What it answers.
    pub script: Script,
    /// What comes over HTTP/1.1 is a check, not a message as JSON.
    pub checks_http: bool,
    /// Where it notes what it sees.
    pub board: Board,
}

/// One method that the service has.
struct Method {
    name: &'static str,
    /// The kind of its messages; External Processing has several.
    kind: Option<&'static str>,
    request: MessageDescriptor,
    response: MessageDescriptor,
}

impl Method {
    fn at(path: &str) -> Option<Self> {
        let (name, kind, package, request, response) = match path {
            "/envoy.service.ext_proc.v3.ExternalProcessor/Process" => (
                "Process",
                None,
                "ext_proc",
                "ProcessingRequest",
                "ProcessingResponse",
            ),
            "/envoy.service.auth.v3.Authorization/Check" => (
                "Check",
                Some("check"),
                "auth",
                "CheckRequest",
                "CheckResponse",
            ),
            "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit" => {
                let kind = Some("should_rate_limit");
                (
                    "ShouldRateLimit",
                    kind,
                    "ratelimit",
                    "RateLimitRequest",
                    "RateLimitResponse",
                )
            }
            _ => return None,
        };
        let of = |message| message::descriptor(&format!("envoy.service.{package}.v3.{message}"));
        Some(Self {
            name,
            kind,
            request: of(request),
            response: of(response),
        })
    }

    fn kind_of(&self, message: &Value) -> String {
        self.kind.map_or_else(|| kind_of(message), str::to_owned)
    }
}

/// The kind of a message of External Processing.
fn kind_of(message: &Value) -> String {
    let kinds = ["headers", "body", "trailers"];
    let known = |key: &&String| kinds.iter().any(|kind| key.ends_with(&format!("_{kind}")));
    let found = (message.as_object()).and_then(|object| object.keys().find(known));
    found.cloned().unwrap_or_else(|| "none".to_owned())
}

impl Service {
    /// Serves until it is dropped.
    pub async fn serve(self, listener: TcpListener) {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(self.clone().connection(connection));
        }
    }

    async fn connection(self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut start = [0; 4];
        if !matches!(stream.peek(&mut start).await, Ok(1..) if start.starts_with(b"PRI")) {
            return match self.checks_http {
                true => self.checks_h1(stream).await,
                false => self.connection_h1(stream).await,
            };
        }
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 24);
        let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
            return;
        };
        while let Some(Ok((request, respond))) = connection.accept().await {
            let Some(method) = Method::at(request.uri().path()) else {
                self.board
                    .error(format!("no such method: {}", request.uri().path()));
                continue;
            };
            self.board.note(|seen| {
                seen.calls.push(json!({
                    "service": self.name,
                    "method": method.name,
                    "metadata": metadata(request.headers()),
                }));
            });
            tokio::spawn(self.clone().call(method, request.into_body(), respond));
        }
    }

    async fn call(self, method: Method, body: RecvStream, respond: SendResponse<Bytes>) {
        let (tell, told) = mpsc::unbounded_channel();
        let board = self.board.clone();
        let mut reply = Reply::Waiting(respond);
        let unary = method.kind.is_some();
        let read = self.read(&method, body, tell);
        let act = self.act(&method, told, &mut reply, unary);
        // Either side ends the call: the client by a reset, the script by a
        // status; a script that stays silent waits for the client.
        tokio::select! {
            () = act => {}
            () = read => {}
        }
        board.note(|seen| seen.ended += 1);
    }

    /// Notes each message as it comes. Returns on reset only: after a regular
    /// end the call goes on until it is answered.
    async fn read(
        &self,
        method: &Method,
        mut body: RecvStream,
        tell: mpsc::UnboundedSender<Value>,
    ) {
        let mut held = BytesMut::new();
        let mut count = 0;
        while let Some(data) = body.data().await {
            let Ok(data) = data else { return };
            let _ = body.flow_control().release_capacity(data.len());
            held.put(data);
            while let Some(frame) = take_frame(&mut held) {
                match message::decode(&method.request, &frame) {
                    Ok(message) => {
                        self.board.note(|seen| {
                            let of = seen.messages.entry(self.name.clone()).or_default();
                            of.push(message.clone());
                        });
                        let _ = tell.send(message);
                    }
                    Err(error) => self.board.error(error),
                }
                count += 1;
                if self.script.reads == Some(count) {
                    self.board.wait_stalled().await;
                }
            }
        }
        drop(tell);
        std::future::pending().await
    }

    /// Answers each message by the script.
    async fn act(
        &self,
        method: &Method,
        mut told: mpsc::UnboundedReceiver<Value>,
        reply: &mut Reply,
        unary: bool,
    ) {
        let mut counts: HashMap<String, usize> = HashMap::new();
        loop {
            let message = tokio::select! {
                message = told.recv() => message,
                () = reply.reset() => return,
            };
            let Some(message) = message else {
                // The client is done, and so is the script.
                if !unary {
                    reply.end(0, "");
                } else {
                    reply.reset().await;
                }
                return;
            };
            let kind = method.kind_of(&message);
            let nth = if unary {
                self.nth_call(&kind)
            } else {
                next(&mut counts, &kind)
            };
            for step in self.script.steps(&kind, nth) {
                let step = match step {
                    Step::Echo => Step::Reply(echo(&kind, &message)),
                    other => other,
                };
                match step {
                    Step::Echo | Step::Answer(_) => {}
                    Step::Await(condition) => self.board.wait(&condition).await,
                    Step::Delay(time) => tokio::select! {
                        () = tokio::time::sleep(time) => {}
                        () = reply.reset() => return,
                    },
                    Step::Reply(value) => {
                        match message::encode(&method.response, &value, !unary) {
                            Ok(bytes) => reply.send(&bytes),
                            Err(error) => self.board.error(error),
                        }
                        if unary {
                            reply.end(0, "");
                            return;
                        }
                    }
                    Step::Garbage(bytes) => reply.send(&bytes),
                    Step::End(code, text) => {
                        reply.end(code, &text);
                        return;
                    }
                    Step::Reset => {
                        reply.send_reset();
                        return;
                    }
                }
            }
        }
    }

    /// External Processing in its HTTP flavour: one POST with JSON for each
    /// message.
    async fn connection_h1(self, stream: TcpStream) {
        let (from, mut to) = stream.into_split();
        let mut reader = Reader::new(from);
        let of = |name| message::descriptor(&format!("envoy.service.ext_proc.v3.{name}"));
        let (request, response) = (of("ProcessingRequest"), of("ProcessingResponse"));
        while let Some(head) = reader.head().await {
            let mut body = Vec::new();
            let framing = head.framing(Framing::None);
            if reader
                .body(framing, |data| body.extend_from_slice(data))
                .await
                .is_none()
            {
                return;
            }
            let headers = crate::client::to_map(&head.headers);
            let message = match message::from_json(&request, &body) {
                Ok(message) => message,
                Err(error) => return self.board.error(error),
            };
            let nth = self.board.note(|seen| {
                let line = head.line.trim_end_matches(" HTTP/1.1");
                seen.calls.push(json!({
                    "service": self.name, "method": line, "metadata": metadata(&headers),
                    "content_type": headers.get("content-type").map(|v| text::from_bytes(v.as_bytes())),
                }));
                let of = seen.messages.entry(self.name.clone()).or_default();
                of.push(message.clone());
                let same = |other: &&Value| kind_of(other) == kind_of(&message);
                of.iter().filter(same).count() - 1
            });
            let kind = kind_of(&message);
            for step in self.script.steps(&kind, nth) {
                let answer = match step {
                    Step::Await(condition) => {
                        self.board.wait(&condition).await;
                        continue;
                    }
                    Step::Reply(value) => match message::to_json(&response, &value) {
                        Ok(json) => (200, json),
                        Err(error) => return self.board.error(error),
                    },
                    Step::Garbage(bytes) => (200, bytes),
                    Step::End(code, text) => (code, text.into_bytes()),
                    _ => continue,
                };
                let headers = vec![
                    ("content-type".to_owned(), b"application/json".to_vec()),
                    (
                        "content-length".to_owned(),
                        answer.1.len().to_string().into_bytes(),
                    ),
                ];
                let mut bytes = h1::write_head(&format!("HTTP/1.1 {} Answer", answer.0), &headers);
                bytes.extend_from_slice(&answer.1);
                let _ = to.write_all(&bytes).await;
            }
            if self.script.steps(&kind, nth).is_empty() {
                reader.closed().await;
            }
            self.board.note(|seen| seen.ended += 1);
        }
    }

    /// External Authorization over plain HTTP: the request is the message.
    async fn checks_h1(self, stream: TcpStream) {
        let (from, mut to) = stream.into_split();
        let mut reader = Reader::new(from);
        while let Some(head) = reader.head().await {
            let mut body = Vec::new();
            let framing = head.framing(Framing::None);
            let read = reader.body(framing, |data| body.extend_from_slice(data));
            if read.await.is_none() {
                return;
            }
            let mut words = head.line.split(' ');
            let (verb, path) = (words.next(), words.next());
            let mut headers = head.headers.clone();
            headers.retain(|(name, _)| !noise::is_check_header(name));
            self.board.note(|seen| {
                seen.calls
                    .push(json!({ "service": self.name, "method": verb }));
                let of = seen.messages.entry(self.name.clone()).or_default();
                of.push(json!({
                    "method": verb,
                    "path": path,
                    "headers": crate::board::show_headers(&headers),
                    "body": text::from_bytes(&body),
                }));
            });
            let steps = self.script.steps("check", self.nth_call("check"));
            let mut answered = false;
            for step in steps {
                let answer = match step {
                    Step::Await(condition) => {
                        self.board.wait(&condition).await;
                        continue;
                    }
                    Step::Delay(time) => {
                        tokio::time::sleep(time).await;
                        continue;
                    }
                    Step::Answer(answer) => answer,
                    Step::Reply(_) => HttpAnswer::default(),
                    Step::Reset => {
                        self.board.note(|seen| seen.ended += 1);
                        return;
                    }
                    _ => continue,
                };
                match http_answer(&answer, verb == Some("HEAD")) {
                    Ok(bytes) => {
                        let _ = to.write_all(&bytes).await;
                    }
                    Err(error) => return self.board.error(error),
                }
                answered = true;
            }
            if !answered {
                reader.closed().await;
            }
            self.board.note(|seen| seen.ended += 1);
        }
    }

    /// Unary calls are counted over the whole scenario.
    fn nth_call(&self, _kind: &str) -> usize {
        self.board.note(|seen| {
            seen.messages
                .get(&self.name)
                .map_or(0, |list| list.len() - 1)
        })
    }
}

fn http_answer(answer: &HttpAnswer, bodiless: bool) -> Result<Vec<u8>, String> {
    let status = answer.status.unwrap_or(200);
    let body = match &answer.body {
        Value::Null => Vec::new(),
        body => text::to_bytes(body)?,
    };
    let headers = answer.headers.iter().map(text::to_header);
    let mut headers: crate::board::Headers = headers.collect::<Result<_, _>>()?;
    if status != 204 && status != 304 {
        headers.push(("content-length".to_owned(), body.len().to_string().into()));
    }
    let mut bytes = h1::write_head(&format!("HTTP/1.1 {status} Answer"), &headers);
    if !bodiless {
        bytes.extend_from_slice(&body);
    }
    Ok(bytes)
}

/// A body as full duplex wants it back.
fn echo(kind: &str, message: &Value) -> Value {
    let mut piece = message.get(kind).cloned().unwrap_or_default();
    if let Some(fields) = piece.as_object_mut() {
        fields.retain(|name, _| name == "body" || name == "end_of_stream");
    }
    streamed(kind, &piece)
}

fn next(counts: &mut HashMap<String, usize>, kind: &str) -> usize {
    let count = counts.entry(kind.to_owned()).or_default();
    *count += 1;
    *count - 1
}

fn take_frame(held: &mut BytesMut) -> Option<BytesMut> {
    let length = u32::from_be_bytes(held.get(1..5)?.try_into().ok()?) as usize;
    if held.len() < 5 + length {
        return None;
    }
    Some(held.split_to(5 + length).split_off(5))
}

fn metadata(headers: &http::HeaderMap) -> Value {
    let mut shown = Map::new();
    for (name, value) in headers {
        if !noise::is_call_metadata(name.as_str()) {
            shown.insert(name.to_string(), text::from_bytes(value.as_bytes()));
        }
    }
    Value::Object(shown)
}

/// The sending half of a call.
enum Reply {
    Waiting(SendResponse<Bytes>),
    Open(SendStream<Bytes>),
    Over,
}

impl Reply {
    fn send(&mut self, message: &[u8]) {
        if let Self::Waiting(respond) = self {
            let head = http::Response::builder().header("content-type", "application/grpc");
            match respond.send_response(head.body(()).unwrap(), false) {
                Ok(stream) => *self = Self::Open(stream),
                Err(_) => *self = Self::Over,
            }
        }
        if let Self::Open(stream) = self {
            let mut frame = BytesMut::with_capacity(5 + message.len());
            frame.put_u8(0);
            frame.put_u32(message.len() as u32);
            frame.put_slice(message);
            let _ = stream.send_data(frame.freeze(), false);
        }
    }

    fn end(&mut self, code: u32, text: &str) {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", code.into());
        if !text.is_empty() {
            trailers.insert("grpc-message", text.parse().unwrap());
        }
        match std::mem::replace(self, Self::Over) {
            Self::Waiting(mut respond) => {
                let mut head = http::Response::new(());
                *head.headers_mut() = trailers;
                head.headers_mut()
                    .insert("content-type", "application/grpc".parse().unwrap());
                let _ = respond.send_response(head, true);
            }
            Self::Open(mut stream) => {
                let _ = stream.send_trailers(trailers);
            }
            Self::Over => {}
        }
    }

    fn send_reset(&mut self) {
        match std::mem::replace(self, Self::Over) {
            Self::Waiting(mut respond) => respond.send_reset(Reason::INTERNAL_ERROR),
            Self::Open(mut stream) => stream.send_reset(Reason::INTERNAL_ERROR),
            Self::Over => {}
        }
    }

    /// Waits until the client resets the call.
    async fn reset(&mut self) {
        match self {
            Self::Waiting(respond) => {
                let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
            }
            Self::Open(stream) => {
                let _ = poll_fn(|cx| stream.poll_reset(cx)).await;
            }
            Self::Over => std::future::pending().await,
        }
    }
}
