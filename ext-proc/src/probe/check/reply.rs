//! Replies, judged by what waits for one.

use std::time::Duration;

use attache_proto::{
    ext_proc::{
        BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse,
        ProcessingResponse, StreamedBodyResponse, TrailersResponse, body_mutation::Mutation,
        common_response::ResponseStatus, processing_response::Response,
    },
    ext_proc_filter::processing_mode::BodySendMode,
};

use super::{
    Checker, Local,
    headers::{Lines, Target},
};
use crate::probe::{
    code::Code,
    event::{Phase, Side},
};

/// The largest piece of body that is fit to be streamed.
const FIT_CHUNK: usize = 64 << 10;

pub(super) const SIDES: [Side; 2] = [Side::Request, Side::Response];

impl Checker {
    /// A message of the processor while the exchange goes on.
    pub(super) fn reply(&mut self, message: &ProcessingResponse) {
        let phase = Phase::of_response(message);
        self.unused_fields(message, phase);
        if let Some(metadata) = &message.dynamic_metadata {
            use prost_types::value::Kind;
            for (key, value) in &metadata.fields {
                if !matches!(value.kind, Some(Kind::StructValue(_))) {
                    let did = format!("It put `{key}` into dynamic_metadata, which is no struct.");
                    self.find(Code::MetadataNotStruct, phase, did);
                }
            }
        }
        if let Some(timeout) = &message.override_message_timeout {
            return self.more_time(timeout, message.response.is_some(), phase);
        }
        if self.local == Local::Open {
            return match &message.response {
                Some(Response::StreamedImmediateResponse(part)) => self.local_part(part, false),
                Some(Response::RequestBody(body))
                    if self.request.mode == BodySendMode::FullDuplexStreamed =>
                {
                    self.body(Side::Request, body);
                }
                _ => {
                    let did = "It sent something else within its own response.";
                    self.fail(Code::StreamedImmediateOrder, phase, did);
                }
            };
        }
        if let Some(mode) = &message.mode_override {
            if message.response.is_none() {
                return self.override_alone(mode);
            }
            self.override_mode(mode, phase);
        }
        match &message.response {
            Some(Response::RequestHeaders(reply)) => self.headers(Side::Request, reply),
            Some(Response::ResponseHeaders(reply)) => self.headers(Side::Response, reply),
            Some(Response::RequestBody(reply)) => self.body(Side::Request, reply),
            Some(Response::ResponseBody(reply)) => self.body(Side::Response, reply),
            Some(Response::RequestTrailers(reply)) => self.trailers(Side::Request, reply),
            Some(Response::ResponseTrailers(reply)) => self.trailers(Side::Response, reply),
            Some(Response::ImmediateResponse(answer)) => self.immediate(answer),
            Some(Response::StreamedImmediateResponse(part)) => self.local_part(part, true),
            None if message.dynamic_metadata.is_some()
                || !message.typed_dynamic_metadata.is_empty() =>
            {
                let did = "It sent metadata without a reply.";
                self.fail(Code::MetadataOnly, phase, did);
            }
            None => self.fail(
                Code::EmptyResponse,
                phase,
                "It sent a message without a reply.",
            ),
        }
    }

    fn unused_fields(&mut self, message: &ProcessingResponse, phase: Phase) {
        for (set, name) in [
            (message.request_drain, "request_drain"),
            (message.request_drain_requests, "request_drain_requests"),
            (message.request_drain_responses, "request_drain_responses"),
            (
                message.server_window_update.is_some(),
                "server_window_update",
            ),
        ] {
            if set {
                self.find(Code::UnusedField, phase, format!("It set {name}."));
            }
        }
    }

    // ---- replies to what was sent

    /// A reply matches something: its latency, and whether it was in time.
    pub(super) fn matched(&mut self, side: Side, phase: Phase, sent: Duration) {
        let now = self.now;
        let took = now.saturating_sub(sent);
        self.latencies.push((phase, took));
        if self.direction_mut(side).timer.stop(now) {
            let did = format!("It answered {phase} after {} ms.", took.as_millis());
            self.find(Code::LateReply, phase, did);
        }
    }

