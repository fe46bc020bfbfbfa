//! Conditions of rules: expressions in CEL, evaluated by the `cel` crate.
//!
//! A condition looks only at what it names, and that is read when it is needed. Names that there
//! are not, functions that there are not, and patterns that are none are refused when the
//! configuration is read.

mod document;
mod vocabulary;

use cel::{
    Context, IdedExpr, Value as CelValue,
    common::{
        ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators},
        types::{CelBool, CelString},
    },
};

use super::facts::Facts;
use attache_filter::expression::{check_call, environment, is_type, parse};
use vocabulary::{Attribute, Root};

/// A condition, checked.
#[derive(Debug)]
pub(super) struct Condition(IdedExpr);

impl Condition {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let expression = parse(text)?;
        Checking::default().expression(&expression)?;
        Ok(Self(expression))
    }

    /// Whether it holds.
    ///
    /// # Errors
    /// When it cannot be evaluated: something that it asks for is not there, or of another type.
    pub(super) fn holds(&self, facts: &Facts<'_>) -> Result<bool, String> {
        let mut context = Context::with_env(environment());
        context.set_variable_resolver(facts);
        let value = CelValue::resolve_val(&self.0, &context).map_err(|error| error.to_string())?;
        match value.as_ref().downcast_ref::<CelBool>() {
            Some(holds) => Ok(*holds.inner()),
            None => Err("the condition is neither true nor false".to_owned()),
        }
    }
}

/// An expression with a value of any kind, checked.
#[derive(Debug)]
pub(super) struct Expression(IdedExpr);

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        Condition::new(text).map(|Condition(expression)| Self(expression))
    }

    /// Its value.
    ///
    /// # Errors
    /// When it cannot be evaluated: something that it asks for is not there, or of another type.
    pub(super) fn value(&self, facts: &Facts<'_>) -> Result<serde_json::Value, String> {
        let mut context = Context::with_env(environment());
        context.set_variable_resolver(facts);
        let value = CelValue::resolve_val(&self.0, &context).map_err(|error| error.to_string())?;
        document::to_json(value.as_ref())
    }
}

/// Looking at an expression before it is ever evaluated.
#[derive(Default)]
struct Checking<'e> {
    /// Names bound by the macros around.
    bound: Vec<&'e str>,
}

