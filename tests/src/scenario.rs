//! The format of scenario files; `README.md` shows it by example.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::board::{Condition, Headers};
use crate::script::Script;
use crate::text;
use crate::tls::Tls;

/// One scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The behaviour, in words. It is the test's name.
    pub name: String,
    /// The numbers of the behaviour in the specification of its folder.
    #[serde(default)]
    pub spec: Vec<u32>,
    /// Further settings of the listener, with Envoy's names.
    #[serde(default)]
    pub listener: Map<String, Value>,
    /// The filters in their order: `{name: …, ext_proc: {…}}` and so on. Default: none.
    #[serde(default)]
    pub filters: Vec<Map<String, Value>>,
    /// Envoy's routes; without any, everything goes to the cluster `web`.
    #[serde(default = "Scenario::default_routes")]
    pub routes: Vec<Value>,
    /// Envoy's virtual hosts, for what routes alone cannot show.
    #[serde(default)]
    pub virtual_hosts: Vec<Value>,
    /// Envoy's settings of all routes together, such as `request_headers_to_add`.
    #[serde(default)]
    pub route_configuration: Map<String, Value>,
    /// The requests at the origins are shown cluster by cluster, as their order is a matter of
    /// luck.
    #[serde(default)]
    pub by_cluster: bool,
    /// What policies are told of the proxy. All scenarios are one node of Envoy's: `cluster`
    /// is the same in all that have it.
    #[serde(default)]
    pub node: Option<Value>,
    /// Further settings of clusters, by name.
    #[serde(default)]
    pub clusters: BTreeMap<String, Map<String, Value>>,
    /// What the service `policy` answers.
    #[serde(default)]
    pub service: Option<Value>,
    /// What several services answer, by name.
    #[serde(default)]
    pub services: BTreeMap<String, Value>,
    /// What the origins answer.
    #[serde(default)]
    pub origin: Outgoing,
    /// What the client sends.
    #[serde(default)]
    pub request: Outgoing,
    /// What everybody sees.
    pub expect: Expect,
    /// Parts of the observation that are a matter of luck even through Envoy:
    /// whether they are alike is not compared.
    #[serde(default)]
    pub racy: Vec<String>,
    /// The row of the table of deviations that this scenario shows.
    #[serde(default)]
    pub deviates: Option<String>,
    /// What everybody sees through our proxy, only where we deviate.
    #[serde(default)]
    pub expect_ours: Option<Expect>,
    /// A part of the message with which our proxy refuses the scenario's
    /// configuration, while it has no such setting; `behaviour` where it has
    /// the setting, but does not behave so yet.
    #[serde(default)]
    pub not_yet: Option<String>,
    /// Why our proxy will never run this scenario.
    #[serde(default)]
    pub envoy_only: Option<String>,
    /// Where the scenario stands: `ext_proc/headers`.
    #[serde(skip)]
    pub file: String,
}

/// Behaviours that no scenario shows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// The number in the specification.
    pub spec: u32,
    /// The behaviour.
    pub what: String,
    /// Why it is left out.
    pub reason: String,
    /// The kind of filter: the folder of the file.
    #[serde(skip)]
    pub kind: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    common: Map<String, Value>,
    #[serde(default)]
    left_out: Vec<LeftOut>,
    #[serde(default)]
    scenarios: Vec<Map<String, Value>>,
}

