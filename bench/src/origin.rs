//! The origin: answers with bodies known in advance, as cheaply as it can, and
//! tells in a header which policies had touched the request.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::{row, serve};

/// The longest request head that is taken.
const HEAD: usize = 16 * 1024;

/// Serves until standard input ends; waits for `delay` before each answer.
pub(crate) async fn serve(address: SocketAddr, delay: Duration) -> anyhow::Result<()> {
    let listener = serve::listen(address).await?;
    tokio::select! {
        done = accept(listener, delay) => done,
        () = serve::parent_gone() => Ok(()),
    }
}

/// Serves all connections of `listener`.
pub(crate) async fn accept(listener: TcpListener, delay: Duration) -> anyhow::Result<()> {
    let answers = Answers::prepare();
    loop {
        let (stream, _) = listener.accept().await.context("cannot accept")?;
        stream.set_nodelay(true)?;
        let answers = answers.clone();
        tokio::spawn(async move {
            if let Err(why) = connection(stream, &answers, delay).await {
                eprintln!("origin: {why:#}");
            }
        });
    }
}

/// Every answer there is, ready to send.
#[derive(Clone)]
struct Answers {
    small: [Bytes; 4],
    large: [Bytes; 4],
    huge: [Bytes; 4],
}

impl Answers {
    fn prepare() -> Answers {
        let answers = |body: &[u8]| {
            [(false, false), (false, true), (true, false), (true, true)]
                .map(|(auth, processed)| answer(row::saw(auth, processed), body))
        };
        Answers {
            small: answers(&row::small_body()),
            large: answers(&row::large_body()),
            huge: answers(&row::huge_body()),
        }
    }
}

fn answer(saw: &str, body: &[u8]) -> Bytes {
    let head = format!(
        "HTTP/1.1 200 OK\r\n\
         date: Fri, 21 Nov 2025 10:00:00 GMT\r\n\
         content-type: application/json\r\n\
         cache-control: private, max-age=0\r\n\
         {}: {saw}\r\n\
         content-length: {}\r\n\r\n",
        row::SAW_HEADER,
        body.len()
    );
    [head.as_bytes(), body].concat().into()
}

async fn connection(
    mut stream: TcpStream,
    answers: &Answers,
    delay: Duration,
) -> anyhow::Result<()> {
    let mut buffer = vec![0; HEAD];
    let mut filled = 0;
    loop {
        let Some(free) = buffer.get_mut(filled..).filter(|free| !free.is_empty()) else {
            bail!("a request head of more than {HEAD} bytes");
        };
        // A proxy that closes or resets an idle connection does nothing wrong.
        match stream.read(free).await {
            Ok(0) | Err(_) => return Ok(()),
            Ok(read) => filled += read,
        }
        while let Some((head, answer)) = request(buffer.get(..filled).unwrap_or_default(), answers)?
        {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if stream.write_all(answer).await.is_err() {
                return Ok(());
            }
            buffer.copy_within(head..filled, 0);
            filled -= head;
        }
    }
}

/// The first whole request in `bytes`: how long it is, and its answer.
fn request<'a>(bytes: &[u8], answers: &'a Answers) -> anyhow::Result<Option<(usize, &'a Bytes)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = parsed.parse(bytes).context("a bad request")? else {
        return Ok(None);
    };
    let has = |name: &str| {
        parsed
            .headers
            .iter()
            .any(|header| header.name.eq_ignore_ascii_case(name))
    };
    if has("content-length") || has("transfer-encoding") {
        bail!("a request with a body; the benchmark sends none");
    }
    let index = usize::from(has(row::AUTH_HEADER)) * 2 + usize::from(has(row::PROC_REQUEST_HEADER));
    let answers = match parsed.path {
        Some(row::SMALL_PATH) => &answers.small,
        Some(row::LARGE_PATH) => &answers.large,
        Some(row::HUGE_PATH) => &answers.huge,
        other => bail!("a request for {other:?}"),
    };
    Ok(answers.get(index).map(|answer| (length, answer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_tells_which_policies_touched_the_request() {
        let answers = Answers::prepare();
        let ask = |headers: &str| {
            let request_bytes = format!("GET /small HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
            let (length, answer) = request(request_bytes.as_bytes(), &answers)
                .unwrap()
                .unwrap();
            assert_eq!(length, request_bytes.len());
            String::from_utf8_lossy(answer).into_owned()
        };
        assert!(ask("").contains("x-origin-saw: -\r\n"));
        assert!(ask("X-Auth-User: alice\r\n").contains("x-origin-saw: auth\r\n"));
        assert!(ask("x-proc-request: 1\r\n").contains("x-origin-saw: proc\r\n"));
        assert!(
            ask("x-proc-request: 1\r\nx-auth-user: a\r\n").contains("x-origin-saw: auth+proc\r\n")
        );
        assert!(request(b"GET /small HT", &answers).unwrap().is_none());
        assert!(request(b"GET /other HTTP/1.1\r\n\r\n", &answers).is_err());
    }
}
