//! A strict look at HTTP/1.1 request heads as they arrive.
//!
//! hyper is lenient where a front proxy must not be: it accepts a request with both
//! `content-length` and `transfer-encoding` (RFC 9112 §6.1 asks for an error, as such requests
//! are how smuggling starts), a length that is told twice, codings that it then drops, and lines
//! that end in a bare line feed. [`Framing`] follows the message borders and names the first such
//! fault.
//!
//! What it cannot follow ([`Framing::is_opaque`]) must be the last on its connection.

use memchr::memchr;

/// Lines of a head longer than this are left to hyper's own limits.
const LINE_KEPT: usize = 8192;

/// Why a request head is refused before it is parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A line ends in LF without CR.
    BareLineFeed,
    /// So does the line with the size of a chunk, or the end of a chunk.
    BareLineFeedInChunks,
    /// Both `content-length` and `transfer-encoding` are present.
    BothLengths,
    /// `content-length` is there twice.
    RepeatedLength,
    /// `content-length` is not a number.
    UnreadableLength,
    /// `transfer-encoding` is anything but `chunked`, once: no other coding would be undone or
    /// told on.
    UnknownCoding,
    /// The request target has a `#`, which would be cut off unseen (RFC 9112 §3.2).
    Fragment,
}

/// Follows the borders of the requests of one connection.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
    /// The start of a line whose end has not arrived yet.
    partial: Vec<u8>,
    head: Head,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Fixed(u64),
    ChunkSize,
    ChunkData(u64),
    Trailers,
    /// No HTTP messages any more (tunnel), or nothing we understand: hyper decides alone.
    Opaque,
    /// The head of a request had a fault: hyper refuses it, and reads no further.
    Refused(Fault),
}

#[derive(Debug, Default, Clone, Copy)]
struct Head {
    lines: u32,
    length: Option<u64>,
    chunked: bool,
    tunnel: bool,
}

impl Default for Framing {
    fn default() -> Self {
        Self {
            state: State::Head,
            partial: Vec::new(),
            head: Head::default(),
        }
    }
}

impl Framing {
    /// Whether a head has begun and not ended.
    pub(crate) fn is_inside_head(&self) -> bool {
        self.state == State::Head && (self.head.lines > 0 || !self.partial.is_empty())
    }

    /// Gives back the room for lines that come in pieces.
    pub(crate) fn rest(&mut self) {
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
    }

    /// Whether what comes is followed no more: a tunnel, or no HTTP at all.
    pub(crate) fn is_opaque(&self) -> bool {
        self.state == State::Opaque
    }

    /// What was wrong with the head of the last request.
    pub(crate) fn refused(&self) -> Option<Fault> {
        match self.state {
            State::Refused(fault) => Some(fault),
            _ => None,
        }
    }

