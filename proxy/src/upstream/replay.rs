//! A request body that can be sent more than once, as long as it is not too large.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use attache_filter::{Body, BoxError};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};

/// Keeps what passes of a body, up to a limit. Nothing is read ahead, and nothing more is kept
/// once this is dropped.
#[derive(Debug)]
pub(crate) struct Replay(Option<Arc<Mutex<Tape>>>);

#[derive(Debug)]
struct Tape {
    body: Body,
    length: Option<u64>,
    /// The only piece so far is kept as it came; of several, one buffer is made.
    first: Bytes,
    more: BytesMut,
    trailers: Option<HeaderMap>,
    limit: usize,
    /// Some of what has passed is not here.
    lost: bool,
    /// The body has come to its end.
    ended: bool,
    /// Number of the attempt that reads.
    attempt: u32,
    /// How much of what is kept that attempt has had.
    position: usize,
    /// How much it has had of all.
    given: u64,
    gave_trailers: bool,
}

/// Why the body of an attempt ends early.
#[derive(Debug, thiserror::Error)]
#[error("the request is sent again elsewhere")]
struct Superseded;

impl Replay {
    /// Of a body of which up to `limit` bytes may be kept.
    pub(crate) fn new(body: Body, limit: usize) -> Self {
        Self((!body.is_end_stream()).then(|| {
            Arc::new(Mutex::new(Tape {
                length: body.size_hint().exact(),
                body,
                first: Bytes::new(),
                more: BytesMut::new(),
                trailers: None,
                limit,
                lost: false,
                ended: false,
                attempt: 0,
                position: 0,
                given: 0,
                gave_trailers: false,
            }))
        }))
    }

    /// The body from its start, for one attempt; what an earlier attempt has of it fails. Only
    /// while [`Replay::is_whole`] does it have all.
    pub(crate) fn attempt(&self) -> Body {
        let Some(tape) = &self.0 else {
            return Body::empty();
        };
        let mut state = lock(tape);
        state.attempt = state.attempt.wrapping_add(1);
        state.position = 0;
        state.given = 0;
        state.gave_trailers = false;
        let attempt = state.attempt;
        drop(state);
        Body::new(Attempt {
            tape: tape.clone(),
            attempt,
        })
    }

    /// Whether all that has passed can pass again.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|tape| !lock(tape).lost)
    }

    /// The complete body, once all of it has passed and while all of it is here.
    pub(crate) fn complete(&self) -> Option<Body> {
        let Some(tape) = &self.0 else {
            return Some(Body::empty());
        };
        let tape = lock(tape);
        if tape.lost || !tape.ended {
            return None;
        }
        let data = tape.from(0);
        Some(match tape.trailers.clone() {
            None => data.into(),
            Some(trailers) => {
                Body::new(Full::new(data).with_trailers(std::future::ready(Some(Ok(trailers)))))
            }
        })
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if let Some(tape) = &self.0 {
            let mut tape = lock(tape);
            tape.lost = true;
            if tape.position >= tape.held() {
                tape.forget();
            }
        }
    }
}

impl Tape {
    fn held(&self) -> usize {
        self.first.len().max(self.more.len())
    }

    fn from(&self, position: usize) -> Bytes {
        if self.more.is_empty() {
            return self.first.slice(position.min(self.first.len())..);
        }
        Bytes::copy_from_slice(self.more.get(position..).unwrap_or_default())
    }

    fn keep(&mut self, data: &Bytes) {
        if self.lost {
            return;
        }
        if data.len() > self.limit.saturating_sub(self.held()) {
            self.lost = true;
            self.forget();
            return;
        }
        if self.held() == 0 {
            self.first = data.clone();
        } else {
            if self.more.is_empty() {
                let first = std::mem::take(&mut self.first);
                self.more.extend_from_slice(&first);
            }
            self.more.extend_from_slice(data);
        }
        self.position = self.held();
    }

    fn forget(&mut self) {
        self.first = Bytes::new();
        self.more = BytesMut::new();
        self.position = 0;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.position < self.held() {
            let data = self.from(self.position);
            self.position = self.held();
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if self.ended {
            let trailers = self.trailers.clone().filter(|_| !self.gave_trailers);
            self.gave_trailers = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.ended = true,
            Some(Err(_)) => self.lost = true,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.keep(data);
                    self.ended = self.body.is_end_stream();
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.trailers = Some(trailers.clone());
                    self.gave_trailers = true;
                    self.ended = true;
                }
            }
        }
        Poll::Ready(frame)
    }
}

