//! The way of records out of the process: a bounded queue, and a thread that writes.
//!
//! A check never waits for it. What does not fit is lost, and said so.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use attache_service::{
    Metrics,
    config::Size,
    metrics::{Counter, Gauge},
};
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

use super::{destination, file::LogFile, http::LogService, record::Lost, records};
use crate::policy::{
    config::{self, LogOutput},
    planning::Planning,
};

const BUFFER: Size = Size(8 << 20);
const MIN_BUFFER: u64 = 64 << 10;
/// Most that is written to a file at once, in bytes.
const FILE_BATCH: usize = 256 << 10;
const INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// Answers of a service are not read; longer ones are as good as none.
const MAX_ANSWER: Size = Size(64 << 10);

/// Where records are pushed to.
#[derive(Debug, Clone)]
pub(super) struct Sink(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    entries: mpsc::UnboundedSender<Entry>,
    /// The other end, until it is put to work.
    unused: Mutex<Option<(Work, Writer)>>,
    shared: Arc<Shared>,
    /// In bytes.
    limit: usize,
}

/// What both ends of a queue know.
#[derive(Debug)]
struct Shared {
    /// Waiting or being written, in bytes.
    bytes: AtomicUsize,
    /// Not yet said.
    lost: AtomicU64,
    queued: Gauge,
    written_total: Counter,
    lost_total: Counter,
}

impl Shared {
    fn new(metrics: &Metrics) -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            queued: metrics.gauge(
                "attache_auth_decision_log_queued_bytes",
                "Records of the decision log that wait to be written, in bytes.",
                &[],
            ),
            written_total: records(metrics, "written"),
            lost_total: records(metrics, "lost"),
        }
    }

    fn lose(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
        self.lost_total.inc_by(count);
    }

    fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.queued.dec_by(i64::try_from(bytes).unwrap_or(0));
    }
}

#[derive(Debug)]
enum Entry {
    Record(Vec<u8>),
    /// To be answered when all before it is written.
    Flush(oneshot::Sender<()>),
}

impl Sink {
    /// Puts the writer to work, once: only when the policy is used.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(&self) -> io::Result<()> {
        let mut unused = self.0.unused.lock().unwrap_or_else(PoisonError::into_inner);
        match unused.take() {
            Some((work, writer)) => work.start(writer),
            None => Ok(()),
        }
    }

    /// Takes a record, unless too much waits already.
    pub(super) fn push(&self, record: Vec<u8>) {
        let Queue {
            entries,
            shared,
            limit,
            ..
        } = &*self.0;
        let size = record.len();
        let before = shared.bytes.fetch_add(size, Ordering::Relaxed);
        if before.saturating_add(size) > *limit {
            shared.bytes.fetch_sub(size, Ordering::Relaxed);
            shared.lose(1);
            return;
        }
        shared.queued.inc_by(i64::try_from(size).unwrap_or(0));
        if entries.send(Entry::Record(record)).is_err() {
            shared.release(size);
            shared.lose(1);
        }
    }
}

impl Sink {
    /// Waits until all that was pushed so far is written, or `within` is over.
    pub(super) async fn flush(&self, within: Duration) {
        let (written, waits) = oneshot::channel();
        if self.0.entries.send(Entry::Flush(written)).is_ok() {
            // Past the time the rest is lost with the process.
            let _ = timeout(within, waits).await;
        }
    }
}

/// Where the logs of a service go, so that a reload which does not change that goes on with the
/// same queue.
#[derive(Debug, Default)]
struct Outputs(Mutex<Vec<Output>>);

#[derive(Debug)]
struct Output {
    raw: LogOutput,
    buffer: usize,
    /// Contents of the files that the settings name.
    files: Vec<Vec<u8>>,
    queue: Weak<Queue>,
}

/// The sink that settings ask for; `None` when there is none to be had, which is reported.
pub(super) fn open(raw: &config::DecisionLog, planning: &mut Planning<'_>) -> Option<Sink> {
    let buffer = raw.buffer.as_ref().map_or(BUFFER, |buffer| {
        if buffer.value.0 < MIN_BUFFER {
            planning.errors.push(buffer, "at least 64 KiB are needed");
        }
        buffer.value
    });
    let limit = buffer.as_usize();
    let service = match &raw.output {
        LogOutput::Http(http) => Some(service(http, planning)?),
        LogOutput::Stdout(_) | LogOutput::File(_) => None,
    };
    let files = service.as_ref().map(LogService::files).unwrap_or_default();
    let outputs = planning.kept("outputs of decision logs".to_owned(), Outputs::default);
    let mut known = outputs.0.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|output| output.queue.strong_count() > 0);
    let same = known
        .iter()
        .find(|output| (&output.raw, output.buffer, &output.files) == (&raw.output, limit, &files));
    if let Some(queue) = same.and_then(|output| output.queue.upgrade()) {
        return Some(Sink(queue));
    }
    let writer = match (&raw.output, service) {
        (LogOutput::File(file), _) => {
            let log = LogFile::new(planning.resolve(&file.path.value), file);
            if let Err(problem) = log.writable() {
                planning.errors.push(&file.path, problem);
                return None;
            }
            Writer::File(log)
        }
        (_, Some(service)) => Writer::Http(Box::new(service)),
        (_, None) => Writer::Stdout,
    };
    let (entries, receiver) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared::new(planning.metrics));
    let work = Work {
        receiver,
        shared: shared.clone(),
        destination: destination(&raw.output),
        failing: false,
    };
    let queue = Arc::new(Queue {
        entries,
        unused: Mutex::new(Some((work, writer))),
        shared,
        limit,
    });
    known.push(Output {
        raw: raw.output.clone(),
        buffer: limit,
        files,
        queue: Arc::downgrade(&queue),
    });
    Some(Sink(queue))
}

