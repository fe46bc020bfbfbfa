//! Spans on their way to a collector.

use std::time::Duration;

use attache_proto::{
    otlp_collector::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    otlp_common::{KeyValue, any_value::Value as WireValue},
    otlp_trace::{Span as WireSpan, span::SpanKind, status::StatusCode},
};
use http::{HeaderMap, HeaderValue};
use tokio::{net::TcpListener, sync::mpsc};
use tonic::{Code, Request, Response, Status, service::Routes};

use super::*;
use crate::{Host, Metrics, Shutdown};

const METHOD: &str = "a.Service/Method";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes spans, but for those of services called `refused`.
struct Collector(mpsc::UnboundedSender<(HeaderMap, ExportTraceServiceRequest)>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let refused = spans(&message).iter().any(|span| span.name == "refused");
        self.0.send((metadata.into_headers(), message)).unwrap();
        Ok(Response::new(ExportTraceServiceResponse {
            partial_success: refused.then(|| ExportTracePartialSuccess {
                rejected_spans: 1,
                error_message: "not this one".to_owned(),
            }),
        }))
    }
}

/// Spans of one program.
struct Program {
    exporter: Exporter,
    tracer: Tracer,
    metrics: Metrics,
}

fn program(endpoint: &str, environment: &[(&str, &str)]) -> Program {
    let settings = TraceSettings::read(Some(endpoint), "tested", |name| {
        let found = environment.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    });
    let metrics = Metrics::default();
    let (exporter, tracer) = Exporter::start(settings.unwrap().unwrap(), &metrics).unwrap();
    Program {
        exporter,
        tracer,
        metrics,
    }
}

impl Program {
    fn count(&self, result: &str) -> u64 {
        let start = format!("attache_trace_spans_total{{result=\"{result}\"}} ");
        let text = self.metrics.render();
        let mut lines = text.lines();
        let count = lines.find_map(|line| line.strip_prefix(&start)).unwrap();
        count.parse().unwrap()
    }
}

type Exports = mpsc::UnboundedReceiver<(HeaderMap, ExportTraceServiceRequest)>;

async fn collector() -> (String, Exports, Shutdown) {
    let (sender, exports) = mpsc::unbounded_channel();
    let routes = Routes::new(TraceServiceServer::new(Collector(sender)));
    let bound = Host::new(routes)
        .bind(&"127.0.0.1:0".parse().unwrap())
        .await;
    let bound = bound.unwrap();
    let endpoint = format!("http://{}", bound.address());
    let shutdown = Shutdown::new();
    tokio::spawn(bound.serve(shutdown.clone()));
    (endpoint, exports, shutdown)
}

fn called(flags: &str) -> HeaderMap {
    let parent = format!("00-{TRACE}-{PARENT}-{flags}");
    let value = HeaderValue::from_str(&parent).unwrap();
    HeaderMap::from_iter([(http::HeaderName::from_static("traceparent"), value)])
}