/// The body as one attempt has it.
struct Attempt {
    tape: Arc<Mutex<Tape>>,
    attempt: u32,
}

impl HttpBody for Attempt {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut tape = lock(&self.tape);
        if tape.attempt != self.attempt {
            return Poll::Ready(Some(Err(Superseded.into())));
        }
        let frame = ready!(tape.poll(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            tape.given += data.len() as u64;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let tape = lock(&self.tape);
        tape.attempt == self.attempt
            && tape.position >= tape.held()
            && (tape.ended || tape.body.is_end_stream())
            && (tape.gave_trailers || tape.trailers.is_none())
    }

    fn size_hint(&self) -> SizeHint {
        let tape = lock(&self.tape);
        let left = tape.length.and_then(|all| all.checked_sub(tape.given));
        left.map(SizeHint::with_exact).unwrap_or_default()
    }
}

fn lock(tape: &Mutex<Tape>) -> MutexGuard<'_, Tape> {
    tape.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;

    use super::*;

    fn chunked(chunks: &[&'static str], trailers: bool) -> Body {
        let data = |chunk: &&'static str| Ok(Frame::data(Bytes::from_static(chunk.as_bytes())));
        let mut frames: Vec<Result<_, BoxError>> = chunks.iter().map(data).collect();
        if trailers {
            let mut fields = HeaderMap::new();
            fields.insert("x-end", http::HeaderValue::from_static("1"));
            frames.push(Ok(Frame::trailers(fields)));
        }
        Body::new(StreamBody::new(futures_util::stream::iter(frames)))
    }

    async fn read(body: Body) -> (String, bool) {
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().is_some();
        (String::from_utf8(body.to_bytes().into()).unwrap(), trailers)
    }

    #[tokio::test]
    async fn each_attempt_has_the_whole_body() {
        for (chunks, trailers, limit) in [
            (&[][..], false, 0),
            (&["abc"], false, 3),
            (&["ab", "c", "def"], true, 6),
        ] {
            let replay = Replay::new(chunked(chunks, trailers), limit);
            for _ in 0..3 {
                let wanted = (chunks.concat(), trailers);
                assert_eq!(read(replay.attempt()).await, wanted);
                assert!(replay.is_whole());
                assert_eq!(read(replay.complete().unwrap()).await, wanted);
            }
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_passes_once() {
        let replay = Replay::new(chunked(&["abc", "d"], false), 3);
        assert_eq!(read(replay.attempt()).await.0, "abcd");
        assert!(!replay.is_whole());
        assert!(replay.complete().is_none());
    }

    #[tokio::test]
    async fn an_attempt_goes_on_where_the_one_before_it_stopped_reading() {
        let (send, frames) = mpsc::unbounded_channel::<&'static str>();
        let stream = futures_util::stream::unfold(frames, |mut frames| async move {
            let text = frames.recv().await?;
            let data = Frame::data(Bytes::from_static(text.as_bytes()));
            Some((Ok::<_, BoxError>(data), frames))
        });
        let replay = Replay::new(Body::new(StreamBody::new(stream)), 9);
        send.send("ab").unwrap();
        let mut first = replay.attempt();
        let frame = first.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "ab");
        assert!(replay.complete().is_none());

        let second = replay.attempt();
        let late = first.frame().await.unwrap().unwrap_err();
        assert_eq!(late.to_string(), "the request is sent again elsewhere");
        send.send("cd").unwrap();
        drop(send);

        assert_eq!(read(second).await.0, "abcd");
    }

    #[tokio::test]
    async fn a_body_that_cannot_be_asked_for_again_is_given_to_its_end() {
        let replay = Replay::new(chunked(&["ab", "cd"], false), 9);
        let mut first = replay.attempt();
        first.frame().await.unwrap().unwrap();
        let second = replay.attempt();
        drop(replay);
        assert_eq!(read(second).await.0, "abcd");
    }

    #[tokio::test]
    async fn a_broken_body_is_not_whole() {
        let frames: Vec<Result<Frame<Bytes>, BoxError>> = vec![Err("cut off".into())];
        let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
        let replay = Replay::new(body, 9);
        assert!(replay.attempt().collect().await.is_err());
        assert!(!replay.is_whole());
    }
}
