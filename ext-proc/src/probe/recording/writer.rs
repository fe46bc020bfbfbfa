//! Writes a recording beside the traffic, which never waits for it.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use attache_proto::ext_proc::{ProcessingRequest, ProcessingResponse};
use bytes::Bytes;
use http::HeaderMap;
use prost::Message;
use serde_json::Value;
use tonic::Code;

use super::{Entry, Line, Mask};
use crate::json;

/// How much may wait to be written: then exchanges are cut short in the recording.
const MAX_WAITING_EVENTS: usize = 4096;
const MAX_WAITING_BYTES: usize = 64 << 20;

/// Where exchanges are recorded. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

struct Shared {
    notes: SyncSender<Note>,
    waiting: AtomicUsize,
    exchanges: AtomicU64,
    /// Exchanges that are not whole in the recording.
    cut: AtomicU64,
}

/// What was recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Exchanges that were begun.
    pub exchanges: u64,
    /// Those of them that could not be recorded to their end.
    pub cut: u64,
    /// Size of the file.
    pub bytes: u64,
}

/// The record of one exchange. Dropping it without [`ExchangeLog::end`] says that the proxy has
/// reset the stream.
pub struct ExchangeLog {
    shared: Arc<Shared>,
    number: u64,
    opened: Instant,
    /// Something was lost, so that the rest makes no sense.
    cut: bool,
    ended: bool,
}

enum Note {
    Event(u64, Duration, What),
    Stop,
}

enum What {
    Open(HeaderMap),
    Request(Bytes),
    Response(Bytes),
    HalfClose,
    Reset,
    End(Code, String),
}

impl What {
    fn size(&self) -> usize {
        match self {
            Self::Request(bytes) | Self::Response(bytes) => bytes.len(),
            _ => 0,
        }
    }
}

/// The thread that writes; to be ended with [`Writer::finish`].
pub struct Writer {
    recorder: Recorder,
    thread: JoinHandle<u64>,
}

impl Recorder {
    /// Begins a recording in a new file of at most `max_bytes`.
    ///
    /// # Errors
    /// When the file exists already or cannot be made.
    pub fn create(path: &Path, mask: Mask, max_bytes: u64) -> io::Result<(Self, Writer)> {
        let file = File::options().write(true).create_new(true).open(path)?;
        let (notes, receive) = sync_channel(MAX_WAITING_EVENTS);
        let recorder = Self {
            shared: Arc::new(Shared {
                notes,
                waiting: AtomicUsize::new(0),
                exchanges: AtomicU64::new(0),
                cut: AtomicU64::new(0),
            }),
        };
        let shared = recorder.shared.clone();
        let output = Output {
            file: BufWriter::new(file),
            left: max_bytes,
            written: 0,
            failed: false,
        };
        let thread = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || write(&receive, &shared, &mask, output))?;
        let writer = Writer {
            recorder: recorder.clone(),
            thread,
        };
        Ok((recorder, writer))
    }

    /// A new exchange with the metadata of its stream.
    pub fn open(&self, metadata: HeaderMap) -> ExchangeLog {
        let number = self.shared.exchanges.fetch_add(1, Ordering::Relaxed) + 1;
        let mut log = ExchangeLog {
            shared: self.shared.clone(),
            number,
            opened: Instant::now(),
            cut: false,
            ended: false,
        };
        log.note(What::Open(metadata));
        log
    }
}

impl Writer {
    /// Writes what waits, and ends the recording. Blocks meanwhile.
    pub fn finish(self) -> Summary {
        let shared = &self.recorder.shared;
        // Fails only when the thread is gone, which joining shows.
        let _ = shared.notes.send(Note::Stop);
        let bytes = self.thread.join().unwrap_or_default();
        Summary {
            exchanges: shared.exchanges.load(Ordering::Relaxed),
            cut: shared.cut.load(Ordering::Relaxed),
            bytes,
        }
    }
}

impl ExchangeLog {
    /// A message of the proxy.
    pub fn request(&mut self, message: Bytes) {
        self.note(What::Request(message));
    }

    /// A message of the processor.
    pub fn response(&mut self, message: Bytes) {
        self.note(What::Response(message));
    }