fn service(raw: &config::LogService, planning: &mut Planning<'_>) -> Option<LogService> {
    let interval = raw.interval.as_ref().map_or(INTERVAL, |interval| {
        if interval.value > MAX_INTERVAL {
            planning.errors.push(interval, "at most a minute");
        }
        interval.value.min(MAX_INTERVAL)
    });
    let fetcher = planning.fetcher(&raw.service, MAX_ANSWER)?;
    Some(LogService::new(fetcher, raw, interval))
}

/// What takes batches.
#[derive(Debug)]
enum Writer {
    Stdout,
    File(LogFile),
    Http(Box<LogService>),
}

impl Writer {
    /// Largest batch in bytes, and how long it waits to be filled.
    fn batch(&self) -> (usize, Duration) {
        match self {
            Self::Stdout | Self::File(_) => (FILE_BATCH, Duration::ZERO),
            Self::Http(service) => service.batch(),
        }
    }

    async fn write(&mut self, records: &[Vec<u8>]) -> Result<(), String> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                let written = io::Write::write_all(&mut stdout, &lines(records))
                    .and_then(|()| io::Write::flush(&mut stdout));
                written.map_err(|error| error.to_string())
            }
            Self::File(file) => file
                .write(&lines(records))
                .map_err(|error| error.to_string()),
            Self::Http(service) => service.send(records).await,
        }
    }
}

fn lines(records: &[Vec<u8>]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(records.iter().map(|record| record.len() + 1).sum());
    for record in records {
        lines.extend_from_slice(record);
        lines.push(b'\n');
    }
    lines
}

/// The writing end of a queue.
#[derive(Debug)]
struct Work {
    receiver: mpsc::UnboundedReceiver<Entry>,
    shared: Arc<Shared>,
    destination: String,
    failing: bool,
}

impl Work {
    /// Writes on a thread of its own until the queue is closed and empty: a full disk or a reader
    /// that does not read must not keep anything else waiting.
    fn start(self, writer: Writer) -> io::Result<()> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("attache-log".to_owned())
            .spawn(move || runtime.block_on(self.run(writer)))?;
        Ok(())
    }

    async fn run(mut self, mut writer: Writer) {
        let (size, interval) = writer.batch();
        while let Some(entry) = self.receiver.recv().await {
            let mut flushes = Vec::new();
            let mut records = Vec::new();
            let mut bytes = 0_usize;
            let end = Instant::now() + interval;
            let mut next = Some(entry);
            while let Some(entry) = next.take() {
                match entry {
                    Entry::Record(record) => {
                        bytes = bytes.saturating_add(record.len());
                        records.push(record);
                        if bytes >= size {
                            break;
                        }
                    }
                    Entry::Flush(flush) => {
                        flushes.push(flush);
                        break;
                    }
                }
                next = match self.receiver.try_recv() {
                    Ok(entry) => Some(entry),
                    Err(_) if interval.is_zero() => None,
                    Err(_) => timeout_at(end, self.receiver.recv()).await.ok().flatten(),
                };
            }
            self.write(&mut writer, records, bytes).await;
            for flush in flushes {
                // Whoever asked may have stopped waiting.
                let _ = flush.send(());
            }
        }
    }

    async fn write(&mut self, writer: &mut Writer, mut records: Vec<Vec<u8>>, bytes: usize) {
        let count = records.len() as u64;
        let lost = self.shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0
            && let Ok(line) = serde_json::to_vec(&Lost::now(lost))
        {
            records.insert(0, line);
        }
        if records.is_empty() {
            return;
        }
        match writer.write(&records).await {
            Ok(()) => {
                self.shared.written_total.inc_by(count);
                if std::mem::take(&mut self.failing) {
                    tracing::info!("decisions are logged to {} again", self.destination);
                }
            }
            Err(error) => {
                // Said with the next batch that is written.
                self.shared.lost.fetch_add(lost, Ordering::Relaxed);
                self.shared.lose(count);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(error, "decisions cannot be logged to {}", self.destination);
                }
            }
        }
        self.shared.release(bytes);
    }
}
