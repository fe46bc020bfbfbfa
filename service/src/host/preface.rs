//! A bound on how long a client may stay silent after it has connected.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// Length of the HTTP/2 client preface, `PRI * HTTP/2.0…`.
const PREFACE: usize = 24;

/// Fails reads when the HTTP/2 preface has not come in time; afterwards it is transparent.
///
/// hyper waits for the preface forever, so a client that connects and says nothing would hold
/// its place among the connections.
pub(super) struct PrefaceDeadline<IO> {
    io: IO,
    waiting: Option<Waiting>,
    spoken: Arc<AtomicBool>,
}

struct Waiting {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl<IO> PrefaceDeadline<IO> {
    pub(super) fn new(io: IO, within: Duration) -> Self {
        Self {
            io,
            waiting: Some(Waiting {
                missing: PREFACE,
                deadline: Box::pin(sleep(within)),
            }),
            spoken: Arc::default(),
        }
    }

    /// Becomes true when the preface has come.
    pub(super) fn spoken(&self) -> Arc<AtomicBool> {
        self.spoken.clone()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for PrefaceDeadline<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(waiting) = &mut this.waiting else {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        };
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if polled.is_pending() {
            return waiting.deadline.as_mut().poll(cx).map(|()| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the client did not speak HTTP/2 in time",
                ))
            });
        }
        waiting.missing = waiting.missing.saturating_sub(buf.filled().len() - before);
        if waiting.missing == 0 {
            this.waiting = None;
            this.spoken.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for PrefaceDeadline<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const WITHIN: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_given_up() {
        let (_client, server) = duplex(64);
        let mut guarded = PrefaceDeadline::new(server, WITHIN);
        let error = guarded.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_drips_its_preface_is_given_up() {
        let (mut client, server) = duplex(64);
        let mut guarded = PrefaceDeadline::new(server, WITHIN);
        client.write_all(&[0; PREFACE - 1]).await.unwrap();
        let error = guarded.read_exact(&mut [0; PREFACE]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(!guarded.spoken().load(Ordering::Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_preface_silence_is_allowed() {
        let (mut client, server) = duplex(64);
        let mut guarded = PrefaceDeadline::new(server, WITHIN);
        client.write_all(&[0; PREFACE]).await.unwrap();
        guarded.read_exact(&mut [0; PREFACE]).await.unwrap();
        assert!(guarded.spoken().load(Ordering::Relaxed));

        let later = tokio::time::timeout(WITHIN * 10, guarded.read_u8()).await;

        assert!(later.is_err(), "still waiting, not failed: {later:?}");
    }
}
