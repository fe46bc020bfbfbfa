//! Whatever the mode, and however bodies arrive: what goes on is the transform of the whole body.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use attache_ext_proc::{
    client::BodyMode,
    server::{Body, Processor, RequestHead, ResponseHead, Result},
    testing::{Exchange, Proxy},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use proptest::prelude::*;

const WORD: &[u8] = b"abc";

/// What is done to a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transform {
    /// Nothing: pieces are not touched.
    Leave,
    /// Each piece becomes capitals.
    Capitals,
    /// Each piece is said twice, byte by byte.
    Double,
    /// Nothing goes on.
    Drop,
    /// A word is left out, also where it is cut by the borders of pieces.
    LeaveOut,
    /// The whole body backwards.
    Reverse,
}

impl Transform {
    /// The transform of a whole body: what it should be, however the body came.
    fn of(self, body: &[u8]) -> Vec<u8> {
        match self {
            Self::Leave => body.to_vec(),
            Self::Capitals => body.to_ascii_uppercase(),
            Self::Double => body.iter().flat_map(|byte| [*byte, *byte]).collect(),
            Self::Drop => Vec::new(),
            Self::LeaveOut => {
                let mut kept = Vec::new();
                let mut rest = body;
                while let Some((first, more)) = rest.split_first() {
                    match rest.strip_prefix(WORD) {
                        Some(behind) => rest = behind,
                        None => {
                            kept.push(*first);
                            rest = more;
                        }
                    }
                }
                kept
            }
            Self::Reverse => body.iter().rev().copied().collect(),
        }
    }

    /// Whether it cannot say what goes on before it knows that the body has ended.
    fn holds_back(self) -> bool {
        matches!(self, Self::LeaveOut | Self::Reverse)
    }

