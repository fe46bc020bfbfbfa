//! `AttributeContext.HttpRequest`: the request's head and body.

use attache_filter::{MessageHead, RequestContext, head, matcher::ForwardedHeaders};
use http::{Version, request};
use prost::encoding::{WireType, encode_key, encode_varint};

use super::{
    CheckBody, Content,
    wire::{bytes, decimal, field_len, map_entry, message, text},
};
use crate::client::shown;

pub(super) fn http_request(
    out: &mut Vec<u8>,
    parts: &request::Parts,
    context: &RequestContext,
    body: Option<CheckBody<'_>>,
    content: Content<'_>,
    show: &ForwardedHeaders,
) {
    let mut id = [0; 20];
    text(out, 1, decimal(context.id, &mut id));
    text(out, 2, parts.method.as_str().as_bytes());
    let partial = body.map(|body| if body.partial { "true" } else { "false" });
    if content.raw_headers {
        header_map(out, parts, partial, show);
    } else {
        headers(out, parts, context.protocol, partial, show);
    }
    if let Some(path) = parts.pseudo(":path") {
        text(out, 4, path.as_bytes());
    }
    if let Some(host) = head::authority(parts) {
        text(out, 5, host.as_bytes());
    }
    if let Some(scheme) = parts.pseudo(":scheme") {
        text(out, 6, scheme.as_bytes());
    }
    let protocol = match context.protocol {
        Version::HTTP_09 | Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    };
    text(out, 10, protocol.as_bytes());
    if let Some(body) = body {
        encode_key(9, WireType::Varint, out);
        encode_varint(body.received as u64, out);
        if content.raw_body {
            bytes(out, 12, body.data);
        } else {
            text(out, 11, body.data);
        }
    }
}

/// `HttpRequest.headers`: one entry a name, repeated headers joined.
fn headers(
    out: &mut Vec<u8>,
    parts: &request::Parts,
    protocol: Version,
    partial: Option<&str>,
    show: &ForwardedHeaders,
) {
    shown::joined(parts, protocol, partial, show, &mut |name, value| {
        map_entry(out, 3, name, value);
    });
}

/// `HttpRequest.header_map`: every line as it is, values in `raw_value`.
fn header_map(
    out: &mut Vec<u8>,
    parts: &request::Parts,
    partial: Option<&str>,
    show: &ForwardedHeaders,
) {
    message(out, 13, |out| {
        shown::lines(parts, partial, show, &mut |name, value| {
            let len = field_len(name.len())
                + if value.is_empty() {
                    0
                } else {
                    field_len(value.len())
                };
            encode_key(1, WireType::LengthDelimited, out);
            encode_varint(len as u64, out);
            bytes(out, 1, name.as_bytes());
            bytes(out, 3, value);
        });
    });
}
