//! The client: sends what the scenario says and notes the response.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::board::{Board, Headers};
use crate::h1::{self, Framing, Reader};
use crate::scenario::{Outgoing, Payload};
use crate::tls;

/// The authority of every request that does not name another one.
pub const AUTHORITY: &str = "attache.test";

/// How long a write may stand still before the proxy counts as full.
const STALL: Duration = Duration::from_millis(500);

/// Sends the request and reads the response until its end.
pub async fn run(to: SocketAddr, request: &Outgoing, board: &Board) -> Result<(), String> {
    let to = match &request.tls {
        None => to,
        Some(tls) => tls::through(to, tls, "http/1.1").await?,
    };
    let stream = TcpStream::connect(to)
        .await
        .map_err(|e| format!("the proxy: {e}"))?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    if request.is_h2() {
        run_h2(stream, request, board)
            .await
            .map_err(|e| e.to_string())
    } else {
        run_h1(stream, request, board).await
    }
}

async fn run_h1(stream: TcpStream, request: &Outgoing, board: &Board) -> Result<(), String> {
    let mut payload = request.payload()?;
    if !payload
        .headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        payload
            .headers
            .insert(0, ("host".to_owned(), AUTHORITY.into()));
    }
    let method = request.method.as_deref().unwrap_or("GET");
    let path = request.path.as_deref().unwrap_or("/");
    let (from, mut to) = stream.into_split();
    let mut from = Reader::new(from);
    let head = h1::write_head(&format!("{method} {path} HTTP/1.1"), &payload.headers);
    for nth in 0..request.times.unwrap_or(1) {
        if nth > 0 {
            board.note(|seen| seen.earlier.push(std::mem::take(&mut seen.client)));
        }
        let read = read_response(&mut from, method, board);
        let write = async {
            // A proxy that has answered may close early: that is no failure.
            if let Ok(true) = write_request(&mut to, head.clone(), &payload, board).await {
                std::future::pending::<()>().await;
            }
        };
        // Once the response is complete nothing that is still unsent matters.
        tokio::select! {
            () = read => {}
            () = write => {}
            () = left(request, board) => {}
        }
    }
    Ok(())
}

/// Writes the request; false where the script aborts it.
async fn write_request(
    to: &mut OwnedWriteHalf,
    mut first: Vec<u8>,
    payload: &Payload,
    board: &Board,
) -> std::io::Result<bool> {
    let framed = |data: &[u8]| match payload.chunked {
        true => h1::write_chunk(data),
        false => data.to_vec(),
    };
    if payload.stepwise {
        to.write_all(&first).await?;
        first.clear();
    }
    for piece in &payload.steps {
        if let Some(condition) = &piece.wait {
            board.wait(condition).await;
        }
        if piece.abort {
            return Ok(false);
        }
        let bytes = framed(&piece.data);
        if piece.stall {
            write_until_stalled(to, &bytes, board).await;
        } else if payload.stepwise {
            let _ = to.write_all(&bytes).await;
        } else {
            first.extend_from_slice(&bytes);
        }
    }
    if payload.chunked {
        first.extend_from_slice(&h1::write_end(&payload.trailers));
    }
    let _ = to.write_all(&first).await;
    Ok(true)
}

/// Writes until nothing more is taken, and notes how much was.
async fn write_until_stalled(to: &mut OwnedWriteHalf, bytes: &[u8], board: &Board) {
    let mut taken = 0;
    while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
        match tokio::time::timeout(STALL, to.write(rest)).await {
            Ok(Ok(count)) => taken += count,
            Ok(Err(_)) | Err(_) => break,
        }
    }
    board.note(|seen| seen.client.taken = Some(taken));
}

