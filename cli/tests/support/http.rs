//! A client with deadlines, and an origin that says what it saw.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A connection that is kept as long as the proxy keeps it.
pub struct Client {
    at: SocketAddr,
    connection: Option<SendRequest<Empty<Bytes>>>,
    /// Bound on one request.
    pub deadline: Duration,
    /// Connections made so far.
    pub connections: usize,
}

/// A whole response.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

impl Client {
    pub fn new(at: SocketAddr) -> Self {
        Self {
            at,
            connection: None,
            deadline: super::PATIENCE,
            connections: 0,
        }
    }

    /// One request without a body. An error when it is not answered within the deadline.
    pub async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Answer, Error> {
        self.ask(Method::GET, path, headers).await
    }

    /// The same, to change something.
    pub async fn post(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Answer, Error> {
        self.ask(Method::POST, path, headers).await
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer, Error> {
        let deadline = self.deadline;
        let asked = self.try_ask(method, path, headers);
        let outcome = tokio::time::timeout(deadline, asked).await;
        match outcome {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                self.connection = None;
                Err(error)
            }
            Err(_) => {
                self.connection = None;
                Err(format!("no answer to {path} within {:?}", self.deadline).into())
            }
        }
    }

    async fn try_ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer, Error> {
        if let Some(connection) = &mut self.connection
            && connection.ready().await.is_err()
        {
            self.connection = None;
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let stream = TcpStream::connect(self.at).await?;
                stream.set_nodelay(true)?;
                let (sender, driver) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(driver);
                self.connections += 1;
                none.insert(sender)
            }
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.at.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = connection.send_request(request.body(Empty::new())?).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}

/// One request on its own connection.
pub async fn get(at: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Answer {
    Client::new(at).get(path, headers).await.unwrap()
}

/// An origin that answers 200 and the request's headers, one `name: value` a line.
pub struct Origin {
    pub at: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Origin {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let _ = stream.set_nodelay(true);
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(echo)),
                );
            }
        });
        Self { at, task }
    }
}

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let lines: String = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    Ok(Response::new(Full::from(lines)))
}
