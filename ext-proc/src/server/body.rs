//! Bodies as a processor sees them: pieces in, pieces out, whatever the mode.

use bytes::{Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

use super::exchange::Exchange;

/// What is carried from one piece of a body to the next.
#[derive(Debug, Default)]
pub(super) struct Carry {
    /// Held back: it comes before the next piece.
    held: Bytes,
    /// Gathered by those who want the whole.
    gathered: BytesMut,
}

impl Carry {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.gathered.is_empty()
    }
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
    /// It ended with trailers while a part of it was held back: all its pieces are answered, so
    /// nothing can carry the rest.
    #[error(
        "a body in STREAMED mode ends with trailers while a part of it is held back, \
         and nothing can carry that any more: configure BUFFERED or FULL_DUPLEX_STREAMED"
    )]
    Trailers,
    /// The proxy does not do what was asked for.
    #[error(
        "the proxy sends pieces of a body that was to be BUFFERED: it ignores mode overrides, \
         or does not allow this one"
    )]
    NotBuffered,
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
    /// What is known of the exchange; dynamic metadata goes out through it.
    pub exchange: Exchange,
    data: Bytes,
    extent: Extent,
    carry: &'a mut Carry,
    limit: usize,
    announces_trailers: bool,
    /// What goes on, once it differs from what came.
    output: Option<Output>,
    /// What came: to go on if the handler fails.
    came: Bytes,
    /// How much was gathered before.
    gathered_before: usize,
    /// The whole of what was gathered, once it was given out.
    whole: Option<Bytes>,
}

#[derive(Debug)]
enum Output {
    One(Bytes),
    Many(BytesMut),
}

impl<'a> Body<'a> {
    pub(super) fn new(
        piece: Bytes,
        extent: Extent,
        carry: &'a mut Carry,
        limit: usize,
        exchange: Exchange,
    ) -> Self {
        let held = std::mem::take(&mut carry.held);
        // What was held back goes on with this piece unless it is taken: that is a change.
        let (data, output) = match held.is_empty() {
            true => (piece, None),
            false => (joined(&held, &piece), Some(Output::One(Bytes::new()))),
        };
        Self {
            came: data.clone(),
            gathered_before: carry.gathered.len(),
            exchange,
            data,
            extent,
            carry,
            limit,
            announces_trailers: false,
            output,
            whole: None,
        }
    }

    /// The head announced trailers, and nothing can follow the last piece.
    pub(super) fn announcing_trailers(mut self, announces_trailers: bool) -> Self {
        self.announces_trailers = announces_trailers;
        self
    }

    /// Whether this is a body in STREAMED mode whose head announced trailers (`trailer`, or a gRPC
    /// content type): what is held back of it could not be sent, so nothing may be.
    pub fn announces_trailers(&self) -> bool {
        self.announces_trailers
    }

    /// The data of this piece, after what was held back of those before. It goes on unless it is
    /// taken or replaced.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Whether this is the last piece. Streamed bodies often end with an empty one.
    ///
    /// In STREAMED mode a body that ends with trailers has no last piece. In FULL_DUPLEX_STREAMED
    /// mode it has an empty one, when the trailers have come.
    pub fn is_last(&self) -> bool {
        self.extent == Extent::Last
    }

    /// Whether more follows that is not shown: the body is larger than the buffer of a proxy in
    /// BUFFERED_PARTIAL mode, or trailers end it.
    pub fn is_beginning(&self) -> bool {
        self.extent == Extent::Beginning
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
        self.add(kept);
        self.add(data);
    }

    fn add(&mut self, data: Bytes) {
        self.output = Some(match self.output.take() {
            None => Output::One(data),
            Some(Output::One(first)) if first.is_empty() => Output::One(data),
            Some(output) if data.is_empty() => output,
            Some(Output::One(first)) => {
                let mut many = BytesMut::with_capacity((first.len() + data.len()) * 2);
                many.extend_from_slice(&first);
                many.extend_from_slice(&data);
                Output::Many(many)
            }
            Some(Output::Many(mut many)) => {
                many.extend_from_slice(&data);
                Output::Many(many)
            }
        });
    }

