//! A response that the processor gives itself, piece by piece (`StreamedImmediateResponse`).

use std::time::Instant;

use attache_filter::calls::CallResult;
use attache_proto::{
    core::{HeaderMap as WireMap, HeaderValueOption},
    ext_proc::{
        HeaderMutation, HttpHeaders, StreamedImmediateResponse,
        streamed_immediate_response::Response as Part,
    },
};
use http::{HeaderMap, StatusCode, header};

use super::{Exchange, Outcome, State, direction::parse_length, fault::Fault};
use crate::client::{
    Side,
    mode::BodyMode,
    mutation::{self, MutationError, Target},
};

impl Exchange {
    pub(super) fn streamed_immediate(
        &mut self,
        message: StreamedImmediateResponse,
        now: Instant,
    ) -> Result<(), Fault> {
        let begun = self.response.state == State::Local;
        if !begun && self.request.state != State::Headers {
            return Err(Fault::SPURIOUS);
        }
        match message.response {
            Some(Part::HeadersResponse(head)) if !begun => self.begin_local(head, now),
            Some(_) if !begun => Err(Fault::Spurious(
                "local_response_body_received_before_headers",
            )),
            Some(Part::BodyResponse(piece)) => {
                self.spend_length(piece.body.len())?;
                if !self.form.head {
                    self.response.let_out(piece.body);
                }
                if piece.end_of_stream {
                    self.end_local()?;
                }
                Ok(())
            }
            Some(Part::TrailersResponse(trailers)) => {
                let mut map = HeaderMap::new();
                self.set_all(trailers, &mut map)?;
                if !map.is_empty() {
                    self.response.trailers = Some(Box::new(map));
                }
                self.end_local()
            }
            Some(Part::HeadersResponse(_)) | None => Err(Fault::SPURIOUS),
        }
    }

    fn begin_local(&mut self, head: HttpHeaders, now: Instant) -> Result<(), Fault> {
        let mode = self.request.mode;
        let streams = matches!(mode, BodyMode::None | BodyMode::FullDuplexStreamed);
        if !streams && !head.end_of_stream {
            return Err(Fault::Spurious(
                "spurious_message: streaming local response body is only supported in NONE or \
                 FULL_DUPLEX_STREAMED modes",
            ));
        }
        let headers = head.headers.unwrap_or_default();
        let names_status = headers.headers.iter().any(|header| header.key == ":status");
        let mut parts = http::Response::new(()).into_parts().0;
        // No processor can set this one: if it is there in the end, the status was not set.
        let unset = StatusCode::from_u16(999).unwrap_or_default();
        parts.status = unset;
        self.set_all(headers, &mut parts)?;
        if parts.status == unset {
            return Err(match names_status {
                true => MutationError::SetFailed.into(),
                false => Fault::NoStatus,
            });
        }
        // Framing belongs to the connection.
        parts.headers.remove(header::TRANSFER_ENCODING);
        if head.end_of_stream && !self.form.head {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        self.end_all_calls(0, CallResult::Answered, now);
        self.context.set_details("ext_proc_local_response");
        let length = parts.headers.get(header::CONTENT_LENGTH);
        self.response.declared_length = length.and_then(parse_length);
        self.response.started = true;
        self.response.input_ended = true;
        self.response.mode = BodyMode::None;
        self.response.send_trailers = false;
        self.response.state = State::Local;
        self.response.released = true;
        // A request body in full duplex is still shown, and goes nowhere.
        self.request.unread = true;
        if self.request.is_duplex() && !self.request.input_ended {
            self.request.state = State::StreamedBody;
        } else {
            self.request.abandon();
            self.request.state = State::Idle;
        }
        self.outcome = Some(Outcome::Local(Box::new(parts)));
        if head.end_of_stream {
            self.response.declared_length = None;
            self.end_local()?;
        }
        Ok(())
    }

    fn end_local(&mut self) -> Result<(), Fault> {
        let missing = self.response.declared_length.is_some_and(|left| left > 0);
        if missing && !self.form.head {
            return Err(Fault::LengthMismatch);
        }
        self.response.finish();
        self.request.abandon();
        self.complete = true;
        Ok(())
    }

    /// A body may not become longer than announced: the rest would be read as a response.
    fn spend_length(&mut self, bytes: usize) -> Result<(), Fault> {
        if let Some(left) = &mut self.response.declared_length {
            *left = left
                .checked_sub(bytes as u64)
                .ok_or(Fault::LengthMismatch)?;
        }
        Ok(())
    }

    /// Sets headers under the same rules as any other mutation.
    fn set_all(
        &self,
        headers: WireMap,
        head: &mut dyn attache_filter::MessageHead,
    ) -> Result<(), Fault> {
        let option = |header: attache_proto::core::HeaderValue| HeaderValueOption {
            append: Some(!header.key.starts_with(':')),
            header: Some(header),
            ..HeaderValueOption::default()
        };
        let mutation = HeaderMutation {
            set_headers: headers.headers.into_iter().map(option).collect(),
            ..HeaderMutation::default()
        };
        let mut rejected = 0;
        let rules = &self.terms.filter.mutation_rules;
        let result = mutation::apply(&mutation, head, Target::Message, rules, &mut rejected);
        self.terms.stats.rejected_header_mutations.inc_by(rejected);
        Ok(result?)
    }

    /// Whether the request body is read only to be shown, beside a response of the processor's
    /// own.
    pub(in crate::client) fn shows_only(&self) -> bool {
        self.response.state == State::Local && self.wants_data(Side::Request)
    }
}
