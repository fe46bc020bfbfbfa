//! The same processors in every body mode.

use BodyMode::{Buffered, BufferedPartial, FullDuplexStreamed, Streamed};
use http::{HeaderMap, HeaderValue};
use proptest::prelude::{Strategy, prop};

use super::*;
use crate::testing::Exchange as Seen;

const MODES: [BodyMode; 4] = [Buffered, BufferedPartial, Streamed, FullDuplexStreamed];
const SECRET: &[u8] = b"secret";

/// Hides a word, across the borders of pieces.
#[derive(Clone)]
struct Redact;

fn redact(body: &mut Body<'_>) {
    let mut data = body.take();
    while let Some(at) = data.windows(SECRET.len()).position(|text| text == SECRET) {
        body.push(data.split_to(at));
        body.push("******!");
        data = data.split_off(SECRET.len());
    }
    let begun = (1..SECRET.len()).rfind(|n| data.ends_with(&SECRET[..*n]));
    if let Some(begun) = begun.filter(|_| !body.is_last()) {
        body.hold(data.split_off(data.len() - begun));
    }
    body.push(data);
}

impl Processor for Redact {
    async fn request_body(&mut self, body: &mut Body<'_>) -> Result {
        redact(body);
        Ok(())
    }

    async fn response_body(&mut self, body: &mut Body<'_>) -> Result {
        redact(body);
        Ok(())
    }

    async fn request_trailers(&mut self, trailers: &mut Trailers) -> Result {
        Ok(trailers.headers.insert("x-seen", "yes")?)
    }

    async fn response_trailers(&mut self, trailers: &mut Trailers) -> Result {
        Ok(trailers.headers.insert("x-seen", "yes")?)
    }
}

fn redacted(body: &[u8]) -> String {
    String::from_utf8_lossy(body).replace("secret", "******!")
}

/// Changes the whole, and says where it ended.
#[derive(Clone)]
struct Whole;

impl Processor for Whole {
    async fn request_body(&mut self, body: &mut Body<'_>) -> Result {
        if let Some(whole) = body.whole()? {
            body.replace(whole.to_ascii_uppercase());
            body.push("!");
        }
        Ok(())
    }

    async fn response_body(&mut self, body: &mut Body<'_>) -> Result {
        self.request_body(body).await
    }
}

#[derive(Clone)]
struct Nothing;

impl Processor for Nothing {}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(
        http::HeaderName::from_static("x-end"),
        HeaderValue::from_static("1"),
    )])
}

/// Sends these pieces both ways.
async fn both_ways<P>(
    processor: P,
    mode: BodyMode,
    pieces: &[Bytes],
    end: Option<HeaderMap>,
) -> Seen
where
    P: Processor + Clone + Sync,
{
    let mut proxy = Proxy::new(processor)
        .bodies(mode, mode)
        .filter(|filter| {
            filter.modes.request_trailers = true;
            filter.modes.response_trailers = true;
        })
        .upstream_pieces(Response::new(()), pieces.to_vec());
    if let Some(end) = end {
        proxy = proxy.request_trailers(end.clone()).upstream_trailers(end);
    }
    proxy
        .send_pieces(post("").map(|_| ()), pieces.to_vec())
        .await
}

/// A head that may announce trailers.
fn announcing(trailers: bool) -> Response<()> {
    let mut head = Response::new(());
    if trailers {
        head.headers_mut()
            .insert("trailer", HeaderValue::from_static("x-end"));
    }
    head
}

