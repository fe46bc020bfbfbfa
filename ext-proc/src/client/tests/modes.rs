use std::time::Duration;

use attache_filter::Body;
use attache_proto::{
    core::{HeaderMap as WireMap, HeaderValue},
    ext_proc::{
        BodyMutation, CommonResponse, HttpHeaders, ProcessingResponse, StreamedBodyResponse,
        StreamedImmediateResponse, body_mutation::Mutation, processing_request::Request as Part,
        processing_response::Response as Answer,
        streamed_immediate_response::Response as LocalPart,
    },
    ext_proc_filter::{ProcessingMode, processing_mode::BodySendMode},
};
use bytes::Bytes;
use http::Response;
use tonic::Status;

use super::support::*;
use crate::client::{BodyMode, Filter};

fn full_duplex(filter: &mut Filter) {
    filter.modes.request_body = BodyMode::FullDuplexStreamed;
    filter.modes.request_trailers = true;
    filter.modes.response_body = BodyMode::FullDuplexStreamed;
    filter.modes.response_trailers = true;
}

fn piece(part: &Part, body: Bytes, end_of_stream: bool) -> Act {
    let mutation = Mutation::StreamedResponse(StreamedBodyResponse {
        body,
        end_of_stream,
        ..StreamedBodyResponse::default()
    });
    let common = CommonResponse {
        body_mutation: Some(BodyMutation {
            mutation: Some(mutation),
        }),
        ..CommonResponse::default()
    };
    Act::Send(answer(part, common))
}

/// Gives bodies back as they come.
fn echo(part: &Part) -> Vec<Act> {
    match part {
        Part::RequestBody(b) | Part::ResponseBody(b) => {
            vec![piece(part, b.body.clone(), b.end_of_stream)]
        }
        _ => vec![pass(part)],
    }
}

#[tokio::test]
async fn a_full_duplex_body_comes_back_with_its_trailers_and_without_its_length() {
    let body = chunked(vec![data("aa"), data("bb"), trailers("x-t", "1")]);
    let mut request = post(body);
    request.headers_mut().insert("content-length", 4.into());
    let seen = setup(full_duplex, echo).send(request).await;

    assert_eq!(
        seen.transcript(),
        [
            "request_headers",
            "request_body[aa]",
            "request_body[bb]",
            "request_trailers",
            "response_headers",
            "response_body[upstream-body]",
            "response_body[] eos"
        ]
    );
    let config = seen.messages[0].protocol_config.unwrap();
    assert_eq!(
        (config.request_body_mode, config.response_body_mode),
        (4, 4)
    );
    let upstream = seen.upstream.as_ref().unwrap();
    assert_eq!(upstream.body.as_deref(), Ok(&b"aabb"[..]));
    assert_eq!(upstream.trailers.as_ref().unwrap()["x-t"], "1");
    assert!(!upstream.head.headers.contains_key("content-length"));
    assert_eq!(seen.text(), "upstream-body");
}

#[tokio::test]
async fn calls_are_logged_with_their_number_and_their_bytes() {
    let seen = setup(full_duplex, echo)
        .send(post(chunks(&["aa", "bb"])))
        .await;
    let calls = seen.context.calls();
    let body = calls
        .iter()
        .find(|call| call.phase.name() == "request_body");
    let body = body.unwrap();
    assert_eq!((body.count, body.status), (3, 0));
    let wire = |n: usize| prost::Message::encoded_len(&seen.messages[n]) as u64 + 5;
    assert_eq!(body.sent_bytes, wire(1) + wire(2) + wire(3));
    assert!(body.received_bytes > 4);
    let sent: u64 = calls.iter().map(|call| call.sent_bytes).sum();
    assert_eq!(sent, (0..seen.messages.len()).map(wire).sum::<u64>());
}

#[tokio::test(start_paused = true)]
async fn silence_in_full_duplex_ends() {
    let started = tokio::time::Instant::now();
    let seen = setup(full_duplex, |part| match part {
        Part::RequestHeaders(_) => vec![pass(part)],
        _ => vec![Act::Stall],
    })
    .send(post(chunks(&["aa"])))
    .await;
    assert_eq!(seen.status, 504);
    assert_eq!(seen.count("message_timeouts"), 1);
    assert!(started.elapsed() >= Duration::from_secs(300));
}

#[tokio::test]
async fn a_clean_close_within_a_full_duplex_body_is_an_error() {
    let seen = setup(full_duplex, |part| match part {
        Part::RequestBody(b) if b.body == "bb" => vec![Act::End(Status::ok(""))],
        _ => echo(part),
    })
    .send(post(chunks(&["aa", "bb", "cc"])))
    .await;
    assert_eq!(seen.status, 500);
    assert_eq!(
        seen.details.as_deref(),
        Some("ext_proc_stream_closed_within_a_body")
    );
}

#[tokio::test]
async fn the_start_of_a_body_is_shown_and_the_rest_passes() {
    let seen = setup(
        |f| {
            f.modes.request_body = BodyMode::BufferedPartial;
            f.modes.response_headers = false;
            f.buffer_limit = 5;
        },
        |part| {
            vec![Act::Send(match part {
                Part::RequestBody(_) => answer(part, body("start ")),
                _ => answer(part, CommonResponse::default()),
            })]
        },
    )
    .send(post(chunks(&["aaaa", "bbbb", "cccc", "dddd"])))
    .await;
    assert_eq!(
        seen.transcript(),
        ["request_headers", "request_body[aaaabbbb]"]
    );
    let upstream = seen.upstream.unwrap();
    assert_eq!(upstream.body.as_deref(), Ok(&b"start ccccdddd"[..]));
}

