//! Where header blocks begin and end in what an HTTP/2 client sends (RFC 9113 §4.1 and §6.10).
//!
//! The codec tells of a request when its header block is whole; of one that never gets there,
//! nobody hears.

/// The magic that comes before all frames.
const PREFACE: u32 = 24;
const FRAME_HEAD: usize = 9;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];
const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 11];

/// Follows frames by their heads alone.
#[derive(Debug)]
pub(crate) struct HeaderBlocks {
    /// Bytes of the preface or a payload that are yet to come.
    left: u32,
    /// What has come of the head of a frame.
    head: [u8; FRAME_HEAD],
    known: usize,
    block: Block,
    /// The block begins a request.
    begins: bool,
    /// The request that began last, and the one before it.
    last: u32,
    before: u32,
    /// How many have begun with a whole block.
    heads: u32,
    /// The request that had begun last when each that had was served.
    settled: u32,
}

/// What a codec says of requests that it does not pass on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answers {
    /// It answered so many itself, with 431.
    pub(crate) too_large: u32,
    /// It took no note of so many, as there were too many others.
    pub(crate) crowded: u32,
    /// It ended the connection with `ENHANCE_YOUR_CALM`, for too much of this.
    pub(crate) calmed: Option<Excess>,
}

/// What a codec had too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Excess {
    /// The headers of a request.
    Headers,
    /// Requests that the client reset before they were passed on.
    Resets,
    /// Requests that the codec reset for what was wrong with them.
    Errors,
    /// Frames.
    Other,
}

impl Excess {
    /// By the payload of a GOAWAY, if that says `ENHANCE_YOUR_CALM`.
    fn of(goaway: &[u8]) -> Option<Self> {
        let (_last_stream, said) = goaway.split_at_checked(4)?;
        Some(match said.strip_prefix(&ENHANCE_YOUR_CALM)? {
            b"header_list_way_too_large" | b"too_many_continuations" => Self::Headers,
            b"too_many_resets" => Self::Resets,
            b"too_many_internal_resets" => Self::Errors,
            _ => Self::Other,
        })
    }
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
            begins: false,
            last: 0,
            before: 0,
            heads: 0,
            settled: 0,
        }
    }
}

impl HeaderBlocks {
    /// Whether one has begun and not ended.
    pub(crate) fn is_inside(&self) -> bool {
        self.block != Block::None
    }

    /// Whether that one begins a request.
    pub(crate) fn is_inside_head(&self) -> bool {
        self.begins
    }

    /// How many requests have begun with a whole block.
    pub(crate) fn heads(&self) -> u32 {
        self.heads
    }

    /// Each request that has begun with a whole block was served or refused.
    pub(crate) fn settle(&mut self) {
        self.settled = match self.begins {
            true => self.before,
            false => self.last,
        };
    }

