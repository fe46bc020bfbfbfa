//! Built-in functions of which the engine's own give other answers than Open Policy Agent's, or
//! take more memory than a request may cost.

mod formats;
mod globs;
mod json;
mod members;
mod networks;
mod numbers;
mod patterns;
mod texts;
mod times;

use regorus::{Engine, Value};

/// The value of a call; `None` when it has none. The error ends the evaluation.
type Answer = Result<Option<Value>, String>;

type Function = fn(&[Value]) -> Answer;

/// Name, number of arguments, function.
const FUNCTIONS: &[(&str, u8, Function)] = &[
    ("bits.lsh", 2, numbers::shift_left),
    ("glob.match", 3, globs::glob),
    ("indexof", 2, texts::indexof),
    ("internal.member_2", 2, members::member),
    ("internal.member_3", 3, members::member_at),
    ("json.is_valid", 1, json::is_json),
    ("json.marshal", 1, json::marshal),
    ("json.unmarshal", 1, json::unmarshal),
    ("lower", 1, texts::lower),
    ("net.cidr_contains", 2, networks::cidr_contains),
    ("numbers.range", 2, numbers::range),
    ("object.subset", 2, members::subset),
    (
        "regex.find_all_string_submatch_n",
        3,
        patterns::find_submatches,
    ),
    ("regex.find_n", 3, patterns::find),
    ("regex.match", 2, patterns::matches),
    ("regex.replace", 3, patterns::replace),
    ("regex.split", 2, patterns::split),
    ("sprintf", 2, formats::sprintf),
    ("strings.count", 2, texts::count),
    ("strings.replace_n", 2, texts::replace_n),
    ("time.parse_rfc3339_ns", 1, times::parse_time),
    ("to_number", 1, numbers::to_number),
    ("upper", 1, texts::upper),
];

/// Puts them in the place of the engine's own.
pub(super) fn add(engine: &mut Engine) -> Result<(), String> {
    for (name, arity, function) in FUNCTIONS {
        let call = move |arguments: Vec<Value>| {
            let answer = function(&arguments).map_err(|problem| {
                // The engine's own error type, of which it keeps the text.
                serde::de::value::Error::from(Problem(format!("{name}: {problem}")))
            });
            Ok(answer?.unwrap_or(Value::Undefined))
        };
        let added = engine.add_extension((*name).to_owned(), *arity, Box::new(call));
        added.map_err(|error| error.to_string())?;
    }
    Ok(())
}

struct Problem(String);

impl From<Problem> for serde::de::value::Error {
    fn from(problem: Problem) -> Self {
        serde::de::Error::custom(problem.0)
    }
}

fn text(value: &Value) -> Option<&str> {
    value.as_string().ok().map(AsRef::as_ref)
}

fn texts(values: &[Value]) -> Option<(&str, &str)> {
    match values {
        [one, other] => Some((text(one)?, text(other)?)),
        _ => None,
    }
}

fn number(number: usize) -> Value {
    Value::from(number as u64)
}
