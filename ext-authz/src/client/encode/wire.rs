//! The fields of protobuf, written by hand.

use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

/// Begins a field of `len` bytes.
fn begin(out: &mut Vec<u8>, tag: u32, len: usize) {
    match (u8::try_from(tag), u8::try_from(len)) {
        // As most are: two bytes, not two numbers of unknown length.
        (Ok(tag @ ..16), Ok(len @ ..128)) => {
            out.extend_from_slice(&[(tag << 3) | WireType::LengthDelimited as u8, len]);
        }
        _ => {
            encode_key(tag, WireType::LengthDelimited, out);
            encode_varint(len as u64, out);
        }
    }
}

/// An entry of a `map<string, string>`; the value is made UTF-8.
pub(super) fn map_entry(out: &mut Vec<u8>, tag: u32, key: &str, value: &[u8]) {
    begin(out, tag, field_len(key.len()) + field_len(value.len()));
    begin(out, 1, key.len());
    out.extend_from_slice(key.as_bytes());
    begin(out, 2, value.len());
    sanitized(out, value);
}

/// A `string` field; nothing when empty.
pub(super) fn text(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    if value.is_empty() {
        return;
    }
    begin(out, tag, value.len());
    sanitized(out, value);
}

/// A `bytes` field; nothing when empty.
pub(super) fn bytes(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    if value.is_empty() {
        return;
    }
    begin(out, tag, value.len());
    out.extend_from_slice(value);
}

/// Copies `value`; every byte that is not part of valid UTF-8 becomes `!`, so the length stays.
pub(in crate::client) fn sanitized(out: &mut Vec<u8>, value: &[u8]) {
    // Most are valid, and seen to be so faster as a whole.
    if std::str::from_utf8(value).is_ok() {
        return out.extend_from_slice(value);
    }
    for chunk in value.utf8_chunks() {
        out.extend_from_slice(chunk.valid().as_bytes());
        out.resize(out.len() + chunk.invalid().len(), b'!');
    }
}

/// A nested message, written before its length is known and moved by the length's few bytes.
pub(super) fn message(out: &mut Vec<u8>, tag: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    encode_key(tag, WireType::LengthDelimited, out);
    let start = out.len();
    fill(out);
    let len = (out.len() - start) as u64;
    encode_varint(len, out);
    if let Some(written) = out.get_mut(start..) {
        written.rotate_right(encoded_len_varint(len));
    }
}

/// Length of a field with a one-byte tag and `len` bytes of content.
pub(super) fn field_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// The decimal digits of `number`, without a `String`.
pub(super) fn decimal(mut number: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut first = buffer.len();
    for (at, digit) in buffer.iter_mut().enumerate().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        first = at;
        if number == 0 {
            break;
        }
    }
    buffer.get(first..).unwrap_or_default()
}
