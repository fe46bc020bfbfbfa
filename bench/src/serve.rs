//! What the small servers of the benchmark share: their start and their end.

use std::io::{Read, Write};
use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::TcpListener;
use tonic::transport::server::{Router, TcpIncoming};

/// What a server prints, before its address, when it takes connections.
pub(crate) const READY: &str = "listening ";

/// Binds a server's socket and says so on standard output.
pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let mut out = std::io::stdout();
    writeln!(out, "{READY}{}", listener.local_addr()?)?;
    out.flush()?;
    Ok(listener)
}

/// Waits until standard input ends, which it does when whoever started us is
/// gone: no server outlives its benchmark.
pub(crate) async fn parent_gone() {
    let wait = tokio::task::spawn_blocking(|| {
        let mut rest = [0; 64];
        while matches!(std::io::stdin().read(&mut rest), Ok(1..)) {}
    });
    // The task only ends, it never fails.
    let _ = wait.await;
}

/// Serves gRPC until standard input ends.
pub(crate) async fn grpc(address: SocketAddr, services: Router) -> anyhow::Result<()> {
    let listener = listen(address).await?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::select! {
        done = services.serve_with_incoming(incoming) => done.context("the gRPC server failed"),
        () = parent_gone() => Ok(()),
    }
}
