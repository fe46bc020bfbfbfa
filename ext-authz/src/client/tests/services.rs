//! Which service is asked, how, how often; and what is counted and noted of it.

use attache_filter::metadata::{Metadata, RouteMetadata, struct_to_json};
use attache_service::HttpClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// An auth service over plain HTTP that gives these bytes to each connection, once it has the
/// head of a request.
fn plain_http(answer: &'static str) -> HttpClient {
    let target = Target::Embedded(Arc::new(move || {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                match theirs.read_u8().await {
                    Ok(byte) => seen.push(byte),
                    Err(_) => return,
                }
            }
            let _ = theirs.write_all(answer.as_bytes()).await;
            if answer.ends_with("endless") {
                let piece = [b'x'; 1 << 14];
                while theirs.write_all(&piece).await.is_ok() {}
            }
        });
        ours
    }));
    HttpClient::new(ChannelSettings::new("plain", vec![target]), false)
}

const PLAIN: &str =
    "http_service: { server_uri: { uri: http://plain, cluster: plain, timeout: 5s } }";

fn asking_plain_http(config: &str, answer: &'static str) -> Fixture {
    let mut fixture = Fixture::new(config, Err(Status::internal("nobody asks over gRPC")));
    fixture.channels = fixture.channels.with_http([plain_http(answer)]);
    fixture
}

#[tokio::test]
async fn a_service_over_plain_http_allows_denies_and_fails_by_its_status() {
    let allowing = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let fixture = asking_plain_http(PLAIN, allowing);
    let outcome = fixture.get().await;
    assert_eq!(outcome.upstream.unwrap().path, "/p?z=1");
    assert_eq!(fixture.counted(), counts(&["ok"]));

    let denying = "HTTP/1.1 401 No\r\nx-d: 1\r\ncontent-length: 4\r\n\r\nwho?";
    let fixture = asking_plain_http(PLAIN, denying);
    let outcome = fixture.get().await;
    assert_eq!(
        (
            outcome.response.status().as_u16(),
            &**outcome.response.body()
        ),
        (401, &b"who?"[..])
    );
    assert_eq!(outcome.response.headers()["x-d"], "1");
    assert_eq!(fixture.counted(), counts(&["denied"]));

    let failing = "HTTP/1.1 500 Oops\r\ncontent-length: 6\r\n\r\nsecret";
    let fixture = asking_plain_http(PLAIN, failing);
    let outcome = fixture.get().await;
    assert_eq!(outcome.response.status(), 403);
    assert!(outcome.response.body().is_empty());
    assert_eq!(fixture.counted(), counts(&["error"]));
}

#[tokio::test]
async fn an_answer_without_end_is_a_failed_check() {
    let endless = "HTTP/1.1 401 No\r\ncontent-length: 99999999\r\n\r\nendless";
    let fixture = asking_plain_http(PLAIN, endless);
    assert_eq!(fixture.get().await.response.status(), 403);
    assert_eq!(fixture.counted(), counts(&["error"]));
}

#[tokio::test]
async fn a_route_asks_another_service() {
    let plain = format!("check_settings: {{ {PLAIN} }}");
    let answer = "HTTP/1.1 418 No\r\ncontent-length: 0\r\n\r\n";
    let fixture = asking_plain_http("", answer).route(per_route(&plain));
    assert_eq!(fixture.get().await.response.status(), 418);
    assert_eq!(fixture.checks(), 0);

    let grpc = "check_settings: { grpc_service: { envoy_grpc: { cluster_name: auth } } }";
    let fixture = Fixture::new(PLAIN, denied(402, "")).route(per_route(grpc));
    assert_eq!(fixture.get().await.response.status(), 402);
}

#[tokio::test]
async fn a_check_has_the_metadata_that_is_configured_and_no_other() {
    let config = plan(
        "grpc_service: { envoy_grpc: { cluster_name: auth }, initial_metadata: [{ key: x-one, value: '1' }, { key: x-envoy-max-retries, value: '2' }] }",
    );
    let AuthService::Grpc(grpc) = &config.service else {
        panic!()
    };
    let (parts, ()) = get().body(()).unwrap().into_parts();
    let context = RequestContext::new(Arc::default(), http::Version::HTTP_11);
    let sent = grpc.call.metadata.of(&parts, &context);
    assert_eq!(sent.keys().collect::<Vec<_>>(), ["x-one"]);
}

