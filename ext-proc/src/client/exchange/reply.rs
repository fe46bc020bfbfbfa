//! What the processor's messages do.

use std::time::{Duration, Instant};

use attache_proto::ext_proc::{
    BodyMutation, CommonResponse, HeaderMutation, ProcessingResponse, TrailersResponse,
    body_mutation::Mutation, common_response::ResponseStatus, processing_response::Response,
};
use bytes::Bytes;
use http::header;

use super::{
    Exchange, State,
    direction::{Call, Phase, parse_length},
    fault::Fault,
};
use crate::client::{
    Side,
    mutation::{self, Target},
    plan::{BodyMode, RouteCacheAction},
};

impl Exchange {
    /// A message arrived.
    pub(in crate::client) fn reply(&mut self, message: ProcessingResponse, now: Instant) {
        if self.complete {
            return;
        }
        if let Some(timeout) = message.override_message_timeout {
            // Whatever else such a message carries is ignored.
            self.extend_timeout(timeout, now);
            return;
        }
        let result = match message.response {
            Some(Response::RequestHeaders(r)) => self.on_headers(Side::Request, r.response, now),
            Some(Response::ResponseHeaders(r)) => self.on_headers(Side::Response, r.response, now),
            Some(Response::RequestBody(r)) => self.on_body(Side::Request, r.response, now),
            Some(Response::ResponseBody(r)) => self.on_body(Side::Response, r.response, now),
            Some(Response::RequestTrailers(r)) => self.on_trailers(Side::Request, r, now),
            Some(Response::ResponseTrailers(r)) => self.on_trailers(Side::Response, r, now),
            Some(Response::ImmediateResponse(r)) => self.immediate(r, now),
            Some(Response::StreamedImmediateResponse(_)) => Err(Fault::Spurious(
                "streamed_immediate_response_is_not_supported",
            )),
            None => Err(Fault::Spurious("unhandled_message")),
        };
        match result {
            Ok(()) => {
                self.terms.stats.stream_msgs_received.inc();
            }
            Err(fault) => self.refuse(fault, now),
        }
        self.close_if_done();
    }

    fn extend_timeout(&mut self, timeout: prost_types::Duration, now: Instant) {
        let stats = self.terms.stats.clone();
        let timeout = Duration::try_from(timeout).unwrap_or_default();
        let valid =
            Duration::from_millis(1) <= timeout && timeout <= self.terms.filter.max_message_timeout;
        let waiting = [&mut self.request, &mut self.response]
            .into_iter()
            .find(|direction| direction.deadline.is_some() && !direction.extended);
        match waiting.filter(|_| valid) {
            Some(direction) => {
                direction.deadline = Some(now + timeout);
                direction.extended = true;
                stats.override_message_timeout_received.inc();
            }
            None => {
                stats.override_message_timeout_ignored.inc();
            }
        }
    }

    fn on_headers(
        &mut self,
        side: Side,
        common: Option<CommonResponse>,
        now: Instant,
    ) -> Result<(), Fault> {
        if self.peek(side).state != State::Headers {
            return Err(Fault::SPURIOUS);
        }
        let common = common.unwrap_or_default();
        let replace = common.status() == ResponseStatus::ContinueAndReplace;
        let target = if replace {
            Target::Replaced
        } else {
            Target::Message
        };
        self.mutate_head(side, common.header_mutation.as_ref(), target)?;
        self.route_cache(side, &common);
        self.answered(side, 0, now);
        let limit = self.terms.filter.buffer_limit;
        let direction = self.direction(side);
        direction.state = State::Idle;
        if direction.abandoned {
            return Ok(());
        }
        if replace {
            direction.clear_queue();
            direction.mode = BodyMode::None;
            direction.send_trailers = false;
            if let Some(body) = common.body_mutation.and_then(replacement) {
                if body.len() > limit {
                    self.too_large(side);
                    return Ok(());
                }
                self.replace_body(side, body);
            }
            self.direction(side).release();
        } else if !direction.queue.is_empty() {
            direction.state = State::StreamedBody;
            self.await_next(side, now);
            self.direction(side).release();
        } else if direction.no_body {
            direction.release();
        } else if direction.input_ended && direction.mode != BodyMode::None {
            // All is here already: one message, whatever the mode.
            if direction.held.is_empty() && direction.trailers.is_some() {
                self.pass_trailers(side, now);
            } else {
                let end = direction.trailers.is_none();
                self.send_whole(side, end, now);
            }
        } else {
            match direction.mode {
                BodyMode::Buffered => {}
                BodyMode::Streamed => {
                    let held = direction.take_held();
                    direction.release();
                    self.send_chunk(side, held, false, now);
                }
                _ => self.pass_trailers(side, now),
            }
        }
        Ok(())
    }

