//! One direction of an exchange: what it waits for, what it holds, what it lets out.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use attache_filter::MessageHead;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Version, header, request, response};
use http_body::Frame;

use crate::client::plan::BodyMode;

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
    /// Those to the chunks in its queue.
    StreamedBody,
    /// That to its whole body.
    BufferedBody,
    /// That to its trailers.
    Trailers,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Headers,
    Body,
    Trailers,
}

pub(super) struct Direction {
    pub(super) state: State,
    pub(super) mode: BodyMode,
    pub(super) send_headers: bool,
    pub(super) send_trailers: bool,
    /// The head has arrived.
    pub(super) started: bool,
    /// The protocol tells the end with the last piece. HTTP/1 tells it apart, as Envoy shows.
    pub(super) end_comes_with_data: bool,
    /// The head was all there is: no body, no trailers.
    pub(super) no_body: bool,
    /// The body has arrived to its end, trailers included.
    pub(super) input_ended: bool,
    /// The processor gave a new body; what still arrives of the old one is dropped.
    pub(super) body_replaced: bool,
    /// Nobody wants this direction any more: its message was answered locally.
    pub(super) abandoned: bool,
    pub(super) head: Option<Head>,
    /// The head may go on; what is let out afterwards follows it.
    pub(super) released: bool,
    /// `content-length` as it arrived.
    pub(super) declared_length: Option<u64>,
    /// The configuration leaves `content-length` of a streamed body to the processor.
    pub(super) trusts_length: bool,
    /// Data that may not go on yet and was not sent, or was sent as a whole.
    pub(super) held: Vec<Bytes>,
    pub(super) held_bytes: usize,
    pub(super) queue: VecDeque<Chunk>,
    pub(super) queued_bytes: usize,
    pub(super) trailers: Option<HeaderMap>,
    pub(super) deadline: Option<Instant>,
    /// The running timer was already extended once by the processor.
    pub(super) extended: bool,
    pub(super) call: Option<Call>,
    /// The body's calls summed up, so that a long body does not make a long log.
    pub(super) body_latency: Option<Duration>,
    /// What may go on, in order.
    pub(super) out: VecDeque<Frame<Bytes>>,
    /// Nothing will follow what is in `out`.
    pub(super) ended: bool,
}

impl Direction {
    pub(super) fn new(send_headers: bool, mode: BodyMode, send_trailers: bool) -> Self {
        Self {
            state: State::Idle,
            mode,
            send_headers,
            send_trailers,
            started: false,
            end_comes_with_data: false,
            no_body: false,
            input_ended: false,
            body_replaced: false,
            abandoned: false,
            head: None,
            released: false,
            declared_length: None,
            trusts_length: false,
            held: Vec::new(),
            held_bytes: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
            trailers: None,
            deadline: None,
            extended: false,
            call: None,
            body_latency: None,
            out: VecDeque::new(),
            ended: false,
        }
    }

    /// Whether the processor will not be told anything more of this direction.
    pub(super) fn is_settled(&self) -> bool {
        let unused = self.mode == BodyMode::None && !self.send_trailers;
        if !self.started {
            return !self.send_headers && unused;
        }
        self.state == State::Idle
            && (self.abandoned
                || self.released && self.queue.is_empty() && (self.input_ended || unused))
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

    pub(super) fn clear_queue(&mut self) {
        self.queue.clear();
        self.queued_bytes = 0;
    }

    pub(super) fn let_out(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.out.push_back(Frame::data(data));
        }
    }

    /// Lets the head go on, and after it everything that is held.
    pub(super) fn release(&mut self) {
        self.held_bytes = 0;
        for data in std::mem::take(&mut self.held) {
            self.out.push_back(Frame::data(data));
        }
        self.end_if_complete();
        if !self.released {
            self.check_length();
            self.released = true;
        }
    }

    /// Ends the output when the input has ended and nothing is waited for.
    pub(super) fn end_if_complete(&mut self) {
        if self.input_ended && self.queue.is_empty() && !self.ended {
            if let Some(trailers) = self.trailers.take() {
                self.out.push_back(Frame::trailers(trailers));
            }
            self.ended = true;
        }
    }

    /// Stops processing: what was held or not answered goes on as it was.
    pub(super) fn pass_through(&mut self) {
        self.deadline = None;
        self.state = State::Idle;
        let later = self.take_held();
        self.queued_bytes = 0;
        let mut merged = BytesMut::new();
        match (self.queue.pop_front(), self.queue.is_empty()) {
            (Some(only), true) => self.let_out(only.data),
            (Some(first), false) => {
                merged.extend_from_slice(&first.data);
                for chunk in std::mem::take(&mut self.queue) {
                    merged.extend_from_slice(&chunk.data);
                }
                self.let_out(merged.freeze());
            }
            (None, _) => {}
        }
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
        let response_without_body = self.no_body && !matches!(self.head, Some(Head::Request(_)));
        let Some(head) = self.head.as_mut().map(Head::as_head_mut) else {
            return;
        };
        let Some(declared) = head.headers().get(header::CONTENT_LENGTH) else {
            return;
        };
        let declared = parse_length(declared);
        let actual = if self.ended {
            let data = self.out.iter().filter_map(Frame::data_ref);
            Some(data.map(|data| data.len() as u64).sum())
        } else {
            self.declared_length
        };
        // To a response without a body, as to HEAD, the length is information only.
        if !response_without_body
            && !self.trusts_length
            && (declared.is_none() || declared != actual)
        {
            head.headers_mut().remove(header::CONTENT_LENGTH);
        }
    }
}

/// The value of a `content-length` header, if it is a number.
pub(super) fn parse_length(value: &http::HeaderValue) -> Option<u64> {
    value.to_str().ok()?.parse().ok()
}
