//! One direction of an exchange: what it waits for, what it holds, what it lets out.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use attache_filter::MessageHead;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, Version, header, request, response};
use http_body::Frame;

use crate::client::mode::BodyMode;

/// A message head of either direction.
pub(crate) enum Head {
    Request(request::Parts),
    Response(response::Parts),
}

impl Head {
    pub(super) fn as_head(&self) -> &dyn MessageHead {
        match self {
            Self::Request(parts) => parts,
            Self::Response(parts) => parts,
        }
    }

    pub(super) fn version(&self) -> Version {
        match self {
            Self::Request(parts) => parts.version,
            Self::Response(parts) => parts.version,
        }
    }

    pub(super) fn as_head_mut(&mut self) -> &mut dyn MessageHead {
        match self {
            Self::Request(parts) => parts,
            Self::Response(parts) => parts,
        }
    }
}

/// Which answer a direction waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// None.
    Idle,
    /// That to its headers.
    Headers,
    /// Those to the chunks in its queue; in full duplex, the new body up to its end.
    StreamedBody,
    /// That to its whole body.
    BufferedBody,
    /// That to the beginning of its body.
    PartialBody,
    /// That to its trailers.
    Trailers,
    /// The rest of a response that the processor gives itself.
    Local,
}

/// A piece of a streamed body that the processor has not answered.
pub(super) struct Chunk {
    pub(super) data: Bytes,
    pub(super) end: bool,
}

/// The call that runs, for the access log.
pub(super) struct Call {
    pub(super) phase: Phase,
    pub(super) started: Instant,
    /// Bytes of its message; those of bodies are summed up apart.
    pub(super) sent: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Headers,
    Body,
    Trailers,
}

/// The calls of a body summed up, so that a long body does not make a long log.
#[derive(Default)]
pub(super) struct BodyCalls {
    /// When the first began.
    pub(super) begun: Option<Instant>,
    /// When the last ended.
    pub(super) ended: Option<Instant>,
    pub(super) count: u32,
    pub(super) latency: Duration,
    pub(super) max_latency: Duration,
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl BodyCalls {
    pub(super) fn add(&mut self, now: Instant, latency: Duration, received: u64) {
        self.begun
            .get_or_insert(now.checked_sub(latency).unwrap_or(now));
        self.ended = Some(now);
        self.count += 1;
        self.latency += latency;
        self.max_latency = self.max_latency.max(latency);
        self.received += received;
    }
}

pub(super) struct Direction {
    pub(super) state: State,
    pub(super) mode: BodyMode,
    pub(super) send_headers: bool,
    pub(super) send_trailers: bool,
    /// The first message of the direction was sent.
    pub(super) attributes_sent: bool,
    /// The head has arrived.
    pub(super) started: bool,
    /// The protocol tells the end with the last piece. HTTP/1 tells it apart, as Envoy shows.
    pub(super) end_comes_with_data: bool,
    /// The head was all there is: no body, no trailers.
    pub(super) no_body: bool,
    /// It answers a HEAD request: whatever its length says, there is no body.
    pub(super) answers_head: bool,
    /// What follows the head is a tunnel.
    pub(super) tunnel: bool,
    /// The body has arrived to its end, trailers included.
    pub(super) input_ended: bool,
    /// The processor gave a new body; what still arrives of the old one is dropped.
    pub(super) body_replaced: bool,
    /// Nobody wants this direction any more: its message was answered locally.
    pub(super) abandoned: bool,
    /// Nobody reads what goes on: the other end has left.
    pub(super) unread: bool,
    /// The processor was shown some of a body that it gives back in its own way.
    pub(super) duplex_begun: bool,
    /// The processor was shown the end of the body, or the trailers.
    pub(super) end_shown: bool,
    pub(super) trailers_shown: bool,
    /// The running timer was already extended once by the processor.
    pub(super) extended: bool,
    /// The head may go on; what is let out afterwards follows it.
    pub(super) released: bool,
    /// The configuration leaves `content-length` of a streamed body to the processor.
    pub(super) trusts_length: bool,
    /// Nothing will follow what is in `out`, except `trailers`.
    pub(super) ended: bool,
    pub(super) head: Option<Head>,
    /// `content-length` as it arrived; what is left of it in a response of the processor's own.
    pub(super) declared_length: Option<u64>,
    /// Data that may not go on yet and was not sent, or was sent as a whole.
    pub(super) held: Vec<Bytes>,
    pub(super) held_bytes: usize,
    pub(super) queue: VecDeque<Chunk>,
    pub(super) queued_bytes: usize,
    /// Bytes shown in full duplex less those that came back.
    pub(super) owed: i64,
    pub(super) trailers: Option<Box<HeaderMap>>,
    pub(super) deadline: Option<Instant>,
    pub(super) call: Option<Call>,
    pub(super) body_calls: Option<Box<BodyCalls>>,
    /// What may go on, in order; `trailers` follow when `ended`.
    pub(super) out: VecDeque<Bytes>,
    pub(super) out_bytes: usize,
}

impl Direction {
    pub(super) fn new(send_headers: bool, mode: BodyMode, send_trailers: bool) -> Self {
        Self {
            state: State::Idle,
            mode: shown(mode),
            send_headers,
            send_trailers,
            attributes_sent: false,
            started: false,
            end_comes_with_data: false,
            no_body: false,
            answers_head: false,
            tunnel: false,
            input_ended: false,
            body_replaced: false,
            abandoned: false,
            unread: false,
            duplex_begun: false,
            end_shown: false,
            trailers_shown: false,
            extended: false,
            released: false,
            trusts_length: false,
            ended: false,
            head: None,
            declared_length: None,
            held: Vec::new(),
            held_bytes: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
            owed: 0,
            trailers: None,
            deadline: None,
            call: None,
            body_calls: None,
            out: VecDeque::new(),
            out_bytes: 0,
        }
    }

