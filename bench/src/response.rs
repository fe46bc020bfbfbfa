//! Reading one HTTP/1.1 answer off a connection while checking every byte of
//! it: no copy, no allocation, and nothing kept that was already compared.

use anyhow::{Context, bail, ensure};

/// What every answer must be.
#[derive(Debug)]
pub(crate) struct Expected {
    /// The status.
    pub(crate) status: u16,
    /// Headers that must be there, with these values.
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    /// The whole body.
    pub(crate) body: Vec<u8>,
}

/// Where in an answer a connection is.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    expected: &'a Expected,
    state: State,
    /// How much of the body has come, and was right.
    body: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    /// A body of known length.
    Length,
    /// In the line with a chunk's size, so far this; whether the digits ended.
    Size(usize, bool),
    /// In a chunk that has so many bytes more.
    Chunk(usize),
    /// In the line end behind a chunk.
    ChunkEnd,
    /// In the trailers; whether the line so far is empty.
    Trailers(bool),
    Done,
}

impl<'a> Answer<'a> {
    /// Before the first byte.
    pub(crate) fn new(expected: &'a Expected) -> Answer<'a> {
        Answer {
            expected,
            state: State::Head,
            body: 0,
        }
    }

    /// Whether the answer is whole.
    pub(crate) fn done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes what was read so far and not yet taken; gives how much of it is
    /// used up. A head is only taken whole.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> anyhow::Result<usize> {
        let mut rest = bytes;
        if self.state == State::Head {
            match self.head(rest)? {
                Some(length) => rest = rest.get(length..).unwrap_or_default(),
                None => return Ok(0),
            }
        }
        while !rest.is_empty() && self.state != State::Done {
            rest = self.step(rest)?;
        }
        ensure!(
            rest.is_empty(),
            "{} bytes follow behind the answer",
            rest.len()
        );
        Ok(bytes.len())
    }

