//! Replies, written straight to gRPC frames.
//!
//! The order of fields inside a message is free in protobuf. So a message starts with everything
//! small, and the bytes of a body come last: a large body follows its prefix as it is, uncopied.

use std::collections::BTreeMap;

use attache_proto::ext_proc::{
    ImmediateResponse, ProcessingResponse, StreamedImmediateResponse,
    processing_response::Response, streamed_immediate_response,
};
use attache_service::channel::FRAME_HEADER;
use bytes::{BufMut, Bytes, BytesMut};
use prost::{
    Message as _,
    encoding::{encode_varint, encoded_len_varint},
};
use prost_types::{Any, Struct};

use super::{Direction, Modes};
use crate::server::changes::Changes;

/// Bodies up to this size are copied behind their prefix: one small frame is cheaper than two.
const COPY_BODY: usize = 4096;

const LEN: u8 = 2;
const VARINT: u8 = 0;

const fn tag(field: u8, wire_type: u8) -> u8 {
    (field << 3) | wire_type
}

fn field_len(content: usize) -> usize {
    1 + encoded_len_varint(content as u64) + content
}

fn put_prefix(number: u8, length: usize, buffer: &mut impl BufMut) {
    buffer.put_u8(tag(number, LEN));
    encode_varint(length as u64, buffer);
}

/// What a reply is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Headers,
    Body,
    Trailers,
}

fn number(kind: Kind, direction: Direction) -> u8 {
    let base = match kind {
        Kind::Headers => 1,
        Kind::Body => 3,
        Kind::Trailers => 5,
    };
    match direction {
        Direction::Request => base,
        Direction::Response => base + 1,
    }
}

/// What becomes of a body.
#[derive(Debug, Default)]
pub(super) enum BodyChange {
    #[default]
    Keep,
    Replace(Bytes),
    /// FULL_DUPLEX_STREAMED: the next bytes, and whether they are the last.
    Streamed(Bytes, bool),
}

/// The content of a reply.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) changes: Changes,
    pub(super) body: BodyChange,
    /// CONTINUE_AND_REPLACE.
    pub(super) replace: bool,
    pub(super) clear_route_cache: bool,
}

/// What any reply can have beside its content; rare, so it is kept out of the way.
#[derive(Debug, Default)]
pub(super) struct Extra {
    pub(super) dynamic_metadata: Option<Struct>,
    pub(super) typed_metadata: BTreeMap<String, Any>,
    pub(super) modes: Option<Modes>,
}

impl Extra {
    fn into_message(self) -> ProcessingResponse {
        ProcessingResponse {
            dynamic_metadata: self.dynamic_metadata,
            typed_dynamic_metadata: self.typed_metadata,
            mode_override: self.modes.map(Modes::to_wire),
            ..ProcessingResponse::default()
        }
    }
}

/// A body at the end of a message: what stands before its bytes, and the bytes.
struct Tail {
    /// Content of the `BodyMutation` without the bytes: two prefixes and a flag at most.
    prefix: [u8; 32],
    prefix_len: usize,
    bytes: Bytes,
}

impl Tail {
    fn of(change: BodyChange) -> Option<Self> {
        const END: [u8; 2] = [tag(2, VARINT), 1];
        let mut prefix = [0; 32];
        let mut rest = prefix.as_mut_slice();
        let room = rest.len();
        let bytes = match change {
            BodyChange::Keep => return None,
            // `clear_body`: an empty `body` would say the same, less clearly.
            BodyChange::Replace(bytes) if bytes.is_empty() => {
                rest.put_slice(&[tag(2, VARINT), 1]);
                bytes
            }
            BodyChange::Replace(bytes) => {
                put_prefix(1, bytes.len(), &mut rest);
                bytes
            }
            BodyChange::Streamed(bytes, end_of_stream) => {
                let end = if end_of_stream { &END[..] } else { &[] };
                let content = match bytes.len() {
                    0 => 0,
                    length => field_len(length),
                };
                put_prefix(3, end.len() + content, &mut rest);
                rest.put_slice(end);
                if !bytes.is_empty() {
                    put_prefix(1, bytes.len(), &mut rest);
                }
                bytes
            }
        };
        let prefix_len = room - rest.len();
        Some(Self {
            prefix,
            prefix_len,
            bytes,
        })
    }

