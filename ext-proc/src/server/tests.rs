//! Processors behind the client layer, in memory.

mod life;
mod modes;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};

use super::*;
use crate::{
    client::{BodyMode, Filter},
    testing::Proxy,
};

fn get() -> Request<Bytes> {
    Request::builder()
        .uri("/p?q=1")
        .header("host", "h")
        .body(Bytes::new())
        .unwrap()
}

fn post(body: &'static str) -> Request<Bytes> {
    Request::builder()
        .method("POST")
        .uri("/p")
        .header("host", "h")
        .body(body.into())
        .unwrap()
}

fn bodies(mode: BodyMode) -> impl FnOnce(&mut Filter) {
    move |filter| {
        filter.modes.request_body = mode;
        filter.modes.response_body = mode;
    }
}

#[derive(Clone, Default)]
struct State {
    path: String,
}

impl Processor for State {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        assert_eq!(
            (request.method(), request.authority(), request.scheme()),
            ("GET", "h", "http")
        );
        assert!(request.is_end_of_stream());
        self.path = request.path().to_owned();
        request.set_path("/other")?;
        Ok(())
    }

    async fn response_headers(&mut self, response: &mut ResponseHead) -> Result {
        assert_eq!(response.status(), Some(http::StatusCode::OK));
        response.headers.insert("x-path", self.path.as_str())?;
        response.set_status(http::StatusCode::IM_A_TEAPOT)?;
        Ok(())
    }
}

#[tokio::test]
async fn what_one_phase_notes_another_finds() {
    let seen = Proxy::new(State::default()).send(get()).await;

    assert_eq!(seen.forwarded().uri(), "/other");
    assert_eq!(seen.response.status(), 418);
    assert_eq!(seen.response.headers()["x-path"], "/p?q=1");
}

#[derive(Clone)]
struct Refuse;

impl Processor for Refuse {
    async fn request_headers(&mut self, _: &mut RequestHead) -> Result {
        let answer = Immediate::new(401)
            .body("who?")
            .header("www-authenticate", "Basic")?;
        Err(answer.into())
    }
}

#[tokio::test]
async fn a_processor_answers_instead_of_the_upstream() {
    let seen = Proxy::new(Refuse).send(get()).await;

    assert!(seen.upstream.is_none());
    assert_eq!(seen.response.status(), 401);
    assert_eq!(seen.response.headers()["www-authenticate"], "Basic");
    assert_eq!(seen.response.body(), "who?");
}

#[derive(Clone)]
struct Upper;

impl Processor for Upper {
    async fn request_body(&mut self, body: &mut Body<'_>) -> Result {
        let data = body.take();
        body.push(data.to_ascii_uppercase());
        if body.is_last() {
            body.push("!");
        }
        Ok(())
    }

    async fn response_body(&mut self, body: &mut Body<'_>) -> Result {
        if let Some(whole) = body.whole()? {
            body.replace(format!("{} bytes", whole.len()));
        }
        Ok(())
    }
}

#[tokio::test]
async fn bodies_are_changed_alike_in_every_mode() {
    for mode in [BodyMode::Buffered, BodyMode::Streamed] {
        let proxy = Proxy::new(Upper)
            .filter(bodies(mode))
            .upstream(Response::new("0123456789"));

        let seen = proxy.send(post("hello")).await;
        assert_eq!(seen.forwarded().body(), "HELLO!", "{mode:?}");
        assert_eq!(seen.response.body(), "10 bytes", "{mode:?}");

        let head = post("").map(|_| ());
        let seen = proxy.send_pieces(head, ["he", "l", "lo"]).await;
        assert_eq!(seen.forwarded().body(), "HELLO!", "{mode:?}");
    }
}

#[tokio::test]
async fn content_length_is_kept_right() {
    let proxy = Proxy::new(Upper)
        .filter(bodies(BodyMode::Buffered))
        .upstream(Response::new("0123456789"));
    let seen = proxy.send(post("hello")).await;

    assert_eq!(seen.forwarded().headers()["content-length"], "6");
    assert_eq!(seen.response.headers()["content-length"], "8");
}

#[derive(Clone)]
enum Bad {
    Error,
    Panic,
    Slow,
    TooMany,
}

