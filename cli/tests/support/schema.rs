//! JSON Schema as far as ours goes: a word that is not known here fails.

use serde_json::Value as Json;

/// What a value does against a schema, each with the way to it.
pub fn mistakes(schema: &Json, value: &Json) -> Vec<String> {
    let mut found = Vec::new();
    Check { root: schema }.value(schema, value, "", &mut found);
    found
}

struct Check<'s> {
    root: &'s Json,
}

impl Check<'_> {
    fn holds(&self, schema: &Json, value: &Json) -> bool {
        let mut found = Vec::new();
        self.value(schema, value, "", &mut found);
        found.is_empty()
    }

    fn value(&self, schema: &Json, value: &Json, at: &str, found: &mut Vec<String>) {
        let words = match schema {
            Json::Bool(true) => return,
            Json::Object(words) => words,
            other => panic!("{other} is no schema of ours"),
        };
        for (word, said) in words {
            let fits = match word.as_str() {
                "$schema" | "$defs" | "title" | "description" | "default" | "examples" => true,
                "$ref" => {
                    let name = said.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                    self.value(&self.root["$defs"][name], value, at, found);
                    true
                }
                "type" => match said {
                    Json::Array(kinds) => kinds.iter().any(|kind| is(kind, value)),
                    kind => is(kind, value),
                },
                "const" => said == value,
                "enum" => list(said).contains(value),
                "anyOf" => list(said).iter().any(|one| self.holds(one, value)),
                "oneOf" => {
                    let fitting = list(said).iter().filter(|one| self.holds(one, value));
                    fitting.count() == 1
                }
                "allOf" => {
                    for one in list(said) {
                        self.value(one, value, at, found);
                    }
                    true
                }
                "not" => !self.holds(said, value),
                "required" => value.as_object().is_none_or(|fields| {
                    let mut names = list(said).iter();
                    names.all(|name| fields.contains_key(name.as_str().unwrap()))
                }),
                "properties" => {
                    for (name, value) in value.as_object().into_iter().flatten() {
                        if let Some(schema) = said.get(name) {
                            self.value(schema, value, &format!("{at}.{name}"), found);
                        }
                    }
                    true
                }
                "additionalProperties" => {
                    let own = words.get("properties");
                    let fields = value.as_object().into_iter().flatten();
                    let others =
                        fields.filter(|(name, _)| own.is_none_or(|own| own.get(name).is_none()));
                    let mut others = others.peekable();
                    match said {
                        Json::Bool(false) => others.peek().is_none(),
                        schema => {
                            for (name, value) in others {
                                self.value(schema, value, &format!("{at}.{name}"), found);
                            }
                            true
                        }
                    }
                }
                "items" => {
                    for (nth, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.value(said, item, &format!("{at}[{nth}]"), found);
                    }
                    true
                }
                "minimum" => value.as_f64().is_none_or(|n| n >= said.as_f64().unwrap()),
                "maximum" => value.as_f64().is_none_or(|n| n <= said.as_f64().unwrap()),
                "minLength" => value
                    .as_str()
                    .is_none_or(|text| text.chars().count() as u64 >= said.as_u64().unwrap()),
                "pattern" => value.as_str().is_none_or(|text| {
                    let pattern = format!("(?s:.*)(?:{})(?s:.*)", said.as_str().unwrap());
                    attache_filter::matcher::full_match(&pattern)
                        .unwrap()
                        .is_match(text)
                }),
                other => panic!("the schema has `{other}`"),
            };
            if !fits {
                found.push(format!("{at}: {value} does not fit `{word}`: {said}"));
            }
        }
    }
}

fn list(said: &Json) -> &[Json] {
    said.as_array().unwrap()
}

fn is(kind: &Json, value: &Json) -> bool {
    match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the schema has the type `{other}`"),
    }
}
