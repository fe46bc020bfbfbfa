//! The format of the files in `scenarios/ratelimit_service`; `README.md` shows it by example.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::ask::Asked;
use super::service::Layout;
use crate::tls::{self, Tls};

/// Scenarios that share one start of each service.
#[derive(Debug, Clone)]
pub struct Group {
    /// Where it stands: the file's name without its ending.
    pub name: String,
    /// The environment, beside that of every start.
    pub env: BTreeMap<String, String>,
    /// How the configuration files lie.
    pub layout: Layout,
    /// Whether the services have a Redis of their own each, which may go away.
    pub own_redis: bool,
    /// Whether limits by the second have a Redis of their own.
    pub second_redis: bool,
    /// How the services are called, if over TLS. `<tls>` in `env` is the folder of the
    /// certificates.
    pub tls: Option<Tls>,
    /// Configuration files that no scenario names.
    pub files: BTreeMap<String, String>,
    /// The scenarios, in the order in which they run.
    pub scenarios: Vec<Scenario>,
    /// What this file's part of the specification leaves out.
    pub left_out: Vec<LeftOut>,
}

/// One scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The behaviour, in words. It is the test's name.
    pub name: String,
    /// Its numbers in the specification.
    #[serde(default)]
    pub spec: Vec<u32>,
    /// The descriptors of its own domain; nothing for a scenario without one.
    #[serde(default)]
    pub rules: Option<Value>,
    /// Its own file as text, instead of `rules`; the domain is `$domain`.
    #[serde(default)]
    pub text: Option<String>,
    /// What happens.
    pub steps: Vec<Step>,
    /// What the pinned version of the reference does not have: only newer ones are asked.
    #[serde(default)]
    pub newer: Option<String>,
    /// The row of the table of deviations that this scenario shows.
    #[serde(default)]
    pub deviates: Option<String>,
    /// What ours lacks yet: it may answer otherwise.
    #[serde(default)]
    pub not_yet: Option<String>,
    /// Its domain.
    #[serde(default)]
    pub domain: String,
}

/// A step of a scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// A call of `ShouldRateLimit`.
    Ask(Ask),
    /// The same, again and again until the answer is this one.
    Recovers(Ask),
    /// A request over HTTP.
    Http(Http),
    /// A question to the health service: the service's name, and its status or error code.
    Health(BTreeMap<String, Value>),
    /// Configuration files change.
    Load(Load),
    /// A file more that is refused, and goes again.
    Rejected(Rejected),
    /// A file more that is taken, and goes again.
    Accepted(Accepted),
    /// All counters of the domain that are not 0, without their common beginning; those that
    /// begin with `ratelimit.` are looked up as they are.
    Stats(BTreeMap<String, f64>),
    /// All keys of the domain in Redis, without their common beginning, with the least and the
    /// most seconds that they may have to live. `<minute>` stands for the start of the window.
    Stored(BTreeMap<String, [i64; 2]>),
    /// The same in the Redis of limits by the second.
    StoredPerSecond(BTreeMap<String, [i64; 2]>),
    /// Waits for the beginning of a window of this unit.
    Wait(String),
    /// Redis goes away (`down`) or comes back empty (`up`).
    Redis(String),
    /// The service gets this signal, and ends with this code.
    Signal(String),
}

/// A call, or several that are alike.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// The descriptors.
    pub of: Asked,
    /// `hits_addend` of the request.
    #[serde(default)]
    pub hits: Option<u32>,
    /// Another domain than the scenario's.
    #[serde(default)]
    pub domain: Option<String>,
    /// Another client than the group's.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// How often it is asked.
    #[serde(default = "once")]
    pub times: u64,
    /// What is answered.
    pub expect: Expected,
    /// What the reference answers where we deviate.
    #[serde(default)]
    pub reference: Option<Expected>,
    /// What the pinned version of the reference answers, where newer ones answer as ours does.
    #[serde(default)]
    pub pinned: Option<Expected>,
}

/// An answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Expected {
    /// The status of the only descriptor.
    One(String),
    /// The statuses of all.
    Several(Vec<String>),
    /// All that may be said.
    Whole(Whole),
}

