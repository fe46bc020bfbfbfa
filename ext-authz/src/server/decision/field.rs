//! Headers of decisions: what can be named and what can be said.

use attache_proto::core::{HeaderValue, HeaderValueOption};
use http::{HeaderName, header};

use super::{DecisionError, HeaderLimits};

/// Whether a header takes part in routing; these can be set, but not joined.
pub(super) fn is_routing(name: &str) -> bool {
    matches!(name, ":path" | ":method" | ":authority" | ":scheme")
        || name.eq_ignore_ascii_case("host")
}

/// An ordinary header, which the proxy lets a service change.
pub(super) fn ordinary(name: &str) -> Result<HeaderName, DecisionError> {
    if name.starts_with(':') {
        return Err(DecisionError::Reserved(name.to_owned()));
    }
    let parsed = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| DecisionError::Name(name.to_owned()))?;
    if crate::client::answer::is_framing(&parsed) || parsed == header::HOST {
        return Err(DecisionError::Reserved(name.to_owned()));
    }
    Ok(parsed)
}

/// A name and a value, without a word on how they are to be applied. Envoy reads `value` only.
pub(super) fn option(name: String, value: String) -> Result<HeaderValueOption, DecisionError> {
    if http::HeaderValue::from_bytes(value.as_bytes()).is_err() {
        return Err(DecisionError::Value(name));
    }
    Ok(HeaderValueOption {
        header: Some(HeaderValue {
            key: name,
            value,
            ..HeaderValue::default()
        }),
        ..HeaderValueOption::default()
    })
}

/// Number and size of headers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extent {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

impl Extent {
    pub(super) fn add(&mut self, name: &str, value: &[u8]) {
        self.count += 1;
        self.bytes += name.len() + value.len();
    }

    pub(super) fn of(options: &[HeaderValueOption]) -> Self {
        let mut extent = Self::default();
        for header in options.iter().filter_map(|option| option.header.as_ref()) {
            extent.add(&header.key, header.value.as_bytes());
        }
        extent
    }

    pub(super) fn within(self, limits: HeaderLimits) -> Result<(), DecisionError> {
        if self.count > limits.count {
            return Err(DecisionError::TooMany(self.count, limits.count));
        }
        if self.bytes > limits.bytes {
            return Err(DecisionError::TooLarge(self.bytes, limits.bytes));
        }
        Ok(())
    }
}
