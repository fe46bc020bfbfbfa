//! Try a processor in memory: the client layer plays the proxy.
//!
//! ```
//! use attache_ext_proc::{
//!     server::{Processor, RequestHead, Result},
//!     testing::Proxy,
//! };
//! use http::Request;
//!
//! #[derive(Clone)]
//! struct AddHeader;
//!
//! impl Processor for AddHeader {
//!     async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
//!         Ok(request.headers.insert("x-seen", "yes")?)
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let exchange = Proxy::new(AddHeader).send(Request::new("".into())).await;
//! assert_eq!(exchange.response.status(), 200);
//! assert_eq!(exchange.forwarded().headers()["x-seen"], "yes");
//! # }
//! ```

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use attache_filter::{Body, BoxError, Channels};
use attache_service::{Channel, ChannelSettings, Metrics, channel::Target};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tower::{Layer, ServiceExt, service_fn};

use crate::{
    client::{BodyMode, ExtProcLayer, Filter},
    server::{Processor, Server},
};

/// A proxy in memory, with a processor and an upstream that gives a fixed answer.
pub struct Proxy {
    server: Server,
    filter: Filter,
    answer: (http::response::Parts, Vec<Bytes>),
    request_trailers: Option<HeaderMap>,
    response_trailers: Option<HeaderMap>,
}

/// What came of one exchange.
#[derive(Debug)]
pub struct Exchange {
    /// What the upstream received; `None` when it was not asked.
    pub upstream: Option<Request<Bytes>>,
    /// Trailers that the upstream received.
    pub upstream_trailers: Option<HeaderMap>,
    /// What the caller got.
    pub response: Response<Bytes>,
    /// Trailers of the response.
    pub trailers: Option<HeaderMap>,
    /// The response body broke off; `response` has no body then.
    pub broken: Option<BoxError>,
}

impl Exchange {
    /// The request that the upstream received.
    ///
    /// # Panics
    /// When the upstream was not asked.
    #[expect(clippy::panic, reason = "tests want to fail here")]
    pub fn forwarded(&self) -> &Request<Bytes> {
        match &self.upstream {
            Some(request) => request,
            None => panic!(
                "the upstream was not asked; the answer was {:?}",
                self.response
            ),
        }
    }
}

impl Proxy {
    /// A proxy in front of clones of `processor`, with Envoy's default settings.
    pub fn new<P: Processor + Clone + Sync>(processor: P) -> Self {
        Self::of(Server::new(processor))
    }

    /// A proxy in front of a processor with settings of its own.
    pub fn of(server: Server) -> Self {
        Self {
            server,
            filter: Filter::new("testing", "processor"),
            answer: (Response::new(()).into_parts().0, Vec::new()),
            request_trailers: None,
            response_trailers: None,
        }
    }

    /// Shows bodies in these modes; trailers too, where full duplex wants them.
    #[must_use]
    pub fn bodies(self, request: BodyMode, response: BodyMode) -> Self {
        self.filter(|filter| {
            let modes = &mut filter.modes;
            (modes.request_body, modes.response_body) = (request, response);
            modes.request_trailers |= request == BodyMode::FullDuplexStreamed;
            modes.response_trailers |= response == BodyMode::FullDuplexStreamed;
        })
    }

    /// Ends requests that have a body with these trailers.
    #[must_use]
    pub fn request_trailers(mut self, trailers: HeaderMap) -> Self {
        self.request_trailers = Some(trailers);
        self
    }

    /// Ends the upstream's answer with these trailers.
    #[must_use]
    pub fn upstream_trailers(mut self, trailers: HeaderMap) -> Self {
        self.response_trailers = Some(trailers);
        self
    }

    /// Changes the settings of the proxy's filter.
    #[must_use]
    pub fn filter(mut self, change: impl FnOnce(&mut Filter)) -> Self {
        change(&mut self.filter);
        self
    }