    /// Sets the modes of what follows the head.
    pub(super) fn set_modes(&mut self, body: BodyMode, trailers: bool) {
        self.mode = shown(body);
        self.send_trailers = trailers;
        if self.tunnel {
            self.treat_as_tunnel(true);
        }
    }

    /// What follows is not a message body: it has no end to wait for and no trailers. It can
    /// be shown piece by piece where it comes this way at all.
    pub(super) fn treat_as_tunnel(&mut self, in_body: bool) {
        self.tunnel = true;
        self.send_trailers = false;
        let whole = matches!(self.mode, BodyMode::Buffered | BodyMode::BufferedPartial);
        if whole || !in_body {
            self.mode = BodyMode::None;
        }
    }

    /// Whether the processor will not be told anything more of this direction.
    pub(super) fn is_settled(&self) -> bool {
        let unused = self.mode == BodyMode::None && !self.send_trailers;
        if !self.started {
            return !self.send_headers && unused;
        }
        let nothing_comes = self.input_ended || self.ended || unused;
        self.state == State::Idle
            && (self.abandoned || self.released && self.queue.is_empty() && nothing_comes)
    }

    /// Whether the processor gives the body back in its own way.
    pub(super) fn is_duplex(&self) -> bool {
        self.mode == BodyMode::FullDuplexStreamed
    }

    /// Whether answers are due at no particular time.
    pub(super) fn is_open_ended(&self) -> bool {
        let of_no_use = self.unread && self.released;
        let duplex = self.is_duplex() && self.state != State::Idle && !of_no_use;
        duplex || self.state == State::Local
    }

    /// Whether what still arrives of the body is of no use.
    pub(super) fn drops_input(&self) -> bool {
        self.body_replaced || self.abandoned || self.ended
    }

    pub(super) fn hold(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.held_bytes += data.len();
            self.held.push(data);
        }
    }

    /// Everything held, as one piece.
    pub(super) fn take_held(&mut self) -> Bytes {
        self.held_bytes = 0;
        let mut held = std::mem::take(&mut self.held);
        match held.len() {
            0 => Bytes::new(),
            1 => held.pop().unwrap_or_default(),
            _ => {
                let mut whole = BytesMut::with_capacity(held.iter().map(Bytes::len).sum());
                held.iter().for_each(|piece| whole.extend_from_slice(piece));
                whole.freeze()
            }
        }
    }

    pub(super) fn replace_held(&mut self, data: Bytes) {
        self.held.clear();
        self.held_bytes = 0;
        self.hold(data);
    }

    pub(super) fn enqueue(&mut self, data: Bytes, end: bool) {
        self.queued_bytes += data.len();
        self.queue.push_back(Chunk { data, end });
    }

