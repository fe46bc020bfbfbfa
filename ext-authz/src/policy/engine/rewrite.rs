//! What the engine reads in other ways than Open Policy Agent, written so that both agree.
//!
//! - `not f(input.x)`: what is not there makes the whole statement undefined, and does not turn
//!   `not` into true. So arguments are looked up before: `a := input.x; not f(a)`.
//! - `x in input.y` as a value: has none when one of the two is not there.

use regorus::unstable::{
    AssignOp, BoolOp, Expr, Literal, LiteralStmt, Module, Query, Ref, Rule, RuleAssign, RuleHead,
};

use super::{builtins::imports, syntax::path};

/// How deep statements stand within one another.
const MAX_ROUNDS: usize = 32;

/// The text of a module as the engine shall read it. Lines stay where they are.
///
/// # Errors
/// When it is no module.
pub(super) fn rewritten(
    mut text: String,
    parse: impl Fn(&str) -> Result<Ref<Module>, String>,
) -> Result<String, String> {
    let mut names = 0;
    for _ in 0..MAX_ROUNDS {
        let module = parse(&text)?;
        let mut pass = Pass::new(&module, &text, &mut names);
        for rule in &module.policy {
            pass.rule(rule);
        }
        let mut edits = pass.edits;
        if edits.is_empty() {
            return Ok(text);
        }
        edits.sort_by_key(|edit| edit.start);
        // What stands within another is for the next round.
        let mut end = 0;
        edits.retain(|edit| {
            let apart = edit.start >= end;
            if apart {
                end = edit.end;
            }
            apart
        });
        for edit in edits.iter().rev() {
            text.replace_range(edit.start..edit.end, &edit.text);
        }
    }
    Err("statements stand too deep within one another".to_owned())
}

/// How names begin that policies do not have.
const OURS: &str = "__looked_up_";

/// A piece of text to be replaced.
struct Edit {
    start: usize,
    end: usize,
    text: String,
}

struct Pass<'p> {
    text: &'p str,
    /// Names that can stand for documents: rules and imports.
    documents: Vec<&'p str>,
    names: &'p mut usize,
    edits: Vec<Edit>,
}

impl<'p> Pass<'p> {
    fn new(module: &'p Module, text: &'p str, names: &'p mut usize) -> Self {
        let rules = module.policy.iter().filter_map(|rule| {
            let name: &Expr = match rule.as_ref() {
                Rule::Spec { head, .. } => match head {
                    RuleHead::Compr { refr, .. }
                    | RuleHead::Set { refr, .. }
                    | RuleHead::Func { refr, .. } => refr,
                },
                Rule::Default { refr, .. } => refr,
            };
            path(name)?.first().copied()
        });
        let imported = imports(module).into_iter().map(|(name, _)| name);
        Self {
            text,
            documents: ["input", "data"]
                .into_iter()
                .chain(rules)
                .chain(imported)
                .collect(),
            names,
            edits: Vec::new(),
        }
    }