    /// A reply that nothing waits for.
    fn unexpected(&mut self, phase: Phase, seen_before: bool) {
        match seen_before {
            true => {
                let did = format!("It answered {phase} once more than it was sent.");
                self.fail(Code::SecondReply, phase, did);
            }
            false => {
                let mut waiting = SIDES
                    .into_iter()
                    .filter_map(|side| self.direction(side).waiting(side));
                let did = match waiting.next() {
                    Some(due) => format!("It sent a reply to {phase} where one to {due} was due."),
                    None => format!("It sent a reply to {phase}, which was not sent."),
                };
                self.fail(Code::WrongPhase, phase, did);
            }
        }
    }

    fn headers(&mut self, side: Side, reply: &HeadersResponse) {
        let phase = Phase::Headers(side);
        let Some(sent) = self.direction_mut(side).headers_at.take() else {
            let seen = self.direction(side).lines.is_some();
            return self.unexpected(phase, seen);
        };
        self.matched(side, phase, sent);
        let default = CommonResponse::default();
        let common = reply.response.as_ref().unwrap_or(&default);
        let replaces = common.status() == ResponseStatus::ContinueAndReplace;
        let target = if replaces {
            Target::Replaced
        } else {
            Target::Message
        };
        let length_before = self.content_length(side);
        self.common(side, phase, common);
        self.mutate(side, phase, common.header_mutation.as_ref(), target);
        let direction = self.direction_mut(side);
        direction.held = matches!(
            direction.mode,
            BodySendMode::Buffered | BodySendMode::BufferedPartial
        );
        match (replaces, &common.body_mutation) {
            (true, body) => {
                direction.replaced = true;
                direction.chunks.clear();
                if body.is_none() {
                    let did = "It gave CONTINUE_AND_REPLACE and no body_mutation.";
                    self.find(Code::ReplaceWithoutBody, phase, did);
                }
                return;
            }
            (false, Some(_)) => {
                let did = "It gave a body_mutation with the status CONTINUE.";
                self.find(Code::BodyInContinue, phase, did);
            }
            (false, None) => {}
        }
        self.length_after_headers(side, length_before);
    }

    /// A content-length that the processor has changed in its reply to headers.
    fn length_after_headers(&mut self, side: Side, before: Option<u64>) {
        let phase = Phase::Headers(side);
        let after = self.content_length(side);
        let direction = self.direction(side);
        let overridden = self.mode_override.is_some() && !self.configured_duplex;
        match direction.mode {
            BodySendMode::Streamed
            | BodySendMode::BufferedPartial
            | BodySendMode::FullDuplexStreamed
                if overridden =>
            {
                self.direction_mut(side).stale = after;
            }
            BodySendMode::Streamed
            | BodySendMode::BufferedPartial
            | BodySendMode::FullDuplexStreamed => {
                if after.is_some() && after != before {
                    self.find(Code::LengthDropped, phase, "It set content-length.");
                }
            }
            // The reply to the body may still change both.
            BodySendMode::Buffered => {}
            BodySendMode::None | BodySendMode::Grpc => {
                // HEAD responses say a length and have no body.
                let bodiless_answer = side == Side::Response && direction.no_body;
                if let Some(after) = after.filter(|after| Some(*after) != before)
                    && !bodiless_answer
                    && !(direction.no_body && after == 0)
                {
                    let did =
                        format!("It set content-length to {after} and left the body as it is.");
                    self.find(Code::WrongLength, phase, did);
                }
            }
        }
    }

