//! What a proxy sends, read without copying.
//!
//! Header maps stay encoded until somebody looks at them: many processors look at none.

use attache_proto::{core, ext_proc::ProtocolConfiguration};
use bytes::Bytes;
use prost::{Message as _, encoding::decode_varint};
use prost_types::Struct;

use super::Direction;

/// A message that is no protobuf of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the proxy sent a message that cannot be read")]
pub(in crate::server) struct Malformed;

/// The value of a field; groups and fixed numbers are skipped.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

/// Walks over the fields of an encoded message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return Err(Malformed),
        };
        Ok(Some((key >> 3, value)))
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        decode_varint(&mut self.0).map_err(|_| Malformed)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
}

/// One message of the proxy.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    pub(super) payload: Option<(Direction, Payload)>,
    pub(super) metadata: Option<core::Metadata>,
    pub(super) attributes: Vec<Struct>,
    pub(super) observed: bool,
    pub(super) protocol_config: Option<ProtocolConfiguration>,
}

/// The part of the exchange that a message shows.
#[derive(Debug)]
pub(super) enum Payload {
    Headers(Fieldset, bool),
    Body(Bytes, bool),
    Trailers(Fieldset),
}

impl Incoming {
    pub(super) fn decode(message: &Bytes) -> Result<Self, Malformed> {
        let mut incoming = Self::default();
        let mut fields = Fields(message);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (2..=7, Value::Bytes(payload)) => {
                    let direction = if number % 2 == 0 {
                        Direction::Request
                    } else {
                        Direction::Response
                    };
                    let payload = match number {
                        2 | 3 => headers(message, payload)?,
                        4 | 5 => body(message, payload)?,
                        _ => trailers(message, payload)?,
                    };
                    incoming.payload = Some((direction, payload));
                }
                (8, Value::Bytes(metadata)) if !metadata.is_empty() => {
                    let metadata = core::Metadata::decode(metadata).map_err(|_| Malformed)?;
                    incoming.metadata = Some(metadata);
                }
                (9, Value::Bytes(entry)) => incoming.attributes.extend(map_value(entry)?),
                (10, Value::Number(observed)) => incoming.observed = observed != 0,
                (11, Value::Bytes(config)) => {
                    let config = ProtocolConfiguration::decode(config).map_err(|_| Malformed)?;
                    incoming.protocol_config = Some(config);
                }
                // Newer fields mean nothing to us, as protobuf wants it.
                _ => {}
            }
        }
        Ok(incoming)
    }
}

/// The value of an entry of `map<string, Struct>`.
fn map_value(entry: &[u8]) -> Result<Option<Struct>, Malformed> {
    let mut fields = Fields(entry);
    let mut value = None;
    while let Some(field) = fields.next()? {
        if let (2, Value::Bytes(bytes)) = field {
            value = Some(Struct::decode(bytes).map_err(|_| Malformed)?);
        }
    }
    Ok(value)
}

fn headers(message: &Bytes, payload: &[u8]) -> Result<Payload, Malformed> {
    let (mut headers, mut end_of_stream) = (Fieldset::default(), false);
    let mut fields = Fields(payload);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(map)) => headers = Fieldset::decode(message.slice_ref(map))?,
            (3, Value::Number(flag)) => end_of_stream = flag != 0,
            _ => {}
        }
    }
    Ok(Payload::Headers(headers, end_of_stream))
}

fn body(message: &Bytes, payload: &[u8]) -> Result<Payload, Malformed> {
    let (mut body, mut end_of_stream) = (Bytes::new(), false);
    let mut fields = Fields(payload);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(bytes)) if !bytes.is_empty() => body = message.slice_ref(bytes),
            (2, Value::Number(flag)) => end_of_stream = flag != 0,
            _ => {}
        }
    }
    Ok(Payload::Body(body, end_of_stream))
}

fn trailers(message: &Bytes, payload: &[u8]) -> Result<Payload, Malformed> {
    let mut trailers = Fieldset::default();
    let mut fields = Fields(payload);
    while let Some(field) = fields.next()? {
        if let (1, Value::Bytes(map)) = field {
            trailers = Fieldset::decode(message.slice_ref(map))?;
        }
    }
    Ok(Payload::Trailers(trailers))
}

/// The headers or trailers of a message, encoded as they came.
#[derive(Debug, Default, Clone)]
pub(in crate::server) struct Fieldset {
    encoded: Bytes,
    count: usize,
    bytes: usize,
}

impl Fieldset {
    fn decode(encoded: Bytes) -> Result<Self, Malformed> {
        let (mut count, mut bytes) = (0, 0);
        let mut fields = Fields(&encoded);
        while let Some(field) = fields.next()? {
            if let (1, Value::Bytes(entry)) = field {
                let (name, value) = header(entry)?;
                count += 1;
                bytes += name.len() + value.len();
            }
        }
        Ok(Self {
            encoded,
            count,
            bytes,
        })
    }

