//! Processors that are wrong over the wire, each found.

use attache_proto::{
    core::{HeaderValue, HeaderValueOption},
    ext_proc::{
        BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse,
        TrailersResponse, body_mutation::Mutation, processing_request::Request,
        processing_response::Response,
    },
};

use super::*;

fn message(response: Response) -> Result<ProcessingResponse, Status> {
    Ok(ProcessingResponse {
        response: Some(response),
        ..ProcessingResponse::default()
    })
}

/// The reply that lets a part pass, with this in it.
fn reply(part: &Request, common: CommonResponse) -> Result<ProcessingResponse, Status> {
    let response = Some(common);
    message(match part {
        Request::RequestHeaders(_) => Response::RequestHeaders(HeadersResponse { response }),
        Request::ResponseHeaders(_) => Response::ResponseHeaders(HeadersResponse { response }),
        Request::RequestBody(_) => Response::RequestBody(BodyResponse { response }),
        Request::ResponseBody(_) => Response::ResponseBody(BodyResponse { response }),
        Request::RequestTrailers(_) => Response::RequestTrailers(TrailersResponse::default()),
        Request::ResponseTrailers(_) => Response::ResponseTrailers(TrailersResponse::default()),
    })
}

fn pass(part: &Request) -> Result<ProcessingResponse, Status> {
    reply(part, CommonResponse::default())
}

fn value_only() -> CommonResponse {
    CommonResponse {
        header_mutation: Some(HeaderMutation {
            set_headers: vec![HeaderValueOption {
                header: Some(HeaderValue {
                    key: "x-a".to_owned(),
                    value: "a".to_owned(),
                    ..HeaderValue::default()
                }),
                ..HeaderValueOption::default()
            }],
            ..HeaderMutation::default()
        }),
        ..CommonResponse::default()
    }
}

fn is_body(part: &Request) -> bool {
    matches!(part, Request::RequestBody(_) | Request::ResponseBody(_))
}

/// A processor that answers each part by `answer`.
fn raw(
    answer: impl Fn(&Request) -> Vec<Result<ProcessingResponse, Status>> + Send + Sync + 'static,
) -> Raw {
    Raw::new(move |request| match &request.request {
        Some(part) if !request.observability_mode => answer(part),
        _ => Vec::new(),
    })
}

#[tokio::test]
async fn wrong_processors_are_found_out() {
    let appending = |part: &Request| {
        let body = Some(Mutation::Body("another body".into()));
        let common = CommonResponse {
            body_mutation: Some(BodyMutation { mutation: body }),
            ..CommonResponse::default()
        };
        vec![reply(
            part,
            if is_body(part) {
                common
            } else {
                CommonResponse::default()
            },
        )]
    };
    let table: Vec<(&str, Raw, Code)> = vec![
        (
            "headers",
            raw(|part| vec![reply(part, value_only())]),
            Code::OnlyValue,
        ),
        (
            "headers",
            raw(|part| vec![pass(part), pass(part)]),
            Code::SecondReply,
        ),
        (
            "headers",
            raw(|_| vec![Ok(ProcessingResponse::default())]),
            Code::EmptyResponse,
        ),
        (
            "headers",
            raw(|_| vec![Err(Status::internal("boom"))]),
            Code::ErrorStatus,
        ),
        (
            "headers",
            raw(|_| vec![Err(Status::new(tonic::Code::Ok, ""))]),
            Code::ClosedUnanswered,
        ),
        ("buffered", raw(appending), Code::LengthMismatch),
        (
            "full-duplex",
            raw(|part| vec![pass(part)]),
            Code::PlainInDuplex,
        ),
        (
            "headers",
            Raw {
                end: Some(Status::cancelled("the stream was reset")),
                ..raw(|part| vec![pass(part)])
            },
            Code::ErrorStatusAtEnd,
        ),
    ];
    for (case, processor, code) in table {
        let report = probe(processor.host(), &[case], |_| {}).await;
        assert_eq!(codes(&report), [code], "{case}");
        assert_eq!(
            report.passes(false),
            code.severity() > Severity::Violation,
            "{code}"
        );
        assert!(!report.passes(true));
    }
}

/// The timeouts that Envoy has; time is simulated.
fn envoys(plan: &mut Plan) {
    plan.setup = Setup::default();
    plan.hang_timeout = std::time::Duration::from_secs(2);
}

#[tokio::test(start_paused = true)]
async fn silence_is_found_out_in_every_mode() {
    let mute = || raw(|_| Vec::new());
    let headers_only = || {
        raw(|part| {
            if is_body(part) {
                Vec::new()
            } else {
                vec![pass(part)]
            }
        })
    };
    for (case, processor, code) in [
        ("headers", mute(), Code::NoReply),
        ("full-duplex", mute(), Code::MissingHeaders),
        ("buffered", headers_only(), Code::NoReply),
        ("streamed-outstanding", headers_only(), Code::NoReply),
        ("full-duplex", headers_only(), Code::MissingEos),
    ] {
        let report = probe(processor.host(), &[case], envoys).await;
        assert_eq!(codes(&report), [code], "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_processor_that_stops_reading_is_found_out() {
    let deaf = Raw {
        reads: false,
        ..raw(|_| Vec::new())
    };
    let report = probe(deaf.host(), &["full-duplex-large"], envoys).await;

    assert_eq!(codes(&report), [Code::NotReading]);
}

#[tokio::test]
async fn the_text_names_what_was_done_what_it_means_and_what_helps() {
    let processor = raw(|part| vec![reply(part, value_only())]);
    let report = probe(processor.host(), &["headers"], |_| {}).await;
    let text = report.to_string();

    for part in [
        "VIOLATION value-instead-of-raw-value",
        "It set `x-a` through `value`. [headers]",
        Code::OnlyValue.effect(),
        Code::OnlyValue.fix(),
        "2 violations",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    let finding = &report.json()["cases"][0]["findings"][0];
    assert_eq!(finding["code"], "value-instead-of-raw-value");
    assert_eq!(finding["phase"], "request_headers");
}
