//! `ProcessingRequest` written straight from header maps and body bytes to gRPC frames.
//!
//! The order of fields inside a message is free in protobuf. So a message starts with everything
//! small, and the bytes of a body come last: a large body follows its prefix as it is, uncopied.

use attache_filter::{MessageHead, matcher::ForwardedHeaders};
use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

use super::{Modes, Side, exchange::Outbox, mode::BodyMode};

/// Bodies up to this size are copied behind their prefix: one small frame is cheaper than two.
const COPY_BODY: usize = 1024;

const LEN: u8 = 2;
const VARINT: u8 = 0;

const fn tag(field: u8, wire_type: u8) -> u8 {
    (field << 3) | wire_type
}

/// What stands around the payload of a message.
#[derive(Clone, Default)]
pub(super) struct Envelope {
    /// The effective modes, on the first message of a stream only.
    pub(super) protocol_config: Option<(Modes, bool)>,
    /// Answers will be ignored.
    pub(super) observability: bool,
    /// The encoded `Metadata` of `metadata_context`, which Envoy sends with every message, even
    /// when it is empty.
    pub(super) metadata: Bytes,
    /// The encoded entries of `attributes`, each with its tag.
    pub(super) attributes: Bytes,
}

impl Envelope {
    fn len(&self) -> usize {
        let metadata = self.metadata.len();
        let metadata = 1 + encoded_len_varint(metadata as u64) + metadata;
        let config = self.protocol_config().map_or(0, |(_, length)| 2 + length);
        metadata + self.attributes.len() + config + if self.observability { 2 } else { 0 }
    }

    /// `ProtocolConfiguration`: at most three fields of two bytes each.
    fn protocol_config(&self) -> Option<([u8; 6], usize)> {
        let (modes, without_waiting) = self.protocol_config?;
        let mut bytes = [0; 6];
        let mut length = 0;
        let fields = [
            (1, wire_mode(modes.request_body)),
            (2, wire_mode(modes.response_body)),
            (3, u8::from(without_waiting)),
        ];
        for ((field, value), slot) in fields.into_iter().filter(|(_, v)| *v != 0).zip(0..) {
            if let Some([first, second]) = bytes.get_mut(slot * 2..slot * 2 + 2) {
                *first = tag(field, VARINT);
                *second = value;
                length += 2;
            }
        }
        Some((bytes, length))
    }

    fn write(&self, buffer: &mut BytesMut) {
        buffer.put_u8(tag(8, LEN));
        encode_varint(self.metadata.len() as u64, buffer);
        buffer.put_slice(&self.metadata);
        buffer.put_slice(&self.attributes);
        if self.observability {
            buffer.put_slice(&[tag(10, VARINT), 1]);
        }
        if let Some((bytes, length)) = self.protocol_config() {
            buffer.put_u8(tag(11, LEN));
            buffer.put_u8(length as u8);
            buffer.put_slice(bytes.get(..length).unwrap_or_default());
        }
    }
}

fn wire_mode(mode: BodyMode) -> u8 {
    match mode {
        BodyMode::None => 0,
        BodyMode::Streamed => 1,
        BodyMode::Buffered => 2,
        BodyMode::BufferedPartial => 3,
        BodyMode::FullDuplexStreamed => 4,
        BodyMode::Grpc => 5,
    }
}

/// `request_headers` or `response_headers`.
pub(super) fn headers(
    side: Side,
    head: &dyn MessageHead,
    end_of_stream: bool,
    forward: &ForwardedHeaders,
    envelope: &Envelope,
) -> Bytes {
    let field = match side {
        Side::Request => 2,
        Side::Response => 3,
    };
    let map = map_len(head, forward);
    let inner = 1 + encoded_len_varint(map as u64) + map + if end_of_stream { 2 } else { 0 };
    let mut buffer = begin(field, inner, envelope);
    write_map(1, map, head, forward, &mut buffer);
    if end_of_stream {
        buffer.put_slice(&[tag(3, VARINT), 1]);
    }
    buffer.freeze()
}

