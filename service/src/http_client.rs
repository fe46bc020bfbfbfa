//! The HTTP client of policies that are asked over plain HTTP: one request, one whole answer.
//!
//! An [`HttpClient`] belongs to one worker and one cluster. It speaks HTTP/1.1 or HTTP/2 over
//! TCP, Unix sockets or TLS, balances over the cluster's endpoints and keeps a few connections to each. An
//! HTTP/1.1 request that meets a kept connection just as the server closes it is sent again on a
//! new one; an HTTP/2 request fails then.

mod connections;

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, Version, header, uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;

use connections::{Aging, Http1, Pool};

use crate::{
    ChannelSettings,
    cluster::{
        Balancer, Endpoint, InFlight,
        breakers::{Breakers, Overflow, Permit, Resource},
        outlier::Outcome,
    },
};

/// A request that waits for a connection looks this often: those of other workers become free
/// unseen.
const LOOKS_EVERY: Duration = Duration::from_millis(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No connection.
    #[error("cannot reach {target} of cluster `{cluster}`: {reason}")]
    Connect {
        /// The endpoint.
        target: String,
        /// The cluster.
        cluster: Arc<str>,
        /// What went wrong.
        reason: io::Error,
    },
    /// The cluster has no endpoints.
    #[error("cluster `{0}` has no endpoints")]
    NoEndpoint(Arc<str>),
    /// The cluster's `circuit_breakers` leave no room.
    #[error("{reason} `{cluster}`")]
    Overflow {
        /// The cluster.
        cluster: Arc<str>,
        /// What there is too much of.
        reason: Overflow,
    },
    /// No whole answer in time.
    #[error("no answer from cluster `{cluster}` within {timeout:?}")]
    Timeout {
        /// The cluster.
        cluster: Arc<str>,
        /// The bound.
        timeout: Duration,
    },
    /// The connection broke, or what came was not HTTP.
    #[error("the answer of cluster `{cluster}` broke off: {reason}")]
    Broken {
        /// The cluster.
        cluster: Arc<str>,
        /// What went wrong.
        reason: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The body of the answer is too long.
    #[error("the answer of cluster `{cluster}` is longer than {limit} bytes")]
    TooLarge {
        /// The cluster.
        cluster: Arc<str>,
        /// The bound in bytes.
        limit: usize,
    },
}

/// An HTTP client for one cluster, owned by one worker. Cheap to clone.
#[derive(Clone)]
pub struct HttpClient {
    inner: Arc<Inner>,
}

struct Inner {
    settings: ChannelSettings,
    speaks_http2: bool,
    balancer: Balancer<Pool>,
}

impl HttpClient {
    /// A client that connects when it is asked to. It speaks HTTP/1.1 unless `http2` is set.
    pub fn new(settings: ChannelSettings, http2: bool) -> Self {
        let endpoints = settings.endpoints.clone();
        Self {
            inner: Arc::new(Inner {
                balancer: Balancer::new(endpoints, settings.balance, |_| Pool::default()),
                settings,
                speaks_http2: http2,
            }),
        }
    }

    /// The cluster's name.
    pub fn name(&self) -> &Arc<str> {
        &self.inner.settings.name
    }

    /// What may be in use of the cluster at a time, where somebody bounds it.
    pub fn breakers(&self) -> Option<&Breakers> {
        Some(&*self.inner.settings.guards.as_ref()?.breakers)
    }

    /// Sends a request and reads its whole answer.
    ///
    /// The host is that of the URI, else the `host` header, else the cluster's name. `timeout`
    /// bounds everything, connecting included; `max_body` bounds the answer's body, in bytes.
    ///
    /// # Errors
    /// See [`HttpError`]. Any HTTP status is an answer.
    pub async fn request(
        &self,
        request: Request<Bytes>,
        timeout: Duration,
        max_body: usize,
    ) -> Result<Response<Bytes>, HttpError> {
        self.inner.answer(request, timeout, max_body).await
    }
}

impl Inner {
    async fn answer(
        &self,
        request: Request<Bytes>,
        timeout: Duration,
        max_body: usize,
    ) -> Result<Response<Bytes>, HttpError> {
        let Some(local) = self.balancer.pick(None) else {
            return Err(HttpError::NoEndpoint(self.settings.name.clone()));
        };
        let _room = self.admit(Resource::Requests)?;
        let mut at = InFlight::new(local);
        let mut has_head = false;
        let answer = self.ask(&at, request, max_body, &mut has_head);
        let answer = tokio::time::timeout(timeout, answer).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(HttpError::Timeout {
                cluster: self.settings.name.clone(),
                timeout,
            })
        });
        match &answer {
            Ok(_) => at.answered(),
            Err(error) => {
                at.failed();
                self.failed(&at.endpoint, error, has_head);
            }
        }
        answer
    }

    /// Room for one of these, where the cluster limits them.
    fn admit(&self, resource: Resource) -> Result<Option<Permit>, HttpError> {
        let Some(guards) = &self.settings.guards else {
            return Ok(None);
        };
        guards
            .admit(resource)
            .map_err(|reason| HttpError::Overflow {
                cluster: self.settings.name.clone(),
                reason,
            })
    }

    /// The cluster's breakers, where they limit anything but retries.
    fn breakers(&self) -> Option<&Breakers> {
        let guards = self.settings.guards.as_ref()?;
        Some(&*guards.breakers).filter(|breakers| breakers.limit())
    }

    /// Tells who judges endpoints that one has failed.
    fn failed(&self, endpoint: &Endpoint, error: &HttpError, has_head: bool) {
        let outcome = match error {
            HttpError::Connect { .. } | HttpError::Broken { .. } => Outcome::Broken,
            HttpError::Timeout { .. } if !has_head => Outcome::TimedOut,
            HttpError::NoEndpoint(_)
            | HttpError::Overflow { .. }
            | HttpError::Timeout { .. }
            | HttpError::TooLarge { .. } => return,
        };
        if let Some(guards) = &self.settings.guards {
            guards.ended(&self.settings.endpoints, endpoint, outcome);
        }
    }

    /// `has_head` is set when the head of the answer has come.
    async fn ask(
        &self,
        at: &InFlight<Pool>,
        request: Request<Bytes>,
        max_body: usize,
        has_head: &mut bool,
    ) -> Result<Response<Bytes>, HttpError> {
        let request = self.prepared(request);
        let (response, kept) = if self.speaks_http2 {
            let mut sender = self.http2(at).await?;
            let response = sender.send_request(request).await;
            (response.map_err(|e| self.broken(e))?, None)
        } else {
            let (response, sender) = self.http1(at, request).await?;
            (response, Some(sender))
        };
        *has_head = true;
        if let Some(guards) = &self.settings.guards {
            let (status, headers) = (response.status(), response.headers());
            guards.answered(&self.settings.endpoints, &at.endpoint, status, headers);
        }
        let response = self.read(response, max_body).await?;
        if let Some(sender) = kept {
            at.own.keep(sender);
        }
        Ok(response)
    }

    /// The request with the form of URI that its protocol wants.
    fn prepared(&self, request: Request<Bytes>) -> Request<Full<Bytes>> {
        let (mut parts, body) = request.into_parts();
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        let path = uri.path_and_query.take();
        let path = path.unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
        let host = match uri.authority.take() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => parts.headers.get(header::HOST).cloned(),
        };
        let host = host.or_else(|| HeaderValue::from_str(&self.settings.name).ok());
        let host = host.unwrap_or_else(|| HeaderValue::from_static("localhost"));
        if self.speaks_http2 {
            parts.headers.remove(header::HOST);
            parts.version = Version::HTTP_2;
            let authority = uri::Authority::try_from(host.as_bytes());
            let scheme = match self.settings.tls {
                Some(_) => uri::Scheme::HTTPS,
                None => uri::Scheme::HTTP,
            };
            let authority = authority.unwrap_or_else(|_| uri::Authority::from_static("localhost"));
            let whole = Uri::builder()
                .scheme(scheme)
                .authority(authority)
                .path_and_query(path);
            // Has all three parts, so it cannot fail.
            parts.uri = whole.build().unwrap_or_default();
        } else {
            parts.version = Version::HTTP_11;
            parts.headers.insert(header::HOST, host);
            parts.uri = path.into();
        }
        Request::from_parts(parts, Full::new(body))
    }

    async fn http1(
        &self,
        at: &InFlight<Pool>,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Aging<Http1>), HttpError> {
        let mut pending = None;
        let room = loop {
            while let Some(mut sender) = at.own.take_kept() {
                drop(pending.take());
                match sender.connection.try_send_request(request).await {
                    Ok(response) => return Ok((response, sender)),
                    Err(mut error) => match error.take_message() {
                        Some(unsent) => request = unsent,
                        None => return Err(self.broken(error.into_error())),
                    },
                }
            }
            let Some(breakers) = self.breakers() else {
                break None;
            };
            let waits = pending.is_some();
            if !waits {
                pending = self.admit(Resource::PendingRequests)?;
            }
            if let Some(room) = at.own.open.take(breakers) {
                break Some(room);
            }
            if !waits {
                breakers.overflow(Resource::Connections);
            }
            tokio::time::sleep(LOOKS_EVERY).await;
        };
        let io = self.connect(&at.endpoint).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(io))
            .await
            .map_err(|e| self.broken(e))?;
        tokio::spawn(connection);
        drop(pending);
        let response = sender.send_request(request).await;
        Ok((
            response.map_err(|e| self.broken(e))?,
            self.aging(sender, room),
        ))
    }

    async fn read(
        &self,
        response: Response<Incoming>,
        max_body: usize,
    ) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = response.into_parts();
        match Limited::new(body, max_body).collect().await {
            Ok(body) => Ok(Response::from_parts(parts, body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => Err(HttpError::TooLarge {
                cluster: self.settings.name.clone(),
                limit: max_body,
            }),
            Err(error) => Err(self.broken(error)),
        }
    }

    fn broken(&self, reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> HttpError {
        HttpError::Broken {
            cluster: self.settings.name.clone(),
            reason: reason.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hyper::{server::conn, service::service_fn};
    use hyper_util::rt::TokioExecutor;
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        Metrics,
        channel::Target,
        cluster::{
            Guards, LbPolicy, Outliers, Trouble,
            breakers::{Breakers, BreakersPlan},
            outlier::Detector,
        },
        config::Document,
    };

    const SECOND: Duration = Duration::from_secs(1);

    /// A server that echoes what it is sent, and the number of connections made to it.
    async fn server(http2: bool, close: bool) -> (Target, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let io = TokioIo::new(io);
                let service = service_fn(echo);
                tokio::spawn(async move {
                    if http2 {
                        let builder = conn::http2::Builder::new(TokioExecutor::new());
                        builder.serve_connection(io, service).await
                    } else {
                        let mut builder = conn::http1::Builder::new();
                        builder.keep_alive(!close);
                        builder.serve_connection(io, service).await
                    }
                });
            }
        });
        (Target::Address(address.parse().unwrap()), connections)
    }

    async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let path = request.uri().path().to_owned();
        let host = match request.headers().get(header::HOST) {
            Some(host) => host.to_str().unwrap().to_owned(),
            None => request.uri().authority().unwrap().to_string(),
        };
        let body = request.into_body().collect().await?.to_bytes();
        if path == "/hang" {
            std::future::pending::<()>().await;
        }
        let response = Response::builder().status(203).header("x-host", host);
        Ok(response.body(Full::new(body)).unwrap())
    }

    fn client(target: Target, http2: bool) -> HttpClient {
        HttpClient::new(ChannelSettings::new("c", vec![target]), http2)
    }

    fn post(uri: &str, body: &'static str) -> Request<Bytes> {
        Request::post(uri).body(Bytes::from(body)).unwrap()
    }

    #[tokio::test]
    async fn requests_share_a_connection_in_both_protocols() {
        for http2 in [false, true] {
            let (target, connections) = server(http2, false).await;
            let client = client(target, http2);
            for _ in 0..3 {
                let request = post("http://h.test/p", "hello");
                let answer = client.request(request, SECOND, 100).await.unwrap();
                assert_eq!(answer.status(), 203);
                assert_eq!(answer.headers()["x-host"], "h.test");
                assert_eq!(answer.body(), "hello");
            }
            assert_eq!(connections.load(Ordering::Relaxed), 1);
        }
    }

    #[tokio::test]
    async fn connections_that_the_server_closes_are_made_anew() {
        let (target, connections) = server(false, true).await;
        let client = client(target, false);
        for _ in 0..3 {
            let answer = client.request(post("/p", "hello"), SECOND, 100).await;
            assert_eq!(answer.unwrap().headers()["x-host"], "c");
        }
        assert_eq!(connections.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_is_not_read() {
        let (target, _) = server(false, false).await;
        let client = client(target, false);
        let answer = client.request(post("/p", "hello"), SECOND, 4).await;
        assert!(matches!(answer, Err(HttpError::TooLarge { limit: 4, .. })));
    }

    #[tokio::test]
    async fn silence_ends_at_the_deadline() {
        let (target, _) = server(false, false).await;
        let client = client(target, false);
        let limit = Duration::from_millis(20);
        let answer = client.request(post("/hang", ""), limit, 4).await;
        assert!(matches!(answer, Err(HttpError::Timeout { .. })));
    }

    #[tokio::test]
    async fn an_endpoint_where_nobody_listens_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let client = client(Target::Address(address.parse().unwrap()), false);
        let error = client.request(post("/", ""), SECOND, 4).await.unwrap_err();
        assert!(error.to_string().contains(&address), "{error}");
    }

    /// Guards with these settings.
    fn guards(breakers: &str, outliers: &str) -> Guards {
        let metrics = Metrics::default();
        let document = Document::parse("guards.yaml", breakers).unwrap();
        let (raw, mut errors) = document.decode_partly();
        let breakers = BreakersPlan::plan(&raw.unwrap(), &mut errors);
        let document = Document::parse("guards.yaml", outliers).unwrap();
        let detector = Detector::plan(&document.decode_partly().0.unwrap(), &mut errors);
        errors.into_result(Some(())).unwrap();
        Guards {
            breakers: Breakers::new(breakers, "c", &metrics),
            outliers: Some(Outliers::new(detector, "c", &metrics)),
            checked: false,
        }
    }

    fn guarded(targets: Vec<Target>, guards: Guards) -> HttpClient {
        let mut settings = ChannelSettings::new("c", targets);
        settings.guards = Some(guards);
        settings.balance.policy = LbPolicy::RoundRobin;
        HttpClient::new(settings, false)
    }

    #[tokio::test]
    async fn a_request_over_the_limit_fails_at_once() {
        let (target, _) = server(false, false).await;
        let guards = guards("{ thresholds: [{ max_requests: 1 }] }", "{}");
        let client = guarded(vec![target], guards.clone());
        let hanging = client.request(post("/hang", ""), SECOND, 100);
        let refused = async {
            while guards.breakers.snapshot().max_requests.unwrap().used == 0 {
                tokio::task::yield_now().await;
            }
            client.request(post("/", ""), SECOND, 100).await
        };
        tokio::select! {
            _ = hanging => panic!("an answer"),
            refused = refused => {
                assert!(matches!(refused, Err(HttpError::Overflow { .. })), "{refused:?}");
            }
        }
        let again = client.request(post("/", ""), SECOND, 100).await;
        assert_eq!(again.unwrap().status(), 203);
    }

    #[tokio::test]
    async fn a_request_that_needs_a_connection_more_waits_for_one_that_becomes_free() {
        let (target, connections) = server(false, false).await;
        let guards = guards("{ thresholds: [{ max_connections: 1 }] }", "{}");
        let client = guarded(vec![target], guards.clone());
        let ask = || client.request(post("/", "hello"), SECOND, 100);
        let answers = tokio::join!(ask(), ask(), ask());
        for answer in [answers.0, answers.1, answers.2] {
            assert_eq!(answer.unwrap().status(), 203);
        }
        assert_eq!(connections.load(Ordering::Relaxed), 1);
        let snapshot = guards.breakers.snapshot();
        assert_eq!(snapshot.max_connections.unwrap().used, 1);
        assert_eq!(snapshot.max_pending_requests.unwrap().used, 0);
    }

    #[tokio::test]
    async fn no_more_requests_wait_for_a_connection_than_may() {
        let (target, _) = server(false, false).await;
        let limits = "{ thresholds: [{ max_connections: 1, max_pending_requests: 1 }] }";
        let guards = guards(limits, "{}");
        let client = guarded(vec![target], guards.clone());
        let pending = || {
            guards
                .breakers
                .snapshot()
                .max_pending_requests
                .unwrap()
                .used
        };
        let hanging = client.request(post("/hang", ""), SECOND, 100);
        let waiting = async {
            let open = || guards.breakers.snapshot().max_connections.unwrap().used;
            while open() == 0 || pending() > 0 {
                tokio::task::yield_now().await;
            }
            client.request(post("/", ""), SECOND, 100).await
        };
        let refused = async {
            while guards.breakers.snapshot().max_requests.unwrap().used < 2 || pending() == 0 {
                tokio::task::yield_now().await;
            }
            client.request(post("/", ""), SECOND, 100).await
        };
        tokio::select! {
            _ = hanging => panic!("an answer"),
            _ = waiting => panic!("a second connection"),
            refused = refused => {
                assert!(matches!(refused, Err(HttpError::Overflow { .. })), "{refused:?}");
            }
        }
    }

    #[tokio::test]
    async fn every_endpoint_may_have_a_connection() {
        let (one, _) = server(false, false).await;
        let (other, _) = server(false, false).await;
        let guards = guards("{ thresholds: [{ max_connections: 1 }] }", "{}");
        let client = guarded(vec![one, other], guards);
        for _ in 0..4 {
            let answer = client.request(post("/", ""), SECOND, 100).await;
            assert_eq!(answer.unwrap().status(), 203);
        }
    }

    #[tokio::test]
    async fn endpoints_that_do_not_answer_are_ejected() {
        let nowhere = Target::Address("127.0.0.1:1".parse().unwrap());
        for (bad, path) in [(nowhere, "/"), (server(false, false).await.0, "/hang")] {
            let (good, _) = server(false, false).await;
            let outliers = "{ consecutive_5xx: 1, max_ejection_percent: 100 }";
            let client = guarded(vec![bad, good], guards("{}", outliers));
            let timeout = Duration::from_millis(100);
            for _ in 0..2 {
                let _ = client.request(post(path, ""), timeout, 100).await;
            }
            let members = client.inner.settings.endpoints.members();
            let mut ejected = members
                .iter()
                .map(|member| member.endpoint.is_in(Trouble::Ejected));
            assert!(ejected.any(|ejected| ejected), "{path}");
        }
    }
}
