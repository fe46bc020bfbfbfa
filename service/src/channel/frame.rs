//! gRPC's length-prefixed messages on the wire.

use std::collections::VecDeque;

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

/// Frames the message that stands in `buffer` from `start` + [`FRAME_HEADER`] on, where it is. What
/// stands before `start` is left out.
pub fn frame_in_place(mut buffer: Vec<u8>, start: usize) -> Bytes {
    let length = buffer.len().saturating_sub(start + FRAME_HEADER);
    if let Some(header) = buffer.get_mut(start..start + FRAME_HEADER) {
        let (flag, announced) = header.split_at_mut(1);
        flag.fill(0);
        announced.copy_from_slice(&(length as u32).to_be_bytes());
    }
    let mut frame = Bytes::from(buffer);
    frame.advance(start.min(frame.len()));
    frame
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

/// Pieces that may wait for the rest of their message before they are put into one buffer.
const MOST_PIECES: usize = 4;

/// Puts messages together from DATA frames; what arrives in few frames is not copied.
#[derive(Default)]
pub struct Deframer {
    pieces: Pieces,
    /// A message that arrives in many frames; empty unless there is one.
    partial: BytesMut,
}

impl Deframer {
    /// Adds one DATA frame.
    pub fn push(&mut self, data: Bytes) {
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(&data);
            return;
        }
        self.pieces.push(data);
        if self.pieces.rest.len() >= MOST_PIECES {
            let announced = self.header().map_or(0, |(_, length)| length);
            let missing = (FRAME_HEADER + announced).saturating_sub(self.pieces.length);
            let room = self.pieces.length + missing.min(TRUSTED_LENGTH);
            self.partial.reserve(room);
            self.partial.put(std::mem::take(&mut self.pieces));
        }
    }

    /// The next complete message of at most `max` bytes, if any, in one piece.
    ///
    /// # Errors
    /// A larger message, or a compressed one.
    pub fn next(&mut self, max: usize) -> Result<Option<Bytes>, Status> {
        Ok(self.next_pieces(max)?.map(Pieces::into_bytes))
    }

    /// The same as it arrived: a large body behind a small prefix stays uncopied.
    ///
    /// # Errors
    /// A larger message, or a compressed one.
    pub fn next_pieces(&mut self, max: usize) -> Result<Option<Pieces>, Status> {
        let Some((compressed, length)) = self.header() else {
            return Ok(None);
        };
        if compressed {
            return Err(Status::internal(
                "the peer sent a compressed message unasked",
            ));
        }
        if length > max {
            return Err(Status::resource_exhausted(format!(
                "the peer sent a message of {length} bytes; {max} are allowed"
            )));
        }
        if self.partial.is_empty() {
            if self.pieces.length < FRAME_HEADER + length {
                return Ok(None);
            }
            self.pieces.advance(FRAME_HEADER);
            return Ok(Some(self.pieces.split_to(length)));
        }
        if self.partial.len() < FRAME_HEADER + length {
            return Ok(None);
        }
        self.partial.advance(FRAME_HEADER);
        Ok(Some(self.partial.split_to(length).freeze().into()))
    }

    /// Whether nothing is left over: no bytes of an unfinished message.
    pub fn is_empty(&self) -> bool {
        self.partial.is_empty() && self.pieces.length == 0
    }

    /// Whether the next message is compressed, and its length; once that is known.
    fn header(&self) -> Option<(bool, usize)> {
        let mut header = [0; FRAME_HEADER];
        if self.partial.is_empty() {
            self.pieces.peek(&mut header)?;
        } else {
            header = *self.partial.first_chunk()?;
        }
        let [compressed, length @ ..] = header;
        Some((compressed != 0, u32::from_be_bytes(length) as usize))
    }
}

/// Bytes in the pieces in which they arrived. As a [`Buf`], what lies within one piece is taken
/// out without copying it.
#[derive(Debug, Default)]
pub struct Pieces {
    /// Empty only when all is.
    first: Bytes,
    rest: VecDeque<Bytes>,
    length: usize,
}

impl Pieces {
    /// All in one piece: copied only if there are more.
    pub fn into_bytes(mut self) -> Bytes {
        match self.rest.is_empty() {
            true => self.first,
            false => self.copy_to_bytes(self.length),
        }
    }

    fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.length += data.len();
        match self.first.is_empty() {
            true => self.first = data,
            false => self.rest.push_back(data),
        }
    }

    /// Copies the beginning into `bytes`, if there is that much.
    fn peek(&self, bytes: &mut [u8]) -> Option<()> {
        if self.length < bytes.len() {
            return None;
        }
        let all = std::iter::once(&self.first).chain(&self.rest).flatten();
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
        Some(())
    }

    /// The first `count` bytes, which must be there.
    fn split_to(&mut self, mut count: usize) -> Pieces {
        let mut taken = Pieces::default();
        while count > 0 && self.length > 0 {
            let now = count.min(self.first.len());
            taken.push(self.first.split_to(now));
            count -= now;
            self.length -= now;
            self.refill();
        }
        taken
    }

    fn refill(&mut self) {
        if self.first.is_empty() {
            self.first = self.rest.pop_front().unwrap_or_default();
        }
    }
}

impl From<Bytes> for Pieces {
    fn from(first: Bytes) -> Self {
        Self {
            length: first.len(),
            first,
            rest: VecDeque::new(),
        }
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.length
    }

    fn chunk(&self) -> &[u8] {
        &self.first
    }

    fn advance(&mut self, mut count: usize) {
        while count > 0 && self.length > 0 {
            let now = count.min(self.first.len());
            self.first.advance(now);
            count -= now;
            self.length -= now;
            self.refill();
        }
    }

    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        if count <= self.first.len() {
            let taken = self.first.split_to(count);
            self.length -= count;
            self.refill();
            return taken;
        }
        let mut joined = BytesMut::with_capacity(count.min(self.length));
        joined.put(self.take(count));
        joined.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_framed_where_it_stands() {
        let buffer = b"before.....the message".to_vec();
        assert_eq!(frame_in_place(buffer, 6), frame_message(b"the message"));
    }

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
    fn a_body_that_follows_its_prefix_in_a_frame_of_its_own_is_not_copied() {
        let body = Bytes::from(vec![b'x'; 1000]);
        let mut deframer = Deframer::default();
        deframer.push(Bytes::from_static(&[0, 0, 0, 3, 234, b'a']));
        assert!(deframer.next_pieces(2000).unwrap().is_none());
        deframer.push(Bytes::from_static(b"b"));
        deframer.push(body.clone());

        let mut message = deframer.next_pieces(2000).unwrap().unwrap();

        assert_eq!(message.remaining(), 1002);
        assert_eq!(message.copy_to_bytes(2), "ab");
        assert_eq!(message.copy_to_bytes(1000).as_ptr(), body.as_ptr());
        assert!(deframer.is_empty());
    }

    #[test]
    fn a_message_in_many_frames_is_put_into_one_buffer() {
        let wire = frame_message(&[b'x'; 5000]);
        let mut deframer = Deframer::default();
        for byte in wire.iter() {
            deframer.push(Bytes::copy_from_slice(&[*byte]));
        }
        assert!(deframer.pieces.length == 0 && deframer.partial.len() == wire.len());
        assert_eq!(deframer.next(5000).unwrap().unwrap(), [b'x'; 5000][..]);
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
