//! Load for a gRPC service: many calls at a time on one HTTP/2 connection, as
//! a proxy's worker makes them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::TcpStream;

use crate::cpu::Process;
use crate::samples::Samples;
use crate::window::{Clients, Gate, Measured, Window};

/// Window of a stream, and of the connection: never the bottleneck.
const WINDOW: u32 = 1 << 20;

/// How many take turns in making paced calls: so many may wait for their answers at a time.
const PACED_CLIENTS: u32 = 64;

/// A unary call, and how to tell that its answer is right.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// `/package.Service/Method`.
    path: &'static str,
    /// The requests in their frames, to be sent in turn.
    framed: Arc<[Bytes]>,
    /// How many calls were made, by all clones together.
    made: Arc<AtomicUsize>,
    check: fn(&[u8]) -> anyhow::Result<()>,
}

impl Call {
    /// A call of `path`; `check` looks at the encoded answer.
    pub(crate) fn new(
        path: &'static str,
        request: &impl Message,
        check: fn(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Call> {
        Call::of_many(path, std::slice::from_ref(request), check)
    }

    /// Calls of `path` with each of these requests in turn.
    pub(crate) fn of_many(
        path: &'static str,
        requests: &[impl Message],
        check: fn(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Call> {
        let framed: Vec<Bytes> = requests.iter().map(framed).collect::<anyhow::Result<_>>()?;
        ensure!(!framed.is_empty(), "no request");
        Ok(Call {
            path,
            framed: framed.into(),
            made: Arc::default(),
            check,
        })
    }

    /// How many different requests there are.
    pub(crate) fn requests(&self) -> u64 {
        self.framed.len() as u64
    }

    /// How many calls were made so far, counted or not.
    pub(crate) fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    /// Makes the call once.
    pub(crate) async fn probe(&self, target: SocketAddr) -> anyhow::Result<()> {
        let client = connect(target).await?;
        self.once(client, &request(target, self.path)?).await
    }

    /// Makes the call `streams` at a time through the window.
    pub(crate) async fn run(
        &self,
        target: SocketAddr,
        streams: u32,
        window: &Window,
        processes: &[Process],
    ) -> anyhow::Result<Measured> {
        let gate = window.gate();
        let client = connect(target).await?;
        let call = Arc::new(self.clone());
        let mut clients = Clients::new();
        for _ in 0..streams {
            let request = request(target, self.path)?;
            let (call, client, gate) = (call.clone(), client.clone(), gate.clone());
            clients.spawn(async move { call.repeat(client, &request, &gate).await });
        }
        window.measure(clients, &gate, processes).await
    }

    /// Makes the call `rate` times a second through the window. A latency counts from when the
    /// call was due, so a service that stalls is not asked less.
    pub(crate) async fn run_paced(
        &self,
        target: SocketAddr,
        rate: u32,
        window: &Window,
        processes: &[Process],
    ) -> anyhow::Result<Measured> {
        let gate = window.gate();
        let client = connect(target).await?;
        let call = Arc::new(self.clone());
        let between = Duration::from_secs(1) * PACED_CLIENTS / rate;
        let start = tokio::time::Instant::now();
        let mut clients = Clients::new();
        for number in 0..PACED_CLIENTS {
            let request = request(target, self.path)?;
            let (call, client, gate) = (call.clone(), client.clone(), gate.clone());
            let first = start + between * number / PACED_CLIENTS;
            clients.spawn(async move {
                let mut due = tokio::time::interval_at(first, between);
                let mut samples = Samples::default();
                while gate.open() {
                    let due = due.tick().await;
                    call.once(client.clone(), &request).await?;
                    if gate.counts() {
                        samples.add(due.elapsed());
                    }
                }
                Ok(samples)
            });
        }
        window.measure(clients, &gate, processes).await
    }

    async fn repeat(
        &self,
        client: SendRequest<Bytes>,
        request: &Request<()>,
        gate: &Gate,
    ) -> anyhow::Result<Samples> {
        let mut samples = Samples::default();
        let mut start = Instant::now();
        while gate.open() {
            self.once(client.clone(), request).await?;
            let now = Instant::now();
            if gate.counts() {
                samples.add(now - start);
            }
            start = now;
        }
        Ok(samples)
    }

    async fn once(&self, client: SendRequest<Bytes>, request: &Request<()>) -> anyhow::Result<()> {
        let mut client = client.ready().await.context("the connection is gone")?;
        let (response, mut send) = client.send_request(request.clone(), false)?;
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let framed = self.framed.get(number % self.framed.len());
        send.send_data(framed.context("no request")?.clone(), true)?;
        let response = response.await.context("no response")?;
        ensure!(response.status() == 200, "status {}", response.status());
        let (head, mut body) = response.into_parts();
        let mut message = Bytes::new();
        while let Some(piece) = body.data().await {
            let piece = piece?;
            body.flow_control().release_capacity(piece.len())?;
            message = if message.is_empty() {
                piece
            } else {
                [message, piece].concat().into()
            };
        }
        let trailers = body.trailers().await?.unwrap_or(head.headers);
        succeeded(&trailers)?;
        match message.get(..5) {
            Some(&[0, a, b, c, d])
                if u32::from_be_bytes([a, b, c, d]) as usize == message.len() - 5 => {}
            _ => bail!("not one message: {} bytes", message.len()),
        }
        (self.check)(message.get(5..).unwrap_or_default())
    }
}

/// A message in its frame.
pub(crate) fn framed(message: &impl Message) -> anyhow::Result<Bytes> {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.encoded_len())?);
    message.encode(&mut framed)?;
    Ok(framed.freeze())
}

/// The head of a call.
pub(crate) fn request(target: SocketAddr, path: &str) -> anyhow::Result<Request<()>> {
    Request::post(format!("http://{target}{path}"))
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "20S")
        .body(())
        .context("a bad request")
}

/// A connection to a service.
pub(crate) async fn connect(target: SocketAddr) -> anyhow::Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(target)
        .await
        .with_context(|| format!("cannot connect to {target}"))?;
    stream.set_nodelay(true)?;
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(stream)
        .await
        .context("no HTTP/2")?;
    // Its failure shows in every call on it.
    tokio::spawn(connection);
    Ok(client)
}

/// Whether a call ended well.
pub(crate) fn succeeded(trailers: &HeaderMap) -> anyhow::Result<()> {
    match trailers.get("grpc-status") {
        Some(status) if status == "0" => Ok(()),
        Some(status) => bail!("grpc-status {status:?}: {:?}", trailers.get("grpc-message")),
        None => bail!("no grpc-status"),
    }
}