#[tokio::test]
async fn a_mode_override_strips_the_length_in_both_directions() {
    let seen = setup(
        |f| f.allow_mode_override = true,
        |part| match part {
            Part::RequestHeaders(_) => vec![Act::Raw(Box::new(ProcessingResponse {
                response: Some(answer(part, CommonResponse::default())),
                mode_override: Some(ProcessingMode {
                    request_body_mode: BodySendMode::Streamed.into(),
                    response_body_mode: BodySendMode::FullDuplexStreamed.into(),
                    ..ProcessingMode::default()
                }),
                ..ProcessingResponse::default()
            }))],
            Part::ResponseBody(b) => {
                let longer = [&b.body[..], b"!"].concat();
                vec![piece(part, longer.into(), b.end_of_stream)]
            }
            _ => vec![pass(part)],
        },
    )
    .send(post_hello())
    .await;
    let upstream = seen.upstream.as_ref().unwrap();
    assert!(!upstream.head.headers.contains_key("content-length"));
    assert!(!seen.headers.contains_key("content-length"));
    assert_eq!(seen.text(), "upstream-body!!");
}

fn local(part: LocalPart) -> Act {
    Act::Send(Answer::StreamedImmediateResponse(
        StreamedImmediateResponse {
            response: Some(part),
        },
    ))
}

fn local_head() -> Act {
    let status = HeaderValue {
        key: ":status".to_owned(),
        raw_value: Bytes::from_static(b"201"),
        ..HeaderValue::default()
    };
    local(LocalPart::HeadersResponse(HttpHeaders {
        headers: Some(WireMap {
            headers: vec![status],
        }),
        ..HttpHeaders::default()
    }))
}

fn local_body(text: &'static str, end_of_stream: bool) -> Act {
    local(LocalPart::BodyResponse(StreamedBodyResponse {
        body: text.into(),
        end_of_stream,
        ..StreamedBodyResponse::default()
    }))
}

#[tokio::test]
async fn a_processor_streams_a_response() {
    let seen = setup(
        |_| {},
        |_| {
            vec![
                local_head(),
                local_body("aa", false),
                local_body("bb", true),
            ]
        },
    )
    .send(get())
    .await;
    assert_eq!((seen.status, seen.text()), (201, "aabb"));
    assert_eq!(seen.details.as_deref(), Some("ext_proc_local_response"));
    assert!(seen.upstream.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_streamed_response_that_stops_is_never_a_clean_end() {
    // Envoy leaves the client waiting in both cases. Here, one that stops at once is told so.
    for (stop, status) in [(true, 500), (false, 201)] {
        let seen = setup(
            |_| {},
            move |_| {
                let end = stop.then(|| Act::End(Status::ok("")));
                let mut acts = vec![local_head(), local_body("aa", false)];
                acts.extend(end);
                acts
            },
        )
        .send(get())
        .await;
        assert_eq!(seen.status, status);
        assert!(stop || seen.body.is_err());
    }
}

#[tokio::test]
async fn a_request_in_full_duplex_is_shown_while_the_response_is_streamed() {
    let seen = setup(full_duplex, |part| match part {
        Part::RequestHeaders(_) => vec![local_head()],
        Part::RequestBody(b) if b.end_of_stream => vec![local_body("got all", true)],
        _ => vec![],
    })
    .send(post(chunks(&["aa", "bb"])))
    .await;
    assert_eq!(seen.text(), "got all");
    assert_eq!(
        seen.transcript(),
        [
            "request_headers",
            "request_body[aa]",
            "request_body[bb]",
            "request_body[] eos"
        ]
    );
}

fn observing(filter: &mut Filter) {
    filter.observability_mode = true;
    filter.modes.request_body = BodyMode::Streamed;
    filter.modes.response_body = BodyMode::Streamed;
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_looks_on_changes_and_delays_nothing() {
    let started = tokio::time::Instant::now();
    let seen = setup(observing, |part| match part {
        Part::RequestHeaders(_) => vec![Act::Send(Answer::ImmediateResponse(deny(403, "no")))],
        Part::RequestBody(_) => vec![Act::Send(answer(part, clear()))],
        _ => vec![Act::Stall],
    })
    .send(post_hello())
    .await;

    assert_eq!((seen.status, seen.text()), (200, "upstream-body"));
    let upstream = seen.upstream.as_ref().unwrap();
    assert_eq!(upstream.body.as_deref(), Ok(&b"hello"[..]));
    assert_eq!(upstream.head.headers["content-length"], "5");
    assert_eq!(
        seen.transcript(),
        [
            "request_headers",
            "request_body[hello]",
            "request_body[] eos",
            "response_headers",
            "response_body[upstream-body]",
            "response_body[] eos"
        ]
    );
    for message in &seen.messages {
        assert!(message.observability_mode && message.protocol_config.is_none());
    }
    assert_eq!(seen.count("message_timeouts"), 0);
    assert_eq!(started.elapsed(), Duration::ZERO);
    let calls = seen.context.calls();
    assert_eq!(
        (calls[0].phase.name(), calls[0].count),
        ("observability", 6)
    );
}

#[tokio::test]
async fn a_failure_of_a_processor_that_looks_on_counts() {
    let fail = |_: &Part| vec![Act::End(Status::internal("boom"))];
    let upstream = || Response::new(Body::from("late"));
    let run = |allow: bool| {
        setup(
            move |f| {
                observing(f);
                f.failure_mode_allow = allow;
            },
            fail,
        )
        .upstream(upstream)
        .send_with(get(), move |request| async move {
            // Answers when the failure is known.
            for _ in 0..200 {
                tokio::task::yield_now().await;
            }
            (upstream(), receive(request).await)
        })
    };
    assert_eq!(run(false).await.status, 500);
    assert_eq!(run(true).await.text(), "late");
}