    fn body(&mut self, side: Side, reply: &BodyResponse) {
        let phase = Phase::Body(side);
        let default = CommonResponse::default();
        let common = reply.response.as_ref().unwrap_or(&default);
        if self.direction(side).replaced {
            let did = "It answered a body after it had replaced it.";
            return self.fail(Code::AfterReplace, phase, did);
        }
        if self.direction(side).mode == BodySendMode::FullDuplexStreamed {
            return self.duplex_body(side, common);
        }
        let direction = self.direction_mut(side);
        let seen = direction.body_sent;
        if direction.headers_at.is_some() {
            let due = Phase::Headers(side);
            let did = format!("It sent a reply to {phase} where one to {due} was due.");
            return self.fail(Code::WrongPhase, phase, did);
        }
        let Some(chunk) = direction.chunks.pop_front() else {
            return self.unexpected(phase, seen);
        };
        self.matched(side, phase, chunk.at);
        let mutation = common
            .body_mutation
            .as_ref()
            .and_then(|body| body.mutation.as_ref());
        if let Some(Mutation::StreamedResponse(_)) = mutation {
            let mode = self.mode(side).as_str_name();
            let did = format!("It answered with streamed_response in {mode} mode.");
            return self.fail(Code::StreamedInOtherMode, phase, did);
        }
        self.common(side, phase, common);
        if common.status() == ResponseStatus::ContinueAndReplace {
            let did = "It gave CONTINUE_AND_REPLACE in a reply to a body.";
            self.find(Code::ReplaceInBody, phase, did);
        }
        self.mutate_in_body(side, common.header_mutation.as_ref());
        self.direction_mut(side).held = false;
        let len = match mutation {
            Some(Mutation::Body(body)) => body.len() as u64,
            Some(Mutation::ClearBody(true)) => 0,
            _ => chunk.len,
        };
        self.direction_mut(side).returned += len;
        if self.mode(side) == BodySendMode::Buffered {
            self.buffered_length(side, common.body_mutation.as_ref(), len);
        }
        if chunk.end_of_stream {
            self.stale_length(side);
        }
    }

    /// In BUFFERED mode content-length stays, and must fit.
    fn buffered_length(&mut self, side: Side, mutation: Option<&BodyMutation>, len: u64) {
        let phase = Phase::Body(side);
        let Some(length) = self.content_length(side).filter(|length| *length != len) else {
            return;
        };
        match mutation {
            Some(_) => {
                let did = format!("It gave a body of {len} bytes under content-length {length}.");
                self.find(Code::LengthMismatch, phase, did);
            }
            None => {
                let did = format!("It set content-length to {length} for a body of {len} bytes.");
                self.find(Code::WrongLength, phase, did);
            }
        }
    }

    /// An override has left a content-length in place that the body does not have.
    fn stale_length(&mut self, side: Side) {
        let direction = self.direction_mut(side);
        let returned = direction.returned;
        if let Some(length) = direction.stale.take().filter(|length| *length != returned) {
            let did = format!("It sent {returned} bytes of body under content-length {length}.");
            self.find(Code::StaleLength, Phase::Body(side), did);
        }
    }

    fn duplex_body(&mut self, side: Side, common: &CommonResponse) {
        let phase = Phase::Body(side);
        let direction = self.direction(side);
        if direction.headers_at.is_some() {
            let did = "It sent body before its reply to the headers.";
            return self.fail(Code::BodyBeforeHeaders, phase, did);
        }
        if direction.ended {
            let did = "It sent more body after it had ended the message.";
            return self.fail(Code::AfterEos, phase, did);
        }
        if !direction.body_sent {
            let did = "It sent body before any was sent to it.";
            return self.fail(Code::BodyUnasked, phase, did);
        }
        let mutation = common
            .body_mutation
            .as_ref()
            .and_then(|body| body.mutation.as_ref());
        let Some(Mutation::StreamedResponse(part)) = mutation else {
            let what = match mutation {
                Some(Mutation::Body(_)) => "body",
                Some(_) => "clear_body",
                None => "no body_mutation",
            };
            let did = format!("It answered with {what} in FULL_DUPLEX_STREAMED mode.");
            return self.fail(Code::PlainInDuplex, phase, did);
        };
        self.common(side, phase, common);
        self.mutate_in_body(side, common.header_mutation.as_ref());
        self.duplex_part(side, part);
    }

    fn duplex_part(&mut self, side: Side, part: &StreamedBodyResponse) {
        let phase = Phase::Body(side);
        if part.drain_complete {
            self.find(Code::UnusedField, phase, "It set drain_complete.");
        }
        if part.body.len() > FIT_CHUNK {
            let did = format!("It sent {} bytes of body in one piece.", part.body.len());
            self.find_once(Code::LargeChunk, phase, did);
        }
        let now = self.now;
        let direction = self.direction_mut(side);
        direction.returned += part.body.len() as u64;
        if !part.end_of_stream {
            return;
        }
        if direction.trailers.is_some() {
            let did = "It set end_of_stream in a body whose trailers had been sent to it.";
            return self.fail(Code::EosInsteadOfTrailers, phase, did);
        }
        direction.ended = true;
        match direction.body_ended {
            Some(sent) => self.latencies.push((phase, now.saturating_sub(sent))),
            None => {
                let did = "It set end_of_stream before the end of the body was sent to it.";
                self.find(Code::EndedEarly, phase, did);
            }
        }
        self.stale_length(side);
    }

