//! What `attache export envoy` writes, `attache import envoy` reads: every configuration of a
//! scenario survives the way there and back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use attache_proxy::{
    export,
    import::{self, Effect},
};
use attache_tests::{ours, run::Sockets, scenario::Scenario};
use serde_json::Value;

#[test]
fn every_scenario_survives_the_way_to_envoys_language_and_back() {
    let mut tried = 0;
    let mut problems = Vec::new();
    for scenario in Scenario::load_all().unwrap() {
        let clusters = Sockets::bind(&scenario).unwrap().clusters(&scenario);
        // What our proxy refuses has no export.
        let Ok((config, _)) = ours::read(&ours::config(&scenario, &clusters).unwrap()) else {
            continue;
        };
        tried += 1;
        let there = export::envoy(&config, &BTreeMap::new()).unwrap();
        if let Err(problem) = back(&there) {
            problems.push(format!("{}: {problem}", scenario.title()));
        }
    }
    assert!(tried > 100, "only {tried} scenarios could be exported");
    assert!(
        problems.is_empty(),
        "{} of {tried}:\n{}",
        problems.len(),
        problems.join("\n")
    );
}

/// Imports a bootstrap and exports the result: it has to be the same, with nothing lost.
fn back(there: &Value) -> Result<(), String> {
    let document = import::read("envoy.json", there.to_string()).map_err(|e| e.to_string())?;
    let imported = import::bootstrap(&document).map_err(|e| e.to_string())?;
    if let Some(lost) = imported
        .dropped
        .iter()
        .find(|d| d.effect != Effect::Nothing)
    {
        return Err(format!("lost {}: {}", lost.path, lost.why));
    }
    let text = import::to_yaml(&imported.config);
    let (config, _) = ours::read(&text).map_err(|e| format!("{e}\n{text}"))?;
    let again = export::envoy(&config, &BTreeMap::new()).map_err(|e| e.to_string())?;
    match first_difference("", there, &again) {
        Some(at) => Err(format!("differs at {at}")),
        None => Ok(()),
    }
}

fn first_difference(path: &str, one: &Value, other: &Value) -> Option<String> {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.keys()
                .chain(other.keys())
                .find_map(|key| match (one.get(key), other.get(key)) {
                    (Some(a), Some(b)) => first_difference(&format!("{path}.{key}"), a, b),
                    (a, b) => Some(format!("{path}.{key}: {a:?} and {b:?}")),
                })
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => one
            .iter()
            .zip(other)
            .enumerate()
            .find_map(|(nth, (a, b))| first_difference(&format!("{path}[{nth}]"), a, b)),
        _ => (one != other).then(|| format!("{path}: {one} and {other}")),
    }
}