/// A message that a script sends: the client's request or an origin's answer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Outgoing {
    /// `h1` (also if absent) or `h2`.
    pub protocol: Option<String>,
    /// A request's method, `GET` if absent.
    pub method: Option<String>,
    /// A request's path, `/` if absent.
    pub path: Option<String>,
    /// The client asks for an upgrade to this by an extended CONNECT (RFC 8441). Over HTTP/2 only.
    pub extended_connect: Option<String>,
    /// A response's status, 200 if absent.
    pub status: Option<u16>,
    /// Interim statuses that an origin of HTTP/1.1 sends before its answer.
    pub interim: Vec<u16>,
    /// Headers; `host` and the framing are added unless given.
    pub headers: Vec<Value>,
    /// A body with its length.
    pub body: Option<Value>,
    /// A chunked body that leaves in one write.
    pub chunks: Option<Vec<Value>>,
    /// A chunked body (one with a length where `headers` give it) that leaves
    /// piece by piece.
    pub steps: Option<Vec<BodyStep>>,
    /// Trailers after a chunked body.
    pub trailers: Vec<Value>,
    /// The client sends its request so often on one HTTP/1.1 connection, each
    /// time after the response.
    pub times: Option<usize>,
    /// An origin waits for this before it answers.
    pub wait: Option<Condition>,
    /// An origin answers before it has read the request's body.
    pub early: bool,
    /// An origin never answers.
    pub silent: bool,
    /// The connection closes after this message.
    pub close: bool,
    /// After the head bytes go as they are, both ways at once, until the
    /// connection closes: an upgrade, or the inside of a CONNECT.
    pub raw: bool,
    /// An origin speaks no HTTP at all: raw bytes from the start.
    pub tcp: bool,
    /// The client speaks TLS.
    pub tls: Option<Tls>,
    /// The client leaves when this was seen, whatever it still waits for.
    pub leave: Option<Condition>,
}

/// A step in sending a body.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BodyStep {
    /// Wait until this was seen.
    pub r#await: Option<Condition>,
    /// Send this piece.
    pub send: Option<Value>,
    /// Close the connection here.
    pub abort: bool,
    /// Send until the proxy takes no more for half a second, and note how much
    /// it took.
    pub stall: bool,
}

/// What was expected, each part as far as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// The client's response.
    pub client: Option<Value>,
    /// The client's responses before its last one.
    pub earlier: Option<Value>,
    /// The messages at the service `policy`: all of them, in order.
    pub service: Option<Value>,
    /// The messages at several services.
    pub services: BTreeMap<String, Value>,
    /// The requests at the origins: all of them, in order; `none` for none.
    pub origin: Option<Value>,
    /// The calls at the services: how many, or all of them, in order.
    pub calls: Option<Value>,
    /// The filter's counters that are not 0, summed over all instances.
    pub stats: Option<Value>,
    /// The line in the proxy's access log.
    pub log: Option<Value>,
}

/// One piece of a body as it leaves.
#[derive(Debug, Clone, Default)]
pub struct Piece {
    /// What to wait for.
    pub wait: Option<Condition>,
    /// The bytes.
    pub data: Vec<u8>,
    /// Close the connection instead.
    pub abort: bool,
    /// Send until the proxy takes no more.
    pub stall: bool,
}

/// A body as it leaves.
#[derive(Debug, Clone)]
pub struct Payload {
    /// Headers with the framing.
    pub headers: Headers,
    /// Whether it is chunked.
    pub chunked: bool,
    /// Whether the pieces leave one by one.
    pub stepwise: bool,
    /// The pieces.
    pub steps: Vec<Piece>,
    /// Trailers.
    pub trailers: Headers,
}

impl Scenario {
    /// The kinds of filter that a scenario can have.
    pub const KINDS: [&str; 3] = ["ext_proc", "ext_authz", "ratelimit"];

    /// The filters that a scenario can have: those and the proxy's own.
    pub const FILTERS: [&str; 4] = ["ext_proc", "ext_authz", "ratelimit", "grpc_web"];

    /// The folders of scenarios: one for each kind of filter, and one for the proxy itself.
    pub const FOLDERS: [&str; 4] = ["ext_proc", "ext_authz", "ratelimit", "proxy"];

    fn default_routes() -> Vec<Value> {
        vec![json!({ "match": { "prefix": "/" }, "route": { "cluster": "web" } })]
    }