impl<'e> Checking<'e> {
    fn expression(&mut self, expression: &'e IdedExpr) -> Result<(), String> {
        match &expression.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) if is_type(name) || self.is_bound(name) => Ok(()),
            Expr::Ident(name) => match Root::of(name)? {
                Root::Context | Root::Metadata => Ok(()),
                root => Err(format!(
                    "`{name}` has no value of its own; it has {}",
                    root.listed()
                )),
            },
            Expr::Select(select) => match self.attribute(&select.operand.expr, &select.field)? {
                Some(_) => Ok(()),
                None => self.expression(&select.operand),
            },
            Expr::Call(call) => {
                if let Some((operand, field)) = index(call)
                    && self.attribute(operand, field)?.is_some()
                {
                    return Ok(());
                }
                check_call(call)?;
                let parts = call.target.as_deref().into_iter().chain(&call.args);
                self.all(parts)
            }
            Expr::List(list) => self.all(&list.elements),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => self.all([&entry.key, &entry.value]),
                EntryExpr::StructField(field) => self.expression(&field.value),
            }),
            Expr::Comprehension(walk) => self.walk(walk),
            Expr::Struct(_) => Err("messages cannot be made here".to_owned()),
            Expr::Unspecified => Err("not an expression".to_owned()),
        }
    }

    fn all(&mut self, parts: impl IntoIterator<Item = &'e IdedExpr>) -> Result<(), String> {
        let mut parts = parts.into_iter();
        parts.try_for_each(|part| self.expression(part))
    }

    fn is_bound(&self, name: &str) -> bool {
        self.bound.contains(&name)
    }

    /// The attribute that `operand.field` is, if that is an attribute.
    fn attribute(&self, operand: &Expr, field: &str) -> Result<Option<Attribute>, String> {
        match operand {
            Expr::Ident(root) if !self.is_bound(root) => match Root::of(root)? {
                Root::Context => Ok(Some(Attribute::Context)),
                Root::Metadata => Ok(Some(Attribute::Metadata)),
                root => root.attribute(field).map(Some),
            },
            _ => Ok(None),
        }
    }

    /// `all`, `exists`, `filter`, `map` and the like.
    fn walk(&mut self, walk: &'e ComprehensionExpr) -> Result<(), String> {
        // One within another takes the square of the time.
        if !self.bound.is_empty() {
            return Err("`all`, `exists` and the like cannot stand within one another".to_owned());
        }
        let over = match &walk.iter_range.expr {
            Expr::Ident(root) if root == "context" => Some(Attribute::Context),
            Expr::Ident(root) if root == "metadata" => Some(Attribute::Metadata),
            Expr::Select(select) => self.attribute(&select.operand.expr, &select.field)?,
            Expr::Call(call) => match index(call) {
                Some((operand, field)) => self.attribute(operand, field)?,
                None => None,
            },
            _ => None,
        };
        if over.is_some_and(Attribute::is_map) {
            return Err("`all`, `exists` and the like are for lists, such as a claim".to_owned());
        }
        self.all([&walk.iter_range, &walk.accu_init])?;
        self.bound.extend([walk.iter_var.as_str(), &walk.accu_var]);
        self.bound.extend(walk.iter_var2.as_deref());
        let inside = self.all([&walk.loop_cond, &walk.loop_step, &walk.result]);
        self.bound.clear();
        inside
    }
}

