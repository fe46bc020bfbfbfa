//! The comparison of what was seen with what was written, and of two
//! observations with each other.
//!
//! What is written is a part of what must be seen:
//!
//! - objects: each written field must match; `null` must not be there;
//! - header lists are written as objects; a value is one text, or the list of
//!   all values of that name; `"*": null` says that there are no others;
//! - other lists: as long, and each item must match;
//! - `false`, `0`, `""`, `[]` and `{}` also match what is absent;
//! - `{regex: …}` matches a text as a whole;
//! - `{repeat: x, times: 9}` is that long text;
//! - `{below: 9}` matches any smaller number.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::board::brief;
use crate::scenario::Expect;
use crate::text;

impl Expect {
    /// The expectation in the shape of an observation.
    fn as_observation(&self) -> Value {
        let mut whole = Map::new();
        if let Some(client) = &self.client {
            whole.insert("client".to_owned(), client.clone());
        }
        if let Some(earlier) = &self.earlier {
            whole.insert("earlier".to_owned(), list(earlier));
        }
        if let Some(origin) = &self.origin {
            whole.insert("origin".to_owned(), list(origin));
        }
        let mut messages: Map<String, Value> = self
            .services
            .iter()
            .map(|(name, value)| (name.clone(), list(value)))
            .collect();
        if let Some(service) = &self.service {
            messages.insert("policy".to_owned(), list(service));
        }
        whole.insert("messages".to_owned(), Value::Object(messages));
        match &self.calls {
            None => {}
            Some(Value::Number(count)) => {
                let count = count.as_u64().unwrap_or_default() as usize;
                whole.insert("calls".to_owned(), vec![json!({}); count].into());
            }
            Some(calls) => {
                whole.insert("calls".to_owned(), list(calls));
            }
        }
        if let Some(stats) = &self.stats {
            whole.insert("stats".to_owned(), stats.clone());
        }
        if let Some(log) = &self.log {
            whole.insert("log".to_owned(), log.clone());
        }
        // Nobody may leave a call open, whatever the scenario.
        whole.insert("open_calls".to_owned(), json!(0));
        Value::Object(whole)
    }

    /// How many messages each service is expected to see.
    pub fn messages(&self) -> BTreeMap<&str, usize> {
        let policy = self.service.iter().map(|list| ("policy", list));
        let others = self
            .services
            .iter()
            .map(|(name, list)| (name.as_str(), list));
        let lists = policy.chain(others);
        lists
            .filter_map(|(name, list)| Some((name, list.as_array()?.len())))
            .collect()
    }

    /// What differs between the expectation and an observation.
    pub fn differences(&self, seen: &Value) -> Vec<String> {
        let mut found = Vec::new();
        compare("", &self.as_observation(), seen, &mut found);
        found
    }
}

impl Expect {
    /// What differs between the expectation and the proxy's own books.
    pub fn books(&self, seen: &Value) -> Vec<String> {
        let whole = self.as_observation();
        let mut found = Vec::new();
        for part in ["stats", "log"] {
            if let Some(wanted) = whole.get(part) {
                compare(part, wanted, &seen[part], &mut found);
            }
        }
        found
    }
}

impl Expect {
    /// The parts of this expectation that would match anything, by their
    /// place. There must be none: each part, turned into something else, has
    /// to differ from what was seen.
    pub fn toothless(&self, seen: &Value) -> Vec<String> {
        let whole = self.as_observation();
        let mut places = Vec::new();
        leaves(&whole, &mut String::new(), &mut places);
        let bites = |place: &String| {
            let mut flipped = whole.clone();
            if let Some(leaf) = flipped.pointer_mut(place) {
                flip(leaf);
            }
            let mut found = Vec::new();
            compare("", &flipped, seen, &mut found);
            !found.is_empty()
        };
        places.into_iter().filter(|place| !bites(place)).collect()
    }
}

