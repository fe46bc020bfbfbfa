//! What is shown to the processor, and the calls that it makes.

use std::time::{Duration, Instant};

use attache_filter::context::PolicyCall;
use bytes::Bytes;

use super::{
    Exchange, Stream,
    direction::{Call, Chunk, Phase, State},
};
use crate::client::{
    Side,
    encode::{self, Envelope},
    metadata,
};

impl Exchange {
    pub(super) fn envelope(&mut self) -> Envelope {
        let first = !std::mem::replace(&mut self.config_sent, true);
        Envelope {
            protocol_config: first.then(|| (self.terms.modes, self.sends_without_waiting())),
            metadata: metadata::forward(&self.terms, &self.context),
            ..Envelope::default()
        }
    }

    pub(super) fn send_headers(&mut self, side: Side, end: bool, now: Instant) {
        let envelope = self.envelope();
        if let Some(head) = &self.peek(side).head {
            let forward = &self.terms.filter.forward;
            let message = encode::headers(side, head.as_head(), end, forward, &envelope);
            self.outbox.push(message);
            self.direction(side).state = State::Headers;
            self.sent(side, Phase::Headers, now);
        }
    }

    /// Sends a piece of a streamed body as it arrived.
    pub(super) fn send_piece(&mut self, side: Side, data: Bytes, end: bool, now: Instant) {
        if end && !data.is_empty() && !self.peek(side).end_comes_with_data {
            self.send_chunk(side, data, false, now);
            self.send_chunk(side, Bytes::new(), true, now);
        } else {
            self.send_chunk(side, data, end, now);
        }
    }

    pub(super) fn send_chunk(&mut self, side: Side, data: Bytes, end: bool, now: Instant) {
        if data.is_empty() && !end {
            return;
        }
        let envelope = self.envelope();
        encode::body(
            side,
            std::iter::once(&data),
            end,
            &envelope,
            &mut self.outbox,
        );
        let direction = self.direction(side);
        direction.queued_bytes += data.len();
        direction.queue.push_back(Chunk { data, end });
        if direction.state == State::Idle {
            direction.state = State::StreamedBody;
        }
        self.sent(side, Phase::Body, now);
    }

    /// Sends everything held as one message, and keeps it until the answer.
    pub(super) fn send_whole(&mut self, side: Side, end: bool, now: Instant) {
        let envelope = self.envelope();
        let held = match side {
            Side::Request => &self.request.held,
            Side::Response => &self.response.held,
        };
        encode::body(side, held.iter(), end, &envelope, &mut self.outbox);
        self.direction(side).state = State::BufferedBody;
        self.sent(side, Phase::Body, now);
    }

    /// Trailers are next: shows them if wanted, else lets everything go on.
    pub(super) fn pass_trailers(&mut self, side: Side, now: Instant) {
        let direction = self.direction(side);
        if !direction.send_trailers || direction.trailers.is_none() {
            direction.release();
            return;
        }
        let envelope = self.envelope();
        if let Some(trailers) = &self.peek(side).trailers {
            let forward = &self.terms.filter.forward;
            let message = encode::trailers(side, trailers, forward, &envelope);
            self.outbox.push(message);
            self.direction(side).state = State::Trailers;
            self.sent(side, Phase::Trailers, now);
        }
    }

    /// Counts a message, starts its timer and its entry in the log.
    pub(super) fn sent(&mut self, side: Side, phase: Phase, now: Instant) {
        if self.stream == Stream::Unopened {
            self.stream = Stream::Open;
            self.terms.stats.streams_started.inc();
        }
        self.terms.stats.stream_msgs_sent.inc();
        let deadline = now + self.terms.filter.message_timeout;
        let direction = self.direction(side);
        direction.deadline = Some(deadline);
        direction.extended = false;
        direction.call = Some(Call {
            phase,
            started: now,
        });
    }

    /// A call of a direction ended: stops its timer and notes it.
    pub(super) fn answered(&mut self, side: Side, status: i32, now: Instant) {
        let direction = self.direction(side);
        direction.deadline = None;
        let Some(call) = direction.call.take() else {
            return;
        };
        let latency = now.saturating_duration_since(call.started);
        if call.phase == Phase::Body {
            let sum = direction.body_latency.get_or_insert_default();
            *sum += latency;
            if status != 0 || direction.queue.is_empty() && direction.input_ended {
                self.note_body(side, status);
            }
        } else {
            self.note(side, call.phase, latency, status);
        }
    }

    /// Notes the calls of a body, which are one entry.
    pub(super) fn note_body(&mut self, side: Side, status: i32) {
        if let Some(latency) = self.direction(side).body_latency.take() {
            self.note(side, Phase::Body, latency, status);
        }
    }

    pub(super) fn note(&self, side: Side, phase: Phase, latency: Duration, status: i32) {
        let phase = match (side, phase) {
            (Side::Request, Phase::Headers) => "request_headers",
            (Side::Request, Phase::Body) => "request_body",
            (Side::Request, Phase::Trailers) => "request_trailers",
            (Side::Response, Phase::Headers) => "response_headers",
            (Side::Response, Phase::Body) => "response_body",
            (Side::Response, Phase::Trailers) => "response_trailers",
        };
        let filter = self.terms.filter.name.clone();
        self.context
            .record_call(PolicyCall::one(filter, phase, latency, status));
    }
}
