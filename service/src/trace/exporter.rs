//! Sends spans to a collector, in batches, on a thread of its own.

use std::{thread, time::Duration};

use attache_proto::{
    otlp_collector::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    otlp_common::{AnyValue, InstrumentationScope, KeyValue, any_value},
    otlp_resource::Resource,
    otlp_trace::{ResourceSpans, ScopeSpans, Span},
};
use bytes::Bytes;
use prost::Message as _;
use tokio::{
    runtime,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::{Code, Status};

use super::{
    settings::{TraceError, TraceSettings},
    tracer::{Inner, Tracer},
};
use crate::{
    Channel, Method, Metrics, channel::encode_message, cluster::breakers::Breakers,
    metrics::Counter,
};

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// Attempts to send one batch to a collector that is busy or not there.
const ATTEMPTS: u32 = 5;
/// The pause before the second attempt; it doubles from one to the next.
const PAUSE: Duration = Duration::from_secs(1);

/// The sending of spans; dropped, it ends without sending what waits.
#[derive(Debug)]
pub struct Exporter {
    stage: watch::Sender<Stage>,
    ended: watch::Receiver<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    /// No new spans; what waits is sent at once, with one attempt each.
    Finishing,
    Stopped,
}

impl Exporter {
    /// Starts it, and makes the tracer whose spans it sends.
    ///
    /// Counted are `attache_trace_spans_total` by `result`: `sent`, `refused` (by the collector),
    /// `failed` (the collector could not be asked), `dropped` (too many waited).
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(settings: TraceSettings, metrics: &Metrics) -> Result<(Self, Tracer), TraceError> {
        let counter = |result| {
            let help = "Spans of traces by what became of them.";
            metrics.counter("attache_trace_spans", help, &[("result", result)])
        };
        let (queue, spans) = mpsc::channel(settings.queue);
        let tracer = Tracer::new(Inner {
            sampler: settings.sampler,
            queue,
            dropped: counter("dropped"),
        });
        let (stage, watched) = watch::channel(Stage::Running);
        let (alive, ended) = watch::channel(());
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let sending = Sending {
            spans,
            stage: watched,
            sent: counter("sent"),
            refused: counter("refused"),
            failed: counter("failed"),
            resource: Resource {
                attributes: settings.resource.iter().map(attribute).collect(),
                ..Resource::default()
            },
            settings,
            reachable: true,
        };
        thread::Builder::new()
            .name("attache-traces".to_owned())
            .spawn(move || {
                runtime.block_on(sending.run());
                drop(alive);
            })?;
        Ok((Self { stage, ended }, tracer))
    }

    /// Sends what waits, for as long as `within`, and ends. Spans that end later are dropped.
    pub async fn finish(mut self, within: Duration) {
        let _ = self.stage.send(Stage::Finishing);
        // Fails when the thread is done, which is what is waited for.
        let ended = timeout(within, async {
            while self.ended.changed().await.is_ok() {}
        })
        .await;
        if ended.is_err() {
            tracing::warn!(?within, "not all traces could be sent");
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.stage.send(Stage::Stopped);
    }
}

struct Sending {
    spans: mpsc::Receiver<Span>,
    stage: watch::Receiver<Stage>,
    settings: TraceSettings,
    resource: Resource,
    sent: Counter,
    refused: Counter,
    failed: Counter,
    /// Whether the last attempt reached the collector: a change is logged.
    reachable: bool,
}

impl Sending {
    async fn run(mut self) {
        let channel = Channel::new(self.settings.collector.clone());
        let mut stage = self.stage.clone();
        // Also when the exporter is gone.
        let stopped = async move {
            let _ = stage.wait_for(|stage| *stage == Stage::Stopped).await;
        };
        tokio::select! {
            () = stopped => {}
            () = self.send_all(&channel) => {}
        }
    }

    async fn send_all(&mut self, channel: &Channel) {
        let mut batch = Vec::new();
        while self.gather(&mut batch).await {
            let count = batch.len() as u64;
            let message = self.message(std::mem::take(&mut batch));
            match self.send(channel, message).await {
                Ok(refused) => {
                    let refused = refused.min(count);
                    self.refused.inc_by(refused);
                    self.sent.inc_by(count - refused);
                }
                Err(status) => {
                    self.failed.inc_by(count);
                    tracing::debug!(%status, spans = count, "traces lost");
                }
            }
        }
    }

    /// The next batch: whole, or what there is when the oldest has waited long enough. `false`
    /// when all is sent and nothing more comes.
    async fn gather(&mut self, batch: &mut Vec<Span>) -> bool {
        let most = self.settings.batch;
        let mut until = None;
        loop {
            if *self.stage.borrow_and_update() >= Stage::Finishing {
                self.spans.close();
                until = Some(Instant::now());
            }
            let room = most.saturating_sub(batch.len());
            if room == 0 {
                return true;
            }
            let first = batch.is_empty();
            let deadline = until.filter(|_| !first);
            let received = tokio::select! {
                changed = self.stage.changed(), if !self.spans.is_closed() => match changed {
                    Ok(()) => continue,
                    Err(_gone) => return false,
                },
                received = receive(&mut self.spans, batch, room, deadline) => received,
            };
            match received {
                Received::Some => {
                    until.get_or_insert_with(|| Instant::now() + self.settings.delay);
                }
                Received::End | Received::Late => return !batch.is_empty(),
            }
        }
    }

    fn message(&self, spans: Vec<Span>) -> Bytes {
        let scope = InstrumentationScope {
            name: "attache".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans,
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        encode_message(&request)
    }

    /// How many spans the collector refused. A collector that is busy or not there is asked again,
    /// while further spans wait and, beyond the bound, are dropped.
    async fn send(&mut self, channel: &Channel, message: Bytes) -> Result<u64, Status> {
        let method = Method::new(EXPORT);
        let breakers = channel.breakers();
        let _counted = breakers.map(Breakers::count);
        let mut room = None;
        let mut attempt = 1;
        loop {
            let metadata = self.settings.metadata.clone();
            let timeout = Some(self.settings.timeout);
            let sent = channel.unary_framed(&method, message.clone(), metadata, timeout);
            let status = match sent.await {
                Ok(answer) => {
                    self.reached(None);
                    return Ok(refused(&answer));
                }
                Err(status) => status,
            };
            self.reached(Some(&status));
            // A retry takes up room until it is answered.
            drop(room.take());
            let finishing = |stage: &Stage| *stage >= Stage::Finishing;
            if attempt >= ATTEMPTS || !may_be_repeated(status.code()) {
                return Err(status);
            }
            room = breakers.map(Breakers::retry);
            if matches!(room, Some(None)) {
                return Err(status);
            }
            let pause = sleep(PAUSE * (1 << (attempt - 1)));
            tokio::select! {
                () = pause => {}
                // There is no time for more attempts.
                _ = self.stage.wait_for(finishing) => return Err(status),
            }
            attempt += 1;
        }
    }

    fn reached(&mut self, failure: Option<&Status>) {
        let collector = &*self.settings.collector.name;
        match failure {
            Some(status) if self.reachable => {
                tracing::warn!(collector, %status, "traces cannot be sent");
            }
            None if !self.reachable => tracing::info!(collector, "traces are sent again"),
            _ => {}
        }
        self.reachable = failure.is_none();
    }
}

enum Received {
    Some,
    /// Nothing more comes.
    End,
    /// The deadline is over.
    Late,
}

async fn receive(
    spans: &mut mpsc::Receiver<Span>,
    batch: &mut Vec<Span>,
    room: usize,
    deadline: Option<Instant>,
) -> Received {
    let receiving = spans.recv_many(batch, room);
    let received = match deadline {
        None => receiving.await,
        Some(deadline) => match timeout_at(deadline, receiving).await {
            Ok(received) => received,
            Err(_elapsed) => return Received::Late,
        },
    };
    if received == 0 {
        Received::End
    } else {
        Received::Some
    }
}

fn attribute((key, value): &(String, String)) -> KeyValue {
    let value = any_value::Value::StringValue(value.clone());
    KeyValue {
        key: key.clone(),
        value: Some(AnyValue { value: Some(value) }),
    }
}

/// How many spans were not taken, by the collector's answer.
fn refused(answer: &Bytes) -> u64 {
    let answer = ExportTraceServiceResponse::decode(answer.clone()).unwrap_or_default();
    let Some(partial) = answer.partial_success else {
        return 0;
    };
    if !partial.error_message.is_empty() {
        tracing::warn!(
            refused = partial.rejected_spans,
            reason = partial.error_message,
            "the trace collector says"
        );
    }
    u64::try_from(partial.rejected_spans).unwrap_or_default()
}

/// Whether the same batch may be sent again after a failure, by OTLP's table.
fn may_be_repeated(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}
