//! What the auth service is shown.

use super::*;

fn chunks(chunks: &'static [&'static str]) -> Body {
    let frames = chunks.iter().map(|chunk| {
        let data = Bytes::from_static(chunk.as_bytes());
        Ok::<_, Infallible>(http_body::Frame::data(data))
    });
    Body::new(StreamBody::new(futures_util::stream::iter(frames)))
}

const WHOLE: &str = "with_request_body: { max_request_bytes: 10 }";
const PARTIAL: &str = "with_request_body: { max_request_bytes: 10, allow_partial_message: true }";
const MARK: &str = "x-envoy-auth-partial-body";

#[tokio::test]
async fn bodies_are_shown_whole_up_to_the_limit() {
    let fixture = Fixture::new(WHOLE, Ok(CheckResponse::default()));
    let outcome = fixture.send(post(), chunks(&["01234", "56789"])).await;
    assert_eq!(outcome.upstream.unwrap().body, "0123456789");
    let shown = fixture.shown();
    assert_eq!(
        (&*shown.body, &*shown.headers[MARK], shown.size),
        ("0123456789", "false", 10)
    );

    let open = format!("{WHOLE}\nfailure_mode_allow: true");
    let fixture = Fixture::new(&open, Ok(CheckResponse::default()));
    let outcome = fixture.send(post(), chunks(&["01234", "56789", "x"])).await;
    assert_eq!(outcome.response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(outcome.response.body(), "Payload Too Large");
    assert_eq!(outcome.response.headers()["connection"], "close");
    assert!(outcome.upstream.is_none());
    assert_eq!((fixture.checks(), fixture.counted()), (0, vec![]));
}

#[tokio::test]
async fn the_beginning_of_a_body_is_shown_and_all_of_it_passed_on() {
    let fixture = Fixture::new(PARTIAL, Ok(CheckResponse::default()));
    for (body, shown, mark) in [
        (&["01234", "56789", "x", "yz"][..], "0123456789", "true"),
        (&["01234", "56789xyz"], "0123456789", "true"),
        (&["01234", "5678"], "012345678", "false"),
    ] {
        let outcome = fixture.send(post(), chunks(body)).await;
        assert_eq!(outcome.upstream.unwrap().body, body.concat());
        let check = fixture.shown();
        assert_eq!(
            (&*check.body, &*check.headers[MARK]),
            (shown, mark),
            "{body:?}"
        );
    }
    let outcome = fixture.send(post(), Body::from("0123456789abc")).await;
    assert_eq!(outcome.upstream.unwrap().body, "0123456789abc");
    assert_eq!(fixture.shown().body, "0123456789");
}

#[tokio::test]
async fn a_partial_check_does_not_wait_for_more_than_it_shows() {
    let fixture = Fixture::new(PARTIAL, denied(403, ""));
    let (sender, receiver) = tokio::sync::mpsc::channel::<&str>(2);
    sender.send("0123456789").await.unwrap();
    // The client sends no more, and does not end either.
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let data = Bytes::from_static(receiver.recv().await?.as_bytes());
        Some((Ok::<_, Infallible>(http_body::Frame::data(data)), receiver))
    });
    let outcome = fixture
        .send(post(), Body::new(StreamBody::new(frames)))
        .await;
    assert_eq!(outcome.response.status(), 403);
    assert_eq!(fixture.shown().headers[MARK], "true");
    drop(sender);
}

#[tokio::test]
async fn requests_without_a_body_and_upgrades_are_not_buffered() {
    let fixture = Fixture::new(WHOLE, Ok(CheckResponse::default()));
    fixture.get().await;
    assert!(!fixture.shown().headers.contains_key(MARK));
    let upgrade = get().header("upgrade", "websocket");
    let outcome = fixture
        .send(upgrade, chunks(&["more than ten bytes"]))
        .await;
    assert_eq!(outcome.response.status(), 200);
    assert!(!fixture.shown().headers.contains_key(MARK));
    // Saying so is not enough: a body may be hidden.
    let disguised = post().header("upgrade", "websocket");
    fixture.send(disguised, chunks(&["short"])).await;
    assert_eq!(fixture.shown().body, "short");
    let other = get().header("upgrade", "x");
    fixture.send(other, chunks(&["short"])).await;
    assert_eq!(fixture.shown().body, "short");
}

#[tokio::test]
async fn what_will_go_through_a_tunnel_is_not_waited_for() {
    for request in [get(), post()] {
        let fixture = Fixture::new(WHOLE, Ok(CheckResponse::default()));
        let mut request = request
            .header("upgrade", "x")
            .body(Body::from("more than ten bytes"))
            .unwrap();
        let context = Arc::new(RequestContext::new(Arc::default(), request.version()));
        context.tunnel_in_body();
        request.extensions_mut().insert(context);

        let outcome = fixture.send_request(request).await;

        assert_eq!(outcome.response.status(), 200);
        assert!(fixture.shown().body.is_empty());
    }
}

#[tokio::test]
async fn routes_change_buffering_and_extend_the_context() {
    let body = chunks(&["more than ten bytes"]);
    let off = "check_settings: { disable_request_body_buffering: true }";
    let fixture = Fixture::new(WHOLE, Ok(CheckResponse::default())).route(per_route(off));
    assert_eq!(fixture.send(post(), body).await.response.status(), 200);
    assert!(fixture.shown().body.is_empty());

    let on = "check_settings: { with_request_body: { max_request_bytes: 8, allow_partial_message: true, pack_as_bytes: true } }";
    let fixture = Fixture::new("", Ok(CheckResponse::default())).route(per_route(on));
    fixture.send(post(), chunks(&["more than ten bytes"])).await;
    assert_eq!(fixture.shown().raw_body, "more tha");

    let host = per_route("check_settings: { context_extensions: { k: vh, v: '1' } }");
    let route = per_route("check_settings: { context_extensions: { k: route, r: '1' } }");
    let fixture = Fixture::new("", Ok(CheckResponse::default())).route(route.within(&host));
    fixture.get().await;
    let checks = fixture.checks.lock().unwrap();
    let extensions = &checks[0].attributes.as_ref().unwrap().context_extensions;
    let entries: Vec<_> = extensions.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(entries, [("k", "route"), ("r", "1"), ("v", "1")]);
}

#[tokio::test]
async fn only_allowed_headers_are_shown_and_disallowed_ones_never() {
    let config = "
allowed_headers: { patterns: [{ exact: x-a }, { prefix: x-p }, { exact: X-UP }] }
disallowed_headers: { patterns: [{ exact: x-private }] }
";
    let fixture = Fixture::new(config, Ok(CheckResponse::default()));
    let request = get()
        .header("x-a", "1")
        .header("x-p1", "2")
        .header("x-private", "3")
        .header("x-up", "4");
    let outcome = fixture.send(request, Body::empty()).await;
    let shown = fixture.shown();
    let names: Vec<_> = shown.headers.keys().collect();
    assert_eq!(names, ["x-a", "x-p1"]);
    assert_eq!(
        (&*shown.method, &*shown.path, &*shown.host),
        ("GET", "/p?z=1", "example.com")
    );
    assert_eq!(outcome.upstream.unwrap().headers["x-private"], "3");
}