    /// The proxy has half-closed.
    pub fn half_close(&mut self) {
        self.note(What::HalfClose);
    }

    /// The processor has ended the stream.
    pub fn end(&mut self, code: Code, message: &str) {
        self.ended = true;
        self.note(What::End(code, message.to_owned()));
    }

    fn note(&mut self, what: What) {
        if self.cut {
            return;
        }
        let size = what.size();
        let waiting = self.shared.waiting.fetch_add(size, Ordering::Relaxed);
        let note = Note::Event(self.number, self.opened.elapsed(), what);
        let fits = waiting.saturating_add(size) <= MAX_WAITING_BYTES;
        if !fits || self.shared.notes.try_send(note).is_err() {
            self.shared.waiting.fetch_sub(size, Ordering::Relaxed);
            self.shared.cut.fetch_add(1, Ordering::Relaxed);
            self.cut = true;
        }
    }
}

impl Drop for ExchangeLog {
    fn drop(&mut self) {
        if !self.ended {
            self.note(What::Reset);
        }
    }
}

struct Output {
    file: BufWriter<File>,
    left: u64,
    written: u64,
    failed: bool,
}

impl Output {
    /// Writes a line, as long as the file takes it.
    fn line(&mut self, line: &Line) {
        if self.failed {
            return;
        }
        let text = line.text();
        let length = text.len() as u64;
        let Some(left) = self.left.checked_sub(length) else {
            tracing::warn!("the recording has its full size and ends here; traffic goes on");
            self.failed = true;
            return self.flush();
        };
        match self.file.write_all(text.as_bytes()) {
            Ok(()) => {
                self.left = left;
                self.written += length;
            }
            Err(error) => self.fail(&error),
        }
    }

    fn flush(&mut self) {
        if let Err(error) = self.file.flush()
            && !self.failed
        {
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &io::Error) {
        tracing::error!(%error, "the recording ends here; traffic goes on");
        self.failed = true;
    }
}

fn write(notes: &Receiver<Note>, shared: &Shared, mask: &Mask, mut output: Output) -> u64 {
    loop {
        let note = match notes.try_recv() {
            Ok(note) => note,
            Err(TryRecvError::Disconnected) => break,
            // What is known so far is in the file while nothing happens.
            Err(TryRecvError::Empty) => {
                output.flush();
                match notes.recv() {
                    Ok(note) => note,
                    Err(_) => break,
                }
            }
        };
        match note {
            Note::Stop => break,
            Note::Event(exchange, at, what) => {
                let size = what.size();
                if !output.failed {
                    output.line(&Line::new(exchange, at, entry(what, mask)));
                }
                shared.waiting.fetch_sub(size, Ordering::Relaxed);
            }
        }
    }
    output.flush();
    output.written
}

fn entry(what: What, mask: &Mask) -> Entry {
    match what {
        What::Open(metadata) => Entry::Open {
            metadata: metadata
                .iter()
                .map(|(name, value)| {
                    let value = String::from_utf8_lossy(value.as_bytes());
                    let value = mask.text(name.as_str(), &value).to_owned();
                    (name.as_str().to_owned(), value)
                })
                .collect(),
        },
        What::Request(bytes) => {
            let message = ProcessingRequest::decode(bytes).map_err(|error| error.to_string());
            let text = message.and_then(|mut message| {
                mask.request(&mut message);
                json::encode_request(&message).map_err(|error| error.to_string())
            });
            match text.and_then(parsed) {
                Ok(message) => Entry::Request { message },
                Err(reason) => Entry::Unreadable { reason },
            }
        }
        What::Response(bytes) => {
            let message = ProcessingResponse::decode(bytes).map_err(|error| error.to_string());
            let text = message.and_then(|mut message| {
                mask.response(&mut message);
                json::encode_response(&message).map_err(|error| error.to_string())
            });
            match text.and_then(parsed) {
                Ok(message) => Entry::Response { message },
                Err(reason) => Entry::Unreadable { reason },
            }
        }
        What::HalfClose => Entry::HalfClose,
        What::Reset => Entry::Reset,
        What::End(code, message) => Entry::End {
            status: code as i32,
            message,
        },
    }
}

fn parsed(text: String) -> Result<Value, String> {
    serde_json::from_str(&text).map_err(|error| error.to_string())
}
