//! Matchers of actions that make an entry or leave the descriptor out.

use attache_filter::matcher::{FieldMatcher, QueryParameterMatch, TextMatcher};
use attache_service::config::Errors;
use http::request::Parts;

use super::query_value;

/// What a [`super::Action::Match`] looks at.
#[derive(Debug, Clone)]
pub enum Matchers {
    /// Headers.
    Headers(Vec<FieldMatcher>),
    /// Query parameters: name and what the value must be.
    QueryParameters(Vec<(String, ParameterMatch)>),
}

/// What a query parameter must be.
#[derive(Debug, Clone)]
pub enum ParameterMatch {
    /// There or not.
    Present(bool),
    /// There, with a value that matches.
    Value(TextMatcher),
}

impl Matchers {
    pub(super) fn all_match(&self, head: &Parts) -> bool {
        match self {
            Self::Headers(matchers) => matchers.iter().all(|matcher| matcher.matches(head)),
            Self::QueryParameters(matchers) => matchers.iter().all(|(name, matches)| {
                let value = query_value(head, name);
                match matches {
                    ParameterMatch::Present(present) => value.is_some() == *present,
                    ParameterMatch::Value(matcher) => {
                        value.is_some_and(|value| matcher.matches(&value))
                    }
                }
            }),
        }
    }
}

impl ParameterMatch {
    pub(super) fn plan(raw: Option<&QueryParameterMatch>, errors: &mut Errors) -> Option<Self> {
        Some(match raw {
            None => Self::Present(true),
            Some(QueryParameterMatch::PresentMatch(present)) => Self::Present(*present),
            Some(QueryParameterMatch::StringMatch(raw)) => {
                Self::Value(TextMatcher::plan(raw, errors)?)
            }
        })
    }
}