fn leaves(value: &Value, place: &mut String, places: &mut Vec<String>) {
    let mut below = |name: &str, value: &Value| {
        let length = place.len();
        place.push('/');
        place.push_str(&name.replace('~', "~0").replace('/', "~1"));
        leaves(value, place, places);
        place.truncate(length);
    };
    match value {
        Value::Object(bound) if bound.contains_key("below") => places.push(place.clone()),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| below(name, value)),
        Value::Array(items) if !items.is_empty() => {
            items
                .iter()
                .enumerate()
                .for_each(|(nth, value)| below(&nth.to_string(), value));
        }
        // Says that there is nothing else, and can only be said so.
        Value::Null if place.ends_with("/*") => {}
        _ => places.push(place.clone()),
    }
}

fn flip(leaf: &mut Value) {
    *leaf = match leaf {
        Value::Bool(value) => json!(!*value),
        Value::Number(number) => match number.as_u64() {
            Some(number) => json!(number + 1),
            None => json!(number.as_f64().unwrap_or_default() + 1.0),
        },
        Value::Array(_) => json!([{}]),
        _ => json!("<something else>"),
    };
}

fn list(value: &Value) -> Value {
    match value {
        Value::Array(_) => value.clone(),
        Value::String(none) if none == "none" => json!([]),
        one => json!([one]),
    }
}

/// What differs between what is written and what was seen, each difference with its place.
pub(crate) fn compare(at: &str, wanted: &Value, seen: &Value, found: &mut Vec<String>) {
    match (wanted, seen) {
        (Value::Object(wanted), Value::String(seen)) if wanted.contains_key("regex") => {
            let pattern = wanted["regex"].as_str().unwrap_or_default();
            let regex = regex::Regex::new(&format!("^(?s:{pattern})$")).expect("a valid regex");
            if !regex.is_match(seen) {
                found.push(format!("{at}: {seen:?} does not match {pattern}"));
            }
        }
        (Value::Object(long), Value::String(seen)) if long.contains_key("repeat") => {
            let wanted = text::to_string(wanted).expect("a long text");
            if wanted != *seen {
                found.push(format!("{at}: {} bytes, not {}", seen.len(), wanted.len()));
            }
        }
        (Value::Object(bound), Value::Number(seen)) if bound.contains_key("below") => {
            if seen.as_f64() >= bound["below"].as_f64() {
                found.push(format!("{at}: {seen}, not below {}", bound["below"]));
            }
        }
        (Value::Object(wanted), Value::Array(pairs)) if is_pairs(pairs) => {
            compare_headers(at, wanted, pairs, found);
        }
        (Value::Object(wanted), Value::Object(seen)) => {
            for (name, wanted) in wanted {
                let below = format!("{at}/{name}");
                match (seen.get(name), wanted) {
                    (_, Value::Null) if name == "*" => {}
                    (Some(seen), Value::Null) => found.push(format!("{below}: there is {seen}")),
                    (None, wanted) if is_nothing(wanted) => {}
                    (None, wanted) => found.push(format!("{below}: {wanted} is missing")),
                    (Some(seen), wanted) => compare(&below, wanted, seen, found),
                }
            }
            if wanted.get("*").is_some_and(Value::is_null) {
                for name in seen.keys().filter(|name| !wanted.contains_key(*name)) {
                    found.push(format!("{at}/{name}: there is {}", seen[name]));
                }
            }
        }
        (Value::Array(wanted), Value::Array(seen)) => {
            if wanted.len() != seen.len() {
                found.push(format!("{at}: {} items, not {}", seen.len(), wanted.len()));
            }
            for (nth, (wanted, seen)) in wanted.iter().zip(seen).enumerate() {
                compare(&format!("{at}/{nth}"), wanted, seen, found);
            }
        }
        (wanted, seen) => {
            let same = match (wanted, seen) {
                (Value::Number(wanted), Value::Number(seen)) => wanted.as_f64() == seen.as_f64(),
                // Headers are texts, and `x-a: 1` is a number in YAML.
                (Value::Number(wanted), Value::String(seen)) => wanted.to_string().eq(seen),
                (wanted, seen) => wanted == seen,
            };
            if !same {
                found.push(format!("{at}: {seen}, not {wanted}"));
            }
        }
    }
}

