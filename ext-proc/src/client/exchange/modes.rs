//! The processor changes the modes of its exchange.

use std::time::Instant;

use attache_proto::ext_proc_filter::ProcessingMode;

use super::{Exchange, State};
use crate::client::{
    Side,
    mode::{BodyMode, Modes},
};

impl Exchange {
    /// The modes that a reply changes to; `None` where its wish does not count.
    pub(super) fn overriding(&self, wish: &ProcessingMode) -> Option<Modes> {
        let filter = &self.terms.filter;
        let duplex = |modes: &Modes| {
            [modes.request_body, modes.response_body].contains(&BodyMode::FullDuplexStreamed)
        };
        if !filter.allow_mode_override
            || self.sends_without_waiting()
            || duplex(&filter.modes)
            // Asked over plain HTTP, a processor is shown heads only.
            || filter.http.is_some()
            // Bodies that a route has shown in full duplex cannot be taken back.
            || duplex(&self.terms.modes)
        {
            return None;
        }
        let base = filter.wire_modes();
        let pick = |wish: i32, base: i32| if wish == 0 { base } else { wish };
        let result = ProcessingMode {
            request_header_mode: base.request_header_mode,
            response_header_mode: pick(wish.response_header_mode, base.response_header_mode),
            request_body_mode: wish.request_body_mode,
            response_body_mode: wish.response_body_mode,
            request_trailer_mode: pick(wish.request_trailer_mode, base.request_trailer_mode),
            response_trailer_mode: pick(wish.response_trailer_mode, base.response_trailer_mode),
        };
        let allowed = &filter.allowed_override_modes;
        let is_result = |mode: &ProcessingMode| {
            ProcessingMode {
                request_header_mode: base.request_header_mode,
                ..*mode
            } == result
        };
        (allowed.is_empty() || allowed.iter().any(is_result)).then(|| Modes::of_wire(&result))
    }

    /// Changes the modes of what is still to come: never of a body that has begun, whose pieces
    /// would overtake each other.
    pub(super) fn override_modes(&mut self, modes: Modes) {
        if self.request.state == State::Headers && !self.request.abandoned {
            let (body, trailers) = (modes.request_body, modes.request_trailers);
            self.request.set_modes(body, trailers);
            self.strip_length(Side::Request);
        } else if self.request.state == State::Idle
            && self.request.mode == BodyMode::Streamed
            && modes.request_body == BodyMode::None
        {
            self.request.mode = BodyMode::None;
        }
        let (body, trailers) = (modes.response_body, modes.response_trailers);
        if !self.response.started {
            self.response.send_headers = modes.response_headers;
            self.response.set_modes(body, trailers);
        } else if self.response.state == State::Headers {
            self.response.set_modes(body, trailers);
            self.strip_length(Side::Response);
        }
    }

    /// A wish that answers nothing: only for a request body in full duplex, from now on. False
    /// where it does not count.
    pub(super) fn override_ahead(&mut self, wish: &ProcessingMode, now: Instant) -> bool {
        if self.request.state != State::Headers {
            return false;
        }
        let duplex = |modes: &Modes| {
            modes.request_body == BodyMode::FullDuplexStreamed && modes.request_trailers
        };
        let Some(modes) = self.overriding(wish).filter(duplex) else {
            return false;
        };
        self.override_modes(modes);
        if self.request.is_duplex() {
            self.enter_duplex(Side::Request, now);
        }
        true
    }
}