impl Processor for Bad {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        match self {
            Self::Error => Err(std::io::Error::other("no").into()),
            Self::Panic => panic!("on purpose"),
            Self::Slow => std::future::pending().await,
            Self::TooMany => {
                for n in 0..200 {
                    request.headers.append(format!("x-{n}").as_str(), "1")?;
                }
                Ok(())
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_fails_has_the_configured_meaning() {
    for bad in [Bad::Error, Bad::Panic, Bad::Slow] {
        for (meaning, allow, status) in [
            (OnFailure::Report, false, 500),
            (OnFailure::Report, true, 200),
            (OnFailure::Pass, false, 200),
            (OnFailure::Respond(503), true, 503),
        ] {
            let server = Server::new(bad.clone())
                .on_failure(meaning)
                .handler_timeout(Duration::from_millis(20));
            let seen = Proxy::of(server)
                .filter(|filter| filter.failure_mode_allow = allow)
                .send(get())
                .await;
            assert_eq!(seen.response.status(), status, "{meaning:?}");
        }
    }
}

#[tokio::test]
async fn more_changes_than_envoy_accepts_are_a_failure_of_the_handler() {
    let seen = Proxy::new(Bad::TooMany).send(get()).await;
    assert_eq!(seen.response.status(), 500);
}

#[derive(Clone)]
struct Replace;

impl Processor for Replace {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        request.clear_route_cache();
        request.replace_body("new");
        Ok(())
    }

    async fn request_body(&mut self, _: &mut Body<'_>) -> Result {
        panic!("the old body is shown");
    }
}

#[tokio::test]
async fn a_head_can_bring_a_new_body() {
    let seen = Proxy::new(Replace)
        .filter(bodies(BodyMode::Buffered))
        .send(post("old"))
        .await;
    assert_eq!(seen.forwarded().body(), "new");
    assert_eq!(seen.response.status(), 200);
}

#[tokio::test]
async fn json_that_is_none_is_a_failure_not_a_silent_change() {
    #[derive(Clone)]
    struct Json;
    impl Processor for Json {
        async fn request_body(&mut self, body: &mut Body<'_>) -> Result {
            if let Some(value) = body.json::<serde_json::Value>()? {
                body.set_json(&[value])?;
            }
            Ok(())
        }
    }
    let proxy = Proxy::new(Json).filter(bodies(BodyMode::Buffered));
    assert_eq!(
        proxy.send(post("{ \"a\": 1 }")).await.forwarded().body(),
        "[{\"a\":1}]"
    );
    assert_eq!(proxy.send(post("{")).await.response.status(), 500);
}

/// The wire itself, as a proxy in a mode that the client layer does not speak sees it.
mod wire {
    use attache_proto::ext_proc::{
        HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
        StreamedBodyResponse, body_mutation::Mutation, processing_request::Request as Part,
        processing_response::Response as Answer,
    };
    pub(super) use attache_proto::ext_proc_filter::processing_mode::BodySendMode;
    use attache_service::{
        Channel, ChannelSettings, GrpcStream, Method,
        channel::{Target, encode_message},
    };
    use prost::Message as _;

    use super::*;

    pub(super) fn open(server: Server) -> GrpcStream {
        let target = Target::Embedded(server.into_host().embedded());
        let channel = Channel::new(ChannelSettings::new("p", vec![target]));
        let method = Method::new("/envoy.service.ext_proc.v3.ExternalProcessor/Process");
        channel.stream(&method, http::HeaderMap::new())
    }

    pub(super) fn send(stream: &mut GrpcStream, request: Part, mode: Option<BodySendMode>) {
        stream.send(encode_message(&ProcessingRequest {
            request: Some(request),
            protocol_config: mode.map(|mode| ProtocolConfiguration {
                request_body_mode: mode as i32,
                ..ProtocolConfiguration::default()
            }),
            ..ProcessingRequest::default()
        }));
    }

    /// A message as it is.
    pub(super) fn send_message(stream: &mut GrpcStream, message: &ProcessingRequest) {
        stream.send(encode_message(message));
    }

    pub(super) async fn receive_message(stream: &mut GrpcStream) -> Option<ProcessingResponse> {
        let message = std::future::poll_fn(|cx| stream.poll_message(cx)).await?;
        Some(ProcessingResponse::decode(message.unwrap()).unwrap())
    }

