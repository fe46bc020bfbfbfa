//! Bodies, their order and length, and overrides of the mode.

use super::*;

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