    /// All scenarios below the folder `scenarios`.
    pub fn load_all() -> Result<Vec<Self>, String> {
        let files = Self::files()?;
        let mut all = Vec::new();
        for (name, text) in files {
            all.extend(Self::load(&name, &text)?);
        }
        Ok(all)
    }

    /// What the files leave out.
    pub fn left_out() -> Result<Vec<LeftOut>, String> {
        let mut all = Vec::new();
        for (name, text) in Self::files()? {
            let read: File = serde_saphyr::from_str(&text).map_err(|e| format!("{name}: {e}"))?;
            let kind = name.split('/').next().unwrap_or_default();
            all.extend(read.left_out.into_iter().map(|left| LeftOut {
                kind: kind.to_owned(),
                ..left
            }));
        }
        Ok(all)
    }

    /// All files of scenarios, by their short names.
    fn files() -> Result<Vec<(String, String)>, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut all = Vec::new();
        for kind in Self::FOLDERS {
            let folder = std::fs::read_dir(root.join(kind)).map_err(|e| e.to_string())?;
            let mut files: Vec<PathBuf> = folder.filter_map(|f| Some(f.ok()?.path())).collect();
            files.sort();
            for file in files {
                let text = std::fs::read_to_string(&file).map_err(|e| e.to_string())?;
                let stem = file.file_stem().unwrap_or_default().to_string_lossy();
                all.push((format!("{kind}/{stem}"), text));
            }
        }
        Ok(all)
    }

    /// The scenarios of one file. What stands under `common` holds for each
    /// that does not say otherwise.
    pub fn load(file: &str, text: &str) -> Result<Vec<Self>, String> {
        let read: File = serde_saphyr::from_str(text).map_err(|e| format!("{file}: {e}"))?;
        let mut all = Vec::new();
        for scenario in read.scenarios {
            let mut whole = read.common.clone();
            whole.extend(scenario);
            let name = whole.get("name").map(Value::to_string).unwrap_or_default();
            let mut scenario: Self = serde_json::from_value(Value::Object(whole))
                .map_err(|e| format!("{file}: {name}: {e}"))?;
            scenario.file = file.to_owned();
            scenario
                .check()
                .map_err(|e| format!("{file}: {name}: {e}"))?;
            all.push(scenario);
        }
        Ok(all)
    }

    fn check(&self) -> Result<(), String> {
        self.scripts()?;
        self.filters()?;
        self.origin.payload()?;
        self.request.payload()?;
        if self.deviates.is_some() != self.expect_ours.is_some() {
            return Err("`deviates` and `expect_ours` belong together".to_owned());
        }
        let expect = &self.expect;
        let parts = [
            &expect.client,
            &expect.service,
            &expect.origin,
            &expect.stats,
        ];
        if parts.iter().all(|part| part.is_none()) && expect.services.is_empty() {
            return Err("nothing is expected".to_owned());
        }
        Ok(())
    }

    /// Whether a filter calls its service by HTTP/1.1 and JSON.
    pub fn calls_http(&self) -> bool {
        let text = format!("{:?}{:?}", self.filters, self.routes);
        text.contains("http_service")
    }

    /// Whether what services get over HTTP/1.1 are checks.
    pub fn checks_http(&self) -> bool {
        let mut filters = self
            .filters
            .iter()
            .filter_map(|filter| filter.get("ext_authz"));
        filters.any(|body| !body["http_service"].is_null())
            || format!("{:?}", self.routes).contains("server_uri")
    }

    /// The kind of filter that it is about: the folder of its file.
    pub fn kind(&self) -> &str {
        self.file.split('/').next().unwrap_or_default()
    }

    /// Whether our proxy takes the settings, but behaves otherwise as yet.
    pub fn is_pending(&self) -> bool {
        self.not_yet.as_deref() == Some("behaviour")
    }

    /// Whether anybody looks at the access log.
    pub fn is_logged(&self) -> bool {
        let ours = self.expect_ours.as_ref().is_some_and(|e| e.log.is_some());
        ours || self.expect.log.is_some()
    }

    /// Whether anybody looks at the counters.
    pub fn is_counted(&self) -> bool {
        let ours = self.expect_ours.as_ref().is_some_and(|e| e.stats.is_some());
        ours || self.expect.stats.is_some()
    }

    /// The test's name.
    pub fn title(&self) -> String {
        format!("{}: {}", self.file, self.name)
    }

    /// The services' scripts by name; there always is `policy`.
    pub fn scripts(&self) -> Result<BTreeMap<String, Script>, String> {
        let mut scripts = BTreeMap::from([("policy".to_owned(), Script::default())]);
        if let Some(script) = &self.service {
            scripts.insert("policy".to_owned(), Script::parse(script)?);
        }
        for (name, script) in &self.services {
            scripts.insert(name.clone(), Script::parse(script)?);
        }
        Ok(scripts)
    }

    /// The filters as name, kind and settings.
    pub fn filters(&self) -> Result<Vec<(String, &'static str, Value)>, String> {
        let one = |filter: &Map<String, Value>| {
            let kind = Self::FILTERS
                .into_iter()
                .find(|kind| filter.contains_key(*kind));
            let kind = kind.ok_or("a filter of no known kind")?;
            let name = filter.get("name").and_then(Value::as_str).unwrap_or(kind);
            let beside = ["name", "disabled"].map(|key| usize::from(filter.contains_key(key)));
            if filter.len() > 1 + beside.iter().sum::<usize>() {
                return Err(format!("the filter {name} has too many fields"));
            }
            Ok((name.to_owned(), kind, complete(kind, &filter[kind])))
        };
        self.filters.iter().map(one).collect()
    }

    /// Whether the filter `name` is off unless a route speaks of it.
    pub fn is_off(&self, name: &str) -> bool {
        let off = |filter: &&Map<String, Value>| filter.get("disabled") == Some(&json!(true));
        let mut off = self.filters.iter().filter(off);
        off.any(|filter| {
            let named = filter.get("name").and_then(Value::as_str);
            named.map_or_else(|| filter.contains_key(name), |named| named == name)
        })
    }
}

