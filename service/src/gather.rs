//! Writes that gather: what a connection writes in one poll leaves in one piece.
//!
//! An HTTP/2 connection flushes each DATA frame by itself. When many calls send at once, each
//! frame would be a system call, and wake the peer. Here small writes wait until the connection
//! has been polled, and large ones take along, uncopied, what waits before them.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Writes up to this size are copied to those that wait.
const SMALL: usize = 4 << 10;
/// No more than this waits.
const MOST: usize = 64 << 10;
/// Slices of one write that leave together; HTTP/2 writes a head and a payload.
const SLICES: usize = 8;

/// Splits a byte stream: the connection reads and writes the one half, the other half sends
/// what the connection wrote, see [`Sender::drive`].
pub(crate) fn gather<IO>(io: IO) -> (Gathered<IO>, Sender<IO>) {
    let shared = Arc::new(Mutex::new(Shared {
        io,
        waiting: BytesMut::new(),
        failed: None,
    }));
    (Gathered(shared.clone()), Sender(shared))
}

/// A byte stream whose writes leave when the [`Sender`] sends them, or when they are large.
pub(crate) struct Gathered<IO>(Arc<Mutex<Shared<IO>>>);

/// Sends what was written.
pub(crate) struct Sender<IO>(Arc<Mutex<Shared<IO>>>);

struct Shared<IO> {
    io: IO,
    waiting: BytesMut,
    /// Why sending failed, for the connection to see.
    failed: Option<io::Error>,
}

fn lock<IO>(shared: &Mutex<Shared<IO>>) -> MutexGuard<'_, Shared<IO>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<IO: AsyncWrite + Unpin> Sender<IO> {
    /// Polls `connection`, which has the other half, and then sends what it wrote.
    pub(crate) fn drive<C>(&self, connection: C) -> Driven<'_, IO, C> {
        Driven {
            sender: self,
            connection,
        }
    }

    /// Takes the sender along with a `connection` that lives in a task of its own.
    pub(crate) async fn run<C: Future + Unpin>(self, connection: C) -> C::Output {
        self.drive(connection).await
    }
}

/// A connection and the sending of what it wrote.
pub(crate) struct Driven<'s, IO, C> {
    sender: &'s Sender<IO>,
    connection: C,
}

impl<IO, C> Future for Driven<'_, IO, C>
where
    IO: AsyncWrite + Unpin,
    C: Future + Unpin,
{
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let polled = Pin::new(&mut self.connection).poll(cx);
        let mut shared = lock(&self.sender.0);
        if let Poll::Ready(Err(error)) = shared.poll_flush(cx) {
            // The connection sees it when it writes, reads or flushes again.
            shared.failed = Some(error);
            cx.waker().wake_by_ref();
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> Shared<IO> {
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let length: usize = bufs.iter().map(|buf| buf.len()).sum();
        if length <= SMALL {
            if self.waiting.len() + length > MOST {
                ready!(self.poll_send(cx))?;
            }
            bufs.iter()
                .for_each(|buf| self.waiting.extend_from_slice(buf));
            return Poll::Ready(Ok(length));
        }
        if !self.io.is_write_vectored() {
            ready!(self.poll_send(cx))?;
        }
        loop {
            let waiting = self.waiting.len();
            let mut all = [IoSlice::new(&[]); SLICES];
            let first = (waiting > 0).then(|| IoSlice::new(&self.waiting));
            let given = first.into_iter().chain(bufs.iter().copied());
            for (place, slice) in all.iter_mut().zip(given) {
                *place = slice;
            }
            let count = all.len().min(bufs.len() + usize::from(waiting > 0));
            let all = all.get(..count).unwrap_or_default();
            let wrote = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, all))?;
            self.waiting.advance(wrote.min(waiting));
            if wrote > waiting || wrote == 0 {
                return Poll::Ready(Ok(wrote.saturating_sub(waiting)));
            }
        }
    }

    /// Sends what waits.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.waiting))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                wrote => self.waiting.advance(wrote),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

impl<IO> Shared<IO> {
    fn check(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gathered<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.0);
        shared.check()?;
        Pin::new(&mut shared.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Gathered<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        lock(&self.0).io.is_write_vectored()
    }

    /// Sends nothing: the sender does, once, after the connection was polled.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(lock(&self.0).check())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.0);
        shared.check()?;
        ready!(shared.poll_flush(cx))?;
        Pin::new(&mut shared.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, future::poll_fn, pin::pin, time::Duration};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// A byte stream that notes the size of each write, takes at most `most` at once, and fails
    /// after `left` writes.
    struct Noting {
        sizes: Arc<Mutex<Vec<usize>>>,
        bytes: Arc<Mutex<Vec<u8>>>,
        most: usize,
        left: usize,
    }

