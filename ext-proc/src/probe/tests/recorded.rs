//! Exchanges that are relayed, recorded, read back and replayed.

use std::io::Cursor;

use attache_proto::{
    core::{HeaderValue, HeaderValueOption},
    ext_proc::{
        BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse,
        StreamedBodyResponse, body_mutation::Mutation, processing_response::Response,
    },
};

use super::*;
use crate::{
    probe::{
        recording::{Mask, Recorder, Recording, RecordingError, Summary},
        relay::Relay,
        replay::{compare, replay},
    },
    server::{Processor, RequestHead, Result, Server},
};

#[derive(Clone)]
struct Tag(&'static str);

impl Processor for Tag {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        request.headers.insert("x-tag", self.0)?;
        request.headers.insert("authorization", "Bearer s3cret")?;
        Ok(())
    }
}

fn host(tag: &'static str) -> Host {
    Server::new(Tag(tag)).into_host()
}

/// Plays cases through a relay; gives the report, what was recorded, and the summary.
async fn recorded(names: &[&str], max_bytes: u64) -> (Report, String, Summary) {
    let folder = std::env::temp_dir().join(format!("attache-record-{:x}", rand_name()));
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("file.jsonl");
    let mask = Mask::new(["Authorization", "x-secret"]);
    let (recorder, writer) = Recorder::create(&path, mask, max_bytes).unwrap();
    assert!(
        Recorder::create(&path, Mask::default(), 1).is_err(),
        "overwritten"
    );
    let relay = Relay::new(channel(host("a")), recorder);
    let report = probe(relay.into_host(), names, |plan| {
        plan.metadata.insert("x-secret", "s3cret".parse().unwrap());
        plan.metadata.insert("x-tenant", "blue".parse().unwrap());
    })
    .await;
    let summary = tokio::task::spawn_blocking(|| writer.finish())
        .await
        .unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    (report, text, summary)
}

/// Unlike any other name of this process.
fn rand_name() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

fn read(text: &str) -> Recording {
    Recording::read(Cursor::new(text)).unwrap()
}

const CASES: &[&str] = &[
    "headers",
    "buffered",
    "streamed-outstanding",
    "full-duplex-trailers",
];

#[tokio::test]
async fn a_relay_changes_nothing_and_records_everything() {
    let (report, text, summary) = recorded(CASES, 1 << 20).await;

    assert_eq!(codes(&report), []);
    assert_eq!(summary.exchanges, CASES.len() as u64);
    assert_eq!(summary.cut, 0);
    assert_eq!(summary.bytes, text.len() as u64);
    let recording = read(&text);
    assert_eq!(recording.exchanges.len(), CASES.len());
    assert_eq!(recording.incomplete, 0);
    for (exchange, case) in recording.exchanges.iter().zip(&report.cases) {
        let count =
            |what: fn(&Event) -> bool| exchange.events.iter().filter(|e| what(&e.event)).count();
        assert_eq!(
            count(|e| matches!(e, Event::Sent(_))),
            case.sent,
            "{}",
            case.name
        );
        assert_eq!(
            count(|e| matches!(e, Event::Received(_))),
            case.received,
            "{}",
            case.name
        );
        let tenant = ("x-tenant".to_owned(), "blue".to_owned());
        assert!(exchange.metadata.contains(&tenant));
        assert_eq!(
            check(
                &Setup {
                    message_timeout: LENIENT,
                    ..Setup::default()
                },
                &exchange.events
            ),
            []
        );
    }
}

#[tokio::test]
async fn secrets_are_not_recorded() {
    let (_, text, _) = recorded(&["headers"], 1 << 20).await;

    assert!(!text.contains("s3cret"), "{text}");
    // Values of headers are in base64.
    assert!(!text.contains("czNjcmV0"), "{text}");
    assert!(!text.contains("QmVhcmVyIHMzY3JldA"), "{text}");
    assert!(text.contains("masked"), "{text}");
}

#[tokio::test]
async fn a_full_file_does_not_stop_the_traffic() {
    let (report, text, _) = recorded(CASES, 2000).await;

    assert_eq!(codes(&report), []);
    assert!(text.len() <= 2000);
    let recording = read(&text);
    assert!(recording.exchanges.len() < CASES.len());
}