/// `request_trailers` or `response_trailers`.
pub(super) fn trailers(
    side: Side,
    trailers: &dyn MessageHead,
    forward: &ForwardedHeaders,
    envelope: &Envelope,
) -> Bytes {
    let field = match side {
        Side::Request => 6,
        Side::Response => 7,
    };
    let map = map_len(trailers, forward);
    let inner = 1 + encoded_len_varint(map as u64) + map;
    let mut buffer = begin(field, inner, envelope);
    write_map(1, map, trailers, forward, &mut buffer);
    buffer.freeze()
}

/// `request_body` or `response_body`; `chunks` are the body in order.
pub(super) fn body<'a>(
    side: Side,
    chunks: impl Iterator<Item = &'a Bytes> + Clone,
    end_of_stream: bool,
    envelope: &Envelope,
    outbox: &mut Outbox,
) {
    let field = match side {
        Side::Request => 4,
        Side::Response => 5,
    };
    let length: usize = chunks.clone().map(Bytes::len).sum();
    let eos = if end_of_stream { 2 } else { 0 };
    let content = if length == 0 {
        0
    } else {
        1 + encoded_len_varint(length as u64)
    };
    let inner = eos + content + length;
    let copied = if length <= COPY_BODY { length } else { 0 };
    let mut buffer = begin_with(field, inner, length - copied, envelope);
    if end_of_stream {
        buffer.put_slice(&[tag(2, VARINT), 1]);
    }
    if length > 0 {
        buffer.put_u8(tag(1, LEN));
        encode_varint(length as u64, &mut buffer);
    }
    if copied == length {
        chunks.for_each(|chunk| buffer.put_slice(chunk));
        outbox.push(buffer.freeze());
    } else {
        outbox.push(buffer.freeze());
        chunks.for_each(|chunk| outbox.push(chunk.clone()));
    }
}

/// The gRPC frame header, the envelope, and the start of the payload.
fn begin(field: u8, inner: usize, envelope: &Envelope) -> BytesMut {
    begin_with(field, inner, 0, envelope)
}

/// The same, where `later` bytes of the payload will not be written into this buffer.
fn begin_with(field: u8, inner: usize, later: usize, envelope: &Envelope) -> BytesMut {
    let message = envelope.len() + 1 + encoded_len_varint(inner as u64) + inner;
    let mut buffer = BytesMut::with_capacity(5 + message - later);
    buffer.put_u8(0);
    buffer.put_u32(message as u32);
    envelope.write(&mut buffer);
    buffer.put_u8(tag(field, LEN));
    encode_varint(inner as u64, &mut buffer);
    buffer
}

/// Length of one `HeaderValue` that sets `key` and `raw_value`.
fn entry_len(name: &str, value: &[u8]) -> usize {
    let key = 1 + encoded_len_varint(name.len() as u64) + name.len();
    let value = match value.len() {
        0 => 0,
        length => 1 + encoded_len_varint(length as u64) + length,
    };
    key + value
}

fn map_len(head: &dyn MessageHead, forward: &ForwardedHeaders) -> usize {
    let all = forward.shows_all();
    let mut length = 0;
    head.for_each(&mut |name, value| {
        if all || forward.shows(name) {
            let entry = entry_len(name, value);
            length += 1 + encoded_len_varint(entry as u64) + entry;
        }
    });
    length
}

fn write_map(
    field: u8,
    length: usize,
    head: &dyn MessageHead,
    forward: &ForwardedHeaders,
    buffer: &mut BytesMut,
) {
    let all = forward.shows_all();
    put_length(field, length, buffer);
    head.for_each(&mut |name, value| {
        if !all && !forward.shows(name) {
            return;
        }
        put_length(1, entry_len(name, value), buffer);
        put_length(1, name.len(), buffer);
        buffer.put_slice(name.as_bytes());
        if !value.is_empty() {
            put_length(3, value.len(), buffer);
            buffer.put_slice(value);
        }
    });
}

