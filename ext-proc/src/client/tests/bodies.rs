use attache_filter::Body;
use attache_proto::ext_proc::{
    CommonResponse, common_response::ResponseStatus, processing_request::Request as Part,
};
use http::Response;

use super::support::*;
use crate::client::{Filter, mode::BodyMode};

fn buffered(filter: &mut Filter) {
    filter.modes.request_body = BodyMode::Buffered;
    filter.modes.response_body = BodyMode::Buffered;
}

fn streamed(filter: &mut Filter) {
    filter.modes.request_body = BodyMode::Streamed;
    filter.modes.response_body = BodyMode::Streamed;
}

fn trailer_modes(filter: &mut Filter) {
    filter.modes.request_trailers = true;
    filter.modes.response_trailers = true;
}

#[tokio::test]
async fn buffered_bodies_are_shown_whole() {
    let seen = setup(buffered, |part| vec![pass(part)])
        .send(post_hello())
        .await;

    assert_eq!(
        seen.transcript(),
        [
            "request_headers",
            "request_body[hello] eos",
            "response_headers",
            "response_body[upstream-body] eos"
        ]
    );
    let upstream = seen.upstream.as_ref().unwrap();
    assert_eq!(upstream.head.headers["content-length"], "5");
    assert_eq!(upstream.body.as_deref(), Ok(&b"hello"[..]));
    assert_eq!(seen.text(), "upstream-body");
    assert_eq!(seen.headers["content-length"], "13");
}

#[tokio::test]
async fn a_buffered_body_and_its_trailers() {
    let request = post(chunked(vec![data("aa"), data("bb"), trailers("x-t", "1")]));
    let seen = setup(
        |f| {
            buffered(f);
            trailer_modes(f);
        },
        |part| {
            vec![Act::Send(match part {
                Part::RequestTrailers(_) => answer(part, set(&[("x-t2", "2")])),
                _ => answer(part, CommonResponse::default()),
            })]
        },
    )
    .send(request)
    .await;

    assert_eq!(
        seen.transcript()[..3],
        ["request_headers", "request_body[aabb]", "request_trailers"]
    );
    let upstream = seen.upstream.as_ref().unwrap();
    assert_eq!(upstream.body.as_deref(), Ok(&b"aabb"[..]));
    let trailers = upstream.trailers.as_ref().unwrap();
    assert_eq!(
        (&trailers["x-t"], &trailers["x-t2"]),
        (&"1".parse().unwrap(), &"2".parse().unwrap())
    );
}

#[tokio::test]
async fn a_replaced_buffered_body_needs_its_length() {
    let run = |fix: Option<&'static str>| {
        setup(
            |f| f.modes.request_body = BodyMode::Buffered,
            move |part| {
                let mut common = CommonResponse::default();
                if let Part::RequestBody(_) = part {
                    common = body("new-body!");
                    common.header_mutation = match fix {
                        Some("") => Some(mutation(&[], &["content-length"])),
                        Some(length) => Some(mutation(&[("content-length", length)], &[])),
                        None => None,
                    };
                }
                vec![Act::Send(answer(part, common))]
            },
        )
        .send(post_hello())
    };

    let broken = run(None).await;
    assert_eq!(broken.status, 500);
    assert_eq!(
        broken.details.as_deref(),
        Some("mismatch_between_content_length_and_the_length_of_the_mutated_body")
    );
    for (fix, length) in [("9", Some("9")), ("", None)] {
        let seen = run(Some(fix)).await;
        let upstream = seen.upstream.unwrap();
        assert_eq!(upstream.body.as_deref(), Ok(&b"new-body!"[..]));
        let sent = upstream
            .head
            .headers
            .get("content-length")
            .map(|v| v.to_str().unwrap());
        assert_eq!(sent, length);
    }
}

