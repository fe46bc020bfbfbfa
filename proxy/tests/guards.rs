//! What guards clusters and their requests: health checks, ejection, circuit breakers, budgets,
//! and the bounds on time that scenarios cannot show.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may panic"
)]

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use attache_proxy::{Config, Plan, Proxy, config::NothingEmbedded, xds::ControlPlane};
use attache_service::{Metrics, config::Document};
use support::{OK, Origin, PATIENCE, Raw, Tested, header, origin, read_head, shown, start, status};
use tokio::{
    io::AsyncWriteExt,
    sync::{Notify, Semaphore},
};

const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

/// A proxy before these origins, with these settings of the cluster and of the route.
async fn proxy(origins: &[&Origin], cluster: &str, route: &str) -> Tested {
    let endpoints: Vec<_> = origins.iter().map(|o| format!("'{}'", o.at)).collect();
    let text = format!(
        "listeners: [{{ name: test, address: '127.0.0.1:0' }}]
routes:
- match: {{ prefix: / }}
  route: {{ cluster: web, {route} }}
clusters: [{{ name: web, endpoints: [{}], lb_policy: ROUND_ROBIN, {cluster} }}]
workers: 1",
        endpoints.join(", ")
    );
    let document = Document::parse("proxy.yaml", &text).unwrap();
    let (_, plan): (Config, Plan) = Config::read(&document, &NothingEmbedded).unwrap();
    start(plan).await
}

