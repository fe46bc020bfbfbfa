//! One request and its response, as the processor takes part in them: a pure state machine.
//!
//! Events come in through the methods ([`Exchange::headers`], [`Exchange::data`],
//! [`Exchange::reply`], ...). What follows from them is taken out: messages for the processor
//! from [`Exchange::outbox`], heads and body frames by direction, the deadline to wake up at,
//! and an [`Outcome`] when the exchange does not go its usual way. Nothing here does I/O.

mod body;
mod direction;
mod duplex;
mod fault;
mod local;
mod modes;
mod observe;
mod reply;
mod send;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use attache_filter::{
    LocalReply, RequestContext,
    calls::{CallResult, Changes},
    reply::ReplyForm,
};
use attache_service::trace::SpanId;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, Version, header};
use http_body::Frame;

use super::{
    Side, attributes,
    extras::Extras,
    mode::{BodyMode, Modes},
    plan::Filter,
    stats::Stats,
};
use direction::{Direction, State, parse_length};

pub(crate) use direction::Head;

/// Framed messages for the processor, in order. One message may be several pieces.
#[derive(Default)]
pub(crate) struct Outbox {
    pieces: VecDeque<Bytes>,
    /// Bytes that wait.
    bytes: usize,
    /// Bytes pushed since that was last asked.
    new: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        self.new += piece.len();
        self.pieces.push_back(piece);
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let piece = self.pieces.pop_front()?;
        self.bytes = self.bytes.saturating_sub(piece.len());
        Some(piece)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    fn take_new(&mut self) -> usize {
        std::mem::take(&mut self.new)
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    #[cfg(test)]
    pub(super) fn concat(&mut self) -> Vec<u8> {
        self.bytes = 0;
        std::mem::take(&mut self.pieces)
            .into_iter()
            .flatten()
            .collect()
    }
}

/// How an exchange ends when it does not run to its end.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The caller gets this answer, which the processor is not shown.
    Reply(Box<LocalReply>),
    /// The request is refused; the response phase goes on with this answer.
    Refuse(Box<LocalReply>),
    /// The caller gets this head, and after it what the processor streams.
    Local(Box<http::response::Parts>),
    /// The caller has the response head already: the response breaks off.
    Reset,
}

/// The life of the gRPC stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Unopened,
    Open,
    Closed,
}

/// What an exchange is subject to: the filter's settings with those of the route on top.
pub(crate) struct Terms {
    pub(super) filter: Arc<Filter>,
    pub(super) stats: Arc<Stats>,
    pub(super) modes: Modes,
    pub(super) failure_mode_allow: bool,
    /// Bytes of one body held at most.
    pub(super) buffer_limit: usize,
    /// Bound on silence, unless there is none.
    pub(super) idle_timeout: Option<Duration>,
    pub(super) extras: Extras,
    /// The span that the processor was told of.
    pub(super) span: Option<SpanId>,
}

/// Answers in full duplex are read as long as no more than this many times the buffer limit
/// waits to go on. Not less: a reader may wait for the other direction to be read first.
const UNREAD_LIMITS: usize = 16;

pub(crate) struct Exchange {
    terms: Terms,
    context: Arc<RequestContext>,
    form: ReplyForm,
    /// The request asks for a tunnel.
    connect: bool,
    request: Direction,
    response: Direction,
    stream: Stream,
    /// Nothing is sent or honoured any more.
    complete: bool,
    config_sent: bool,
    outbox: Outbox,
    outcome: Option<Outcome>,
    /// The exchange was broken off: bodies on their way end with an error.
    broken: bool,
    /// When it began.
    begun: Instant,
    /// When something was last heard of anybody.
    active: Instant,
    /// Size of the message that is being taken in.
    received: usize,
    /// What it has changed in headers, where somebody watches.
    changes: Option<Box<Changes>>,
}

