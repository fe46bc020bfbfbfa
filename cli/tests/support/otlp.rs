//! A trace collector.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use attache_proto::{
    otlp_collector::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    otlp_common::any_value::Value,
    otlp_trace::Span,
};
use attache_service::{Host, Shutdown};
use tonic::{Request, Response, Status, service::Routes};

use super::eventually_async;

/// Keeps the spans that it is sent.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        let spans = scopes.flat_map(|scope| scope.spans);
        self.0.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector, for as long as this value lives.
pub struct Collector {
    kept: Kept,
    address: SocketAddr,
    shutdown: Shutdown,
}

impl Collector {
    pub async fn start() -> Self {
        let kept = Kept::default();
        let host = Host::new(Routes::new(TraceServiceServer::new(kept.clone())));
        let bound = host.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = bound.address().to_string().parse().unwrap();
        let shutdown = Shutdown::new();
        tokio::spawn(bound.serve(shutdown.clone()));
        Self {
            kept,
            address,
            shutdown,
        }
    }

    /// What `--otlp-endpoint` takes.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.kept.0.lock().unwrap().clone()
    }

    /// Waits for the span that has this attribute.
    pub async fn span_with(&self, key: &str, value: &str) -> Span {
        let found = || {
            let mut spans = self.spans().into_iter();
            spans.find(|span| attribute(span, key).as_deref() == Some(value))
        };
        let what = format!("a span with {key}={value}");
        eventually_async(&what, async || found().is_some()).await;
        found().unwrap()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.shutdown.trigger_immediate();
    }
}

/// An attribute, as text.
pub fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|known| known.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::BoolValue(flag) => flag.to_string(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    })
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
