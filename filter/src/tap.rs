//! What is kept of the bodies of a request that somebody looks at in full.

use std::sync::{Arc, Mutex, PoisonError};

use http_body::Body as _;

use crate::Body;

/// Bytes of each body that are kept: its beginning.
pub const MAX_KEPT: usize = 64 << 10;

/// The bodies of one request, each as far as [`MAX_KEPT`].
#[derive(Debug, Default)]
pub struct Tap {
    /// The request's, as the client sent it.
    pub received: Kept,
    /// The request's, as it went to the upstream.
    pub sent: Kept,
    /// The response's, as it came from the upstream.
    pub answered: Kept,
    /// The response's, as the client got it.
    pub returned: Kept,
}

/// The beginning of a body.
#[derive(Debug, Default)]
pub struct Kept(Mutex<Beginning>);

/// What of a body there is.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// Its first bytes.
    pub bytes: Vec<u8>,
    /// How many it had altogether.
    pub total: u64,
}

impl Kept {
    /// The next piece of the body.
    pub fn add(&self, piece: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_KEPT.saturating_sub(kept.bytes.len()).min(piece.len());
        kept.bytes.extend(piece.iter().take(room));
        kept.total = kept.total.saturating_add(piece.len() as u64);
    }

    /// What there is so far.
    pub fn beginning(&self) -> Beginning {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clone()
    }
}

/// `body`, of which the beginning is kept in that one of the tap's bodies.
pub fn tapped(body: Body, tap: &Arc<Tap>, which: fn(&Tap) -> &Kept) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let tap = tap.clone();
    body.watched(move |frame, _| {
        if let Some(Ok(frame)) = frame
            && let Some(data) = frame.data_ref()
        {
            which(&tap).add(data);
        }
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn the_beginning_of_a_body_is_kept_and_all_of_it_goes_on() {
        let tap = Arc::new(Tap::default());
        let whole = vec![b'x'; MAX_KEPT + 5];
        let body = tapped(Body::from(Bytes::from(whole.clone())), &tap, |tap| {
            &tap.sent
        });
        assert_eq!(body.collect().await.unwrap().to_bytes(), whole);
        let kept = tap.sent.beginning();
        assert_eq!(
            (kept.bytes.len(), kept.total),
            (MAX_KEPT, whole.len() as u64)
        );
        assert_eq!(tap.received.beginning(), Beginning::default());
    }
}