#[tokio::test]
async fn streamed_bodies_go_on_piece_by_piece_as_answered() {
    let request = post(chunks(&["aaa", "bbb", "ccc"]));
    let seen = setup(streamed, |part| {
        vec![Act::Send(match part {
            Part::RequestBody(b) if b.body == "bbb" => answer(part, body("REPLACED")),
            Part::RequestBody(b) if b.body == "ccc" => answer(part, clear()),
            Part::RequestBody(b) if b.end_of_stream => answer(part, body("tail")),
            _ => answer(part, CommonResponse::default()),
        })]
    })
    .send(request)
    .await;

    let shown: String = seen
        .messages
        .iter()
        .filter_map(|m| match m.request.as_ref() {
            Some(Part::RequestBody(b)) => Some(String::from_utf8_lossy(&b.body).into_owned()),
            _ => None,
        })
        .collect();
    assert_eq!(shown, "aaabbbccc");
    assert_eq!(seen.text(), "upstream-body");
}

#[tokio::test]
async fn streamed_pieces_after_the_headers_are_shown_one_by_one() {
    // The upstream is asked before the body is read on, so nothing is coalesced.
    let seen = setup(
        |f| {
            streamed(f);
            f.modes.request_headers = false;
            f.modes.response_headers = false;
        },
        |part| {
            vec![Act::Send(match part {
                Part::RequestBody(b) if b.body == "bbb" => answer(part, body("REPLACED")),
                Part::RequestBody(b) if b.body == "ccc" => answer(part, clear()),
                Part::RequestBody(b) if b.end_of_stream => answer(part, body("tail")),
                _ => answer(part, CommonResponse::default()),
            })]
        },
    )
    .send(post(chunks(&["aaa", "bbb", "ccc"])))
    .await;

    assert_eq!(
        seen.transcript()[..4],
        [
            "request_body[aaa]",
            "request_body[bbb]",
            "request_body[ccc]",
            "request_body[] eos"
        ]
    );
    let upstream = seen.upstream.as_ref().unwrap();
    assert_eq!(upstream.body.as_deref(), Ok(&b"aaaREPLACEDtail"[..]));
    assert!(!upstream.head.headers.contains_key("content-length"));
    assert!(!seen.headers.contains_key("content-length"));
}

#[tokio::test]
async fn a_body_that_is_here_with_the_headers_is_shown_at_once() {
    let seen = setup(streamed, |part| vec![pass(part)])
        .send(post_hello())
        .await;

    assert_eq!(
        seen.transcript()[..2],
        ["request_headers", "request_body[hello] eos"]
    );
    assert!(
        !seen
            .upstream
            .unwrap()
            .head
            .headers
            .contains_key("content-length")
    );
}

#[tokio::test]
async fn streamed_bodies_with_trailers_have_no_final_message() {
    let seen = setup(
        |f| {
            f.modes.response_body = BodyMode::Streamed;
            f.modes.response_headers = false;
            trailer_modes(f);
        },
        |part| {
            vec![Act::Send(match part {
                Part::ResponseTrailers(_) => answer(part, set(&[("x-t", "2")])),
                _ => answer(part, CommonResponse::default()),
            })]
        },
    )
    .upstream(|| Response::new(chunked(vec![data("aa"), data("bb"), trailers("x-t", "1")])))
    .send(get())
    .await;

    assert_eq!(
        seen.transcript(),
        [
            "request_headers eos",
            "response_body[aa]",
            "response_body[bb]",
            "response_trailers"
        ]
    );
    assert_eq!(seen.text(), "aabb");
    assert_eq!(seen.trailers.unwrap()["x-t"], "2");
}

#[tokio::test]
async fn trailers_pass_where_nobody_asks_for_them() {
    let seen = setup(|_| {}, |part| vec![pass(part)])
        .upstream(|| Response::new(chunked(vec![data("aa"), trailers("x-t", "1")])))
        .send(post(chunked(vec![data("bb"), trailers("x-u", "1")])))
        .await;

    assert_eq!(seen.transcript(), ["request_headers", "response_headers"]);
    assert_eq!(seen.upstream.unwrap().trailers.unwrap()["x-u"], "1");
    assert_eq!(seen.trailers.unwrap()["x-t"], "1");
}

#[tokio::test]
async fn trailers_are_shown_without_the_body() {
    let seen = setup(trailer_modes, |part| {
        vec![Act::Send(match part {
            Part::RequestTrailers(_) => answer(part, set(&[("x-u", "2")])),
            _ => answer(part, CommonResponse::default()),
        })]
    })
    .send(post(chunked(vec![data("bb"), trailers("x-u", "1")])))
    .await;

    assert_eq!(
        seen.transcript(),
        ["request_headers", "request_trailers", "response_headers"]
    );
    let upstream = seen.upstream.unwrap();
    assert_eq!(upstream.trailers.unwrap()["x-u"], "2");
    assert_eq!(upstream.body.as_deref(), Ok(&b"bb"[..]));
}

