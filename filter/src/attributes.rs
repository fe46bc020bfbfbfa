//! Attributes of a request by Envoy's names (`request.path`, `source.address`, ...), and CEL
//! expressions over them.
//!
//! Expressions are compiled when the configuration is read, and a name or function that does not
//! exist is an error there, where Envoy would silently leave the attribute out. An expression
//! that only names an attribute or a header is read directly; for others, the `cel` crate looks
//! into no more than they ask for.
//!
//! What has no value (an absent header, the response's code in the request phase, a division by
//! zero) is left out.

mod cel;
mod facts;
mod plain;
mod vocabulary;
mod wire;

#[cfg(test)]
mod tests;

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use attache_service::config::{Errors, Located};

pub(crate) use facts::protocol;
pub use facts::{Facts, Fields, Value};

use self::{cel::Program, plain::Plain};

/// A compiled expression.
#[derive(Debug, Clone)]
pub struct Expression(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Plain(Plain),
    Cel(Program),
}

impl Value<'_> {
    /// The value as text, the way Envoy writes it: `NULL`, `CelMap value`, `1.5s`, and whatever
    /// else is no text.
    pub fn text(&self) -> Cow<'_, str> {
        wire::text(self)
    }
}

impl Expression {
    /// Compiles an expression.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn compile(text: &str) -> Result<Self, String> {
        let parsed = crate::expression::parse(text)?;
        Ok(Self(match Plain::of(&parsed) {
            Some(plain) => Kind::Plain(plain),
            None => Kind::Cel(Program::check(parsed)?),
        }))
    }

    /// The value; `None` when it has none.
    pub fn evaluate<'a>(&self, facts: &Facts<'a>) -> Option<Value<'a>> {
        match &self.0 {
            Kind::Plain(plain) => plain.value(facts),
            Kind::Cel(program) => program.evaluate(facts),
        }
    }

    /// Whether it looks at the request's head.
    pub fn reads_request(&self) -> bool {
        match &self.0 {
            Kind::Plain(plain) => plain.reads_request(),
            Kind::Cel(program) => program.reads("request"),
        }
    }
}

/// Expressions by the names under which a service is shown their values.
#[derive(Debug, Clone, Default)]
pub struct Attributes(Arc<[(String, Expression)]>);

impl Attributes {
    /// Compiles expressions that are shown under their own text (`request_attributes`); faults
    /// are reported at their place.
    pub fn plan(raw: &[Located<String>], errors: &mut Errors) -> Self {
        let named = raw.iter().map(|text| (text.value.as_str(), text));
        Self::plan_named(named, errors)
    }

    /// Compiles expressions that have names (`MappedAttributeBuilder`).
    pub fn plan_mapped(raw: &BTreeMap<String, Located<String>>, errors: &mut Errors) -> Self {
        Self::plan_named(raw.iter().map(|(name, text)| (name.as_str(), text)), errors)
    }

    fn plan_named<'a>(
        raw: impl Iterator<Item = (&'a str, &'a Located<String>)>,
        errors: &mut Errors,
    ) -> Self {
        let mut planned: Vec<(String, Expression)> = Vec::new();
        for (name, text) in raw {
            match Expression::compile(&text.value) {
                Ok(expression) if planned.iter().all(|(known, _)| known != name) => {
                    planned.push((name.to_owned(), expression));
                }
                // Twice the same is once.
                Ok(_) => {}
                Err(fault) => errors.push(text, fault),
            }
        }
        Self(planned.into())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether any looks at the request's head.
    pub fn reads_request(&self) -> bool {
        self.0
            .iter()
            .any(|(_, expression)| expression.reads_request())
    }

    /// Those that have a value, as an encoded `google.protobuf.Struct`.
    pub fn encode(&self, facts: &Facts<'_>) -> Vec<u8> {
        let mut encoded = Vec::new();
        for (name, expression) in self.0.iter() {
            if let Some(value) = expression.evaluate(facts) {
                wire::put_field(name, &value, &mut encoded);
            }
        }
        encoded
    }
}