fn pieces(texts: &[&'static str]) -> Vec<Bytes> {
    texts.iter().copied().map(Bytes::from).collect()
}

#[track_caller]
fn assert_both(seen: &Seen, expected: &str, case: &str) {
    assert!(seen.broken.is_none(), "{case}: {seen:?}");
    assert_eq!(seen.forwarded().body(), expected, "{case}, request");
    assert_eq!(seen.response.body(), expected, "{case}, response");
}

#[tokio::test]
async fn a_streaming_transform_is_the_same_in_every_mode() {
    let sent = pieces(&["a sec", "re", "t and a secret", " more se"]);
    for mode in MODES {
        for end in [None, Some(trailers())] {
            let case = format!("{mode:?}, trailers {}", end.is_some());
            if mode == Streamed && end.is_some() {
                continue;
            }
            let seen = both_ways(Redact, mode, &sent, end.clone()).await;
            assert_both(&seen, "a ******! and a ******! more se", &case);
            let Some(_) = end else { continue };
            for received in [seen.upstream_trailers, seen.trailers] {
                let received = received.unwrap();
                assert_eq!(
                    (&received["x-end"], &received["x-seen"]),
                    (
                        &HeaderValue::from_static("1"),
                        &HeaderValue::from_static("yes")
                    ),
                    "{case}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_is_left_alone_is_whole_in_every_mode() {
    let sent = pieces(&["one", "", "two", "three"]);
    for mode in MODES {
        for end in [None, Some(trailers())] {
            let seen = both_ways(Nothing, mode, &sent, end.clone()).await;
            assert_both(&seen, "onetwothree", &format!("{mode:?}"));
            assert_eq!(seen.trailers, end, "{mode:?}");
            assert_eq!(seen.upstream_trailers, end, "{mode:?}");
        }
    }
}

#[tokio::test]
async fn the_whole_body_is_had_in_every_mode() {
    let sent = pieces(&["on", "e tw", "o"]);
    for (mode, with_trailers) in [
        (Buffered, false),
        (BufferedPartial, false),
        (Streamed, false),
        (FullDuplexStreamed, false),
        (Buffered, true),
        (FullDuplexStreamed, true),
    ] {
        let end = with_trailers.then(trailers);
        let seen = both_ways(Whole, mode, &sent, end.clone()).await;
        assert_both(&seen, "ONE TWO!", &format!("{mode:?}"));
        assert_eq!(seen.trailers, end);
    }
}

#[tokio::test]
async fn content_length_fits_the_body_in_every_mode() {
    for mode in MODES {
        for keeps in [false, true] {
            let settings = ProxySettings {
                allow_content_length_header: keeps,
                ..ProxySettings::default()
            };
            let seen = Proxy::of(Server::new(Whole).assume(settings))
                .bodies(mode, mode)
                .filter(|filter| filter.allow_content_length_header = keeps)
                .upstream(Response::new("hello"))
                .send(post("hello"))
                .await;
            assert_both(&seen, "HELLO!", &format!("{mode:?}"));
            for headers in [seen.forwarded().headers(), seen.response.headers()] {
                let length = headers.get("content-length");
                match mode {
                    Buffered => assert_eq!(length.unwrap(), "6"),
                    _ => assert!(
                        length.is_none_or(|length| length == "6"),
                        "{mode:?} {length:?}"
                    ),
                }
            }
        }
    }
}

#[tokio::test]
async fn what_is_held_back_when_trailers_come_is_never_lost_in_silence() {
    let sent = pieces(&["one ", "two sec"]);
    let seen = both_ways(Redact, Streamed, &sent, Some(trailers())).await;
    assert!(seen.upstream.is_none(), "{seen:?}");

    // On the response's way only, so that it comes so far.
    let seen = Proxy::new(Redact)
        .bodies(BodyMode::None, Streamed)
        .filter(|filter| filter.modes.response_trailers = true)
        .upstream_pieces(Response::new(()), sent)
        .upstream_trailers(trailers())
        .send(get())
        .await;
    assert!(
        seen.broken.is_some() || seen.response.status() == 500,
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_beginning_is_not_taken_for_the_whole_but_can_be_changed() {
    let sent = pieces(&["a secret and ", "a secret"]);
    let small = |filter: &mut Filter| filter.buffer_limit = 10;
    let redacted = Proxy::new(Redact)
        .bodies(BufferedPartial, BodyMode::None)
        .filter(small)
        .send_pieces(post("").map(|_| ()), sent.clone())
        .await;
    assert_eq!(redacted.forwarded().body(), "a ******! and a secret");

    let whole = Proxy::new(Whole)
        .bodies(BufferedPartial, BodyMode::None)
        .filter(small)
        .send_pieces(post("").map(|_| ()), sent)
        .await;
    assert_eq!(whole.response.status(), 500);
}

#[tokio::test]
async fn large_bodies_leave_in_small_pieces() {
    let body = Bytes::from(vec![b'a'; 300_000]);
    for mode in MODES {
        let seen = both_ways(Whole, mode, std::slice::from_ref(&body), None).await;
        assert_eq!(seen.forwarded().body().len(), 300_001, "{mode:?}");
        assert_eq!(seen.response.body().len(), 300_001, "{mode:?}");
    }
}

#[tokio::test]
async fn a_failure_that_passes_loses_nothing_of_a_body() {
    /// Fails once something was gathered.
    #[derive(Clone, Default)]
    struct Fails(u32);
    impl Processor for Fails {
        async fn request_body(&mut self, body: &mut Body<'_>) -> Result {
            body.whole()?;
            self.0 += 1;
            match self.0 {
                2 => Err(std::io::Error::other("on purpose").into()),
                _ => Ok(()),
            }
        }
        async fn response_body(&mut self, body: &mut Body<'_>) -> Result {
            body.take();
            Err(std::io::Error::other("on purpose").into())
        }
    }
    for mode in MODES {
        for end in [None, Some(trailers())] {
            let mut proxy = Proxy::of(Server::new(Fails::default()).on_failure(OnFailure::Pass))
                .bodies(mode, mode)
                .upstream_pieces(announcing(end.is_some()), ["on", "e tw", "o"]);
            if let Some(end) = &end {
                proxy = proxy
                    .request_trailers(end.clone())
                    .upstream_trailers(end.clone());
            }
            let mut head = post("").map(|_| ());
            *head.headers_mut() = announcing(end.is_some()).headers().clone();
            let seen = proxy.send_pieces(head, ["on", "e tw", "o"]).await;
            assert_both(&seen, "one two", &format!("{mode:?}"));
            assert_eq!(seen.trailers, end, "{mode:?}");
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(60))]
    #[test]
    fn what_arrives_is_the_transform_of_the_whole(
        texts in prop::collection::vec("(se|cret|secret|s| |x){0,4}", 1..8),
        mode in (0..MODES.len()).prop_map(|at| MODES[at]),
        trailed in proptest::bool::ANY,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let sent: Vec<Bytes> = texts.iter().map(|text| text.clone().into()).collect();
            let whole = texts.concat();
            let end = (trailed && !whole.is_empty() && mode != Streamed).then(trailers);
            let limit = Duration::from_secs(10);
            let seen = tokio::time::timeout(limit, both_ways(Redact, mode, &sent, end));
            let seen = seen.await.expect("it hangs");
            assert_both(&seen, &redacted(whole.as_bytes()), &format!("{mode:?} {texts:?}"));
        });
    }
}
