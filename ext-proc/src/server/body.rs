//! Bodies as a processor sees them: pieces in, pieces out, whatever the mode.

use bytes::{Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// What is gathered of one body so far.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) bytes: BytesMut,
}

/// A body that cannot be had as wanted.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is larger than the server gathers.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// The server's bound.
        limit: usize,
    },
    /// It is not the JSON that was expected.
    #[error("the body is not the expected JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It does not fit the proxy's buffer (BUFFERED_PARTIAL), and the rest is not shown.
    #[error("the proxy shows the beginning of the body only")]
    Partial,
    /// It ended with trailers after all its pieces were taken, so nothing can carry the rest.
    #[error("a streamed body ended with trailers while it was being gathered")]
    Trailers,
}

/// How much of a body a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// More may follow.
    Piece,
    /// Nothing follows.
    Last,
    /// More follows, but is not shown.
    Beginning,
}

/// A piece of a body. In BUFFERED mode it is the whole body, in STREAMED mode what arrived.
///
/// A piece that is left alone goes on as it is. Code that works piece by piece takes the data
/// and pushes what shall go on; code that needs the whole body asks for it with each piece:
///
/// ```
/// # use attache_ext_proc::server::{Body, Result};
/// fn shout(body: &mut Body<'_>) -> Result {
///     let data = body.take();
///     body.push(data.to_ascii_uppercase());
///     Ok(())
/// }
///
/// fn count(body: &mut Body<'_>) -> Result {
///     if let Some(whole) = body.whole()? {
///         body.replace(format!("{} bytes", whole.len()));
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Body<'a> {
    data: Bytes,
    extent: Extent,
    gathered: &'a mut Gathered,
    limit: usize,
    /// What goes on, once it differs from what came.
    output: Option<Output>,
}

#[derive(Debug)]
enum Output {
    One(Bytes),
    Many(BytesMut),
}

impl<'a> Body<'a> {
    pub(super) fn new(
        data: Bytes,
        extent: Extent,
        gathered: &'a mut Gathered,
        limit: usize,
    ) -> Self {
        Self {
            data,
            extent,
            gathered,
            limit,
            output: None,
        }
    }

    /// The data of this piece, which goes on unless it is taken or replaced.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Whether this is the last piece. Streamed bodies often end with an empty one; a streamed
    /// body that ends with trailers has none.
    pub fn is_last(&self) -> bool {
        self.extent == Extent::Last
    }

    /// Takes the data out: what shall go on instead is pushed, now or with a later piece.
    pub fn take(&mut self) -> Bytes {
        self.output.get_or_insert(Output::One(Bytes::new()));
        std::mem::take(&mut self.data)
    }

    /// Adds to what goes on.
    pub fn push(&mut self, data: impl Into<Bytes>) {
        let data = data.into();
        let kept = std::mem::take(&mut self.data);
        self.output = Some(match self.output.take() {
            None if kept.is_empty() => Output::One(data),
            Some(Output::One(first)) if first.is_empty() => Output::One(data),
            None => joined(&kept, &data),
            Some(Output::One(first)) => joined(&first, &data),
            Some(Output::Many(mut many)) => {
                many.extend_from_slice(&data);
                Output::Many(many)
            }
        });
    }

    /// Puts `data` in place of all that would go on with this piece.
    pub fn replace(&mut self, data: impl Into<Bytes>) {
        self.data = Bytes::new();
        self.output = Some(Output::One(data.into()));
    }

    /// The whole body, with its last piece; until then `None`, and the pieces are held back.
    /// It goes on as it is unless it is replaced.
    ///
    /// # Errors
    /// When the body is larger than the server's bound
    /// ([`Server::max_body`](super::Server::max_body)), or than the buffer of a proxy in
    /// BUFFERED_PARTIAL mode.
    pub fn whole(&mut self) -> Result<Option<Bytes>, BodyError> {
        if self.gathered.bytes.len() + self.data.len() > self.limit {
            return Err(BodyError::TooLarge { limit: self.limit });
        }
        if self.extent == Extent::Beginning {
            return Err(BodyError::Partial);
        }
        if self.is_last() && self.gathered.bytes.is_empty() {
            return Ok(Some(self.data.clone()));
        }
        let data = self.take();
        self.gathered.bytes.extend_from_slice(&data);
        if !self.is_last() {
            return Ok(None);
        }
        let whole = self.gathered.bytes.split().freeze();
        self.replace(whole.clone());
        Ok(Some(whole))
    }

    /// The whole body as JSON, with its last piece; see [`Body::whole`].
    ///
    /// # Errors
    /// When the body is too large or not that JSON.
    pub fn json<T: DeserializeOwned>(&mut self) -> Result<Option<T>, BodyError> {
        match self.whole()? {
            Some(whole) => Ok(Some(serde_json::from_slice(&whole)?)),
            None => Ok(None),
        }
    }

    /// Puts a value as JSON in place of the body.
    ///
    /// # Errors
    /// When the value has no JSON form.
    pub fn set_json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), BodyError> {
        self.replace(serde_json::to_vec(value)?);
        Ok(())
    }

    /// What goes on instead of the piece; `None` when the piece goes on as it came.
    pub(super) fn into_output(self) -> Option<Bytes> {
        match self.output? {
            Output::One(data) => Some(data),
            Output::Many(data) => Some(data.freeze()),
        }
    }
}

fn joined(a: &[u8], b: &[u8]) -> Output {
    let mut many = BytesMut::with_capacity(a.len() + b.len());
    many.extend_from_slice(a);
    many.extend_from_slice(b);
    Output::Many(many)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(pieces: &[&'static str], each: impl Fn(&mut Body<'_>)) -> Vec<Option<Bytes>> {
        let mut gathered = Gathered::default();
        let count = pieces.len();
        let piece = |(n, data): (usize, &&'static str)| {
            let mut body = Body::new(
                Bytes::from_static(data.as_bytes()),
                if n + 1 == count {
                    Extent::Last
                } else {
                    Extent::Piece
                },
                &mut gathered,
                10,
            );
            each(&mut body);
            body.into_output()
        };
        pieces.iter().enumerate().map(piece).collect()
    }

    #[test]
    fn an_untouched_piece_goes_on_as_it_is() {
        assert_eq!(
            outputs(&["a", ""], |body| assert!(body.data().len() < 2)),
            [None, None]
        );
    }

    #[test]
    fn pushed_data_follows_what_was_left() {
        let out = outputs(&["a"], |body| {
            body.push("b");
            body.push("c");
        });
        assert_eq!(out, [Some(Bytes::from("abc"))]);
    }

    #[test]
    fn taken_data_is_gone_until_pushed() {
        assert_eq!(
            outputs(&["a"], |body| drop(body.take())),
            [Some(Bytes::new())]
        );
    }

    #[test]
    fn the_whole_body_comes_with_the_last_piece() {
        let out = outputs(&["ab", "cd", ""], |body| {
            if let Some(whole) = body.whole().unwrap() {
                assert_eq!(whole, "abcd");
                body.push("!");
            }
        });
        assert_eq!(
            out,
            [
                Some(Bytes::new()),
                Some(Bytes::new()),
                Some(Bytes::from("abcd!"))
            ]
        );
    }

    #[test]
    fn a_body_over_the_bound_is_an_error() {
        outputs(&["0123456789a", ""], |body| {
            if !body.is_last() {
                assert!(matches!(
                    body.whole(),
                    Err(BodyError::TooLarge { limit: 10 })
                ));
            }
        });
    }
}