    fn head(&mut self, bytes: &[u8]) -> anyhow::Result<Option<usize>> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(length) = parsed.parse(bytes).context("a bad head")? else {
            return Ok(None);
        };
        let find = |name: &str| {
            let found = parsed
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case(name));
            found.map(|header| header.value)
        };
        let shown = || String::from_utf8_lossy(bytes.get(..length.min(600)).unwrap_or(bytes));
        if parsed.code != Some(self.expected.status) {
            bail!(
                "expected status {}, got:\n{}",
                self.expected.status,
                shown()
            );
        }
        for (name, value) in &self.expected.headers {
            if find(name) != Some(value.as_bytes()) {
                bail!("expected `{name}: {value}`, got:\n{}", shown());
            }
        }
        if let Some(value) = find("content-length") {
            let promised: usize = std::str::from_utf8(value)?.trim().parse()?;
            ensure!(
                promised == self.expected.body.len(),
                "expected {} bytes of body, content-length is {promised}",
                self.expected.body.len()
            );
            self.state = State::Length;
            self.compare(&[])?;
        } else if find("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case(b"chunked")) {
            self.state = State::Size(0, false);
        } else {
            bail!("neither content-length nor chunked:\n{}", shown());
        }
        Ok(Some(length))
    }

    /// One step through the body; gives what is left of `bytes`.
    fn step<'b>(&mut self, bytes: &'b [u8]) -> anyhow::Result<&'b [u8]> {
        let (first, behind) = match bytes.split_first() {
            Some((first, behind)) => (*first, behind),
            None => return Ok(bytes),
        };
        match self.state {
            State::Length => {
                self.compare(bytes)?;
                return Ok(&[]);
            }
            State::Chunk(left) => {
                let (now, later) = bytes.split_at(left.min(bytes.len()));
                self.compare(now)?;
                self.state = match left - now.len() {
                    0 => State::ChunkEnd,
                    left => State::Chunk(left),
                };
                return Ok(later);
            }
            State::Size(0, _) if first == b'\n' => {
                ensure!(
                    self.body == self.expected.body.len(),
                    "expected {} bytes of body, got {}",
                    self.expected.body.len(),
                    self.body
                );
                self.state = State::Trailers(true);
            }
            State::Size(size, _) if first == b'\n' => self.state = State::Chunk(size),
            State::Size(size, ended) => {
                let digit = char::from(first).to_digit(16);
                self.state = match (ended, digit) {
                    (false, Some(digit)) if size <= self.expected.body.len() => {
                        State::Size(size * 16 + digit as usize, false)
                    }
                    (false, Some(_)) => bail!("a chunk of more than {size} bytes"),
                    (false, None) | (true, _) => State::Size(size, true),
                };
            }
            State::ChunkEnd if first == b'\n' => self.state = State::Size(0, false),
            State::ChunkEnd => ensure!(first == b'\r', "a chunk longer than its size"),
            State::Trailers(true) if first == b'\n' => self.state = State::Done,
            State::Trailers(empty) => {
                self.state = State::Trailers(first == b'\n' || (empty && first == b'\r'));
            }
            State::Head | State::Done => return Ok(bytes),
        }
        Ok(behind)
    }

    /// Compares a piece of the body with what is expected there.
    fn compare(&mut self, piece: &[u8]) -> anyhow::Result<()> {
        let end = self.body + piece.len();
        match self.expected.body.get(self.body..end) {
            Some(right) if right == piece => self.body = end,
            Some(_) => bail!("a wrong body, within bytes {}..{end}", self.body),
            None => bail!("a body of more than {} bytes", self.expected.body.len()),
        }
        if self.state == State::Length && end == self.expected.body.len() {
            self.state = State::Done;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Expected {
        Expected {
            status: 200,
            headers: vec![("x-seen", "yes")],
            body: b"hello world".to_vec(),
        }
    }

    /// Feeds `answer` in pieces of `step` bytes, as a connection would.
    fn feed(answer: &str, step: usize) -> anyhow::Result<bool> {
        let expected = expected();
        let mut reading = Answer::new(&expected);
        let mut buffer = Vec::new();
        for piece in answer.as_bytes().chunks(step) {
            buffer.extend_from_slice(piece);
            let used = reading.take(&buffer)?;
            buffer.drain(..used);
        }
        Ok(reading.done())
    }

    #[test]
    fn right_answers_are_read_in_pieces_of_any_size() {
        let length = "HTTP/1.1 200 OK\r\nX-Seen: yes\r\ncontent-length: 11\r\n\r\nhello world";
        let chunked = "HTTP/1.1 200 OK\r\nx-seen: yes\r\ntransfer-encoding: chunked\r\n\r\n\
                       5;a=b\r\nhello\r\n06\r\n world\r\n0\r\n\r\n";
        let trailers = "HTTP/1.1 200 OK\r\nx-seen: yes\r\ntransfer-encoding: chunked\r\n\r\n\
                        b\r\nhello world\r\n0\r\nx-t: 1\r\n\r\n";
        for answer in [length, chunked, trailers] {
            for step in 1..=answer.len() {
                assert!(feed(answer, step).unwrap(), "in steps of {step}: {answer}");
            }
            assert!(!feed(answer.get(..answer.len() - 1).unwrap(), 7).unwrap());
        }
    }

    #[test]
    fn each_kind_of_wrong_answer_is_refused() {
        let good = "HTTP/1.1 200 OK\r\nx-seen: yes\r\n";
        for wrong in [
            "HTTP/1.1 500 No\r\nx-seen: yes\r\ncontent-length: 11\r\n\r\nhello world".to_owned(),
            "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world".to_owned(),
            "HTTP/1.1 200 OK\r\nx-seen: no\r\ncontent-length: 11\r\n\r\nhello world".to_owned(),
            format!("{good}content-length: 10\r\n\r\nhello worl"),
            format!("{good}content-length: 11\r\n\r\nhello_world"),
            format!("{good}content-length: 11\r\n\r\nhello world!"),
            format!("{good}\r\nhello world"),
            format!("{good}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            format!("{good}transfer-encoding: chunked\r\n\r\nc\r\nhello world!\r\n0\r\n\r\n"),
            format!("{good}transfer-encoding: chunked\r\n\r\n5\r\nhello!\r\n"),
            format!("{good}transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n"),
        ] {
            for step in [1, 16, wrong.len()] {
                assert!(feed(&wrong, step).is_err(), "in steps of {step}: {wrong}");
            }
        }
    }
}