impl Exchange {
    pub(super) fn new(
        terms: Terms,
        context: Arc<RequestContext>,
        form: ReplyForm,
        now: Instant,
    ) -> Self {
        let modes = match terms.filter.observability_mode {
            true => observe::modes(terms.modes),
            false => terms.modes,
        };
        Self {
            terms,
            context,
            form,
            connect: false,
            request: Direction::new(
                modes.request_headers,
                modes.request_body,
                modes.request_trailers,
            ),
            response: Direction::new(
                modes.response_headers,
                modes.response_body,
                modes.response_trailers,
            ),
            stream: Stream::Unopened,
            complete: false,
            config_sent: false,
            outbox: Outbox::default(),
            outcome: None,
            broken: false,
            begun: now,
            active: now,
            received: 0,
            changes: None,
        }
    }

    // ---- events

    /// A head arrived; `end` when neither body nor trailers follow.
    pub(super) fn headers(&mut self, side: Side, head: Head, end: bool, now: Instant) {
        self.active = now;
        let upgrade = self.is_upgrade(&head);
        if let Head::Request(parts) = &head {
            self.connect = parts.method == http::Method::CONNECT;
        }
        let in_body = upgrade && self.context.tunnels_in_body();
        let answers_head = side == Side::Response && self.form.head;
        let direction = self.direction(side);
        direction.started = true;
        direction.answers_head = answers_head;
        direction.input_ended = end;
        direction.no_body = end;
        direction.end_comes_with_data = head.version() >= Version::HTTP_2;
        let length = head.as_head().headers().get(header::CONTENT_LENGTH);
        direction.declared_length = length.and_then(parse_length);
        direction.head = Some(head);
        if upgrade {
            direction.treat_as_tunnel(in_body);
        }
        if self.complete {
            self.direction(side).release();
            return;
        }
        if self.observes() {
            self.observe_headers(side, end && !upgrade);
            return;
        }
        let send = self.peek(side).send_headers;
        if send {
            self.send_headers(side, end && !upgrade, now);
        }
        self.strip_length(side);
        if !send {
            self.direction(side).release();
        }
        self.close_if_done();
    }

    /// A piece of a body arrived; `end` when it is the last and no trailers follow.
    pub(super) fn data(&mut self, side: Side, data: Bytes, end: bool, now: Instant) {
        self.active = now;
        let direction = self.direction(side);
        direction.input_ended |= end;
        if direction.drops_input() {
            direction.end_if_complete();
        } else if self.complete {
            let direction = self.direction(side);
            direction.let_out(data);
            direction.end_if_complete();
        } else if self.observes() {
            self.observe_data(side, data, end);
        } else {
            self.process_data(side, data, end, now);
        }
        self.close_if_done();
    }

    fn process_data(&mut self, side: Side, data: Bytes, end: bool, now: Instant) {
        let limit = self.terms.buffer_limit;
        let without_waiting = self.sends_without_waiting();
        let direction = self.direction(side);
        match (direction.state, direction.mode) {
            (State::Trailers | State::Local, _) => {}
            (_, BodyMode::FullDuplexStreamed) => self.send_piece(side, data, end, now),
            (State::Headers, BodyMode::Streamed) if without_waiting => {
                self.send_piece(side, data, end, now);
            }
            (State::Idle, BodyMode::Streamed) | (State::StreamedBody, _) => {
                self.send_piece(side, data, end, now);
            }
            (State::Idle, BodyMode::None | BodyMode::Grpc) => {
                direction.let_out(data);
                direction.end_if_complete();
            }
            (State::PartialBody, _) => direction.enqueue(data, end),
            (State::Idle, BodyMode::BufferedPartial) => {
                direction.hold(data);
                if end || direction.held_bytes > limit {
                    self.send_whole(side, end, now);
                }
            }
            (state, mode) => {
                direction.hold(data);
                if mode == BodyMode::Buffered && direction.held_bytes > limit {
                    self.too_large(side);
                } else if end && state == State::Idle {
                    self.send_whole(side, true, now);
                }
            }
        }
    }

