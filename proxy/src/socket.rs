//! The byte stream of a downstream connection, as hyper reads and writes it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::{
    activity::Activity,
    framing::{Fault, Framing},
    header_blocks::HeaderBlocks,
};

/// What an HTTP/2 client sends first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// No request line contains it, so hyper answers 400 and closes.
const POISON: u8 = 0;

/// A stream with the bytes that were read ahead, and its activity noted.
pub(crate) struct Socket<IO> {
    io: IO,
    ahead: Bytes,
    activity: Arc<Activity>,
    followed: Followed,
}

/// What is looked at in the bytes that arrive.
enum Followed {
    Http1(Framing),
    Http2(HeaderBlocks),
}

/// Reads as little as tells HTTP/2 from HTTP/1.1: the two differ in the first bytes.
pub(crate) async fn detect<IO: AsyncRead + Unpin>(io: &mut IO) -> io::Result<(bool, Bytes)> {
    let mut ahead = Vec::with_capacity(4096);
    loop {
        if io.read_buf(&mut ahead).await? == 0 {
            return Ok((false, ahead.into()));
        }
        if ahead.len() >= PREFACE.len() {
            return Ok((ahead.starts_with(PREFACE), ahead.into()));
        }
        if !PREFACE.starts_with(&ahead) {
            return Ok((false, ahead.into()));
        }
    }
}

impl<IO> Socket<IO> {
    pub(crate) fn http1(io: IO, ahead: Bytes, activity: Arc<Activity>) -> Self {
        Self {
            io,
            ahead,
            activity,
            followed: Followed::Http1(Framing::default()),
        }
    }

    pub(crate) fn http2(io: IO, ahead: Bytes, activity: Arc<Activity>) -> Self {
        Self {
            io,
            ahead,
            activity,
            followed: Followed::Http2(HeaderBlocks::default()),
        }
    }

    /// Whether bytes were read that are still to be looked at.
    pub(crate) fn has_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// What was wrong with the head of the last request.
    pub(crate) fn refused(&self) -> Option<Fault> {
        match &self.followed {
            Followed::Http1(framing) => framing.refused(),
            Followed::Http2(_) => None,
        }
    }

    /// Gives back what only the middle of a message needs.
    pub(crate) fn rest(&mut self) {
        if let Followed::Http1(framing) = &mut self.followed {
            framing.rest();
        }
    }

    /// Bytes to read next, before all others.
    pub(crate) fn put_back(&mut self, bytes: Bytes) {
        self.ahead = bytes;
    }

    fn arrived(&mut self, bytes: &mut [u8]) {
        self.activity.moves.fetch_add(1, Ordering::Relaxed);
        let framing = match &mut self.followed {
            Followed::Http1(framing) => framing,
            Followed::Http2(blocks) => {
                if self.activity.unserved() == 0 {
                    blocks.settle();
                }
                blocks.feed(bytes);
                let activity = &self.activity;
                activity.heads.store(blocks.heads(), Ordering::Relaxed);
                activity
                    .in_block
                    .store(blocks.is_inside(), Ordering::Relaxed);
                activity
                    .in_head
                    .store(blocks.is_inside_head(), Ordering::Relaxed);
                return;
            }
        };
        if let Err((fault, at)) = framing.feed(bytes) {
            tracing::debug!(?fault, "request refused");
            // Within sizes of chunks, hyper takes offence at the line feed alone.
            if let Some(byte) = bytes.get_mut(at)
                && fault != Fault::BareLineFeedInChunks
            {
                *byte = POISON;
            }
        }
        let opaque = framing.is_opaque();
        self.activity.opaque.store(opaque, Ordering::Relaxed);
        let inside = framing.is_inside_head();
        self.activity.in_head.store(inside, Ordering::Relaxed);
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Socket<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.ahead.is_empty() {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        } else {
            let count = this.ahead.len().min(buf.remaining());
            buf.put_slice(this.ahead.get(..count).unwrap_or_default());
            this.ahead.advance(count);
            if this.ahead.is_empty() {
                // It would keep all of its memory as long as the connection stands.
                this.ahead = Bytes::new();
            }
        }
        if let Some(bytes) = buf.filled_mut().get_mut(before..)
            && !bytes.is_empty()
        {
            this.arrived(bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Socket<IO> {
    /// Reads the first bytes after a pause, which are to be [put back](Socket::put_back): nothing
    /// looks at them yet.
    pub(crate) fn poll_beginning(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // TLS may have kept the end of what was written.
        if let Poll::Ready(flushed) = Pin::new(&mut this.io).poll_flush(cx) {
            flushed?;
        }
        Pin::new(&mut this.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> Socket<IO> {
    /// Looks for answers of the codec to requests that nobody else knows of.
    fn answers(&self, bytes: &[u8]) {
        if let Followed::Http2(blocks) = &self.followed
            && (self.activity.unserved() > 0 || blocks.is_inside_head())
        {
            let answers = blocks.answers(bytes);
            let Activity {
                too_large,
                crowded,
                calmed,
                ..
            } = &*self.activity;
            if let Some(excess) = answers.calmed {
                calmed.get_or_init(|| excess);
            }
            too_large.fetch_add(answers.too_large, Ordering::Relaxed);
            crowded.fetch_add(answers.crowded, Ordering::Relaxed);
        }
    }

    fn wrote(&self, bytes: &[u8], polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &polled {
            Poll::Pending => self.activity.blocked.store(true, Ordering::Relaxed),
            Poll::Ready(written) => {
                let written = written.as_ref().map_or(0, |written| *written);
                self.answers(bytes.get(..written).unwrap_or(bytes));
                self.activity.moves.fetch_add(1, Ordering::Relaxed);
                self.activity.blocked.store(false, Ordering::Relaxed);
            }
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Socket<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(buf, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        // The codec's own frames come first, then what others have given it.
        let first = bufs.first().map_or(&[][..], |first| first);
        self.wrote(first, polled)
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
