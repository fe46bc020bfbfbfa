//! Processors of the framework, which do nothing wrong, and hand-written ones, which do.

mod ours;
mod recorded;
mod wrong;

use std::{pin::Pin, sync::Arc, time::Duration};

use attache_proto::ext_proc::{
    ProcessingRequest, ProcessingResponse,
    external_processor_server::{ExternalProcessor, ExternalProcessorServer},
};
use attache_service::{Channel, ChannelSettings, channel::Target, host::Host};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tonic::{Status, Streaming, service::Routes};

use super::*;

/// Long enough for a machine that is busy with other tests.
const LENIENT: Duration = Duration::from_secs(10);

fn channel(host: Host) -> Channel {
    let embedded = Target::Embedded(host.embedded());
    Channel::new(ChannelSettings::new("processor", vec![embedded]))
}

/// Plays the named cases, all if there are none.
async fn probe(host: Host, names: &[&str], change: impl FnOnce(&mut Plan)) -> Report {
    let mut plan = Plan::new(Content::default());
    plan.setup.message_timeout = LENIENT;
    plan.hang_timeout = LENIENT;
    plan.cases
        .retain(|case| names.is_empty() || names.contains(&case.name));
    assert!(plan.cases.len() >= names.len(), "{names:?}");
    change(&mut plan);
    run(&channel(host), &plan, |_| {}).await.unwrap()
}

fn codes(report: &Report) -> Vec<Code> {
    let findings = report.cases.iter().flat_map(|case| &case.findings);
    let mut codes: Vec<_> = findings.map(|finding| finding.code).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

type Handler = dyn Fn(&ProcessingRequest) -> Vec<Result<ProcessingResponse, Status>> + Send + Sync;

/// A processor written straight against the wire: messages in, messages out.
#[derive(Clone)]
struct Raw {
    answer: Arc<Handler>,
    /// How the stream ends after a half-close.
    end: Option<Status>,
    /// Whether it reads at all.
    reads: bool,
}

impl Raw {
    fn new(
        answer: impl Fn(&ProcessingRequest) -> Vec<Result<ProcessingResponse, Status>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self {
            answer: Arc::new(answer),
            end: None,
            reads: true,
        }
    }

    fn host(self) -> Host {
        Host::new(Routes::new(
            ExternalProcessorServer::new(self).max_decoding_message_size(16 << 20),
        ))
    }
}

#[tonic::async_trait]
impl ExternalProcessor for Raw {
    type ProcessStream = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

    async fn process(
        &self,
        request: tonic::Request<Streaming<ProcessingRequest>>,
    ) -> Result<tonic::Response<Self::ProcessStream>, Status> {
        let this = self.clone();
        let (send, receive) = mpsc::unbounded_channel();
        let mut messages = request.into_inner();
        tokio::spawn(async move {
            if !this.reads {
                send.closed().await;
            }
            while let Some(Ok(message)) = messages.next().await {
                for answer in (this.answer)(&message) {
                    let last = answer.is_err();
                    // `OK` as an error stands for a clean end.
                    if matches!(&answer, Err(status) if status.code() == tonic::Code::Ok) {
                        return;
                    }
                    if send.send(answer).is_err() || last {
                        return;
                    }
                }
            }
            if let Some(status) = this.end {
                let _ = send.send(Err(status));
            }
        });
        let replies = futures_util::stream::unfold(receive, |mut receive| async {
            receive.recv().await.map(|reply| (reply, receive))
        });
        Ok(tonic::Response::new(Box::pin(replies)))
    }
}
