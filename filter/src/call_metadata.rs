//! Metadata of calls to a policy service (`initial_metadata`), with values of the request in it.
//!
//! A value may contain the formatters of [`crate::format`], but for those of responses. What the
//! request does not have is empty, and an entry whose whole value is empty is left out, as with
//! Envoy.

use http::{HeaderMap, HeaderName, HeaderValue, request};

use attache_service::config::{Errors, Located};

use crate::{RequestContext, attributes::Facts, format::Format, grpc_service::MetadataEntry};

/// Metadata for each call.
#[derive(Debug, Clone, Default)]
pub struct CallMetadata {
    /// Entries that are the same for all calls.
    pub fixed: HeaderMap,
    formatted: Vec<(HeaderName, Format)>,
}

impl CallMetadata {
    /// Checks names, values and formatters; faults are reported at their place.
    pub fn plan(entries: &[Located<MetadataEntry>], errors: &mut Errors) -> Self {
        let mut planned = Self::default();
        for entry in entries {
            let key = &entry.value.key;
            let Ok(name) = HeaderName::from_bytes(key.as_bytes()) else {
                errors.push(entry, format!("`{key}` is not a valid metadata name"));
                continue;
            };
            let text = entry.value.value.as_deref().unwrap_or_default();
            if HeaderValue::from_str(text).is_err() {
                errors.push(entry, format!("the value of `{key}` is not valid"));
                continue;
            }
            let fault = match Format::parse(text) {
                Ok(format) if format.reads_response() => {
                    "there is no response yet when the call is made".to_owned()
                }
                Ok(format) => {
                    match format.fixed().map(HeaderValue::from_str) {
                        Some(Ok(value)) if value.is_empty() => {}
                        Some(Ok(value)) => {
                            planned.fixed.append(name, value);
                        }
                        Some(Err(_)) | None => planned.formatted.push((name, format)),
                    }
                    continue;
                }
                Err(fault) => fault,
            };
            errors.push(entry, format!("the value of `{key}`: {fault}"));
        }
        planned
    }

    /// The metadata of a call for this request.
    pub fn of(&self, request: &request::Parts, context: &RequestContext) -> HeaderMap {
        let mut metadata = self.fixed.clone();
        for (name, format) in &self.formatted {
            let value = value(format, request, context);
            if !value.is_empty() {
                metadata.append(name, value);
            }
        }
        metadata
    }

    /// The same for a route's entries, which take the place of the others of their names.
    pub fn override_in(
        &self,
        metadata: &mut HeaderMap,
        request: &request::Parts,
        context: &RequestContext,
    ) {
        if self.is_empty() {
            return;
        }
        let ours = self.of(request, context);
        for name in ours.keys() {
            metadata.remove(name);
        }
        for (name, value) in &ours {
            metadata.append(name, value.clone());
        }
    }

    /// These entries, and those of `less_specific` that have other names.
    #[must_use]
    pub fn over(&self, less_specific: &Self) -> Self {
        let ours = |name: &HeaderName| {
            self.fixed.contains_key(name) || self.formatted.iter().any(|(own, _)| own == name)
        };
        let mut merged = self.clone();
        for (name, value) in less_specific.fixed.iter().filter(|(name, _)| !ours(name)) {
            merged.fixed.append(name, value.clone());
        }
        let others = less_specific.formatted.iter();
        merged
            .formatted
            .extend(others.filter(|(name, _)| !ours(name)).cloned());
        merged
    }

    /// Whether no entry has values of the request in it.
    pub fn is_fixed(&self) -> bool {
        self.formatted.is_empty()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.fixed.is_empty() && self.formatted.is_empty()
    }
}

fn value(format: &Format, request: &request::Parts, context: &RequestContext) -> HeaderValue {
    let facts = Facts {
        context,
        request: Some(request),
        response: None,
    };
    // What is in a header or address fits a header; a path may not.
    HeaderValue::from_bytes(&format.value(&facts.into()))
        .unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{Request, Version};

    use super::*;
    use crate::ConnectionInfo;

    fn plan(value: &str) -> Result<CallMetadata, String> {
        let entry = MetadataEntry {
            key: "x".to_owned(),
            value: Some(value.to_owned()),
        };
        let mut errors = Errors::new();
        let planned = CallMetadata::plan(&[Located::nowhere(entry)], &mut errors);
        errors
            .into_result(Some(planned))
            .map_err(|errors| errors.to_string())
    }

    fn value(format: &str) -> String {
        let request = Request::get("/path")
            .header("x-a", "abc")
            .header("host", "h");
        let (request, ()) = request.body(()).unwrap().into_parts();
        let connection = ConnectionInfo {
            peer: Some("10.0.0.1:4000".parse().unwrap()),
            ..ConnectionInfo::default()
        };
        let context = RequestContext::new(Arc::new(connection), Version::HTTP_11);
        let metadata = plan(format).unwrap().of(&request, &context);
        let value = metadata.get("x");
        value.map_or_else(|| "-".to_owned(), |v| v.to_str().unwrap().to_owned())
    }

    #[test]
    fn values_of_the_request_are_filled_in() {
        for (format, expected) in [
            ("plain", "plain"),
            ("", "-"),
            ("<%REQ(x-none)%>", "<>"),
            ("100%%", "100%"),
            ("%REQ(x-a)%", "abc"),
            ("<%REQ(X-A)%>", "<abc>"),
            ("%REQ(x-none?x-a)%", "abc"),
            ("%REQ(x-a?x-none)%", "abc"),
            ("%REQ(x-a):2%", "ab"),
            ("%REQ(x-none)%", "-"),
            ("%REQ(:path)%", "/path"),
            ("%REQ(:authority)%", "h"),
            ("%PROTOCOL%", "HTTP/1.1"),
            ("%DOWNSTREAM_REMOTE_ADDRESS%", "10.0.0.1:4000"),
            ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.1"),
        ] {
            assert_eq!(value(format), expected, "{format}");
        }
    }

    #[test]
    fn other_formatters_are_refused() {
        for (format, reason) in [
            ("%RESP(x)%", "there is no response yet"),
            ("%START_TIME%", "is not known here"),
            ("%REQ(x-a%", "is not known here"),
            ("%REQ(x-a):z%", "is not known here"),
            ("%REQ(x a)%", "not the name of a header"),
            ("50%", "without its second"),
        ] {
            let error = plan(format).unwrap_err();
            assert!(error.contains(reason), "{format}: {error}");
        }
    }

    #[test]
    fn only_what_changes_is_made_for_each_call() {
        assert!(plan("100%%").unwrap().formatted.is_empty());
        assert!(plan("%PROTOCOL%").unwrap().fixed.is_empty());
    }
}
