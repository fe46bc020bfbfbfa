use std::time::Duration;

use attache_filter::{Body, calls::CallResult};
use attache_proto::ext_proc::{
    ProcessingResponse, processing_request::Request as Part,
    processing_response::Response as Answer,
};
use http::Response;
use tonic::Status;

use super::support::*;
use crate::client::{Filter, mode::BodyMode};

fn allow(filter: &mut Filter) {
    filter.failure_mode_allow = true;
}

#[tokio::test(start_paused = true)]
async fn a_silent_processor_costs_504_or_nothing() {
    let seen = setup(|_| {}, |_| vec![Act::Stall]).send(get()).await;
    assert_eq!((seen.status, seen.text()), (504, ""));
    assert_eq!(
        seen.details.as_deref(),
        Some("ext_proc_error_per-message_timeout_exceeded")
    );
    assert_eq!(seen.count("message_timeouts"), 1);
    assert_eq!(seen.count("streams_closed"), 1);
    assert_eq!(seen.context.calls()[0].status, 4);
    let result = seen.context.calls()[0].result;
    assert_eq!(result, CallResult::TimedOutClosed);

    let seen = setup(allow, |_| vec![Act::Stall]).send(post_hello()).await;
    assert_eq!((seen.status, seen.text()), (200, "upstream-body"));
    assert_eq!(seen.count("failure_mode_allowed"), 1);
    let result = seen.context.calls()[0].result;
    assert_eq!(result, CallResult::TimedOutOpen);
    assert_eq!(seen.upstream.unwrap().body.as_deref(), Ok(&b"hello"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_answers_one_of_two_pieces_is_timed_out() {
    // Envoy disarms its timer with the first answer and hangs.
    let seen = setup(
        |f| {
            f.modes.request_body = BodyMode::Streamed;
            f.modes.request_headers = false;
        },
        |part| match part {
            Part::RequestBody(b) if b.body == "aa" => vec![pass(part)],
            _ => vec![Act::Stall],
        },
    )
    .send(post(chunks(&["aa", "bb"])))
    .await;

    assert_eq!(seen.status, 504);
    assert_eq!(seen.count("message_timeouts"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_with_allow_passes_the_waiting_pieces_on() {
    let seen = setup(
        |f| {
            allow(f);
            f.modes.request_body = BodyMode::Streamed;
            f.modes.request_headers = false;
        },
        |part| match part {
            Part::RequestBody(b) if b.body == "aa" => vec![Act::Send(answer(part, body("AA")))],
            _ => vec![Act::Stall],
        },
    )
    .send(post(chunks(&["aa", "bb", "cc"])))
    .await;

    assert_eq!(seen.status, 200);
    assert_eq!(seen.upstream.unwrap().body.as_deref(), Ok(&b"AAbbcc"[..]));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_within_the_response_body_breaks_it_off() {
    let seen = setup(
        |f| f.modes.response_body = BodyMode::Streamed,
        |part| match part {
            Part::ResponseBody(b) if b.body == "bb" => vec![Act::Stall],
            _ => vec![pass(part)],
        },
    )
    .upstream(|| {
        let pieces = futures_util::stream::unfold(0, |n| async move {
            // Later than the answer to the headers, so that it is a piece of its own.
            tokio::time::sleep(Duration::from_millis(10)).await;
            let piece = ["aa", "bb"].get(n)?;
            Some((data(piece), n + 1))
        });
        Response::new(Body::new(http_body_util::StreamBody::new(Box::pin(pieces))))
    })
    .send(get())
    .await;

    assert_eq!(seen.status, 200);
    assert!(seen.body.is_err());
    assert_eq!(
        seen.details.as_deref(),
        Some("ext_proc_error_per-message_timeout_exceeded")
    );
}

#[tokio::test]
async fn a_grpc_error_is_the_error_status_or_nothing() {
    let end = |_: &Part| vec![Act::End(Status::internal("boom msg"))];
    let seen = setup(
        |f| f.status_on_error = http::StatusCode::SERVICE_UNAVAILABLE,
        end,
    )
    .send(get())
    .await;
    assert_eq!((seen.status, seen.text()), (503, ""));
    assert_eq!(
        seen.details.as_deref(),
        Some("ext_proc_error_gRPC_error_13{boom_msg{via_upstream}}")
    );
    assert_eq!(
        (seen.count("streams_failed"), seen.count("streams_closed")),
        (1, 0)
    );

    let seen = setup(allow, end).send(get()).await;
    assert_eq!(seen.status, 200);
    assert_eq!(
        (
            seen.count("streams_failed"),
            seen.count("failure_mode_allowed")
        ),
        (1, 1)
    );
}

#[tokio::test]
async fn an_error_while_the_upstream_is_waited_for_acts_at_once() {
    let script = |part: &Part| vec![pass(part), Act::End(Status::internal("boom"))];
    let seen = setup(|_| {}, script)
        .send_with(get(), |_| std::future::pending())
        .await;

    assert_eq!(seen.status, 500);
}

#[tokio::test]
async fn an_unsolicited_answer_while_the_upstream_is_waited_for_reaches_the_caller() {
    let seen = setup(
        |_| {},
        |part| {
            vec![
                pass(part),
                Act::Send(Answer::ImmediateResponse(deny(403, "denied"))),
            ]
        },
    )
    .send_with(get(), |_| std::future::pending())
    .await;

    assert_eq!((seen.status, seen.text()), (403, "denied"));
}

#[tokio::test]
async fn a_clean_close_lets_everything_pass() {
    let close = |_: &Part| vec![Act::End(Status::ok(""))];
    let seen = setup(
        |f| {
            f.modes.request_body = BodyMode::Buffered;
            f.modes.response_body = BodyMode::Buffered;
        },
        close,
    )
    .send(post_hello())
    .await;

    assert_eq!((seen.status, seen.text()), (200, "upstream-body"));
    assert_eq!(
        seen.upstream.as_ref().unwrap().body.as_deref(),
        Ok(&b"hello"[..])
    );
    assert_eq!(
        (
            seen.count("server_half_closed"),
            seen.count("streams_closed")
        ),
        (1, 1)
    );
    assert_eq!(seen.count("failure_mode_allowed"), 0);
    assert_eq!(seen.context.calls()[0].status, 10);
}

#[tokio::test]
async fn answers_that_do_not_fit_are_errors() {
    type Script = fn(&Part) -> Vec<Act>;
    let empty = |_: &Part| vec![Act::Raw(Box::default())];
    let wrong = |_: &Part| vec![Act::Send(Answer::ResponseHeaders(Default::default()))];
    let twice = |part: &Part| vec![pass(part), pass(part)];
    for (script, details) in [
        (empty as Script, "unhandled_message"),
        (wrong as Script, "spurious_message"),
        (twice as Script, "spurious_message"),
    ] {
        let seen = setup(|_| {}, script)
            .send_with(get(), |_| std::future::pending())
            .await;
        assert_eq!(seen.status, 500);
        assert_eq!(seen.details.as_deref(), Some(details));
        assert_eq!(seen.count("spurious_msgs_received"), 1);

        let seen = setup(allow, script).send(get()).await;
        assert_eq!(seen.status, 200);
    }
}

#[tokio::test]
async fn the_processor_can_answer_itself() {
    let seen = setup(
        |_| {},
        |_| {
            let mut reply = deny(403, "denied");
            reply.headers = Some(mutation(
                &[
                    ("x-i", "1"),
                    (":status", "201"),
                    ("content-length", "99"),
                    ("x-envoy-i", "1"),
                ],
                &[],
            ));
            vec![Act::Send(Answer::ImmediateResponse(reply))]
        },
    )
    .send(get())
    .await;

    assert_eq!((seen.status, seen.text()), (403, "denied"));
    assert_eq!(seen.headers["content-type"], "text/plain");
    assert_eq!(seen.headers["content-length"], "6");
    assert_eq!(seen.headers["x-i"], "1");
    assert!(!seen.headers.contains_key("x-envoy-i"));
    assert_eq!(seen.details.as_deref(), Some("my_details"));
    assert!(seen.upstream.is_none());
    assert_eq!(seen.transcript(), ["request_headers eos"]);
    assert_eq!(seen.count("immediate_responses_sent"), 1);
}

#[tokio::test]
async fn answering_itself_can_be_disabled() {
    let script = |_: &Part| vec![Act::Send(Answer::ImmediateResponse(deny(403, "denied")))];
    let seen = setup(|f| f.disable_immediate_response = true, script)
        .send(get())
        .await;
    assert_eq!(seen.status, 500);
    assert_eq!(
        seen.details.as_deref(),
        Some("unhandled_immediate_response_due_to_config_disabled_it")
    );
}

#[tokio::test]
async fn grpc_callers_get_grpc_answers() {
    let mut request = post(Body::empty());
    request
        .headers_mut()
        .insert("content-type", "application/grpc".parse().unwrap());
    let seen = setup(
        |_| {},
        |_| vec![Act::Send(Answer::ImmediateResponse(deny(403, "gm%")))],
    )
    .send(request)
    .await;

    assert_eq!(seen.status, 200);
    assert_eq!(seen.headers["grpc-status"], "7");
    assert_eq!(seen.headers["grpc-message"], "gm%25");
}

#[tokio::test(start_paused = true)]
async fn the_processor_can_ask_for_more_time_once() {
    let more = |seconds| {
        Act::Raw(Box::new(ProcessingResponse {
            override_message_timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
            ..ProcessingResponse::default()
        }))
    };
    let seen = setup(
        |f| f.max_message_timeout = Duration::from_secs(2),
        move |_| vec![more(1), more(2), more(0)],
    )
    .send(get())
    .await;

    assert_eq!(seen.status, 504);
    assert_eq!(seen.count("override_message_timeout_received"), 1);
    assert_eq!(seen.count("override_message_timeout_ignored"), 2);
}

#[tokio::test]
async fn a_missing_cluster_is_an_unreachable_processor() {
    let mut setup = setup(|_| {}, |part| vec![pass(part)]);
    setup.filter.cluster.value = "elsewhere".to_owned();
    let seen = setup.send(get()).await;

    assert_eq!(seen.status, 500);
    assert!(seen.details.unwrap().contains("gRPC_error_14"));
}

#[tokio::test]
async fn a_broken_response_body_is_never_a_clean_end() {
    let broken = || {
        let error: attache_filter::BoxError = "upstream reset".into();
        Response::new(chunked(vec![data("aa"), Err(error)]))
    };
    for mode in [BodyMode::None, BodyMode::Streamed] {
        let seen = setup(
            move |f| {
                f.modes.response_body = mode;
                f.modes.response_headers = mode == BodyMode::None;
            },
            |part| vec![pass(part)],
        )
        .upstream(broken)
        .send(get())
        .await;
        assert_eq!(seen.status, 200, "{mode:?}");
        assert!(seen.body.is_err(), "{mode:?}");
    }
    let seen = setup(
        |f| f.modes.response_body = BodyMode::Buffered,
        |part| vec![pass(part)],
    )
    .upstream(broken)
    .send(get())
    .await;
    assert_eq!(seen.status, 502);
}
