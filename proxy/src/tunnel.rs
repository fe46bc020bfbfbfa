//! Bytes both ways after `101 Switching Protocols`.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Both sides must have switched within this time.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Copies until one side ends, fails, or nothing moves for `idle`.
pub(crate) async fn run(downstream: OnUpgrade, upstream: OnUpgrade, idle: Option<Duration>) {
    let both = async { tokio::try_join!(downstream, upstream) };
    let (downstream, upstream) = match tokio::time::timeout(SWITCH_TIMEOUT, both).await {
        Ok(Ok(both)) => both,
        Ok(Err(error)) => return tracing::debug!(%error, "protocol switch failed"),
        Err(_) => return tracing::debug!("protocol switch not completed in time"),
    };
    let moved = Arc::<AtomicU32>::default();
    let mut downstream = Watched::new(downstream, &moved);
    let mut upstream = Watched::new(upstream, &moved);
    tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut downstream, &mut upstream) => {
            if let Err(error) = copied {
                tracing::debug!(%error, "tunnel ended");
            }
        }
        () = silence(&moved, idle) => tracing::debug!("tunnel silent for too long"),
    }
}

async fn silence(moved: &AtomicU32, idle: Option<Duration>) {
    let Some(idle) = idle else {
        return std::future::pending().await;
    };
    let mut last = moved.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(idle).await;
        let now = moved.load(Ordering::Relaxed);
        if now == last {
            return;
        }
        last = now;
    }
}

/// One side, with its reads counted.
struct Watched {
    io: TokioIo<Upgraded>,
    moved: Arc<AtomicU32>,
}

impl Watched {
    fn new(io: Upgraded, moved: &Arc<AtomicU32>) -> Self {
        Self {
            io: TokioIo::new(io),
            moved: moved.clone(),
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if polled.is_ready() {
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
