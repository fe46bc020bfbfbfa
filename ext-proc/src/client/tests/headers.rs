use attache_filter::{Body, mutation::MutationRules};
use attache_proto::ext_proc::{CommonResponse, processing_request::Request as Part};

use super::support::*;
use crate::client::plan::RouteCacheAction;

#[tokio::test]
async fn a_get_shows_both_heads_and_passes_unchanged() {
    let seen = setup(|_| {}, |part| vec![pass(part)]).send(get()).await;

    assert_eq!(
        seen.transcript(),
        ["request_headers eos", "response_headers"]
    );
    assert!(seen.messages[0].protocol_config.is_some());
    assert!(seen.messages[1].protocol_config.is_none());
    assert_eq!((seen.status, seen.text()), (200, "upstream-body"));
    assert_eq!(seen.headers["content-length"], "13");
    for (name, value) in [
        ("streams_started", 1),
        ("streams_closed", 1),
        ("streams_failed", 0),
        ("stream_msgs_sent", 2),
        ("stream_msgs_received", 2),
    ] {
        assert_eq!(seen.count(name), value, "{name}");
    }
    let calls: Vec<_> = seen
        .context
        .calls()
        .iter()
        .map(|c| (c.phase.name(), c.status))
        .collect();
    assert_eq!(calls, [("request_headers", 0), ("response_headers", 0)]);
}

#[tokio::test]
async fn headers_are_set_and_removed_in_both_directions() {
    let mut request = get();
    request.headers_mut().insert("x-rm", "1".parse().unwrap());
    let seen = setup(
        |_| {},
        |part| {
            let header_mutation = Some(match part {
                Part::RequestHeaders(_) => mutation(&[("X-A", "1")], &["x-rm"]),
                _ => mutation(&[("x-b", "2")], &["content-length"]),
            });
            let common = CommonResponse {
                header_mutation,
                ..CommonResponse::default()
            };
            vec![Act::Send(answer(part, common))]
        },
    )
    .send(request)
    .await;

    let upstream = seen.upstream.as_ref().unwrap();
    assert_eq!(upstream.head.headers["x-a"], "1");
    assert!(!upstream.head.headers.contains_key("x-rm"));
    assert_eq!(seen.headers["x-b"], "2");
    assert_eq!(seen.text(), "upstream-body");
}

#[tokio::test]
async fn routing_headers_are_kept_by_default_and_the_rest_of_the_mutation_applies() {
    let seen = setup(
        |_| {},
        |part| {
            let common = match part {
                Part::RequestHeaders(_) => set(&[
                    (":method", "PUT"),
                    ("host", "other"),
                    ("x-envoy-a", "1"),
                    (":path", "/p2"),
                    ("x-a", "1"),
                ]),
                _ => set(&[(":status", "418")]),
            };
            vec![Act::Send(answer(part, common))]
        },
    )
    .send(get())
    .await;

    let upstream = seen.upstream.as_ref().unwrap();
    assert_eq!(upstream.head.method, "GET");
    assert_eq!(upstream.head.headers["host"], "h");
    assert_eq!(upstream.head.uri, "/p2");
    assert_eq!(upstream.head.headers["x-a"], "1");
    assert_eq!(seen.status, 418);
    assert_eq!(seen.count("rejected_header_mutations"), 3);
}

#[tokio::test]
async fn an_invalid_header_fails_the_request_even_when_failures_are_allowed() {
    for (key, value, details) in [
        (
            "x-a",
            "a\nb",
            "header_mutation_set_contains_invalid_character",
        ),
        ("x v", "1", "header_mutation_set_contains_invalid_character"),
        // Envoy accepts an empty name and sends a malformed line.
        ("", "1", "header_mutation_set_contains_invalid_character"),
    ] {
        let seen = setup(
            |f| f.failure_mode_allow = true,
            move |part| vec![Act::Send(answer(part, set(&[(key, value)])))],
        )
        .send(get())
        .await;

        assert_eq!((seen.status, seen.text()), (500, ""), "{key:?}");
        assert!(!seen.headers.contains_key("content-length"));
        assert_eq!(seen.details.as_deref(), Some(details));
        assert!(seen.upstream.is_none());
        assert_eq!(seen.count("rejected_header_mutations"), 1);
        assert_eq!(seen.count("immediate_responses_sent"), 1);
    }
}

