//! What the framework serves gives no findings, in any mode.

use std::time::Duration;

use super::*;
use crate::server::{
    Body, Immediate, Processor, RequestHead, ResponseHead, Result, Server, Trailers,
};

#[derive(Clone)]
struct Pass;

impl Processor for Pass {}

#[derive(Clone)]
struct Everything;

impl Processor for Everything {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        request.headers.insert("x-seen", "yes")?;
        request.headers.remove("accept")?;
        Ok(())
    }

    async fn request_body(&mut self, body: &mut Body<'_>) -> Result {
        let data = body.take();
        body.push(data.to_ascii_uppercase());
        body.push("+");
        Ok(())
    }

    async fn request_trailers(&mut self, trailers: &mut Trailers) -> Result {
        trailers.headers.insert("x-trailer", "yes")?;
        Ok(())
    }

    async fn response_headers(&mut self, response: &mut ResponseHead) -> Result {
        response.headers.insert("x-seen", "yes")?;
        Ok(())
    }

    async fn response_body(&mut self, body: &mut Body<'_>) -> Result {
        body.take();
        Ok(())
    }
}

#[derive(Clone)]
struct Whole;

impl Processor for Whole {
    async fn response_body(&mut self, body: &mut Body<'_>) -> Result {
        if let Some(whole) = body.whole()? {
            body.replace(format!("{} bytes", whole.len()));
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Refuse;

impl Processor for Refuse {
    async fn request_headers(&mut self, _: &mut RequestHead) -> Result {
        Err(Immediate::new(403).body("no").into())
    }
}

async fn found(host: Host) -> Vec<(&'static str, Finding)> {
    let report = probe(host, &[], |_| {}).await;
    assert!(report.cases.len() > 30);
    let each = report.cases.into_iter();
    each.flat_map(|case| case.findings.into_iter().map(move |f| (case.name, f)))
        .filter(|(_, finding)| finding.code.severity() < Severity::Note)
        .collect()
}

#[tokio::test]
async fn a_processor_that_does_nothing_gives_no_findings() {
    assert_eq!(found(Server::new(Pass).into_host()).await, []);
}

#[tokio::test]
async fn a_processor_that_changes_everything_gives_no_findings() {
    assert_eq!(found(Server::new(Everything).into_host()).await, []);
}

#[tokio::test]
async fn a_processor_that_wants_whole_bodies_gives_no_findings() {
    let cases = [
        "buffered",
        "buffered-large",
        "streamed",
        "streamed-outstanding",
        "full-duplex",
    ];
    let report = probe(Server::new(Whole).into_host(), &cases, |_| {}).await;
    assert_eq!(codes(&report), []);
}

#[tokio::test]
async fn a_processor_that_refuses_gives_no_findings() {
    assert_eq!(found(Server::new(Refuse).into_host()).await, []);
}

#[tokio::test]
async fn health_and_latencies_are_reported() {
    let report = probe(
        Server::new(Pass).into_host(),
        &["headers", "buffered"],
        |_| {},
    )
    .await;

    assert_eq!(report.server.health, Health::Serving);
    let latencies = report.latencies();
    assert_eq!(latencies[&Phase::Headers(Side::Request)].count, 2);
    assert_eq!(latencies[&Phase::Body(Side::Response)].count, 1);
    assert!(latencies[&Phase::Headers(Side::Request)].max < LENIENT);
    let text = report.to_string();
    assert!(text.contains("health: serving"), "{text}");
    assert!(text.contains("request_headers"), "{text}");
    assert!(report.passes(true));
    assert_eq!(report.json()["cases"][1]["verdict"], "ok");
}

#[tokio::test]
async fn nobody_there_is_said_so() {
    let nobody = Target::Address("unix:/nonexistent/probe.sock".parse().unwrap());
    let channel = Channel::new(ChannelSettings::new("p", vec![nobody]));
    let mut plan = Plan::new(Content::default());
    plan.hang_timeout = Duration::from_secs(1);

    let error = run(&channel, &plan, |_| {}).await.unwrap_err();
    assert!(matches!(error, NotServed::Unreachable(_)), "{error}");
    assert!(
        error.to_string().contains("/nonexistent/probe.sock"),
        "{error}"
    );
}

#[tokio::test]
async fn another_service_is_told_from_a_processor() {
    let host = Host::new(Routes::default());
    let plan = Plan::new(Content::default());

    let error = run(&channel(host), &plan, |_| {}).await.unwrap_err();
    assert!(matches!(error, NotServed::Unimplemented(..)), "{error}");
}
