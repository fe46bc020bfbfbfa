//! What a module mentions: which functions it calls, and what it reads by name.

use regorus::unstable::{Expr, Literal, Module, Query, Ref, Rule, RuleAssign, RuleHead, Span};

/// A mention.
pub(super) enum Mention<'m> {
    /// A function is called.
    Call(Vec<&'m str>, &'m Span),
    /// A document is read. The path goes as far as it is written out.
    Read(Vec<&'m str>),
    /// The sign of something other than a number is changed.
    Negated(&'m Span),
    /// A rule builds objects within objects by names that are not written out.
    DeepHead(&'m Span),
    /// A document or function is replaced (`with`).
    Replaced(Vec<&'m str>, &'m Span),
}

/// The names in a reference, as far as they are written out: of `input.a["b"][c].d` the first
/// three. `None` when it does not start with a name.
pub(super) fn path(reference: &Expr) -> Option<Vec<&str>> {
    let mut path = Vec::new();
    prefix(reference, &mut path)?;
    Some(path)
}

/// Adds the names in a reference; says whether they are all of it.
fn prefix<'m>(reference: &'m Expr, path: &mut Vec<&'m str>) -> Option<bool> {
    match reference {
        Expr::Var { span, .. } => path.push(span.text()),
        Expr::RefDot { refr, field, .. } => {
            if !prefix(refr, path)? {
                return Some(false);
            }
            path.push(field.0.text());
        }
        Expr::RefBrack { refr, index, .. } => {
            let whole = prefix(refr, path)?;
            match index.as_ref() {
                Expr::String { value, .. } | Expr::RawString { value, .. } if whole => {
                    path.push(value.as_string().ok()?);
                }
                _ => return Some(false),
            }
        }
        _ => return None,
    }
    Some(true)
}

/// Whether a reference has only names.
fn is_written_out(reference: &Expr) -> bool {
    prefix(reference, &mut Vec::new()) == Some(true)
}

/// Calls `found` with everything that a module mentions.
pub(super) fn walk<'m>(module: &'m Module, found: &mut dyn FnMut(Mention<'m>)) {
    let mut walk = Walk { found };
    for rule in &module.policy {
        walk.rule(rule);
    }
}

struct Walk<'f, 'm> {
    found: &'f mut dyn FnMut(Mention<'m>),
}

impl<'m> Walk<'_, 'm> {
    fn rule(&mut self, rule: &'m Rule) {
        match rule {
            Rule::Spec { head, bodies, .. } => {
                match head {
                    RuleHead::Compr {
                        span, refr, assign, ..
                    } => {
                        if let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } =
                            refr.as_ref()
                            && !is_written_out(refr)
                        {
                            (self.found)(Mention::DeepHead(span));
                        }
                        self.expression(refr);
                        self.assign(assign.as_ref());
                    }
                    RuleHead::Set {
                        span, refr, key, ..
                    } => {
                        if !is_written_out(refr) {
                            (self.found)(Mention::DeepHead(span));
                        }
                        self.expression(refr);
                        self.all(key);
                    }
                    RuleHead::Func {
                        refr, args, assign, ..
                    } => {
                        self.expression(refr);
                        self.all(args);
                        self.assign(assign.as_ref());
                    }
                }
                for body in bodies {
                    self.assign(body.assign.as_ref());
                    self.query(&body.query);
                }
            }
            Rule::Default {
                refr, args, value, ..
            } => {
                self.expression(refr);
                self.all(args);
                self.expression(value);
            }
        }
    }

    fn assign(&mut self, assign: Option<&'m RuleAssign>) {
        if let Some(assign) = assign {
            self.expression(&assign.value);
        }
    }

    fn query(&mut self, query: &'m Query) {
        for statement in &query.stmts {
            match &statement.literal {
                Literal::SomeVars { .. } => {}
                Literal::SomeIn {
                    key,
                    value,
                    collection,
                    ..
                } => {
                    self.all(key);
                    self.expression(value);
                    self.expression(collection);
                }
                Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => {
                    self.expression(expr);
                }
                Literal::Every { domain, query, .. } => {
                    self.expression(domain);
                    self.query(query);
                }
            }
            for replaced in &statement.with_mods {
                if let Some(path) = path(&replaced.refr) {
                    (self.found)(Mention::Replaced(path, &replaced.span));
                }
                self.expression(&replaced.r#as);
            }
        }
    }

    fn all(&mut self, expressions: impl IntoIterator<Item = &'m Ref<Expr>>) {
        for expression in expressions {
            self.expression(expression);
        }
    }

    fn expression(&mut self, expression: &'m Expr) {
        match expression {
            Expr::String { .. }
            | Expr::RawString { .. }
            | Expr::Number { .. }
            | Expr::Bool { .. }
            | Expr::Null { .. } => {}
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => {
                if let Some(path) = path(expression) {
                    (self.found)(Mention::Read(path));
                }
                self.within(expression);
            }
            Expr::Array { items, .. } | Expr::Set { items, .. } => self.all(items),
            Expr::Object { fields, .. } => {
                for (_, key, value) in fields {
                    self.all([key, value]);
                }
            }
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.expression(term);
                self.query(query);
            }
            Expr::ObjectCompr {
                key, value, query, ..
            } => {
                self.all([key, value]);
                self.query(query);
            }
            Expr::Call {
                span, fcn, params, ..
            } => {
                if let Some(path) = path(fcn) {
                    (self.found)(Mention::Call(path, span));
                }
                self.all(params);
            }
            Expr::UnaryExpr { span, expr, .. } => {
                if !matches!(expr.as_ref(), Expr::Number { .. }) {
                    (self.found)(Mention::Negated(span));
                }
                self.expression(expr);
            }
            Expr::BinExpr { lhs, rhs, .. }
            | Expr::BoolExpr { lhs, rhs, .. }
            | Expr::ArithExpr { lhs, rhs, .. }
            | Expr::AssignExpr { lhs, rhs, .. } => self.all([lhs, rhs]),
            Expr::Membership {
                key,
                value,
                collection,
                ..
            } => {
                self.all(key);
                self.all([value, collection]);
            }
        }
    }

    /// What stands within a reference: its indices, and what it starts from when that is no name.
    fn within(&mut self, reference: &'m Expr) {
        match reference {
            Expr::Var { .. } => {}
            Expr::RefDot { refr, .. } => self.within(refr),
            Expr::RefBrack { refr, index, .. } => {
                self.within(refr);
                self.expression(index);
            }
            other => self.expression(other),
        }
    }
}
