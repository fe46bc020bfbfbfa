//! What the processor's messages do.

use std::time::{Duration, Instant};

use attache_filter::{
    calls::{CallResult, Changes},
    changes::Snapshot,
};
use attache_proto::ext_proc::{
    BodyMutation, CommonResponse, HeaderMutation, ProcessingResponse, TrailersResponse,
    common_response::ResponseStatus, processing_response::Response,
};
use http::header;

use super::{Exchange, State, body::replacement, direction::Phase, fault::Fault};
use crate::client::{
    Side, metadata,
    mode::BodyMode,
    mutation::{self, Target},
    plan::RouteCacheAction,
};

impl Exchange {
    /// A message of this many bytes arrives next.
    pub(in crate::client) fn receives(&mut self, bytes: usize) {
        self.received = bytes;
    }

    /// A message arrived.
    pub(in crate::client) fn reply(&mut self, message: ProcessingResponse, now: Instant) {
        self.active = now;
        if self.complete || self.observes() {
            return;
        }
        if let Some(timeout) = message.override_message_timeout {
            // Whatever else such a message carries is ignored.
            self.extend_timeout(timeout, now);
            return;
        }
        let headers = self.request.state == State::Headers || self.response.state == State::Headers;
        if let Some(wish) = &message.mode_override
            && message.response.is_some()
            && headers
            && let Some(modes) = self.overriding(wish)
        {
            self.override_modes(modes);
        }
        metadata::receive(&self.terms, &self.context, &message);
        let result = match message.response {
            Some(Response::RequestHeaders(r)) => self.on_headers(Side::Request, r.response, now),
            Some(Response::ResponseHeaders(r)) => self.on_headers(Side::Response, r.response, now),
            Some(Response::RequestBody(r)) => self.on_body(Side::Request, r.response, now),
            Some(Response::ResponseBody(r)) => self.on_body(Side::Response, r.response, now),
            Some(Response::RequestTrailers(r)) => self.on_trailers(Side::Request, r, now),
            Some(Response::ResponseTrailers(r)) => self.on_trailers(Side::Response, r, now),
            Some(Response::ImmediateResponse(r)) => self.immediate(r, now),
            Some(Response::StreamedImmediateResponse(r)) => self.streamed_immediate(r, now),
            None => match &message.mode_override {
                Some(wish) if self.override_ahead(wish, now) => Ok(()),
                _ => Err(Fault::Spurious("unhandled_message")),
            },
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
        self.answered(side, Phase::Headers, now);
        let direction = self.direction(side);
        direction.state = State::Idle;
        if direction.abandoned {
            return Ok(());
        }
        if replace {
            return self.replace(side, common.body_mutation);
        }
        let direction = self.direction(side);
        if direction.is_duplex() {
            self.duplex_headers_answered(side, now);
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
            let limit = self.terms.buffer_limit;
            let direction = self.direction(side);
            match direction.mode {
                BodyMode::Buffered => {}
                BodyMode::BufferedPartial => {
                    if direction.held_bytes > limit {
                        self.send_whole(side, false, now);
                    }
                }
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

    fn on_trailers(
        &mut self,
        side: Side,
        response: TrailersResponse,
        now: Instant,
    ) -> Result<(), Fault> {
        let direction = self.peek(side);
        let duplex = direction.is_duplex() && direction.state != State::Headers;
        if duplex && (direction.ended || !direction.trailers_shown) {
            // There are none: this adds none, and does not end the body either.
            return Ok(());
        }
        if !duplex && direction.state != State::Trailers {
            return Err(Fault::SPURIOUS);
        }
        if let Some(mutation) = &response.header_mutation
            && let Some(mut trailers) = self.direction(side).trailers.take()
        {
            let mut rejected = 0;
            let rules = &self.terms.filter.mutation_rules;
            let before = self.context.records_changes();
            let before = before.then(|| Snapshot::of_map(&trailers));
            let result = mutation::apply(
                mutation,
                &mut *trailers,
                Target::Message,
                rules,
                &mut rejected,
            );
            self.terms.stats.rejected_header_mutations.inc_by(rejected);
            if let Some(before) = before {
                self.changes = changed(side, &before, &Snapshot::of_map(&trailers));
            }
            self.direction(side).trailers = Some(trailers);
            result?;
        }
        self.answered(side, Phase::Trailers, now);
        if duplex {
            self.note_body(side, 0, CallResult::Continued);
        }
        let direction = self.direction(side);
        direction.state = State::Idle;
        direction.release();
        Ok(())
    }

    /// CONTINUE_AND_REPLACE: the rest of the message is not shown, and has a new body if one
    /// is given.
    fn replace(&mut self, side: Side, mutation: Option<BodyMutation>) -> Result<(), Fault> {
        let limit = self.terms.buffer_limit;
        let mut new = mutation.and_then(replacement);
        if side == Side::Response && self.form.head {
            // A response to HEAD has no body, and cannot be given one.
            new = new.map(|_| bytes::Bytes::new());
        }
        let direction = self.direction(side);
        if new.is_none() && direction.has_lent() {
            return Err(Fault::BodyLost);
        }
        direction.mode = BodyMode::None;
        direction.send_trailers = false;
        match new {
            Some(body) if body.len() > limit => {
                self.too_large(side);
                return Ok(());
            }
            Some(body) => {
                direction.clear_queue();
                direction.body_replaced = true;
                direction.replace_held(body);
                if let Some(head) = &mut direction.head {
                    let headers = head.as_head_mut().headers_mut();
                    headers.remove(header::CONTENT_LENGTH);
                }
            }
            None => direction.hold_queue(),
        }
        direction.release();
        Ok(())
    }

    pub(super) fn mutate_head(
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
        let before = self.context.records_changes();
        let before = before.then(|| Snapshot::of(head.as_head()));
        let result = mutation::apply(mutation, head.as_head_mut(), target, rules, &mut rejected);
        // Streaming changes lengths: what the processor says of them cannot hold.
        if direction.mode.resizes() && !self.terms.filter.allow_content_length_header {
            head.as_head_mut()
                .headers_mut()
                .remove(header::CONTENT_LENGTH);
        }
        if let Some(before) = before {
            self.changes = changed(side, &before, &Snapshot::of(head.as_head()));
        }
        if rejected > 0 {
            self.terms.stats.rejected_header_mutations.inc_by(rejected);
        }
        Ok(result?)
    }

    pub(super) fn route_cache(&mut self, side: Side, common: &CommonResponse) {
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

/// What is different, where it was changed in a message of this direction.
fn changed(side: Side, before: &Snapshot, after: &Snapshot) -> Option<Box<Changes>> {
    let changes = before.changes_to(after);
    match side {
        Side::Request => Changes::of_request(changes),
        Side::Response => Changes::of_response(changes),
    }
}