#[tokio::test]
async fn transfer_encoding_of_the_processor_is_refused() {
    let seen = setup(
        |_| {},
        |part| {
            vec![Act::Send(answer(
                part,
                set(&[("transfer-encoding", "chunked")]),
            ))]
        },
    )
    .send(post_hello())
    .await;

    let upstream = seen.upstream.as_ref().unwrap();
    assert!(!upstream.head.headers.contains_key("transfer-encoding"));
    assert_eq!(upstream.head.headers["content-length"], "5");
    assert_eq!(seen.status, 200);
    assert_eq!(seen.count("rejected_header_mutations"), 2);
}

#[tokio::test]
async fn a_content_length_that_does_not_fit_the_body_is_removed() {
    let seen = setup(
        |_| {},
        |part| vec![Act::Send(answer(part, set(&[("content-length", "3")])))],
    )
    .send(post_hello())
    .await;

    let upstream = seen.upstream.as_ref().unwrap();
    assert!(!upstream.head.headers.contains_key("content-length"));
    assert_eq!(upstream.body.as_deref(), Ok(&b"hello"[..]));
    assert!(!seen.headers.contains_key("content-length"));
}

#[tokio::test]
async fn the_route_is_cleared_on_request_with_a_mutation() {
    let run = |action, mutate: bool, clear_route_cache| async move {
        setup(
            move |f| f.route_cache_action = action,
            move |part| {
                let common = if mutate {
                    set(&[("x-a", "1")])
                } else {
                    CommonResponse::default()
                };
                let common = CommonResponse {
                    clear_route_cache,
                    ..common
                };
                vec![Act::Send(answer(part, common))]
            },
        )
        .send(get())
        .await
    };
    for (action, mutate, asked, cleared, counter) in [
        (RouteCacheAction::Default, true, true, true, None),
        (RouteCacheAction::Default, true, false, false, None),
        (
            RouteCacheAction::Default,
            false,
            true,
            false,
            Some("clear_route_cache_ignored"),
        ),
        (RouteCacheAction::Clear, true, false, true, None),
        (
            RouteCacheAction::Retain,
            true,
            true,
            false,
            Some("clear_route_cache_disabled"),
        ),
    ] {
        let seen = run(action, mutate, asked).await;
        assert_eq!(
            seen.context.is_route_cleared(),
            cleared,
            "{action:?} {mutate} {asked}"
        );
        if let Some(counter) = counter {
            assert_eq!(seen.count(counter), 1, "{counter}");
        }
    }
}

#[tokio::test]
async fn skipped_headers_open_no_stream() {
    let seen = setup(
        |f| {
            f.modes.request_headers = false;
            f.modes.response_headers = false;
        },
        |part| vec![pass(part)],
    )
    .send(get())
    .await;

    assert_eq!(seen.status, 200);
    assert_eq!(seen.count("streams_started"), 0);
}

#[tokio::test]
async fn rules_can_make_a_refusal_an_error() {
    let mut errors = attache_service::config::Errors::new();
    let raw = attache_service::config::Document::parse("r.yaml", "disallow_is_error: true")
        .unwrap()
        .decode()
        .unwrap();
    let rules = MutationRules::plan(&raw, &mut errors);
    let seen = setup(
        move |f| f.mutation_rules = rules,
        |part| vec![Act::Send(answer(part, set(&[(":method", "PUT")])))],
    )
    .send(post(Body::empty()))
    .await;

    assert_eq!(seen.status, 500);
    assert_eq!(
        seen.details.as_deref(),
        Some("header_mutation_set_headers_failed")
    );
}

#[tokio::test]
async fn a_stream_has_the_metadata_that_is_configured_and_no_other() {
    let seen = setup(
        |filter| {
            let (name, value) = ("x-tenant".parse().unwrap(), "acme".parse().unwrap());
            filter
                .initial_metadata
                .fixed
                .insert::<http::HeaderName>(name, value);
        },
        |part| vec![pass(part)],
    )
    .send(get())
    .await;

    let of_grpc = ["te", "content-type", "user-agent"];
    let mut names: Vec<_> = seen.metadata.keys().map(|name| name.as_str()).collect();
    names.retain(|name| !of_grpc.contains(name));
    assert_eq!(names, ["x-tenant"]);
    assert_eq!(seen.metadata["x-tenant"], "acme");
}
