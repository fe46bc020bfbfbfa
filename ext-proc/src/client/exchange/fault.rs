//! What becomes of an exchange when something goes wrong, or the processor answers itself.

use std::{borrow::Cow, time::Instant};

use attache_filter::{LocalReply, calls::CallResult};
use attache_proto::ext_proc::ImmediateResponse;
use http::{HeaderMap, StatusCode};
use tonic::Status;

use super::{Exchange, Outcome, State, Stream};
use crate::client::{
    Side,
    mutation::{self, MutationError, Target},
};

/// Why a message of the processor is not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It does not fit the state of the exchange; the text is Envoy's response code detail.
    Spurious(&'static str),
    /// It answers itself where that is disabled.
    ImmediateDisabled,
    /// Its header mutation is.
    Mutation(MutationError),
    /// It changes the length of a body without its `content-length`.
    LengthMismatch,
    /// It lets a body pass that it was shown and has not given back.
    BodyLost,
    /// It streams a response without a status.
    NoStatus,
}

impl Fault {
    pub(super) const SPURIOUS: Self = Self::Spurious("spurious_message");
}

impl From<MutationError> for Fault {
    fn from(error: MutationError) -> Self {
        Self::Mutation(error)
    }
}

const DEADLINE: i32 = 4;
const INVALID: i32 = 3;
const ABORTED: i32 = 10;
const PRECONDITION: i32 = 9;
const INTERNAL: i32 = 13;

impl Exchange {
    /// The processor ended the stream with status OK: the rest passes unprocessed.
    pub(in crate::client) fn closed(&mut self, now: Instant) {
        if self.stream != Stream::Open {
            return;
        }
        self.stream = Stream::Closed;
        self.terms.stats.server_half_closed.inc();
        self.terms.stats.streams_closed.inc();
        let lost = self.request.has_lent() || self.response.has_lent();
        let fails = lost || self.response.state == State::Local;
        let result = match fails {
            true => CallResult::FailedClosed,
            false => CallResult::Skipped,
        };
        self.end_all_calls(ABORTED, result, now);
        if fails {
            let status = self.terms.filter.status_on_error;
            self.break_off(LocalReply::new(
                status,
                "ext_proc_stream_closed_within_a_body",
            ));
        } else {
            self.pass_through();
        }
    }

    /// The stream failed, or could not be opened.
    pub(in crate::client) fn failed(&mut self, status: &Status, now: Instant) {
        if self.stream == Stream::Closed {
            return;
        }
        self.stream = Stream::Closed;
        self.terms.stats.streams_failed.inc();
        self.terms.stats.server_half_closed.inc();
        let code = status.code() as i32;
        let message = status.message();
        let details = format!("ext_proc_error_gRPC_error_{code}{{{message}{{via_upstream}}}}");
        self.fail(
            details.into(),
            self.terms.filter.status_on_error,
            code,
            true,
            now,
        );
        if !self.broken {
            self.terms.stats.streams_closed.inc();
        }
    }

    /// A call over plain HTTP failed; `not_ok` when its answer has another status than 200.
    pub(in crate::client) fn http_failed(&mut self, not_ok: bool, now: Instant) {
        if self.stream == Stream::Closed {
            return;
        }
        self.stream = Stream::Closed;
        self.terms.stats.streams_closed.inc();
        if not_ok {
            self.terms.stats.http_not_ok_resp_received.inc();
        }
        let status = self.terms.filter.status_on_error;
        self.fail(
            "ext_proc_error_HTTP_ERROR".into(),
            status,
            ABORTED,
            true,
            now,
        );
    }

    /// A message was not answered in time.
    pub(super) fn timed_out(&mut self, now: Instant) {
        self.terms.stats.message_timeouts.inc();
        let details = "ext_proc_error_per-message_timeout_exceeded";
        self.fail(
            details.into(),
            StatusCode::GATEWAY_TIMEOUT,
            DEADLINE,
            true,
            now,
        );
    }

    /// A message was not acceptable.
    pub(super) fn refuse(&mut self, fault: Fault, now: Instant) {
        let (details, call_status, can_pass) = match fault {
            Fault::Spurious(details) => (details, PRECONDITION, true),
            Fault::ImmediateDisabled => (
                "unhandled_immediate_response_due_to_config_disabled_it",
                PRECONDITION,
                true,
            ),
            Fault::Mutation(error) => (error.details(), INVALID, false),
            Fault::BodyLost => ("ext_proc_body_in_full_duplex_is_lost", INTERNAL, false),
            Fault::NoStatus => (
                "filter_removed_required_response_headers{missing_required_header:_:status}",
                INTERNAL,
                false,
            ),
            Fault::LengthMismatch => (
                "mismatch_between_content_length_and_the_length_of_the_mutated_body",
                INTERNAL,
                false,
            ),
        };
        let stats = &self.terms.stats;
        match fault {
            Fault::Spurious(_) | Fault::ImmediateDisabled => stats.spurious_msgs_received.inc(),
            _ => stats.stream_msgs_received.inc(),
        };
        if let Fault::NoStatus = fault {
            self.end_all_calls(call_status, CallResult::FailedClosed, now);
            let reply = LocalReply::new(StatusCode::BAD_GATEWAY, details);
            self.break_off(reply.with_body("missing required header: :status"));
            return;
        }
        let status = self.terms.filter.status_on_error;
        self.fail(details.into(), status, call_status, can_pass, now);
    }

