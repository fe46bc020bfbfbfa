use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use attache_filter::ConnectionInfo;
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::*;
use crate::{
    Rules,
    limiter::{ManualClock, descriptor},
    store::{Batch, Reading, StoreError},
};

const RULES: &str = "
domain: shop
descriptors:
- key: user
  rate_limit: { unit: minute, requests_per_unit: 2, name: by-user }
- key: remote_address
  rate_limit: { unit: hour, requests_per_unit: 1 }
";

fn rules() -> Rules {
    Rules::parse("limits.yaml", RULES).unwrap()
}

/// A limiter 20 s into a minute.
fn limiter() -> Arc<Limiter<MemoryStore, ManualClock>> {
    let clock = ManualClock::at(1_000_000_040);
    Arc::new(Limiter::with_clock(rules(), MemoryStore::default(), clock))
}

fn by_user(head: &Parts) -> Vec<RateLimitDescriptor> {
    let user = head.headers.get("x-user");
    let user = user.and_then(|user| user.to_str().ok());
    user.map(|user| descriptor([("user", user)]))
        .into_iter()
        .collect()
}

/// Sends requests through a layer, and counts those that arrive.
struct Rig<S, C> {
    layer: LocalRateLimitLayer<S, C>,
    arrived: Arc<AtomicU64>,
}

impl<S: Store, C: Clock> Rig<S, C> {
    fn new(layer: LocalRateLimitLayer<S, C>) -> Self {
        Self {
            layer,
            arrived: Arc::default(),
        }
    }

    async fn send(&self, request: Request<Body>) -> Response<Body> {
        let arrived = self.arrived.clone();
        let inner = tower::service_fn(move |_: Request<Body>| {
            arrived.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok::<_, Infallible>(Response::new(Body::from("hello"))))
        });
        self.layer.layer(inner).oneshot(request).await.unwrap()
    }

    async fn get(&self, user: Option<&str>) -> Response<Body> {
        let mut request = Request::get("/");
        if let Some(user) = user {
            request = request.header("x-user", user);
        }
        self.send(request.body(Body::empty()).unwrap()).await
    }

    fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }
}

fn header<'r>(response: &'r Response<Body>, name: &str) -> &'r str {
    let value = response.headers().get(name);
    value.map_or("-", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn requests_pass_until_their_limit_is_reached() {
    let rig = Rig::new(LocalRateLimitLayer::new(limiter(), "shop", by_user));
    for remaining in ["1", "0"] {
        let response = rig.get(Some("ann")).await;
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "x-ratelimit-remaining"), remaining);
    }
    let refused = rig.get(Some("ann")).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(
        header(&refused, "x-ratelimit-limit"),
        "2, 2;w=60;name=\"by-user\""
    );
    assert_eq!(header(&refused, "retry-after"), "40");
    assert_eq!(rig.arrived(), 2);
    assert_eq!(rig.get(Some("bob")).await.status(), 200);
}

#[tokio::test]
async fn requests_without_descriptors_or_rules_pass_untouched() {
    let rig = Rig::new(LocalRateLimitLayer::new(limiter(), "shop", by_user));
    let other = Rig::new(LocalRateLimitLayer::new(limiter(), "other", by_user));
    for _ in 0..5 {
        for response in [rig.get(None).await, other.get(Some("ann")).await] {
            assert_eq!(response.status(), 200);
            assert_eq!(header(&response, "x-ratelimit-limit"), "-");
        }
    }
}

#[tokio::test]
async fn headers_can_be_left_out() {
    let layer = LocalRateLimitLayer::new(limiter(), "shop", by_user).ratelimit_headers(false);
    let rig = Rig::new(layer);
    let mut last = rig.get(Some("ann")).await;
    for _ in 0..2 {
        assert_eq!(header(&last, "x-ratelimit-limit"), "-");
        last = rig.get(Some("ann")).await;
    }
    assert_eq!(
        (last.status().as_u16(), header(&last, "x-ratelimit-limit")),
        (429, "-")
    );
    assert_eq!(header(&last, "retry-after"), "40");
}

#[tokio::test]
async fn a_grpc_caller_gets_a_grpc_status() {
    let rig = Rig::new(LocalRateLimitLayer::new(limiter(), "shop", by_user));
    let call = || {
        let request = Request::post("/s/M").header("content-type", "application/grpc");
        request.header("x-user", "ann").body(Body::empty()).unwrap()
    };
    rig.send(call()).await;
    rig.send(call()).await;
    let refused = rig.send(call()).await;
    assert_eq!(
        (refused.status().as_u16(), header(&refused, "grpc-status")),
        (200, "14")
    );
}

#[tokio::test]
async fn actions_of_envoy_make_descriptors() {
    let descriptors = Descriptors::parse(
        "limits.yaml",
        "[{ actions: [{ remote_address: {} }] }, { actions: [{ request_headers: { header_name: x-user, descriptor_key: user } }] }]",
    );
    let rig = Rig::new(LocalRateLimitLayer::new(
        limiter(),
        "shop",
        descriptors.unwrap(),
    ));
    let from = |peer: &str| {
        let connection = ConnectionInfo {
            peer: Some(peer.parse::<SocketAddr>().unwrap()),
            ..ConnectionInfo::default()
        };
        let mut request = Request::get("/").body(Body::empty()).unwrap();
        let context = RequestContext::new(Arc::new(connection), request.version());
        request.extensions_mut().insert(Arc::new(context));
        request
    };
    assert_eq!(rig.send(from("10.0.0.1:1")).await.status(), 200);
    assert_eq!(rig.send(from("10.0.0.1:2")).await.status(), 429);
    assert_eq!(rig.send(from("10.0.0.2:1")).await.status(), 200);
    // Without an address there is no descriptor of it.
    assert_eq!(rig.get(Some("ann")).await.status(), 200);
}

#[test]
fn mistakes_in_actions_are_reported() {
    for (text, expected) in [
        ("- actions: []", "at least one action"),
        (
            "- { apply_on_stream_done: true, actions: [{ remote_address: {} }] }",
            "counted before they go on",
        ),
    ] {
        let errors = Descriptors::parse("limits.yaml", text).unwrap_err();
        assert!(errors.to_string().contains(expected), "{errors}");
    }
}

/// A store that fails.
struct Broken(Mutex<u32>);

impl Store for Broken {
    async fn charge(&self, _: &Batch, _: &mut Vec<Reading>) -> Result<(), StoreError> {
        *self.0.lock().unwrap() += 1;
        Err(StoreError::Failed {
            store: "redis",
            address: "nowhere".to_owned(),
            reason: "broken".to_owned(),
        })
    }
}

#[tokio::test]
async fn a_failing_store_lets_requests_pass_or_not() {
    for (on_error, status) in [(OnError::Allow, 200), (OnError::Deny, 500)] {
        let limiter = Arc::new(Limiter::new(rules(), Broken(Mutex::default())));
        let metrics = Metrics::default();
        let layer = LocalRateLimitLayer::new(limiter.clone(), "shop", by_user);
        let rig = Rig::new(layer.on_error(on_error).metrics(&metrics));
        assert_eq!(rig.get(Some("ann")).await.status().as_u16(), status);
        assert_eq!(*limiter.store().0.lock().unwrap(), 1);
        let text = metrics.render();
        assert!(
            text.contains("attache_ratelimit_local_error_total{domain=\"shop\"} 1"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn the_inner_response_is_passed_on_as_it_is() {
    let rig = Rig::new(LocalRateLimitLayer::new(limiter(), "shop", by_user));
    let body = rig.get(None).await.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "hello");
}