    /// Encodes headers, for those that did not come from a proxy.
    pub(in crate::server) fn encode<'a>(
        headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Self {
        let header = |(key, value): (&str, &[u8])| core::HeaderValue {
            key: key.to_ascii_lowercase(),
            raw_value: Bytes::copy_from_slice(value),
            ..core::HeaderValue::default()
        };
        let map = core::HeaderMap {
            headers: headers.into_iter().map(header).collect(),
        };
        Self::decode(map.encode_to_vec().into()).unwrap_or_default()
    }

    /// How many there are.
    pub(in crate::server) fn count(&self) -> usize {
        self.count
    }

    /// Sum of the lengths of names and values.
    pub(in crate::server) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Names and values in their order, pseudo-headers included.
    pub(in crate::server) fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let mut fields = Fields(&self.encoded);
        std::iter::from_fn(move || {
            loop {
                // All of it was readable once.
                if let (1, Value::Bytes(entry)) = fields.next().ok()?? {
                    return header(entry).ok();
                }
            }
        })
    }

    /// The first value of a name.
    pub(in crate::server) fn get(&self, name: &str) -> Option<&[u8]> {
        let mut all = self.iter();
        all.find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// A value of [`Fieldset::iter`], sharing memory with what was received.
    pub(in crate::server) fn share(&self, value: &[u8]) -> Bytes {
        if value.is_empty() {
            return Bytes::new();
        }
        self.encoded.slice_ref(value)
    }
}

/// `HeaderValue`. Proxies other than Envoy may write `value`; it counts where `raw_value` is not
/// there.
fn header(entry: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let (mut name, mut value, mut raw): (&[u8], &[u8], &[u8]) = (b"", b"", b"");
    let mut fields = Fields(entry);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(bytes)) => name = bytes,
            (2, Value::Bytes(bytes)) => value = bytes,
            (3, Value::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let name = std::str::from_utf8(name).map_err(|_| Malformed)?;
    Ok((name, if raw.is_empty() { value } else { raw }))
}

#[cfg(test)]
mod tests {
    use attache_proto::ext_proc::{
        HttpBody, HttpHeaders, HttpTrailers, ProcessingRequest, processing_request::Request,
    };

    use super::*;

    fn map(headers: &[(&str, &str)]) -> core::HeaderMap {
        let header = |(key, value): &(&str, &str)| core::HeaderValue {
            key: (*key).to_owned(),
            raw_value: value.as_bytes().to_vec().into(),
            ..core::HeaderValue::default()
        };
        core::HeaderMap {
            headers: headers.iter().map(header).collect(),
        }
    }

    fn decode(request: Request) -> (Direction, Payload) {
        let message = ProcessingRequest {
            request: Some(request),
            metadata_context: Some(core::Metadata::default()),
            ..ProcessingRequest::default()
        };
        let incoming = Incoming::decode(&message.encode_to_vec().into()).unwrap();
        assert!(incoming.metadata.is_none());
        incoming.payload.unwrap()
    }

    #[test]
    fn every_part_is_read() {
        let headers = HttpHeaders {
            headers: Some(map(&[(":path", "/"), ("x", "")])),
            end_of_stream: true,
            ..HttpHeaders::default()
        };
        let (Direction::Request, Payload::Headers(read, true)) =
            decode(Request::RequestHeaders(headers))
        else {
            panic!();
        };
        assert_eq!(
            read.iter().collect::<Vec<_>>(),
            [(":path", &b"/"[..]), ("x", b"")]
        );
        assert_eq!((read.count(), read.bytes()), (2, 7));

        let body = HttpBody {
            body: "data".into(),
            end_of_stream: true,
            ..HttpBody::default()
        };
        let (Direction::Response, Payload::Body(data, true)) = decode(Request::ResponseBody(body))
        else {
            panic!();
        };
        assert_eq!(data, "data");

        let trailers = HttpTrailers {
            trailers: Some(map(&[("t", "1")])),
        };
        let (Direction::Response, Payload::Trailers(read)) =
            decode(Request::ResponseTrailers(trailers))
        else {
            panic!();
        };
        assert_eq!(read.get("t"), Some(&b"1"[..]));
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_a_peer_sends_breaks_the_reader(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64),
        ) {
            if let Ok(Incoming { payload: Some((_, Payload::Headers(headers, _))), .. }) =
                Incoming::decode(&bytes.into())
            {
                assert_eq!(headers.iter().count(), headers.count());
            }
        }
    }
}
