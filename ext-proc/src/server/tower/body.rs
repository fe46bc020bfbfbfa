//! The body that a middleware is given, and the end of it that the exchange fills.

use std::{
    any::Any,
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use ::tower::BoxError;
use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};

use crate::server::session::Direction;

/// Stands for the bytes of a body that the proxy does not show: what gives it on unchanged
/// would give on the body unchanged.
const PLACEHOLDER: Bytes = Bytes::from_static(b"[Attache: A Body That The Proxy Keeps to Itself]");

/// A body of the exchange: what the proxy shows of it, as it comes.
///
/// Its exact size is known when the head has a `content-length`. A body that the proxy does not
/// show (body mode NONE) passes when it is left alone, and cannot be read.
#[derive(Debug)]
pub struct Body(Arc<Mutex<Pipe>>);

/// An empty body, for layers that answer without one.
impl Default for Body {
    fn default() -> Self {
        empty().1
    }
}

/// A body cannot be read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The proxy keeps it to itself: the body mode of its direction is NONE.
    #[error("the proxy does not show this body: its {} is NONE", mode_name(*.0))]
    Hidden(Direction),
    /// The exchange ended before the body did.
    #[error("the exchange is over")]
    Over,
}

/// The setting of a proxy that decides how the body of a direction is shown.
pub(super) fn mode_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Request => "request_body_mode",
        Direction::Response => "response_body_mode",
    }
}

#[derive(Debug)]
struct Pipe {
    frames: VecDeque<Frame<Bytes>>,
    /// Bytes in `frames`.
    held: usize,
    state: State,
    /// What is still to be read, by the `content-length`.
    expected: Option<u64>,
    /// The reader wants more than there is.
    reader: Option<Waker>,
    reader_gone: bool,
    /// The exchange, when it waits for the reader.
    writer: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Lost,
    Hidden(Direction, Probe),
}

/// How far a hidden body was looked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    Off,
    On,
    /// The placeholder is out.
    Read,
    /// So is the end.
    Done,
}

/// The exchange's end of a [`Body`]; the body breaks off when it is dropped before its end.
#[derive(Debug)]
pub(super) struct Feed(Arc<Mutex<Pipe>>);

/// A body to be filled.
pub(super) fn open(expected: Option<u64>) -> (Feed, Body) {
    pair(State::Open, expected)
}

/// A body without anything in it.
pub(super) fn empty() -> (Feed, Body) {
    pair(State::Ended, None)
}

/// A body that is not shown.
pub(super) fn hidden(direction: Direction, expected: Option<u64>) -> (Feed, Body) {
    pair(State::Hidden(direction, Probe::Off), expected)
}

fn pair(state: State, expected: Option<u64>) -> (Feed, Body) {
    let pipe = Arc::new(Mutex::new(Pipe {
        frames: VecDeque::new(),
        held: 0,
        state,
        expected,
        reader: None,
        reader_gone: false,
        writer: None,
    }));
    (Feed(pipe.clone()), Body(pipe))
}

fn lock(pipe: &Mutex<Pipe>) -> MutexGuard<'_, Pipe> {
    pipe.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Feed {
    /// Adds data; what nobody can read any more is dropped.
    pub(super) fn data(&self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.frame(data.len(), Frame::data(data));
    }

    /// Adds the trailers and ends the body.
    pub(super) fn trailers(&self, trailers: HeaderMap) {
        self.frame(0, Frame::trailers(trailers));
        self.end();
    }

    fn frame(&self, length: usize, frame: Frame<Bytes>) {
        let mut pipe = lock(&self.0);
        if pipe.state != State::Open || pipe.reader_gone {
            return;
        }
        pipe.held += length;
        pipe.frames.push_back(frame);
        let reader = pipe.reader.take();
        drop(pipe);
        wake(reader);
    }

    /// Ends the body.
    pub(super) fn end(&self) {
        self.become_(State::Ended);
    }

    fn become_(&self, state: State) {
        let mut pipe = lock(&self.0);
        if pipe.state == State::Ended {
            return;
        }
        pipe.state = state;
        let reader = pipe.reader.take();
        drop(pipe);
        wake(reader);
    }

    /// Bytes that wait to be read.
    pub(super) fn held(&self) -> usize {
        lock(&self.0).held
    }

    /// Whether nothing comes of the body any more before it gets more data: its reader waits,
    /// or is gone.
    pub(super) fn is_starved(&self) -> bool {
        let pipe = lock(&self.0);
        pipe.state == State::Open
            && (pipe.reader_gone || pipe.frames.is_empty() && pipe.reader.is_some())
    }

    /// Whether somebody waits for data just now.
    pub(super) fn is_wanted(&self) -> bool {
        let pipe = lock(&self.0);
        pipe.state == State::Open && pipe.frames.is_empty() && pipe.reader.is_some()
    }

    /// The exchange looks at the body itself, and is not to be told of what it causes.
    pub(super) fn attend(&self) {
        lock(&self.0).writer = None;
    }

    /// Has the exchange woken when the reader, wherever it runs, does something.
    pub(super) fn notify(&self, waker: &Waker) {
        lock(&self.0).writer = Some(waker.clone());
    }

    /// Lets a hidden body be looked through by what `poll` does, and only by that.
    pub(super) fn probing<R>(&self, poll: impl FnOnce() -> R) -> R {
        self.probe(Probe::Off, Probe::On);
        let result = poll();
        self.probe(Probe::On, Probe::Off);
        result
    }

    fn probe(&self, from: Probe, to: Probe) {
        if let State::Hidden(_, probe) = &mut lock(&self.0).state
            && *probe == from
        {
            *probe = to;
        }
    }

    /// What the data that came of a hidden body says of it.
    pub(super) fn verdict(&self, output: &[u8]) -> Verdict {
        match lock(&self.0).state {
            State::Hidden(_, Probe::Read | Probe::Done) if output == PLACEHOLDER => {
                Verdict::Untouched
            }
            State::Hidden(_, Probe::Read | Probe::Done) => Verdict::Changed,
            _ => Verdict::Replaced,
        }
    }

    /// Whether `body` is this body.
    pub(super) fn is_of(&self, body: &Body) -> bool {
        Arc::ptr_eq(&self.0, &body.0)
    }
}

