use attache_filter::{RequestContext, head::Scheme};
use futures_util::StreamExt as _;
use http::{Request, Version};
use serde_json::Value;

use super::{stream::Watcher, *};

fn live() -> Live {
    Live::new(&Metrics::default())
}

fn head(path: &str) -> request::Parts {
    let request = Request::get(path).header("host", "shop.example");
    let request = request.header("authorization", "Bearer secret");
    request.body(()).unwrap().into_parts().0
}

/// A request to `path` from its begin to its end; whether it was noted.
fn exchange(live: &Live, path: &str) -> bool {
    let parts = head(path);
    let Some(mut watched) = live.begin(&parts) else {
        return false;
    };
    let mut context = RequestContext::new(Arc::default(), Version::HTTP_11);
    watched.begin("edge", Scheme::Http, &mut context, || None);
    finish(watched, &context, &parts);
    true
}

fn finish(watched: Box<Watched>, context: &RequestContext, parts: &request::Parts) {
    watched.end(&Over {
        context,
        arrived: parts,
        went: None,
        response: None,
        trailers: None,
        bytes_received: 0,
        bytes_sent: 0,
        duration: Duration::from_millis(1),
        received: None,
        cut_off: false,
    });
}

/// The next that a watcher is told: the paths of requests, and the last status.
async fn told(
    events: &mut (impl futures_util::Stream<Item = bytes::Bytes> + Unpin),
) -> (Vec<String>, Value) {
    let text = events.next().await.unwrap();
    let text = std::str::from_utf8(&text).unwrap();
    let (mut paths, mut status) = (Vec::new(), Value::Null);
    for event in text.split("\n\n").filter(|event| !event.is_empty()) {
        let (head, data) = event.split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        match head.starts_with("event: request") {
            true => paths.push(format!(
                "{} {}",
                data["path"].as_str().unwrap(),
                data["state"].as_str().unwrap()
            )),
            false => status = data,
        }
    }
    (paths, status)
}

