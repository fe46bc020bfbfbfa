//! The clients: connections of four kinds that are kept busy, and made again when the proxy closes
//! them politely.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response, Uri, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;

use super::tally::Tally;
use super::visit::{Bodies, GENERATION_HEADER, TENANT, Visit};
use crate::certificates::NAME;
use crate::protocol::Protocol;

/// No answer takes this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections that a request is offered to, each of which may be about to close.
const OFFERS: u32 = 5;

/// One connection, and what makes it again.
pub(crate) struct Client {
    pub(crate) protocol: Protocol,
    pub(crate) target: SocketAddr,
    pub(crate) tls: Option<TlsConnector>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) bodies: Arc<Bodies>,
    /// Requests a second of all clients together.
    pub(crate) rate: f64,
    pub(crate) live: Mutex<Option<Sender>>,
}

/// Takes requests for a connection.
#[derive(Clone)]
pub(crate) enum Sender {
    Http1(Arc<Mutex<http1::SendRequest<Full<Bytes>>>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    /// Visits until the run is over. Clients have different first turns, so that not all do the
    /// same at the same time.
    pub(crate) async fn run(&self, first: u64) {
        for turn in first.. {
            let visit = Visit::of(turn);
            let Some(before) = self.tally.next(visit.requests()) else {
                return;
            };
            let due = Duration::from_secs_f64(before as f64 / self.rate);
            sleep_until(Instant::from_std(self.tally.start()) + due).await;
            let tenant = match visit {
                Visit::Limited => format!("tenant-{before}"),
                _ => TENANT.to_owned(),
            };
            for number in 0..visit.requests() {
                let asked = timeout(PATIENCE, self.ask(visit, number, &tenant)).await;
                match asked {
                    Ok(Ok(generation)) => self.tally.answered(visit, generation),
                    Ok(Err(why)) => {
                        let why = format!("{why:#}");
                        self.tally.request_failed(self.protocol, visit, why);
                    }
                    Err(_) => {
                        let why = format!("no answer within {PATIENCE:?}");
                        self.tally.request_failed(self.protocol, visit, why);
                    }
                }
            }
        }
    }

    /// Asks once and checks the answer; gives the number of the configuration that it came from.
    async fn ask(&self, visit: Visit, number: u64, tenant: &str) -> anyhow::Result<Option<u64>> {
        let mut request = self.request(visit, tenant)?;
        for _ in 0..OFFERS {
            let sender = self.sender().await?;
            let response = match sender {
                Sender::Http1(sender) => {
                    let mut sender = sender.lock().await;
                    sender.try_send_request(request).await
                }
                Sender::Http2(mut sender) => sender.try_send_request(request).await,
            };
            match response {
                Ok(response) => return self.answer(visit, number, response).await,
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => {
                        let error = failed.into_error();
                        if !is_unseen(&error) {
                            return Err(chain(&error));
                        }
                        request = self.request(visit, tenant)?;
                    }
                },
            }
            self.tally.moved();
            self.live.lock().await.take();
        }
        anyhow::bail!("{OFFERS} connections took no request")
    }

    async fn answer(
        &self,
        visit: Visit,
        number: u64,
        response: Response<Incoming>,
    ) -> anyhow::Result<Option<u64>> {
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| {
            let status = head.status;
            chain(&error).context(format!("{status}, but the body broke off"))
        })?;
        let body = body.to_bytes();
        let checked = self
            .bodies
            .check(visit, number, head.status, &head.headers, &body);
        checked.map_err(anyhow::Error::msg)?;
        let generation = head.headers.get(GENERATION_HEADER);
        Ok(generation.and_then(|value| value.to_str().ok()?.parse().ok()))
    }

    fn request(&self, visit: Visit, tenant: &str) -> anyhow::Result<Request<Full<Bytes>>> {
        let uri = match self.protocol {
            Protocol::Http1 | Protocol::Tls1 => Uri::from_static(visit.path()),
            Protocol::Http2 => format!("http://{NAME}{}", visit.path()).parse()?,
            Protocol::Tls2 => format!("https://{NAME}{}", visit.path()).parse()?,
        };
        let mut request = Request::builder()
            .method(visit.method())
            .uri(uri)
            .header(header::ACCEPT, "application/json, text/plain, */*")
            .header(header::ACCEPT_LANGUAGE, "en-GB,en;q=0.8,de;q=0.5")
            .header(
                header::COOKIE,
                "session=6f1c2a9e4b7d4c0f8e3a; theme=dark; consent=1",
            )
            .header("x-tenant", tenant);
        if self.protocol.shares() {
            request = request.version(Version::HTTP_2);
        } else {
            request = request.header(header::HOST, NAME);
        }
        Ok(request.body(Full::new(self.bodies.request(visit)))?)
    }

    /// The connection; a new one where the last one takes no more requests.
    async fn sender(&self) -> anyhow::Result<Sender> {
        let mut live = self.live.lock().await;
        let usable = match live.as_mut() {
            None => false,
            Some(Sender::Http1(sender)) => sender.lock().await.ready().await.is_ok(),
            Some(Sender::Http2(sender)) => sender.ready().await.is_ok(),
        };
        if let Some(sender) = live.as_ref().filter(|_| usable) {
            return Ok(sender.clone());
        }
        let sender = self.connect().await?;
        *live = Some(sender.clone());
        Ok(sender)
    }

    async fn connect(&self) -> anyhow::Result<Sender> {
        let stream = TcpStream::connect(self.target).await;
        let stream = stream.context("cannot connect")?;
        stream.set_nodelay(true)?;
        self.tally.connected();
        match &self.tls {
            None => self.handshake(stream).await,
            Some(tls) => {
                let name = ServerName::try_from(NAME)?;
                let stream = tls.connect(name, stream).await.context("TLS failed")?;
                self.handshake(stream).await
            }
        }
    }

    async fn handshake<S>(&self, stream: S) -> anyhow::Result<Sender>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        let (tally, protocol) = (self.tally.clone(), self.protocol);
        let ended = move |ended: hyper::Result<()>| {
            if let Err(error) = ended {
                tally.failed(
                    &format!("{protocol} connection"),
                    format!("{:#}", chain(&error)),
                );
            }
        };
        if self.protocol.shares() {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
                .await
                .map_err(|error| chain(&error))?;
            tokio::spawn(async move { ended(connection.await) });
            Ok(Sender::Http2(sender))
        } else {
            let (sender, connection) = http1::handshake(io).await.map_err(|error| chain(&error))?;
            tokio::spawn(async move { ended(connection.await) });
            Ok(Sender::Http1(Arc::new(Mutex::new(sender))))
        }
    }
}

/// Whether the proxy closed the connection without having seen the request, which crossed its
/// GOAWAY: every client may send such a one again (RFC 9113 §6.8). That it was not seen shows where
/// a tenant's requests are counted.
fn is_unseen(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error);
    cause
        .and_then(|cause| cause.downcast_ref::<h2::Error>())
        .is_some_and(|error| {
            error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
        })
}

/// An error of hyper with its causes.
fn chain(error: &hyper::Error) -> anyhow::Error {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    anyhow::Error::msg(text)
}
