//! Full duplex: pieces go to the processor as they come, and a body of its own comes back. No
//! copy is kept, so what was shown and has not come back cannot pass unprocessed any more.

use std::time::Instant;

use attache_filter::calls::CallResult;
use attache_proto::ext_proc::{CommonResponse, body_mutation::Mutation};

use super::{
    Exchange, State,
    direction::{Direction, Phase},
    fault::Fault,
};
use crate::client::Side;

impl Exchange {
    /// Shows what has arrived of a body that was not shown piece by piece before.
    pub(super) fn enter_duplex(&mut self, side: Side, now: Instant) {
        let direction = self.direction(side);
        direction.deadline = None;
        if direction.no_body {
            return;
        }
        let held = direction.take_held();
        let (ended, trailers) = (direction.input_ended, direction.trailers.is_some());
        let end = ended && !trailers && !direction.end_shown;
        self.send_piece(side, held, end, now);
        if trailers && !self.peek(side).end_shown {
            self.show_duplex_trailers(side, now);
        }
    }

    /// The headers are answered: they go on, and the body comes back at its own pace.
    pub(super) fn duplex_headers_answered(&mut self, side: Side, now: Instant) {
        self.direction(side).state = State::Idle;
        self.enter_duplex(side, now);
        let direction = self.direction(side);
        direction.state = if direction.duplex_begun {
            State::StreamedBody
        } else if direction.trailers_shown {
            State::Trailers
        } else {
            State::Idle
        };
        direction.release();
    }

    /// Trailers end the body, at once. Where they are not to be shown, its end is.
    pub(super) fn show_duplex_trailers(&mut self, side: Side, now: Instant) {
        if !self.peek(side).send_trailers {
            self.send_chunk(side, Default::default(), true, now);
            return;
        }
        self.put_trailers(side);
        let direction = self.direction(side);
        direction.end_shown = true;
        direction.trailers_shown = true;
        if direction.state == State::Idle {
            direction.state = State::Trailers;
        }
        self.sent(side, Phase::Trailers, now);
    }

    pub(super) fn on_duplex_body(
        &mut self,
        side: Side,
        common: CommonResponse,
        now: Instant,
    ) -> Result<(), Fault> {
        let mutation = common.body_mutation.and_then(|body| body.mutation);
        let Some(Mutation::StreamedResponse(piece)) = mutation else {
            return Err(Fault::Spurious(
                "spurious_message: Normal body_mutation response is received while body_mode  is \
                 FULL_DUPLEX_STREAMED",
            ));
        };
        let direction = self.direction(side);
        direction.owed -= piece.body.len() as i64;
        direction.let_out(piece.body);
        if piece.end_of_stream {
            // Trailers that were not answered go on as they came.
            direction.finish();
        }
        self.answered(side, Phase::Body, now);
        if piece.end_of_stream {
            self.note_body(side, 0, CallResult::Continued);
        }
        Ok(())
    }
}

impl Direction {
    /// Whether something that the processor was shown has not come back.
    pub(super) fn has_lent(&self) -> bool {
        self.is_duplex() && !self.ended && self.owed != 0
    }
}