/// Adds what every filter needs and no scenario is about: the service
/// `policy`, and more time than the default, since a busy machine must not
/// make a scenario fail. A setting that is `null` stays out.
fn complete(kind: &str, body: &Value) -> Value {
    let mut body = body.as_object().cloned().unwrap_or_default();
    let service = json!({ "envoy_grpc": { "cluster_name": "policy" } });
    let patient = |body: &mut Map<String, Value>, key: &str| {
        body.entry(key).or_insert(json!("10s"));
    };
    match kind {
        "grpc_web" => {}
        "ext_proc" => {
            if !body.contains_key("http_service") {
                body.entry("grpc_service").or_insert(service);
            }
            patient(&mut body, "message_timeout");
        }
        "ext_authz" => {
            body.entry("transport_api_version").or_insert(json!("V3"));
            match body.get_mut("http_service") {
                Some(http) => patient_server(http),
                None => {
                    let service = body.entry("grpc_service").or_insert(service);
                    if let Some(service) = service.as_object_mut() {
                        patient(service, "timeout");
                    }
                }
            }
        }
        _ => {
            body.entry("rate_limit_service")
                .or_insert(json!({ "grpc_service": service, "transport_api_version": "V3" }));
            body.entry("domain").or_insert(json!("test"));
            patient(&mut body, "timeout");
        }
    }
    without_nulls(Value::Object(body))
}

/// An auth service over plain HTTP; the path of its URI counts for nothing.
fn patient_server(service: &mut Value) {
    if service["server_uri"].is_null() {
        service["server_uri"] = json!({});
    }
    let uri = &mut service["server_uri"];
    let settings = [
        ("uri", "http://auth.test/ignored"),
        ("cluster", "policy-http"),
        ("timeout", "10s"),
    ];
    for (key, value) in settings {
        if uri[key].is_null() {
            uri[key] = json!(value);
        }
    }
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                kept.map(|(key, value)| (key, without_nulls(value)))
                    .collect(),
            )
        }
        other => other,
    }
}