    impl Noting {
        fn new(most: usize) -> Self {
            Self {
                sizes: Arc::default(),
                bytes: Arc::default(),
                most,
                left: usize::MAX,
            }
        }
    }

    impl AsyncWrite for Noting {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(buf)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let Some(left) = self.left.checked_sub(1) else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            self.left = left;
            let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            let taken = &all[..all.len().min(self.most)];
            self.sizes.lock().unwrap().push(taken.len());
            self.bytes.lock().unwrap().extend(taken);
            Poll::Ready(Ok(taken.len()))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn small_writes_of_one_poll_leave_as_one() {
        let io = Noting::new(usize::MAX);
        let sizes = io.sizes.clone();
        let (mut gathered, sender) = gather(io);
        let connection = pin!(async {
            for _ in 0..10 {
                gathered.write_all(b"0123456789").await.unwrap();
                gathered.flush().await.unwrap();
            }
            tokio::task::yield_now().await;
            gathered.write_all(b"later").await.unwrap();
        });
        sender.drive(connection).await;
        assert_eq!(*sizes.lock().unwrap(), [100, 5]);
    }

    #[tokio::test]
    async fn a_large_write_takes_along_what_waits() {
        let io = Noting::new(usize::MAX);
        let sizes = io.sizes.clone();
        let (mut gathered, _sender) = gather(io);
        gathered.write_all(b"head").await.unwrap();
        gathered.write_all(&[7; SMALL + 1]).await.unwrap();
        assert_eq!(*sizes.lock().unwrap(), [SMALL + 5]);
    }

    #[tokio::test]
    async fn no_more_waits_than_may() {
        let io = Noting::new(usize::MAX);
        let sizes = io.sizes.clone();
        let (mut gathered, _sender) = gather(io);
        for _ in 0..=MOST / SMALL {
            gathered.write_all(&[7; SMALL]).await.unwrap();
        }
        assert_eq!(*sizes.lock().unwrap(), [MOST]);
    }

    #[tokio::test]
    async fn a_failure_shows_to_the_connection() {
        let io = Noting {
            left: 0,
            ..Noting::new(1)
        };
        let (mut gathered, sender) = gather(io);
        let connection = pin!(async {
            gathered.write_all(b"lost").await.unwrap();
            tokio::task::yield_now().await;
            gathered.flush().await
        });
        let error = sender.drive(connection).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_reader_that_pauses_pauses_the_writer() {
        let (io, mut peer) = duplex(100);
        let (mut gathered, sender) = gather(io);
        let connection = pin!(async move {
            gathered.write_all(&vec![7; 3 * MOST]).await.unwrap();
            gathered.shutdown().await.unwrap();
            pending::<()>().await;
        });
        let reader = async {
            // Until nothing more comes, unless somebody reads.
            tokio::task::yield_now().await;
            let mut all = Vec::new();
            peer.read_to_end(&mut all).await.unwrap();
            all.len()
        };
        let read = tokio::select! {
            () = sender.drive(connection) => 0,
            read = tokio::time::timeout(Duration::from_secs(10), reader) => read.unwrap(),
        };
        assert_eq!(read, 3 * MOST);
    }

    proptest::proptest! {
        #[test]
        fn all_bytes_leave_in_order(
            sizes in proptest::collection::vec(0usize..3 * SMALL, 1..40),
            most in 1usize..20_000,
        ) {
            let io = Noting::new(most);
            let seen = io.bytes.clone();
            let (mut gathered, sender) = gather(io);
            let mut next = 0u8;
            let wrote: Vec<Vec<u8>> = sizes
                .iter()
                .map(|size| {
                    next = next.wrapping_add(1);
                    vec![next; *size]
                })
                .collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let connection = pin!(async {
                    for bytes in &wrote {
                        // In two slices, as a frame has a head and a payload.
                        let mut left = bytes.as_slice();
                        while !left.is_empty() {
                            let (a, b) = left.split_at(left.len() / 3);
                            let slices = [IoSlice::new(a), IoSlice::new(b)];
                            let count = poll_fn(|cx| {
                                Pin::new(&mut gathered).poll_write_vectored(cx, &slices)
                            });
                            left = &left[count.await.unwrap()..];
                        }
                    }
                });
                sender.drive(connection).await;
            });
            proptest::prop_assert_eq!(&*seen.lock().unwrap(), &wrote.concat());
        }
    }
}
