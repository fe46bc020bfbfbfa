//! The example processors in every language, behind real Envoy and behind our proxy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use attache_tests::{
    board::{Board, brief, pretty},
    client,
    envoy::{self, Envoy},
    envoy_config, noise,
    origin::Origin,
    ours::{self, RunningProxy},
    processors::{GO, JAVA, Language, NODE, PYTHON, Running},
    scenario::Scenario,
};
use serde_json::Value;

/// How long one exchange may take.
const LIMIT: Duration = Duration::from_secs(20);

const ALL: &[&str] = &[BUFFERED, STREAMED, FULL_DUPLEX];
const BUFFERED: &str = "BUFFERED";
const STREAMED: &str = "STREAMED";
const FULL_DUPLEX: &str = "FULL_DUPLEX_STREAMED";

/// What a processor must do: a file of scenarios, and the body modes that it holds for.
struct Suite {
    processor: &'static str,
    file: &'static str,
    modes: &'static [&'static str],
    /// Whether the processor is to report an error, which it must do nowhere else.
    fails: bool,
}

const fn suite(
    processor: &'static str,
    file: &'static str,
    modes: &'static [&'static str],
) -> Suite {
    Suite {
        processor,
        file,
        modes,
        fails: false,
    }
}

const fn failing(
    processor: &'static str,
    file: &'static str,
    modes: &'static [&'static str],
) -> Suite {
    Suite {
        processor,
        file,
        modes,
        fails: true,
    }
}

const SUITES: &[Suite] = &[
    suite("add-header", "add-header", ALL),
    suite("rewrite-json", "rewrite-json", ALL),
    suite(
        "rewrite-json",
        "rewrite-json-trailers",
        &[BUFFERED, FULL_DUPLEX],
    ),
    failing("rewrite-json", "rewrite-json-failure", &[BUFFERED]),
    suite("redact", "redact", ALL),
    suite("redact", "redact-pieces", &[STREAMED, FULL_DUPLEX]),
    suite("redact", "redact-duplex", &[FULL_DUPLEX]),
    failing("redact", "redact-failure", &[STREAMED]),
];

/// Both proxies in front of a processor, in one body mode.
struct Stand {
    processor: &'static str,
    mode: &'static str,
    ours: RunningProxy,
    envoy: Option<SocketAddr>,
}

fn config(origin: SocketAddr, processor: &Running, mode: &str) -> String {
    format!(
        "
listeners: [{{ name: edge, address: '127.0.0.1:0', filters: [processor] }}]
filters:
  processor:
    ext_proc:
      grpc_service: {{ envoy_grpc: {{ cluster_name: processor }} }}
      message_timeout: 10s
      processing_mode:
        request_body_mode: {mode}
        response_body_mode: {mode}
        request_trailer_mode: SEND
        response_trailer_mode: SEND
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters:
- {{ name: web, endpoints: ['{origin}'], connect_timeout: 5s }}
- {{ name: processor, endpoints: ['{}'], http2: {{}}, connect_timeout: 5s }}
workers: 1
",
        processor.address
    )
}

