//! Tests of dynamic metadata: Envoy's `type.matcher.v3.MetadataMatcher`.

use attache_service::{
    config::{Empty, Errors, Located},
    config_oneof, config_struct,
};
use prost_types::{Value, value::Kind};

use crate::{
    RequestContext,
    matcher::{StringMatcher, TextMatcher},
    metadata::{PathSegment, find},
};

config_struct! {
    /// Envoy's `type.matcher.v3.MetadataMatcher`.
    pub struct MetadataMatcher {
        /// The namespace, mostly a filter's name.
        pub filter: String,
        /// The way to the value within it.
        pub path: Located<Vec<PathSegment>>,
        /// What the value must be.
        pub value: ValueMatcher,
        /// Turn the result round. Default false.
        pub invert: Option<bool>,
    }
}

config_oneof! {
    /// What a value must be.
    pub enum ValueTest {
        /// Null.
        NullMatch(Empty) = "null_match",
        /// A number.
        DoubleMatch(DoubleMatcher) = "double_match",
        /// A text.
        StringMatch(StringMatcher) = "string_match",
        /// This truth value.
        BoolMatch(bool) = "bool_match",
        /// There, or not there.
        PresentMatch(bool) = "present_match",
        /// A list with such an item.
        ListMatch(Box<ListMatcher>) = "list_match",
        /// One of these.
        OrMatch(OrMatcher) = "or_match",
    }
}

config_struct! {
    /// Envoy's `type.matcher.v3.ValueMatcher`.
    pub struct ValueMatcher {}
    oneof {
        /// The test.
        pub test: ValueTest,
    }
}

config_struct! {
    /// Envoy's `type.matcher.v3.DoubleMatcher`.
    pub struct DoubleMatcher {}
    oneof {
        /// The test.
        pub test: DoubleTest,
    }
}

config_oneof! {
    /// What a number must be.
    pub enum DoubleTest {
        /// In this range.
        Range(DoubleRange) = "range",
        /// This number.
        Exact(f64) = "exact",
    }
}

config_struct! {
    /// Envoy's `type.v3.DoubleRange`.
    pub struct DoubleRange {
        /// First number in the range. Default 0.
        pub start: Option<f64>,
        /// First number after the range. Default 0.
        pub end: Option<f64>,
    }
}

config_struct! {
    /// Envoy's `type.matcher.v3.ListMatcher`.
    pub struct ListMatcher {
        /// What one of its items must be.
        pub one_of: ValueMatcher,
    }
}

config_struct! {
    /// Envoy's `type.matcher.v3.OrMatcher`.
    pub struct OrMatcher {
        /// At least two.
        pub value_matchers: Located<Vec<ValueMatcher>>,
    }
}

/// A compiled [`MetadataMatcher`].
#[derive(Debug, Clone)]
pub struct MetadataTest {
    namespace: String,
    path: Vec<String>,
    test: Test,
    invert: bool,
}

#[derive(Debug, Clone)]
enum Test {
    Null,
    Range(f64, f64),
    Number(f64),
    Text(TextMatcher),
    Bool(bool),
    Present(bool),
    Item(Box<Test>),
    Any(Vec<Test>),
}

impl MetadataTest {
    /// Compiles a matcher; faults are reported at their place. `None` only after an error.
    pub fn plan(raw: &MetadataMatcher, errors: &mut Errors) -> Option<Self> {
        if raw.path.is_empty() {
            errors.push(&raw.path, "`path` needs at least one `key`");
        }
        Some(Self {
            namespace: raw.filter.clone(),
            path: raw.path.iter().map(|segment| segment.key.clone()).collect(),
            test: Test::plan(&raw.value, errors)?,
            invert: raw.invert.unwrap_or(false),
        })
    }

    /// Whether the dynamic metadata of a request matches.
    pub fn matches(&self, context: &RequestContext) -> bool {
        let matched = context.with_metadata(&self.namespace, |fields| {
            let value = find(fields?, &self.path)?;
            Some(self.test.matches(Some(value)))
        });
        matched.unwrap_or_else(|| self.test.matches(None)) != self.invert
    }
}