/// The start of a field of this length.
fn put_length(field: u8, length: usize, buffer: &mut BytesMut) {
    match u8::try_from(length) {
        // As most are: two bytes, not two numbers of unknown length.
        Ok(short @ ..128) => buffer.put_slice(&[tag(field, LEN), short]),
        _ => {
            buffer.put_u8(tag(field, LEN));
            encode_varint(length as u64, buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use attache_proto::ext_proc::{ProcessingRequest, processing_request};
    use prost::Message as _;

    use super::*;

    fn decode(wire: &[u8]) -> ProcessingRequest {
        let (header, message) = wire.split_at(5);
        assert_eq!(header[0], 0);
        assert_eq!(
            u32::from_be_bytes(header[1..].try_into().unwrap()) as usize,
            message.len()
        );
        ProcessingRequest::decode(message).unwrap()
    }

    fn request() -> http::request::Parts {
        let request = http::Request::builder()
            .method("POST")
            .uri("/p?q")
            .header("host", "h")
            .header("x-a", "1")
            .header("x-a", "")
            .header("x-b", http::HeaderValue::from_bytes(&[0xff, 0xfe]).unwrap())
            .body(())
            .unwrap();
        request.into_parts().0
    }

    #[test]
    fn headers_are_raw_values_in_envoys_order() {
        let wire = headers(
            Side::Request,
            &request(),
            true,
            &ForwardedHeaders::default(),
            &Envelope::default(),
        );
        let message = decode(&wire);
        assert!(message.metadata_context.is_some());
        assert!(message.protocol_config.is_none());
        let Some(processing_request::Request::RequestHeaders(headers)) = message.request else {
            panic!("{message:?}");
        };
        assert!(headers.end_of_stream);
        let seen: Vec<_> = headers
            .headers
            .unwrap()
            .headers
            .into_iter()
            .map(|h| {
                assert_eq!(h.value, "");
                (h.key, h.raw_value.to_vec())
            })
            .collect();
        let expected: Vec<(String, Vec<u8>)> = [
            (":authority", &b"h"[..]),
            (":path", b"/p?q"),
            (":method", b"POST"),
            (":scheme", b"http"),
            ("x-a", b"1"),
            ("x-a", b""),
            ("x-b", &[0xff, 0xfe]),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_vec()))
        .collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_first_message_tells_the_body_modes() {
        let modes = Modes {
            request_body: BodyMode::Streamed,
            response_body: BodyMode::Buffered,
            ..Modes::default()
        };
        let envelope = Envelope {
            protocol_config: Some((modes, true)),
            ..Envelope::default()
        };
        let wire = headers(
            Side::Response,
            &http::HeaderMap::new(),
            false,
            &ForwardedHeaders::default(),
            &envelope,
        );
        let config = decode(&wire).protocol_config.unwrap();
        assert_eq!(
            (config.request_body_mode, config.response_body_mode),
            (1, 2)
        );
        assert!(config.send_body_without_waiting_for_header_response);
    }

    #[test]
    fn a_first_message_with_default_modes_still_has_a_protocol_config() {
        let envelope = Envelope {
            protocol_config: Some((Modes::default(), false)),
            ..Envelope::default()
        };
        let map = http::HeaderMap::new();
        let wire = trailers(Side::Request, &map, &ForwardedHeaders::default(), &envelope);
        assert_eq!(decode(&wire).protocol_config, Some(Default::default()));
    }

    proptest::proptest! {
        #[test]
        fn bodies_of_any_size_and_cut_are_read_back(
            sizes in proptest::collection::vec(0usize..3000, 0..4),
            end in proptest::bool::ANY,
        ) {
            let chunks: Vec<Bytes> = sizes.iter().map(|n| Bytes::from(vec![7u8; *n])).collect();
            let mut outbox = Outbox::default();
            body(Side::Response, chunks.iter(), end, &Envelope::default(), &mut outbox);
            let message = decode(&outbox.concat());
            let Some(processing_request::Request::ResponseBody(body)) = message.request else {
                panic!("{message:?}");
            };
            assert_eq!(&body.body[..], &chunks.concat()[..]);
            assert_eq!(body.end_of_stream, end);
        }
    }
}