/// An answer, part by part.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Whole {
    /// The statuses, in short form.
    pub statuses: Vec<String>,
    /// The overall code, where it is not that of the worst status.
    pub overall: Option<String>,
    /// Headers for the response, by name; no others.
    pub headers: Option<Map<String, Value>>,
    /// The dynamic metadata.
    pub metadata: Option<Value>,
    /// The whole text of an error of gRPC's code UNKNOWN; `code` says another.
    pub error: Option<Value>,
    /// The error's code.
    pub code: Option<i64>,
    /// There is nobody to answer: the service has ended.
    pub gone: bool,
}

/// A request over HTTP and its answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// `http` (also if absent), `debug` or `prometheus`.
    #[serde(default)]
    pub port: Port,
    /// `GET` if absent, `POST` where there is a body.
    #[serde(default)]
    pub method: Option<String>,
    /// The path.
    pub path: String,
    /// The body.
    #[serde(default)]
    pub body: Option<String>,
    /// The status that is answered.
    pub status: u16,
    /// The whole body that is answered.
    #[serde(default)]
    pub text: Option<String>,
    /// Parts of the body that is answered; asked again until they are there.
    #[serde(default)]
    pub contains: Vec<String>,
    /// Parts that must not be there.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// The body that is answered as JSON; a part of it.
    #[serde(default)]
    pub json: Option<Value>,
    /// The content type that is answered.
    #[serde(default)]
    pub content_type: Option<String>,
}

/// A port of a service.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Port {
    /// `PORT`
    #[default]
    Http,
    /// `DEBUG_PORT`
    Debug,
    /// `PROMETHEUS_ADDR`
    Prometheus,
}

/// Files that change at once.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Texts by file names; one that is `~` is removed.
    #[serde(default)]
    pub files: BTreeMap<String, Option<String>>,
    /// Other descriptors for the scenario's own domain.
    #[serde(default)]
    pub rules: Option<Value>,
    /// The text with which they are refused.
    #[serde(default)]
    pub refused: Option<String>,
}

/// A configuration file that nobody takes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejected {
    /// The file.
    pub text: String,
    /// The text with which it is refused, after the file's name.
    pub with: String,
    /// The text of the pinned version of the reference, where newer ones have that.
    #[serde(default)]
    pub pinned: Option<String>,
    /// Whether the reference takes it.
    #[serde(default)]
    pub taken_by_reference: bool,
}

/// A configuration file that is taken.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    /// The file.
    pub text: String,
    /// What is asked while it is there.
    #[serde(default)]
    pub ask: Vec<Ask>,
}

/// A behaviour that no scenario shows.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// The number in the specification.
    pub spec: u32,
    /// Why no scenario can show it.
    pub reason: String,
    /// The unit test that does.
    pub test: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    layout: Layout,
    #[serde(default)]
    own_redis: bool,
    #[serde(default)]
    second_redis: bool,
    #[serde(default)]
    tls: Option<Tls>,
    #[serde(default)]
    files: BTreeMap<String, String>,
    #[serde(default)]
    common: Map<String, Value>,
    #[serde(default)]
    left_out: Vec<LeftOut>,
    #[serde(default)]
    scenarios: Vec<Map<String, Value>>,
}

fn with_certificates(env: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, String> {
    let mut whole = BTreeMap::new();
    for (name, value) in env {
        let value = match value.strip_prefix("<tls>") {
            Some(file) => format!("{}{file}", tls::folder()?.display()),
            None => value,
        };
        whole.insert(name, value);
    }
    Ok(whole)
}

fn once() -> u64 {
    1
}

impl Group {
    /// All groups.
    pub fn load_all() -> Result<Vec<Self>, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/ratelimit_service");
        let folder = std::fs::read_dir(&root).map_err(|e| format!("{}: {e}", root.display()))?;
        let mut files: Vec<PathBuf> = folder.filter_map(|file| Some(file.ok()?.path())).collect();
        files.sort();
        let load = |file: &PathBuf| {
            let text = std::fs::read_to_string(file).map_err(|error| error.to_string());
            let name = file.file_stem().unwrap_or_default().to_string_lossy();
            text.and_then(|text| Self::load(&name, &text))
                .map_err(|error| format!("{}: {error}", file.display()))
        };
        files.iter().map(load).collect()
    }

    fn load(name: &str, text: &str) -> Result<Self, String> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let mut scenarios = Vec::new();
        for (nth, scenario) in file.scenarios.into_iter().enumerate() {
            let mut whole = file.common.clone();
            whole.extend(scenario);
            let title = whole.get("name").map(Value::to_string).unwrap_or_default();
            // Each scenario has counters and keys of its own.
            let domain = format!("{name}{nth}");
            let text = Value::Object(whole).to_string().replace("$domain", &domain);
            let mut scenario: Scenario =
                serde_json::from_str(&text).map_err(|error| format!("{title}: {error}"))?;
            scenario.domain = domain;
            scenarios.push(scenario);
        }
        Ok(Self {
            name: name.to_owned(),
            env: with_certificates(file.env)?,
            layout: file.layout,
            own_redis: file.own_redis,
            second_redis: file.second_redis,
            tls: file.tls,
            files: file.files,
            scenarios,
            left_out: file.left_out,
        })
    }

    /// The configuration files that a service starts with; `pinned` if it is the pinned version
    /// of the reference.
    pub fn first_files(&self, pinned: bool) -> BTreeMap<String, String> {
        let known = |scenario: &&Scenario| !pinned || scenario.newer.is_none();
        let scenarios = self.scenarios.iter().filter(known);
        let own = scenarios.filter_map(Scenario::file);
        self.files.clone().into_iter().chain(own).collect()
    }
}

