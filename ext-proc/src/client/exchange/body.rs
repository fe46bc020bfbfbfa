//! What the processor's answers to bodies do.

use std::time::Instant;

use attache_filter::calls::CallResult;
use attache_proto::ext_proc::{
    BodyMutation, CommonResponse, body_mutation::Mutation, common_response::ResponseStatus,
};
use bytes::Bytes;
use http::header;

use super::{
    Exchange, State,
    direction::{Call, Phase, parse_length},
    fault::Fault,
};
use crate::client::{Side, mode::BodyMode, mutation::Target};

impl Exchange {
    pub(super) fn on_body(
        &mut self,
        side: Side,
        common: Option<CommonResponse>,
        now: Instant,
    ) -> Result<(), Fault> {
        let common = common.unwrap_or_default();
        match self.peek(side).state {
            State::BufferedBody | State::PartialBody => self.on_whole_body(side, common, now),
            State::StreamedBody if self.peek(side).is_duplex() => {
                self.on_duplex_body(side, common, now)
            }
            State::StreamedBody => self.on_chunk(side, common, now),
            State::Idle | State::Headers | State::Trailers | State::Local => Err(Fault::SPURIOUS),
        }
    }

    fn on_whole_body(
        &mut self,
        side: Side,
        common: CommonResponse,
        now: Instant,
    ) -> Result<(), Fault> {
        if !self.peek(side).released {
            let replace = common.status() == ResponseStatus::ContinueAndReplace;
            let target = if replace {
                Target::Replaced
            } else {
                Target::Message
            };
            self.mutate_head(side, common.header_mutation.as_ref(), target)?;
        }
        let whole = self.peek(side).state == State::BufferedBody;
        if let Some(mutation) = &common.body_mutation
            && whole
        {
            self.check_mutated_length(side, mutation)?;
        }
        self.route_cache(side, &common);
        self.answered(side, Phase::Body, now);
        let limit = self.terms.buffer_limit;
        let direction = self.direction(side);
        direction.state = State::Idle;
        if let Some(body) = common.body_mutation.and_then(replacement) {
            if direction.mode != BodyMode::BufferedPartial && body.len() > limit {
                self.too_large(side);
                return Ok(());
            }
            direction.replace_held(body);
        }
        if whole {
            self.pass_trailers(side, now);
            return Ok(());
        }
        // What has come since, and is still to come, passes unseen.
        self.note_body(side, 0, CallResult::Continued);
        let direction = self.direction(side);
        direction.mode = BodyMode::None;
        direction.hold_queue();
        self.pass_trailers(side, now);
        self.direction(side).release();
        Ok(())
    }

    fn on_chunk(&mut self, side: Side, common: CommonResponse, now: Instant) -> Result<(), Fault> {
        let mutation = common.body_mutation.and_then(|body| body.mutation);
        if let Some(Mutation::StreamedResponse(_)) = mutation {
            return Err(Fault::Spurious(
                "spurious_message: streamed_response is received while body_mode  is not \
                 FULL_DUPLEX_STREAMED",
            ));
        }
        let direction = self.direction(side);
        let Some(chunk) = direction.dequeue() else {
            return Err(Fault::SPURIOUS);
        };
        let data = match mutation {
            Some(Mutation::Body(body)) => body,
            Some(Mutation::ClearBody(true)) => Bytes::new(),
            _ => chunk.data,
        };
        direction.let_out(data);
        self.answered(side, Phase::Body, now);
        let direction = self.direction(side);
        if !direction.queue.is_empty() {
            self.await_next(side, now);
            return Ok(());
        }
        direction.state = State::Idle;
        if direction.trailers.is_some() {
            self.pass_trailers(side, now);
        } else if chunk.end {
            direction.end_if_complete();
        }
        Ok(())
    }

    /// Chunks remain unanswered: the timer goes on. (Envoy stops it and may wait for ever.)
    pub(super) fn await_next(&mut self, side: Side, now: Instant) {
        let deadline = now + self.terms.filter.message_timeout;
        let direction = self.direction(side);
        direction.deadline = Some(deadline);
        direction.extended = false;
        direction.call = Some(Call {
            phase: Phase::Body,
            started: now,
            sent: 0,
        });
    }

    /// A changed body must fit the `content-length` that goes with it.
    fn check_mutated_length(&self, side: Side, mutation: &BodyMutation) -> Result<(), Fault> {
        let direction = self.peek(side);
        let head = direction.head.as_ref().filter(|_| !direction.released);
        let declared = head
            .and_then(|head| head.as_head().headers().get(header::CONTENT_LENGTH))
            .and_then(parse_length);
        // Every other mutation counts as no bytes, `clear_body: false` too.
        let actual = match &mutation.mutation {
            Some(Mutation::Body(body)) => body.len(),
            _ => 0,
        };
        if declared.is_some_and(|declared| declared != actual as u64) {
            return Err(Fault::LengthMismatch);
        }
        Ok(())
    }
}

/// The new body that a mutation gives; `None` leaves the body as it is.
pub(super) fn replacement(mutation: BodyMutation) -> Option<Bytes> {
    match mutation.mutation? {
        Mutation::Body(body) => Some(body),
        Mutation::ClearBody(true) => Some(Bytes::new()),
        Mutation::ClearBody(false) | Mutation::StreamedResponse(_) => None,
    }
}
