//! Attributes of the exchange, told with the first message of each direction.

use attache_filter::{
    RequestContext,
    attributes::{Attributes, Facts},
};
use attache_service::config::{Errors, Located};
use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, request};
use prost::encoding::{encode_varint, encoded_len_varint};

use super::{
    Modes, Side,
    config::ProcessingRequestModifier,
    exchange::{Head, Terms},
};

/// The key of `ProcessingRequest.attributes`, whatever the filter's name.
const KEY: &[u8] = b"envoy.filters.http.ext_proc";
/// `ProcessingRequest.attributes`, and the two fields of its entries.
const ATTRIBUTES: u8 = 9 << 3 | 2;
const ENTRY_KEY: u8 = 1 << 3 | 2;
const ENTRY_VALUE: u8 = 2 << 3 | 2;

/// Which attributes the processor is shown with the first message of a direction.
#[derive(Debug, Clone, Default)]
pub struct ShownAttributes {
    /// In the request direction.
    pub request: Attributes,
    /// In the response direction.
    pub response: Attributes,
}

impl ShownAttributes {
    pub(super) fn plan(
        request: &[Located<String>],
        response: &[Located<String>],
        errors: &mut Errors,
    ) -> Self {
        Self {
            request: Attributes::plan(request, errors),
            response: Attributes::plan(response, errors),
        }
    }

    /// Those of a `MappedAttributeBuilder`, which take the place of all others.
    pub(super) fn plan_modifier(raw: &ProcessingRequestModifier, errors: &mut Errors) -> Self {
        let raw = raw.attributes();
        Self {
            request: Attributes::plan_mapped(&raw.mapped_request_attributes, errors),
            response: Attributes::plan_mapped(&raw.mapped_response_attributes, errors),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }

    /// Whether the request head must be remembered after it went on.
    fn need_request_later(&self, modes: Modes) -> bool {
        !modes.request_headers && self.request.reads_request() || self.response.reads_request()
    }
}

/// Remembers what attributes will be read from a request head that goes on now.
pub(super) fn request_goes_on(terms: &Terms, parts: &request::Parts) {
    let extras = &terms.extras;
    let Some(attributes) = &extras.attributes else {
        return;
    };
    if attributes.need_request_later(terms.modes) {
        let (mut copy, ()) = Request::new(()).into_parts();
        copy.method = parts.method.clone();
        copy.uri = parts.uri.clone();
        copy.version = parts.version;
        copy.headers = parts.headers.clone();
        if let Some(scheme) = parts.extensions.get::<attache_filter::head::Scheme>() {
            copy.extensions.insert(*scheme);
        }
        let _ = extras.request.set(Box::new(copy));
    }
}

/// The encoded entries of `ProcessingRequest.attributes` for the first message of a direction,
/// tags included; no bytes when there are none. `head` is the head of that direction while it is
/// held.
pub(super) fn of_first_message(
    terms: &Terms,
    context: &RequestContext,
    side: Side,
    head: Option<&Head>,
) -> Bytes {
    let Some(shown) = &terms.extras.attributes else {
        return Bytes::new();
    };
    let attributes = match side {
        Side::Request => &shown.request,
        Side::Response => &shown.response,
    };
    if attributes.is_empty() {
        return Bytes::new();
    }
    let (request, response) = match head {
        Some(Head::Request(parts)) => (Some(parts), None),
        Some(Head::Response(parts)) => (None, Some(parts)),
        None => (None, None),
    };
    let remembered = terms.extras.request.get().map(|parts| &**parts);
    entry(&attributes.encode(&Facts {
        context,
        request: request.or(remembered),
        response,
    }))
}

/// The one entry of the map.
fn entry(fields: &[u8]) -> Bytes {
    let len = |bytes: usize| 1 + encoded_len_varint(bytes as u64) + bytes;
    let entry = len(KEY.len()) + len(fields.len());
    let mut encoded = BytesMut::with_capacity(len(entry));
    encoded.put_u8(ATTRIBUTES);
    encode_varint(entry as u64, &mut encoded);
    encoded.put_u8(ENTRY_KEY);
    encode_varint(KEY.len() as u64, &mut encoded);
    encoded.put_slice(KEY);
    encoded.put_u8(ENTRY_VALUE);
    encode_varint(fields.len() as u64, &mut encoded);
    encoded.put_slice(fields);
    encoded.freeze()
}
