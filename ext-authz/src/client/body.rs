//! Showing a request body to the auth service and passing it on whole.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use attache_filter::{
    Body, BoxError,
    buffer::{Buffered, buffer},
};
use bytes::Bytes;
use http::{HeaderMap, Method, header, request};
use http_body::{Body as _, Frame, SizeHint};

use super::plan::BodyPlan;

/// A body after buffering.
pub(crate) enum Held {
    /// This much of it is shown; the second is the body to pass on, whole.
    Shown(Shown, Body),
    /// It is larger than allowed.
    TooLarge,
}

/// What is shown of a body.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Shown {
    pub(crate) data: Bytes,
    pub(crate) partial: bool,
    /// How much of the body was read.
    pub(crate) received: usize,
}

/// Whether a request is buffered at all. WebSocket upgrades and tunnels have no body to wait
/// for; other upgrades cannot be taken at their word, or any body could be hidden.
pub(crate) fn has_body(parts: &request::Parts, body: &Body) -> bool {
    let upgrade = parts.headers.get(header::UPGRADE);
    let websocket = parts.method == Method::GET
        && upgrade.is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    !body.is_end_stream() && parts.method != Method::CONNECT && !websocket
}

/// Reads as much of a body as the plan wants to show. A part of a body is held within `bound`,
/// which a whole one is not subject to, as in Envoy.
pub(crate) async fn hold(body: Body, plan: BodyPlan, bound: usize) -> Result<Held, BoxError> {
    // A check on a part goes out as soon as the part is full, not when more is known to follow.
    let limit = match plan.partial {
        true => (plan.max - 1).min(bound),
        false => plan.max,
    };
    Ok(match buffer(body, limit).await? {
        Buffered::Whole { data, trailers } => {
            let shown = Shown {
                data: data.clone(),
                partial: false,
                received: data.len(),
            };
            let body = match trailers {
                None => data.into(),
                Some(_) => Body::new(WithTrailers { data, trailers }),
            };
            Held::Shown(shown, body)
        }
        Buffered::Over { .. } if !plan.partial => Held::TooLarge,
        Buffered::Over { data, .. } if data.len() < plan.max => Held::TooLarge,
        Buffered::Over { data, rest } => {
            let shown = Shown {
                data: data.slice(..data.len().min(plan.max)),
                partial: data.len() > plan.max || !rest.is_end_stream(),
                received: data.len(),
            };
            Held::Shown(shown, Body::new(Replay { data, rest }))
        }
    })
}

/// A body that was read whole. Its length is not told: HTTP/1.1 has no place for trailers behind
/// a body of known length.
struct WithTrailers {
    data: Bytes,
    trailers: Option<HeaderMap>,
}

impl http_body::Body for WithTrailers {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if !self.data.is_empty() {
            let data = std::mem::take(&mut self.data);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        Poll::Ready(self.trailers.take().map(|t| Ok(Frame::trailers(t))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }
}

/// A body whose beginning was read already.
struct Replay {
    data: Bytes,
    rest: Body,
}

impl http_body::Body for Replay {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.data.is_empty() {
            return Pin::new(&mut self.rest).poll_frame(cx);
        }
        let data = std::mem::take(&mut self.data);
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.rest.size_hint();
        let held = self.data.len() as u64;
        let lower = hint.lower().saturating_add(held);
        match hint.upper().and_then(|upper| upper.checked_add(held)) {
            Some(upper) => hint.set_upper(upper),
            None => hint = SizeHint::new(),
        }
        hint.set_lower(lower);
        hint
    }
}
