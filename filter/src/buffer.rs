//! Holding a body back within a bound.

use std::{future::poll_fn, pin::Pin};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body as _;

use crate::{Body, BoxError};

/// What became of an attempt to hold a whole body.
#[derive(Debug)]
pub enum Buffered {
    /// The whole body, with its trailers if it had any.
    Whole {
        /// All data.
        data: Bytes,
        /// The trailers.
        trailers: Option<HeaderMap>,
    },
    /// The body is larger than the limit: what was read (the limit or somewhat more), and the
    /// rest, still to come.
    Over {
        /// What was read so far.
        data: Bytes,
        /// The unread rest.
        rest: Body,
    },
}

/// Reads a body until its end, or until more than `limit` bytes are held.
///
/// A body known to be in memory is not copied; of several frames one buffer is made.
///
/// # Errors
/// The body's own error.
pub async fn buffer(mut body: Body, limit: usize) -> Result<Buffered, BoxError> {
    if let Some(data) = body.as_full() {
        return Ok(if data.len() > limit {
            Buffered::Over {
                data,
                rest: Body::empty(),
            }
        } else {
            Buffered::Whole {
                data,
                trailers: None,
            }
        });
    }
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(data) if first.is_empty() => first = data,
            Ok(data) => {
                if more.is_empty() {
                    more.extend_from_slice(&first);
                }
                more.extend_from_slice(&data);
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if first.len().max(more.len()) > limit {
            return Ok(Buffered::Over {
                data: joined(first, more),
                rest: body,
            });
        }
    }
    Ok(Buffered::Whole {
        data: joined(first, more),
        trailers,
    })
}

fn joined(first: Bytes, more: BytesMut) -> Bytes {
    if more.is_empty() {
        first
    } else {
        more.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Frame;
    use http_body_util::StreamBody;

    fn chunked(chunks: &'static [&'static [u8]], trailers: bool) -> Body {
        let mut frames: Vec<Result<Frame<Bytes>, BoxError>> = chunks
            .iter()
            .map(|c| Ok(Frame::data(Bytes::from_static(c))))
            .collect();
        if trailers {
            frames.push(Ok(Frame::trailers(HeaderMap::new())));
        }
        Body::new(StreamBody::new(tokio_stream::iter(frames)))
    }

    #[tokio::test]
    async fn a_body_of_exactly_the_limit_is_held_whole() {
        let buffered = buffer(chunked(&[b"ab", b"cd", b"ef"], true), 6)
            .await
            .unwrap();
        let Buffered::Whole { data, trailers } = buffered else {
            panic!("{buffered:?}")
        };
        assert_eq!(data, "abcdef");
        assert!(trailers.is_some());
    }

    #[tokio::test]
    async fn one_byte_more_gives_back_what_was_read_and_the_rest() {
        let buffered = buffer(chunked(&[b"ab", b"cd", b"ef"], false), 3)
            .await
            .unwrap();
        let Buffered::Over { data, rest } = buffered else {
            panic!("{buffered:?}")
        };
        assert_eq!(data, "abcd");
        let Buffered::Whole { data, .. } = buffer(rest, 9).await.unwrap() else {
            panic!()
        };
        assert_eq!(data, "ef");
    }

    #[tokio::test]
    async fn a_broken_body_is_an_error() {
        let frames: Vec<Result<Frame<Bytes>, BoxError>> = vec![Err("cut off".into())];
        let error = buffer(Body::new(StreamBody::new(tokio_stream::iter(frames))), 9).await;
        assert_eq!(error.unwrap_err().to_string(), "cut off");
    }
}
