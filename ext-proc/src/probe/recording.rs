//! Exchanges in a file: one JSON object a line, one line for each thing that happened.
//!
//! ```text
//! {"exchange":1,"at_ms":0.0,"event":"open","metadata":[["x-tenant","a"]]}
//! {"exchange":1,"at_ms":0.1,"event":"request","message":{"request_headers":{…}}}
//! {"exchange":1,"at_ms":0.9,"event":"response","message":{"request_headers":{}}}
//! {"exchange":1,"at_ms":1.0,"event":"half_close"}
//! {"exchange":1,"at_ms":1.1,"event":"end","status":0,"message":""}
//! ```
//!
//! An exchange is complete when it has an `end` or a `reset`. Lines of several exchanges may
//! come interleaved.

mod mask;
mod writer;

use std::{collections::BTreeMap, io::BufRead, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tonic::Code;

use super::event::{Event, Timed};
use crate::json;

pub use mask::Mask;
pub use writer::{ExchangeLog, Recorder, Summary, Writer};

/// A recorded exchange.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its number in the recording.
    pub number: u64,
    /// The metadata of the stream, except what every gRPC call has.
    pub metadata: Vec<(String, String)>,
    /// What happened on the stream.
    pub events: Vec<Timed>,
}

/// What a recording holds.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// The complete exchanges, in the order of their beginnings.
    pub exchanges: Vec<Recorded>,
    /// How many were not recorded to their end.
    pub incomplete: usize,
}

/// A file that is no recording.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// It cannot be read.
    #[error("line {line}: {source}")]
    Read {
        /// The line, from 1.
        line: usize,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not what a recording consists of.
    #[error("line {line}: {reason}")]
    Line {
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    exchange: u64,
    at_ms: f64,
    #[serde(flatten)]
    entry: Entry,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Entry {
    Open {
        metadata: Vec<(String, String)>,
    },
    Request {
        message: Value,
    },
    Response {
        message: Value,
    },
    /// A message that could not be written down.
    Unreadable {
        reason: String,
    },
    HalfClose,
    Reset,
    End {
        status: i32,
        message: String,
    },
}

impl Recording {
    /// Reads a recording. A last line that was cut off is left out.
    ///
    /// # Errors
    /// When the text cannot be read, or a line of it is not of a recording.
    pub fn read(text: impl BufRead) -> Result<Self, RecordingError> {
        let mut open: BTreeMap<u64, (Recorded, bool, bool)> = BTreeMap::new();
        let mut lines = text.lines().enumerate().peekable();
        while let Some((index, line)) = lines.next() {
            let at = index + 1;
            let line = line.map_err(|source| RecordingError::Read { line: at, source })?;
            if line.trim().is_empty() {
                continue;
            }
            let wrong = |reason: String| RecordingError::Line { line: at, reason };
            let line: Line = match serde_json::from_str(&line) {
                Ok(line) => line,
                Err(error) if error.is_eof() && lines.peek().is_none() => break,
                Err(error) => return Err(wrong(error.to_string())),
            };
            let (recorded, complete, broken) = open.entry(line.exchange).or_insert_with(|| {
                let recorded = Recorded {
                    number: line.exchange,
                    metadata: Vec::new(),
                    events: Vec::new(),
                };
                (recorded, false, true)
            });
            let event = match line.entry {
                Entry::Open { metadata } => {
                    recorded.metadata = metadata;
                    *broken = false;
                    continue;
                }
                Entry::Unreadable { .. } => {
                    *broken = true;
                    continue;
                }
                Entry::Request { message } => {
                    let message = json::decode_request(message.to_string().as_bytes());
                    Event::Sent(Box::new(message.map_err(|error| wrong(error.to_string()))?))
                }
                Entry::Response { message } => {
                    let message = json::decode_response(message.to_string().as_bytes());
                    Event::Received(Box::new(message.map_err(|error| wrong(error.to_string()))?))
                }
                Entry::HalfClose => Event::HalfClosed,
                Entry::Reset => {
                    *complete = true;
                    Event::Left
                }
                Entry::End { status, message } => {
                    *complete = true;
                    Event::Ended(Code::from_i32(status), message)
                }
            };
            let at = Duration::try_from_secs_f64(line.at_ms / 1e3).unwrap_or_default();
            recorded.events.push(Timed { at, event });
        }
        let mut recording = Self::default();
        for (recorded, complete, broken) in open.into_values() {
            match complete && !broken {
                true => recording.exchanges.push(recorded),
                false => recording.incomplete += 1,
            }
        }
        Ok(recording)
    }
}

impl Line {
    fn new(exchange: u64, at: Duration, entry: Entry) -> Self {
        Self {
            exchange,
            at_ms: (at.as_secs_f64() * 1e6).round() / 1e3,
            entry,
        }
    }

    /// The line with its line end.
    fn text(&self) -> String {
        let mut text = serde_json::to_string(self).unwrap_or_default();
        text.push('\n');
        text
    }
}
