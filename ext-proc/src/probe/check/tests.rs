//! One row for each thing that can be wrong.

use attache_proto::{
    core::{HeaderMap, HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
    ext_proc::{
        BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpBody,
        HttpHeaders, HttpTrailers, ImmediateResponse, ProtocolConfiguration, StreamedBodyResponse,
        StreamedImmediateResponse, TrailersResponse, body_mutation::Mutation,
        common_response::ResponseStatus, processing_response::Response,
        streamed_immediate_response::Response as LocalPart,
    },
    types::HttpStatus,
};
use bytes::Bytes;

use super::*;
use BodySendMode::{
    Buffered, BufferedPartial, FullDuplexStreamed as Duplex, None as Off, Streamed,
};
use Side::{Request as Req, Response as Res};

/// An exchange as it is written in a table.
struct Script {
    setup: Setup,
    events: Vec<Timed>,
    now: u64,
    mode: BodySendMode,
    observe: bool,
}

impl Script {
    fn new(mode: BodySendMode) -> Self {
        Self {
            setup: Setup::default(),
            events: Vec::new(),
            now: 0,
            mode,
            observe: false,
        }
    }

    fn event(mut self, event: Event) -> Self {
        self.now += 1;
        let at = Duration::from_millis(self.now);
        self.events.push(Timed { at, event });
        self
    }

    fn after(mut self, ms: u64) -> Self {
        self.now += ms;
        self
    }

    fn overriding(mut self) -> Self {
        self.setup.allow_mode_override = true;
        self
    }

    /// Bodies do not wait for the reply to the headers; said in the first message.
    fn not_waiting(mut self) -> Self {
        for timed in &mut self.events {
            if let Event::Sent(message) = &mut timed.event
                && let Some(config) = &mut message.protocol_config
            {
                config.send_body_without_waiting_for_header_response = true;
            }
        }
        self
    }

    fn observing(mut self) -> Self {
        self.observe = true;
        self
    }

    fn more_time(mut self, max: u64) -> Self {
        self.setup.max_message_timeout = Duration::from_millis(max);
        self
    }

    fn send(self, part: Request) -> Self {
        let first = self.events.is_empty() && !self.observe;
        let message = ProcessingRequest {
            request: Some(part),
            observability_mode: self.observe,
            protocol_config: first.then_some(ProtocolConfiguration {
                request_body_mode: self.mode.into(),
                response_body_mode: self.mode.into(),
                ..ProtocolConfiguration::default()
            }),
            ..ProcessingRequest::default()
        };
        self.event(Event::Sent(Box::new(message)))
    }

    fn headers(self, side: Side, lines: &[(&str, &str)]) -> Self {
        self.head(side, lines, false)
    }

    fn head(self, side: Side, lines: &[(&str, &str)], end_of_stream: bool) -> Self {
        let message = HttpHeaders {
            headers: Some(map(lines)),
            end_of_stream,
            ..HttpHeaders::default()
        };
        self.send(match side {
            Req => Request::RequestHeaders(message),
            Res => Request::ResponseHeaders(message),
        })
    }

    fn body(self, side: Side, text: &'static str, end_of_stream: bool) -> Self {
        let message = HttpBody {
            body: text.into(),
            end_of_stream,
            ..HttpBody::default()
        };
        self.send(match side {
            Req => Request::RequestBody(message),
            Res => Request::ResponseBody(message),
        })
    }

    fn trailers(self, side: Side) -> Self {
        let message = HttpTrailers {
            trailers: Some(map(&[("x-t", "1")])),
        };
        self.send(match side {
            Req => Request::RequestTrailers(message),
            Res => Request::ResponseTrailers(message),
        })
    }

    fn raw(self, message: ProcessingResponse) -> Self {
        self.event(Event::Received(Box::new(message)))
    }

    fn reply(self, response: Response) -> Self {
        self.raw(ProcessingResponse {
            response: Some(response),
            ..ProcessingResponse::default()
        })
    }

    fn answered(self, side: Side, common: CommonResponse) -> Self {
        self.reply(headers_reply(side, common))
    }

    fn body_answered(self, side: Side, common: CommonResponse) -> Self {
        let reply = BodyResponse {
            response: Some(common),
        };
        self.reply(match side {
            Req => Response::RequestBody(reply),
            Res => Response::ResponseBody(reply),
        })
    }

    fn trailers_answered(self, side: Side) -> Self {
        let reply = TrailersResponse::default();
        self.reply(match side {
            Req => Response::RequestTrailers(reply),
            Res => Response::ResponseTrailers(reply),
        })
    }

    fn answered_with(self, common: CommonResponse, mode: ProcessingMode) -> Self {
        self.raw(ProcessingResponse {
            response: Some(headers_reply(Req, common)),
            mode_override: Some(mode),
            ..ProcessingResponse::default()
        })
    }

    fn codes(&self) -> Vec<Code> {
        let findings = check(&self.setup, &self.events);
        findings.into_iter().map(|finding| finding.code).collect()
    }
}

fn headers_reply(side: Side, common: CommonResponse) -> Response {
    let reply = HeadersResponse {
        response: Some(common),
    };
    match side {
        Req => Response::RequestHeaders(reply),
        Res => Response::ResponseHeaders(reply),
    }
}

fn map(lines: &[(&str, &str)]) -> HeaderMap {
    HeaderMap {
        headers: lines.iter().map(|(k, v)| raw_value(k, v)).collect(),
    }
}

fn raw_value(key: &str, value: &str) -> HeaderValue {
    HeaderValue {
        key: key.to_owned(),
        raw_value: Bytes::copy_from_slice(value.as_bytes()),
        ..HeaderValue::default()
    }
}

fn pass() -> CommonResponse {
    CommonResponse::default()
}

fn set(key: &str, value: &str) -> CommonResponse {
    options(vec![HeaderValueOption {
        header: Some(raw_value(key, value)),
        ..HeaderValueOption::default()
    }])
}

fn append(key: &str, value: &str) -> CommonResponse {
    options(vec![HeaderValueOption {
        header: Some(raw_value(key, value)),
        append: Some(true),
        ..HeaderValueOption::default()
    }])
}

fn remove(key: &str) -> CommonResponse {
    CommonResponse {
        header_mutation: Some(HeaderMutation {
            remove_headers: vec![key.to_owned()],
            ..HeaderMutation::default()
        }),
        ..pass()
    }
}

fn options(set_headers: Vec<HeaderValueOption>) -> CommonResponse {
    CommonResponse {
        header_mutation: Some(HeaderMutation {
            set_headers,
            ..HeaderMutation::default()
        }),
        ..pass()
    }
}

fn action(key: &str, action: HeaderAppendAction, append: Option<bool>) -> CommonResponse {
    options(vec![HeaderValueOption {
        header: Some(raw_value(key, "new")),
        append,
        append_action: action.into(),
        ..HeaderValueOption::default()
    }])
}

fn value_only(raw: &str) -> CommonResponse {
    options(vec![HeaderValueOption {
        header: Some(HeaderValue {
            value: "v".to_owned(),
            ..raw_value("x-a", raw)
        }),
        ..HeaderValueOption::default()
    }])
}

fn mutation(mutation: Mutation) -> CommonResponse {
    CommonResponse {
        body_mutation: Some(BodyMutation {
            mutation: Some(mutation),
        }),
        ..pass()
    }
}

fn plain(body: &'static str) -> CommonResponse {
    mutation(Mutation::Body(body.into()))
}

fn part(body: &'static str, end_of_stream: bool) -> CommonResponse {
    mutation(Mutation::StreamedResponse(StreamedBodyResponse {
        body: body.into(),
        end_of_stream,
        ..StreamedBodyResponse::default()
    }))
}

fn replacing(common: CommonResponse) -> CommonResponse {
    CommonResponse {
        status: ResponseStatus::ContinueAndReplace.into(),
        ..common
    }
}

fn both(a: CommonResponse, b: CommonResponse) -> CommonResponse {
    CommonResponse {
        header_mutation: a.header_mutation.or(b.header_mutation),
        body_mutation: a.body_mutation.or(b.body_mutation),
        ..pass()
    }
}

fn modes(request: BodySendMode, response: BodySendMode) -> ProcessingMode {
    ProcessingMode {
        request_body_mode: request.into(),
        response_body_mode: response.into(),
        ..ProcessingMode::default()
    }
}

fn immediate(code: i32, common: CommonResponse) -> Response {
    Response::ImmediateResponse(ImmediateResponse {
        status: Some(HttpStatus { code }),
        headers: common.header_mutation,
        ..ImmediateResponse::default()
    })
}

fn local(part: LocalPart) -> Response {
    Response::StreamedImmediateResponse(StreamedImmediateResponse {
        response: Some(part),
    })
}

fn local_headers(lines: &[(&str, &str)], end_of_stream: bool) -> Response {
    local(LocalPart::HeadersResponse(HttpHeaders {
        headers: Some(map(lines)),
        end_of_stream,
        ..HttpHeaders::default()
    }))
}

fn local_body(end_of_stream: bool) -> Response {
    local(LocalPart::BodyResponse(StreamedBodyResponse {
        end_of_stream,
        ..StreamedBodyResponse::default()
    }))
}

fn ask_time(ms: u64) -> ProcessingResponse {
    ProcessingResponse {
        override_message_timeout: Duration::from_millis(ms).try_into().ok(),
        ..ProcessingResponse::default()
    }
}

const HEADERS: &[(&str, &str)] = &[(":path", "/p"), ("x-here", "1"), ("content-length", "5")];

/// Headers of a request, sent.
fn asked(mode: BodySendMode) -> Script {
    Script::new(mode).headers(Req, HEADERS)
}

/// Headers of a request, sent and answered.
fn begun(mode: BodySendMode) -> Script {
    asked(mode).answered(Req, pass())
}

#[track_caller]
fn rows(rows: Vec<(&str, Script, &[Code])>) {
    for (name, script, expected) in rows {
        assert_eq!(script.codes(), expected, "{name}");
    }
}

#[test]
fn legal_exchanges_give_no_findings() {
    rows(vec![
        (
            "headers",
            begun(Off)
                .headers(Res, &[])
                .answered(Res, set("x-b", "1"))
                .event(Event::HalfClosed)
                .event(Event::Ended(GrpcCode::Ok, String::new())),
            &[],
        ),
        (
            "reset at the end",
            begun(Off)
                .event(Event::Left)
                .event(Event::Ended(GrpcCode::Cancelled, String::new())),
            &[],
        ),
        (
            "unset inner response",
            asked(Off).reply(Response::RequestHeaders(HeadersResponse::default())),
            &[],
        ),
        (
            "buffered, same length",
            begun(Buffered)
                .body(Req, "hello", true)
                .body_answered(Req, plain("HELLO")),
            &[],
        ),
        (
            "buffered, length set",
            begun(Buffered)
                .body(Req, "hello", true)
                .body_answered(Req, both(set("content-length", "3"), plain("abc"))),
            &[],
        ),
        (
            "buffered, length removed",
            begun(Buffered)
                .body(Req, "hello", true)
                .body_answered(Req, both(remove("content-length"), plain("abc"))),
            &[],
        ),
        (
            "buffered, length set before",
            asked(Buffered)
                .answered(Req, set("content-length", "3"))
                .body(Req, "hello", true)
                .body_answered(Req, plain("abc")),
            &[],
        ),
        (
            "streamed, two outstanding",
            begun(Streamed)
                .body(Req, "a", false)
                .body(Req, "b", true)
                .body_answered(Req, plain(""))
                .body_answered(Req, pass()),
            &[],
        ),
        (
            "partial",
            begun(BufferedPartial)
                .body(Req, "a", false)
                .body_answered(Req, both(set("x-a", "1"), plain("bb"))),
            &[],
        ),
        (
            "full duplex",
            begun(Duplex)
                .body(Req, "a", false)
                .body_answered(Req, part("a", false))
                .body(Req, "", true)
                .body_answered(Req, part("", true)),
            &[],
        ),
        (
            "full duplex, late and regrouped",
            asked(Duplex)
                .body(Req, "a", false)
                .body(Req, "", true)
                .after(900)
                .answered(Req, pass())
                .body_answered(Req, part("a", true)),
            &[],
        ),
        (
            "full duplex with trailers",
            begun(Duplex)
                .body(Req, "a", false)
                .trailers(Req)
                .body_answered(Req, part("a", false))
                .trailers_answered(Req),
            &[],
        ),
        (
            "trailers",
            begun(Streamed)
                .body(Req, "a", false)
                .body_answered(Req, pass())
                .trailers(Req)
                .trailers_answered(Req),
            &[],
        ),
        (
            "immediate",
            asked(Off).reply(immediate(403, set("x-a", "1"))),
            &[],
        ),
        (
            "unasked immediate",
            begun(Off).reply(immediate(403, pass())),
            &[],
        ),
        (
            "replace",
            asked(Streamed).answered(Req, replacing(plain("new"))),
            &[],
        ),
        (
            "own response",
            asked(Duplex)
                .reply(local_headers(&[(":status", "200")], false))
                .reply(local_body(false))
                .reply(local_body(true)),
            &[],
        ),
        (
            "override",
            asked(Off)
                .overriding()
                .answered_with(remove("content-length"), modes(Streamed, Off))
                .body(Req, "hello", true)
                .body_answered(Req, plain("abc")),
            &[],
        ),
        (
            "override alone",
            asked(Off)
                .overriding()
                .raw(ProcessingResponse {
                    mode_override: Some(ProcessingMode {
                        request_trailer_mode: 1,
                        ..modes(Duplex, Off)
                    }),
                    ..ProcessingResponse::default()
                })
                .body(Req, "hello", true)
                .answered(Req, pass())
                .body_answered(Req, part("hello", true)),
            &[],
        ),
        (
            "more time",
            asked(Off)
                .more_time(500)
                .raw(ask_time(400))
                .after(300)
                .answered(Req, pass()),
            &[],
        ),
        (
            "observed",
            Script::new(Streamed)
                .observing()
                .headers(Req, HEADERS)
                .body(Req, "a", true)
                .event(Event::HalfClosed)
                .event(Event::Ended(GrpcCode::Ok, String::new())),
            &[],
        ),
        (
            "without waiting",
            asked(Streamed)
                .not_waiting()
                .body(Req, "a", true)
                .answered(Req, pass())
                .body_answered(Req, pass()),
            &[],
        ),
        (
            "action that changes nothing",
            asked(Off).answered(
                Req,
                action("x-here", HeaderAppendAction::OverwriteIfExistsOrAdd, None),
            ),
            &[],
        ),
    ]);
}

#[test]
fn replies_must_fit_what_was_sent() {
    let metadata = || ProcessingResponse {
        dynamic_metadata: Some(prost_types::Struct::default()),
        ..ProcessingResponse::default()
    };
    rows(vec![
        (
            "second headers reply",
            begun(Off).answered(Req, pass()),
            &[Code::SecondReply],
        ),
        (
            "second body reply",
            begun(Streamed)
                .body(Req, "a", false)
                .body_answered(Req, pass())
                .body_answered(Req, pass()),
            &[Code::SecondReply],
        ),
        (
            "other direction",
            asked(Off).answered(Res, pass()),
            &[Code::WrongPhase],
        ),
        (
            "other kind",
            asked(Off).body_answered(Req, pass()),
            &[Code::WrongPhase],
        ),
        (
            "trailers to a body",
            begun(Buffered).body(Req, "a", true).trailers_answered(Req),
            &[Code::WrongPhase],
        ),
        (
            "body first",
            asked(Streamed)
                .not_waiting()
                .body(Req, "a", true)
                .body_answered(Req, pass()),
            &[Code::WrongPhase],
        ),
        (
            "nothing",
            asked(Off).raw(ProcessingResponse::default()),
            &[Code::EmptyResponse],
        ),
        (
            "metadata only",
            asked(Off).raw(metadata()),
            &[Code::MetadataOnly],
        ),
        (
            "noise",
            asked(Off).event(Event::Undecodable("x".into())),
            &[Code::Undecodable],
        ),
        (
            "nothing counts after a failure",
            begun(Off).answered(Req, pass()).answered(Req, pass()),
            &[Code::SecondReply],
        ),
        (
            "after the answer",
            asked(Off)
                .reply(immediate(403, pass()))
                .answered(Req, pass()),
            &[Code::AfterEnd],
        ),
        (
            "reply to an observer",
            Script::new(Off)
                .observing()
                .headers(Req, HEADERS)
                .answered(Req, pass()),
            &[Code::ObservedReply],
        ),
    ]);
}

#[test]
fn time_is_kept_as_envoy_keeps_it() {
    let stalled = || begun(Streamed).body(Req, "a", false).body(Req, "b", true);
    rows(vec![
        (
            "late",
            asked(Off).after(300).answered(Req, pass()),
            &[Code::LateReply],
        ),
        ("never", asked(Off).event(Event::GaveUp), &[Code::NoReply]),
        (
            "trailers never",
            begun(Streamed).trailers(Req).event(Event::GaveUp),
            &[Code::NoReply],
        ),
        (
            "one of two",
            stalled().body_answered(Req, pass()).event(Event::GaveUp),
            &[Code::StalledChunks],
        ),
        (
            "none of two",
            stalled().event(Event::GaveUp),
            &[Code::NoReply],
        ),
        (
            "a later chunk starts the timer anew",
            begun(Streamed)
                .body(Req, "a", false)
                .after(150)
                .body(Req, "b", true)
                .after(150)
                .body_answered(Req, pass())
                .body_answered(Req, pass()),
            &[],
        ),
        (
            "more time is off",
            asked(Off).raw(ask_time(400)).answered(Req, pass()),
            &[Code::TimeoutIgnored],
        ),
        (
            "too much time",
            asked(Off).more_time(100).raw(ask_time(400)),
            &[Code::TimeoutIgnored],
        ),
        (
            "time twice",
            asked(Off)
                .more_time(500)
                .raw(ask_time(400))
                .raw(ask_time(400)),
            &[Code::TimeoutIgnored],
        ),
        (
            "time in full duplex",
            asked(Duplex).more_time(500).raw(ask_time(400)),
            &[Code::TimeoutIgnored],
        ),
        (
            "time with a reply",
            asked(Off)
                .more_time(500)
                .raw(ProcessingResponse {
                    response: Some(headers_reply(Req, pass())),
                    ..ask_time(400)
                })
                .event(Event::GaveUp),
            &[Code::TimeoutDiscards, Code::NoReply],
        ),
        (
            "not reading",
            begun(Streamed).event(Event::Stuck),
            &[Code::NotReading],
        ),
    ]);
}

#[test]
fn the_end_of_a_stream_has_a_meaning() {
    let end = |code| Event::Ended(code, "why".to_owned());
    rows(vec![
        (
            "error",
            asked(Off).event(end(GrpcCode::Internal)),
            &[Code::ErrorStatus],
        ),
        (
            "error while idle",
            begun(Off).event(end(GrpcCode::Internal)),
            &[Code::ErrorStatus],
        ),
        (
            "error at the end",
            begun(Off)
                .event(Event::HalfClosed)
                .event(end(GrpcCode::Cancelled)),
            &[Code::ErrorStatusAtEnd],
        ),
        (
            "closed without a reply",
            asked(Off).event(end(GrpcCode::Ok)),
            &[Code::ClosedUnanswered],
        ),
        (
            "closed between",
            begun(Off).event(end(GrpcCode::Ok)),
            &[Code::ClosedEarly],
        ),
        (
            "closed with chunks",
            begun(Duplex).body(Req, "a", false).event(end(GrpcCode::Ok)),
            &[Code::LostChunks],
        ),
        (
            "open after half-close",
            begun(Off).event(Event::HalfClosed).event(Event::GaveUp),
            &[Code::NoEndAfterHalfClose],
        ),
        (
            "error to an observer",
            Script::new(Off)
                .observing()
                .headers(Req, HEADERS)
                .event(end(GrpcCode::Aborted)),
            &[Code::ObservedError],
        ),
    ]);
}

#[test]
fn header_mutations_must_be_valid() {
    let reply = |common| asked(Off).answered(Req, common);
    use HeaderAppendAction::{AddIfAbsent, OverwriteIfExists, OverwriteIfExistsOrAdd};
    let many = options(
        (0..101)
            .map(|i| HeaderValueOption {
                header: Some(raw_value(&format!("x-{i}"), "1")),
                ..HeaderValueOption::default()
            })
            .collect(),
    );
    rows(vec![
        ("value", reply(value_only("")), &[Code::OnlyValue]),
        ("both values", reply(value_only("w")), &[Code::BothValues]),
        (
            "absent, there",
            reply(action("x-here", AddIfAbsent, None)),
            &[Code::AppendActionWrong],
        ),
        (
            "absent, absent",
            reply(action("x-new", AddIfAbsent, None)),
            &[Code::AppendAction],
        ),
        (
            "exists, absent",
            reply(action("x-new", OverwriteIfExists, None)),
            &[Code::AppendActionWrong],
        ),
        (
            "exists, there",
            reply(action("x-here", OverwriteIfExists, None)),
            &[Code::AppendAction],
        ),
        (
            "overwrite and append",
            reply(action("x-here", OverwriteIfExistsOrAdd, Some(true))),
            &[Code::AppendActionWrong],
        ),
        ("name", reply(set("x v", "1")), &[Code::InvalidName]),
        ("removed name", reply(remove("x v")), &[Code::InvalidName]),
        (
            "value with newline",
            reply(set("x-a", "a\nb")),
            &[Code::InvalidValue],
        ),
        ("no name", reply(set("", "1")), &[Code::EmptyName]),
        (
            "no header",
            reply(options(vec![HeaderValueOption::default()])),
            &[Code::NoHeader],
        ),
        ("host", reply(set("host", "h")), &[Code::RefusedByDefault]),
        (
            ":method",
            reply(set(":method", "PUT")),
            &[Code::RefusedByDefault],
        ),
        (
            ":method when replacing",
            reply(replacing(both(set(":method", "PUT"), plain("x")))),
            &[],
        ),
        (
            "x-envoy",
            reply(set("X-Envoy-A", "1")),
            &[Code::RefusedByDefault],
        ),
        (
            "append to :path",
            reply(append(":path", "/x")),
            &[Code::NeverAllowed],
        ),
        (
            "remove :path",
            reply(remove(":path")),
            &[Code::NeverAllowed],
        ),
        ("remove host", reply(remove("Host")), &[Code::NeverAllowed]),
        (
            "status",
            begun(Off)
                .headers(Res, &[])
                .answered(Res, set(":status", "99")),
            &[Code::NeverAllowed],
        ),
        ("path", reply(set(":path", "p")), &[Code::BadPath]),
        (
            "101 headers",
            reply(many),
            &[Code::TooManyOperations, Code::TooLarge],
        ),
        (
            "60 KiB",
            reply(set("x-a", &"x".repeat(61 << 10))),
            &[Code::TooLarge],
        ),
        (
            "transfer-encoding",
            reply(set("transfer-encoding", "chunked")),
            &[Code::TransferEncoding],
        ),
        (
            "connection",
            reply(set("connection", "close")),
            &[Code::ConnectionHeader],
        ),
        (
            "route",
            reply(CommonResponse {
                clear_route_cache: true,
                ..pass()
            }),
            &[Code::ClearRouteCache],
        ),
        (
            "route of a response",
            begun(Off).headers(Res, &[]).answered(
                Res,
                CommonResponse {
                    clear_route_cache: true,
                    ..set("x-a", "1")
                },
            ),
            &[Code::ClearRouteCache],
        ),
        (
            "trailers",
            reply(CommonResponse {
                trailers: Some(map(&[("x", "1")])),
                ..pass()
            }),
            &[Code::CommonTrailers],
        ),
        (
            "late in STREAMED",
            begun(Streamed)
                .body(Req, "a", true)
                .body_answered(Req, set("x-a", "1")),
            &[Code::LateHeaders],
        ),
        (
            "length in STREAMED, all at once",
            begun(Streamed)
                .body(Req, "a", true)
                .body_answered(Req, set("content-length", "1")),
            &[],
        ),
        (
            "late without headers",
            Script::new(Buffered)
                .body(Req, "a", true)
                .body_answered(Req, set("x-a", "1")),
            &[Code::LateHeaders],
        ),
        (
            "late in full duplex",
            begun(Duplex)
                .body(Req, "a", true)
                .body_answered(Req, both(set("x-a", "1"), part("a", true))),
            &[Code::LateHeaders],
        ),
    ]);
}

#[test]
fn bodies_must_fit_the_mode_and_the_length() {
    let whole = || begun(Buffered).body(Req, "hello", true);
    rows(vec![
        (
            "longer",
            whole().body_answered(Req, plain("longer than it was")),
            &[Code::LengthMismatch],
        ),
        (
            "cleared",
            whole().body_answered(Req, mutation(Mutation::ClearBody(true))),
            &[Code::LengthMismatch],
        ),
        (
            "not cleared",
            whole().body_answered(Req, mutation(Mutation::ClearBody(false))),
            &[],
        ),
        (
            "length without body",
            whole().body_answered(Req, set("content-length", "9")),
            &[Code::WrongLength],
        ),
        (
            "length in NONE",
            asked(Off).answered(Req, set("content-length", "9")),
            &[Code::WrongLength],
        ),
        (
            "length in STREAMED",
            asked(Streamed).answered(Req, set("content-length", "9")),
            &[Code::LengthDropped],
        ),
        (
            "body without replace",
            asked(Off).answered(Req, plain("x")),
            &[Code::BodyInContinue],
        ),
        (
            "replace without body",
            asked(Off).answered(Req, replacing(pass())),
            &[Code::ReplaceWithoutBody],
        ),
        (
            "replace in body",
            whole().body_answered(Req, replacing(pass())),
            &[Code::ReplaceInBody],
        ),
        (
            "body after replace",
            asked(Streamed)
                .not_waiting()
                .body(Req, "a", true)
                .answered(Req, replacing(plain("x")))
                .body_answered(Req, pass()),
            &[Code::AfterReplace],
        ),
        (
            "streamed in STREAMED",
            begun(Streamed)
                .body(Req, "a", true)
                .body_answered(Req, part("a", true)),
            &[Code::StreamedInOtherMode],
        ),
        (
            "streamed in BUFFERED",
            whole().body_answered(Req, part("a", true)),
            &[Code::StreamedInOtherMode],
        ),
    ]);
}

#[test]
fn full_duplex_has_an_order_and_an_end() {
    let body = || begun(Duplex).body(Req, "a", false);
    let ended = || body().body(Req, "", true);
    rows(vec![
        (
            "plain",
            body().body_answered(Req, plain("a")),
            &[Code::PlainInDuplex],
        ),
        (
            "clear",
            body().body_answered(Req, mutation(Mutation::ClearBody(true))),
            &[Code::PlainInDuplex],
        ),
        (
            "empty reply",
            body().body_answered(Req, pass()),
            &[Code::PlainInDuplex],
        ),
        (
            "body before headers",
            asked(Duplex)
                .body(Req, "a", true)
                .body_answered(Req, part("a", true)),
            &[Code::BodyBeforeHeaders],
        ),
        (
            "body before body",
            begun(Duplex).body_answered(Req, part("a", false)),
            &[Code::BodyUnasked],
        ),
        (
            "after the end",
            ended()
                .body_answered(Req, part("a", true))
                .body_answered(Req, part("b", false)),
            &[Code::AfterEos],
        ),
        (
            "no headers",
            asked(Duplex).body(Req, "a", true).event(Event::GaveUp),
            &[Code::MissingHeaders],
        ),
        (
            "no end",
            ended()
                .body_answered(Req, part("a", false))
                .event(Event::GaveUp),
            &[Code::MissingEos],
        ),
        (
            "no trailers",
            body()
                .trailers(Req)
                .body_answered(Req, part("a", false))
                .event(Event::GaveUp),
            &[Code::MissingTrailers],
        ),
        (
            "end for trailers",
            body().trailers(Req).body_answered(Req, part("a", true)),
            &[Code::EosInsteadOfTrailers],
        ),
        (
            "early end",
            body().body_answered(Req, part("a", true)),
            &[Code::EndedEarly],
        ),
        (
            "second headers",
            begun(Duplex).answered(Req, pass()),
            &[Code::SecondReply],
        ),
    ]);
}

#[test]
fn overrides_are_taken_or_ignored_as_envoy_does() {
    let alone = |mode| ProcessingResponse {
        mode_override: Some(mode),
        ..ProcessingResponse::default()
    };
    rows(vec![
        (
            "not allowed",
            asked(Off).answered_with(pass(), modes(Buffered, Off)),
            &[Code::OverrideIgnored],
        ),
        (
            "in full duplex",
            asked(Duplex)
                .overriding()
                .answered_with(pass(), modes(Buffered, Off)),
            &[Code::OverrideIgnored],
        ),
        (
            "not waiting",
            asked(Streamed)
                .overriding()
                .not_waiting()
                .answered_with(pass(), modes(Buffered, Off)),
            &[Code::OverrideIgnored],
        ),
        (
            "resets",
            asked(Buffered)
                .overriding()
                .answered_with(pass(), modes(Buffered, Off)),
            &[Code::OverrideResets],
        ),
        (
            "alone",
            asked(Off).overriding().raw(alone(modes(Buffered, Off))),
            &[Code::OverrideAlone],
        ),
        (
            "alone, not allowed",
            asked(Off).raw(alone(ProcessingMode {
                request_trailer_mode: 1,
                ..modes(Duplex, Off)
            })),
            &[Code::OverrideAlone],
        ),
        (
            "stale length",
            asked(Off)
                .overriding()
                .answered_with(pass(), modes(Streamed, Off))
                .body(Req, "hello", true)
                .body_answered(Req, plain("longer")),
            &[Code::StaleLength],
        ),
        (
            "fitting length",
            asked(Off)
                .overriding()
                .answered_with(pass(), modes(Streamed, Off))
                .body(Req, "hello", true)
                .body_answered(Req, plain("HELLO")),
            &[],
        ),
        (
            "new mode counts",
            asked(Off)
                .overriding()
                .answered_with(pass(), modes(Buffered, Off))
                .body(Req, "hello", true)
                .body_answered(Req, plain("longer")),
            &[Code::LengthMismatch],
        ),
    ]);
}

#[test]
fn answers_of_its_own_must_be_whole_and_in_time() {
    let status = &[(":status", "200")];
    let started = |mode| asked(mode).reply(local_headers(status, false));
    rows(vec![
        (
            "no status",
            asked(Off).reply(immediate(0, pass())),
            &[Code::ImmediateStatus],
        ),
        (
            "status 100",
            asked(Off).reply(immediate(100, pass())),
            &[Code::ImmediateStatus],
        ),
        (
            ":status",
            asked(Off).reply(immediate(403, set(":status", "201"))),
            &[Code::ImmediateHeaders],
        ),
        (
            "content-length",
            asked(Off).reply(immediate(403, set("content-length", "1"))),
            &[Code::ImmediateHeaders],
        ),
        (
            "invalid",
            asked(Off).reply(immediate(403, set("x v", "1"))),
            &[Code::ImmediateInvalid],
        ),
        (
            "too late",
            begun(Streamed)
                .headers(Res, &[])
                .answered(Res, pass())
                .body(Res, "a", false)
                .reply(immediate(403, pass())),
            &[Code::ImmediateTooLate],
        ),
        (
            "buffered is in time",
            begun(Buffered)
                .headers(Res, &[])
                .answered(Res, pass())
                .body(Res, "a", true)
                .reply(immediate(403, pass())),
            &[],
        ),
        (
            "own response too late",
            begun(Off).reply(local_headers(status, true)),
            &[Code::StreamedTooLate],
        ),
        (
            "own response without status",
            asked(Off).reply(local_headers(&[("x", "1")], true)),
            &[Code::StreamedImmediateStatus],
        ),
        (
            "own body first",
            asked(Off).reply(local_body(true)),
            &[Code::StreamedImmediateOrder],
        ),
        (
            "own headers twice",
            started(Off).reply(local_headers(status, false)),
            &[Code::StreamedImmediateOrder],
        ),
        (
            "other reply within",
            started(Off).answered(Req, pass()),
            &[Code::StreamedImmediateOrder],
        ),
        (
            "own body in BUFFERED",
            started(Buffered).reply(local_body(true)),
            &[Code::StreamedImmediateMode],
        ),
        (
            "no end",
            started(Off).event(Event::GaveUp),
            &[Code::NoImmediateEnd],
        ),
        (
            "closed before the end",
            started(Off).event(Event::Ended(GrpcCode::Ok, String::new())),
            &[Code::NoImmediateEnd],
        ),
    ]);
}

#[test]
fn fields_without_effect_are_noted() {
    let list = prost_types::Value {
        kind: Some(prost_types::value::Kind::BoolValue(true)),
    };
    let metadata = prost_types::Struct {
        fields: [("ns".to_owned(), list)].into(),
    };
    let with = |change: fn(&mut ProcessingResponse)| {
        let mut message = ProcessingResponse {
            response: Some(headers_reply(Req, pass())),
            ..ProcessingResponse::default()
        };
        change(&mut message);
        asked(Off).raw(message)
    };
    rows(vec![
        (
            "drain",
            with(|m| m.request_drain = true),
            &[Code::UnusedField],
        ),
        (
            "window",
            with(|m| m.server_window_update = Some(Default::default())),
            &[Code::UnusedField],
        ),
        (
            "metadata",
            asked(Off).raw(ProcessingResponse {
                response: Some(headers_reply(Req, pass())),
                dynamic_metadata: Some(metadata),
                ..ProcessingResponse::default()
            }),
            &[Code::MetadataNotStruct],
        ),
    ]);
}

#[test]
fn every_kind_of_finding_has_a_name_of_its_own() {
    let mut names: Vec<_> = Code::ALL.iter().map(|code| code.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Code::ALL.len());
}

#[test]
fn values_of_headers_are_not_shown() {
    let script = asked(Off).answered(Req, set("x-envoy-key", "s3cret\nx"));
    for finding in check(&script.setup, &script.events) {
        assert!(!finding.did.contains("s3cret"), "{}", finding.did);
    }
}

#[test]
fn replies_are_timed_by_phase() {
    let script = asked(Off).after(9).answered(Req, pass());
    let mut checker = Checker::new(Setup::default());
    script.events.iter().for_each(|event| checker.event(event));
    let expected = (Phase::Headers(Req), Duration::from_millis(10));
    assert_eq!(checker.latencies(), [expected]);
}