    /// Holds back the end of what was taken, which a later piece may have to be seen with: the
    /// next piece comes after it. What is held back with the last piece goes on as it is.
    ///
    /// In STREAMED mode the end of a body may come without a last piece, namely with trailers;
    /// then what is held back cannot be sent any more, which is an error
    /// ([`BodyError::Trailers`]): at once where the head announces trailers, else when they come.
    pub fn hold(&mut self, end: Bytes) {
        self.output.get_or_insert(Output::One(Bytes::new()));
        self.carry.held = end;
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
        if self.carry.gathered.len() + self.data.len() > self.limit {
            return Err(BodyError::TooLarge { limit: self.limit });
        }
        if self.is_beginning() {
            return Err(BodyError::Partial);
        }
        if self.is_last() && self.carry.gathered.is_empty() {
            return Ok(Some(self.data.clone()));
        }
        let data = self.take();
        self.carry.gathered.extend_from_slice(&data);
        if !self.is_last() {
            return Ok(None);
        }
        let whole = self.carry.gathered.split().freeze();
        self.whole = Some(whole.clone());
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

    /// Changes the whole body as JSON, with its last piece; see [`Body::whole`].
    ///
    /// # Errors
    /// When the body is too large or not that JSON.
    pub fn edit_json<T, F>(&mut self, edit: F) -> Result<(), BodyError>
    where
        T: DeserializeOwned + Serialize,
        F: FnOnce(&mut T),
    {
        if let Some(mut value) = self.json()? {
            edit(&mut value);
            self.set_json(&value)?;
        }
        Ok(())
    }

    /// Puts a value as JSON in place of the body.
    ///
    /// # Errors
    /// When the value has no JSON form.
    pub fn set_json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), BodyError> {
        self.replace(serde_json::to_vec(value)?);
        Ok(())
    }

    /// Whether as much was held back as may be.
    pub(super) fn check(&self) -> Result<(), BodyError> {
        if self.carry.held.len() > self.limit {
            return Err(BodyError::TooLarge { limit: self.limit });
        }
        if self.announces_trailers && !self.is_last() && !self.carry.is_empty() {
            return Err(BodyError::Trailers);
        }
        Ok(())
    }

    /// What goes on instead of the piece; `None` when the piece goes on as it came.
    pub(super) fn into_output(mut self) -> (Exchange, Option<Bytes>) {
        if self.output.is_some() && !self.data.is_empty() {
            // Held back before, and not touched now.
            let data = std::mem::take(&mut self.data);
            self.push(data);
        }
        if self.extent != Extent::Piece && !self.carry.held.is_empty() {
            let held = std::mem::take(&mut self.carry.held);
            self.add(held);
        }
        let output = self.output.map(|output| match output {
            Output::One(data) => data,
            Output::Many(data) => data.freeze(),
        });
        (self.exchange, output)
    }

    /// All that came and has not gone on.
    pub(super) fn into_input(self) -> (Exchange, Bytes) {
        self.carry.held = Bytes::new();
        let before = match &self.whole {
            Some(whole) => whole.slice(..self.gathered_before.min(whole.len())),
            None => {
                self.carry.gathered.truncate(self.gathered_before);
                self.carry.gathered.split().freeze()
            }
        };
        let came = match before.is_empty() {
            true => self.came,
            false => joined(&before, &self.came),
        };
        (self.exchange, came)
    }
}

fn joined(a: &[u8], b: &[u8]) -> Bytes {
    let mut both = BytesMut::with_capacity(a.len() + b.len());
    both.extend_from_slice(a);
    both.extend_from_slice(b);
    both.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(pieces: &[&'static str], each: impl Fn(&mut Body<'_>)) -> Vec<Option<Bytes>> {
        let mut carry = Carry::default();
        let count = pieces.len();
        let piece = |(n, data): (usize, &&'static str)| {
            let mut body = Body::new(
                Bytes::from_static(data.as_bytes()),
                if n + 1 == count {
                    Extent::Last
                } else {
                    Extent::Piece
                },
                &mut carry,
                10,
                Exchange::default(),
            );
            each(&mut body);
            body.into_output().1
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
    fn what_is_held_back_comes_before_the_next_piece() {
        let out = outputs(&["ab", "cd", "ef"], |body| {
            let mut data = body.take();
            let end = data.split_off(data.len() - 1);
            body.push(data);
            body.hold(end);
        });
        // With the last piece it goes on.
        assert_eq!(out, ["a", "bc", "def"].map(|data| Some(Bytes::from(data))));
    }

    #[test]
    fn what_is_held_back_and_then_left_alone_goes_on() {
        let out = outputs(&["ab", "cd"], |body| {
            if !body.is_last() {
                let data = body.take();
                body.hold(data);
            }
        });
        assert_eq!(out, [Some(Bytes::new()), Some(Bytes::from("abcd"))]);
    }

    fn piece<'a>(carry: &'a mut Carry, data: &'static str, extent: Extent) -> Body<'a> {
        Body::new(data.into(), extent, carry, 10, Exchange::default())
    }

    #[test]
    fn a_failed_handler_gives_back_all_that_has_not_gone_on() {
        for hold in [true, false] {
            let mut carry = Carry::default();
            let mut first = piece(&mut carry, "ab", Extent::Piece);
            if hold {
                let data = first.take();
                first.hold(data);
            } else {
                assert!(first.whole().unwrap().is_none());
            }
            assert_eq!(first.into_output().1, Some(Bytes::new()));

            let mut second = piece(&mut carry, "cd", Extent::Last);
            assert!(second.whole().unwrap().is_some());
            assert_eq!(second.into_input().1, "abcd", "{hold}");
            assert!(carry.is_empty());
        }
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
