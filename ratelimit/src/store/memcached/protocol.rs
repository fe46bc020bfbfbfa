//! memcached's text protocol, as much of it as counters need.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// Longer lines are no answers to what is asked here.
const LONGEST_LINE: u64 = 1024;

/// Lifetimes beyond this are read as a Unix time by memcached.
pub(super) const LONGEST_LIFETIME: u64 = 30 * 86_400;

/// One command on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) key: String,
    pub(super) step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Adds to a counter that is there.
    Increase(u64),
    /// Takes from a counter that is there, not below 0.
    Decrease(u64),
    /// Makes a counter that is not there.
    Make {
        count: u64,
        /// Seconds, or a Unix time.
        expires: u64,
    },
    Get,
}

/// What memcached answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// What the counter stands at.
    Count(u64),
    /// There is no counter.
    Absent,
    /// The counter was made.
    Made,
    /// There is a counter already.
    Present,
    /// An error, in its words.
    Error(String),
}

impl Command {
    pub(super) fn encode(&self, buffer: &mut Vec<u8>) {
        use std::io::Write as _;
        let key = &self.key;
        // Writing to a Vec cannot fail.
        let _ = match self.step {
            Step::Increase(hits) => write!(buffer, "incr {key} {hits}\r\n"),
            Step::Decrease(hits) => write!(buffer, "decr {key} {hits}\r\n"),
            Step::Make { count, expires } => {
                let data = count.to_string();
                write!(buffer, "add {key} 0 {expires} {}\r\n{data}\r\n", data.len())
            }
            Step::Get => write!(buffer, "get {key}\r\n"),
        };
    }
}

/// Reads the answer to one command.
pub(super) async fn read<R: AsyncBufRead + Unpin>(reader: &mut R) -> io::Result<Answer> {
    let line = read_line(reader).await?;
    if let Some(described) = line.strip_prefix("VALUE ") {
        // `<key> <flags> <bytes>`
        let length = described.rsplit(' ').next().and_then(|n| n.parse().ok());
        let length: u64 = length
            .filter(|n| *n <= LONGEST_LINE)
            .ok_or_else(|| bad(&line))?;
        let mut data = String::new();
        reader
            .take(length.saturating_add(2))
            .read_to_string(&mut data)
            .await?;
        if read_line(reader).await? != "END" {
            return Err(bad(&line));
        }
        return match data.trim().parse() {
            Ok(count) => Ok(Answer::Count(count)),
            Err(_) => Ok(Answer::Error("the key holds no number".to_owned())),
        };
    }
    Ok(match line.as_str() {
        "STORED" => Answer::Made,
        "NOT_STORED" => Answer::Present,
        "NOT_FOUND" | "END" => Answer::Absent,
        line if line.starts_with("CLIENT_ERROR") || line.starts_with("SERVER_ERROR") => {
            Answer::Error(line.to_owned())
        }
        line => match line.parse() {
            Ok(count) => Answer::Count(count),
            // With anything else it is not known where the next answer begins.
            Err(_) => return Err(bad(line)),
        },
    })
}

async fn read_line<R: AsyncBufRead + Unpin>(reader: &mut R) -> io::Result<String> {
    let mut line = String::new();
    reader.take(LONGEST_LINE).read_line(&mut line).await?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match line.strip_suffix("\r\n") {
        // A number that has shrunk is padded with spaces.
        Some(line) => Ok(line.trim_end().to_owned()),
        None => Err(bad(&line)),
    }
}

fn bad(line: &str) -> io::Error {
    let start: String = line.chars().take(80).collect();
    io::Error::new(io::ErrorKind::InvalidData, format!("answered {start:?}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answers(mut text: &[u8]) -> Vec<io::Result<Answer>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut answers = Vec::new();
            while !text.is_empty() {
                let answer = read(&mut text).await;
                let is_error = answer.is_err();
                answers.push(answer);
                if is_error {
                    break;
                }
            }
            answers
        })
    }

    #[test]
    fn answers_are_read_one_after_the_other() {
        let text = "12\r\n7 \r\nNOT_FOUND\r\nSTORED\r\nNOT_STORED\r\nVALUE k 0 3\r\n42 \r\nEND\r\n\
            END\r\nVALUE k 0 1\r\nx\r\nEND\r\nSERVER_ERROR out of memory\r\n";
        let read: Vec<_> = answers(text.as_bytes())
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(
            read,
            [
                Answer::Count(12),
                Answer::Count(7),
                Answer::Absent,
                Answer::Made,
                Answer::Present,
                Answer::Count(42),
                Answer::Absent,
                Answer::Error("the key holds no number".to_owned()),
                Answer::Error("SERVER_ERROR out of memory".to_owned()),
            ]
        );
    }

    #[test]
    fn what_is_no_answer_ends_the_connection() {
        for text in [
            "ERROR\r\n",
            "12",
            "VALUE k 0 99999999\r\n",
            "\r\n",
            "VALUE\r\n",
        ] {
            let last = answers(text.as_bytes()).pop().unwrap();
            assert!(last.is_err(), "{text:?}");
        }
    }

    #[test]
    fn commands_are_lines() {
        let mut buffer = Vec::new();
        for step in [
            Step::Increase(5),
            Step::Decrease(1),
            Step::Make {
                count: 10,
                expires: 60,
            },
            Step::Get,
        ] {
            let key = "k".to_owned();
            Command { key, step }.encode(&mut buffer);
        }
        let text = String::from_utf8(buffer).unwrap();
        assert_eq!(
            text,
            "incr k 5\r\ndecr k 1\r\nadd k 0 60 2\r\n10\r\nget k\r\n"
        );
    }

    proptest! {
        #[test]
        fn anything_is_read_without_a_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            answers(&text);
        }
    }
}