async fn read_response(reader: &mut Reader<OwnedReadHalf>, method: &str, board: &Board) {
    loop {
        let Some(head) = reader.head().await else {
            return;
        };
        let status = head
            .line
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or(0);
        if (100..200).contains(&status) && status != 101 {
            board.note(|seen| seen.client.interim.push(status));
            continue;
        }
        board.note(|seen| {
            seen.client.status = status;
            seen.client.headers = head.headers.clone();
        });
        let framing = match status {
            _ if method == "HEAD" => Framing::None,
            204 | 304 => Framing::None,
            200..=299 if method == "CONNECT" => Framing::ToClose,
            _ => head.framing(Framing::ToClose),
        };
        let end = reader.body(framing, |data| note_body(board, data)).await;
        board.note(|seen| {
            seen.client.complete = end.is_some();
            seen.client.trailers = end.unwrap_or_default();
        });
        return;
    }
}

fn note_body(board: &Board, data: &[u8]) {
    board.note(|seen| seen.client.body.extend_from_slice(data));
}

async fn run_h2(stream: TcpStream, request: &Outgoing, board: &Board) -> Result<(), h2::Error> {
    let (client, connection) = h2::client::handshake(stream).await?;
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await?;
    let payload = request.payload().unwrap();
    let path = request.path.as_deref().unwrap_or("/");
    let method = request.method.as_deref().unwrap_or("GET");
    let mut head = match &request.extended_connect {
        Some(protocol) => {
            if !extends_connect(&client, board).await {
                return Ok(());
            }
            http::Request::connect(format!("http://{AUTHORITY}{path}"))
                .extension(h2::ext::Protocol::from(protocol.as_str()))
        }
        // It has an authority alone.
        None if method == "CONNECT" => http::Request::connect(path),
        None => http::Request::builder()
            .method(method)
            .uri(format!("http://{AUTHORITY}{path}")),
    };
    for (name, value) in &payload.headers {
        head = head.header(name, value.as_slice());
    }
    let empty = payload.steps.is_empty() && payload.trailers.is_empty();
    let (response, mut send) = client.send_request(head.body(()).unwrap(), empty)?;
    let write = async {
        let last = payload.steps.len().saturating_sub(1);
        for (at, piece) in payload.steps.iter().enumerate() {
            if let Some(condition) = &piece.wait {
                board.wait(condition).await;
            }
            if piece.abort {
                return;
            }
            let end = at == last && payload.trailers.is_empty() && !request.raw;
            let _ = send.send_data(Bytes::copy_from_slice(&piece.data), end);
        }
        if !payload.trailers.is_empty() {
            let _ = send.send_trailers(to_map(&payload.trailers));
        }
        std::future::pending::<()>().await;
    };
    let read = async {
        let Ok(response) = response.await else { return };
        let (head, mut body) = response.into_parts();
        board.note(|seen| {
            seen.client.status = head.status.as_u16();
            seen.client.headers = from_map(&head.headers);
        });
        while let Some(data) = body.data().await {
            let Ok(data) = data else { return };
            let _ = body.flow_control().release_capacity(data.len());
            note_body(board, &data);
        }
        let Ok(trailers) = body.trailers().await else {
            return;
        };
        board.note(|seen| {
            seen.client.trailers = trailers.as_ref().map(from_map).unwrap_or_default();
            seen.client.complete = true;
        });
    };
    tokio::select! {
        () = write => {}
        () = read => {}
        () = left(request, board) => {}
    }
    connection.abort();
    Ok(())
}

/// Waits until the proxy has said that it takes extended CONNECTs, as clients have to.
async fn extends_connect(client: &h2::client::SendRequest<Bytes>, board: &Board) -> bool {
    let said = async {
        while !client.is_extended_connect_protocol_enabled() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let said = tokio::time::timeout(STALL, said).await.is_ok();
    if !said {
        board.error("the proxy takes no extended CONNECT");
    }
    said
}

/// Waits for what lets the client go.
async fn left(request: &Outgoing, board: &Board) {
    match &request.leave {
        Some(condition) => board.wait(condition).await,
        None => std::future::pending().await,
    }
}

/// A header map as a list.
pub fn from_map(map: &http::HeaderMap) -> Headers {
    map.iter()
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
        .collect()
}

/// A list as a header map.
pub fn to_map(headers: &Headers) -> http::HeaderMap {
    let mut map = http::HeaderMap::new();
    for (name, value) in headers {
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        map.append(name, http::HeaderValue::from_bytes(value).unwrap());
    }
    map
}
