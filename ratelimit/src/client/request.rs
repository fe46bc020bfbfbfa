//! The call's message, encoded straight into one buffer, with gRPC's framing before it.

use attache_service::channel::{FRAME_HEADER, frame_in_place};
use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::{action::Entry, policy::Terms};

/// How many hits a descriptor is, where its policy says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hits {
    /// How many.
    pub number: u64,
    /// They are given back.
    pub negative: bool,
}

/// The limit that a descriptor brings along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// How many.
    pub requests_per_unit: u32,
    /// Per which time: a number of Envoy's `type.v3.RateLimitUnit`.
    pub unit: i32,
}

/// An encoded `RateLimitRequest` in the making.
#[derive(Debug)]
pub struct RequestEncoder {
    buffer: Vec<u8>,
    descriptors: usize,
}

impl RequestEncoder {
    /// A request for `domain`, without descriptors.
    pub fn new(domain: &str) -> Self {
        let mut buffer = Vec::with_capacity(FRAME_HEADER + domain.len() + 128);
        buffer.resize(FRAME_HEADER, 0);
        put_text(1, domain, &mut buffer);
        Self {
            buffer,
            descriptors: 0,
        }
    }

    /// Adds a descriptor. One without entries is sent too, as Envoy does.
    pub fn descriptor(&mut self, entries: &[Entry<'_>], terms: Terms) {
        self.descriptors += 1;
        let Terms { hits, limit } = terms;
        let hits_length = hits.map_or(0, |hits| hits.message_length());
        let length = entries
            .iter()
            .map(|entry| field_length(1, entry.length()))
            .sum::<usize>()
            + limit.map_or(0, |limit| field_length(2, limit.message_length()))
            + hits.map_or(0, |hits| {
                field_length(3, hits_length) + if hits.negative { 2 } else { 0 }
            });
        let buffer = &mut self.buffer;
        put_head(2, length, buffer);
        for entry in entries {
            put_head(1, entry.length(), buffer);
            put_text(1, entry.key, buffer);
            put_text(2, &entry.value, buffer);
        }
        if let Some(limit) = limit {
            put_head(2, limit.message_length(), buffer);
            put_number(1, limit.requests_per_unit.into(), buffer);
            put_number(2, limit.unit_number(), buffer);
        }
        if let Some(hits) = hits {
            // google.protobuf.UInt64Value
            put_head(3, hits_length, buffer);
            put_number(1, hits.number, buffer);
            put_number(4, hits.negative.into(), buffer);
        }
    }

    /// How many descriptors there are.
    pub fn len(&self) -> usize {
        self.descriptors
    }

    /// Whether there is nothing to ask.
    pub fn is_empty(&self) -> bool {
        self.descriptors == 0
    }

    /// The message, framed.
    pub fn finish(self) -> Bytes {
        frame_in_place(self.buffer, 0)
    }
}

impl Hits {
    fn message_length(self) -> usize {
        number_length(self.number)
    }
}

impl Limit {
    /// As the wire has enums: like a number of 64 bits.
    fn unit_number(self) -> u64 {
        i64::from(self.unit).cast_unsigned()
    }

    fn message_length(self) -> usize {
        number_length(self.requests_per_unit.into()) + number_length(self.unit_number())
    }
}

/// Length of a number in a field below 16; the default is left out.
fn number_length(number: u64) -> usize {
    match number {
        0 => 0,
        number => 1 + encoded_len_varint(number),
    }
}

fn put_number(tag: u32, number: u64, buffer: &mut Vec<u8>) {
    if number != 0 {
        encode_key(tag, WireType::Varint, buffer);
        encode_varint(number, buffer);
    }
}

impl Entry<'_> {
    fn length(&self) -> usize {
        text_length(1, self.key) + text_length(2, &self.value)
    }
}

/// Length of a field that is delimited by its length.
fn field_length(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

fn text_length(tag: u32, text: &str) -> usize {
    if text.is_empty() {
        0
    } else {
        field_length(tag, text.len())
    }
}

fn put_head(tag: u32, length: usize, buffer: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(length as u64, buffer);
}

fn put_text(tag: u32, text: &str, buffer: &mut Vec<u8>) {
    if !text.is_empty() {
        put_head(tag, text.len(), buffer);
        buffer.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use attache_proto::{
        common_ratelimit::{RateLimitDescriptor, rate_limit_descriptor as proto},
        ratelimit::RateLimitRequest,
    };
    use attache_service::channel::encode_message;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    proptest! {
        #[test]
        fn prost_reads_what_was_written(
            domain in ".{0,20}",
            descriptors in prop::collection::vec(
                (
                    prop::collection::vec((".{0,12}", ".{0,200}"), 0..4),
                    prop::option::of((prop_oneof![Just(0), any::<u64>()], any::<bool>())),
                    prop::option::of((any::<u32>(), prop_oneof![0..7i32, any::<i32>()])),
                ),
                0..4,
            ),
        ) {
            let mut encoder = RequestEncoder::new(&domain);
            for (entries, hits, limit) in &descriptors {
                let entries: Vec<_> = entries
                    .iter()
                    .map(|(key, value)| Entry { key, value: value.as_str().into() })
                    .collect();
                let hits = hits.map(|(number, negative)| Hits { number, negative });
                let limit = limit.map(|(requests_per_unit, unit)| Limit { requests_per_unit, unit });
                encoder.descriptor(&entries, Terms { hits, limit });
            }
            prop_assert_eq!(encoder.len(), descriptors.len());
            let expected = RateLimitRequest {
                domain,
                descriptors: descriptors
                    .into_iter()
                    .map(|(entries, hits, limit)| RateLimitDescriptor {
                        entries: entries
                            .into_iter()
                            .map(|(key, value)| proto::Entry { key, value })
                            .collect(),
                        limit: limit.map(|(requests_per_unit, unit)| proto::RateLimitOverride {
                            requests_per_unit,
                            unit,
                            ..proto::RateLimitOverride::default()
                        }),
                        hits_addend: hits.map(|(number, _)| number),
                        is_negative_hits: hits.is_some_and(|(_, negative)| negative),
                    })
                    .collect(),
                hits_addend: 0,
            };
            let bytes = encoder.finish();
            let message = bytes.slice(FRAME_HEADER..);
            prop_assert_eq!(RateLimitRequest::decode(message).unwrap(), expected.clone());
            prop_assert_eq!(bytes, encode_message(&expected));
        }
    }
}
