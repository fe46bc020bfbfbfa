//! What is shown to the processor, and the calls that it makes.

use std::time::Instant;

use attache_filter::calls::{self, CallResult, Noted};
use bytes::Bytes;

use super::{
    Exchange, Stream,
    direction::{BodyCalls, Call, Direction, Phase, State},
};
use crate::client::{
    Side, attributes,
    encode::{self, Envelope},
    metadata,
};

impl Exchange {
    pub(super) fn envelope(&mut self, side: Side) -> Envelope {
        let first = !std::mem::replace(&mut self.config_sent, true);
        let observability = self.observes();
        let config = || (self.terms.modes, self.sends_without_waiting());
        let protocol_config = (first && !observability).then(config);
        let first = !std::mem::replace(&mut self.direction(side).attributes_sent, true);
        let attributes = if first {
            let head = self.peek(side).head.as_ref();
            attributes::of_first_message(&self.terms, &self.context, side, head)
        } else {
            Bytes::new()
        };
        Envelope {
            protocol_config,
            observability,
            metadata: metadata::forward(&self.terms, &self.context),
            attributes,
        }
    }

    pub(super) fn put_headers(&mut self, side: Side, end: bool) {
        let envelope = self.envelope(side);
        if let Some(head) = &self.peek(side).head {
            let forward = &self.terms.filter.forward;
            let message = encode::headers(side, head.as_head(), end, forward, &envelope);
            self.outbox.push(message);
        }
    }

    pub(super) fn put_trailers(&mut self, side: Side) {
        let envelope = self.envelope(side);
        if let Some(trailers) = &self.peek(side).trailers {
            let forward = &self.terms.filter.forward;
            let message = encode::trailers(side, &**trailers, forward, &envelope);
            self.outbox.push(message);
        }
    }

    pub(super) fn send_headers(&mut self, side: Side, end: bool, now: Instant) {
        self.put_headers(side, end);
        self.direction(side).state = State::Headers;
        self.sent(side, Phase::Headers, now);
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
        let envelope = self.envelope(side);
        let chunk = std::iter::once(&data);
        encode::body(side, chunk, end, &envelope, &mut self.outbox);
        let direction = self.direction(side);
        if direction.is_duplex() {
            direction.owed += data.len() as i64;
            direction.duplex_begun = true;
            direction.end_shown |= end;
        } else {
            direction.enqueue(data, end);
        }
        if direction.state == State::Idle {
            direction.state = State::StreamedBody;
        }
        self.sent(side, Phase::Body, now);
    }

    /// Sends everything held as one message, and keeps it until the answer.
    pub(super) fn send_whole(&mut self, side: Side, end: bool, now: Instant) {
        let envelope = self.envelope(side);
        let held = match side {
            Side::Request => &self.request.held,
            Side::Response => &self.response.held,
        };
        encode::body(side, held.iter(), end, &envelope, &mut self.outbox);
        let direction = self.direction(side);
        direction.state = if direction.input_ended {
            State::BufferedBody
        } else {
            State::PartialBody
        };
        self.sent(side, Phase::Body, now);
    }

    /// Trailers are next: shows them if wanted, else lets everything go on.
    pub(super) fn pass_trailers(&mut self, side: Side, now: Instant) {
        let direction = self.direction(side);
        if direction.send_trailers && direction.trailers.is_some() {
            self.put_trailers(side);
            self.direction(side).state = State::Trailers;
            self.sent(side, Phase::Trailers, now);
        } else {
            direction.release();
        }
    }

    /// Counts a message that was put into the outbox; its size.
    pub(super) fn count_message(&mut self) -> usize {
        if self.stream == Stream::Unopened {
            self.stream = Stream::Open;
            self.terms.stats.streams_started.inc();
        }
        self.terms.stats.stream_msgs_sent.inc();
        self.outbox.take_new()
    }

    /// Counts a message, starts its timer and its entry in the log.
    pub(super) fn sent(&mut self, side: Side, phase: Phase, now: Instant) {
        let bytes = self.count_message();
        let deadline = now + self.terms.filter.message_timeout;
        let direction = self.direction(side);
        // In full duplex no answer belongs to one message: what bounds it is silence.
        direction.deadline = (!direction.is_duplex()).then_some(deadline);
        direction.extended = false;
        let mut of_body = if phase == Phase::Body {
            bytes as u64
        } else {
            0
        };
        if let Some(unanswered) = &direction.call {
            of_body += u64::from(unanswered.sent);
        }
        if of_body > 0 {
            let calls = direction.body_calls.get_or_insert_default();
            calls.sent += of_body;
            calls.begun.get_or_insert(now);
        }
        direction.call = Some(Call {
            phase,
            started: now,
            sent: if phase == Phase::Body {
                0
            } else {
                bytes as u32
            },
        });
    }

