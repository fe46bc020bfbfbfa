//! Wishes of the processor for another mode or more time, judged.

use std::time::Duration;

use attache_proto::ext_proc_filter::{
    ProcessingMode,
    processing_mode::{BodySendMode, HeaderSendMode},
};

use super::{Checker, reply::SIDES};
use crate::probe::{
    code::Code,
    event::{Phase, Side},
};

impl Checker {
    pub(super) fn more_time(
        &mut self,
        timeout: &prost_types::Duration,
        with_reply: bool,
        phase: Phase,
    ) {
        if with_reply {
            let did = "It sent override_message_timeout together with a reply.";
            self.find(Code::TimeoutDiscards, phase, did);
        }
        let now = self.now;
        let asked = Duration::try_from(*timeout).unwrap_or_default();
        let fits = asked >= Duration::from_millis(1) && asked <= self.setup.max_message_timeout;
        let taken = fits
            && SIDES
                .into_iter()
                .any(|side| self.direction_mut(side).timer.extend(now, asked));
        if !taken {
            let did = format!("It asked for a message timeout of {asked:?}.");
            self.find(Code::TimeoutIgnored, phase, did);
        }
    }

    pub(super) fn override_mode(&mut self, mode: &ProcessingMode, phase: Phase) {
        let ignored = if !SIDES.into_iter().any(|side| self.headers_pending(side)) {
            Some("no headers wait for a reply")
        } else if !self.setup.allow_mode_override {
            Some("allow_mode_override is not set")
        } else if self.without_waiting {
            Some("bodies are sent without waiting")
        } else if self.configured_duplex {
            Some("a body mode is FULL_DUPLEX_STREAMED")
        } else {
            None
        };
        if let Some(why) = ignored {
            let did = format!("It sent a mode_override, and {why}.");
            return self.find(Code::OverrideIgnored, phase, did);
        }
        for (side, new) in [
            (Side::Request, mode.request_body_mode()),
            (Side::Response, mode.response_body_mode()),
        ] {
            let old = self.mode(side);
            let replied = phase.side() == Some(Side::Response) && side == Side::Request;
            if replied || old == new {
                continue;
            }
            if new == BodySendMode::None {
                let did = format!(
                    "Its mode_override turns {} off, which was {}.",
                    Phase::Body(side),
                    old.as_str_name()
                );
                self.find(Code::OverrideResets, phase, did);
            }
            self.direction_mut(side).mode = new;
        }
        self.mode_override = Some(*mode);
    }

    /// Envoy accepts it only to have the request body streamed before the headers are answered.
    pub(super) fn override_alone(&mut self, mode: &ProcessingMode) {
        let accepted = self.setup.allow_mode_override
            && !self.without_waiting
            && !self.configured_duplex
            && self.headers_pending(Side::Request)
            && mode.request_body_mode() == BodySendMode::FullDuplexStreamed
            && mode.request_trailer_mode() == HeaderSendMode::Send;
        if !accepted {
            let did = "It sent a mode_override without a reply.";
            return self.fail(Code::OverrideAlone, Phase::Stream, did);
        }
        self.request.mode = mode.request_body_mode();
        self.response.mode = mode.response_body_mode();
        self.request.timer.stop(self.now);
        self.mode_override = Some(*mode);
    }
}
