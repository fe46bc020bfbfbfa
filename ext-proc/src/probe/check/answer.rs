//! Answers to the caller, judged: whole ones, and streamed ones.

use attache_proto::{
    ext_proc::{
        ImmediateResponse, StreamedImmediateResponse,
        streamed_immediate_response::Response as Streamed,
    },
    ext_proc_filter::processing_mode::BodySendMode,
};

use super::{
    Checker, Local, Over,
    headers::{Lines, Target},
    reply::SIDES,
};
use crate::probe::{
    code::Code,
    event::{Phase, Side},
};

impl Checker {
    pub(super) fn immediate(&mut self, answer: &ImmediateResponse) {
        let phase = Phase::Stream;
        let code = answer.status.as_ref().map_or(0, |status| status.code);
        if code < 200 {
            let did = format!("It answered with the status {code}.");
            self.find(Code::ImmediateStatus, phase, did);
        }
        let mut found = Vec::new();
        if let Some(mutation) = &answer.headers {
            let mut lines = Lines::default();
            lines.apply(
                mutation,
                Target::Immediate,
                &self.setup.rules,
                &mut |code, did| {
                    found.push((code, did));
                },
            );
        }
        for (code, did) in found {
            match code {
                Code::InvalidName | Code::InvalidValue => {
                    self.find(Code::ImmediateInvalid, phase, did);
                }
                code => self.find(code, phase, did),
            }
        }
        let response = &self.response;
        let begun = response.lines.is_some() && response.headers_at.is_none() && !response.held;
        let passing = response.body_sent || response.trailers.is_some();
        if begun && passing {
            let did = "It answered the caller, who had the response headers already.";
            self.find(Code::ImmediateTooLate, phase, did);
        }
        self.answered();
    }

    pub(super) fn answered(&mut self) {
        let now = self.now;
        for side in SIDES {
            let direction = self.direction_mut(side);
            let due = direction.waiting(side);
            let sent = direction.headers_at.take();
            let sent = sent.or_else(|| direction.chunks.front().map(|chunk| chunk.at));
            if let (Some(phase), Some(sent)) = (due, sent.or(direction.trailers_at)) {
                self.matched(side, phase, sent);
            }
            self.direction_mut(side).timer.stop(now);
        }
        self.over = Some(Over::Answered);
    }

    pub(super) fn local_part(&mut self, part: &StreamedImmediateResponse, first: bool) {
        let phase = Phase::Stream;
        if first {
            let pending = self.request.headers_at.take();
            let Some(sent) = pending else {
                let did = "It began a response of its own when request_headers were answered or not sent.";
                return self.fail(Code::StreamedTooLate, phase, did);
            };
            self.matched(Side::Request, Phase::Headers(Side::Request), sent);
        }
        let ends = match &part.response {
            Some(Streamed::HeadersResponse(headers)) if first => {
                let lines = headers.headers.as_ref().map_or(&[][..], |map| &map.headers);
                let status = lines
                    .iter()
                    .find(|line| line.key.eq_ignore_ascii_case(":status"));
                if status.is_none_or(|status| status.raw_value.is_empty()) {
                    let did = "It began a response of its own without a :status in raw_value.";
                    return self.fail(Code::StreamedImmediateStatus, phase, did);
                }
                for line in lines {
                    if !line.value.is_empty() && line.raw_value.is_empty() {
                        let did = format!("It set `{}` through `value`.", line.key.escape_debug());
                        self.find(Code::OnlyValue, phase, did);
                    }
                }
                headers.end_of_stream
            }
            Some(Streamed::BodyResponse(body)) if !first => {
                // The response's mode does not matter.
                let fits = matches!(
                    self.request.mode,
                    BodySendMode::None | BodySendMode::FullDuplexStreamed
                );
                if !fits {
                    let did = "It streamed a body of its own while the request body is processed.";
                    return self.fail(Code::StreamedImmediateMode, phase, did);
                }
                body.end_of_stream
            }
            Some(Streamed::TrailersResponse(_)) if !first => true,
            Some(_) | None => {
                let did = match first {
                    true => "It began a response of its own without its headers.",
                    false => "It sent the headers of its own response twice, or nothing.",
                };
                return self.fail(Code::StreamedImmediateOrder, phase, did);
            }
        };
        self.local = if ends { Local::None } else { Local::Open };
        if ends {
            self.over = Some(Over::Answered);
        }
    }
}
