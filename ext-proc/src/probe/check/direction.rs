//! What is known of one direction of an exchange.

use std::{collections::VecDeque, time::Duration};

use attache_proto::{
    ext_proc::{HttpBody, HttpHeaders, HttpTrailers},
    ext_proc_filter::processing_mode::BodySendMode,
};

use super::{headers::Lines, timer::Timer};
use crate::probe::{
    code::Code,
    event::{Phase, Side},
};

#[derive(Debug, Default)]
pub(super) struct Direction {
    pub(super) mode: BodySendMode,
    /// The headers as they now are; `None` if they were not sent to the processor.
    pub(super) lines: Option<Lines>,
    /// They are still here, so a reply to a body can change them.
    pub(super) held: bool,
    pub(super) no_body: bool,
    /// When the headers were sent that wait for a reply.
    pub(super) headers_at: Option<Duration>,
    /// Body messages that wait for a reply. Empty in FULL_DUPLEX_STREAMED mode.
    pub(super) chunks: VecDeque<Chunk>,
    pub(super) body_sent: bool,
    /// Its only message was the first and the last.
    at_once: bool,
    /// When the end of the body was sent.
    pub(super) body_ended: Option<Duration>,
    /// Bytes of the body as the processor wants them.
    pub(super) returned: u64,
    pub(super) trailers: Option<Lines>,
    pub(super) trailers_at: Option<Duration>,
    /// CONTINUE_AND_REPLACE was given.
    pub(super) replaced: bool,
    /// FULL_DUPLEX_STREAMED: the processor has ended the message.
    pub(super) ended: bool,
    /// The length that an override of the mode left in the headers.
    pub(super) stale: Option<u64>,
    pub(super) timer: Timer,
}

#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) at: Duration,
    pub(super) len: u64,
    pub(super) end_of_stream: bool,
}

impl Direction {
    pub(super) fn headers(&mut self, message: &HttpHeaders, now: Duration) {
        self.lines = Some(Lines::of(message.headers.as_ref()));
        self.held = true;
        self.no_body = message.end_of_stream;
        self.headers_at = Some(now);
    }

    pub(super) fn body(&mut self, message: &HttpBody, now: Duration) {
        self.at_once = !self.body_sent && message.end_of_stream;
        self.body_sent = true;
        if message.end_of_stream {
            self.body_ended = Some(now);
        }
        if self.mode != BodySendMode::FullDuplexStreamed {
            self.chunks.push_back(Chunk {
                at: now,
                len: message.body.len() as u64,
                end_of_stream: message.end_of_stream,
            });
        }
    }

    pub(super) fn trailers(&mut self, message: &HttpTrailers, now: Duration) {
        self.trailers = Some(Lines::of(message.trailers.as_ref()));
        self.trailers_at = Some(now);
    }

    /// Whether the proxy may treat the body as a BUFFERED one, whatever the mode.
    pub(super) fn came_at_once(&self) -> bool {
        self.at_once && self.lines.is_some()
    }

    /// The oldest message that waits for a reply.
    pub(super) fn waiting(&self, side: Side) -> Option<Phase> {
        if self.headers_at.is_some() {
            Some(Phase::Headers(side))
        } else if !self.chunks.is_empty() {
            Some(Phase::Body(side))
        } else {
            self.trailers_at.is_some().then_some(Phase::Trailers(side))
        }
    }

    /// What did not come, now that all patience is used up.
    pub(super) fn missing(&self, side: Side) -> Option<(Code, Phase, String)> {
        if self.mode == BodySendMode::FullDuplexStreamed {
            return self.missing_in_duplex(side);
        }
        let phase = self.waiting(side)?;
        if !self.timer.is_armed() {
            let left = self.chunks.len();
            let did = match phase {
                Phase::Body(_) => format!("It answered some chunks and left {left} unanswered."),
                _ => format!("It answered another message and never {phase}."),
            };
            return Some((Code::StalledChunks, phase, did));
        }
        let did = format!("It did not answer {phase}.");
        Some((Code::NoReply, phase, did))
    }

    fn missing_in_duplex(&self, side: Side) -> Option<(Code, Phase, String)> {
        if self.replaced || self.ended {
            return None;
        }
        if self.headers_at.is_some() {
            let did = "It did not answer the headers.".to_owned();
            return Some((Code::MissingHeaders, Phase::Headers(side), did));
        }
        if self.trailers_at.is_some() {
            let did = "It did not answer the trailers.".to_owned();
            return Some((Code::MissingTrailers, Phase::Trailers(side), did));
        }
        self.body_ended?;
        let did = format!(
            "It returned {} bytes of body and no end_of_stream after the end was sent.",
            self.returned
        );
        Some((Code::MissingEos, Phase::Body(side), did))
    }
}
