//! Expressions in CEL, the Common Expression Language, as far as the `cel` crate does not say it:
//! which functions there are, and patterns that are compiled once a thread, not with each use.
//!
//! What an expression may look at is for its user to say.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use cel::{
    Env, ExecutionError, IdedExpr,
    common::{
        ast::{CallExpr, Expr, LiteralValue, operators},
        types::{CelBool, CelString, STRING_TYPE},
        value::CowVal,
    },
};
use regex::Regex;

/// Functions of Envoy's `cel` that there are here. Its `re.*` there is not.
const FUNCTIONS: [&str; 26] = [
    "matches",
    "contains",
    "startsWith",
    "endsWith",
    "size",
    "int",
    "uint",
    "double",
    "bool",
    "bytes",
    "type",
    "dyn",
    "timestamp",
    "duration",
    "getFullYear",
    "getMonth",
    "getDayOfYear",
    "getDayOfMonth",
    "getDate",
    "getDayOfWeek",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
    "@in",
    "@not_strictly_false",
];

/// Names of types, which stand for themselves.
const TYPES: [&str; 11] = [
    "int",
    "uint",
    "double",
    "bool",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "timestamp",
];

/// Patterns kept by each thread; as many as configurations have, and a bound for the rest.
const MAX_PATTERNS: usize = 256;

/// The functions of expressions; made once, since there are many.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(false);
    let text = || STRING_TYPE.to_owned();
    // They fail if the name is taken, which it is not without the crate's own patterns.
    let _ = env.add_overload("matches", "matches_text", vec![text(), text()], matches);
    let _ = env.add_member_overload("matches", "text_matches", text(), vec![text()], matches);
    Arc::new(env)
});

thread_local! {
    static PATTERNS: RefCell<HashMap<String, Regex>> = RefCell::default();
}

/// What expressions are evaluated in.
pub fn environment() -> Arc<Env> {
    ENVIRONMENT.clone()
}

/// Whether this is the name of a type, which stands for itself.
pub fn is_type(name: &str) -> bool {
    TYPES.contains(&name)
}

/// Reads an expression.
///
/// # Errors
/// What is wrong with it, and at which column.
pub fn parse(text: &str) -> Result<IdedExpr, String> {
    ENVIRONMENT.parser().parse(text).map_err(|errors| {
        let first = errors.errors.first();
        let message = first.map_or("not an expression", |error| error.msg.as_str());
        match first.map(|error| error.pos.1) {
            Some(column) => format!("not a CEL expression: {message} (at its column {column})"),
            None => format!("not a CEL expression: {message}"),
        }
    })
}

/// Checks that a function or operator exists, and that the pattern of `matches` is one.
///
/// # Errors
/// What is wrong with the call.
pub fn check_call(call: &CallExpr) -> Result<(), String> {
    let name = call.func_name.as_str();
    if name == "matches" {
        let pattern = call.args.last().map(|arg| &arg.expr);
        let Some(Expr::Literal(LiteralValue::String(pattern))) = pattern else {
            return Err("the pattern of `matches` must be written out".to_owned());
        };
        return Regex::new(pattern.inner())
            .map(drop)
            .map_err(|error| format!("the pattern of `matches`: {error}"));
    }
    // Operators have names that nobody can write.
    let operator =
        name.contains('_') && ![operators::OPT_INDEX, operators::OPT_SELECT].contains(&name);
    if operator || FUNCTIONS.contains(&name) {
        return Ok(());
    }
    Err(match name {
        "string" => "`string()` is switched off, as in Envoy".to_owned(),
        _ => format!("there is no function `{name}` here"),
    })
}

fn matches<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let failed = |message: &str| ExecutionError::FunctionError {
        function: "matches".to_owned(),
        message: message.to_owned(),
    };
    let [text, pattern] = args.as_slice() else {
        return Err(failed("two texts are needed"));
    };
    let text = text.downcast_ref::<CelString<'_>>();
    let pattern = pattern.downcast_ref::<CelString<'_>>();
    let (Some(text), Some(pattern)) = (text, pattern) else {
        return Err(failed("two texts are needed"));
    };
    let found = PATTERNS.with_borrow_mut(|patterns| {
        if let Some(regex) = patterns.get(pattern.inner()) {
            return Ok(regex.is_match(text.inner()));
        }
        let regex = Regex::new(pattern.inner()).map_err(|_| failed("not a pattern"))?;
        if patterns.len() >= MAX_PATTERNS {
            patterns.clear();
        }
        let found = regex.is_match(text.inner());
        patterns.insert(pattern.inner().to_owned(), regex);
        Ok(found)
    })?;
    Ok(CowVal::owned(CelBool::from(found)))
}
