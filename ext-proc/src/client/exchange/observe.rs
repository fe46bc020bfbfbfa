//! A processor that only looks on: it is shown everything, and nothing waits for it.

use std::time::Duration;

use attache_filter::calls::{CallResult, Noted, Phase};
use bytes::Bytes;

use super::{Exchange, Stream};
use crate::client::{
    Side, encode,
    mode::{BodyMode, Modes},
};

/// Only bodies that are shown piece by piece can be shown without holding them back.
pub(super) fn modes(modes: Modes) -> Modes {
    let body = |mode| match mode {
        BodyMode::Streamed => BodyMode::Streamed,
        _ => BodyMode::None,
    };
    Modes {
        request_body: body(modes.request_body),
        response_body: body(modes.response_body),
        ..modes
    }
}

impl Exchange {
    pub(super) fn observe_headers(&mut self, side: Side, end: bool) {
        if self.peek(side).send_headers && self.may_show() {
            self.put_headers(side, end);
            self.shown(side);
        }
        self.direction(side).release();
    }

    pub(super) fn observe_data(&mut self, side: Side, data: Bytes, end: bool) {
        let direction = self.peek(side);
        if direction.mode == BodyMode::Streamed {
            if end && !data.is_empty() && !direction.end_comes_with_data {
                self.observe_piece(side, &data, false);
                self.observe_piece(side, &Bytes::new(), true);
            } else if end || !data.is_empty() {
                self.observe_piece(side, &data, end);
            }
        }
        let direction = self.direction(side);
        direction.let_out(data);
        direction.end_if_complete();
    }

    fn observe_piece(&mut self, side: Side, data: &Bytes, end: bool) {
        if self.may_show() {
            let envelope = self.envelope(side);
            let chunks = std::iter::once(data);
            encode::body(side, chunks, end, &envelope, &mut self.outbox);
            self.shown(side);
        }
    }

    pub(super) fn observe_trailers(&mut self, side: Side) {
        if self.peek(side).send_trailers && self.may_show() {
            self.put_trailers(side);
            self.shown(side);
        }
        self.direction(side).end_if_complete();
    }

    /// Whether there is room for a message. Where a slow processor has let too much pile up,
    /// it is left out and counted.
    fn may_show(&self) -> bool {
        if self.stream == Stream::Closed {
            return false;
        }
        let room = self.outbox.bytes() <= self.terms.buffer_limit;
        if !room {
            self.terms.stats.observability_msgs_dropped.inc();
        }
        room
    }

    fn shown(&mut self, side: Side) {
        let bytes = self.count_message();
        let calls = self.direction(side).body_calls.get_or_insert_default();
        calls.count += 1;
        calls.sent += bytes as u64;
    }

    /// Notes in the log what was shown; nothing was answered.
    pub(super) fn note_observation(&mut self) {
        let (mut count, mut sent_bytes) = (0, 0);
        for calls in [&self.request.body_calls, &self.response.body_calls]
            .into_iter()
            .flatten()
        {
            count += calls.count;
            sent_bytes += calls.sent;
        }
        if count == 0 || !self.context.records_calls() {
            return;
        }
        let noted = Noted {
            begun: self.begun,
            ended: self.active,
            count,
            latency: Duration::ZERO,
            max_latency: Duration::ZERO,
            result: CallResult::Continued,
            status: 0,
            sent_bytes,
            received_bytes: 0,
            span: self.terms.span,
            changes: None,
        };
        let recorder = &self.terms.stats.calls;
        recorder.note(&self.context, Phase::Observability, noted);
    }
}