    /// The body ended with trailers.
    pub(super) fn trailers(&mut self, side: Side, trailers: HeaderMap, now: Instant) {
        self.active = now;
        let direction = self.direction(side);
        direction.input_ended = true;
        if !direction.abandoned && !direction.ended {
            direction.trailers = Some(Box::new(trailers));
            let (state, mode) = (direction.state, direction.mode);
            if self.complete {
                self.direction(side).end_if_complete();
            } else if self.observes() {
                self.observe_trailers(side);
            } else if mode == BodyMode::FullDuplexStreamed {
                self.show_duplex_trailers(side, now);
            } else if state == State::Idle {
                self.note_body(side, 0, CallResult::Continued);
                let direction = self.peek(side);
                let whole = matches!(mode, BodyMode::Buffered | BodyMode::BufferedPartial);
                if whole && !direction.held.is_empty() {
                    self.send_whole(side, false, now);
                } else {
                    self.pass_trailers(side, now);
                }
            }
        }
        self.close_if_done();
    }

    /// Nobody reads a direction any more: what the processor makes of it is dropped.
    pub(super) fn unread(&mut self, side: Side) {
        let direction = self.direction(side);
        direction.unread = true;
        direction.out.clear();
        direction.out_bytes = 0;
    }

    /// Time has passed: calls that are overdue fail.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.deadline().is_some_and(|at| at <= now) {
            self.timed_out(now);
        }
        self.close_if_done();
    }

    /// There is no request to show: a layer further outside has answered.
    pub(super) fn skip_request(&mut self) {
        self.request.started = true;
        self.request.input_ended = true;
        self.request.released = true;
    }

    /// The head of a request that does not go on, as far as it is still here.
    pub(super) fn reclaim_request(&mut self) -> Option<http::request::Parts> {
        match self.request.head.take() {
            Some(Head::Request(parts)) => Some(parts),
            _ => None,
        }
    }

    // ---- what follows

    pub(super) fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Whether the stream to the processor is not needed any more.
    pub(super) fn is_closed(&self) -> bool {
        self.stream == Stream::Closed
    }

    /// Whether the processor can neither change nor fail anything any more.
    pub(super) fn is_done(&self) -> bool {
        self.stream == Stream::Closed || self.is_finished()
    }

    /// When [`Exchange::tick`] must be called at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let open = self.request.is_open_ended() || self.response.is_open_ended();
        let idle = self.terms.idle_timeout;
        let silence = idle.filter(|_| open && !self.complete);
        let silence = silence.map(|idle| self.active + idle);
        [self.request.deadline, self.response.deadline, silence]
            .into_iter()
            .flatten()
            .min()
    }

    /// The head of a direction, once it may go on.
    pub(super) fn take_head(&mut self, side: Side) -> Option<Head> {
        let direction = self.direction(side);
        if direction.released {
            direction.head.take()
        } else {
            None
        }
    }

    /// The request head goes on like this.
    pub(super) fn request_goes_on(&self, parts: &http::request::Parts) {
        attributes::request_goes_on(&self.terms, parts);
    }

    /// The next frame of a body that may go on.
    pub(super) fn next_frame(&mut self, side: Side) -> Option<Frame<Bytes>> {
        self.direction(side).next_frame()
    }

    /// Whether it matters how long nothing has happened to a direction.
    pub(super) fn minds_silence(&self, side: Side) -> bool {
        self.peek(side).is_open_ended()
    }

    /// Somebody took a frame: a slow reader is not silence.
    pub(super) fn taken(&mut self, now: Instant) {
        self.active = now;
    }

    /// Whether a body has gone on to its end.
    pub(super) fn has_ended(&self, side: Side) -> bool {
        self.peek(side).has_ended()
    }

    /// Whether so much waits to go on that no further answer should be read.
    pub(super) fn is_full(&self) -> bool {
        let limit = self.terms.buffer_limit;
        let full = |direction: &Direction| match direction.state {
            State::Local => direction.out_bytes > limit,
            _ => direction.out_bytes > limit.saturating_mul(UNREAD_LIMITS),
        };
        full(&self.request) || full(&self.response)
    }

    /// Whether a direction goes on exactly as it arrives from here, so that nobody need look.
    pub(super) fn is_untouched(&self, side: Side) -> bool {
        let direction = self.peek(side);
        let others = side == Side::Request || self.is_done();
        others
            && (self.complete || direction.is_settled())
            && !direction.body_replaced
            && direction.out.is_empty()
            && (direction.no_body || !direction.ended)
    }

    /// Whether the message has no body, and was not given one.
    pub(super) fn is_empty(&self, side: Side) -> bool {
        self.peek(side).no_body && self.has_ended(side)
    }

    /// Whether more of the body is wanted now: false pauses the reader.
    pub(super) fn wants_data(&self, side: Side) -> bool {
        let direction = self.peek(side);
        let limit = self.terms.buffer_limit;
        if direction.input_ended || direction.state == State::Local {
            return false;
        }
        match (direction.state, direction.mode) {
            _ if self.complete || direction.drops_input() => true,
            (_, BodyMode::FullDuplexStreamed) => direction.out_bytes < limit,
            (State::Headers, BodyMode::None) | (State::Trailers | State::BufferedBody, _) => false,
            (State::PartialBody, _) => direction.queued_bytes < limit,
            (State::Headers, BodyMode::BufferedPartial) | (_, BodyMode::Streamed) => {
                direction.held_bytes + direction.queued_bytes < limit
            }
            _ => true,
        }
    }

    /// Whether data read now is sent to the processor at once.
    pub(super) fn streams(&self, side: Side) -> bool {
        let direction = self.peek(side);
        let now = match direction.mode {
            BodyMode::FullDuplexStreamed => true,
            BodyMode::Streamed => direction.state != State::Headers || self.sends_without_waiting(),
            _ => false,
        };
        now && self.stream == Stream::Open && !self.observes()
    }

    /// Whether [`Exchange::take_outcome`] has something to say.
    pub(super) fn has_outcome(&self) -> bool {
        self.outcome.is_some()
    }

    /// What became of the exchange, if it does not go on as usual.
    pub(super) fn take_outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    /// Whether the body of a direction ends with an error.
    pub(super) fn is_broken(&self, side: Side) -> bool {
        self.broken || self.peek(side).abandoned
    }

    /// Whether the processor only looks on.
    pub(super) fn observes(&self) -> bool {
        self.terms.filter.observability_mode
    }

    /// How long the stream of a processor that only looks on outlives the exchange.
    pub(super) fn deferred_close_timeout(&self) -> Duration {
        self.terms.filter.deferred_close_timeout
    }

    /// The form of local replies.
    pub(super) fn form(&self) -> ReplyForm {
        self.form
    }

    // ---- inner workings

    fn direction(&mut self, side: Side) -> &mut Direction {
        match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        }
    }

    fn peek(&self, side: Side) -> &Direction {
        match side {
            Side::Request => &self.request,
            Side::Response => &self.response,
        }
    }

    fn sends_without_waiting(&self) -> bool {
        self.terms
            .filter
            .send_body_without_waiting_for_header_response
    }

    /// Takes `content-length` from a head whose body may change after it went on.
    fn strip_length(&mut self, side: Side) {
        let allow = self.terms.filter.allow_content_length_header;
        let direction = self.direction(side);
        let resized = match direction.mode {
            BodyMode::Buffered => !direction.send_headers,
            mode => mode.resizes(),
        };
        direction.trusts_length = resized && allow;
        if resized
            && !allow
            && let Some(head) = &mut direction.head
        {
            let headers = head.as_head_mut().headers_mut();
            headers.remove(header::CONTENT_LENGTH);
        }
    }

    fn is_upgrade(&self, head: &Head) -> bool {
        match head {
            Head::Request(parts) => {
                parts.method == http::Method::CONNECT || parts.headers.contains_key(header::UPGRADE)
            }
            Head::Response(parts) => {
                parts.status == StatusCode::SWITCHING_PROTOCOLS
                    || self.connect && parts.status.is_success()
            }
        }
    }

    fn is_finished(&self) -> bool {
        self.complete || self.request.is_settled() && self.response.is_settled()
    }

    fn close_if_done(&mut self) {
        // What only looks on is told the end of the exchange, later.
        let now = self.stream == Stream::Open && !self.observes();
        if now && self.is_finished() {
            self.stream = Stream::Closed;
            self.terms.stats.streams_closed.inc();
        }
    }
}

/// The stream ends with the exchange, however that ends.
impl Drop for Exchange {
    fn drop(&mut self) {
        if self.observes() {
            self.note_observation();
        } else {
            self.abandon_calls();
        }
        if self.stream == Stream::Open {
            self.terms.stats.streams_closed.inc();
        }
    }
}
