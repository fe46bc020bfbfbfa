//! What is to be sent to the proxy, in the order in which a proxy accepts it.
//!
//! Replies of one direction are owed in the order of what was shown: one that is given early
//! waits for those before it. In full duplex the pieces of a body owe nothing; what is pushed
//! instead waits until the head is answered and the first piece has come, and trailers wait until
//! the body is finished.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use tonic::Status;

use super::{BodyMode, Direction, Modes, encode::Kind};

/// Bytes that may wait to be sent before nothing more is read from the proxy.
const ROOM: usize = 256 << 10;
/// Bytes of one direction that may wait until a proxy accepts them: as much as one message may
/// have. Output that comes before its head is answered is kept here.
const MAX_STALLED: usize = 64 << 20;

/// Shared by a session, its replies, and the body of the gRPC answer.
#[derive(Clone, Default)]
pub(in crate::server) struct Outbox(Arc<Mutex<Queue>>);

#[derive(Default)]
pub(super) struct Queue {
    /// Complete buffers, before `tail`.
    full: VecDeque<Bytes>,
    tail: BytesMut,
    waiting: usize,
    ways: [Way; 2],
    modes: [BodyMode; 2],
    /// Nothing may follow: the last message ended the exchange.
    closed: bool,
    failure: Option<Box<Status>>,
    /// The proxy sends nothing more: nobody misses what is unfinished.
    gone: bool,
    /// A streamed answer has begun and not ended.
    answering: bool,
    /// Being polled right now, so that nobody needs to be woken.
    awake: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// One direction.
#[derive(Default)]
struct Way {
    /// Number of the next reply to be owed.
    next: u32,
    /// Number of the reply that is due.
    due: u32,
    /// Replies given before they were due.
    early: Vec<(u32, Vec<Bytes>)>,
    /// The trailers' number, once they have come.
    trailers: Option<u32>,
    stream: Stream,
    /// The head or a piece said that nothing follows.
    over: bool,
    /// A piece of the body has come.
    has_body: bool,
    /// Nothing that is shown is answered any more: the body was replaced.
    silent: bool,
    /// The caller gets a streamed answer meanwhile: what is shown owes nothing.
    answered: bool,
    /// Pushed before it might be sent.
    held: Vec<Bytes>,
    /// Bytes in `early` and `held`.
    stalled: usize,
}

/// The output of a body in full duplex.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Stream {
    /// Pieces are answered one by one.
    #[default]
    Untaken,
    Open,
    Finished,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outbox")
    }
}

impl Outbox {
    pub(super) fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The replies are about to be polled: what is sent now is found without a wake-up.
    pub(in crate::server) fn awake(&self) {
        self.lock().awake = true;
    }

    /// All that can be sent now, as one buffer as far as it goes.
    pub(in crate::server) fn pop(&self) -> Option<Bytes> {
        self.lock().pop()
    }

