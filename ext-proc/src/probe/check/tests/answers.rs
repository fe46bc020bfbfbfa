//! Answers to the caller, and fields without effect.

use super::*;

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