/// The operand and field of `operand["field"]`.
fn index(call: &CallExpr) -> Option<(&Expr, &str)> {
    let [operand, field] = call.args.as_slice() else {
        return None;
    };
    match &field.expr {
        Expr::Literal(LiteralValue::String(field)) if call.func_name == operators::INDEX => {
            Some((&operand.expr, CelString::inner(field)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use http::Request;
    use serde_json::json;

    use super::*;
    use crate::policy::{
        check::{Check, Read},
        explain::Trail,
        identity::{Caller, Identity},
        metadata::Fetched,
        path::Reading,
    };

    /// What a condition says of one request, and what it reads of it.
    fn ask(condition: &str) -> (Result<bool, String>, BTreeSet<Read>) {
        let request = Request::post("http://Shop.example.com:8080/or%64ers/7?a=1&a=2&b=x%20y")
            .header("x-team", "blue")
            .header("x-n", "7")
            .header("cookie", "theme=dark")
            .header("content-type", "application/json")
            .body(())
            .unwrap();
        let view = crate::testing::view(&request);
        let mut check = Check::new(&view, Reading::default(), Trail::default()).unwrap();
        check.record();
        let caller = Caller::Known(Arc::new(Identity {
            source: 0,
            claims: json!({
                "sub": "alice", "level": 3, "roles": ["user", "admin"],
                "realm": { "name": "west" }, "owns": ["/orders/7"],
            }),
            until: None,
        }));
        let facts = Facts {
            check: &check,
            caller: &caller,
            source: "users",
            metadata: &Fetched::default(),
        };
        let holds = Condition::new(condition)
            .unwrap_or_else(|error| panic!("{condition}: {error}"))
            .holds(&facts);
        (holds, check.reads().unwrap())
    }

    #[test]
    fn conditions_see_the_request_and_the_caller() {
        for (condition, expected) in [
            ("true", true),
            (r#"request.method == "POST""#, true),
            (r#"request.path == "/orders/7""#, true),
            (r#"request.path.startsWith("/orders/")"#, true),
            (r#"request.path.matches("^/orders/[0-9]+$")"#, true),
            (r#"request.host == "shop.example.com""#, true),
            (r#"request.scheme == "http""#, true),
            (r#"request.query == "a=1&a=2&b=x%20y""#, true),
            (r#"request.parameters["a"] == ["1", "2"]"#, true),
            (r#""x y" in request.parameters.b"#, true),
            (r#""c" in request.parameters"#, false),
            (r#"request.headers["x-team"] == "blue""#, true),
            (r#"request["headers"]["x-team"] == "blue""#, true),
            (r#"request.headers["X-Team"] == "blue""#, true),
            (r#""x-none" in request.headers"#, false),
            (r#"has(request.headers.accept)"#, false),
            (r#"int(request.headers["x-n"]) > 6"#, true),
            (r#"request.cookies.theme == "dark""#, true),
            (r#"identity.source == "users""#, true),
            (r#"identity.claims.sub == "alice""#, true),
            (r#""admin" in identity.claims.roles"#, true),
            (
                r#"identity.claims.roles.exists(r, r.startsWith("adm"))"#,
                true,
            ),
            (r#"identity.claims.roles.all(r, r == "user")"#, false),
            (r#"request.path in identity.claims.owns"#, true),
            (r#"identity.claims.realm.name == "west""#, true),
            (
                r#"identity.claims.level >= 3 && identity.claims.level < 4.5"#,
                true,
            ),
            (r#"has(identity.claims.email)"#, false),
            (r#"size(identity.claims.roles) == 2"#, true),
            (r#""tier" in context"#, false),
            (r#"has(context.tier)"#, false),
        ] {
            assert_eq!(ask(condition).0, Ok(expected), "{condition}");
        }
    }

    #[test]
    fn what_is_not_there_is_neither_true_nor_false() {
        for condition in [
            r#"request.headers["x-none"] == "1""#,
            r#"request.headers["x-none"] != "1""#,
            r#"identity.claims.email == "a@b""#,
            r#"context.tier == "gold""#,
            r#"source.principal == "spiffe://a/b""#,
            r#"request.body == """#,
            r#"int(request.headers["x-team"]) > 1"#,
            r#"request.method"#,
        ] {
            assert!(ask(condition).0.is_err(), "{condition}");
        }
    }

    #[test]
    fn conditions_read_what_they_need_and_nothing_else() {
        for (condition, expected) in [
            (r#"true || request.method == "GET""#, vec![]),
            (
                r#"request.method == "GET" && request.path == "/""#,
                vec![Read::Method],
            ),
            (
                r#"has(request.headers.accept)"#,
                vec![Read::Header("accept".into())],
            ),
            (
                r#""a" in request.parameters"#,
                vec![Read::Parameter("a".into())],
            ),
            (r#"identity.claims.sub == "bob""#, vec![]),
            (r#"has(context.tier)"#, vec![Read::Context("tier".into())]),
        ] {
            assert_eq!(
                ask(condition).1,
                BTreeSet::from_iter(expected),
                "{condition}"
            );
        }
    }

    #[test]
    fn mistakes_are_found_before_there_is_a_request() {
        for (condition, expected) in [
            ("request.method ==", "not a CEL expression"),
            (
                "request.verb == \"GET\"",
                "`request` has no `verb`; it has `method`",
            ),
            (
                "request[\"verb\"] == \"GET\"",
                "`request` has no `verb`; it has `method`",
            ),
            (
                "user == \"bob\"",
                "there is no `user` here; there are `request`, ",
            ),
            ("size(request) > 0", "`request` has no value of its own"),
            (
                "identity.claims.sub.sha256() == \"\"",
                "there is no function `sha256`",
            ),
            ("request.path.matches(\"[\")", "the pattern of `matches`"),
            ("request.path.matches(request.host)", "must be written out"),
            (
                "identity.claims.a.all(x, identity.claims.b.all(y, x == y))",
                "cannot stand within one another",
            ),
            ("request.headers.all(h, h == \"\")", "are for lists"),
        ] {
            let error = Condition::new(condition).unwrap_err();
            assert!(error.contains(expected), "{condition}: {error}");
        }
    }
}
