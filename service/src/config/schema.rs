//! JSON Schema of the configuration types, for editors and for `attache schema`.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::value::{ConfigOneof, ConfigValue};

/// The named schemas collected on the way.
#[derive(Debug, Default)]
pub struct Schemas {
    defs: BTreeMap<String, Json>,
    /// Rust path of the type that has a name, to tell types of equal name apart.
    owners: BTreeMap<String, &'static str>,
}

/// The complete schema of a file that holds a `T`.
pub fn json_schema<T: ConfigValue>(title: &str) -> Json {
    let mut schemas = Schemas::default();
    let root = T::schema(&mut schemas);
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "$defs": schemas.defs,
    });
    if let (Some(schema), Json::Object(root)) = (schema.as_object_mut(), root) {
        schema.extend(root);
    }
    schema
}

impl Schemas {
    /// The schema that a reference (or a schema as it is) stands for.
    pub fn object<'s>(&'s self, schema: &'s Json) -> Option<&'s Json> {
        match schema.get("$ref").and_then(Json::as_str) {
            Some(reference) => self.defs.get(reference.rsplit('/').next()?),
            None => Some(schema),
        }
    }

    /// Gives a type a named schema, made on first use, and returns the reference to it.
    pub fn define<T>(&mut self, name: &str, make: impl FnOnce(&mut Self) -> Json) -> Json {
        let owner = std::any::type_name::<T>();
        let name = match self.owners.get(name) {
            Some(other) if *other != owner => owner.replace("::", "."),
            _ => name.to_owned(),
        };
        let reference = json!({ "$ref": format!("#/$defs/{name}") });
        if !self.owners.contains_key(&name) {
            // Owned before it is made: types may contain themselves.
            self.owners.insert(name.clone(), owner);
            let schema = make(self);
            self.defs.insert(name, schema);
        }
        reference
    }
}

/// The lines of a doc comment; `None` stands for an attribute that is none.
pub type Docs<'a> = &'a [Option<&'a str>];

/// A doc comment as one description: an empty line ends a paragraph.
pub fn description(docs: Docs<'_>) -> Option<String> {
    let mut text = String::new();
    let mut paragraph = false;
    for line in docs.iter().flatten().flat_map(|doc| doc.split('\n')) {
        match line.trim() {
            "" => paragraph = true,
            line => {
                if !text.is_empty() {
                    text.push_str(if paragraph { "\n\n" } else { " " });
                }
                paragraph = false;
                text.push_str(line);
            }
        }
    }
    (!text.is_empty()).then_some(text)
}

fn describe(mut schema: Json, docs: Docs<'_>) -> Json {
    if let (Some(text), Some(object)) = (description(docs), schema.as_object_mut()) {
        object.insert("description".into(), text.into());
    }
    schema
}

/// The schema of a map with known fields.
#[derive(Debug, Default)]
pub struct ObjectSchema {
    docs: Option<String>,
    properties: Map<String, Json>,
    required: Vec<&'static str>,
    groups: Vec<Json>,
}

impl ObjectSchema {
    /// Begins.
    pub fn new(docs: Docs<'_>, envoy_type: Option<&str>) -> Self {
        let mut schema = Self {
            docs: description(docs),
            ..Self::default()
        };
        if let Some(message) = envoy_type {
            let url = super::envoy::type_url(message);
            schema
                .properties
                .insert("@type".into(), json!({ "const": url }));
        }
        schema
    }

    /// Adds a field. `default` is the declared one, `missing` what the type itself has.
    pub fn field<T: ConfigValue>(
        &mut self,
        name: &'static str,
        docs: Docs<'_>,
        default: Option<T>,
        schemas: &mut Schemas,
    ) {
        let mut schema = describe(T::schema(schemas), docs);
        match default {
            Some(value) => {
                if let (Some(value), Some(object)) = (value.encode(), schema.as_object_mut()) {
                    object.insert("default".into(), value);
                }
            }
            None => self.required.push(name),
        }
        self.properties.insert(name.into(), schema);
    }

    /// Adds a group of fields.
    pub fn oneof<T: ConfigOneof>(&mut self, schemas: &mut Schemas) {
        let mut choices: Vec<Json> = Vec::new();
        for (name, schema) in T::schema_variants(schemas) {
            self.properties.insert(name.into(), schema);
            choices.push(json!({ "required": [name] }));
        }
        if T::absent().is_some() {
            let none = json!({ "not": { "anyOf": choices } });
            choices.push(none);
        }
        self.groups.push(json!({ "oneOf": choices }));
    }

    /// Ends.
    pub fn finish(self) -> Json {
        let mut schema = json!({
            "type": "object",
            "properties": self.properties,
            "additionalProperties": false,
        });
        if let Some(object) = schema.as_object_mut() {
            if let Some(docs) = self.docs {
                object.insert("description".into(), docs.into());
            }
            if !self.required.is_empty() {
                object.insert("required".into(), json!(self.required));
            }
            if !self.groups.is_empty() {
                object.insert("allOf".into(), Json::Array(self.groups));
            }
        }
        schema
    }
}

/// The schema of an enumeration of names.
pub fn name_schema(docs: Docs<'_>, names: &[(&str, Docs<'_>)]) -> Json {
    let choices: Vec<Json> = names
        .iter()
        .map(|(name, docs)| describe(json!({ "const": name }), docs))
        .collect();
    describe(json!({ "type": "string", "oneOf": choices }), docs)
}

/// The schema of one field of a group.
pub fn variant_schema<T: ConfigValue>(docs: Docs<'_>, schemas: &mut Schemas) -> Json {
    describe(T::schema(schemas), docs)
}
