//! The judge: what was sent and received in, findings out.

mod answer;
mod direction;
mod headers;
mod overrides;
mod reply;
mod timer;

#[cfg(test)]
mod tests;

use std::time::Duration;

use attache_filter::mutation::MutationRules;
use attache_proto::{
    ext_proc::{ProcessingRequest, ProcessingResponse, processing_request::Request},
    ext_proc_filter::{ProcessingMode, processing_mode::BodySendMode},
};
use tonic::Code as GrpcCode;

use super::{
    code::{Code, Finding},
    event::{Event, Phase, Side, Timed},
};
use direction::Direction;

/// What the checker must know of the filter's configuration; the rest shows in the messages.
#[derive(Debug, Clone)]
pub struct Setup {
    /// `message_timeout`: how long a reply may take. Default 200 ms, as Envoy's.
    pub message_timeout: Duration,
    /// `max_message_timeout`: the most that the processor may ask for. Default zero: nothing.
    pub max_message_timeout: Duration,
    /// `allow_mode_override`. Default false.
    pub allow_mode_override: bool,
    /// `mutation_rules`. Default: Envoy's defaults.
    pub rules: MutationRules,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            message_timeout: Duration::from_millis(200),
            max_message_timeout: Duration::ZERO,
            allow_mode_override: false,
            rules: MutationRules::default(),
        }
    }
}

/// Judges one exchange: everything that the processor did wrong, in the order of time.
///
/// Judging stops where Envoy would have stopped listening.
pub fn check<'e>(setup: &Setup, events: impl IntoIterator<Item = &'e Timed>) -> Vec<Finding> {
    let mut checker = Checker::new(setup.clone());
    for event in events {
        checker.event(event);
    }
    checker.into_findings()
}

/// The judge of one exchange while it goes on. It also knows what the proxy must wait for.
#[derive(Debug)]
pub struct Checker {
    setup: Setup,
    now: Duration,
    request: Direction,
    response: Direction,
    observing: bool,
    /// `send_body_without_waiting_for_header_response`.
    without_waiting: bool,
    /// A body mode is FULL_DUPLEX_STREAMED by configuration, so overrides are ignored.
    configured_duplex: bool,
    local: Local,
    over: Option<Over>,
    mode_override: Option<ProcessingMode>,
    findings: Vec<Finding>,
    latencies: Vec<(Phase, Duration)>,
}

/// A response that the processor streams by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Local {
    None,
    Open,
}

/// Why nothing further counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The processor has answered the caller.
    Answered,
    /// Envoy would have failed the exchange.
    Failed,
    /// The proxy needs nothing more.
    HalfClosed,
    /// The caller has gone.
    Left,
    /// The processor has ended the stream.
    Ended,
}

