//! Access logs, histograms and traces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may panic"
)]

mod support;

use std::path::Path;

use attache_proto::{
    otlp_collector::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    otlp_common::any_value::Value as WireValue,
    otlp_trace::{Span, span::SpanKind},
};
use attache_proxy::{Config, Plan, config::NothingEmbedded};
use attache_service::{Host, Shutdown, config::Document};
use serde_json::Value;
use support::{OK, Origin, PATIENCE, Raw, Tested, echo_origin, header, once, start, status};
use tokio::{io::AsyncWriteExt, sync::mpsc};
use tonic::{Request, Response, Status, service::Routes};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
/// A cluster where nobody is.
const NOBODY: &str = "127.0.0.1:9";

fn read(text: &str) -> Result<Plan, String> {
    let document = Document::parse("proxy.yaml", text).unwrap();
    let (_, plan): (Config, Plan) =
        Config::read(&document, &NothingEmbedded).map_err(|errors| errors.to_string())?;
    Ok(plan)
}

/// A proxy with these settings of the listener and of the whole, and an auth service that is not
/// there.
fn plan(origin: &Origin, listener: &str, whole: &str) -> Result<Plan, String> {
    read(&format!(
        "listeners: [{{ name: test, address: '127.0.0.1:0', filters: [auth], {listener} }}]
filters:
  auth:
    ext_authz:
      grpc_service: {{ envoy_grpc: {{ cluster_name: auth }}, timeout: 5s }}
      failure_mode_allow: true
routes:
- match: {{ prefix: / }}
  name: all
  route: {{ cluster: web, prefix_rewrite: /new/ }}
clusters:
- {{ name: web, endpoints: ['{}'] }}
- {{ name: auth, endpoints: ['{NOBODY}'], http2: {{}} }}
workers: 1
{whole}",
        origin.at
    ))
}

async fn proxy(origin: &Origin, listener: &str, whole: &str) -> Tested {
    start(plan(origin, listener, whole).unwrap()).await
}