    fn trailers(&mut self, side: Side, reply: &TrailersResponse) {
        let phase = Phase::Trailers(side);
        let direction = self.direction_mut(side);
        let duplex = direction.mode == BodySendMode::FullDuplexStreamed;
        let seen = direction.trailers.is_some();
        let chunks_due = !direction.chunks.is_empty();
        match direction.trailers_at.take().filter(|_| !chunks_due) {
            Some(sent) => {
                direction.ended = duplex;
                self.matched(side, phase, sent);
            }
            // It is taken in any state, and means nothing if there are none.
            None if duplex && !seen => return,
            None => return self.unexpected(phase, seen && !chunks_due),
        }
        let mut lines = self.direction_mut(side).trailers.take().unwrap_or_default();
        self.apply(
            &mut lines,
            phase,
            reply.header_mutation.as_ref(),
            Target::Message,
        );
        self.direction_mut(side).trailers = Some(lines);
        if duplex {
            self.stale_length(side);
        }
    }

    // ---- what replies have in common

    fn common(&mut self, side: Side, phase: Phase, common: &CommonResponse) {
        if common
            .trailers
            .as_ref()
            .is_some_and(|trailers| !trailers.headers.is_empty())
        {
            let did = "It gave trailers in a CommonResponse.";
            self.find(Code::CommonTrailers, phase, did);
        }
        if common.clear_route_cache && side == Side::Response {
            let did = "It set clear_route_cache in the response direction.";
            self.find(Code::ClearRouteCache, phase, did);
        } else if common.clear_route_cache && common.header_mutation.is_none() {
            let did = "It set clear_route_cache without a header_mutation.";
            self.find(Code::ClearRouteCache, phase, did);
        }
    }

    /// Headers can be changed by a reply to a body only while they are held.
    fn mutate_in_body(&mut self, side: Side, mutation: Option<&HeaderMutation>) {
        let phase = Phase::Body(side);
        let Some(mutation) = mutation.filter(|mutation| **mutation != HeaderMutation::default())
        else {
            return;
        };
        if self.direction(side).held {
            self.mutate(side, phase, Some(mutation), Target::Message);
        } else if self.direction(side).came_at_once() && is_of_length(mutation) {
            // A STREAMED body that was whole when the headers were answered is treated as a
            // BUFFERED one. The processor cannot know, and must have the length right then.
        } else {
            let did = "It changed headers in a reply to a body, when they had gone.";
            self.find_once(Code::LateHeaders, phase, did);
        }
    }

    fn mutate(
        &mut self,
        side: Side,
        phase: Phase,
        mutation: Option<&HeaderMutation>,
        target: Target,
    ) {
        let mut lines = self.direction_mut(side).lines.take().unwrap_or_default();
        self.apply(&mut lines, phase, mutation, target);
        self.direction_mut(side).lines = Some(lines);
    }

    fn apply(
        &mut self,
        lines: &mut Lines,
        phase: Phase,
        mutation: Option<&HeaderMutation>,
        target: Target,
    ) {
        let Some(mutation) = mutation else { return };
        let (now, findings) = (self.now, &mut self.findings);
        lines.apply(mutation, target, &self.setup.rules, &mut |code, did| {
            findings.push(code.at(now, phase, did));
        });
    }

    fn content_length(&self, side: Side) -> Option<u64> {
        self.direction(side).lines.as_ref()?.content_length()
    }
}

/// Whether it is about content-length and nothing else.
fn is_of_length(mutation: &HeaderMutation) -> bool {
    let set = mutation
        .set_headers
        .iter()
        .filter_map(|option| option.header.as_ref());
    set.map(|header| &header.key)
        .chain(&mutation.remove_headers)
        .all(|name| name.eq_ignore_ascii_case("content-length"))
}
