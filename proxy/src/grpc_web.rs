//! gRPC-Web calls of browsers, passed on as gRPC: Envoy's `envoy.filters.http.grpc_web`.
//!
//! A browser can neither read trailers nor, in its text form, receive bytes as they come. So the
//! trailers of a call become the last frame of its body, and a text body is base64, piece by
//! piece.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use attache_filter::{
    Body, BoxError, LocalReply, RequestContext,
    head::is_grpc,
    reply::{ReplyForm, grpc_status_of},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, response,
};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::filters::{Handle, PolicyFuture, Stack};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const BINARY: HeaderValue = HeaderValue::from_static("application/grpc-web+proto");
const TEXT: HeaderValue = HeaderValue::from_static("application/grpc-web-text+proto");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// The bit of a frame's first byte that says that it holds trailers.
const TRAILERS: u8 = 0x80;
/// Bytes of an answer that is no gRPC that are told as `grpc-message`.
const MOST_MESSAGE: usize = 4096;
/// What a `grpc-message` cannot hold as it is.
const MESSAGE_ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// The filter.
pub(crate) struct GrpcWeb {
    pub(crate) inner: Stack,
}

impl Handle for GrpcWeb {
    fn call(&self, request: Request<Body>) -> PolicyFuture {
        let context = request.extensions().get::<Arc<RequestContext>>();
        // An answer on its way inward belongs to somebody further outside.
        let answered = context.is_some_and(|context| context.is_answered());
        let form = Form::of(request.headers()).filter(|_| !answered);
        let Some(form) = form else {
            return self.inner.handle(request);
        };
        let inner = self.inner.clone();
        Box::pin(async move {
            let method = request.method().clone();
            let (request, faulty) = form.request(request);
            let mut response = inner.handle(request).await?;
            if faulty.is_some_and(|faulty| faulty.load(Ordering::Relaxed)) {
                let reply = LocalReply::new(StatusCode::BAD_REQUEST, "grpc_base_64_decode_failed");
                let reply = reply.with_body("Bad gRPC-web request, invalid base64 data.");
                let grpc = ReplyForm {
                    grpc: true,
                    head: method == Method::HEAD,
                };
                response = reply.into_response(grpc);
            }
            Ok(form.response(response).await)
        })
    }
}

/// How a call is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    /// The request is text.
    text_request: bool,
    /// The response is to be text.
    text_response: bool,
}

/// Whether a media type is gRPC-Web, and whether in its text form.
fn is_text(value: &HeaderValue) -> Option<bool> {
    let value = value.to_str().ok()?;
    let media_type = value.split(';').next().unwrap_or_default().trim();
    match media_type {
        "application/grpc-web" | "application/grpc-web+proto" => Some(false),
        "application/grpc-web-text" | "application/grpc-web-text+proto" => Some(true),
        _ => None,
    }
}