impl Checker {
    /// A judge for an exchange that has not begun.
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            now: Duration::ZERO,
            request: Direction::default(),
            response: Direction::default(),
            observing: false,
            without_waiting: false,
            configured_duplex: false,
            local: Local::None,
            over: None,
            mode_override: None,
            findings: Vec::new(),
            latencies: Vec::new(),
        }
    }

    /// Takes in what has happened. Times must not decrease.
    pub fn event(&mut self, timed: &Timed) {
        self.now = timed.at;
        match &timed.event {
            Event::Sent(message) => self.sent(message),
            Event::Received(message) => self.received(message),
            Event::Undecodable(why) => {
                if self.over.is_none() {
                    let did = format!("It sent a message that cannot be decoded: {why}.");
                    self.fail(Code::Undecodable, Phase::Stream, did);
                }
            }
            Event::HalfClosed => self.over = Some(Over::HalfClosed),
            Event::Left => self.over = Some(Over::Left),
            Event::Ended(code, message) => self.ended(*code, message),
            Event::GaveUp => self.gave_up(),
            Event::Stuck => self.find(
                Code::NotReading,
                Phase::Stream,
                "It stopped reading its request stream.",
            ),
        }
    }

    /// What was found, in the order of time.
    pub fn into_findings(self) -> Vec<Finding> {
        self.findings
    }

    /// What was found so far.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// How long replies took. For a FULL_DUPLEX_STREAMED body: from the end as sent to the end
    /// as returned.
    pub fn latencies(&self) -> &[(Phase, Duration)] {
        &self.latencies
    }

    /// Whether nothing further counts: answered, failed or ended.
    pub fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// Whether the processor is streaming a response of its own.
    pub fn is_streaming_locally(&self) -> bool {
        self.local == Local::Open
    }

    /// The body mode of a direction, overrides included.
    pub fn mode(&self, side: Side) -> BodySendMode {
        self.direction(side).mode
    }

    /// The last override that counts.
    pub fn mode_override(&self) -> Option<&ProcessingMode> {
        self.mode_override.as_ref()
    }

    /// Whether headers of a direction wait for their reply.
    pub fn headers_pending(&self, side: Side) -> bool {
        self.direction(side).headers_at.is_some()
    }

    /// Body messages of a direction that wait for their reply.
    pub fn outstanding(&self, side: Side) -> usize {
        self.direction(side).chunks.len()
    }

    /// Whether trailers of a direction wait for their reply.
    pub fn trailers_pending(&self, side: Side) -> bool {
        self.direction(side).trailers_at.is_some()
    }

    /// Whether the processor has taken the rest of a direction out of the proxy's hands: by
    /// CONTINUE_AND_REPLACE, or by an end of stream in FULL_DUPLEX_STREAMED mode.
    pub fn is_finished(&self, side: Side) -> bool {
        let direction = self.direction(side);
        direction.replaced || direction.ended
    }

    fn direction(&self, side: Side) -> &Direction {
        match side {
            Side::Request => &self.request,
            Side::Response => &self.response,
        }
    }

    fn direction_mut(&mut self, side: Side) -> &mut Direction {
        match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        }
    }

    fn find(&mut self, code: Code, phase: Phase, did: impl Into<String>) {
        self.findings.push(code.at(self.now, phase, did));
    }

    /// A finding that is worth saying once in an exchange.
    fn find_once(&mut self, code: Code, phase: Phase, did: impl Into<String>) {
        if !self.findings.iter().any(|finding| finding.code == code) {
            self.find(code, phase, did);
        }
    }

    /// A finding after which Envoy does not listen any more.
    fn fail(&mut self, code: Code, phase: Phase, did: impl Into<String>) {
        self.find(code, phase, did);
        self.over = Some(Over::Failed);
    }

    fn sent(&mut self, message: &ProcessingRequest) {
        self.observing |= message.observability_mode;
        if let Some(config) = &message.protocol_config {
            self.request.mode = config.request_body_mode();
            self.response.mode = config.response_body_mode();
            self.without_waiting = config.send_body_without_waiting_for_header_response;
            self.configured_duplex =
                [self.request.mode, self.response.mode].contains(&BodySendMode::FullDuplexStreamed);
        }
        if self.observing {
            return;
        }
        let (now, timeout) = (self.now, self.setup.message_timeout);
        match &message.request {
            Some(Request::RequestHeaders(headers)) => self.request.headers(headers, now),
            Some(Request::ResponseHeaders(headers)) => self.response.headers(headers, now),
            Some(Request::RequestBody(body)) => self.request.body(body, now),
            Some(Request::ResponseBody(body)) => self.response.body(body, now),
            Some(Request::RequestTrailers(trailers)) => self.request.trailers(trailers, now),
            Some(Request::ResponseTrailers(trailers)) => self.response.trailers(trailers, now),
            None => return,
        }
        if let Phase::Headers(side) | Phase::Body(side) | Phase::Trailers(side) =
            Phase::of_request(message)
        {
            let direction = self.direction_mut(side);
            if direction.mode != BodySendMode::FullDuplexStreamed {
                direction.timer.arm(now, timeout);
            }
        }
    }

    fn received(&mut self, message: &ProcessingResponse) {
        match self.over {
            None => {}
            Some(Over::Answered) => {
                let did = "It sent another message after its answer to the caller.";
                return self.find_once(Code::AfterEnd, Phase::Stream, did);
            }
            Some(_) => return,
        }
        if self.observing {
            let did = "It answered a message that only informs.";
            return self.find_once(Code::ObservedReply, Phase::of_response(message), did);
        }
        self.reply(message);
    }

    fn ended(&mut self, code: GrpcCode, message: &str) {
        let status = || match message {
            "" => format!("status {} ({code:?})", code as i32),
            text => format!("status {} ({code:?}): {text}", code as i32),
        };
        match (self.over.replace(Over::Ended), code) {
            (None, GrpcCode::Ok) if self.observing => {}
            (None, GrpcCode::Ok) => self.closed(),
            (None, _) if self.observing => {
                let did = format!("It ended the stream with {}.", status());
                self.find(Code::ObservedError, Phase::Stream, did);
            }
            (None, _) => {
                let did = format!("It ended the stream with {}.", status());
                self.find(Code::ErrorStatus, Phase::Stream, did);
            }
            (Some(Over::HalfClosed | Over::Answered), code) if code != GrpcCode::Ok => {
                let did = format!("It ended a finished stream with {}.", status());
                self.find(Code::ErrorStatusAtEnd, Phase::Stream, did);
            }
            (Some(_), _) => {}
        }
    }

    /// The processor ended the stream with OK while the proxy still needed it.
    fn closed(&mut self) {
        for side in [Side::Request, Side::Response] {
            let direction = self.direction(side);
            if direction.mode == BodySendMode::FullDuplexStreamed
                && direction.body_sent
                && !direction.ended
            {
                let did = "It ended the stream with OK before it had returned the body.";
                return self.find(Code::LostChunks, Phase::Body(side), did);
            }
        }
        if self.local == Local::Open {
            let did = "It ended the stream before the end of its own response.";
            return self.find(Code::NoImmediateEnd, Phase::Stream, did);
        }
        match self
            .request
            .waiting(Side::Request)
            .or(self.response.waiting(Side::Response))
        {
            Some(phase) => {
                let did = format!("It ended the stream with OK without a reply to {phase}.");
                self.find(Code::ClosedUnanswered, phase, did);
            }
            None => {
                let did = "It ended the stream with OK before the exchange was over.";
                self.find(Code::ClosedEarly, Phase::Stream, did);
            }
        }
    }

    fn gave_up(&mut self) {
        match self.over {
            Some(Over::HalfClosed) => {
                let did = "It kept its side of the stream open after the half-close.";
                return self.find(Code::NoEndAfterHalfClose, Phase::Stream, did);
            }
            Some(_) => return,
            None => {}
        }
        if self.local == Local::Open {
            let did = "It began a response of its own and did not end it.";
            return self.find(Code::NoImmediateEnd, Phase::Stream, did);
        }
        for side in [Side::Request, Side::Response] {
            if let Some((code, phase, did)) = self.direction(side).missing(side) {
                self.find(code, phase, did);
            }
        }
    }
}