#[tokio::test(start_paused = true)]
async fn requests_are_noted_only_while_somebody_watches() {
    let live = live();
    assert!(!exchange(&live, "/before"));
    let mut events = Box::pin(Watcher::enter(&live, None).unwrap().events());
    assert!(exchange(&live, "/a"));
    assert_eq!(told(&mut events).await.0, ["/a over"]);

    drop(events);
    assert!(exchange(&live, "/in-grace"));
    tokio::time::sleep(GRACE + Duration::from_millis(1)).await;
    assert!(!exchange(&live, "/after"));
    let mut events = Box::pin(Watcher::enter(&live, None).unwrap().events());
    assert_eq!(told(&mut events).await.0, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_is_loaded_again_keeps_the_requests() {
    let live = live();
    let first = Watcher::enter(&live, None).unwrap();
    exchange(&live, "/a");
    drop(first);
    tokio::time::sleep(GRACE / 2).await;
    let mut events = Box::pin(Watcher::enter(&live, None).unwrap().events());
    tokio::time::sleep(GRACE * 2).await;
    assert_eq!(told(&mut events).await.0, ["/a over"]);
}

#[tokio::test(start_paused = true)]
async fn a_request_on_its_way_is_told_too_and_once_over_no_more() {
    let live = live();
    let mut events = Box::pin(Watcher::enter(&live, None).unwrap().events());
    let parts = head("/slow");
    let mut watched = live.begin(&parts).unwrap();
    let mut context = RequestContext::new(Arc::default(), Version::HTTP_11);
    watched.begin("edge", Scheme::Http, &mut context, || None);
    assert_eq!(told(&mut events).await.0, ["/slow running"]);
    finish(watched, &context, &parts);
    assert_eq!(told(&mut events).await.0, ["/slow over"]);
    let mut other = Box::pin(Watcher::enter(&live, None).unwrap().events());
    assert_eq!(told(&mut other).await.0, ["/slow over"]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_watcher_loses_requests_and_is_told_how_many() {
    let live = live();
    let mut slow = Box::pin(Watcher::enter(&live, None).unwrap().events());
    let mut quick = Box::pin(Watcher::enter(&live, None).unwrap().events());
    told(&mut slow).await;
    for n in 0..450 {
        assert!(exchange(&live, &format!("/{n}")));
        if n % 100 == 99 {
            told(&mut quick).await;
        }
    }
    let (paths, status) = told(&mut quick).await;
    assert_eq!((paths.len(), &status["lost"]), (50, &0.into()));
    let (paths, status) = told(&mut slow).await;
    assert_eq!((paths.len(), &status["lost"]), (MAX_REQUESTS, &250.into()));
    assert_eq!(paths[0], "/250 over");
}

#[tokio::test(start_paused = true)]
async fn without_a_watcher_that_looks_no_more_is_noted_than_there_is_room_for() {
    let live = live();
    let mut events = Box::pin(Watcher::enter(&live, None).unwrap().events());
    let noted = (0..1000)
        .filter(|n| exchange(&live, &format!("/{n}")))
        .count();
    assert_eq!(noted, MAX_REQUESTS);
    let (paths, status) = told(&mut events).await;
    assert_eq!((paths.len(), &status["lost"]), (MAX_REQUESTS, &800.into()));
    assert!(exchange(&live, "/next"));
}

#[tokio::test(start_paused = true)]
async fn watchers_are_few() {
    let live = live();
    let all: Vec<_> = (0..MAX_WATCHERS)
        .map(|_| Watcher::enter(&live, None).unwrap())
        .collect();
    assert!(Watcher::enter(&live, None).is_none());
    drop(all);
    assert!(Watcher::enter(&live, None).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_where_the_last_one_ended() {
    let live = live();
    let mut events = Box::pin(Watcher::enter(&live, None).unwrap().events());
    exchange(&live, "/a");
    let text = events.next().await.unwrap();
    let text = std::str::from_utf8(&text).unwrap();
    let id = text
        .lines()
        .find_map(|line| line.strip_prefix("id: "))
        .unwrap()
        .to_owned();
    exchange(&live, "/b");
    let mut again = Box::pin(Watcher::enter(&live, Some(&id)).unwrap().events());
    assert_eq!(told(&mut again).await.0, ["/b over"]);
    for other in ["1-999", "x", ""] {
        let mut other = Box::pin(Watcher::enter(&live, Some(other)).unwrap().events());
        assert_eq!(told(&mut other).await.0, ["/a over", "/b over"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_has_a_bound_and_no_secrets() {
    let live = live();
    let _watcher = Watcher::enter(&live, None).unwrap();
    let mut parts = head(&format!("/{}", "p".repeat(60_000)));
    for n in 0..99 {
        let name: http::HeaderName = format!("x-{n}").parse().unwrap();
        parts
            .headers
            .insert(name, "v".repeat(60_000).parse().unwrap());
    }
    let mut watched = live.begin(&parts).unwrap();
    let mut context = RequestContext::new(Arc::default(), Version::HTTP_11);
    watched.begin("edge", Scheme::Http, &mut context, || None);
    finish(watched, &context, &parts);
    let entries = live.state().ring.after(0);
    let text = &entries[0].text;
    assert!(text.len() < 64 << 10, "{}", text.len());
    assert!(text.contains("\"masked\":13") && !text.contains("secret"));
    assert!(text.contains("\"left_out\":"));
}

#[tokio::test(start_paused = true)]
async fn a_tapped_request_has_its_bodies() {
    let live = live();
    let _watcher = Watcher::enter(&live, None).unwrap();
    let wanted = tap::Wanted::read(&serde_json::json!({ "path": "/b" })).unwrap();
    live.state().taps.arm(wanted.0, wanted.1).unwrap();
    for (path, tapped) in [("/a", false), ("/b", true), ("/b", false)] {
        let parts = head(path);
        let mut watched = live.begin(&parts).unwrap();
        let mut context = RequestContext::new(Arc::default(), Version::HTTP_11);
        watched.begin("edge", Scheme::Http, &mut context, || None);
        assert_eq!(context.tap.is_some(), tapped, "{path}");
        if let Some(tap) = &context.tap {
            tap.received.add(b"the body");
        }
        finish(watched, &context, &parts);
        let last = live.state().ring.after(0).pop().unwrap();
        let record: Value = serde_json::from_str(&last.text).unwrap();
        let body = &record["bodies"]["received"]["text"];
        assert_eq!(*body == "the body", tapped, "{record}");
    }
}