#[tokio::test(start_paused = true)]
async fn failed_checks_are_made_again_within_the_whole_time() {
    let config = "grpc_service: { envoy_grpc: { cluster_name: auth }, timeout: 1s, retry_policy: { retry_on: unavailable, num_retries: 3, retry_back_off: { base_interval: 1ms, max_interval: 300ms } } }";
    let left = Arc::new(Mutex::new(3));
    let counted = left.clone();
    let fixture = Fixture::answering(config, move || {
        let mut left = counted.lock().unwrap();
        *left -= 1;
        let answer = match *left {
            0 => Ok(CheckResponse::default()),
            _ => Err(Status::unavailable("not yet")),
        };
        std::future::ready(answer)
    });
    assert_eq!(fixture.get().await.response.status(), 200);
    assert_eq!((fixture.checks(), fixture.counted()), (3, counts(&["ok"])));

    let down = Fixture::new(config, Err(Status::unavailable("down")));
    assert_eq!(down.get().await.response.status(), 403);
    assert_eq!((down.checks(), down.counted()), (4, counts(&["error"])));

    // Another failure than those that are named.
    let refused = Fixture::new(config, Err(Status::permission_denied("no")));
    assert_eq!(refused.get().await.response.status(), 403);
    assert_eq!(refused.checks(), 1);
}

#[tokio::test]
async fn in_shadow_mode_decisions_are_noted_and_nothing_is_stopped() {
    let noted = |outcome: &Outcome| {
        let state = outcome.context.filter_state();
        let (name, state) = state.first().unwrap();
        (name.to_string(), struct_to_json(state))
    };
    let shadow = "shadow_mode: true\nfailure_mode_allow: true";
    let fixture = Fixture::new(shadow, denied(401, "who?"));
    let outcome = fixture.get().await;
    assert_eq!(outcome.response.status(), 200);
    let (name, state) = noted(&outcome);
    assert_eq!(name, "auth.shadow");
    assert_eq!(
        state,
        json::json!({ "check_result": "DENIED", "status_code": 401, "response_headers": [{ "key": "x-d", "value": "1" }] })
    );
    assert_eq!(fixture.counted(), counts(&["denied", "shadow_denied"]));
    assert!(flags(&outcome).is_empty());

    let fixture = Fixture::new(shadow, failed(502, "oops"));
    let outcome = fixture.get().await;
    assert_eq!(outcome.response.status(), 200);
    assert_eq!(noted(&outcome).1["status_code"], 502);
    assert_eq!(fixture.counted(), counts(&["error", "shadow_error"]));

    // What cannot be carried out is no decision.
    let broken = ok(OkHttpResponse {
        headers: vec![hv("x b", "1")],
        ..OkHttpResponse::default()
    });
    let validating = format!("{shadow}\nvalidate_mutations: true");
    assert_eq!(
        Fixture::new(&validating, broken)
            .get()
            .await
            .response
            .status(),
        500
    );
}

#[tokio::test]
async fn figures_and_fixed_facts_are_noted_for_the_access_log() {
    let state = |outcome: &Outcome| outcome.context.filter_state();
    let quiet = Fixture::new("", Ok(CheckResponse::default())).get().await;
    assert!(state(&quiet).is_empty());
    let config = "emit_filter_state_stats: true\nfilter_metadata: { team: blue }";
    let noted = Fixture::new(config, denied(403, "")).get().await;
    let state = state(&noted);
    let (name, fields) = (&*state[0].0, struct_to_json(&state[0].1));
    assert_eq!(
        (name, &fields["team"], &fields["grpc_status"]),
        ("auth", &json::json!("blue"), &json::json!(0))
    );
    assert!(fields["bytesSent"].as_u64().unwrap() > 5);
    assert!(fields["bytesReceived"].as_u64().unwrap() > 5);
    assert!(fields["latency_us"].is_u64());
}