fn replace(part: &Part, new: CommonResponse) -> Vec<Act> {
    let status = ResponseStatus::ContinueAndReplace as i32;
    vec![Act::Send(answer(part, CommonResponse { status, ..new }))]
}

#[tokio::test]
async fn a_headers_reply_can_replace_the_body() {
    let seen = setup(buffered, |part| match part {
        Part::RequestHeaders(_) => {
            let mut new = body("NEWB");
            new.header_mutation = Some(mutation(&[("x-q", "1"), ("content-length", "4")], &[]));
            replace(part, new)
        }
        _ => vec![pass(part)],
    })
    .send(post_hello())
    .await;

    assert_eq!(
        seen.transcript(),
        [
            "request_headers",
            "response_headers",
            "response_body[upstream-body] eos"
        ]
    );
    let upstream = seen.upstream.unwrap();
    assert_eq!(upstream.body.as_deref(), Ok(&b"NEWB"[..]));
    assert_eq!(upstream.head.headers["x-q"], "1");
    assert!(!upstream.head.headers.contains_key("content-length"));
}

#[tokio::test]
async fn a_get_can_become_a_post_with_a_body() {
    let seen = setup(
        |_| {},
        |part| match part {
            Part::RequestHeaders(_) => {
                let mut new = body("NEWB");
                new.header_mutation = Some(mutation(&[(":method", "POST")], &[]));
                replace(part, new)
            }
            _ => vec![pass(part)],
        },
    )
    .send(get())
    .await;

    let upstream = seen.upstream.unwrap();
    assert_eq!(upstream.head.method, "POST");
    assert_eq!(upstream.body.as_deref(), Ok(&b"NEWB"[..]));
}

#[tokio::test]
async fn an_error_of_the_upstream_can_be_rewritten_whole() {
    let seen = setup(
        |_| {},
        |part| match part {
            Part::ResponseHeaders(_) => {
                let mut new = body("custom");
                new.header_mutation = Some(mutation(&[(":status", "200")], &[]));
                replace(part, new)
            }
            _ => vec![pass(part)],
        },
    )
    .upstream(|| {
        let response = Response::builder().status(503).header("content-length", 2);
        response.body(Body::from("no")).unwrap()
    })
    .send(get())
    .await;

    assert_eq!((seen.status, seen.text()), (200, "custom"));
    assert!(!seen.headers.contains_key("content-length"));
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused() {
    let limited = |f: &mut Filter| {
        buffered(f);
        f.buffer_limit = 20;
    };
    let seen = setup(limited, |part| vec![pass(part)])
        .upstream(|| Response::new("ok".into()))
        .send(post(chunks(&["aaaaaaaaaaaa", "aaaaaaaaaaaa"])))
        .await;
    assert_eq!((seen.status, seen.text()), (413, "Payload Too Large"));
    assert_eq!(seen.details.as_deref(), Some("request_payload_too_large"));
    assert!(seen.upstream.is_none());
    // The refusal goes through the response phase.
    assert!(
        seen.transcript().contains(&"response_headers".to_owned()),
        "{:?}",
        seen.transcript()
    );

    let seen = setup(limited, |part| vec![pass(part)])
        .upstream(|| Response::new(chunks(&["aaaaaaaaaaaa", "aaaaaaaaaaaa"])))
        .send(get())
        .await;
    assert_eq!(seen.status, 500);
    assert_eq!(seen.details.as_deref(), Some("response_payload_too_large"));
}

#[tokio::test]
async fn an_upgrade_is_not_buffered() {
    let mut request = get();
    request
        .headers_mut()
        .insert("connection", "upgrade".parse().unwrap());
    request
        .headers_mut()
        .insert("upgrade", "websocket".parse().unwrap());
    let seen = setup(buffered, |part| vec![pass(part)])
        .upstream(|| Response::builder().status(101).body(Body::empty()).unwrap())
        .send(request)
        .await;

    assert_eq!(seen.transcript(), ["request_headers", "response_headers"]);
    assert_eq!(seen.status, 101);
}