impl Form {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let text_request = is_text(headers.get(header::CONTENT_TYPE)?)?;
        let accepted = headers.get(header::ACCEPT).and_then(is_text);
        Some(Self {
            text_request,
            text_response: accepted == Some(true),
        })
    }

    /// The call as gRPC, and what tells whether its text turned out to be none.
    fn request(self, request: Request<Body>) -> (Request<Body>, Option<Arc<AtomicBool>>) {
        let (mut parts, body) = request.into_parts();
        let headers = &mut parts.headers;
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, GRPC);
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let faulty = self.text_request.then(Arc::<AtomicBool>::default);
        let body = match &faulty {
            Some(faulty) => Body::new(Decoded {
                body,
                kept: BytesMut::new(),
                faulty: faulty.clone(),
            }),
            None => body,
        };
        (Request::from_parts(parts, body), faulty)
    }

    /// The answer as gRPC-Web.
    async fn response(self, response: Response<Body>) -> Response<Body> {
        let (mut parts, body) = response.into_parts();
        let web = parts.headers.get(header::CONTENT_TYPE).and_then(is_text);
        let is_call = is_grpc(&parts.headers) || web.is_some();
        if parts.status != StatusCode::OK || !is_call {
            return self.told(parts, body).await;
        }
        parts
            .headers
            .insert(header::CONTENT_TYPE, self.media_type());
        if body.is_end_stream() {
            return Response::from_parts(parts, body);
        }
        parts.headers.remove(header::CONTENT_LENGTH);
        let body = Encoded {
            body,
            text: self.text_response,
            ended: false,
        };
        Response::from_parts(parts, Body::new(body))
    }

    fn media_type(self) -> HeaderValue {
        match self.text_response {
            true => TEXT,
            false => BINARY,
        }
    }

    /// An answer that is no gRPC, told as the status of the call. Its own status stays.
    async fn told(self, mut parts: response::Parts, mut body: Body) -> Response<Body> {
        let mut message = BytesMut::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Some(data) = frame.data_ref() else {
                continue;
            };
            let room = MOST_MESSAGE.saturating_sub(message.len());
            message.extend_from_slice(data.get(..room).unwrap_or(data));
            if message.len() >= MOST_MESSAGE {
                break;
            }
        }
        let status = HeaderValue::from(grpc_status_of(parts.status));
        let headers = &mut parts.headers;
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::TRANSFER_ENCODING);
        headers.insert(header::CONTENT_TYPE, self.media_type());
        headers.entry(STATUS).or_insert(status);
        let message = percent_encode(&message, MESSAGE_ESCAPED).to_string();
        if let Ok(message) = HeaderValue::try_from(message)
            && !message.is_empty()
        {
            headers.insert(MESSAGE, message);
        }
        Response::from_parts(parts, Body::empty())
    }
}

/// A body of base64, decoded as it comes.
struct Decoded {
    body: Body,
    /// The beginning of a group of four that is not whole yet.
    kept: BytesMut,
    /// Set when it is no base64.
    faulty: Arc<AtomicBool>,
}

/// Why a text body is refused.
#[derive(Debug, thiserror::Error)]
#[error("the gRPC-Web request is not base64")]
struct NotBase64;

impl Decoded {
    fn refuse(&self, error: NotBase64) -> BoxError {
        self.faulty.store(true, Ordering::Relaxed);
        error.into()
    }

    fn decode(&mut self, data: &[u8]) -> Result<Bytes, NotBase64> {
        self.kept.extend_from_slice(data);
        let whole = self.kept.len() - self.kept.len() % 4;
        let text = self.kept.split_to(whole);
        let mut decoded = Vec::with_capacity(whole / 4 * 3);
        let mut rest: &[u8] = &text;
        // Each message may be padded of its own.
        while !rest.is_empty() {
            let padded = rest.chunks(4).position(|group| group.contains(&b'='));
            let length = padded.map_or(rest.len(), |nth| (nth + 1) * 4);
            let (part, more) = rest.split_at_checked(length).ok_or(NotBase64)?;
            STANDARD
                .decode_vec(part, &mut decoded)
                .map_err(|_| NotBase64)?;
            rest = more;
        }
        Ok(decoded.into())
    }
}

impl HttpBody for Decoded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            return Poll::Ready(match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => match self.decode(&data) {
                        Ok(data) if data.is_empty() => continue,
                        Ok(data) => Some(Ok(Frame::data(data))),
                        Err(error) => Some(Err(self.refuse(error))),
                    },
                    Err(trailers) => Some(Ok(trailers)),
                },
                None if !self.kept.is_empty() => {
                    self.kept.clear();
                    Some(Err(self.refuse(NotBase64)))
                }
                other => other,
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.kept.is_empty() && self.body.is_end_stream()
    }
}

/// A body whose trailers are its last frame, in base64 where that is wanted.
struct Encoded {
    body: Body,
    text: bool,
    ended: bool,
}