    fn apply(self, body: &mut Body<'_>) -> Result {
        match self {
            Self::Leave => {}
            Self::Capitals | Self::Double | Self::Drop => {
                let data = body.take();
                body.push(self.of(&data));
            }
            Self::LeaveOut => {
                let mut data = body.take();
                while let Some(at) = data.windows(WORD.len()).position(|text| text == WORD) {
                    body.push(data.split_to(at));
                    data = data.split_off(WORD.len());
                }
                let begun = (1..WORD.len()).rfind(|n| data.ends_with(&WORD[..*n]));
                if let Some(begun) = begun.filter(|_| !body.is_last()) {
                    body.hold(data.split_off(data.len() - begun));
                }
                body.push(data);
            }
            Self::Reverse => {
                if let Some(whole) = body.whole()? {
                    body.replace(self.of(&whole));
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Transforms {
    request: Transform,
    response: Transform,
}

impl Processor for Transforms {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        Ok(request.headers.insert("x-processed", "request")?)
    }

    async fn request_body(&mut self, body: &mut Body<'_>) -> Result {
        self.request.apply(body)
    }

    async fn response_headers(&mut self, response: &mut ResponseHead) -> Result {
        Ok(response.headers.insert("x-processed", "response")?)
    }

    async fn response_body(&mut self, body: &mut Body<'_>) -> Result {
        self.response.apply(body)
    }
}

/// One direction of a case.
#[derive(Debug, Clone)]
struct Way {
    mode: BodyMode,
    transform: Transform,
    pieces: Vec<Vec<u8>>,
    declares_length: bool,
    trailers: bool,
    shows_trailers: bool,
}

impl Way {
    fn body(&self) -> Vec<u8> {
        self.pieces.concat()
    }

    /// What should go on.
    fn expected(&self) -> Vec<u8> {
        match self.mode {
            BodyMode::None | BodyMode::Grpc => self.body(),
            _ => self.transform.of(&self.body()),
        }
    }

    /// Where nothing can carry what was held back: an error, not a loss.
    fn may_fail(&self) -> bool {
        let trailers = self.trailers && self.transform.holds_back();
        trailers && matches!(self.mode, BodyMode::Streamed | BodyMode::BufferedPartial)
    }

    fn length(&self) -> Option<HeaderValue> {
        // A message with trailers has no length on HTTP/1.
        (self.declares_length && !self.trailers).then(|| self.body().len().into())
    }

    fn trailers(&self) -> Option<HeaderMap> {
        let trailer = ("x-trailer".parse().unwrap(), "kept".parse().unwrap());
        self.trailers.then(|| HeaderMap::from_iter([trailer]))
    }
}

fn ways() -> impl Strategy<Value = Way> {
    let mode = prop_oneof![
        Just(BodyMode::None),
        Just(BodyMode::Streamed),
        Just(BodyMode::Buffered),
        Just(BodyMode::BufferedPartial),
        Just(BodyMode::FullDuplexStreamed),
    ];
    let transform = prop_oneof![
        Just(Transform::Leave),
        Just(Transform::Capitals),
        Just(Transform::Double),
        Just(Transform::Drop),
        Just(Transform::LeaveOut),
        Just(Transform::Reverse),
    ];
    let piece = prop_oneof![
        4 => proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b'c'), Just(b'd')], 0..40),
        1 => (1_usize..200_000).prop_map(|length| b"abcd".repeat(length.div_ceil(4))),
    ];
    let pieces = proptest::collection::vec(piece, 0..6);
    (mode, transform, pieces, any::<[bool; 3]>()).prop_map(|(mode, transform, pieces, flags)| {
        let [declares_length, trailers, shows_trailers] = flags;
        let is_empty = pieces.iter().all(Vec::is_empty);
        Way {
            mode,
            transform,
            declares_length,
            trailers: trailers && !is_empty,
            shows_trailers: shows_trailers || mode == BodyMode::FullDuplexStreamed,
            pieces,
        }
    })
}

/// Longer than any deadline of the proxy or the processor. The clock only moves when nobody has
/// anything to do, so whoever waits for it hangs.
const HANG: Duration = Duration::from_secs(3600);

fn exchange(request: &Way, response: &Way) -> Exchange {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let mut proxy = Proxy::new(Transforms {
        request: request.transform,
        response: response.transform,
    })
    .filter(|filter| {
        filter.buffer_limit = 4 << 20;
        let modes = &mut filter.modes;
        (modes.request_body, modes.response_body) = (request.mode, response.mode);
        modes.request_trailers = request.shows_trailers;
        modes.response_trailers = response.shows_trailers;
    });
    let mut head = Request::post("/").body(()).unwrap();
    let mut answer = Response::new(());
    for (way, headers) in [
        (request, head.headers_mut()),
        (response, answer.headers_mut()),
    ] {
        if let Some(length) = way.length() {
            headers.insert("content-length", length);
        }
        // A processor that is not shown trailers must know of them before it holds back.
        if way.trailers && !way.shows_trailers {
            headers.insert("trailer", HeaderValue::from_static("x-trailer"));
        }
    }
    if let Some(trailers) = request.trailers() {
        proxy = proxy.request_trailers(trailers);
    }
    if let Some(trailers) = response.trailers() {
        proxy = proxy.upstream_trailers(trailers);
    }
    let proxy = proxy.upstream_pieces(answer, response.pieces.clone());
    let exchange = proxy.send_pieces(head, request.pieces.clone());
    runtime
        .block_on(async { tokio::time::timeout(HANG, exchange).await })
        .expect("no hang")
}

/// A message that went on is the transform of what came, headers and trailers with it.
fn check(
    way: &Way,
    headers: &HeaderMap,
    body: &Bytes,
    trailers: Option<&HeaderMap>,
    side: &str,
) -> std::result::Result<(), TestCaseError> {
    let expected = way.expected();
    prop_assert_eq!(body.len(), expected.len(), "length of the {} body", side);
    prop_assert!(*body == expected, "the {} body", side);
    prop_assert_eq!(&headers["x-processed"], side);
    if let Some(length) = headers.get("content-length") {
        prop_assert_eq!(length, &HeaderValue::from(expected.len()), "{}", side);
    }
    prop_assert_eq!(trailers.cloned(), way.trailers(), "{} trailers", side);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(256)
    })]

    #[test]
    fn what_goes_on_is_the_transform_of_the_whole_body(request in ways(), response in ways()) {
        let came = exchange(&request, &response);

        let failed = came.broken.is_some() || came.response.status() != StatusCode::OK;
        if failed {
            prop_assert!(request.may_fail() || response.may_fail(), "{:?}", came);
        } else {
            check(
                &response,
                came.response.headers(),
                came.response.body(),
                came.trailers.as_ref(),
                "response",
            )?;
        }
        if let Some(upstream) = &came.upstream {
            let (headers, body) = (upstream.headers(), upstream.body());
            check(&request, headers, body, came.upstream_trailers.as_ref(), "request")?;
        } else {
            prop_assert!(failed, "the request was lost");
        }
    }
}