    fn prefix(&self) -> &[u8] {
        self.prefix.get(..self.prefix_len).unwrap_or_default()
    }

    fn len(&self) -> usize {
        self.prefix_len + self.bytes.len()
    }
}

/// Writes a reply; gives back the bytes that shall follow uncopied.
pub(super) fn reply(
    kind: Kind,
    direction: Direction,
    content: Content,
    extra: Option<Box<Extra>>,
    buffer: &mut BytesMut,
) -> Option<Bytes> {
    let extra = extra.map(|extra| extra.into_message());
    let extra_len = extra.as_ref().map_or(0, prost::Message::encoded_len);
    let changes = content.changes.encoded_len();
    // Envoy heeds the wish for another route only beside a mutation, be it an empty one.
    let has_changes = changes > 0 || content.clear_route_cache;
    let changes_len = if has_changes { field_len(changes) } else { 0 };
    let tail = match kind {
        Kind::Trailers => None,
        Kind::Headers | Kind::Body => Tail::of(content.body),
    };
    let flags_len = 2 * (usize::from(content.replace) + usize::from(content.clear_route_cache));
    let common = match kind {
        Kind::Trailers => changes_len,
        _ => changes_len + flags_len + tail.as_ref().map_or(0, |tail| field_len(tail.len())),
    };
    let payload = match kind {
        Kind::Trailers => common,
        _ if common == 0 => 0,
        _ => field_len(common),
    };
    let message = extra_len + field_len(payload);
    let copied = tail.as_ref().map_or(0, |tail| tail.bytes.len());
    let copied = if copied <= COPY_BODY { copied } else { 0 };
    let apart = tail.as_ref().map_or(0, |tail| tail.bytes.len()) - copied;

    buffer.reserve(FRAME_HEADER + message - apart);
    buffer.put_u8(0);
    buffer.put_u32(message as u32);
    if let Some(extra) = extra {
        extra.encode_raw(buffer);
    }
    put_prefix(number(kind, direction), payload, buffer);
    if kind == Kind::Trailers {
        if has_changes {
            put_prefix(1, changes, buffer);
            content.changes.encode(buffer);
        }
        return None;
    }
    if common > 0 {
        put_prefix(1, common, buffer);
    }
    if content.replace {
        buffer.put_slice(&[tag(1, VARINT), 1]);
    }
    if has_changes {
        put_prefix(2, changes, buffer);
        content.changes.encode(buffer);
    }
    if content.clear_route_cache {
        buffer.put_slice(&[tag(5, VARINT), 1]);
    }
    let tail = tail?;
    put_prefix(3, tail.len(), buffer);
    buffer.put_slice(tail.prefix());
    if apart > 0 {
        return Some(tail.bytes);
    }
    buffer.put_slice(&tail.bytes);
    None
}

/// Writes a message as it is.
pub(super) fn message(message: &ProcessingResponse, buffer: &mut BytesMut) {
    let length = message.encoded_len();
    buffer.reserve(FRAME_HEADER + length);
    buffer.put_u8(0);
    buffer.put_u32(length as u32);
    message.encode_raw(buffer);
}

/// Writes an immediate response.
pub(super) fn immediate(
    response: ImmediateResponse,
    extra: Option<Box<Extra>>,
    buffer: &mut BytesMut,
) {
    let around = extra.map(|extra| extra.into_message());
    let response = ProcessingResponse {
        response: Some(Response::ImmediateResponse(response)),
        ..around.unwrap_or_default()
    };
    message(&response, buffer);
}

/// Writes a part of a streamed immediate response.
pub(super) fn streamed_immediate(
    part: streamed_immediate_response::Response,
    buffer: &mut BytesMut,
) {
    let response = ProcessingResponse {
        response: Some(Response::StreamedImmediateResponse(
            StreamedImmediateResponse {
                response: Some(part),
            },
        )),
        ..ProcessingResponse::default()
    };
    message(&response, buffer);
}