    fn on_body(
        &mut self,
        side: Side,
        common: Option<CommonResponse>,
        now: Instant,
    ) -> Result<(), Fault> {
        let common = common.unwrap_or_default();
        match self.peek(side).state {
            State::BufferedBody => self.on_whole_body(side, common, now),
            State::StreamedBody => self.on_chunk(side, common, now),
            State::Idle | State::Headers | State::Trailers => Err(Fault::SPURIOUS),
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
        if let Some(mutation) = &common.body_mutation {
            self.check_mutated_length(side, mutation)?;
        }
        self.route_cache(side, &common);
        self.answered(side, 0, now);
        let limit = self.terms.filter.buffer_limit;
        let direction = self.direction(side);
        direction.state = State::Idle;
        if let Some(body) = common.body_mutation.and_then(replacement) {
            if body.len() > limit {
                self.too_large(side);
                return Ok(());
            }
            direction.replace_held(body);
        }
        self.pass_trailers(side, now);
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
        let Some(chunk) = direction.queue.pop_front() else {
            return Err(Fault::SPURIOUS);
        };
        direction.queued_bytes = direction.queued_bytes.saturating_sub(chunk.data.len());
        let data = match mutation {
            Some(Mutation::Body(body)) => body,
            Some(Mutation::ClearBody(true)) => Bytes::new(),
            _ => chunk.data,
        };
        direction.let_out(data);
        self.answered(side, 0, now);
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
    fn await_next(&mut self, side: Side, now: Instant) {
        let deadline = now + self.terms.filter.message_timeout;
        let direction = self.direction(side);
        direction.deadline = Some(deadline);
        direction.extended = false;
        direction.call = Some(Call {
            phase: Phase::Body,
            started: now,
        });
    }

    fn on_trailers(
        &mut self,
        side: Side,
        response: TrailersResponse,
        now: Instant,
    ) -> Result<(), Fault> {
        if self.peek(side).state != State::Trailers {
            return Err(Fault::SPURIOUS);
        }
        if let Some(mutation) = &response.header_mutation
            && let Some(mut trailers) = self.direction(side).trailers.take()
        {
            let mut rejected = 0;
            let rules = &self.terms.filter.mutation_rules;
            let result = mutation::apply(
                mutation,
                &mut trailers,
                Target::Message,
                rules,
                &mut rejected,
            );
            self.terms.stats.rejected_header_mutations.inc_by(rejected);
            self.direction(side).trailers = Some(trailers);
            result?;
        }
        self.answered(side, 0, now);
        let direction = self.direction(side);
        direction.state = State::Idle;
        direction.release();
        Ok(())
    }

    fn mutate_head(
        &mut self,
        side: Side,
        mutation: Option<&HeaderMutation>,
        target: Target,
    ) -> Result<(), Fault> {
        let Some(mutation) = mutation else {
            return Ok(());
        };
        let direction = match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        };
        let Some(head) = &mut direction.head else {
            return Ok(());
        };
        let mut rejected = 0;
        let rules = &self.terms.filter.mutation_rules;
        let result = mutation::apply(mutation, head.as_head_mut(), target, rules, &mut rejected);
        // Streaming changes lengths: what the processor says of them cannot hold.
        if direction.mode == BodyMode::Streamed && !self.terms.filter.allow_content_length_header {
            head.as_head_mut()
                .headers_mut()
                .remove(header::CONTENT_LENGTH);
        }
        if rejected > 0 {
            self.terms.stats.rejected_header_mutations.inc_by(rejected);
        }
        Ok(result?)
    }

    fn replace_body(&mut self, side: Side, body: Bytes) {
        let direction = self.direction(side);
        if let Some(head) = &mut direction.head {
            head.as_head_mut()
                .headers_mut()
                .remove(header::CONTENT_LENGTH);
        }
        direction.body_replaced = true;
        direction.replace_held(body);
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

    fn route_cache(&mut self, side: Side, common: &CommonResponse) {
        if side == Side::Response {
            return;
        }
        let stats = &self.terms.stats;
        let mutated = common.header_mutation.is_some();
        match self.terms.filter.route_cache_action {
            RouteCacheAction::Default if common.clear_route_cache && mutated => {
                self.context.clear_route();
            }
            RouteCacheAction::Default if common.clear_route_cache => {
                stats.clear_route_cache_ignored.inc();
            }
            RouteCacheAction::Clear if mutated => self.context.clear_route(),
            RouteCacheAction::Retain if common.clear_route_cache => {
                stats.clear_route_cache_disabled.inc();
            }
            _ => {}
        }
    }
}

/// The new body that a mutation gives; `None` leaves the body as it is.
fn replacement(mutation: BodyMutation) -> Option<Bytes> {
    match mutation.mutation? {
        Mutation::Body(body) => Some(body),
        Mutation::ClearBody(true) => Some(Bytes::new()),
        Mutation::ClearBody(false) | Mutation::StreamedResponse(_) => None,
    }
}
