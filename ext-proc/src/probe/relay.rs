//! Stands between a proxy and a processor, passes every message on as it is, and records it.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::Pin,
    task::{Context, Poll},
};

use attache_service::{Channel, GrpcStream, Host, Method, channel::frame_message};
use bytes::{Buf, BufMut, Bytes};
use futures_util::Stream;
use http::{HeaderMap, header};
use tonic::{
    Code, Status, Streaming,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::{Grpc, NamedService, StreamingService},
    service::Routes,
};
use tower::Service;

use super::{
    recording::{ExchangeLog, Recorder},
    run::PROCESS,
};

/// Largest message that is passed on.
pub const MAX_MESSAGE: usize = 64 << 20;

/// The service that stands in the processor's place.
#[derive(Clone)]
pub struct Relay {
    upstream: Channel,
    recorder: Recorder,
}

impl Relay {
    /// Passes exchanges on to the processor behind `upstream`, which should accept messages of
    /// [`MAX_MESSAGE`].
    pub fn new(upstream: Channel, recorder: Recorder) -> Self {
        Self { upstream, recorder }
    }

    /// The relay as a server.
    pub fn into_host(self) -> Host {
        Host::new(Routes::default()).service(self)
    }
}

impl NamedService for Relay {
    const NAME: &'static str = "envoy.service.ext_proc.v3.ExternalProcessor";
}

impl Service<http::Request<tonic::body::Body>> for Relay {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        if request.uri().path() != PROCESS {
            return Box::pin(ready(Ok(
                Status::unimplemented("no such method").into_http()
            )));
        }
        let relay = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(Raw).max_decoding_message_size(MAX_MESSAGE);
            Ok(grpc.streaming(relay, request).await)
        })
    }
}

impl StreamingService<Bytes> for Relay {
    type Response = Bytes;
    type ResponseStream = Relayed;
    type Future = Ready<Result<tonic::Response<Relayed>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let (metadata, _, incoming) = request.into_parts();
        let metadata = passed_on(metadata.into_headers());
        ready(Ok(tonic::Response::new(Relayed {
            log: self.recorder.open(metadata.clone()),
            upstream: self.upstream.stream(&Method::new(PROCESS), metadata),
            incoming: Some(incoming),
            ended: false,
        })))
    }
}

/// The metadata without what belongs to one call on one connection.
fn passed_on(mut metadata: HeaderMap) -> HeaderMap {
    for name in [header::TE, header::CONTENT_TYPE, header::CONTENT_LENGTH] {
        metadata.remove(name);
    }
    metadata.remove("grpc-accept-encoding");
    metadata.remove("grpc-encoding");
    metadata
}

/// One exchange on its way through.
pub struct Relayed {
    log: ExchangeLog,
    upstream: GrpcStream,
    /// The proxy's messages; gone when it has half-closed.
    incoming: Option<Streaming<Bytes>>,
    ended: bool,
}

impl Relayed {
    /// Passes on what the proxy has sent, as far as the processor takes it.
    fn pump(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        while let Some(incoming) = &mut self.incoming {
            if self.upstream.poll_capacity(cx).is_pending() {
                return Ok(());
            }
            match Pin::new(incoming).poll_next(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(message))) => {
                    self.upstream.send(frame_message(&message));
                    self.log.request(message);
                }
                Poll::Ready(None) => {
                    self.incoming = None;
                    self.upstream.finish();
                    self.log.half_close();
                }
                // The proxy has reset the stream; so do we when this is dropped.
                Poll::Ready(Some(Err(status))) => return Err(status),
            }
        }
        Ok(())
    }
}

impl Stream for Relayed {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Err(status) = self.pump(cx) {
            self.ended = true;
            return Poll::Ready(Some(Err(status)));
        }
        match self.upstream.poll_message(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(message))) => {
                self.log.response(message.clone());
                Poll::Ready(Some(Ok(message)))
            }
            Poll::Ready(end) => {
                self.ended = true;
                match &end {
                    Some(Err(status)) => self.log.end(status.code(), status.message()),
                    _ => self.log.end(Code::Ok, ""),
                }
                Poll::Ready(end)
            }
        }
    }
}

/// Messages as the bytes they are.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
