//! Replies that do not fit, time, and ends of streams.

use super::*;

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
