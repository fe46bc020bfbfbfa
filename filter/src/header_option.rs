//! Headers that the configuration adds: Envoy's `HeaderValueOption`, as configured and compiled.

use attache_service::{
    config::{Errors, Located},
    config_enum, config_struct,
};
use http::{HeaderMap, HeaderName};

use crate::format::{Exchange, Format};

config_struct! {
    /// Envoy's `config.core.v3.HeaderValueOption`.
    pub struct HeaderValueOption {
        /// Name and value.
        pub header: Located<HeaderValue>,
        /// What to do when the header is there already. Default `APPEND_IF_EXISTS_OR_ADD`.
        pub append_action: Option<Located<HeaderAppendAction>>,
        /// The older form of `append_action` (deprecated in Envoy): true is
        /// `APPEND_IF_EXISTS_OR_ADD`, false `OVERWRITE_IF_EXISTS_OR_ADD`.
        pub append: Option<bool>,
        /// Add the header even with an empty value. Default false.
        pub keep_empty_value: Option<bool>,
    }
}

config_struct! {
    /// Envoy's `config.core.v3.HeaderValue`.
    pub struct HeaderValue {
        /// Name.
        pub key: String,
        /// Value; may be empty. May contain the formatters of [`crate::format`].
        pub value: Option<String>,
    }
    elsewhere {
        "raw_value" => "write the value as text in `value`",
    }
}

config_enum! {
    /// Envoy's `HeaderValueOption.HeaderAppendAction`.
    #[derive(Default)]
    pub enum HeaderAppendAction {
        /// Add another one.
        #[default]
        AppendIfExistsOrAdd = "APPEND_IF_EXISTS_OR_ADD",
        /// Add it when there is none.
        AddIfAbsent = "ADD_IF_ABSENT",
        /// Replace what is there, or add it.
        OverwriteIfExistsOrAdd = "OVERWRITE_IF_EXISTS_OR_ADD",
        /// Replace what is there; do nothing when there is none.
        OverwriteIfExists = "OVERWRITE_IF_EXISTS",
    }
}

/// A compiled [`HeaderValueOption`].
#[derive(Debug, Clone)]
pub struct HeaderAddition {
    name: HeaderName,
    value: Value,
    keep_empty: bool,
    action: HeaderAppendAction,
}

#[derive(Debug, Clone)]
enum Value {
    Fixed(http::HeaderValue),
    Format(Format),
}

impl HeaderAddition {
    /// Compiles an option; faults are reported at their place.
    pub fn plan(raw: &HeaderValueOption, errors: &mut Errors) -> Option<Self> {
        let at = &raw.header;
        let text = raw.header.value.value.as_deref().unwrap_or_default();
        let Ok(name) = HeaderName::from_bytes(raw.header.value.key.as_bytes()) else {
            errors.push(at, format!("`{}` is not a valid header name", at.value.key));
            return None;
        };
        let value = match Format::parse(text) {
            Ok(format) => match format.fixed().map(http::HeaderValue::from_str) {
                Some(Ok(value)) => Value::Fixed(value),
                Some(Err(_)) => {
                    errors.push(at, format!("the value of `{name}` is not valid"));
                    return None;
                }
                None => Value::Format(format),
            },
            Err(fault) => {
                errors.push(at, format!("the value of `{name}`: {fault}"));
                return None;
            }
        };
        let action = match (&raw.append_action, raw.append) {
            (Some(action), Some(_)) => {
                errors.push(
                    action,
                    "write one of `append` and `append_action`, not both",
                );
                return None;
            }
            (Some(action), None) => action.value,
            (None, Some(false)) => HeaderAppendAction::OverwriteIfExistsOrAdd,
            (None, _) => HeaderAppendAction::default(),
        };
        Some(Self {
            name,
            value,
            keep_empty: raw.keep_empty_value == Some(true),
            action,
        })
    }

    /// The name of the header.
    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    /// Whether it may take the place of what is there.
    pub fn overwrites(&self) -> bool {
        matches!(
            self.action,
            HeaderAppendAction::OverwriteIfExistsOrAdd | HeaderAppendAction::OverwriteIfExists
        )
    }

    /// Whether the value is the same for all requests.
    pub fn is_fixed(&self) -> bool {
        matches!(self.value, Value::Fixed(_))
    }

    /// The value, filled in from `exchange`; `None` where nothing is to be added. One that no
    /// header can carry is left out.
    pub fn value(&self, exchange: &Exchange<'_>) -> Option<http::HeaderValue> {
        let value = match &self.value {
            Value::Fixed(value) => value.clone(),
            Value::Format(format) => http::HeaderValue::try_from(format.value(exchange)).ok()?,
        };
        (self.keep_empty || !value.is_empty()).then_some(value)
    }

    /// Adds the header with this value.
    pub fn put(&self, headers: &mut HeaderMap, value: http::HeaderValue) {
        let present = headers.contains_key(&self.name);
        match self.action {
            HeaderAppendAction::AppendIfExistsOrAdd => {
                headers.append(&self.name, value);
            }
            HeaderAppendAction::AddIfAbsent if !present => {
                headers.insert(&self.name, value);
            }
            HeaderAppendAction::OverwriteIfExistsOrAdd => {
                headers.insert(&self.name, value);
            }
            HeaderAppendAction::OverwriteIfExists if present => {
                headers.insert(&self.name, value);
            }
            HeaderAppendAction::AddIfAbsent | HeaderAppendAction::OverwriteIfExists => {}
        }
    }

    /// Adds the header, filled in from `exchange`.
    pub fn apply(&self, headers: &mut HeaderMap, exchange: &Exchange<'_>) {
        if let Some(value) = self.value(exchange) {
            self.put(headers, value);
        }
    }
}