    fn source(&self, start: usize, end: usize) -> &'p str {
        self.text.get(start..end).unwrap_or_default()
    }

    fn of(&self, expression: &Expr) -> &'p str {
        let (start, end) = extent(expression);
        self.source(start, end)
    }

    fn rule(&mut self, rule: &Rule) {
        let Rule::Spec { head, bodies, .. } = rule else {
            return;
        };
        let assign = match head {
            RuleHead::Compr { assign, .. } | RuleHead::Func { assign, .. } => assign.as_ref(),
            RuleHead::Set { key, .. } => {
                self.all(key);
                None
            }
        };
        self.assign(assign);
        for body in bodies {
            self.assign(body.assign.as_ref());
            let start = body.query.span.start as usize;
            let braces = self
                .text
                .get(start..)
                .is_some_and(|text| text.starts_with('{'));
            self.query(&body.query, braces);
        }
    }

    fn assign(&mut self, assign: Option<&RuleAssign>) {
        if let Some(assign) = assign {
            self.value(&assign.value);
        }
    }

    /// `closed`: whether more than one statement can stand there.
    fn query(&mut self, query: &Query, closed: bool) {
        for statement in &query.stmts {
            for replaced in &statement.with_mods {
                self.value(&replaced.r#as);
            }
            match &statement.literal {
                Literal::SomeVars { .. } => {}
                Literal::SomeIn { collection, .. } => self.value(collection),
                Literal::Every { domain, query, .. } => {
                    self.value(domain);
                    self.query(query, true);
                }
                Literal::Expr { expr, .. } => match expr.as_ref() {
                    // Undefined or false is all the same to a statement.
                    Expr::Membership {
                        key,
                        value,
                        collection,
                        ..
                    } => {
                        self.all(key);
                        self.all([value, collection]);
                    }
                    other => self.value(other),
                },
                Literal::NotExpr { expr, .. } => self.negation(statement, expr, closed),
            }
        }
    }

    fn negation(&mut self, statement: &LiteralStmt, negated: &Expr, closed: bool) {
        let mut wanted = Vec::new();
        match negated {
            Expr::Call { params, .. } => self.operands(params, &mut wanted),
            Expr::Membership {
                key,
                value,
                collection,
                ..
            } => {
                self.operands(key, &mut wanted);
                self.operands([value, collection], &mut wanted);
            }
            Expr::BoolExpr {
                op: BoolOp::Eq,
                lhs,
                rhs,
                ..
            }
            | Expr::AssignExpr {
                op: AssignOp::Eq,
                lhs,
                rhs,
                ..
            } => {
                // Both sides may be undefined, but not what they are made of.
                for side in [lhs, rhs] {
                    match side.as_ref() {
                        Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => {
                            self.indices(side, &mut wanted);
                        }
                        _ => self.operands([side], &mut wanted),
                    }
                }
            }
            Expr::BoolExpr { lhs, rhs, .. }
            | Expr::ArithExpr { lhs, rhs, .. }
            | Expr::BinExpr { lhs, rhs, .. } => self.operands([lhs, rhs], &mut wanted),
            Expr::UnaryExpr { expr, .. } => self.operands([expr], &mut wanted),
            Expr::RefDot { .. } | Expr::RefBrack { .. } => self.indices(negated, &mut wanted),
            _ => {}
        }
        if wanted.is_empty() {
            return self.parts(negated);
        }
        let start = statement.span.start as usize;
        let end = self.end(statement);
        let (_, after) = extent(negated);
        let with = self.source(after, end).trim();
        // `with` stands behind a closing parenthesis that is not the expression's own.
        let with = with.trim_start_matches(')').trim();
        let mut before = String::new();
        let mut negation = String::new();
        let mut at = start;
        wanted.sort_unstable();
        for (from, to) in wanted {
            if from < at {
                continue;
            }
            *self.names += 1;
            let name = format!("{OURS}{}", self.names);
            let value = one_line(self.source(from, to));
            before.push_str(&format!("{name} := {value} {with}; "));
            negation.push_str(self.source(at, from));
            negation.push_str(&name);
            at = to;
        }
        negation.push_str(self.source(at, end));
        let (open, close) = if closed { ("", "") } else { ("{ ", " }") };
        self.edits.push(Edit {
            start,
            end,
            text: format!("{open}{before}{negation}{close}"),
        });
    }

    /// Where a statement ends, its `with` included.
    fn end(&self, statement: &LiteralStmt) -> usize {
        let expression = match &statement.literal {
            Literal::NotExpr { expr, .. } => extent(expr).1,
            _ => 0,
        };
        let ends = statement.with_mods.iter().map(|with| extent(&with.r#as).1);
        let last = ends.chain([statement.span.end as usize, expression]).max();
        let end = last.unwrap_or_default();
        // Blanks and comments may count as part of it.
        self.source(0, end).trim_end().len()
    }

    /// What has to be looked up before: all that may be undefined.
    fn operands<'e>(
        &self,
        operands: impl IntoIterator<Item = &'e Ref<Expr>>,
        wanted: &mut Vec<(usize, usize)>,
    ) {
        for operand in operands {
            let may_be_undefined = match operand.as_ref() {
                Expr::String { .. }
                | Expr::RawString { .. }
                | Expr::Number { .. }
                | Expr::Bool { .. }
                | Expr::Null { .. } => false,
                Expr::Var { span, .. } => self.documents.contains(&span.text()),
                _ => true,
            };
            if may_be_undefined {
                wanted.push(extent(operand));
            }
        }
    }

    /// The documents within the brackets of a reference.
    fn indices(&self, reference: &Expr, wanted: &mut Vec<(usize, usize)>) {
        match reference {
            Expr::RefDot { refr, .. } => self.indices(refr, wanted),
            Expr::RefBrack { refr, index, .. } => {
                self.indices(refr, wanted);
                self.operands([index], wanted);
            }
            _ => {}
        }
    }

    fn all<'e>(&mut self, expressions: impl IntoIterator<Item = &'e Ref<Expr>>) {
        for expression in expressions {
            self.value(expression);
        }
    }

    /// An expression of which the value counts.
    fn value(&mut self, expression: &Expr) {
        if let Expr::Membership {
            key,
            value,
            collection,
            ..
        } = expression
        {
            let value = self.of(value);
            let collection = self.of(collection);
            let text = match key {
                None => format!("internal.member_2({value}, {collection})"),
                Some(key) => {
                    let key = self.of(key);
                    format!("internal.member_3({key}, {value}, {collection})")
                }
            };
            let (start, end) = extent(expression);
            self.edits.push(Edit { start, end, text });
            return;
        }
        self.parts(expression);
    }

    fn parts(&mut self, expression: &Expr) {
        match expression {
            Expr::Array { items, .. } | Expr::Set { items, .. } => self.all(items),
            Expr::Object { fields, .. } => {
                for (_, key, value) in fields {
                    self.all([key, value]);
                }
            }
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.value(term);
                self.query(query, true);
            }
            Expr::ObjectCompr {
                key, value, query, ..
            } => {
                self.all([key, value]);
                self.query(query, true);
            }
            Expr::Call { params, .. } => self.all(params),
            Expr::UnaryExpr { expr, .. } => self.value(expr),
            Expr::RefDot { refr, .. } => self.value(refr),
            Expr::RefBrack { refr, index, .. } => self.all([refr, index]),
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
            _ => {}
        }
    }
}

/// From where to where an expression goes. The places of texts are without their quotes.
fn extent(expression: &Expr) -> (usize, usize) {
    let span = expression.span();
    let own = (span.start as usize, span.end as usize);
    let over = |first: &Expr, last: &Expr| {
        let (start, end) = (extent(first).0, extent(last).1);
        (own.0.min(start), own.1.max(end))
    };
    match expression {
        Expr::String { .. } | Expr::RawString { .. } => {
            (own.0.saturating_sub(1), own.1.saturating_add(1))
        }
        Expr::BinExpr { lhs, rhs, .. }
        | Expr::BoolExpr { lhs, rhs, .. }
        | Expr::ArithExpr { lhs, rhs, .. }
        | Expr::AssignExpr { lhs, rhs, .. } => over(lhs, rhs),
        Expr::Membership {
            key,
            value,
            collection,
            ..
        } => over(key.as_ref().unwrap_or(value), collection),
        Expr::UnaryExpr { expr, .. } => over(expr, expr),
        _ => own,
    }
}

/// Statements end with their line.
fn one_line(text: &str) -> String {
    if text.contains('`') || text.contains('#') {
        return text.to_owned();
    }
    text.split('\n')
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" ")
}
