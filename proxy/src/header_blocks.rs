//! Where header blocks begin and end in what an HTTP/2 client sends (RFC 9113 §4.1 and §6.10).
//!
//! The codec tells of a request when its header block is whole; of one that never gets there,
//! nobody hears.

/// The magic that comes before all frames.
const PREFACE: u32 = 24;
const FRAME_HEAD: usize = 9;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Follows frames by their heads alone.
#[derive(Debug)]
pub(crate) struct HeaderBlocks {
    /// Bytes of the preface or a payload that are yet to come.
    left: u32,
    /// What has come of the head of a frame.
    head: [u8; FRAME_HEAD],
    known: usize,
    block: Block,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    None,
    /// It goes on in a further frame.
    Open,
    /// It ends with this frame.
    Last,
}

impl Default for HeaderBlocks {
    fn default() -> Self {
        Self {
            left: PREFACE,
            head: [0; FRAME_HEAD],
            known: 0,
            block: Block::None,
        }
    }
}

impl HeaderBlocks {
    /// Whether one has begun and not ended.
    pub(crate) fn is_inside(&self) -> bool {
        self.block != Block::None
    }

    /// What has come next.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        loop {
            let here = bytes
                .len()
                .min(usize::try_from(self.left).unwrap_or(usize::MAX));
            bytes = bytes.get(here..).unwrap_or_default();
            self.left = self
                .left
                .saturating_sub(u32::try_from(here).unwrap_or(u32::MAX));
            if self.left > 0 {
                return;
            }
            if self.block == Block::Last && self.known == 0 {
                self.block = Block::None;
            }
            let Some(missing) = self.head.get_mut(self.known..) else {
                return;
            };
            let here = bytes.len().min(missing.len());
            let (taken, rest) = bytes.split_at(here);
            for (place, byte) in missing.iter_mut().zip(taken) {
                *place = *byte;
            }
            bytes = rest;
            self.known += here;
            if self.known < FRAME_HEAD {
                return;
            }
            self.known = 0;
            let [a, b, c, kind, flags, ..] = self.head;
            self.left = u32::from_be_bytes([0, a, b, c]);
            if matches!(kind, HEADERS | CONTINUATION) {
                self.block = match flags & END_HEADERS {
                    0 => Block::Open,
                    _ => Block::Last,
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DATA: u8 = 0;
    const PING: u8 = 6;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut bytes = u32::try_from(length).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.resize(FRAME_HEAD + length, HEADERS);
        bytes
    }

    fn inside_after(frames: &[Vec<u8>]) -> bool {
        let mut blocks = HeaderBlocks::default();
        blocks.feed(&[0; PREFACE as usize]);
        frames.iter().for_each(|frame| blocks.feed(frame));
        blocks.is_inside()
    }

    #[test]
    fn a_block_is_open_until_its_last_byte() {
        let whole = frame(HEADERS, END_HEADERS, 20);
        let begun = frame(HEADERS, 0, 20);
        for (frames, inside) in [
            (vec![], false),
            (vec![whole.clone()], false),
            (vec![whole[..28].to_vec()], true),
            (vec![begun.clone()], true),
            (vec![begun.clone(), frame(CONTINUATION, 0, 0)], true),
            (
                vec![begun.clone(), frame(CONTINUATION, END_HEADERS, 0)],
                false,
            ),
            (vec![begun, frame(CONTINUATION, END_HEADERS, 1)], false),
            (vec![frame(DATA, 0, 0), frame(PING, 0, 8)], false),
            (vec![whole, frame(DATA, 0, 70_000)], false),
        ] {
            assert_eq!(inside_after(&frames), inside, "{frames:?}");
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_bytes_are_cut(
            frames in prop::collection::vec((0u8..10, any::<u8>(), 0usize..40), 0..12),
            cuts in prop::collection::vec(1usize..30, 1..200),
        ) {
            let mut bytes = vec![0; PREFACE as usize];
            for (kind, flags, length) in &frames {
                bytes.extend(frame(*kind, *flags, *length));
            }
            let mut whole = HeaderBlocks::default();
            whole.feed(&bytes);
            let mut cut = HeaderBlocks::default();
            let mut rest = &bytes[..];
            for length in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (piece, after) = rest.split_at((*length).min(rest.len()));
                cut.feed(piece);
                rest = after;
            }
            prop_assert_eq!(whole.is_inside(), cut.is_inside());
            // Only frames of headers change it.
            let last = frames.iter().rfind(|(kind, ..)| matches!(*kind, HEADERS | CONTINUATION));
            let open = last.is_some_and(|(_, flags, _)| flags & END_HEADERS == 0);
            prop_assert_eq!(whole.is_inside(), open);
        }
    }
}
