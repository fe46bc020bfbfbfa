//! The proxy's part of a case: what it does next. No I/O.

use std::collections::VecDeque;

use attache_proto::{
    ext_proc::{ProcessingRequest, processing_request::Request},
    ext_proc_filter::processing_mode::{BodySendMode, HeaderSendMode},
};
use bytes::Bytes;

use super::{
    case::{Case, Wire},
    check::Checker,
    event::Side,
    message,
};

/// What the proxy does next.
#[derive(Debug)]
pub(super) enum Action {
    /// Sends this message.
    Send(Box<ProcessingRequest>),
    /// Waits for the processor.
    Wait,
    /// Needs nothing more and half-closes.
    Finish,
    /// Has lost its caller and resets the stream.
    Leave,
}

/// Plays one case.
pub(super) struct Player<'c> {
    case: &'c Case,
    request: Progress,
    response: Progress,
    begun: bool,
}

/// How far one direction is.
#[derive(Debug, Default)]
struct Progress {
    step: Step,
    /// Body messages to be sent.
    body: VecDeque<(Bytes, bool)>,
    body_messages: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Step {
    #[default]
    Headers,
    BeforeBody,
    Body,
    Trailers,
    Settle,
    Done,
}

/// What one direction wants.
enum Wish {
    Send(Request),
    Wait,
    Done,
}

impl<'c> Player<'c> {
    pub(super) fn new(case: &'c Case) -> Self {
        Self {
            case,
            request: Progress::default(),
            response: Progress::default(),
            begun: false,
        }
    }

    /// What to do, by what the judge knows.
    pub(super) fn next(&mut self, checker: &Checker) -> Action {
        if checker.is_over() {
            return Action::Finish;
        }
        if checker.is_streaming_locally() {
            return Action::Wait;
        }
        if self.case.leaves && self.request.body_messages > 0 {
            return Action::Leave;
        }
        let interleave = self.case.early_response && self.request.body_messages > 0;
        let order = match interleave {
            true => [Side::Response, Side::Request],
            false => [Side::Request, Side::Response],
        };
        let mut waits = false;
        for side in order {
            match self.wish(side, checker) {
                Wish::Send(part) => {
                    let first = !std::mem::replace(&mut self.begun, true);
                    let message = message::envelope(self.case, part, first);
                    return Action::Send(Box::new(message));
                }
                // The caller goes on sending while the upstream's answer waits.
                Wish::Wait if interleave => waits = true,
                Wish::Wait => return Action::Wait,
                Wish::Done => {}
            }
        }
        match waits {
            true => Action::Wait,
            false => Action::Finish,
        }
    }