/// An origin that always answers this, and counts its requests.
async fn answering(answer: &'static str) -> (Origin, Arc<AtomicUsize>) {
    let requests = Arc::<AtomicUsize>::default();
    let counted = requests.clone();
    let origin = origin(move |_, mut stream| {
        let counted = counted.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                counted.fetch_add(1, SeqCst);
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (origin, requests)
}

/// An origin that answers 503 once it is let, and tells of each request.
struct Held {
    origin: Origin,
    asked: Arc<Semaphore>,
    go: Arc<Semaphore>,
}

impl Held {
    async fn new(answer: &'static str) -> Self {
        let asked = Arc::new(Semaphore::new(0));
        let go = Arc::new(Semaphore::new(0));
        let (tell, wait) = (asked.clone(), go.clone());
        let origin = origin(move |_, mut stream| {
            let (tell, wait) = (tell.clone(), wait.clone());
            async move {
                while read_head(&mut stream).await.is_some() {
                    tell.add_permits(1);
                    wait.acquire().await.unwrap().forget();
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        Self { origin, asked, go }
    }

    /// Waits for so many requests.
    async fn asked(&self, requests: u32) {
        let asked = tokio::time::timeout(PATIENCE, self.asked.acquire_many(requests));
        asked.await.expect("requests").unwrap().forget();
    }
}

const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

#[tokio::test]
async fn an_endpoint_that_answers_badly_is_left_out_but_never_the_last() {
    let (bad, at_bad) = answering(UNAVAILABLE).await;
    let (good, at_good) = answering(OK).await;
    let ejecting = "outlier_detection: { consecutive_5xx: 2, max_ejection_percent: 100 }";
    let both = proxy(&[&bad, &good], ejecting, "timeout: 10s").await;
    let mut client = Raw::connect(both.at).await;
    for _ in 0..10 {
        client.get("/").await;
    }
    assert_eq!((at_bad.load(SeqCst), at_good.load(SeqCst)), (2, 8));
    shown(
        &both,
        "attache_upstream_ejections_total{cluster=\"web\",reason=\"consecutive_5xx\"} 1",
    )
    .await;

    let alone = proxy(&[&bad], ejecting, "timeout: 10s").await;
    let mut client = Raw::connect(alone.at).await;
    for _ in 0..5 {
        assert_eq!(status(&client.get("/").await.0), 503);
    }
    assert_eq!(at_bad.load(SeqCst), 7);
    shown(
        &alone,
        "attache_upstream_ejections_refused_total{cluster=\"web\"} 2",
    )
    .await;
}

#[tokio::test]
async fn an_endpoint_that_takes_no_connections_is_left_out_for_tunnels_too() {
    let echo = origin(|_, mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let connect = "{ upgrade_type: CONNECT, connect_config: {} }";
    for (listener, routes, ask) in [
        (
            "",
            format!(
                "routes:
- match: {{ connect_matcher: {{}} }}
  route: {{ cluster: web, upgrade_configs: [{connect}] }}"
            ),
            "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n",
        ),
        (", tcp: { cluster: web }", String::new(), ""),
    ] {
        // Nobody listens on a port that only root may have.
        let text = format!(
            "listeners: [{{ name: test, address: '127.0.0.1:0'{listener} }}]
{routes}
clusters:
- name: web
  endpoints: ['127.0.0.1:1', '{}']
  lb_policy: ROUND_ROBIN
  outlier_detection: {{ consecutive_5xx: 2, max_ejection_percent: 100 }}
workers: 1",
            echo.at
        );
        let document = Document::parse("proxy.yaml", &text).unwrap();
        let (_, plan): (Config, Plan) = Config::read(&document, &NothingEmbedded).unwrap();
        let proxy = start(plan).await;
        let mut lost = 0;
        for _ in 0..10 {
            let mut client = Raw::connect(proxy.at).await;
            client.send(ask).await;
            if ask.is_empty() || status(&client.head().await) == 200 {
                client.send("ping").await;
                client.0.shutdown().await.unwrap();
                lost += usize::from(client.rest().await != "ping");
            } else {
                lost += 1;
            }
        }
        assert_eq!(lost, 2, "{text}");
        let ejected =
            "attache_upstream_ejections_total{cluster=\"web\",reason=\"consecutive_5xx\"} 1";
        shown(&proxy, ejected).await;
    }
}

#[tokio::test]
async fn a_switch_of_protocols_that_nobody_asked_for_is_counted_and_goes_no_further() {
    const SWITCH: &str =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let (switching, _) = answering(SWITCH).await;
    let proxy = proxy(&[&switching], "", "timeout: 10s").await;

    let (head, _) = Raw::connect(proxy.at).await.get("/").await;

    assert_eq!(status(&head), 503);
    let counted = "attache_upstream_requests_total{cluster=\"web\",code_class=\"1xx\"} 1";
    shown(&proxy, counted).await;
}

#[tokio::test]
async fn an_endpoint_that_fails_its_checks_gets_no_requests() {
    let (bad, _) = answering(UNAVAILABLE).await;
    let (good, at_good) = answering(OK).await;
    let checked = "health_checks: [{ http_health_check: { path: /well }, interval: 60s }]";
    let proxy = proxy(&[&bad, &good], checked, "timeout: 10s").await;
    for result in ["passed", "failed"] {
        let line = format!("attache_health_checks_total{{cluster=\"web\",result=\"{result}\"}} 1");
        shown(&proxy, &line).await;
    }
    let mut client = Raw::connect(proxy.at).await;
    for _ in 0..6 {
        assert_eq!(status(&client.get("/").await.0), 200);
    }
    // And one check.
    assert_eq!(at_good.load(SeqCst), 7);
}

#[tokio::test]
async fn an_answer_can_say_that_its_endpoint_is_unhealthy() {
    const LEAVING: &str = "HTTP/1.1 200 OK\r\nx-envoy-immediate-health-check-fail: true\r\ncontent-length: 2\r\n\r\nok";
    let (leaving, at_leaving) = answering(LEAVING).await;
    let (good, _) = answering(OK).await;
    let checked = "health_checks: [{ tcp_health_check: {}, interval: 60s }]";
    let proxy = proxy(&[&leaving, &good], checked, "timeout: 10s").await;
    shown(
        &proxy,
        "attache_health_checks_total{cluster=\"web\",result=\"passed\"} 2",
    )
    .await;
    let mut client = Raw::connect(proxy.at).await;
    for _ in 0..8 {
        assert_eq!(status(&client.get("/").await.0), 200);
    }
    assert_eq!(at_leaving.load(SeqCst), 1);
}

#[tokio::test]
async fn requests_over_the_limit_are_refused_until_others_have_ended() {
    let held = Held::new(OK).await;
    let limit = "circuit_breakers: { thresholds: [{ max_requests: 2, track_remaining: true }] }";
    let proxy = proxy(&[&held.origin], limit, "timeout: 10s").await;
    let mut clients = [Raw::connect(proxy.at).await, Raw::connect(proxy.at).await];
    for client in &mut clients {
        client.send(GET).await;
    }
    held.asked(2).await;

    let (head, _) = Raw::connect(proxy.at).await.get("/").await;
    assert_eq!(status(&head), 503);
    assert_eq!(header(&head, "x-envoy-overloaded"), Some("true"));
    let remaining = "attache_upstream_remaining{cluster=\"web\",resource=\"requests\"}";
    shown(&proxy, &format!("{remaining} 0")).await;

    held.go.add_permits(10);
    for client in &mut clients {
        assert_eq!(status(&client.response().await.0), 200);
    }
    shown(&proxy, &format!("{remaining} 2")).await;
    let (head, _) = Raw::connect(proxy.at).await.get("/").await;
    assert_eq!(status(&head), 200);
}

#[tokio::test]
async fn a_request_waits_where_there_may_be_no_more_connections() {
    let held = Held::new(OK).await;
    let limit = "circuit_breakers: { thresholds: [{ max_connections: 1, max_pending_requests: 1, track_remaining: true }] }";
    let proxy = proxy(&[&held.origin], limit, "timeout: 10s").await;
    let mut first = Raw::connect(proxy.at).await;
    first.send(GET).await;
    held.asked(1).await;
    let mut second = Raw::connect(proxy.at).await;
    second.send(GET).await;
    shown(
        &proxy,
        "attache_upstream_overflowed_total{cluster=\"web\",resource=\"connections\"} 1",
    )
    .await;

    // One may wait.
    let (head, _) = Raw::connect(proxy.at).await.get("/").await;
    assert_eq!(status(&head), 503);
    held.go.add_permits(2);
    assert_eq!(status(&first.response().await.0), 200);
    assert_eq!(status(&second.response().await.0), 200);
    assert!(
        proxy
            .metrics
            .render()
            .contains("attache_upstream_connects_total{cluster=\"web\"} 1")
    );
}

#[tokio::test]
async fn retries_that_run_at_the_same_time_have_a_budget() {
    let held = Held::new(UNAVAILABLE).await;
    let budget = "circuit_breakers: { thresholds: [{ retry_budget: { budget_percent: { value: 50 }, min_retry_concurrency: 0 } }] }";
    let route = "retry_policy: { retry_on: 5xx, retry_back_off: { base_interval: 1ms } }";
    let proxy = proxy(&[&held.origin], budget, route).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Raw::connect(proxy.at).await;
        client.send(GET).await;
        clients.push(client);
    }
    held.asked(4).await;

    // All fail: two are sent again, and two are not.
    held.go.add_permits(4);
    held.asked(2).await;
    shown(
        &proxy,
        "attache_upstream_retries_overflowed_total{cluster=\"web\"} 2",
    )
    .await;
    held.go.add_permits(2);
    for client in &mut clients {
        assert_eq!(status(&client.response().await.0), 503);
    }
    shown(&proxy, "attache_upstream_retries_total{cluster=\"web\"} 2").await;
}

#[tokio::test]
async fn a_request_is_sent_again_to_another_endpoint() {
    let (bad, at_bad) = answering(UNAVAILABLE).await;
    let (good, _) = answering(OK).await;
    let route =
        "retry_policy: { retry_on: 5xx, num_retries: 1, retry_back_off: { base_interval: 1ms } }";
    let random = "max_requests_per_connection: 100";
    let proxy = proxy(&[&bad, &good], random, route).await;
    let mut client = Raw::connect(proxy.at).await;
    for _ in 0..20 {
        assert_eq!(status(&client.get("/").await.0), 200);
    }
    assert!(at_bad.load(SeqCst) > 0);
}

#[tokio::test]
async fn a_stream_that_lasts_too_long_is_cut_off_amid_its_response() {
    for (cluster, route) in [
        (
            "idle_timeout: 1h",
            "max_stream_duration: { max_stream_duration: 0.1s }",
        ),
        (
            "common_http_protocol_options: { max_stream_duration: 0.1s }",
            "timeout: 10s",
        ),
    ] {
        let torn = Arc::new(Notify::new());
        let tell = torn.clone();
        let origin = origin(move |_, mut stream| {
            let tell = tell.clone();
            async move {
                read_head(&mut stream).await.unwrap();
                let head = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf";
                stream.write_all(head.as_bytes()).await.unwrap();
                assert!(read_head(&mut stream).await.is_none());
                tell.notify_one();
            }
        })
        .await;
        let proxy = proxy(&[&origin], cluster, route).await;
        let mut client = Raw::connect(proxy.at).await;
        client.send(GET).await;
        assert_eq!(status(&client.head().await), 200);
        assert_eq!(client.rest().await, "half");
        tokio::time::timeout(PATIENCE, torn.notified())
            .await
            .expect("the upstream is told");
    }
}

#[tokio::test]
async fn a_tunnel_lasts_as_long_as_its_route_lets_it() {
    const SWITCH: &str =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let (origin, _) = answering(SWITCH).await;
    let route = "max_stream_duration: { max_stream_duration: 0.2s }";
    let proxy = proxy(&[&origin], "idle_timeout: 1h", route).await;
    let mut client = Raw::connect(proxy.at).await;
    client
        .send("GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await;
    assert_eq!(status(&client.head().await), 101);
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn the_stream_of_a_control_plane_is_a_request_of_its_cluster() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let _stream = connection.accept().await;
        std::future::poll_fn(|cx| connection.poll_closed(cx)).await
    });
    let text = format!(
        "xds: {{ cluster: control-plane }}
clusters:
- name: control-plane
  endpoints: ['{at}']
  http2: {{}}
  circuit_breakers: {{ thresholds: [{{ max_requests: 3, track_remaining: true }}] }}
workers: 1"
    );
    let document = Document::parse("proxy.yaml", &text).unwrap();
    let (config, plan): (Config, Plan) = Config::read(&document, &NothingEmbedded).unwrap();
    let metrics = Metrics::default();
    let running = Proxy::start(plan, metrics.clone()).await.unwrap();
    let mut control =
        ControlPlane::new(config, document, &running.plan(), &metrics).expect("a control plane");
    let following = tokio::spawn(async move { control.next().await });

    let left = "attache_upstream_remaining{cluster=\"control-plane\",resource=\"requests\"} 2\n";
    let counted = async {
        while !metrics.render().contains(left) {
            tokio::task::yield_now().await;
        }
    };
    let counted = tokio::time::timeout(PATIENCE, counted).await;
    assert!(counted.is_ok(), "{}", metrics.render());
    following.abort();
    serving.abort();
}