    /// A call of a direction was answered: stops its timer and notes it. Where a later message
    /// has begun a call of its own, it is from then that the latency counts, as in Envoy.
    pub(super) fn answered(&mut self, side: Side, phase: Phase, now: Instant) {
        let received = std::mem::take(&mut self.received) as u64;
        let direction = match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        };
        direction.deadline = None;
        let started = direction.call.as_ref().map_or(now, |call| call.started);
        let call = direction.call.take_if(|call| call.phase == phase);
        let latency = now.saturating_duration_since(started);
        let result = CallResult::Continued;
        let recorder = &self.terms.stats.calls;
        recorder.count(named(side, phase), result, latency);
        if phase == Phase::Body {
            let calls = direction.body_calls.get_or_insert_default();
            calls.add(now, latency, received);
            let ended = direction.queue.is_empty() && direction.input_ended;
            if ended && !direction.is_duplex() {
                self.note_body(side, 0, result);
            }
        } else {
            let mut calls = BodyCalls {
                sent: call.map_or(0, |call| call.sent.into()),
                ..BodyCalls::default()
            };
            calls.add(now, latency, received);
            self.note(side, phase, &calls, 0, result);
        }
    }

    /// The calls of a direction ended without their answers.
    pub(super) fn end_calls(&mut self, side: Side, status: i32, result: CallResult, now: Instant) {
        let direction = match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        };
        direction.deadline = None;
        // Of a body, the last call's end is noted: that of answered calls stays.
        let mut of_body = (0, CallResult::Continued);
        if let Some(call) = direction.call.take() {
            let latency = now.saturating_duration_since(call.started);
            let recorder = &self.terms.stats.calls;
            recorder.count(named(side, call.phase), result, latency);
            if call.phase == Phase::Body {
                let calls = direction.body_calls.get_or_insert_default();
                calls.add(now, latency, 0);
                of_body = (status, result);
            } else {
                let mut calls = BodyCalls {
                    sent: call.sent.into(),
                    ..BodyCalls::default()
                };
                calls.add(now, latency, 0);
                self.note(side, call.phase, &calls, status, result);
            }
        }
        self.note_body(side, of_body.0, of_body.1);
    }

    /// Notes the calls of a body, which are one entry.
    pub(super) fn note_body(&mut self, side: Side, status: i32, result: CallResult) {
        if let Some(calls) = self.direction(side).body_calls.take() {
            self.note(side, Phase::Body, &calls, status, result);
        }
    }

    /// Nobody waits for the calls any more that are not answered.
    pub(super) fn abandon_calls(&mut self) {
        let pending = |direction: &Direction| direction.call.is_some();
        if pending(&self.request) || pending(&self.response) {
            let now = crate::client::drive::now();
            self.end_all_calls(CANCELLED, CallResult::Abandoned, now);
        }
    }

    fn note(
        &mut self,
        side: Side,
        phase: Phase,
        calls: &BodyCalls,
        status: i32,
        result: CallResult,
    ) {
        let changes = self.changes.take();
        if !self.context.records_calls() {
            return;
        }
        let noted = Noted {
            begun: calls.begun.unwrap_or(self.active),
            ended: calls.ended.unwrap_or(self.active),
            count: calls.count,
            latency: calls.latency,
            max_latency: calls.max_latency,
            result,
            status,
            sent_bytes: calls.sent,
            received_bytes: calls.received,
            span: self.terms.span,
            changes,
        };
        let recorder = &self.terms.stats.calls;
        recorder.note(&self.context, named(side, phase), noted);
    }
}

const CANCELLED: i32 = 1;

/// A phase by its name for logs and metrics.
fn named(side: Side, phase: Phase) -> calls::Phase {
    match (side, phase) {
        (Side::Request, Phase::Headers) => calls::Phase::RequestHeaders,
        (Side::Request, Phase::Body) => calls::Phase::RequestBody,
        (Side::Request, Phase::Trailers) => calls::Phase::RequestTrailers,
        (Side::Response, Phase::Headers) => calls::Phase::ResponseHeaders,
        (Side::Response, Phase::Body) => calls::Phase::ResponseBody,
        (Side::Response, Phase::Trailers) => calls::Phase::ResponseTrailers,
    }
}
