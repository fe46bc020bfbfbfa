//! Exchanges in which nothing is wrong.

use super::*;

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