    /// Looks at what the codec writes while requests have begun of which nobody knows. A write
    /// begins with a frame, save where the client takes nothing.
    pub(crate) fn answers(&self, mut bytes: &[u8]) -> Answers {
        let mut answers = Answers::default();
        while let Some((head, rest)) = bytes.split_first_chunk::<FRAME_HEAD>() {
            let [a, b, c, kind, _, d, e, f, g] = *head;
            let length = u32::from_be_bytes([0, a, b, c]);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let stream = u32::from_be_bytes([d, e, f, g]);
            let Some((payload, rest)) = rest.split_at_checked(length) else {
                break;
            };
            match kind {
                HEADERS if stream > self.settled => answers.too_large += 1,
                RST_STREAM if stream > self.settled && payload == REFUSED_STREAM => {
                    answers.crowded += 1;
                }
                GOAWAY => answers.calmed = answers.calmed.or(Excess::of(payload)),
                _ => {}
            }
            bytes = rest;
        }
        answers
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
                self.heads = self.heads.wrapping_add(self.begins.into());
                self.begins = false;
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
            let [a, b, c, kind, flags, d, e, f, g] = self.head;
            self.left = u32::from_be_bytes([0, a, b, c]);
            let stream = u32::from_be_bytes([d, e, f, g]);
            // Clients begin with odd numbers, each larger than the one before.
            if kind == HEADERS && stream > self.last && stream % 2 == 1 {
                self.before = self.last;
                self.last = stream;
                self.begins = true;
            }
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

    /// A frame of another stream than the first.
    fn on(stream: u8, mut frame: Vec<u8>) -> Vec<u8> {
        frame[8] = stream;
        frame
    }

    #[test]
    fn requests_are_counted_once_their_first_block_is_whole() {
        let whole = || frame(HEADERS, END_HEADERS, 3);
        let begun = || frame(HEADERS, 0, 3);
        for (frames, heads, begins) in [
            (vec![whole()], 1, false),
            (vec![whole(), whole()], 1, false),
            (vec![whole(), on(3, whole())], 2, false),
            (vec![on(3, whole()), whole()], 1, false),
            (vec![on(2, whole())], 0, false),
            (vec![begun()], 0, true),
            (vec![begun(), frame(CONTINUATION, END_HEADERS, 3)], 1, false),
            (vec![whole(), begun()], 1, false),
            (vec![whole(), frame(DATA, 0, 9)], 1, false),
        ] {
            let mut blocks = HeaderBlocks::default();
            blocks.feed(&[0; PREFACE as usize]);
            frames.iter().for_each(|frame| blocks.feed(frame));
            let found = (blocks.heads(), blocks.is_inside_head());
            assert_eq!(found, (heads, begins), "{frames:?}");
        }
    }

    #[test]
    fn answers_of_the_codec_are_those_to_requests_that_nobody_knows() {
        let mut blocks = HeaderBlocks::default();
        blocks.feed(&[0; PREFACE as usize]);
        blocks.feed(&frame(HEADERS, END_HEADERS, 3));
        let head = on(3, frame(HEADERS, END_HEADERS, 3));
        blocks.feed(&head[..10]);
        blocks.settle();
        blocks.feed(&head[10..]);

        let reset = |code: u8| {
            let mut reset = frame(RST_STREAM, 0, 4);
            reset[FRAME_HEAD..].copy_from_slice(&[0, 0, 0, code]);
            reset
        };
        let of_served = [frame(HEADERS, END_HEADERS, 5), reset(7)].concat();
        assert_eq!(blocks.answers(&of_served), Answers::default());
        let too_large = [of_served, on(3, frame(HEADERS, END_HEADERS, 4)), reset(1)].concat();
        let (too_large, crowded) = (blocks.answers(&too_large), blocks.answers(&on(3, reset(7))));
        assert_eq!((too_large.too_large, too_large.crowded), (1, 0));
        assert_eq!((crowded.too_large, crowded.crowded), (0, 1));
    }

    #[test]
    fn a_codec_that_has_too_much_says_of_what() {
        let calmed = |code: u8, said: &[u8]| {
            let payload = [&[0, 0, 0, 1, 0, 0, 0, code], said].concat();
            let mut goaway = frame(GOAWAY, 0, payload.len());
            goaway[FRAME_HEAD..].copy_from_slice(&payload);
            HeaderBlocks::default().answers(&goaway).calmed
        };
        for (code, said, excess) in [
            (11, "header_list_way_too_large", Some(Excess::Headers)),
            (11, "too_many_resets", Some(Excess::Resets)),
            (11, "too_many_internal_resets", Some(Excess::Errors)),
            (11, "", Some(Excess::Other)),
            (0, "too_many_resets", None),
        ] {
            assert_eq!(calmed(code, said.as_bytes()), excess, "{code} {said}");
        }
        let short = frame(GOAWAY, 0, 3);
        assert_eq!(HeaderBlocks::default().answers(&short).calmed, None);
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = HeaderBlocks::default().answers(&bytes);
        }

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
