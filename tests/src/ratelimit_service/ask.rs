//! A request in short form.
//!
//! `key2=a` is a descriptor of one entry, `key1=value1,subkey1=b` one of two, and an empty text
//! one of none. What a text cannot say, fields do.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// One descriptor, or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Asked {
    /// One descriptor.
    One(Descriptor),
    /// Several, or none.
    Several(Vec<Descriptor>),
}

/// A descriptor.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Descriptor {
    /// Its entries alone.
    Short(String),
    /// Its entries and what else it has.
    Long(Long),
}

/// A descriptor, field by field.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Long {
    /// Its entries in short form.
    pub of: Option<String>,
    /// Its entries as pairs of key and value.
    pub entries: Option<Vec<(String, String)>>,
    /// `limit`, with protobuf's names.
    pub limit: Option<Value>,
    /// `hits_addend`.
    pub hits: Option<u64>,
    /// `is_negative_hits`.
    #[serde(default)]
    pub negative: bool,
}

impl Asked {
    /// The request as protobuf's fields.
    pub fn request(&self, domain: &str, hits: Option<u32>) -> Result<Value, String> {
        let descriptors: Vec<Value> = match self {
            Asked::One(one) => vec![one.message()?],
            Asked::Several(several) => several
                .iter()
                .map(Descriptor::message)
                .collect::<Result<_, _>>()?,
        };
        let mut request = json!({ "domain": domain, "descriptors": descriptors });
        if let Some(hits) = hits {
            request["hits_addend"] = json!(hits);
        }
        Ok(request)
    }
}

impl Descriptor {
    fn message(&self) -> Result<Value, String> {
        let long = match self {
            Descriptor::Short(text) => return Ok(json!({ "entries": short(text)? })),
            Descriptor::Long(long) => long,
        };
        let entries = match (&long.of, &long.entries) {
            (Some(text), None) => short(text)?,
            (None, Some(pairs)) => pairs.iter().map(|(key, value)| entry(key, value)).collect(),
            _ => return Err("a descriptor needs `of` or `entries`".to_owned()),
        };
        let mut message = Map::from_iter([("entries".to_owned(), json!(entries))]);
        if let Some(limit) = &long.limit {
            message.insert("limit".to_owned(), limit.clone());
        }
        if let Some(hits) = long.hits {
            message.insert("hits_addend".to_owned(), json!(hits));
        }
        if long.negative {
            message.insert("is_negative_hits".to_owned(), json!(true));
        }
        Ok(Value::Object(message))
    }
}

fn short(text: &str) -> Result<Vec<Value>, String> {
    let parts = text.split(',').filter(|_| !text.is_empty());
    let one = |part: &str| {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("`{part}` is not KEY=VALUE"))?;
        Ok(entry(key, value))
    };
    parts.map(one).collect()
}

fn entry(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_a_path_of_entries() {
        let asked = Asked::One(Descriptor::Short("a=b,c=".to_owned()));
        let entries = json!([{ "key": "a", "value": "b" }, { "key": "c", "value": "" }]);
        let request = asked.request("shop", None).unwrap();
        assert_eq!(
            request,
            json!({ "domain": "shop", "descriptors": [{ "entries": entries }] })
        );
        let nothing = Asked::One(Descriptor::Short(String::new()));
        let request = nothing.request("shop", Some(2)).unwrap();
        assert_eq!(request["descriptors"], json!([{ "entries": [] }]));
        assert_eq!(request["hits_addend"], json!(2));
    }
}