/// What became of a hidden body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on as it is.
    Untouched,
    /// Nobody looked at it: something else goes on.
    Replaced,
    /// What goes on is made of it, which nobody can do.
    Changed,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.become_(State::Lost);
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let mut pipe = lock(&self.0);
        pipe.reader_gone = true;
        pipe.frames.clear();
        pipe.held = 0;
        let writer = pipe.writer.take();
        drop(pipe);
        wake(writer);
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = ReadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        let mut pipe = lock(&self.0);
        let result = if let Some(frame) = pipe.frames.pop_front() {
            if let Some(data) = frame.data_ref() {
                let length = data.len();
                pipe.held = pipe.held.saturating_sub(length);
                pipe.expected = pipe.expected.map(|left| left.saturating_sub(length as u64));
            }
            Poll::Ready(Some(Ok(frame)))
        } else {
            match &mut pipe.state {
                State::Ended => Poll::Ready(None),
                State::Lost => Poll::Ready(Some(Err(ReadError::Over))),
                State::Hidden(_, probe @ Probe::On) => {
                    *probe = Probe::Read;
                    return Poll::Ready(Some(Ok(Frame::data(PLACEHOLDER))));
                }
                State::Hidden(_, probe @ (Probe::Read | Probe::Done)) => {
                    *probe = Probe::Done;
                    return Poll::Ready(None);
                }
                State::Hidden(direction, Probe::Off) => {
                    let error = ReadError::Hidden(*direction);
                    tracing::warn!("a middleware reads a body, but {error}");
                    return Poll::Ready(Some(Err(error)));
                }
                State::Open => {
                    pipe.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        };
        let writer = pipe.writer.take();
        drop(pipe);
        wake(writer);
        result
    }

    fn is_end_stream(&self) -> bool {
        let pipe = lock(&self.0);
        match pipe.state {
            State::Ended => pipe.frames.is_empty(),
            State::Hidden(_, probe) => probe == Probe::Done,
            State::Open | State::Lost => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let pipe = lock(&self.0);
        match (pipe.state, pipe.expected) {
            (State::Ended, _) => SizeHint::with_exact(pipe.held as u64),
            (_, Some(expected)) => SizeHint::with_exact(expected),
            (_, None) => SizeHint::default(),
        }
    }
}

/// A body that comes from a middleware.
pub(super) enum Output {
    /// One of the exchange's own, not wrapped.
    Own(Body),
    Other(UnsyncBoxBody<Bytes, BoxError>),
}

impl Output {
    pub(super) fn new<B>(body: B) -> Self
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut body = Some(body);
        if let Some(own) = (&mut body as &mut dyn Any).downcast_mut::<Option<Body>>()
            && let Some(own) = own.take()
        {
            return Self::Own(own);
        }
        match body {
            Some(body) => Self::Other(
                body.map_frame(|frame| {
                    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
                })
                .map_err(Into::into)
                .boxed_unsync(),
            ),
            // Only a body that was taken out above.
            None => Self::Other(UnsyncBoxBody::default()),
        }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self {
            Self::Own(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            Self::Other(body) => Pin::new(body).poll_frame(cx),
        }
    }

    /// The size, when it is known before the body is.
    pub(super) fn exact_size(&self) -> Option<u64> {
        match self {
            Self::Own(body) => body.size_hint().exact(),
            Self::Other(body) => body.size_hint().exact(),
        }
    }
}
