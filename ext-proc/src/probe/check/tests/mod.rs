//! One row for each thing that can be wrong.

mod answers;
mod bodies;
mod exchanges;
mod headers;
mod legal;

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