    fn fail(
        &mut self,
        details: Cow<'static, str>,
        status: StatusCode,
        call_status: i32,
        can_pass: bool,
        now: Instant,
    ) {
        // No failure is let through where a body was shown of which there is no copy.
        let lossy = self.request.duplex_begun
            || self.response.duplex_begun
            || self.response.state == State::Local;
        let passes = can_pass && self.terms.failure_mode_allow && !lossy;
        let result = CallResult::failure(call_status == DEADLINE, passes);
        self.end_all_calls(call_status, result, now);
        if passes {
            self.terms.stats.failure_mode_allowed.inc();
            self.pass_through();
            return;
        }
        self.break_off(LocalReply::new(status, details));
    }

    /// The processor answers the request itself.
    pub(super) fn immediate(
        &mut self,
        response: ImmediateResponse,
        now: Instant,
    ) -> Result<(), Fault> {
        if self.terms.filter.disable_immediate_response {
            return Err(Fault::ImmediateDisabled);
        }
        if self.response.state == State::Local {
            return Err(Fault::SPURIOUS);
        }
        self.end_all_calls(0, CallResult::Answered, now);
        let code = response
            .status
            .and_then(|status| u16::try_from(status.code).ok());
        let status = code
            .filter(|code| *code >= 200)
            .and_then(|code| StatusCode::from_u16(code).ok())
            .unwrap_or(StatusCode::OK);
        let mut headers = HeaderMap::new();
        if let Some(mutation) = &response.headers {
            let mut rejected = 0;
            // The reply goes out with what was applied before a fault.
            let _ = mutation::apply(
                mutation,
                &mut headers,
                Target::Immediate,
                &self.terms.filter.mutation_rules,
                &mut rejected,
            );
            self.terms.stats.rejected_header_mutations.inc_by(rejected);
        }
        self.break_off(LocalReply {
            status,
            headers,
            body: response.body,
            grpc_status: response.grpc_status.map(|status| status.status),
            details: response.details.into(),
        });
        Ok(())
    }

    /// A body is larger than the buffer that it must fit in.
    pub(super) fn too_large(&mut self, side: Side) {
        let started = self.response.released;
        match side {
            Side::Request if !started => {
                self.request.abandon();
                let reply =
                    LocalReply::new(StatusCode::PAYLOAD_TOO_LARGE, "request_payload_too_large");
                self.context.set_details(reply.details.clone());
                let reply = reply.with_body("Payload Too Large");
                self.outcome = Some(Outcome::Refuse(Box::new(reply)));
            }
            _ => {
                let reply = LocalReply::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "response_payload_too_large",
                );
                self.complete_with(reply.with_body("Internal Server Error"));
            }
        }
    }

    fn break_off(&mut self, reply: LocalReply) {
        if !self.response.released {
            self.terms.stats.immediate_responses_sent.inc();
        }
        self.complete_with(reply);
    }

    /// Ends everything with `reply`, or with a reset when a response has begun.
    fn complete_with(&mut self, reply: LocalReply) {
        self.complete = true;
        self.broken = true;
        for direction in [&mut self.request, &mut self.response] {
            direction.deadline = None;
            direction.state = State::Idle;
        }
        self.context.set_details(reply.details.clone());
        // A response of the processor's own that nobody has taken yet has not begun either.
        let untaken = matches!(self.outcome, Some(Outcome::Local(_)));
        self.outcome = Some(if self.response.released && !untaken {
            Outcome::Reset
        } else {
            Outcome::Reply(Box::new(reply))
        });
    }

    /// Nothing is processed any more: all goes on as it is.
    fn pass_through(&mut self) {
        self.complete = true;
        self.request.pass_through();
        self.response.pass_through();
        // A message failed while its stream was healthy: the stream ends here.
        self.close_if_done();
    }

    pub(super) fn end_all_calls(&mut self, status: i32, result: CallResult, now: Instant) {
        for side in [Side::Request, Side::Response] {
            self.end_calls(side, status, result, now);
        }
    }
}