    /// Takes the bytes read next. On a fault, also gives the offset of the byte that shows it.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), (Fault, usize)> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            match self.state {
                State::Opaque | State::Refused(_) => return Ok(()),
                State::Fixed(left) | State::ChunkData(left) => {
                    let taken = left.min(rest.len() as u64);
                    // `taken` is at most `rest.len()`, so it fits.
                    at += taken as usize;
                    let left = left - taken;
                    self.state = match self.state {
                        State::Fixed(_) if left == 0 => State::Head,
                        State::Fixed(_) => State::Fixed(left),
                        _ if left == 0 => State::ChunkSize,
                        _ => State::ChunkData(left),
                    };
                }
                State::Head | State::ChunkSize | State::Trailers => match memchr(b'\n', rest) {
                    None => {
                        self.keep(rest);
                        return Ok(());
                    }
                    Some(end) => {
                        let line = rest.get(..end).unwrap_or_default();
                        let result = if self.partial.is_empty() {
                            self.line(line)
                        } else {
                            self.keep(line);
                            let whole = std::mem::take(&mut self.partial);
                            let result = self.line(&whole);
                            self.partial = whole;
                            self.partial.clear();
                            result
                        };
                        if let Err(fault) = result {
                            self.state = match self.state {
                                State::Head => State::Refused(fault),
                                _ => State::Opaque,
                            };
                            return Err((fault, at + end));
                        }
                        at += end + 1;
                    }
                },
            }
        }
        Ok(())
    }

    fn keep(&mut self, piece: &[u8]) {
        if self.partial.len() + piece.len() > LINE_KEPT {
            // Keep the name at the front and the possible CR at the end.
            let room = LINE_KEPT.saturating_sub(self.partial.len());
            self.partial
                .extend_from_slice(piece.get(..room).unwrap_or(piece));
            if let (Some(last), Some(slot)) = (piece.last(), self.partial.last_mut()) {
                *slot = *last;
            }
        } else {
            self.partial.extend_from_slice(piece);
        }
    }

    /// One line, without its line feed.
    fn line(&mut self, line: &[u8]) -> Result<(), Fault> {
        let Some((b'\r', line)) = line.split_last() else {
            return Err(match self.state {
                State::ChunkSize => Fault::BareLineFeedInChunks,
                _ => Fault::BareLineFeed,
            });
        };
        match self.state {
            State::Head if line.is_empty() => return self.end_of_head(),
            State::Head => return self.head_line(line),
            State::ChunkSize => self.chunk_size(line),
            State::Trailers if line.is_empty() => self.state = State::Head,
            _ => {}
        }
        Ok(())
    }

    fn head_line(&mut self, line: &[u8]) -> Result<(), Fault> {
        let head = &mut self.head;
        head.lines = head.lines.saturating_add(1);
        if head.lines == 1 {
            head.tunnel = line.starts_with(b"CONNECT ");
            return match memchr(b'#', line) {
                Some(_) => Err(Fault::Fragment),
                None => Ok(()),
            };
        }
        match line.first().map(u8::to_ascii_lowercase) {
            Some(b'c') => {
                if let Some(value) = value_of(line, b"content-length") {
                    let length = decimal(value).ok_or(Fault::UnreadableLength)?;
                    if head.length.replace(length).is_some() {
                        return Err(Fault::RepeatedLength);
                    }
                }
            }
            Some(b't') => {
                if let Some(value) = value_of(line, b"transfer-encoding") {
                    let again = std::mem::replace(&mut head.chunked, true);
                    if again || !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Fault::UnknownCoding);
                    }
                }
            }
            Some(b'u') => {
                if let Some(value) = value_of(line, b"upgrade") {
                    head.tunnel |= !value.to_ascii_lowercase().starts_with(b"h2c");
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn end_of_head(&mut self) -> Result<(), Fault> {
        if self.head.lines == 0 {
            // Empty lines before a request line are allowed (RFC 9112 §2.2).
            return Ok(());
        }
        let head = std::mem::take(&mut self.head);
        self.state = match head {
            Head {
                chunked: true,
                length: Some(_),
                ..
            } => return Err(Fault::BothLengths),
            Head { tunnel: true, .. } => State::Opaque,
            Head { chunked: true, .. } => State::ChunkSize,
            Head {
                length: Some(n @ 1..),
                ..
            } => State::Fixed(n),
            _ => State::Head,
        };
        Ok(())
    }

    fn chunk_size(&mut self, line: &[u8]) {
        if line.is_empty() {
            // The line end that closes the chunk before.
            return;
        }
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let size = line
            .get(..digits)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u64::from_str_radix(hex, 16).ok());
        self.state = match size {
            Some(0) => State::Trailers,
            Some(size) => State::ChunkData(size),
            // hyper refuses this.
            None => State::Opaque,
        };
    }
}