impl Scenario {
    /// The name and the text of its own file.
    pub fn file(&self) -> Option<(String, String)> {
        let text = match (&self.rules, &self.text) {
            (Some(rules), _) => self.document(rules),
            (None, Some(text)) => text.clone(),
            (None, None) => return None,
        };
        Some((self.file_name(), text))
    }

    /// The name of its own file.
    pub fn file_name(&self) -> String {
        format!("{}.yaml", self.domain)
    }

    /// A document of its domain; JSON is YAML.
    pub fn document(&self, rules: &Value) -> String {
        json!({ "domain": self.domain, "descriptors": rules }).to_string()
    }

    /// The units of limits that it speaks of.
    pub fn speaks_of(&self, unit: &str) -> bool {
        format!("{self:?}").to_lowercase().contains(unit)
    }
}

impl Load {
    /// Only these changes.
    pub fn of(files: BTreeMap<String, Option<String>>) -> Self {
        Self {
            files,
            rules: None,
            refused: None,
        }
    }
}

impl Expected {
    /// All parts.
    pub fn whole(&self) -> Whole {
        let statuses = match self {
            Expected::One(one) => vec![one.clone()],
            Expected::Several(several) => several.clone(),
            Expected::Whole(whole) => return whole.clone(),
        };
        Whole {
            statuses,
            ..Whole::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_number_of_the_specification_has_its_scenario_or_its_unit_test() {
        let groups = Group::load_all().unwrap();
        let scenarios = groups.iter().flat_map(|group| &group.scenarios);
        let mut numbers: BTreeSet<u32> = scenarios.flat_map(|s| s.spec.clone()).collect();
        let left = groups.iter().flat_map(|group| &group.left_out);
        numbers.extend(left.map(|left| left.spec));
        let missing: Vec<u32> = (1..=94).filter(|n| !numbers.contains(n)).collect();
        assert!(missing.is_empty(), "no scenario for {missing:?}");
    }

    #[test]
    fn every_unit_test_that_stands_for_a_scenario_is_there() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ratelimit");
        let mut texts = String::new();
        read(&sources, &mut texts);
        for group in Group::load_all().unwrap() {
            for left in &group.left_out {
                let line = format!("fn {}(", left.test);
                assert!(
                    texts.contains(&line),
                    "{}: no test {}",
                    left.spec,
                    left.test
                );
            }
        }
    }

    fn read(folder: &Path, texts: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, texts);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                texts.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn every_deviation_has_its_row_in_the_table() {
        let table = include_str!("../../../docs/src/deviations.md");
        for group in Group::load_all().unwrap() {
            for scenario in &group.scenarios {
                if let Some(row) = &scenario.deviates {
                    let title = format!("{}: {}", group.name, scenario.name);
                    assert!(table.contains(&format!("`{row}`")), "{title}: no row {row}");
                }
            }
        }
    }

    #[test]
    fn every_scenario_says_what_is_expected() {
        for group in Group::load_all().unwrap() {
            for scenario in &group.scenarios {
                let title = format!("{}: {}", group.name, scenario.name);
                assert!(!scenario.steps.is_empty(), "{title}");
                assert!(!scenario.spec.is_empty(), "{title}: no number");
            }
        }
    }
}
