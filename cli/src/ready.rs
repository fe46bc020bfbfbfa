//! `attache ready`: asks a running process over its admin endpoint, for probes that run a program.

use attache_service::Address;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use crate::{Failure, args::ReadyArgs, output, run::runtime};

/// Most of an answer that is read, in bytes: the reasons for which a process is not ready.
const MAX_ANSWER: usize = 64 * 1024;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Whether the process is ready, or lives; an answer that it is not is a failure with its reasons.
pub(crate) fn run(args: &ReadyArgs) -> Result<(), Failure> {
    let path = if args.alive { "/healthz" } else { "/readyz" };
    let asked = runtime()?.block_on(async { timeout(args.timeout, ask(&args.admin, path)).await });
    let admin = &args.admin;
    match asked {
        Ok(Ok((true, text))) => output(&text),
        Ok(Ok((false, text))) => Err(Failure::Run(format!("not ready\n{}", text.trim_end()))),
        Ok(Err(error)) => Err(Failure::Run(format!("admin endpoint at {admin}: {error}"))),
        Err(_) => Err(Failure::Run(format!(
            "admin endpoint at {admin}: no answer within {:?}",
            args.timeout
        ))),
    }
}

/// Whether the answer is one of success, and its text.
async fn ask(admin: &Address, path: &str) -> Result<(bool, String), Error> {
    match admin {
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            get(stream, &admin.to_string(), path).await
        }
        Address::Unix(socket) => get(UnixStream::connect(socket).await?, "localhost", path).await,
    }
}

async fn get<S>(stream: S, host: &str, path: &str) -> Result<(bool, String), Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let driven = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let success = response.status().is_success();
    let body = Limited::new(response.into_body(), MAX_ANSWER);
    let text = body.collect().await?.to_bytes();
    driven.abort();
    Ok((success, String::from_utf8_lossy(&text).into_owned()))
}