fn is_nothing(wanted: &Value) -> bool {
    match wanted {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        // An object matches nothing where nothing of it is asked for.
        Value::Object(fields) => fields.values().all(is_nothing),
    }
}

/// Header lists: empty, or pairs throughout.
fn is_pairs(items: &[Value]) -> bool {
    items
        .iter()
        .all(|item| match item.as_array().map(Vec::as_slice) {
            Some([name, _]) => name.is_string(),
            _ => false,
        })
}

fn compare_headers(
    at: &str,
    wanted: &Map<String, Value>,
    pairs: &[Value],
    found: &mut Vec<String>,
) {
    for (name, wanted) in wanted {
        if name == "*" {
            continue;
        }
        let values: Vec<&Value> = pairs
            .iter()
            .filter(|pair| pair[0] == *name)
            .map(|pair| &pair[1])
            .collect();
        let below = format!("{at}/{name}");
        match wanted {
            Value::Null if values.is_empty() => {}
            Value::Null => found.push(format!("{below}: there is {values:?}")),
            Value::Array(list) if list.len() == values.len() => {
                for (wanted, seen) in list.iter().zip(values) {
                    compare(&below, wanted, seen, found);
                }
            }
            one if !one.is_array() && values.len() == 1 => compare(&below, one, values[0], found),
            _ => found.push(format!("{below}: {}, not {wanted}", json!(values))),
        }
    }
    if wanted.get("*").is_some_and(Value::is_null) {
        let names: BTreeSet<&str> = pairs.iter().filter_map(|pair| pair[0].as_str()).collect();
        for name in names.into_iter().filter(|name| !wanted.contains_key(*name)) {
            found.push(format!("{at}/{name}: is there"));
        }
    }
}

/// What differs between two observations, each difference with its place.
pub fn between(at: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    match (one, other) {
        (Value::Object(a), Value::Object(b)) => {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let (a, b) = (a.get(name), b.get(name));
                let none = Value::Null;
                between(
                    &format!("{at}/{name}"),
                    a.unwrap_or(&none),
                    b.unwrap_or(&none),
                    found,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (nth, (a, b)) in a.iter().zip(b).enumerate() {
                between(&format!("{at}/{nth}"), a, b, found);
            }
        }
        (a, b) if a == b => {}
        (a, b) => {
            let (a, b) = (brief(a), brief(b));
            found.push(format!("{at}: {a} through Envoy, {b} through ours"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differs(wanted: Value, seen: Value) -> bool {
        let mut found = Vec::new();
        compare("", &wanted, &seen, &mut found);
        !found.is_empty()
    }

    #[test]
    fn objects_match_in_part() {
        assert!(!differs(json!({ "a": 1 }), json!({ "a": 1, "b": 2 })));
        assert!(differs(
            json!({ "a": 1, "*": null }),
            json!({ "a": 1, "b": 2 })
        ));
        assert!(differs(json!({ "b": null }), json!({ "b": 2 })));
        assert!(!differs(json!({ "c": false }), json!({ "b": 2 })));
        assert!(differs(json!({ "c": true }), json!({ "b": 2 })));
    }

    #[test]
    fn headers_match_by_name() {
        let seen = json!([["x-a", "1"], ["x-a", "2"], ["x-b", "3"]]);
        assert!(!differs(
            json!({ "x-a": ["1", 2], "x-b": "3" }),
            seen.clone()
        ));
        assert!(differs(json!({ "x-a": "1" }), seen.clone()));
        assert!(differs(json!({ "x-b": null }), seen.clone()));
        assert!(differs(json!({ "x-b": "3", "*": null }), seen.clone()));
        assert!(!differs(json!({ "x-b": { "regex": "[0-9]" } }), seen));
    }

    #[test]
    fn lists_match_item_by_item() {
        assert!(differs(json!([{}]), json!([{}, {}])));
        assert!(!differs(
            json!([{}, { "b": 1 }]),
            json!([{ "a": 1 }, { "b": 1 }])
        ));
    }
}
