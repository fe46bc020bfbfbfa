//! The `CheckRequest`, written straight from the request head into one buffer.
//!
//! A check costs one allocation: nothing is collected into a message first. The three outer
//! messages are long, so their lengths are only known at the end; room for them is kept in front
//! of the buffer instead of moving the content. Protobuf leaves the order of fields free.

mod http_request;
mod metadata;
pub(crate) mod peer;
#[cfg(test)]
mod tests;
pub(super) mod wire;

use std::time::{SystemTime, UNIX_EPOCH};

use attache_filter::{RequestContext, matcher::ForwardedHeaders};
use attache_service::channel::{FRAME_HEADER, frame_in_place};
use bytes::Bytes;
use http::request;
use prost::encoding::{WireType, encode_key, encode_varint};

pub use self::metadata::Namespaces;
use self::{
    http_request::http_request,
    wire::{field_len, map_entry, message, text},
};

/// What of a filter's settings decides the content of a check.
#[derive(Debug, Clone, Copy, Default)]
pub struct Content<'a> {
    /// `encode_raw_headers`: `header_map` with order, duplicates and bytes kept, not `headers`.
    pub raw_headers: bool,
    /// `include_peer_certificate`.
    pub peer_certificate: bool,
    /// `include_tls_session`.
    pub tls_session: bool,
    /// `pack_as_bytes`: the body as `raw_body`, not `body`.
    pub raw_body: bool,
    /// Encoded `context_extensions` entries; see [`context_extensions`].
    pub extensions: &'a [u8],
    /// Encoded labels of our side (`bootstrap_metadata_labels_key`).
    pub labels: &'a [u8],
    /// The metadata to show.
    pub namespaces: Namespaces<'a>,
}

/// The request body as far as it goes to the auth service.
#[derive(Debug, Clone, Copy)]
pub struct CheckBody<'a> {
    /// The bytes; not empty.
    pub data: &'a [u8],
    /// Whether there is more of it.
    pub partial: bool,
    /// How much of the body has arrived; not less than what is shown.
    pub received: usize,
}

/// Room for three tags and three lengths of at most five bytes.
const PREFIX: usize = 18;
/// The same with gRPC's framing.
const GAP: usize = FRAME_HEADER + PREFIX;

/// Encodes the check of one request, framed.
pub fn check_request(
    parts: &request::Parts,
    context: &RequestContext,
    body: Option<CheckBody<'_>>,
    content: Content<'_>,
    show: &ForwardedHeaders,
) -> Bytes {
    let body_len = body.map_or(0, |body| body.data.len());
    let mut out = Vec::with_capacity(1024 + 48 * parts.headers.len() + body_len);
    out.resize(GAP, 0);

    http_request(&mut out, parts, context, body, content, show);
    let http_len = out.len() - GAP;

    let before_time = out.len();
    timestamp(&mut out, 1, context.start_time());
    let request_len = field_len(http_len) + out.len() - before_time;

    let before_rest = out.len();
    let connection = &*context.connection;
    peer::source(
        &mut out,
        connection,
        &parts.headers,
        content.peer_certificate,
    );
    peer::destination(&mut out, connection, content.labels);
    out.extend_from_slice(content.extensions);
    metadata::dynamic(&mut out, context, content.namespaces);
    if let (true, Some(tls)) = (content.tls_session, &connection.tls) {
        message(&mut out, 12, |out| {
            text(out, 1, tls.sni.as_deref().unwrap_or_default().as_bytes());
        });
    }
    metadata::of_route(&mut out, context, content.namespaces);
    let attributes_len = field_len(request_len) + out.len() - before_rest;

    let mut prefix = Vec::with_capacity(PREFIX);
    for (tag, len) in [(1, attributes_len), (4, request_len), (2, http_len)] {
        encode_key(tag, WireType::LengthDelimited, &mut prefix);
        encode_varint(len as u64, &mut prefix);
    }
    let start = GAP.saturating_sub(prefix.len());
    if let Some(gap) = out.get_mut(start..GAP) {
        gap.copy_from_slice(&prefix);
    }
    frame_in_place(out, start.saturating_sub(FRAME_HEADER))
}

/// `AttributeContext.context_extensions`, encoded once when the route is planned.
pub fn context_extensions<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in entries {
        map_entry(&mut out, 10, key, value.as_bytes());
    }
    out
}

fn timestamp(out: &mut Vec<u8>, tag: u32, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    message(out, tag, |out| {
        encode_key(1, WireType::Varint, out);
        encode_varint(since.as_secs(), out);
        encode_key(2, WireType::Varint, out);
        encode_varint(u64::from(since.subsec_nanos()), out);
    });
}