/// Runs all suites against the processors that these programs serve.
async fn verify(programs: Vec<(&'static str, Running)>) {
    // Each request comes on a connection of its own, so one origin serves them all, one by one.
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    origin.set_nonblocking(true).unwrap();
    let mut stands = Vec::new();
    let mut parts = Vec::new();
    for (processor, running) in &programs {
        for mode in ALL {
            let config = config(origin.local_addr().unwrap(), running, mode);
            let (read, _) = ours::read(&config).unwrap();
            parts.push(envoy_config::exported(parts.len(), &read).unwrap());
            stands.push(Stand {
                processor,
                mode,
                ours: ours::start_ours(&config).await.unwrap(),
                envoy: None,
            });
        }
    }
    let envoy = match envoy::program() {
        None => None,
        Some(program) => Some(Envoy::start(&program, &parts).await.unwrap()),
    };
    if let Some(envoy) = &envoy {
        for (nth, stand) in stands.iter_mut().enumerate() {
            stand.envoy = envoy.address(nth);
        }
    }
    let mut wrong = Vec::new();
    for fails in [false, true] {
        for suite in SUITES.iter().filter(|suite| suite.fails == fails) {
            let here = |stand: &&Stand| {
                stand.processor == suite.processor && suite.modes.contains(&stand.mode)
            };
            for stand in stands.iter().filter(here) {
                wrong.extend(stand.run(suite, &origin).await);
            }
        }
        if !fails {
            for (processor, running) in &programs {
                let log = running.log();
                let lines = log.lines().filter(|line| !line.contains(" INFO "));
                wrong.extend(lines.map(|line| format!("{processor} complains: {line}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

impl Stand {
    async fn run(&self, suite: &Suite, origin: &TcpListener) -> Vec<String> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/processors");
        let text = std::fs::read_to_string(format!("{folder}/{}.yaml", suite.file)).unwrap();
        let proxies = [("Envoy", self.envoy), ("ours", Some(self.ours.address))];
        let mut wrong = Vec::new();
        for scenario in Scenario::load(suite.file, &text).unwrap() {
            for (proxy, address) in proxies {
                let Some(address) = address else { continue };
                let place = format!("{}, {}, through {proxy}", scenario.title(), self.mode);
                match observe(&scenario, origin, address).await {
                    Err(error) => wrong.push(format!("{place}: {error}")),
                    Ok(seen) => {
                        let mut found = scenario.expect.differences(&seen);
                        if found.is_empty() {
                            let toothless = scenario.expect.toothless(&seen);
                            let part = |part| format!("{part} would match anything");
                            found.extend(toothless.iter().map(part));
                        }
                        if !found.is_empty() {
                            let seen = pretty(&brief(&seen));
                            wrong.push(format!("{place}: {}\nseen: {seen}", found.join("\n")));
                        }
                    }
                }
            }
        }
        wrong
    }
}

async fn observe(
    scenario: &Scenario,
    origin: &TcpListener,
    proxy: SocketAddr,
) -> Result<Value, String> {
    let board = Board::new();
    let listener = tokio::net::TcpListener::from_std(origin.try_clone().unwrap()).unwrap();
    let mut answer = scenario.origin.clone();
    answer.headers.push("connection: close".into());
    answer.close = true;
    let serving = tokio::spawn(Origin::new("web", &answer, &board).serve(listener));
    let run = client::run(proxy, &scenario.request, &board);
    match tokio::time::timeout(LIMIT, run).await {
        Ok(result) => result?,
        Err(_) => board.error("the client waited in vain for the end of its response"),
    }
    board.wait_idle().await;
    serving.abort();
    let mut seen = board.observation()?;
    noise::clean(&mut seen, "");
    Ok(seen)
}

const PROCESSORS: [&str; 3] = ["add-header", "rewrite-json", "redact"];

async fn verify_language(language: Language) {
    let mut programs = Vec::new();
    for processor in PROCESSORS {
        let Some(program) = language.program(processor) else {
            assert!(
                std::env::var("ATTACHE_REQUIRE_ALL").as_deref() != Ok("1"),
                "the processors in {} are not built",
                language.title
            );
            println!(
                "skipped: processors in {} (run cargo xtask test)",
                language.title
            );
            return;
        };
        let running = Running::start(program).await;
        programs.push((
            processor,
            running.unwrap_or_else(|why| panic!("{processor}: {why}")),
        ));
    }
    verify(programs).await;
}

#[tokio::test]
async fn processors_in_go_do_their_work() {
    verify_language(GO).await;
}

#[tokio::test]
async fn processors_in_python_do_their_work() {
    verify_language(PYTHON).await;
}

#[tokio::test]
async fn processors_in_node_do_their_work() {
    verify_language(NODE).await;
}

#[tokio::test]
async fn processors_in_java_do_their_work() {
    verify_language(JAVA).await;
}

#[tokio::test]
async fn processors_in_rust_do_their_work() {
    let mut programs = Vec::new();
    for (processor, program) in [
        ("add-header", env!("CARGO_BIN_EXE_example-add-header")),
        ("rewrite-json", env!("CARGO_BIN_EXE_example-rewrite-json")),
        ("redact", env!("CARGO_BIN_EXE_example-redact")),
    ] {
        let running = Running::start_unix(Command::new(program)).await;
        programs.push((processor, running.unwrap()));
    }
    verify(programs).await;
}