impl Encoded {
    fn written(&self, data: Bytes) -> Frame<Bytes> {
        Frame::data(match self.text {
            // Each piece is padded of its own, so that none waits for the next.
            true => STANDARD.encode(&data).into(),
            false => data,
        })
    }
}

/// Trailers as a frame.
fn trailer_frame(trailers: &HeaderMap) -> Bytes {
    let mut text = Vec::new();
    for (name, value) in trailers {
        text.extend_from_slice(name.as_str().as_bytes());
        text.push(b':');
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    let mut frame = BytesMut::with_capacity(text.len().saturating_add(5));
    frame.put_u8(TRAILERS);
    // Trailers are bounded far below that.
    frame.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&text);
    frame.freeze()
}

impl HttpBody for Encoded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(match frame.into_data() {
                Ok(data) => self.written(data),
                Err(frame) => {
                    self.ended = true;
                    let trailers = frame.into_trailers().unwrap_or_default();
                    self.written(trailer_frame(&trailers))
                }
            })),
            other => other,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::StreamBody;
    use proptest::prelude::*;

    use super::*;

    fn pieces(pieces: Vec<Bytes>) -> Body {
        let pieces = pieces
            .into_iter()
            .map(|piece| Ok::<_, BoxError>(Frame::data(piece)));
        Body::new(StreamBody::new(stream::iter(pieces)))
    }

    async fn decoded(parts: Vec<Bytes>) -> Result<Bytes, BoxError> {
        let body = Decoded {
            body: pieces(parts),
            kept: BytesMut::new(),
            faulty: Arc::default(),
        };
        Ok(body.collect().await?.to_bytes())
    }

    proptest! {
        #[test]
        fn text_is_decoded_however_it_is_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..5),
            length in 1usize..9,
        ) {
            let text: String = messages.iter().map(|message| STANDARD.encode(message)).collect();
            let cut = text.as_bytes().chunks(length).map(Bytes::copy_from_slice).collect();
            let decoded = futures_util::FutureExt::now_or_never(decoded(cut)).unwrap().unwrap();
            prop_assert_eq!(decoded.to_vec(), messages.concat());
        }

        #[test]
        fn no_text_makes_it_panic(text in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = futures_util::FutureExt::now_or_never(decoded(vec![text.into()])).unwrap();
        }
    }

    #[tokio::test]
    async fn a_text_that_ends_within_a_group_is_refused() {
        assert!(decoded(vec!["AAA".into()]).await.is_err());
        assert!(decoded(vec!["AA=A".into()]).await.is_err());
    }

    #[tokio::test]
    async fn trailers_are_the_last_frame() {
        let mut trailers = HeaderMap::new();
        trailers.insert(STATUS, HeaderValue::from_static("0"));
        let frames = [Frame::data(Bytes::from("abc")), Frame::trailers(trailers)];
        let frames = frames.map(Ok::<_, BoxError>);
        let body = Encoded {
            body: Body::new(StreamBody::new(stream::iter(frames))),
            text: false,
            ended: false,
        };
        let body = body.collect().await.unwrap();
        assert!(body.trailers().is_none());
        assert_eq!(&body.to_bytes()[..], b"abc\x80\0\0\0\x0fgrpc-status:0\r\n");
    }

    #[test]
    fn only_web_calls_are_changed() {
        for (content_type, accept, wanted) in [
            ("application/grpc", "", None),
            ("application/grpc-webby", "", None),
            ("application/grpc-web", "", Some((false, false))),
            (
                "application/grpc-web+proto; a=b",
                "*/*",
                Some((false, false)),
            ),
            (
                "application/grpc-web-text",
                "application/grpc-web-text",
                Some((true, true)),
            ),
            (
                "application/grpc-web",
                "application/grpc-web-text+proto",
                Some((false, true)),
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            let form = Form::of(&headers).map(|form| (form.text_request, form.text_response));
            assert_eq!(form, wanted, "{content_type}");
        }
    }
}