    pub(super) fn dequeue(&mut self) -> Option<Chunk> {
        let chunk = self.queue.pop_front()?;
        self.queued_bytes = self.queued_bytes.saturating_sub(chunk.data.len());
        Some(chunk)
    }

    pub(super) fn clear_queue(&mut self) {
        self.queue.clear();
        self.queued_bytes = 0;
    }

    /// Puts what is queued behind what is held.
    pub(super) fn hold_queue(&mut self) {
        while let Some(chunk) = self.dequeue() {
            self.hold(chunk.data);
        }
    }

    pub(super) fn let_out(&mut self, data: Bytes) {
        if !data.is_empty() && !self.unread {
            self.out_bytes += data.len();
            self.out.push_back(data);
        }
    }

    /// The next frame that may go on.
    pub(super) fn next_frame(&mut self) -> Option<Frame<Bytes>> {
        if let Some(data) = self.out.pop_front() {
            self.out_bytes = self.out_bytes.saturating_sub(data.len());
            return Some(Frame::data(data));
        }
        let trailers = self.trailers.take_if(|_| self.ended)?;
        Some(Frame::trailers(*trailers))
    }

    /// Whether all has gone on.
    pub(super) fn has_ended(&self) -> bool {
        self.ended && self.out.is_empty() && self.trailers.is_none()
    }

    /// Lets the head go on, and after it everything that is held.
    pub(super) fn release(&mut self) {
        self.held_bytes = 0;
        for data in std::mem::take(&mut self.held) {
            self.let_out(data);
        }
        self.end_if_complete();
        if !self.released {
            self.check_length();
            self.released = true;
        }
    }

    /// Ends the output when the input has ended and nothing is waited for.
    pub(super) fn end_if_complete(&mut self) {
        let waits = self.state == State::Trailers || self.is_duplex() && self.state != State::Idle;
        if self.input_ended && self.queue.is_empty() && !waits {
            self.ended = true;
        }
    }

    /// Ends the output, whatever the input does.
    pub(super) fn finish(&mut self) {
        self.state = State::Idle;
        self.deadline = None;
        self.ended = true;
    }

    /// Stops processing: what was held or not answered goes on as it was.
    pub(super) fn pass_through(&mut self) {
        self.deadline = None;
        if self.state == State::PartialBody {
            self.hold_queue();
        }
        self.state = State::Idle;
        let later = self.take_held();
        self.hold_queue();
        let unanswered = self.take_held();
        self.let_out(unanswered);
        self.hold(later);
        if self.started {
            self.release();
        }
    }

    /// Gives up this direction: its message is not wanted any more.
    pub(super) fn abandon(&mut self) {
        self.abandoned = true;
        self.deadline = None;
        if self.state != State::Headers {
            self.state = State::Idle;
        }
        self.mode = BodyMode::None;
        self.replace_held(Bytes::new());
        self.clear_queue();
    }

    /// Removes a `content-length` that does not fit the body, which would break the framing of
    /// the message or let a second one be smuggled into it.
    fn check_length(&mut self) {
        // The length of a response to HEAD, and of a 304, is information only.
        let informs = match &self.head {
            Some(Head::Response(parts)) => {
                self.answers_head || self.no_body && parts.status == StatusCode::NOT_MODIFIED
            }
            _ => false,
        };
        let Some(head) = self.head.as_mut().map(Head::as_head_mut) else {
            return;
        };
        let Some(declared) = head.headers().get(header::CONTENT_LENGTH) else {
            return;
        };
        let declared = parse_length(declared);
        let actual = if self.ended {
            Some(self.out_bytes as u64)
        } else {
            self.declared_length
        };
        let fits = declared.is_some() && (self.trusts_length || declared == actual);
        if !informs && !fits {
            head.headers_mut().remove(header::CONTENT_LENGTH);
        }
    }
}

/// Envoy has the name of `GRPC` and shows nothing.
fn shown(mode: BodyMode) -> BodyMode {
    match mode {
        BodyMode::Grpc => BodyMode::None,
        mode => mode,
    }
}

/// The value of a `content-length` header, if it is a number.
pub(super) fn parse_length(value: &http::HeaderValue) -> Option<u64> {
    value.to_str().ok()?.parse().ok()
}
