//! Metadata of calls to a policy service (`initial_metadata`), with values of the request in it.
//!
//! A value may contain Envoy's access log formatters. What the request does not have is empty,
//! and an entry whose whole value is empty is left out, as with Envoy; `%%` is a percent sign.
//!
//! | formatter | value |
//! |---|---|
//! | `%REQ(X?Y):Z%` | header `X`, else `Y`; at most `Z` bytes |
//! | `%PROTOCOL%` | `HTTP/1.1`, `HTTP/2`, ... |
//! | `%DOWNSTREAM_REMOTE_ADDRESS%` | the client's address and port |
//! | `%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%` | the client's address |

use http::{HeaderMap, HeaderName, HeaderValue, request};

use attache_service::config::{Errors, Located};

use crate::{
    MessageHead, RequestContext,
    attributes::{Facts, protocol},
    grpc_service::MetadataEntry,
};

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
            match Format::parse(text).map(Format::into_fixed) {
                Ok(Ok(value)) if value.is_empty() => {}
                Ok(Ok(value)) => {
                    planned.fixed.append(name, value);
                }
                Ok(Err(format)) => planned.formatted.push((name, format)),
                Err(fault) => errors.push(entry, format!("the value of `{key}`: {fault}")),
            }
        }
        planned
    }

    /// The metadata of a call for this request.
    pub fn of(&self, request: &request::Parts, context: &RequestContext) -> HeaderMap {
        let mut metadata = self.fixed.clone();
        for (name, format) in &self.formatted {
            let value = format.value(request, context);
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

/// A text with values of the request in it.
#[derive(Debug, Clone)]
struct Format(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Header {
        name: String,
        instead: Option<String>,
        max: Option<usize>,
    },
    Protocol,
    Client {
        port: bool,
    },
}

impl Format {
    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            let Some((command, after)) = after.split_once('%') else {
                return Err("a `%` without its second; a percent sign is `%%`".to_owned());
            };
            if command.is_empty() {
                literal.push('%');
            } else {
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal)));
                }
                parts.push(Part::parse(command)?);
            }
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self(parts))
    }

    /// The value, if it is the same for all requests.
    fn into_fixed(self) -> Result<HeaderValue, Self> {
        let value = match self.0.as_slice() {
            [] => Some(HeaderValue::from_static("")),
            [Part::Text(text)] => HeaderValue::from_str(text).ok(),
            _ => None,
        };
        value.ok_or(self)
    }

    fn value(&self, request: &request::Parts, context: &RequestContext) -> HeaderValue {
        let mut value = Vec::new();
        for part in &self.0 {
            part.write(request, context, &mut value);
        }
        // What is in a header or address fits a header; a path may not.
        HeaderValue::from_bytes(&value).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

impl Part {
    fn parse(command: &str) -> Result<Self, String> {
        match command {
            "PROTOCOL" => return Ok(Self::Protocol),
            "DOWNSTREAM_REMOTE_ADDRESS" => return Ok(Self::Client { port: true }),
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => return Ok(Self::Client { port: false }),
            _ => {}
        }
        let unknown = || {
            format!(
                "`%{command}%` is not known here; there are `%REQ(name)%`, `%PROTOCOL%` and \
                 `%DOWNSTREAM_REMOTE_ADDRESS%`, with `_WITHOUT_PORT` too"
            )
        };
        let header = command.strip_prefix("REQ(").ok_or_else(unknown)?;
        let (names, max) = header.split_once(')').ok_or_else(unknown)?;
        let max = match max.strip_prefix(':') {
            Some(max) => Some(max.parse().map_err(|_| unknown())?),
            None if max.is_empty() => None,
            None => return Err(unknown()),
        };
        let names = names.to_ascii_lowercase();
        let (name, instead) = match names.split_once('?') {
            Some((name, instead)) => (name, Some(instead)),
            None => (names.as_str(), None),
        };
        let valid = |name: &str| {
            HeaderName::from_bytes(name.strip_prefix(':').unwrap_or(name).as_bytes()).is_ok()
        };
        if !valid(name) || !instead.is_none_or(valid) {
            return Err(format!("`{names}` is not the name of a header"));
        }
        Ok(Self::Header {
            name: name.to_owned(),
            instead: instead.map(str::to_owned),
            max,
        })
    }

    fn write(&self, request: &request::Parts, context: &RequestContext, to: &mut Vec<u8>) {
        match self {
            Self::Text(text) => to.extend_from_slice(text.as_bytes()),
            Self::Protocol => to.extend_from_slice(protocol(context.protocol).as_bytes()),
            Self::Client { port } => {
                let facts = Facts {
                    context,
                    request: None,
                    response: None,
                };
                if let Some(client) = facts.source() {
                    let text = match port {
                        true => client.to_string(),
                        false => client.ip().to_string(),
                    };
                    to.extend_from_slice(text.as_bytes());
                }
            }
            Self::Header { name, instead, max } => {
                let start = to.len();
                let found = write_header(request, name, to);
                if let Some(instead) = instead.as_deref().filter(|_| !found) {
                    write_header(request, instead, to);
                }
                if let Some(max) = max {
                    to.truncate(start.saturating_add(*max));
                }
            }
        }
    }
}

/// Writes the first value of a header, or a pseudo-header. False when there is none.
fn write_header(request: &request::Parts, name: &str, to: &mut Vec<u8>) -> bool {
    if name.starts_with(':') || name == "host" {
        let value = request.pseudo(name);
        to.extend_from_slice(value.as_deref().unwrap_or_default().as_bytes());
        value.is_some()
    } else {
        let value = request.headers.get(name);
        to.extend_from_slice(value.map_or(b"", HeaderValue::as_bytes));
        value.is_some()
    }
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
            ("%RESP(x)%", "is not known here"),
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
