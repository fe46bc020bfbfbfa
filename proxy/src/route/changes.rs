//! Changes to the headers of requests and responses (`request_headers_to_add` and its like).

use attache_filter::{
    RequestContext,
    attributes::Facts,
    format::Exchange,
    header_option::{HeaderAddition, HeaderValueOption},
};
use attache_service::config::{Errors, Located};
use http::{HeaderMap, HeaderName, HeaderValue, header, request, response};

/// What a route, with all that it inherits, changes.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// To requests for the upstream, in this order.
    pub request: Vec<HeaderChanges>,
    /// To responses, in this order.
    pub response: Vec<HeaderChanges>,
}

/// Changes that are written in one place. Headers are removed first, then replaced, then added;
/// values are worked out before any is replaced.
#[derive(Debug, Clone, Default)]
pub struct HeaderChanges {
    remove: Vec<HeaderName>,
    add: Vec<HeaderAddition>,
}

impl Changes {
    /// Changes a request.
    pub(crate) fn request(&self, parts: &mut request::Parts, context: &RequestContext) {
        for changes in &self.request {
            for name in &changes.remove {
                parts.headers.remove(name);
            }
            let values = changes.values(&Exchange::from(Facts {
                context,
                request: Some(parts),
                response: None,
            }));
            changes.put(values, &mut parts.headers);
        }
    }

    /// Changes a response to `request`.
    pub(crate) fn response(
        &self,
        parts: &mut response::Parts,
        request: Option<&request::Parts>,
        context: &RequestContext,
    ) {
        for changes in &self.response {
            changes.response(parts, request, context);
        }
    }

    /// Whether a change of responses may look at the request.
    pub(crate) fn remembers_request(&self) -> bool {
        let mut additions = self.response.iter().flat_map(|changes| &changes.add);
        additions.any(|addition| !addition.is_fixed())
    }
}

impl HeaderChanges {
    /// Compiles changes; faults are reported at their place.
    pub(crate) fn plan(
        add: &[HeaderValueOption],
        remove: &[Located<String>],
        errors: &mut Errors,
    ) -> Self {
        let mut planned = Self::default();
        for name in remove {
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(known) if is_protected(&known) => errors.push(name, protected(&known)),
                Ok(known) => planned.remove.push(known),
                Err(_) if name.starts_with(':') => errors.push(name, protected(&name.value)),
                Err(_) => errors.push(name, format!("`{}` is not a header name", name.value)),
            }
        }
        for addition in add {
            let at = &addition.header;
            if at.value.key.starts_with(':') {
                errors.push(at, protected(&at.value.key));
                continue;
            }
            match HeaderAddition::plan(addition, errors) {
                Some(addition) if is_protected(addition.name()) => {
                    errors.push(at, protected(addition.name()));
                }
                Some(addition) => planned.add.push(addition),
                None => {}
            }
        }
        planned.add.sort_by_key(|addition| !addition.overwrites());
        planned
    }

    /// Changes a response to `request`.
    pub(crate) fn response(
        &self,
        parts: &mut response::Parts,
        request: Option<&request::Parts>,
        context: &RequestContext,
    ) {
        for name in &self.remove {
            parts.headers.remove(name);
        }
        let values = self.values(&Exchange::from(Facts {
            context,
            request,
            response: Some(parts),
        }));
        self.put(values, &mut parts.headers);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    fn values(&self, exchange: &Exchange<'_>) -> Vec<Option<HeaderValue>> {
        let additions = self.add.iter();
        additions.map(|addition| addition.value(exchange)).collect()
    }

    fn put(&self, values: Vec<Option<HeaderValue>>, headers: &mut HeaderMap) {
        for (addition, value) in self.add.iter().zip(values) {
            if let Some(value) = value {
                addition.put(headers, value);
            }
        }
    }
}

/// Headers that say where a message goes and where it ends.
fn is_protected(name: &HeaderName) -> bool {
    [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
    ]
    .contains(name)
}

fn protected(name: &(impl std::fmt::Display + ?Sized)) -> String {
    format!("`{name}` is not changed by routes: it says where a message goes or ends")
}
