//! The same processor as `svc-ext-proc`, written with our framework and served as it serves by
//! default.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::Context;
use attache_ext_proc::server::{Body, Processor, RequestHead, ResponseHead, Result, Server};

use crate::child::free_address;
use crate::{row, serve};

/// Serves until standard input ends.
pub(crate) async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let address = match address.port() {
        0 => free_address()?,
        _ => address,
    };
    println!("{}{address}", serve::READY);
    std::io::stdout().flush()?;
    let address = address.to_string().parse()?;
    tokio::select! {
        done = Server::new(Capitals).serve(&address) => done.context("the processor failed"),
        () = serve::parent_gone() => Ok(()),
    }
}

#[derive(Clone)]
struct Capitals;

impl Processor for Capitals {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        Ok(request.headers.insert(row::PROC_REQUEST_HEADER, "1")?)
    }

    async fn response_headers(&mut self, response: &mut ResponseHead) -> Result {
        Ok(response.headers.insert(row::PROC_RESPONSE_HEADER, "1")?)
    }

    async fn response_body(&mut self, body: &mut Body<'_>) -> Result {
        let piece = body.take();
        body.push(piece.to_ascii_uppercase());
        Ok(())
    }
}
