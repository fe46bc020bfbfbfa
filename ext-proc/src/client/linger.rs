//! Streams to observing processors, which end some time after their exchanges.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::Poll,
    time::Duration,
};

use attache_service::GrpcStream;

use super::exchange::Outbox;

/// So many streams of this process may linger; others are closed with their exchange.
const MAX_LINGERING: usize = 10_000;

/// How long a processor has to end a stream that was closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes that may wait in all lingering streams together; what is beyond is not sent.
const MAX_WAITING: usize = 64 << 20;

static WAITING: AtomicUsize = AtomicUsize::new(0);
static LINGERING: AtomicUsize = AtomicUsize::new(0);

struct Place {
    waiting: usize,
}

impl Place {
    fn take() -> Option<Self> {
        let place = Self { waiting: 0 };
        (LINGERING.fetch_add(1, Ordering::Relaxed) < MAX_LINGERING).then_some(place)
    }

    /// Whether so many bytes may wait too.
    fn wait_with(&mut self, bytes: usize) -> bool {
        self.waiting = bytes;
        WAITING.fetch_add(bytes, Ordering::Relaxed) + bytes <= MAX_WAITING
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        LINGERING.fetch_sub(1, Ordering::Relaxed);
        WAITING.fetch_sub(self.waiting, Ordering::Relaxed);
    }
}

/// Keeps a stream open for `time`, or until the processor ends it; what still waits in `outbox`
/// is sent meanwhile.
pub(super) fn linger(mut stream: GrpcStream, mut outbox: Outbox, time: Duration) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    let Some(mut place) = Place::take() else {
        return;
    };
    if !place.wait_with(outbox.bytes()) {
        outbox = Outbox::default();
    }
    runtime.spawn(async move {
        let _place = place;
        if !watch(&mut stream, &mut outbox, time).await {
            stream.finish();
            watch(&mut stream, &mut Outbox::default(), CLOSE_TIMEOUT).await;
        }
    });
}

/// Whether the processor ended the stream within `time`.
async fn watch(stream: &mut GrpcStream, outbox: &mut Outbox, time: Duration) -> bool {
    let mut timer = pin!(tokio::time::sleep(time));
    poll_fn(|cx| {
        while !outbox.is_empty() && stream.poll_capacity(cx).is_ready() {
            if let Some(piece) = outbox.pop() {
                stream.send(piece);
            }
        }
        loop {
            match stream.poll_message(cx) {
                // Answers are ignored.
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(_) => return Poll::Ready(true),
                Poll::Pending => return timer.as_mut().poll(cx).map(|()| false),
            }
        }
    })
    .await
}