#[tokio::test]
async fn decisions_count_for_the_cluster_of_the_route_too() {
    let mut fixture = Fixture::new("stat_prefix: waf", denied(403, ""));
    fixture.channels = fixture.channels.with_http([plain_http("")]);
    fixture.cluster = Some("plain");
    let outcome = fixture.get().await;
    assert_eq!(
        outcome.context.cluster_charge(),
        Some(StatusCode::FORBIDDEN)
    );
    let text = fixture.metrics.render();
    let line = "attache_cluster_ext_authz_denied_total{cluster=\"plain\",stat_prefix=\"waf\"} 1";
    assert!(text.contains(line), "{text}");

    let mut spared = Fixture::new("charge_cluster_response_stats: false", denied(403, ""));
    spared.cluster = Some("plain");
    assert_eq!(spared.get().await.context.cluster_charge(), None);
}

#[tokio::test]
async fn metadata_of_the_route_and_labels_of_the_node_are_shown() {
    let config = "
bootstrap_metadata_labels_key: labels
route_metadata_context_namespaces: [ns, absent]
route_typed_metadata_context_namespaces: [typed]
typed_metadata_context_namespaces: [mine]
";
    let node: Metadata = decode("filter_metadata: { node: { labels: { zone: a, number: 1 } } }");
    let route: Metadata = decode(
        "
filter_metadata: { ns: { k: v }, hidden: { k: v } }
typed_filter_metadata:
  typed: { '@type': type.googleapis.com/google.protobuf.StringValue, value: hello }
",
    );
    let mut fixture = Fixture::new(config, Ok(CheckResponse::default()));
    let node = RouteMetadata::plan(&node).untyped.remove("node").unwrap();
    fixture.filter = Arc::new(plan(config).at_node(&node));
    fixture.route_metadata = RouteMetadata::plan(&route);
    let mut request = get().body(Body::empty()).unwrap();
    let typed = prost_types::Any {
        type_url: "type.googleapis.com/mine".to_owned(),
        value: vec![1],
    };
    RequestContext::of(&mut request).set_typed_metadata("mine", typed.clone());
    fixture.send_request(request).await;

    let attributes = fixture.checks.lock().unwrap()[0]
        .attributes
        .clone()
        .unwrap();
    let labels = attributes.destination.unwrap().labels;
    assert_eq!(
        labels,
        [
            ("zone".to_owned(), "a".to_owned()),
            ("number".to_owned(), String::new())
        ]
        .into()
    );
    let shown = attributes.route_metadata_context.unwrap();
    assert_eq!(shown.filter_metadata.keys().collect::<Vec<_>>(), ["ns"]);
    assert_eq!(
        shown.typed_filter_metadata["typed"].type_url,
        "type.googleapis.com/google.protobuf.StringValue"
    );
    let dynamic = attributes.metadata_context.unwrap();
    assert_eq!(dynamic.typed_filter_metadata["mine"], typed);
}

#[tokio::test]
async fn only_requests_with_the_metadata_are_checked() {
    let config = "filter_enabled_metadata: { filter: ns, path: [{ key: check }], value: { bool_match: true } }";
    let fixture = Fixture::new(config, denied(403, ""));
    assert_eq!(fixture.get().await.response.status(), 200);
    assert_eq!(fixture.counted(), counts(&["disabled"]));
    let known: Metadata = decode("filter_metadata: { ns: { check: true } }");
    let fields = RouteMetadata::plan(&known).untyped.remove("ns").unwrap();
    let mut request = get().body(Body::empty()).unwrap();
    RequestContext::of(&mut request).merge_metadata("ns", fields);
    assert_eq!(fixture.send_request(request).await.response.status(), 403);
}

#[tokio::test]
async fn part_of_a_body_is_held_within_the_listeners_bound_only() {
    let part = "with_request_body: { max_request_bytes: 100, allow_partial_message: true }";
    let mut fixture = Fixture::new(part, Ok(CheckResponse::default()));
    let mut filter = plan(part);
    filter.buffer_limit = 10;
    fixture.filter = Arc::new(filter);
    let long = fixture.send(post(), "more than ten bytes").await;
    assert_eq!(long.response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(fixture.send(post(), "short").await.response.status(), 200);
}