fn value_of<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let (found, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    found.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

fn decimal(value: &[u8]) -> Option<u64> {
    let digits = value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value)
        .ok()
        .filter(|_| digits)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed_whole(text: &str) -> Result<(), Fault> {
        Framing::default()
            .feed(text.as_bytes())
            .map_err(|(fault, _)| fault)
    }

    #[test]
    fn ordinary_requests_pass() {
        for text in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\na\nbGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\na\nb\r\n0\r\nx: y\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\nany\nbytes",
            "CONNECT a:1 HTTP/1.1\r\n\r\nany\nbytes",
        ] {
            assert_eq!(feed_whole(text), Ok(()), "{text:?}");
        }
    }

    #[test]
    fn both_length_headers_are_a_fault_in_either_order() {
        for text in [
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\naPOST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\nPOST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
        ] {
            assert_eq!(feed_whole(text), Err(Fault::BothLengths), "{text:?}");
        }
    }

    #[test]
    fn lengths_that_are_told_twice_or_are_none_are_a_fault() {
        for (lines, fault) in [
            (
                "content-length: 3\r\ncontent-length: 3",
                Fault::RepeatedLength,
            ),
            (
                "transfer-encoding: chunked\r\nTransfer-Encoding: chunked",
                Fault::UnknownCoding,
            ),
            ("content-length: +3", Fault::UnreadableLength),
            ("content-length: 3, 3", Fault::UnreadableLength),
            ("content-length:", Fault::UnreadableLength),
            ("transfer-encoding: gzip, chunked", Fault::UnknownCoding),
            ("transfer-encoding: chunked, chunked", Fault::UnknownCoding),
            ("transfer-encoding:", Fault::UnknownCoding),
        ] {
            let text = format!("POST / HTTP/1.1\r\n{lines}\r\n\r\n");
            assert_eq!(feed_whole(&text), Err(fault), "{lines}");
        }
    }

    #[test]
    fn chunk_sizes_are_read_as_a_number_of_any_length() {
        let text = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n\
                    0000000000000000000003;x=y\r\na\nb\r\n0\r\n\r\n\
                    POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(feed_whole(text), Err(Fault::BothLengths));
    }

    #[test]
    fn a_length_that_is_padded_beyond_what_is_kept_is_a_fault() {
        let head = format!("POST / HTTP/1.1\r\ncontent-length:{}", " ".repeat(9000));
        let mut framing = Framing::default();
        framing.feed(head.as_bytes()).unwrap();
        let fault = framing.feed(b"5\r\n\r\n").unwrap_err().0;
        assert_eq!(fault, Fault::UnreadableLength);
    }

    #[test]
    fn fragments_in_targets_are_a_fault() {
        assert_eq!(
            feed_whole("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
            Err(Fault::Fragment)
        );
        assert_eq!(feed_whole("GET /a HTTP/1.1\r\nx: #\r\n\r\n"), Ok(()));
    }

    #[test]
    fn bare_line_feeds_in_heads_are_a_fault() {
        for text in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
        ] {
            assert_eq!(feed_whole(text), Err(Fault::BareLineFeed), "{text:?}");
        }
    }

    #[test]
    fn only_a_fault_of_a_head_refuses_a_request() {
        for (text, refused) in [
            ("GET / HTTP/1.1\n", Some(Fault::BareLineFeed)),
            (
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\n",
                None,
            ),
            (
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\n",
                None,
            ),
        ] {
            let mut framing = Framing::default();
            framing.feed(text.as_bytes()).unwrap_err();
            assert_eq!(framing.refused(), refused, "{text:?}");
            assert_eq!(framing.is_opaque(), refused.is_none(), "{text:?}");
        }
    }

    #[test]
    fn what_looks_like_a_bad_head_inside_a_body_is_data() {
        let body = "POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n";
        let fixed = format!(
            "POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let chunked = format!(
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        );
        assert_eq!(feed_whole(&fixed), Ok(()));
        assert_eq!(feed_whole(&chunked), Ok(()));
    }

    #[test]
    fn a_head_is_inside_from_its_first_byte_to_its_last() {
        let mut framing = Framing::default();
        assert!(!framing.is_inside_head());
        framing.feed(b"G").unwrap();
        assert!(framing.is_inside_head());
        framing.feed(b"ET / HTTP/1.1\r\n\r").unwrap();
        assert!(framing.is_inside_head());
        framing.feed(b"\n").unwrap();
        assert!(!framing.is_inside_head());
    }

    proptest! {
        #[test]
        fn the_verdict_does_not_depend_on_how_bytes_are_split(
            cuts in prop::collection::vec(0usize..200, 0..8),
            which in 0usize..4,
        ) {
            let text = [
                "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\na\nb\r\n\r\n0\r\nx: y\r\n\r\nGET / HTTP/1.1\nx: y\r\n\r\n",
                "POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\na\n\nbGET / HTTP/1.1\r\nhost: a\r\n\r\n",
                "\r\nGET / HTTP/1.1\r\nhost: a\r\n\n",
            ][which];
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (text.len() + 1)).collect();
            cuts.push(0);
            cuts.push(text.len());
            cuts.sort_unstable();
            let mut framing = Framing::default();
            let mut verdict = Ok(());
            for pair in cuts.windows(2) {
                let piece = &text.as_bytes()[pair[0]..pair[1]];
                verdict = framing.feed(piece).map_err(|(fault, at)| (fault, at + pair[0]));
                if verdict.is_err() {
                    break;
                }
            }
            prop_assert_eq!(verdict, Framing::default().feed(text.as_bytes()));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = Framing::default().feed(&bytes);
        }
    }
}