    fn wish(&mut self, side: Side, checker: &Checker) -> Wish {
        let case = self.case;
        let (wire, progress) = match side {
            Side::Request => (&case.request, &mut self.request),
            Side::Response => (&case.response, &mut self.response),
        };
        let mode = checker.mode(side);
        let mode = match progress.step {
            // Nothing was sent yet, so the judge does not know it yet.
            _ if !self.begun || case.observability => configured(case, side),
            _ => mode,
        };
        let duplex = mode == BodySendMode::FullDuplexStreamed;
        loop {
            if checker.is_finished(side) && progress.step != Step::Headers {
                progress.step = Step::Done;
            }
            match progress.step {
                Step::Headers => {
                    progress.step = Step::BeforeBody;
                    if sends_headers(case, side, checker) {
                        let ends = wire.body.is_none() && wire.trailers.is_empty();
                        return Wish::Send(message::headers(side, &wire.headers, ends));
                    }
                }
                Step::BeforeBody => {
                    let at_once =
                        duplex || (mode == BodySendMode::Streamed && case.without_waiting);
                    if checker.headers_pending(side) && !at_once {
                        return Wish::Wait;
                    }
                    progress.body = body_messages(case, wire, mode);
                    progress.step = Step::Body;
                }
                Step::Body => {
                    if progress.body.is_empty() {
                        progress.step = Step::Trailers;
                        continue;
                    }
                    if !case.burst && !duplex && checker.outstanding(side) > 0 {
                        return Wish::Wait;
                    }
                    if let Some((piece, ends)) = progress.body.pop_front() {
                        progress.body_messages += 1;
                        return Wish::Send(message::body(side, piece, ends));
                    }
                }
                Step::Trailers => {
                    if wire.trailers.is_empty() || !sends_trailers(case, side, checker) {
                        progress.step = Step::Settle;
                        continue;
                    }
                    let waits = checker.outstanding(side) > 0 || checker.headers_pending(side);
                    if waits && !duplex {
                        return Wish::Wait;
                    }
                    progress.step = Step::Settle;
                    return Wish::Send(message::trailers(side, &wire.trailers));
                }
                Step::Settle => {
                    let shown = wire.body.is_some() || !wire.trailers.is_empty();
                    let unended = duplex && shown && !case.observability;
                    let due = checker.headers_pending(side)
                        || checker.outstanding(side) > 0
                        || checker.trailers_pending(side)
                        || unended;
                    if due {
                        return Wish::Wait;
                    }
                    progress.step = Step::Done;
                }
                Step::Done => return Wish::Done,
            }
        }
    }
}

fn configured(case: &Case, side: Side) -> BodySendMode {
    match side {
        Side::Request => case.mode.request_body_mode(),
        Side::Response => case.mode.response_body_mode(),
    }
}

fn sends_headers(case: &Case, side: Side, checker: &Checker) -> bool {
    let configured = match side {
        Side::Request => case.mode.request_header_mode(),
        Side::Response => case.mode.response_header_mode(),
    };
    let overridden = checker.mode_override().map(|mode| match side {
        // They are over by the time of an override.
        Side::Request => HeaderSendMode::Default,
        Side::Response => mode.response_header_mode(),
    });
    effective(configured, overridden) != HeaderSendMode::Skip
}

fn sends_trailers(case: &Case, side: Side, checker: &Checker) -> bool {
    let of = |mode: &attache_proto::ext_proc_filter::ProcessingMode| match side {
        Side::Request => mode.request_trailer_mode(),
        Side::Response => mode.response_trailer_mode(),
    };
    effective(of(&case.mode), checker.mode_override().map(of)) == HeaderSendMode::Send
}

fn effective(configured: HeaderSendMode, overridden: Option<HeaderSendMode>) -> HeaderSendMode {
    match overridden {
        None | Some(HeaderSendMode::Default) => configured,
        Some(mode) => mode,
    }
}

/// The body messages of a direction: their bytes, and whether they say that it ends.
fn body_messages(case: &Case, wire: &Wire, mode: BodySendMode) -> VecDeque<(Bytes, bool)> {
    let Some(pieces) = &wire.body else {
        return VecDeque::new();
    };
    let ends = wire.trailers.is_empty();
    match mode {
        BodySendMode::None | BodySendMode::Grpc => VecDeque::new(),
        // Observers are shown streamed bodies only.
        BodySendMode::Buffered
        | BodySendMode::BufferedPartial
        | BodySendMode::FullDuplexStreamed
            if case.observability =>
        {
            VecDeque::new()
        }
        BodySendMode::Buffered => VecDeque::from([(Bytes::from(pieces.concat()), ends)]),
        BodySendMode::BufferedPartial => {
            let whole = case.partial >= pieces.len();
            let held = pieces.get(..case.partial).unwrap_or(pieces);
            VecDeque::from([(Bytes::from(held.concat()), whole && ends)])
        }
        BodySendMode::Streamed | BodySendMode::FullDuplexStreamed => {
            let mut messages: VecDeque<_> = pieces.iter().map(|p| (p.clone(), false)).collect();
            match messages.back_mut().filter(|_| wire.end_with_last) {
                Some(last) => last.1 = ends,
                // The end comes by itself.
                None if ends => messages.push_back((Bytes::new(), true)),
                None => {}
            }
            messages
        }
    }
}