#[cfg(test)]
mod tests {
    use attache_proto::ext_proc::{body_mutation::Mutation, common_response::ResponseStatus};
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn decoded(
        kind: Kind,
        content: Content,
        extra: Option<Box<Extra>>,
    ) -> (ProcessingResponse, bool) {
        let mut buffer = BytesMut::new();
        let apart = reply(kind, Direction::Response, content, extra, &mut buffer);
        buffer.extend_from_slice(apart.as_deref().unwrap_or_default());
        let frame = buffer.split_off(FRAME_HEADER);
        assert_eq!(buffer[1..], (frame.len() as u32).to_be_bytes());
        (ProcessingResponse::decode(frame).unwrap(), apart.is_some())
    }

    fn changes() -> Changes {
        let mut changes = Changes::default();
        let name = HeaderName::from_static("x-a");
        changes.append(name, HeaderValue::from_static("1"));
        changes
    }

    #[test]
    fn a_reply_that_changes_nothing_is_two_bytes() {
        for kind in [Kind::Headers, Kind::Body, Kind::Trailers] {
            let mut buffer = BytesMut::new();
            let content = Content::default();
            assert!(reply(kind, Direction::Request, content, None, &mut buffer).is_none());
            assert_eq!(buffer.len(), FRAME_HEADER + 2);
        }
    }

    #[test]
    fn every_field_is_where_it_belongs() {
        let content = Content {
            changes: changes(),
            body: BodyChange::Replace("new".into()),
            replace: true,
            clear_route_cache: true,
        };
        let extra = Extra {
            dynamic_metadata: Some(Struct::default()),
            modes: Some(Modes::default()),
            ..Extra::default()
        };
        let (message, _) = decoded(Kind::Headers, content, Some(Box::new(extra)));
        assert!(message.dynamic_metadata.is_some() && message.mode_override.is_some());
        let Some(Response::ResponseHeaders(headers)) = message.response else {
            panic!();
        };
        let common = headers.response.unwrap();
        assert_eq!(common.status(), ResponseStatus::ContinueAndReplace);
        assert!(common.clear_route_cache);
        assert_eq!(common.header_mutation.unwrap().set_headers.len(), 1);
        assert_eq!(
            common.body_mutation.unwrap().mutation,
            Some(Mutation::Body("new".into()))
        );
    }

    #[test]
    fn bodies_are_whole_however_large_and_large_ones_are_not_copied() {
        for (length, apart) in [(0, false), (1, false), (COPY_BODY, false), (100_000, true)] {
            let data = Bytes::from(vec![b'a'; length]);
            for (streamed, end) in [(false, false), (true, false), (true, true)] {
                let body = match streamed {
                    true => BodyChange::Streamed(data.clone(), end),
                    false => BodyChange::Replace(data.clone()),
                };
                let content = Content {
                    changes: changes(),
                    body,
                    ..Content::default()
                };
                let (message, was_apart) = decoded(Kind::Body, content, None);
                assert_eq!(was_apart, apart, "{length}");
                let Some(Response::ResponseBody(body)) = message.response else {
                    panic!();
                };
                let mutation = body.response.unwrap().body_mutation.unwrap().mutation;
                match mutation.unwrap() {
                    Mutation::Body(body) => assert_eq!(body, data),
                    Mutation::ClearBody(clear) => assert!(clear && data.is_empty() && !streamed),
                    Mutation::StreamedResponse(body) => {
                        assert_eq!((body.body, body.end_of_stream), (data.clone(), end));
                    }
                }
            }
        }
    }

    #[test]
    fn trailers_have_changes_only() {
        let content = Content {
            changes: changes(),
            ..Content::default()
        };
        let (message, _) = decoded(Kind::Trailers, content, None);
        let Some(Response::ResponseTrailers(trailers)) = message.response else {
            panic!();
        };
        assert_eq!(trailers.header_mutation.unwrap().set_headers.len(), 1);
    }
}