/// The text of a file once it has so many lines.
async fn lines(file: &Path, count: usize) -> Vec<String> {
    let read = async {
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if text.ends_with('\n') && text.lines().count() >= count {
                return text.lines().map(str::to_owned).collect();
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("lines")
}

#[tokio::test]
async fn a_line_of_text_says_what_its_formatters_ask_for() {
    let (origin, _heads) = echo_origin(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let format = "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %REQ(:path)% %REQ(x-a):2% \
                  %REQ(x-none)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% \
                  %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %ROUTE_NAME% %UPSTREAM_CLUSTER% \
                  %UPSTREAM_REQUEST_ATTEMPT_COUNT% %START_TIME(%Y)% %TRACE_ID% 100%%\\n";
    let listener = format!(
        "access_log: {{ path: '{}', text_format: \"{format}\" }}",
        file.display()
    );
    let proxy = proxy(&origin, &listener, "").await;

    let mut client = Raw::connect(proxy.at).await;
    client
        .send("POST /x?y HTTP/1.1\r\nhost: h\r\nx-a: abc\r\ncontent-length: 3\r\n\r\nabc")
        .await;
    client.response().await;

    let line = lines(&file, 1).await.remove(0);
    let (year, rest) = {
        let fields: Vec<_> = line.split(' ').collect();
        (fields[14].to_owned(), line.replace(fields[14], "YEAR"))
    };
    assert!(year.len() == 4 && year.starts_with("20"), "{line}");
    assert_eq!(
        rest,
        "POST /x?y /new/x?y ab - HTTP/1.1 200 via_upstream - 3 2 all web 1 YEAR - 100%"
    );
}

#[tokio::test]
async fn a_json_line_has_the_fields_that_were_asked_for_and_the_policies() {
    let (origin, _heads) = echo_origin(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let listener = format!(
        "access_log: {{ path: '{}', omit_empty_values: true, json_format: {{ status: \
         '%RESPONSE_CODE%', none: '%REQ(x-none)%', fixed: 7, in: {{ host: \
         'at %REQ(:authority)%' }}, calls: '%POLICY_CALLS%' }} }}",
        file.display()
    );
    let proxy = proxy(&origin, &listener, "").await;
    Raw::connect(proxy.at).await.get("/").await;

    let line: Value = serde_json::from_str(&lines(&file, 1).await[0]).unwrap();
    assert_eq!(line["status"], 200);
    assert_eq!(line["fixed"], 7);
    assert_eq!(line["in"]["host"], "at test");
    assert!(line.get("none").is_none(), "{line}");
    let call = &line["calls"][0];
    assert_eq!(
        (&call["filter"], &call["phase"]),
        (&"auth".into(), &"check".into())
    );
    assert_eq!(call["result"], "failed_open");
    assert!(call["duration_ms"].is_number(), "{line}");
}

#[tokio::test]
async fn a_filter_decides_what_each_of_several_logs_gets() {
    let (origin, _heads) = echo_origin(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let (found, all) = (folder.path().join("found"), folder.path().join("all"));
    let listener = format!(
        "access_log: [{{ path: '{}', text_format: \"%REQ(x-n)%\\n\", filter: {{ and_filter: {{ \
         filters: [{{ header_filter: {{ header: {{ name: x-log, exact_match: 'yes' }} }} }}, \
         {{ status_code_filter: {{ comparison: {{ op: GE, value: {{ default_value: 200, \
         runtime_key: k }} }} }} }}] }} }} }}, {{ path: '{}', text_format: \"%REQ(x-n)%\\n\" }}]",
        found.display(),
        all.display()
    );
    let proxy = proxy(&origin, &listener, "").await;
    let mut client = Raw::connect(proxy.at).await;
    for (number, log) in [(1, "no"), (2, "yes"), (3, "no"), (4, "yes")] {
        let head = format!("GET / HTTP/1.1\r\nhost: h\r\nx-n: {number}\r\nx-log: {log}\r\n\r\n");
        client.send(&head).await;
        client.response().await;
    }
    assert_eq!(lines(&all, 4).await, ["1", "2", "3", "4"]);
    assert_eq!(lines(&found, 2).await, ["2", "4"]);
}

#[tokio::test]
async fn a_share_of_the_requests_is_the_same_everywhere() {
    let (origin, _heads) = echo_origin(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let log = |file: &Path| {
        format!(
            "preserve_external_request_id: true, access_log: {{ path: '{}', text_format: \
             \"%STREAM_ID%\\n\", sample: 0.5, always: ['slow>1h'] }}",
            file.display()
        )
    };
    // The first eight digits count: of these, the second half is above the share.
    let ids = [
        "00000000-0000-4000-8000-000000000000",
        "0000ffff-0000-4000-8000-000000000000",
        "000c3500-0000-4000-8000-000000000000",
        "000f0000-0000-4000-8000-000000000000",
    ];
    for name in ["one", "other"] {
        let file = folder.path().join(name);
        let proxy = proxy(&origin, &log(&file), "").await;
        let mut client = Raw::connect(proxy.at).await;
        for id in ids {
            let head = format!("GET / HTTP/1.1\r\nhost: h\r\nx-request-id: {id}\r\n\r\n");
            client.send(&head).await;
            client.response().await;
        }
        drop(client);
        proxy.running.shutdown().await;
        assert_eq!(lines(&file, 2).await, ids[..2], "{name}");
    }
}

#[tokio::test]
async fn a_log_file_that_was_moved_away_is_opened_anew() {
    let (origin, _heads) = echo_origin(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let (file, moved) = (folder.path().join("log"), folder.path().join("log.1"));
    let listener = format!(
        "access_log: {{ path: '{}', text_format: \"%REQ(:path)%\\n\" }}",
        file.display()
    );
    let proxy = proxy(&origin, &listener, "").await;
    Raw::connect(proxy.at).await.get("/one").await;
    assert_eq!(lines(&file, 1).await, ["/new/one"]);

    std::fs::rename(&file, &moved).unwrap();
    proxy.running.reopen_logs();
    Raw::connect(proxy.at).await.get("/two").await;

    assert_eq!(lines(&file, 1).await, ["/new/two"]);
    assert_eq!(lines(&moved, 1).await, ["/new/one"]);
}

#[tokio::test]
async fn a_reload_keeps_the_log_files_that_are_open_and_refuses_what_cannot_be_opened() {
    let (origin, _heads) = echo_origin(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let (logs, moved) = (folder.path().join("logs"), folder.path().join("moved"));
    std::fs::create_dir(&logs).unwrap();
    let with = |name: &str| {
        let file = logs.join(name);
        let file = file.display();
        format!("access_log: {{ path: '{file}', text_format: \"%REQ(:path)%\\n\" }}")
    };
    let proxy = proxy(&origin, &with("log"), "").await;
    let reload = async |name: &str| {
        let plan = plan(&origin, &with(name), "").unwrap();
        proxy.running.reload(plan).await
    };
    Raw::connect(proxy.at).await.get("/one").await;
    lines(&logs.join("log"), 1).await;

    // From here on nothing can be opened there.
    std::fs::rename(&logs, &moved).unwrap();
    reload("log").await.unwrap();
    Raw::connect(proxy.at).await.get("/two").await;
    lines(&moved.join("log"), 2).await;
    let error = reload("other").await.unwrap_err().to_string();
    Raw::connect(proxy.at).await.get("/three").await;

    assert_eq!(
        lines(&moved.join("log"), 3).await,
        ["/new/one", "/new/two", "/new/three"]
    );
    assert!(
        error.contains(&logs.join("other").display().to_string()),
        "{error}"
    );
    // A reload opens a file anew that was moved away.
    std::fs::create_dir(&logs).unwrap();
    reload("log").await.unwrap();
    Raw::connect(proxy.at).await.get("/four").await;
    assert_eq!(lines(&logs.join("log"), 1).await, ["/new/four"]);
}

#[tokio::test]
async fn a_formatter_or_a_flag_that_there_is_not_is_an_error_with_the_nearest_one() {
    let (origin, _heads) = echo_origin(OK).await;
    for (log, expected) in [
        (
            "text_format: '%RESPONSE_COD%'",
            "did you mean `%RESPONSE_CODE%`?",
        ),
        (
            "json_format: { a: ['%DURATON%'] }",
            "did you mean `%DURATION%`?",
        ),
        ("text_format: '%START_TIME(%Q)%'", "not the form of a time"),
        (
            "text_format: '%COMMON_DURATION(A:B)%'",
            "no point in time of `%COMMON_DURATION(from:to:unit)%`; there are `DS_CX_BEG`",
        ),
        (
            "text_format: '%COMMON_DURATION(DS_CX_BEG:DS_CX_END)%'",
            "`DS_CX_END` is not known",
        ),
        (
            "text_format: '%DOWNSTREAM_HANDSHAKE_DURATION%'",
            "`%COMMON_DURATION(DS_HS_BEG:DS_HS_END)%` is how long",
        ),
        (
            "text_format: '%UPSTREAM_WIRE_BYTES_SENT%'",
            "not counted request by request",
        ),
        ("format: json, text_format: a", "exclude each other"),
        ("sample: 2", "between 0 and 1"),
        (
            "filter: { response_flag_filter: { flags: [UX] } }",
            "response flag",
        ),
        (
            "filter: { metadata_filter: {} }",
            "`metadata_filter` in `filter` is not supported",
        ),
        (
            "filter: { or_filter: { filters: [] } }",
            "two conditions or more",
        ),
    ] {
        let error = plan(&origin, &format!("access_log: {{ {log} }}"), "").unwrap_err();
        assert!(error.contains(expected), "{log}: {error}");
    }
}

#[tokio::test]
async fn durations_are_counted_by_listener_cluster_and_policy_call() {
    let (origin, _heads) = echo_origin(OK).await;
    let proxy = proxy(&origin, "", "").await;
    Raw::connect(proxy.at).await.get("/").await;
    Raw::connect(proxy.at).await.get("/").await;
    let text = proxy.metrics.render();
    for line in [
        "attache_downstream_request_duration_seconds_count{listener=\"test\"} 2",
        "attache_upstream_request_duration_seconds_count{cluster=\"web\"} 2",
        "attache_filter_call_duration_seconds_count{filter=\"auth\",kind=\"ext_authz\",\
         phase=\"check\",result=\"failed_open\"} 2",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

/// Takes spans.
struct Collector(mpsc::UnboundedSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).unwrap();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn collector() -> (String, mpsc::UnboundedReceiver<ExportTraceServiceRequest>) {
    let (sender, exports) = mpsc::unbounded_channel();
    let routes = Routes::new(TraceServiceServer::new(Collector(sender)));
    let bound = Host::new(routes)
        .bind(&"127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let endpoint = format!("http://{}", bound.address());
    tokio::spawn(bound.serve(Shutdown::new()));
    (endpoint, exports)
}

/// The spans of the first export.
async fn spans(exports: &mut mpsc::UnboundedReceiver<ExportTraceServiceRequest>) -> Vec<Span> {
    let export = tokio::time::timeout(PATIENCE, exports.recv()).await;
    let resources = export.expect("an export").unwrap().resource_spans;
    let scopes = resources.into_iter().flat_map(|r| r.scope_spans);
    scopes.flat_map(|scope| scope.spans).collect()
}

fn named<'s>(spans: &'s [Span], name: &str) -> &'s Span {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "{name} in {spans:?}");
    found[0]
}

fn text(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|one| one.key == key).unwrap();
    match found.value.as_ref().unwrap().value.as_ref().unwrap() {
        WireValue::StringValue(text) => text.clone(),
        WireValue::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_traced_request_has_a_span_for_each_policy_call_and_each_attempt() {
    let (origin, mut heads) = echo_origin(OK).await;
    let (endpoint, mut exports) = collector().await;
    let whole = format!("tracing: {{ endpoint: '{endpoint}', service_name: edge }}");
    let proxy = proxy(&origin, "", &whole).await;

    let mut client = Raw::connect(proxy.at).await;
    let head = format!(
        "GET /x HTTP/1.1\r\nhost: h\r\ntraceparent: 00-{TRACE}-{PARENT}-01\r\ntracestate: a=b\r\n\r\n"
    );
    client.send(&head).await;
    assert_eq!(status(&client.response().await.0), 200);
    drop(client);
    proxy.running.shutdown().await;

    let spans = spans(&mut exports).await;
    let server = named(&spans, "GET all");
    assert_eq!(hex(&server.trace_id), TRACE);
    assert_eq!(hex(&server.parent_span_id), PARENT);
    assert_eq!(server.kind, i32::from(SpanKind::Server));
    assert_eq!(server.trace_state, "a=b");
    assert_eq!(text(server, "http.response.status_code"), "200");
    assert_eq!(text(server, "url.path"), "/x");
    let check = named(&spans, "ext_authz auth");
    assert_eq!(check.parent_span_id, server.span_id);
    assert_eq!(text(check, "attache.result"), "failed_open");
    assert!(check.status.is_some());
    let upstream = named(&spans, "upstream");
    assert_eq!(upstream.parent_span_id, server.span_id);
    assert_eq!(upstream.kind, i32::from(SpanKind::Client));
    for part in [check, upstream] {
        assert!(part.start_time_unix_nano >= server.start_time_unix_nano);
        assert!(part.end_time_unix_nano <= server.end_time_unix_nano);
    }
    let sent = heads.recv().await.unwrap();
    let expected = format!("00-{TRACE}-{}-01", hex(&upstream.span_id));
    assert_eq!(header(&sent, "traceparent"), Some(expected.as_str()));
    assert_eq!(header(&sent, "tracestate"), Some("a=b"));
}

#[tokio::test]
async fn what_the_caller_does_not_record_is_passed_on_so_and_leaves_no_span() {
    let (origin, mut heads) = echo_origin(OK).await;
    let (endpoint, mut exports) = collector().await;
    let whole = format!("tracing: {{ endpoint: '{endpoint}', random_sampling: 0 }}");
    let proxy = proxy(&origin, "", &whole).await;
    let mut client = Raw::connect(proxy.at).await;
    let traced = |flags: &str| {
        format!("GET / HTTP/1.1\r\nhost: h\r\ntraceparent: 00-{TRACE}-{PARENT}-{flags}\r\n\r\n")
    };
    for head in [traced("00"), "GET / HTTP/1.1\r\nhost: h\r\n\r\n".to_owned()] {
        client.send(&head).await;
        client.response().await;
    }
    drop(client);
    proxy.running.shutdown().await;

    // All that was to be sent has been by now.
    assert!(exports.try_recv().is_err());
    let sent = heads.recv().await.unwrap();
    let place = header(&sent, "traceparent").unwrap();
    assert!(
        place.starts_with(&format!("00-{TRACE}-")) && place.ends_with("-00"),
        "{place}"
    );
    let sent = heads.recv().await.unwrap();
    assert!(header(&sent, "traceparent").unwrap().ends_with("-00"));
}

#[tokio::test]
async fn requests_that_nobody_served_are_logged_and_counted_as_others_are() {
    let (origin, _heads) = echo_origin(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let listener = format!(
        "limits: {{ header_timeout: 100ms }}, access_log: [
  {{ path: '{}' }},
  {{ path: '{}', text_format: \"%RESPONSE_CODE_DETAILS%\\n\", sample: 0, always: [errors] }},
  {{ path: '{}', text_format: \"%RESPONSE_CODE_DETAILS%\\n\",
    filter: {{ status_code_filter: {{ comparison: {{ op: EQ, value: {{ default_value: 400 }} }} }} }} }}]",
        file("all").display(),
        file("errors").display(),
        file("refused").display(),
    );
    let proxy = proxy(&origin, &listener, "").await;

    assert_eq!(status(&once(proxy.at, "hello\r\n\r\n").await), 400);
    assert_eq!(status(&once(proxy.at, "GET / HT").await), 408);
    let mut gone = Raw::connect(proxy.at).await;
    gone.send("GET / HT").await;
    gone.0.shutdown().await.unwrap();
    assert_eq!(gone.rest().await, "");
    proxy.running.shutdown().await;

    let all = lines(&file("all"), 3).await;
    let all: Vec<Value> = all
        .iter()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let field = |name: &str| -> Vec<&Value> { all.iter().map(|line| &line[name]).collect() };
    assert_eq!(field("status"), [400, 408, 0]);
    assert_eq!(field("flags"), ["DPE", "", "DC"]);
    assert_eq!(
        field("details"),
        [
            "http1.codec_error",
            "request_header_timeout",
            "downstream_remote_disconnect"
        ]
    );
    for line in &all {
        for unknown in ["method", "path", "host", "request_id", "route"] {
            assert!(line[unknown].is_null(), "{unknown} in {line}");
        }
        assert_eq!(line["protocol"], "HTTP/1.1");
        assert_eq!(line["client"], "127.0.0.1");
    }
    assert!(all[1]["duration_ms"].as_f64().unwrap() >= 100.0);
    assert_eq!(
        lines(&file("errors"), 1).await,
        ["downstream_remote_disconnect"]
    );
    assert_eq!(lines(&file("refused"), 1).await, ["http1.codec_error"]);

    let metrics = proxy.metrics.render();
    // Who is gone was not answered.
    for (class, count) in [("4xx", 2), ("other", 0)] {
        let line = format!(
            "attache_downstream_requests_total{{listener=\"test\",code_class=\"{class}\"}} {count}"
        );
        assert!(metrics.contains(&line), "no {line} in {metrics}");
    }
}

#[tokio::test]
async fn the_trace_of_a_request_stands_in_its_line() {
    let (origin, _heads) = echo_origin(OK).await;
    let (endpoint, _exports) = collector().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let listener = format!(
        "access_log: {{ path: '{}', text_format: \"%TRACE_ID%\\n\", sample: {{ rate: 0.5, by: trace_id }} }}",
        file.display()
    );
    let whole = format!("tracing: {{ endpoint: '{endpoint}' }}");
    let proxy = proxy(&origin, &listener, &whole).await;
    let mut client = Raw::connect(proxy.at).await;
    // The last half of an id decides: 1 is in the share, 999999 is not.
    for last in [999_999u64, 1] {
        let head = format!(
            "GET / HTTP/1.1\r\nhost: h\r\ntraceparent: 00-000000000000000a{last:016x}-{PARENT}-01\r\n\r\n"
        );
        client.send(&head).await;
        client.response().await;
    }
    drop(client);
    proxy.running.shutdown().await;
    assert_eq!(
        lines(&file, 1).await,
        [format!("000000000000000a{:016x}", 1)]
    );
}

#[tokio::test]
async fn a_collector_is_called_within_the_limits_of_its_cluster() {
    let (origin, _heads) = echo_origin(OK).await;
    let (endpoint, mut exports) = collector().await;
    for (limits, traced) in [("{}", true), ("{ max_requests: 0, max_retries: 0 }", false)] {
        let plan = read(&format!(
            "listeners: [{{ name: test, address: '127.0.0.1:0' }}]
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters:
- {{ name: web, endpoints: ['{}'] }}
- {{ name: traces, endpoints: ['{}'], http2: {{}}, circuit_breakers: {{ thresholds: [{limits}] }} }}
tracing: {{ cluster: traces }}
workers: 1",
            origin.at,
            endpoint.trim_start_matches("http://"),
        ));
        let proxy = start(plan.unwrap()).await;
        Raw::connect(proxy.at).await.get("/").await;
        proxy.running.shutdown().await;

        assert_eq!(exports.try_recv().is_ok(), traced, "{limits}");
        let text = proxy.metrics.render();
        for counted in [
            "attache_upstream_overflowed_total{cluster=\"traces\",resource=\"requests\"} 1",
            "attache_upstream_retries_overflowed_total{cluster=\"traces\"} 1",
            "attache_trace_spans_total{result=\"failed\"} 2",
        ] {
            assert_eq!(
                text.contains(counted),
                !traced,
                "{limits} {counted}: {text}"
            );
        }
    }
}

#[test]
fn tracing_without_a_collector_or_with_a_wrong_share_is_an_error() {
    for (tracing, expected) in [
        ("{}", "needs either `endpoint` or `cluster`"),
        ("{ endpoint: 'collector:4317' }", "`http://` or `https://`"),
        ("{ cluster: nobody }", "cluster"),
        ("{ cluster: web }", "needs `http2: {}`"),
        (
            "{ endpoint: 'http://a', random_sampling: 101 }",
            "between 0 and 100",
        ),
        (
            "{ endpoint: 'http://a', verbose: true }",
            "`verbose` in `tracing` is not supported",
        ),
    ] {
        let error = read(&format!(
            "listeners: [{{ name: test, address: '127.0.0.1:0' }}]
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters: [{{ name: web, endpoints: ['{NOBODY}'] }}]
tracing: {tracing}"
        ))
        .unwrap_err();
        assert!(error.contains(expected), "{tracing}: {error}");
    }
}