fn spans(export: &ExportTraceServiceRequest) -> Vec<&WireSpan> {
    let resources = export.resource_spans.iter();
    let scopes = resources.flat_map(|resource| &resource.scope_spans);
    scopes.flat_map(|scope| &scope.spans).collect()
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        WireValue::StringValue(text) => Some(text),
        other => panic!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The spans that the collector is sent when all has ended.
async fn sent(program: Program, exports: &mut Exports) -> Vec<WireSpan> {
    program.exporter.finish(PATIENCE).await;
    let mut all = Vec::new();
    while let Ok((_, export)) = exports.try_recv() {
        all.extend(spans(&export).into_iter().cloned());
    }
    all
}

#[tokio::test]
async fn a_call_becomes_a_span_of_the_callers_trace() {
    let (endpoint, mut exports, _shutdown) = collector().await;
    let headers = ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue");
    let program = program(&endpoint, &[headers, ("OTEL_BSP_SCHEDULE_DELAY", "1")]);
    let mut call = called("01");
    call.append("tracestate", HeaderValue::from_static("a=1"));
    call.append("tracestate", HeaderValue::from_static("b=2"));

    let span = program.tracer.call(METHOD, &call);
    span.set("attache.pipeline", "first");
    span.set("attache.pipeline", "shop");
    span.answered(Code::Ok);
    let own = span.traceparent().unwrap();
    drop(span);

    // Without an end of the program.
    let (metadata, export) = exports.recv().await.unwrap();
    assert_eq!(metadata["x-tenant"], "blue");
    let resource = export.resource_spans[0].resource.as_ref().unwrap();
    assert_eq!(text(&resource.attributes, "service.name"), Some("tested"));
    let [span] = spans(&export)[..] else {
        panic!("{export:?}")
    };
    assert_eq!(hex(&span.trace_id), TRACE);
    assert_eq!(hex(&span.parent_span_id), PARENT);
    let id = hex(&span.span_id);
    assert_eq!(own, format!("00-{TRACE}-{id}-01"));
    assert_ne!(id, PARENT);
    assert_eq!(span.trace_state, "a=1,b=2");
    assert_eq!(span.name, METHOD);
    assert_eq!(span.kind(), SpanKind::Server);
    assert_eq!(span.flags, 0x301);
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    assert!(span.start_time_unix_nano > 1_600_000_000_000_000_000);
    let expected = [
        ("rpc.system.name", "grpc"),
        ("rpc.method", METHOD),
        ("attache.pipeline", "shop"),
        ("rpc.response.status_code", "OK"),
    ];
    assert_eq!(span.attributes.len(), expected.len());
    for (key, value) in expected {
        assert_eq!(text(&span.attributes, key), Some(value));
    }
    assert_eq!(span.status, None);
}

#[tokio::test]
async fn what_the_caller_does_not_record_is_not_recorded() {
    let (endpoint, mut exports, _shutdown) = collector().await;
    let program = program(&endpoint, &[]);
    let unsampled = program.tracer.call(METHOD, &called("00"));
    assert!(!unsampled.is_recorded() && !unsampled.child("part").is_recorded());
    assert_eq!(unsampled.traceparent(), None);
    drop(unsampled);
    let off = Tracer::default();
    assert!(!off.call(METHOD, &called("01")).is_recorded());
    drop(program.tracer.call("of its own", &HeaderMap::new()));

    let spans = sent(program, &mut exports).await;

    let [span] = &spans[..] else {
        panic!("{spans:?}")
    };
    assert_eq!(
        (span.name.as_str(), span.parent_span_id.len()),
        ("of its own", 0)
    );
    assert_eq!(span.flags, 0x101);
}

#[tokio::test]
async fn only_what_is_waited_for_becomes_a_child() {
    let (endpoint, mut exports, _shutdown) = collector().await;
    let program = program(&endpoint, &[]);
    let span = program.tracer.call(METHOD, &called("01"));

    span.waits("at once", &[], std::future::ready(())).await;
    let name = [("attache.metadata", "prices")];
    span.waits("metadata", &name, tokio::task::yield_now())
        .await;
    drop(span);

    let spans = sent(program, &mut exports).await;
    let [child, parent] = &spans[..] else {
        panic!("{spans:?}")
    };
    assert_eq!(child.name, "metadata");
    assert_eq!(child.kind(), SpanKind::Internal);
    assert_eq!(child.trace_id, parent.trace_id);
    assert_eq!(child.parent_span_id, parent.span_id);
    assert_eq!(text(&child.attributes, "attache.metadata"), Some("prices"));
    assert!(child.start_time_unix_nano >= parent.start_time_unix_nano);
    assert!(child.end_time_unix_nano <= parent.end_time_unix_nano);
}

#[tokio::test]
async fn failures_of_the_service_are_errors_and_those_of_the_caller_are_not() {
    let (endpoint, mut exports, _shutdown) = collector().await;
    let program = program(&endpoint, &[]);
    let begin = |metadata: &HeaderMap| Ended::of(program.tracer.call(METHOD, metadata));
    begin(&called("01")).with(Code::Unavailable);
    begin(&called("01")).with(Code::InvalidArgument);
    drop(begin(&called("01")));

    let spans = sent(program, &mut exports).await;

    let found: Vec<_> = spans
        .iter()
        .map(|span| {
            let code = text(&span.attributes, "rpc.response.status_code").unwrap();
            let status = span.status.as_ref().map(|status| status.code());
            (code, status, text(&span.attributes, "error.type"))
        })
        .collect();
    let unavailable = ("UNAVAILABLE", Some(StatusCode::Error), Some("UNAVAILABLE"));
    let expected = [
        unavailable,
        ("INVALID_ARGUMENT", None, None),
        ("CANCELLED", None, None),
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn attributes_are_bounded_in_number_and_length() {
    let (endpoint, mut exports, _shutdown) = collector().await;
    let program = program(&endpoint, &[]);
    let span = program.tracer.call(METHOD, &called("01"));
    span.set("long", "é".repeat(1000).as_str());
    // 200 names: the tails of one text.
    const NAMES: &str = match std::str::from_utf8(&[b'n'; 200]) {
        Ok(names) => names,
        Err(_) => "",
    };
    for start in 0..NAMES.len() {
        span.set(&NAMES[start..], true);
    }
    drop(span);

    let spans = sent(program, &mut exports).await;

    assert_eq!(text(&spans[0].attributes, "long").unwrap().len(), 1024);
    assert_eq!(spans[0].attributes.len(), 128);
    assert_eq!(spans[0].dropped_attributes_count, 75);
}

#[tokio::test]
async fn many_spans_leave_in_batches_and_refused_ones_are_counted() {
    let (endpoint, mut exports, _shutdown) = collector().await;
    let program = program(&endpoint, &[("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")]);
    for _ in 0..9 {
        drop(program.tracer.call(METHOD, &called("01")));
    }
    drop(program.tracer.call("refused", &called("01")));
    let metrics = program.metrics.clone();
    program.exporter.finish(PATIENCE).await;

    let mut sizes = Vec::new();
    while let Ok((_, export)) = exports.try_recv() {
        sizes.push(spans(&export).len());
    }
    assert_eq!(sizes.iter().sum::<usize>(), 10);
    assert!(sizes.iter().all(|size| *size <= 4), "{sizes:?}");
    let text = metrics.render();
    for (result, count) in [("sent", 9), ("refused", 1), ("failed", 0), ("dropped", 0)] {
        let line = format!("attache_trace_spans_total{{result=\"{result}\"}} {count}\n");
        assert!(text.contains(&line), "{text}");
    }
}

#[tokio::test]
async fn a_collector_that_stalls_or_is_not_there_costs_calls_nothing_and_losses_are_counted() {
    // Connections stand in its backlog; nobody answers.
    let stalled = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = [&stalled, &gone].map(|at| format!("http://{}", at.local_addr().unwrap()));
    drop(gone);
    for endpoint in endpoints {
        let bounds = [
            ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2"),
        ];
        let program = program(&endpoint, &bounds);
        // None of these waits for anything, so they are over before most can be taken.
        for _ in 0..1000 {
            drop(program.tracer.call(METHOD, &called("01")));
        }
        // One batch is on its way, and the queue is full.
        let dropped = program.count("dropped");
        assert!((1000 - 8 - 4..1000).contains(&dropped), "{dropped}");

        let metrics = program.metrics.clone();
        tokio::time::timeout(PATIENCE, program.exporter.finish(Duration::from_millis(50)))
            .await
            .expect("the end of a program does not wait for its collector");
        assert!(!metrics.render().contains("result=\"sent\"} 1"));
    }
}