    pub(super) async fn receive(stream: &mut GrpcStream) -> Option<Answer> {
        let message = std::future::poll_fn(|cx| stream.poll_message(cx)).await?;
        ProcessingResponse::decode(message.unwrap())
            .unwrap()
            .response
    }

    pub(super) fn piece(body: &'static str, end_of_stream: bool) -> Part {
        Part::RequestBody(HttpBody {
            body: body.into(),
            end_of_stream,
            ..HttpBody::default()
        })
    }

    pub(super) fn head() -> Part {
        Part::RequestHeaders(HttpHeaders::default())
    }

    pub(super) fn replaced(answer: Option<Answer>) -> Bytes {
        let Some(Answer::RequestBody(body)) = answer else {
            panic!("{answer:?}");
        };
        match body.response.unwrap().body_mutation.unwrap().mutation {
            Some(Mutation::Body(body)) => body,
            other => panic!("{other:?}"),
        }
    }

    fn streamed(answer: Option<Answer>) -> StreamedBodyResponse {
        let Some(Answer::RequestBody(body)) = answer else {
            panic!("{answer:?}");
        };
        match body
            .response
            .and_then(|r| r.body_mutation)
            .and_then(|m| m.mutation)
        {
            Some(Mutation::StreamedResponse(streamed)) => streamed,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn in_full_duplex_every_piece_is_sent_back_changed_or_not() {
        #[derive(Clone)]
        struct Nothing;
        impl Processor for Nothing {}
        for (server, expected) in [
            (Server::new(Upper), ["AB", "CD!"]),
            (Server::new(Nothing), ["ab", "cd"]),
        ] {
            let mut stream = open(server);
            let mode = Some(BodySendMode::FullDuplexStreamed);
            send(
                &mut stream,
                Part::RequestHeaders(HttpHeaders::default()),
                mode,
            );
            send(&mut stream, piece("ab", false), None);
            send(&mut stream, piece("cd", true), None);

            let first = receive(&mut stream).await;
            assert!(
                matches!(first, Some(Answer::RequestHeaders(_))),
                "{first:?}"
            );
            let second = streamed(receive(&mut stream).await);
            assert_eq!(
                (&second.body[..], second.end_of_stream),
                (expected[0].as_bytes(), false)
            );
            let third = streamed(receive(&mut stream).await);
            assert_eq!(
                (&third.body[..], third.end_of_stream),
                (expected[1].as_bytes(), true)
            );
        }
    }

    #[tokio::test]
    async fn a_half_close_is_a_normal_end() {
        let mut stream = open(Server::new(Upper));
        send(
            &mut stream,
            Part::RequestHeaders(HttpHeaders::default()),
            None,
        );
        assert!(receive(&mut stream).await.is_some());
        stream.finish();
        assert!(receive(&mut stream).await.is_none());
    }

    #[tokio::test]
    async fn a_reset_ends_the_session() {
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        let ended = std::sync::Mutex::new(Some(ended));
        let server = Server::sessions(move |mut session| {
            let ended = ended.lock().unwrap().take();
            async move {
                while session.next().await.is_some() {}
                drop((session, ended));
                Ok(())
            }
        });
        let mut stream = open(server);
        send(
            &mut stream,
            Part::RequestHeaders(HttpHeaders::default()),
            None,
        );
        // A phase that is dropped unanswered passes.
        assert!(matches!(
            receive(&mut stream).await,
            Some(Answer::RequestHeaders(_))
        ));
        drop(stream);
        assert!(end.await.is_err());
    }

    #[tokio::test]
    async fn only_the_beginning_of_a_body_is_not_taken_for_the_whole() {
        #[derive(Clone)]
        struct Whole;
        impl Processor for Whole {
            async fn request_body(&mut self, body: &mut Body<'_>) -> Result {
                body.whole()?;
                Ok(())
            }
        }
        let mut stream = open(Server::new(Whole));
        send(
            &mut stream,
            piece("ab", false),
            Some(BodySendMode::BufferedPartial),
        );
        let answer = std::future::poll_fn(|cx| stream.poll_message(cx)).await;
        assert_eq!(answer.unwrap().unwrap_err().code(), tonic::Code::Internal);
    }
}
