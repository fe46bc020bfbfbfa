//! Our answers beside those of Open Policy Agent: some hundred policies of ours, each asked about
//! several inputs by both. A policy is answered alike, or refused when it is loaded.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::rego::{Module, Program, Sources};

/// A running Open Policy Agent.
struct Agent {
    process: Child,
    folder: TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Agent {
    fn start(program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("opa.sock");
        let process = Command::new(program)
            .args([
                "run",
                "--server",
                "--skip-version-check",
                "--log-level=error",
            ])
            .arg(format!("--addr=unix://{}", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { process, folder };
        let begun = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "it does not start"
            );
            std::thread::yield_now();
        }
        agent
    }

    /// One call: status and body.
    fn call(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let socket = self.folder.path().join("opa.sock");
        let mut stream = UnixStream::connect(socket).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// Loads a module; whether it is one.
    fn load(&self, module: &str) -> Result<(), String> {
        match self.call("PUT", "/v1/policies/case", module) {
            (200, _) => Ok(()),
            (400, problem) => Err(problem),
            other => panic!("{other:?}"),
        }
    }

    fn ask(&self, input: &Value) -> Answer {
        let body = json!({ "input": input }).to_string();
        match self.call("POST", "/v1/data/case/r", &body) {
            (200, answer) => {
                let answer: Value = serde_json::from_str(&answer).unwrap();
                match answer.get("result") {
                    Some(value) => Answer::Value(value.clone()),
                    None => Answer::Undefined,
                }
            }
            (_, problem) => Answer::Error(problem),
        }
    }
}

#[derive(Debug)]
enum Answer {
    Value(Value),
    Undefined,
    // Shown when two answers differ.
    Error(#[allow(dead_code)] String),
}

impl Answer {
    fn ours(program: &Arc<Program>, input: &Value) -> Self {
        match program.evaluate(regorus::Value::from(input.clone())) {
            Ok(regorus::Value::Undefined) => Self::Undefined,
            Ok(value) => Self::Value(serde_json::to_value(&value).unwrap()),
            Err(problem) => Self::Error(problem),
        }
    }

    fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Value(one), Self::Value(other)) => same(one, other),
            (Self::Undefined, Self::Undefined) => true,
            // Who gets no decision gets no wrong one.
            (Self::Error(_), _) => true,
            _ => false,
        }
    }
}

/// Whether two values are the same; numbers may be written differently.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        // Fractions have 53 bits here, and more there.
        (Value::Number(one), Value::Number(other)) => match (one.as_f64(), other.as_f64()) {
            (Some(one), Some(other)) => (one - other).abs() <= other.abs() * 1e-15,
            _ => one == other,
        },
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(a, b)| same(a, b))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .all(|(key, a)| other.get(key).is_some_and(|b| same(a, b)))
        }
        _ => one == other,
    }
}

fn load(module: &str) -> Result<Arc<Program>, String> {
    let sources = Sources {
        modules: vec![Module {
            place: "case.rego".to_owned(),
            text: module.to_owned(),
        }],
        data: Vec::new(),
    };
    Program::load(sources, "data.case.r", Duration::from_secs(5)).map(Arc::new)
}

/// The policies: name and text.
fn policies() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policies");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let mut policies = Vec::new();
    for line in read("expressions.rego").lines() {
        if !line.starts_with('#') {
            policies.push((line.to_owned(), format!("package case\nr := {line}\n")));
        }
    }
    for case in read("modules.rego").split("### ").skip(1) {
        let (name, text) = case.split_once('\n').unwrap();
        policies.push((name.to_owned(), format!("package case\n{text}")));
    }
    policies
}

fn inputs() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policies/inputs.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn policies_are_answered_as_open_policy_agent_does_or_refused() {
    let Some(program) = std::env::var_os("ATTACHE_OPA").map(PathBuf::from) else {
        assert!(
            std::env::var_os("ATTACHE_REQUIRE_ALL").is_none(),
            "ATTACHE_OPA is not set"
        );
        eprintln!("left out: ATTACHE_OPA is not set");
        return;
    };
    let agent = Agent::start(&program);
    let inputs = inputs();
    let (mut answered, mut refused, mut invalid) = (0, Vec::new(), Vec::new());
    let mut failed = Vec::new();
    let mut wrong = Vec::new();
    for (name, module) in policies() {
        let ours = load(&module);
        if let Err(problem) = agent.load(&module) {
            // Not a policy at all; what we make of it is nobody's business.
            invalid.push(format!("{name}: {problem}"));
            continue;
        }
        match ours {
            Err(problem) => refused.push(format!("{name}: {problem}")),
            Ok(program) => {
                answered += 1;
                for (number, input) in inputs.iter().enumerate() {
                    let ours = Answer::ours(&program, input);
                    let theirs = agent.ask(input);
                    if matches!(ours, Answer::Error(_)) && !matches!(theirs, Answer::Error(_)) {
                        failed.push(format!("{name} (input {number}): {ours:?}"));
                    }
                    if !ours.agrees(&theirs) {
                        wrong.push(format!("{name} (input {number})\n  {ours:?}\n  {theirs:?}"));
                    }
                }
            }
        }
    }
    if std::env::var_os("ATTACHE_OPA_REPORT").is_some() {
        eprintln!("failed:\n{}", failed.join("\n"));
        eprintln!("refused:\n{}", refused.join("\n"));
        eprintln!("invalid:\n{}", invalid.join("\n"));
    }
    eprintln!(
        "{answered} policies answered ({} answers were errors of ours alone), {} refused, {} invalid",
        failed.len(),
        refused.len(),
        invalid.len()
    );
    assert!(
        wrong.is_empty(),
        "{}\n{} wrong",
        wrong.join("\n"),
        wrong.len()
    );
    assert!(answered >= 200, "{answered}");
}
