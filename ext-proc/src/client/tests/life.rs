use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use attache_filter::{
    Body, FilterConfigs, RequestContext, Route,
    context::IdleTimeout,
    matcher::{ForwardedHeaders, ListStringMatcher, TextMatchers},
};
use attache_proto::ext_proc::processing_request::Request as Part;
use attache_service::config::{Document, Errors, Located};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::support::*;
use crate::client::{Modes, PerRoute, mode::BodyMode};

fn on_route(per_route: PerRoute) -> Request<Body> {
    let mut request = get();
    let mut filters = FilterConfigs::default();
    filters.insert("f", per_route);
    let route = Route {
        filters,
        ..Route::default()
    };
    RequestContext::of(&mut request).set_route(Some(Arc::new(route)));
    request
}

#[tokio::test]
async fn a_route_can_leave_the_filter_out() {
    let route = PerRoute {
        disabled: true,
        ..PerRoute::default()
    };
    let seen = setup(|_| {}, |part| vec![pass(part)])
        .send(on_route(route))
        .await;
    assert_eq!(seen.status, 200);
    assert_eq!(seen.count("streams_started"), 0);
}

#[tokio::test]
async fn a_route_can_change_what_is_shown_and_what_failures_mean() {
    let route = PerRoute {
        modes: Some(Modes {
            response_headers: false,
            ..Modes::default()
        }),
        failure_mode_allow: Some(true),
        ..PerRoute::default()
    };
    let seen = setup(|_| {}, |part| vec![pass(part)])
        .send(on_route(route.clone()))
        .await;
    assert_eq!(seen.transcript(), ["request_headers eos"]);

    let script = |_: &Part| vec![Act::End(tonic::Status::internal("boom"))];
    let seen = setup(|_| {}, script).send(on_route(route)).await;
    assert_eq!(seen.status, 200);
    assert_eq!(seen.count("failure_mode_allowed"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_route_bounds_the_silence_of_a_full_duplex_body() {
    let silence = async |idle_timeout| {
        let mut request = post_hello();
        let route = Route {
            idle_timeout,
            ..Route::default()
        };
        RequestContext::of(&mut request).set_route(Some(Arc::new(route)));
        let duplex = setup(
            |f| {
                f.modes.request_headers = false;
                f.modes.request_body = BodyMode::FullDuplexStreamed;
                f.modes.request_trailers = true;
            },
            |_| vec![Act::Stall],
        );
        let began = Instant::now();
        let day = Duration::from_secs(86_400);
        let seen = timeout(day, duplex.send(request)).await.ok()?;
        Some((seen.status, began.elapsed().as_secs()))
    };
    let after = |seconds| IdleTimeout::After(Duration::from_secs(seconds));

    assert_eq!(silence(IdleTimeout::Inherited).await, Some((504, 300)));
    assert_eq!(silence(after(20)).await, Some((504, 20)));
    assert_eq!(silence(after(3600)).await, Some((504, 3600)));
    assert_eq!(silence(IdleTimeout::Never).await, None);
}

#[tokio::test]
async fn hidden_headers_are_not_shown_but_pass() {
    let list = |text: &str| {
        let mut errors = Errors::new();
        let raw: Located<ListStringMatcher> =
            Document::parse("l.yaml", text).unwrap().decode().unwrap();
        Some(TextMatchers::plan(&raw, &mut errors))
    };
    let forward = ForwardedHeaders {
        allowed: list("patterns: [{ prefix: x- }, { exact: ':path' }]"),
        disallowed: list("patterns: [{ exact: x-secret }]"),
    };
    let mut request = get();
    request.headers_mut().insert("x-a", "1".parse().unwrap());
    request
        .headers_mut()
        .insert("x-secret", "1".parse().unwrap());
    let seen = setup(|f| f.forward = forward, |part| vec![pass(part)])
        .send(request)
        .await;

    let Some(Part::RequestHeaders(headers)) = &seen.messages[0].request else {
        panic!("{:?}", seen.messages);
    };
    let shown: Vec<_> = headers
        .headers
        .iter()
        .flat_map(|h| &h.headers)
        .map(|h| &h.key)
        .collect();
    assert_eq!(shown, [":path", "x-a"]);
    let Some(Part::ResponseHeaders(headers)) = &seen.messages[1].request else {
        panic!("{:?}", seen.messages);
    };
    assert!(
        headers
            .headers
            .clone()
            .unwrap_or_default()
            .headers
            .is_empty()
    );
    assert!(seen.upstream.unwrap().head.headers.contains_key("x-secret"));
}

/// An upstream that answers before it has read the request: its response is processed while
/// the request still is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_are_processed_at_once() {
    for _ in 0..20 {
        let go_on = Arc::new(Notify::new());
        let gate = go_on.clone();
        let pieces = futures_util::stream::unfold(0, move |n| {
            let gate = gate.clone();
            async move {
                // The second piece is sent when the caller has seen the whole response.
                if n == 1 {
                    gate.notified().await;
                }
                let piece = ["aa", "bb"].get(n)?;
                Some((data(piece), n + 1))
            }
        });
        let body = Body::new(http_body_util::StreamBody::new(Box::pin(pieces)));
        let (done, finished) = tokio::sync::oneshot::channel();
        let done = Arc::new(std::sync::Mutex::new(Some(done)));
        let seen = setup(
            |f| {
                f.modes.request_body = BodyMode::Streamed;
                f.modes.response_body = BodyMode::Streamed;
            },
            |part| {
                vec![Act::Send(match part {
                    Part::RequestBody(b) if b.body == "bb" => {
                        answer(part, super::support::body("BB"))
                    }
                    _ => answer(part, Default::default()),
                })]
            },
        )
        .send_with(post(body), move |request| {
            let (head, body) = request.into_parts();
            let done = done.lock().unwrap().take();
            tokio::spawn(async move {
                let body = body.collect().await.map(|c| c.to_bytes());
                let _ = done.map(|done| done.send(body.map_err(|e| e.to_string())));
            });
            let received = Received {
                head,
                body: Ok(Bytes::new()),
                trailers: None,
            };
            std::future::ready((upstream_body(), received))
        })
        .await;
        assert_eq!(seen.text(), "upstream-body");

        go_on.notify_one();
        assert_eq!(finished.await.unwrap().as_deref(), Ok(&b"aaBB"[..]));
    }
}

/// A refused request that is on its way upstream already ends there with an error: a clean end
/// would make a shortened request of it.
#[tokio::test]
async fn a_request_refused_on_its_way_breaks_off() {
    let (done, finished) = tokio::sync::oneshot::channel();
    let done = Arc::new(std::sync::Mutex::new(Some(done)));
    let seen = setup(
        |f| {
            f.modes.request_headers = false;
            f.modes.response_headers = false;
            f.modes.request_body = BodyMode::Buffered;
            f.buffer_limit = 4;
        },
        |part| vec![pass(part)],
    )
    .send_with(post(chunks(&["aaa", "bbb", "ccc"])), move |request| {
        let done = done.lock().unwrap().take();
        tokio::spawn(async move {
            let body = request.into_body().collect().await;
            let _ = done.map(|done| done.send(body.is_err()));
        });
        std::future::pending()
    })
    .await;

    assert_eq!(seen.status, 413);
    assert!(finished.await.unwrap());
}

/// Counts the pieces that were asked for.
fn counted(count: Arc<AtomicUsize>) -> Body {
    let pieces = (0..1000).map(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        data("0123456789")
    });
    Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(
        pieces,
    )))
}

#[tokio::test(start_paused = true)]
async fn a_slow_processor_slows_the_upstream() {
    let count = Arc::<AtomicUsize>::default();
    let read = count.clone();
    let seen = setup(
        |f| {
            f.modes.response_body = BodyMode::Streamed;
            f.modes.response_headers = false;
            f.buffer_limit = 100;
        },
        |part| match part {
            Part::ResponseBody(_) => vec![Act::Stall],
            _ => vec![pass(part)],
        },
    )
    .upstream(move || Response::new(counted(read.clone())))
    .send(get())
    .await;

    // The body broke off by timeout; until then only the buffer's worth was read.
    assert!(seen.body.is_err());
    assert_eq!(count.load(Ordering::Relaxed), 10);
}
