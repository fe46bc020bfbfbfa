//! The thread that writes one log.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
};

use super::{
    AccessLogPlan, Line, Sink,
    file::{Files, LogFile},
    form::Form,
};

/// Requests that may wait for the writer.
const QUEUE: usize = 4096;
/// Bytes that are written at once.
const CHUNK: usize = 64 << 10;

/// The way to the thread.
pub(super) struct Writer(SyncSender<Arc<Line>>);

impl Writer {
    pub(super) fn start(plan: &AccessLogPlan, files: &Files) -> io::Result<Self> {
        let output = match &plan.sink {
            Sink::Stdout => Output::Stream(Box::new(io::stdout())),
            Sink::Stderr => Output::Stream(Box::new(io::stderr())),
            Sink::File(path) => Output::File(files.open(path)?),
        };
        let (queue, lines) = sync_channel(QUEUE);
        let form = plan.form.clone();
        let writing = files.writer(&plan.sink);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || {
                write_all(&lines, &form, output, &writing.log);
                drop(writing);
            })?;
        Ok(Self(queue))
    }

    /// False when the writer is behind.
    pub(super) fn write(&self, line: Arc<Line>) -> bool {
        self.0.try_send(line).is_ok()
    }
}

enum Output {
    Stream(Box<dyn Write + Send>),
    File(Arc<LogFile>),
}

impl Output {
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => {
                stream.write_all(text)?;
                stream.flush()
            }
            Self::File(file) => file.write(text),
        }
    }
}

fn write_all(lines: &Receiver<Arc<Line>>, form: &Form, mut output: Output, log: &str) {
    let mut text = Vec::new();
    let mut failing = false;
    let mut next = lines.recv().ok();
    while let Some(line) = next {
        form.write(&line, &mut text);
        drop(line);
        next = match lines.try_recv() {
            Ok(line) if text.len() < CHUNK => Some(line),
            other => {
                // A full disk or closed pipe must not stop the proxy; it is told once.
                let failed = output.write(&text).err();
                text.clear();
                if let Some(error) = failed.as_ref().filter(|_| !failing) {
                    tracing::warn!(log, %error, "the access log cannot be written");
                }
                failing = failed.is_some();
                match other {
                    Ok(line) => Some(line),
                    Err(TryRecvError::Empty) => lines.recv().ok(),
                    Err(TryRecvError::Disconnected) => None,
                }
            }
        };
    }
}