impl Piece {
    fn of(data: Vec<u8>) -> Self {
        Self {
            data,
            ..Self::default()
        }
    }
}

impl Outgoing {
    /// The message with `prefix` in the place of `<prefix>` in its headers: a request that names
    /// a cluster has to name it as the proxy does.
    #[must_use]
    pub fn naming(&self, prefix: &str) -> Self {
        let mut named = self.clone();
        for header in &mut named.headers {
            if let Value::String(text) = header {
                *text = text.replace("<prefix>", prefix);
            }
        }
        named
    }

    /// Whether this side speaks HTTP/2.
    pub fn is_h2(&self) -> bool {
        self.protocol.as_deref() == Some("h2")
    }

    /// The message's headers and the pieces of its body.
    pub fn payload(&self) -> Result<Payload, String> {
        let list = |lines: &[Value]| lines.iter().map(text::to_header).collect::<Result<_, _>>();
        let mut headers: Headers = list(&self.headers)?;
        let given = |name: &str| {
            headers
                .iter()
                .any(|(key, _)| key.eq_ignore_ascii_case(name))
        };
        let framed = given("content-length") || given("transfer-encoding");
        let sized = given("content-length");
        let mut steps = Vec::new();
        let mut chunked = false;
        if let Some(body) = &self.body {
            let bytes = text::to_bytes(body)?;
            if !framed && !self.is_h2() {
                headers.push(("content-length".to_owned(), bytes.len().to_string().into()));
            }
            steps.push(Piece::of(bytes));
        } else if self.chunks.is_some() || self.steps.is_some() {
            chunked = !sized && !self.is_h2() && !self.raw && !self.tcp;
            if chunked && !framed {
                headers.push(("transfer-encoding".to_owned(), b"chunked".to_vec()));
            }
            for chunk in self.chunks.iter().flatten() {
                steps.push(Piece::of(text::to_bytes(chunk)?));
            }
            for step in self.steps.iter().flatten() {
                steps.push(Piece {
                    wait: step.r#await.clone(),
                    data: step.send.as_ref().map_or(Ok(Vec::new()), text::to_bytes)?,
                    abort: step.abort,
                    stall: step.stall,
                });
            }
        }
        let trailers = list(&self.trailers)?;
        Ok(Payload {
            headers,
            chunked,
            stepwise: self.steps.is_some(),
            steps,
            trailers,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_number_of_the_specification_has_its_scenario_or_its_reason() {
        let scenarios = Scenario::load_all().unwrap();
        let left_out = Scenario::left_out().unwrap();
        // The first hundred of the rate limits are the service's.
        for (kind, first, last) in [
            ("ext_proc", 1, 120),
            ("ext_authz", 1, 94),
            ("ratelimit", 101, 109),
        ] {
            let of_kind = scenarios.iter().filter(|s| s.kind() == kind);
            let mut numbers: BTreeSet<u32> = of_kind.flat_map(|s| s.spec.clone()).collect();
            let left = left_out.iter().filter(|left| left.kind == kind);
            numbers.extend(left.map(|left| left.spec));
            let missing: Vec<u32> = (first..=last).filter(|n| !numbers.contains(n)).collect();
            assert!(missing.is_empty(), "{kind}: no scenario for {missing:?}");
        }
    }

    #[test]
    fn every_deviation_has_its_row_in_the_table() {
        let table = include_str!("../../docs/src/deviations.md");
        for scenario in Scenario::load_all().unwrap() {
            if let Some(row) = &scenario.deviates {
                assert!(
                    table.contains(&format!("`{row}`")),
                    "{}: no row {row}",
                    scenario.title()
                );
            }
        }
    }
}