    /// The upstream's answer. Default: 200 without a body.
    #[must_use]
    pub fn upstream(self, response: Response<impl Into<Bytes>>) -> Self {
        let (mut head, body) = response.into_parts();
        let body = body.into();
        head.headers
            .entry("content-length")
            .or_insert(body.len().into());
        self.upstream_pieces(Response::from_parts(head, ()), [body])
    }

    /// The upstream's answer with a body that comes in pieces.
    #[must_use]
    pub fn upstream_pieces(
        mut self,
        head: Response<()>,
        pieces: impl IntoIterator<Item = impl Into<Bytes>>,
    ) -> Self {
        let pieces = pieces.into_iter().map(Into::into).collect();
        self.answer = (head.into_parts().0, pieces);
        self
    }

    /// Sends a request with this body, and its `content-length` if there is one.
    pub async fn send(&self, request: Request<Bytes>) -> Exchange {
        let (mut head, body) = request.into_parts();
        if !body.is_empty() {
            head.headers
                .entry("content-length")
                .or_insert(body.len().into());
        }
        let body = match &self.request_trailers {
            None => Body::from(body),
            some => pieces_of(vec![body], some.clone()),
        };
        self.exchange(Request::from_parts(head, body)).await
    }

    /// Sends a request whose body comes in pieces.
    pub async fn send_pieces(
        &self,
        head: Request<()>,
        pieces: impl IntoIterator<Item = impl Into<Bytes>>,
    ) -> Exchange {
        let pieces = pieces.into_iter().map(Into::into).collect();
        let trailers = self.request_trailers.clone();
        self.exchange(head.map(|()| pieces_of(pieces, trailers)))
            .await
    }

    async fn exchange(&self, request: Request<Body>) -> Exchange {
        let embedded = Target::Embedded(self.server.clone().into_host().embedded());
        let channel = Channel::new(ChannelSettings::new("processor", vec![embedded]));
        let channels: Channels = [channel].into_iter().collect();
        let layer = ExtProcLayer::new(
            Arc::new(self.filter.clone()),
            &channels,
            &Metrics::default(),
        );
        let received = Arc::<Mutex<Option<(Request<Bytes>, Option<HeaderMap>)>>>::default();
        let note = received.clone();
        let (head, pieces) = self.answer.clone();
        let trailers = self.response_trailers.clone();
        let upstream = service_fn(move |request: Request<Body>| {
            let note = note.clone();
            let response =
                Response::from_parts(head.clone(), pieces_of(pieces.clone(), trailers.clone()));
            async move {
                let (head, body) = request.into_parts();
                // A request that breaks off was not received.
                if let Ok(body) = body.collect().await {
                    let trailers = body.trailers().cloned();
                    let request = Request::from_parts(head, body.to_bytes());
                    *note.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some((request, trailers));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let Ok(response) = layer.layer(upstream).oneshot(request).await;
        let (head, body) = response.into_parts();
        let (body, trailers, broken) = match body.collect().await {
            Ok(collected) => {
                let trailers = collected.trailers().cloned();
                (collected.to_bytes(), trailers, None)
            }
            Err(error) => (Bytes::new(), None, Some(error)),
        };
        let upstream = received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let (upstream, upstream_trailers) = upstream.unzip();
        Exchange {
            upstream,
            upstream_trailers: upstream_trailers.flatten(),
            response: Response::from_parts(head, body),
            trailers,
            broken,
        }
    }
}

fn pieces_of(pieces: Vec<Bytes>, trailers: Option<HeaderMap>) -> Body {
    if pieces.iter().all(Bytes::is_empty) && trailers.is_none() {
        return Body::empty();
    }
    let frames = pieces.into_iter().map(Frame::data);
    let frames = frames.chain(trailers.map(Frame::trailers));
    Body::new(StreamBody::new(futures_util::stream::iter(
        frames.map(Ok::<_, Infallible>),
    )))
}