    /// [`Outbox::pop`], or the promise of a wake-up.
    pub(in crate::server) fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let mut queue = self.lock();
        match queue.pop() {
            Some(bytes) => Poll::Ready(bytes),
            None => {
                queue.awake = false;
                match &mut queue.reader {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }

    /// The handler is done: how the exchange ends unless it failed.
    pub(in crate::server) fn end(&self) -> Result<(), Status> {
        let queue = &mut *self.lock();
        let unfinished = queue.is_unfinished();
        queue.closed = true;
        match queue.failure.take() {
            Some(failure) => Err(*failure),
            None if unfinished => Err(Status::internal("the processor gave up a body")),
            None => Ok(()),
        }
    }

    /// Ends the exchange with an error.
    pub(in crate::server) fn fail(&self, status: Status) {
        let mut queue = self.lock();
        queue.failure.get_or_insert_with(|| Box::new(status));
        queue.close();
    }

    /// The proxy sends nothing more.
    pub(super) fn gone(&self) {
        self.lock().gone = true;
    }

    /// Whether so little waits that more may be made.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut queue = self.lock();
        if queue.waiting <= ROOM || queue.closed {
            return Poll::Ready(());
        }
        queue.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Queue {
    fn pop(&mut self) -> Option<Bytes> {
        let bytes = match self.full.pop_front() {
            Some(bytes) => bytes,
            None if self.tail.is_empty() => return None,
            None => self.tail.split().freeze(),
        };
        self.waiting -= bytes.len();
        if self.waiting <= ROOM
            && let Some(writer) = self.writer.take()
        {
            writer.wake();
        }
        Some(bytes)
    }

    fn wake(&mut self) {
        if !self.awake
            && let Some(reader) = &self.reader
        {
            self.awake = true;
            reader.wake_by_ref();
        }
    }

    fn close(&mut self) {
        self.closed = true;
        for way in &mut self.ways {
            way.early = Vec::new();
            way.held = Vec::new();
        }
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
        self.wake();
    }

    fn way(&mut self, direction: Direction) -> &mut Way {
        let [request, response] = &mut self.ways;
        match direction {
            Direction::Request => request,
            Direction::Response => response,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn mode(&self, direction: Direction) -> BodyMode {
        let [request, response] = self.modes;
        match direction {
            Direction::Request => request,
            Direction::Response => response,
        }
    }

    pub(super) fn set_modes(&mut self, request: BodyMode, response: BodyMode) {
        self.modes = [request, response];
    }

    pub(super) fn override_modes(&mut self, modes: Modes) {
        self.modes = [modes.request_body, modes.response_body];
    }

    /// Sends now, by writing to the buffer; what the writer gives back follows uncopied.
    pub(super) fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> Option<Bytes>) {
        if self.closed {
            return;
        }
        let before = self.tail.len();
        let apart = write(&mut self.tail);
        self.waiting += self.tail.len() - before;
        if let Some(apart) = apart {
            let tail = self.tail.split().freeze();
            self.waiting += apart.len();
            self.full.push_back(tail);
            self.full.push_back(apart);
        }
        self.wake();
    }

    /// Sends the last message of the exchange.
    pub(super) fn send_last(&mut self, write: impl FnOnce(&mut BytesMut)) {
        self.send(|buffer| {
            write(buffer);
            None
        });
        self.close();
    }

    /// A part is shown: whether and as which number a reply is owed.
    pub(super) fn shown(&mut self, direction: Direction, part: Kind, over: bool) -> Shown {
        let full_duplex = self.mode(direction) == BodyMode::FullDuplexStreamed;
        let way = self.way(direction);
        way.over |= over;
        if way.silent {
            return Shown::Silent;
        }
        if way.answered {
            return Shown::Free;
        }
        match part {
            Kind::Headers => {
                // Output of a body that cannot have any.
                if over && !way.held.is_empty() {
                    return Shown::Bodiless;
                }
            }
            Kind::Body => {
                way.has_body = true;
                if full_duplex && way.stream != Stream::Untaken {
                    self.advance(direction);
                    return Shown::Free;
                }
            }
            Kind::Trailers => {
                if !way.held.is_empty() && !way.has_body {
                    return Shown::Bodiless;
                }
                way.trailers = Some(way.next);
            }
        }
        let way = self.way(direction);
        let number = way.next;
        way.next = way.next.wrapping_add(1);
        Shown::Owed(number)
    }

    /// Gives the reply with this number: `write` puts its messages, now or when they are due.
    pub(super) fn reply(
        &mut self,
        direction: Direction,
        number: u32,
        write: impl FnOnce(&mut Out<'_>),
    ) {
        let way = self.way(direction);
        if way.silent {
            return;
        }
        if way.due == number && !way.waits_for_body(number) {
            write(&mut Out::Now(self));
            let way = self.way(direction);
            way.due = way.due.wrapping_add(1);
            self.advance(direction);
        } else {
            let mut buffers = Vec::new();
            write(&mut Out::Later(&mut buffers));
            let bytes = buffers.iter().map(Bytes::len).sum();
            self.way(direction).early.push((number, buffers));
            self.stall(direction, bytes);
        }
    }

    /// More waits until a proxy accepts it; too much is a failure of the processor.
    fn stall(&mut self, direction: Direction, bytes: usize) {
        let way = self.way(direction);
        way.stalled += bytes;
        if way.stalled > MAX_STALLED {
            let status = Status::resource_exhausted(
                "too much output waits for a reply that the processor does not give",
            );
            self.failure.get_or_insert_with(|| Box::new(status));
            self.close();
        }
    }

    fn send_stalled(&mut self, direction: Direction, buffers: Vec<Bytes>) {
        let bytes: usize = buffers.iter().map(Bytes::len).sum();
        let way = self.way(direction);
        way.stalled = way.stalled.saturating_sub(bytes);
        for buffer in buffers {
            self.send(|_| Some(buffer));
        }
    }

    /// Sends what has become due.
    fn advance(&mut self, direction: Direction) {
        loop {
            let way = self.way(direction);
            if way.may_push() && !way.held.is_empty() {
                let held = std::mem::take(&mut way.held);
                self.send_stalled(direction, held);
                continue;
            }
            let due = way.due;
            if way.waits_for_body(due) {
                return;
            }
            let Some(at) = way.early.iter().position(|(number, _)| *number == due) else {
                return;
            };
            let (_, buffers) = way.early.swap_remove(at);
            way.due = way.due.wrapping_add(1);
            self.send_stalled(direction, buffers);
        }
    }

    /// Takes the output of a body in full duplex; once.
    pub(super) fn take_stream(&mut self, direction: Direction) -> bool {
        let full_duplex = self.mode(direction) == BodyMode::FullDuplexStreamed;
        let way = self.way(direction);
        let free = full_duplex && way.stream == Stream::Untaken && !way.silent;
        if free {
            way.stream = Stream::Open;
        }
        free
    }

    /// Adds to the output of a body in full duplex; `false` when that has ended.
    pub(super) fn push(
        &mut self,
        direction: Direction,
        mut write: impl FnMut(&mut BytesMut) -> Option<Bytes>,
    ) -> bool {
        let closed = self.closed;
        let way = self.way(direction);
        let bodiless = way.over && !way.has_body;
        if closed || way.silent || bodiless || way.stream != Stream::Open {
            return false;
        }
        if way.may_push() {
            self.send(write);
        } else {
            let mut buffer = BytesMut::new();
            let apart = write(&mut buffer);
            let bytes = buffer.len() + apart.as_ref().map_or(0, Bytes::len);
            way.held.push(buffer.freeze());
            way.held.extend(apart);
            self.stall(direction, bytes);
        }
        true
    }

    /// Whether the body ends its message; trailers do, if there are any.
    pub(super) fn ends_with_body(&mut self, direction: Direction) -> bool {
        self.way(direction).trailers.is_none()
    }

    /// Ends the output of a body in full duplex.
    pub(super) fn finish(&mut self, direction: Direction) {
        self.way(direction).stream = Stream::Finished;
        self.advance(direction);
    }

    /// The output of a body is given up. `false` when it would be missed.
    pub(super) fn give_up(&mut self, direction: Direction) -> bool {
        let (closed, gone) = (self.closed, self.gone);
        let way = self.way(direction);
        if closed || gone || way.silent || way.stream != Stream::Open {
            return true;
        }
        if !way.has_body && way.held.is_empty() {
            way.stream = Stream::Untaken;
            return true;
        }
        false
    }

    /// Begins a streamed answer in place of the reply to the head of a request.
    pub(super) fn begin_answer(&mut self) {
        self.answering = true;
        let way = self.way(Direction::Request);
        way.answered = true;
        way.early = Vec::new();
        way.held = Vec::new();
    }

    /// Ends the streamed answer and with it the exchange.
    pub(super) fn end_answer(&mut self) {
        self.answering = false;
        self.close();
    }

    /// Whether something was begun that a clean end of the exchange would cut.
    fn is_unfinished(&self) -> bool {
        let cut = |way: &Way| way.stream == Stream::Open && way.has_body && !way.silent;
        !self.closed && !self.gone && (self.answering || self.ways.iter().any(cut))
    }

    /// Nothing of this direction is answered any more.
    pub(super) fn silence(&mut self, direction: Direction) {
        let way = self.way(direction);
        way.silent = true;
        way.early = Vec::new();
        way.held = Vec::new();
    }
}

impl Way {
    /// Everything before the body's output is answered, and there is a body.
    fn may_push(&self) -> bool {
        self.due == self.trailers.unwrap_or(self.next) && self.has_body
    }

    /// Trailers end the message, so they come after the body.
    fn waits_for_body(&self, number: u32) -> bool {
        self.trailers == Some(number) && (self.stream == Stream::Open || !self.held.is_empty())
    }
}

/// What a part that is shown means for its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// A reply is owed, with this number.
    Owed(u32),
    /// None is: what goes on is pushed.
    Free,
    /// None is, and nobody wants to see it.
    Silent,
    /// Output was pushed for a body that is not there.
    Bodiless,
}

/// Where the messages of a reply go.
pub(super) enum Out<'a> {
    Now(&'a mut Queue),
    Later(&'a mut Vec<Bytes>),
}

impl Out<'_> {
    /// One message; see [`Queue::send`].
    pub(super) fn put(&mut self, write: impl FnOnce(&mut BytesMut) -> Option<Bytes>) {
        match self {
            Self::Now(queue) => queue.send(write),
            Self::Later(buffers) => {
                let mut buffer = BytesMut::new();
                let apart = write(&mut buffer);
                buffers.push(buffer.freeze());
                buffers.extend(apart);
            }
        }
    }
}