impl Test {
    fn plan(raw: &ValueMatcher, errors: &mut Errors) -> Option<Self> {
        Some(match &raw.test {
            ValueTest::NullMatch(_) => Self::Null,
            ValueTest::DoubleMatch(number) => match &number.test {
                DoubleTest::Range(range) => {
                    Self::Range(range.start.unwrap_or(0.0), range.end.unwrap_or(0.0))
                }
                DoubleTest::Exact(number) => Self::Number(*number),
            },
            ValueTest::StringMatch(text) => Self::Text(TextMatcher::plan(text, errors)?),
            ValueTest::BoolMatch(wanted) => Self::Bool(*wanted),
            ValueTest::PresentMatch(wanted) => Self::Present(*wanted),
            ValueTest::ListMatch(list) => Self::Item(Box::new(Self::plan(&list.one_of, errors)?)),
            ValueTest::OrMatch(or) => {
                if or.value_matchers.len() < 2 {
                    errors.push(&or.value_matchers, "`value_matchers` needs at least two");
                }
                let tests = or.value_matchers.iter();
                Self::Any(tests.filter_map(|raw| Self::plan(raw, errors)).collect())
            }
        })
    }

    fn matches(&self, value: Option<&Value>) -> bool {
        let kind = value.and_then(|value| value.kind.as_ref());
        match (self, kind) {
            (Self::Present(wanted), kind) => kind.is_some() == *wanted,
            (Self::Any(tests), _) => tests.iter().any(|test| test.matches(value)),
            (Self::Null, Some(Kind::NullValue(_))) => true,
            (Self::Range(start, end), Some(Kind::NumberValue(number))) => {
                (start..end).contains(&number)
            }
            (Self::Number(wanted), Some(Kind::NumberValue(number))) => wanted == number,
            (Self::Text(matcher), Some(Kind::StringValue(text))) => matcher.matches(text),
            (Self::Bool(wanted), Some(Kind::BoolValue(value))) => wanted == value,
            (Self::Item(test), Some(Kind::ListValue(list))) => {
                list.values.iter().any(|item| test.matches(Some(item)))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use attache_service::config::Document;
    use http::Version;

    use super::*;
    use crate::metadata::{Metadata, RouteMetadata};

    fn decode<T: attache_service::config::ConfigValue>(text: &str) -> T {
        let decoded = Document::parse("m.yaml", text).and_then(|document| document.decode());
        decoded.unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn matches(matcher: &str) -> bool {
        let context = RequestContext::new(Arc::default(), Version::HTTP_11);
        let known: Metadata = decode(
            "filter_metadata: { ns: { user: ann, age: 7, ok: true, none: ~, l: [1, b], deep: { k: v } } }",
        );
        for (namespace, fields) in RouteMetadata::plan(&known).untyped {
            context.merge_metadata(&namespace, fields);
        }
        let mut errors = Errors::new();
        let planned = MetadataTest::plan(&decode::<MetadataMatcher>(matcher), &mut errors);
        let planned = errors.into_result(planned);
        planned
            .unwrap_or_else(|errors| panic!("{errors}"))
            .matches(&context)
    }

    #[test]
    fn values_are_compared_by_their_kind() {
        for (key, test, expected) in [
            ("user", "string_match: { prefix: a }", true),
            ("user", "string_match: { exact: bob }", false),
            ("user", "bool_match: true", false),
            ("age", "double_match: { exact: 7 }", true),
            ("age", "double_match: { range: { start: 7, end: 8 } }", true),
            (
                "age",
                "double_match: { range: { start: 6, end: 7 } }",
                false,
            ),
            ("ok", "bool_match: true", true),
            ("none", "null_match: {}", true),
            ("user", "null_match: {}", false),
            ("user", "present_match: true", true),
            ("absent", "present_match: true", false),
            ("absent", "present_match: false", true),
            (
                "l",
                "list_match: { one_of: { double_match: { exact: 1 } } }",
                true,
            ),
            (
                "l",
                "list_match: { one_of: { string_match: { exact: a } } }",
                false,
            ),
            (
                "user",
                "or_match: { value_matchers: [{ null_match: {} }, { string_match: { exact: ann } }] }",
                true,
            ),
        ] {
            let matcher =
                format!("{{ filter: ns, path: [{{ key: {key} }}], value: {{ {test} }} }}");
            assert_eq!(matches(&matcher), expected, "{matcher}");
        }
    }

    #[test]
    fn paths_lead_into_structs_and_results_can_be_turned_round() {
        let deep = "path: [{ key: deep }, { key: k }], value: { string_match: { exact: v } }";
        assert!(matches(&format!("{{ filter: ns, {deep} }}")));
        assert!(!matches(&format!("{{ filter: ns, {deep}, invert: true }}")));
        assert!(!matches(&format!("{{ filter: other, {deep} }}")));
        assert!(matches(&format!(
            "{{ filter: other, {deep}, invert: true }}"
        )));
    }
}
