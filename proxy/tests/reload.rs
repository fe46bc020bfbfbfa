//! What a configuration that takes over does not forget.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may panic"
)]

mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attache_proxy::{
    Config, Plan,
    config::NothingEmbedded,
    plan::{ListenerPlan, OverloadPlan},
    route::Forward,
};
use attache_service::config::Document;
use support::{
    OK, Raw, any_port, echo_origin, eventually,
    frames::{Http2, Outcome, request},
    header, metric, origin, plan_to, plan_with, read_head, resident, start, status,
};

/// Copies of requests that one worker may have under way at a time.
const MOST_COPIES: i64 = 1024;

#[tokio::test]
async fn memory_that_is_short_stays_so_until_it_has_fallen_clearly() {
    let (origin, _heads) = echo_origin(OK).await;
    let max_memory = resident() + (128 << 20);
    let short = || {
        let mut plan = plan_to(origin.at);
        plan.overload = Some(OverloadPlan {
            resume: 0.001,
            refresh_interval: Duration::from_millis(10),
            ..OverloadPlan::new(max_memory)
        });
        plan
    };
    let proxy = start(short()).await;
    let much = vec![1_u8; 256 << 20];
    eventually("it is seen", || {
        metric(&proxy, "attache_overload_active") == 1
    })
    .await;
    drop(much);
    eventually("it is given back", || resident() < max_memory).await;

    proxy.running.reload(short()).await.unwrap();

    for _ in 0..20 {
        let (head, _) = Raw::connect(proxy.at).await.get("/").await;
        assert_eq!(status(&head), 503);
        assert_eq!(header(&head, "x-envoy-local-overloaded"), Some("true"));
        assert_eq!(metric(&proxy, "attache_overload_active"), 1);
    }
}

#[tokio::test]
async fn requests_and_connections_of_the_plan_before_count() {
    let silent =
        origin(|_, mut stream| async move { while read_head(&mut stream).await.is_some() {} })
            .await;
    let (other, _heads) = echo_origin(OK).await;
    let with = |origin, more: fn(&mut ListenerPlan)| {
        plan_with(
            origin,
            |listener| {
                listener.limits.max_requests = Some(1);
                listener.limits.max_connections = 2;
                more(listener);
            },
            |_| {},
            Forward::to(0),
        )
    };
    let proxy = start(with(silent.at, |_| {})).await;
    let mut first = Raw::connect(proxy.at).await;
    first.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut second = Raw::connect(proxy.at).await;
    eventually("both are there", || {
        metric(&proxy, "attache_downstream_connections{") == 2
    })
    .await;

    let next = with(other.at, |listener| listener.limits.max_headers = 50);
    proxy.running.reload(next).await.unwrap();

    assert_eq!(status(&second.get("/").await.0), 503);
    assert_eq!(Raw::connect(proxy.at).await.rest().await, "");
    drop(first);
    eventually("one is left", || {
        metric(&proxy, "attache_downstream_connections{") == 1
    })
    .await;
    assert_eq!(status(&second.get("/").await.0), 200);
    let mut third = Raw::connect(proxy.at).await;
    assert_eq!(status(&third.get("/").await.0), 200);
}

#[tokio::test]
async fn requests_of_a_listener_that_was_removed_have_until_the_drain_is_over() {
    let silent =
        origin(|_, mut stream| async move { while read_head(&mut stream).await.is_some() {} })
            .await;
    let unbounded = || {
        let mut forward = Forward::to(0).with_timeout(None);
        forward.idle_timeout = None;
        plan_with(silent.at, |_| {}, |_| {}, forward)
    };
    let proxy = start(unbounded()).await;
    let mut one = Raw::connect(proxy.at).await;
    one.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut two = Http2::connect(proxy.at).await;
    two.head(1, &request("GET", "/", &[]), true).await;
    eventually("both have a request", || {
        let clusters = proxy.running.status().clusters();
        clusters[0].cluster.endpoints[0].active_requests == 2
    })
    .await;
    let mut other = unbounded();
    other.listeners = vec![Arc::new(ListenerPlan::new("other", any_port()))];
    other.drain_timeout = Duration::from_millis(1500);

    let removed = Instant::now();
    proxy.running.reload(other).await.unwrap();

    assert_eq!(one.rest().await, "");
    assert_ne!(two.outcome(1).await, Outcome::Answered(Some(200)));
    assert!(removed.elapsed() >= Duration::from_millis(1400));
}

#[tokio::test]
async fn copies_of_the_plan_before_count() {
    let (web, _heads) = echo_origin(OK).await;
    // Takes what comes, and never answers.
    let silent = origin(|_, mut stream| async move {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let plan = || -> Plan {
        let text = format!(
            "
listeners: [{{ name: test, address: '127.0.0.1:0' }}]
routes:
- match: {{ prefix: / }}
  route: {{ cluster: web, timeout: 600s, request_mirror_policies: [{{ cluster: silent }}] }}
clusters:
- {{ name: web, endpoints: ['{}'] }}
- {{ name: silent, endpoints: ['{}'], http2: {{}}, connect_timeout: 600s }}
workers: 1
",
            web.at, silent.at
        );
        let document = Document::parse("proxy.yaml", text).unwrap();
        Config::read(&document, &NothingEmbedded).unwrap().1
    };
    let proxy = start(plan()).await;
    let mut client = Raw::connect(proxy.at).await;
    for _ in 0..MOST_COPIES {
        assert_eq!(status(&client.get("/").await.0), 200);
    }
    assert_eq!(
        metric(&proxy, "attache_upstream_mirrored_total"),
        MOST_COPIES
    );
    assert_eq!(metric(&proxy, "attache_upstream_mirrors_dropped_total"), 0);

    proxy.running.reload(plan()).await.unwrap();

    assert_eq!(status(&client.get("/").await.0), 200);
    assert_eq!(metric(&proxy, "attache_upstream_mirrors_dropped_total"), 1);
}
