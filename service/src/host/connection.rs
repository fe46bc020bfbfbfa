//! One server connection: TLS, HTTP/2, drain.

use std::{future::pending, pin::pin, sync::atomic::Ordering, time::Duration};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use rand::Rng as _;
use tonic::service::Routes;

use super::{calls::Calls, preface::PrefaceDeadline, services::Services};
use crate::{Io, gather::gather, listen::Socket, shutdown::Shutdown, tls::ServerTls};

/// What one call may have unread. Small beside [`CONNECTION_WINDOW`], so that calls whose handler
/// does not read do not stop the others on the connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 64 << 20;
/// Large enough for a 64 KiB body chunk with its frame in one DATA frame.
const MAX_FRAME_SIZE: u32 = 128 << 10;
const MAX_CONCURRENT_STREAMS: u32 = 10_000;
/// Calls that a client may cancel before we have looked at them. A proxy under load cancels many
/// at once when its deadline is short; losing the connection would make that worse.
const MAX_PENDING_RESETS: usize = 2048;
/// Late frames for calls that have ended, over a connection's life. They are no attack here: a
/// processor that answers early leaves body frames under way.
const MAX_LATE_FRAMES: usize = 1 << 30;
const MAX_HEADER_LIST_SIZE: u32 = 64 << 10;
/// A peer that vanished without a word is noticed after interval + timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bound on the TLS handshake, and on the wait for the HTTP/2 preface.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How old connections may grow (gRPC's `MaxConnectionAge` and `MaxConnectionAgeGrace`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionAge {
    /// A connection is told to take no more calls at about this age: a tenth more or less, so
    /// that those that began together do not end together.
    pub max: Duration,
    /// So much later it is closed, whatever calls still run.
    pub grace: Duration,
}

impl ConnectionAge {
    fn of_this_one(self) -> Duration {
        self.max.mul_f64(rand::rng().random_range(0.9..=1.1))
    }
}

/// What every connection of a host shares.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) services: Services,
    pub(super) tls: Option<ServerTls>,
    pub(super) age: Option<ConnectionAge>,
    pub(super) drain: Shutdown,
}

impl Server {
    /// Serves one accepted socket until it closes or the drain has finished it.
    pub(super) async fn serve_socket(self, socket: Socket) {
        if let Err(error) = self.secure(socket.boxed()).await {
            tracing::debug!(%error, "connection ended");
        }
    }

    async fn secure(self, io: Box<dyn Io>) -> Result<(), BoxError> {
        let Some(tls) = &self.tls else {
            return self.serve_newcomer(io).await;
        };
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(io));
        let io = tokio::select! {
            io = handshake => io??,
            () = self.drain.recv() => return Ok(()),
        };
        self.serve_newcomer(Box::new(io)).await
    }

    /// Serves a peer that has yet to prove that it speaks HTTP/2.
    async fn serve_newcomer(self, io: Box<dyn Io>) -> Result<(), BoxError> {
        let io = PrefaceDeadline::new(io, HANDSHAKE_TIMEOUT);
        let spoken = io.spoken();
        self.serve(Box::new(io), move || spoken.load(Ordering::Relaxed))
            .await
    }

    /// Speaks HTTP/2 on `io`. A drain, and the connection's age, send GOAWAY and let the calls in
    /// flight finish; when the peer has not `spoken` yet, it just closes, for hyper would wait until it has.
    pub(super) async fn serve(
        self,
        io: Box<dyn Io>,
        spoken: impl Fn() -> bool,
    ) -> Result<(), BoxError> {
        let (io, sender) = gather(io);
        let calls = Calls::default();
        let connection = http2::Builder::new(calls.clone())
            .timer(TokioTimer::new())
            .adaptive_window(false)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME_SIZE)
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LATE_FRAMES)
            .max_header_list_size(MAX_HEADER_LIST_SIZE)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .serve_connection(TokioIo::new(io), self.services);
        let mut connection = pin!(connection);
        let old = async {
            match self.age {
                Some(age) => tokio::time::sleep(age.of_this_one()).await,
                None => pending().await,
            }
        };
        let grace = tokio::select! {
            ended = sender.drive(calls.begin(connection.as_mut())) => return Ok(ended?),
            () = self.drain.recv() => None,
            () = old => self.age.map(|age| age.grace),
        };
        if !spoken() {
            return Ok(());
        }
        connection.as_mut().graceful_shutdown();
        let too_old = async {
            match grace {
                Some(grace) => tokio::time::sleep(grace).await,
                None => pending().await,
            }
        };
        tokio::select! {
            ended = sender.drive(calls.begin(connection.as_mut())) => Ok(ended?),
            () = self.drain.recv_immediate() => Ok(()),
            () = too_old => Ok(()),
        }
    }
}

/// Reflection (v1 and v1alpha) of the named services.
pub(super) fn with_reflection(
    routes: Routes,
    names: &[String],
    descriptors: &[&'static [u8]],
) -> Result<Routes, tonic_reflection::server::Error> {
    let sets = [
        attache_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
    ];
    let health = tonic_health::pb::health_server::SERVICE_NAME;
    let builder = || {
        let mut builder = tonic_reflection::server::Builder::configure();
        for set in sets.iter().chain(descriptors) {
            builder = builder.register_encoded_file_descriptor_set(set);
        }
        for name in names.iter().map(String::as_str).chain([health]) {
            builder = builder.with_service_name(name);
        }
        builder
    };
    Ok(routes
        .add_service(builder().build_v1()?)
        .add_service(builder().build_v1alpha()?))
}