#[tokio::test]
async fn the_same_processor_answers_a_replay_alike_and_another_does_not() {
    let (_, text, _) = recorded(CASES, 1 << 20).await;
    let recording = read(&text);

    for exchange in &recording.exchanges {
        let same = replay(&channel(host("a")), exchange, LENIENT)
            .await
            .unwrap();
        // The recorded value of `authorization` is masked.
        assert_eq!(same.len(), 1, "{same:?}");
        let other = replay(&channel(host("b")), exchange, LENIENT)
            .await
            .unwrap();
        assert_eq!(other.len(), 2, "{other:?}");
        let shown = other[0].to_string();
        assert!(
            shown.starts_with("request_headers[0].request_headers.response"),
            "{shown}"
        );
    }
}

#[test]
fn a_file_that_is_no_recording_is_refused_with_its_line() {
    let good = r#"{"exchange":1,"at_ms":0.0,"event":"open","metadata":[]}"#;
    for wrong in [
        "{}",
        "x",
        r#"{"exchange":1,"at_ms":0,"event":"request","message":{"nonsense":1}}"#,
    ] {
        let text = format!("{good}\n{wrong}\n{good}\n");
        let error = Recording::read(Cursor::new(text)).unwrap_err();
        assert!(
            matches!(error, RecordingError::Line { line: 2, .. }),
            "{error}"
        );
    }
}

#[test]
fn an_exchange_without_an_end_is_left_out() {
    let text = concat!(
        r#"{"exchange":1,"at_ms":0.0,"event":"open","metadata":[]}"#,
        "\n",
        r#"{"exchange":2,"at_ms":0.0,"event":"open","metadata":[]}"#,
        "\n",
        r#"{"exchange":2,"at_ms":1.5,"event":"end","status":0,"message":""}"#,
        "\n",
        r#"{"exchange":1,"at_m"#,
    );
    let recording = read(text);

    assert_eq!(recording.incomplete, 1);
    assert_eq!(recording.exchanges.len(), 1);
    assert_eq!(recording.exchanges[0].number, 2);
}

fn headers(common: Option<CommonResponse>) -> ProcessingResponse {
    ProcessingResponse {
        response: Some(Response::RequestHeaders(HeadersResponse {
            response: common,
        })),
        ..ProcessingResponse::default()
    }
}

fn piece(body: &'static str, end_of_stream: bool) -> ProcessingResponse {
    let part = StreamedBodyResponse {
        body: body.into(),
        end_of_stream,
        ..StreamedBodyResponse::default()
    };
    let common = CommonResponse {
        body_mutation: Some(BodyMutation {
            mutation: Some(Mutation::StreamedResponse(part)),
        }),
        ..CommonResponse::default()
    };
    ProcessingResponse {
        response: Some(Response::RequestBody(BodyResponse {
            response: Some(common),
        })),
        ..ProcessingResponse::default()
    }
}

fn set(key: &str, append: Option<bool>) -> ProcessingResponse {
    headers(Some(CommonResponse {
        header_mutation: Some(HeaderMutation {
            set_headers: vec![HeaderValueOption {
                header: Some(HeaderValue {
                    key: key.to_owned(),
                    ..HeaderValue::default()
                }),
                append,
                ..HeaderValueOption::default()
            }],
            ..HeaderMutation::default()
        }),
        ..CommonResponse::default()
    }))
}

#[test]
fn answers_are_compared_by_what_they_mean() {
    let same = [
        (
            vec![headers(None)],
            vec![headers(Some(CommonResponse::default()))],
        ),
        (
            vec![piece("ab", false), piece("c", true)],
            vec![piece("a", false), piece("", false), piece("bc", true)],
        ),
        (vec![set("X-A", Some(false))], vec![set("x-a", None)]),
        (
            vec![headers(None), piece("a", true)],
            vec![piece("a", true), headers(None)],
        ),
    ];
    for (then, now) in same {
        assert_eq!(compare(&then, &now), [], "{then:?}");
    }
    let different = [
        (vec![piece("ab", true)], vec![piece("ab", false)]),
        (vec![piece("ab", true)], vec![piece("ba", true)]),
        (vec![set("x-a", Some(true))], vec![set("x-a", None)]),
        (vec![headers(None)], vec![]),
        (vec![headers(None)], vec![headers(None), headers(None)]),
    ];
    for (then, now) in different {
        assert_eq!(compare(&then, &now).len(), 1, "{then:?}");
    }
}
