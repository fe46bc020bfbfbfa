//! gRPC's length-prefixed messages on the wire.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use tonic::Status;

/// Bytes before each message: a compression flag and a big-endian length.
pub const FRAME_HEADER: usize = 5;

/// Frames an already encoded message.
pub fn frame_message(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(FRAME_HEADER + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

/// Encodes and frames a message into one buffer.
pub fn encode_message<M: Message>(message: &M) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(FRAME_HEADER + length);
    frame.put_u8(0);
    frame.put_u32(length as u32);
    message.encode_raw(&mut frame);
    frame.freeze()
}

/// Room made for an announced message before its bytes have come.
const TRUSTED_LENGTH: usize = 256 << 10;

/// Puts messages together from DATA frames; a message that arrives whole is not copied.
#[derive(Default)]
pub struct Deframer {
    partial: BytesMut,
    whole: Bytes,
}

impl Deframer {
    /// Adds one DATA frame.
    pub fn push(&mut self, data: Bytes) {
        if self.partial.is_empty() && self.whole.is_empty() {
            self.whole = data;
        } else {
            self.gather(0);
            self.partial.extend_from_slice(&data);
        }
    }

    /// The next complete message of at most `max` bytes, if any.
    ///
    /// # Errors
    /// A larger message, or a compressed one.
    pub fn next(&mut self, max: usize) -> Result<Option<Bytes>, Status> {
        let buffered: &[u8] = if self.whole.is_empty() {
            &self.partial
        } else {
            &self.whole
        };
        let Some((header, rest)) = buffered.split_first_chunk::<FRAME_HEADER>() else {
            return Ok(None);
        };
        let [compressed, length @ ..] = *header;
        if compressed != 0 {
            return Err(Status::internal(
                "the peer sent a compressed message unasked",
            ));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > max {
            return Err(Status::resource_exhausted(format!(
                "the peer sent a message of {length} bytes; {max} are allowed"
            )));
        }
        if let Some(missing) = length
            .checked_sub(rest.len())
            .filter(|missing| *missing > 0)
        {
            self.gather(missing.min(TRUSTED_LENGTH));
            return Ok(None);
        }
        let message = if self.whole.is_empty() {
            self.partial.advance(FRAME_HEADER);
            self.partial.split_to(length).freeze()
        } else {
            self.whole.advance(FRAME_HEADER);
            self.whole.split_to(length)
        };
        Ok(Some(message))
    }

    /// Whether nothing is left over: no bytes of an unfinished message.
    pub fn is_empty(&self) -> bool {
        self.partial.is_empty() && self.whole.is_empty()
    }

    /// Moves what is held whole to where more can be added, with room for `missing` bytes.
    fn gather(&mut self, missing: usize) {
        let whole = std::mem::take(&mut self.whole);
        self.partial.reserve(whole.len() + missing);
        self.partial.extend_from_slice(&whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_the_bytes_are_cut() {
        let wire = [
            frame_message(b"one"),
            frame_message(b""),
            frame_message(b"three"),
        ]
        .concat();
        for cut in 1..wire.len() {
            let mut deframer = Deframer::default();
            let mut messages = Vec::new();
            for chunk in wire.chunks(cut) {
                deframer.push(Bytes::copy_from_slice(chunk));
                while let Some(message) = deframer.next(100).unwrap() {
                    messages.push(message);
                }
            }
            assert_eq!(messages, [&b"one"[..], b"", b"three"], "cut every {cut}");
            assert!(deframer.is_empty());
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused_before_it_is_buffered() {
        let mut deframer = Deframer::default();
        deframer.push(Bytes::from_static(&[0, 0xff, 0, 0, 0]));
        assert_eq!(
            deframer.next(100).unwrap_err().code(),
            tonic::Code::ResourceExhausted
        );
    }
}
