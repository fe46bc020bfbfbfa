//! Calls begin where they arrive: in the task of their connection.
//!
//! Most policy calls are answered at once. Those need no task of their own, with its memory, its
//! turn in the queue and its wake-ups; a call that has to wait for something goes on in one.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use hyper::rt::Executor;

/// A call from its first byte to its last.
type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The calls that a connection has brought and that have not begun yet.
#[derive(Clone, Default)]
pub(super) struct Calls(Arc<Mutex<Vec<Call>>>);

impl Calls {
    /// Polls `connection`, and then begins what it brought.
    pub(super) fn begin<C>(&self, connection: C) -> Beginning<'_, C> {
        Beginning {
            calls: self,
            connection,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Calls {
    fn execute(&self, call: F) {
        self.lock().push(Box::pin(call));
    }
}

/// A connection and its calls.
pub(super) struct Beginning<'c, C> {
    calls: &'c Calls,
    connection: C,
}

impl<C: Future + Unpin> Future for Beginning<'_, C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let polled = Pin::new(&mut self.connection).poll(cx);
        let mut brought = std::mem::take(&mut *self.calls.lock());
        // What they send wakes the connection.
        for call in brought.drain(..) {
            begin(call, cx);
        }
        // Its memory serves the next ones.
        *self.calls.lock() = brought;
        polled
    }
}

fn begin(mut call: Call, cx: &mut Context<'_>) {
    // A call that panics ends alone, as it would in a task of its own.
    let begun = catch_unwind(AssertUnwindSafe(move || {
        let polled = call.as_mut().poll(cx);
        polled.is_pending().then_some(call)
    }));
    if let Ok(Some(waits)) = begun {
        tokio::spawn(waits);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn, ready};

    use tokio::sync::oneshot;

    use super::*;

    /// A connection that brings these calls when it is polled first, and then stays open.
    fn brings(calls: &Calls, brought: Vec<Call>) -> impl Future<Output = ()> + Unpin + use<> {
        let (calls, mut brought) = (calls.clone(), Some(brought));
        poll_fn(move |_| {
            for call in brought.take().into_iter().flatten() {
                calls.execute(call);
            }
            Poll::Pending
        })
    }

    #[tokio::test]
    async fn a_call_that_waits_for_nothing_ends_where_it_arrived() {
        let calls = Calls::default();
        let (done, mut told) = oneshot::channel();
        let answered: Call = Box::pin(async move { done.send(tokio::task::id()).unwrap() });
        let connection = brings(&calls, vec![answered]);
        let here = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = calls.begin(connection) => {}
                () = ready(()) => {}
            }
            tokio::task::id()
        });
        assert_eq!(here.await.unwrap(), told.try_recv().unwrap());
    }

    #[tokio::test]
    async fn a_call_that_waits_goes_on_without_its_connection() {
        let calls = Calls::default();
        let (go, gone) = oneshot::channel::<()>();
        let (done, told) = oneshot::channel();
        let waits: Call = Box::pin(async move {
            gone.await.unwrap();
            done.send(()).unwrap();
        });
        let connection = brings(&calls, vec![waits]);
        tokio::select! {
            biased;
            () = calls.begin(connection) => {}
            () = ready(()) => {}
        }
        go.send(()).unwrap();
        told.await.unwrap();
    }

    #[tokio::test]
    async fn a_call_that_panics_does_not_take_others_along() {
        let calls = Calls::default();
        let (done, mut told) = oneshot::channel();
        let brought: Vec<Call> = vec![
            Box::pin(async { panic!("as asked for") }),
            Box::pin(async move { done.send(()).unwrap() }),
            Box::pin(pending()),
        ];
        let connection = brings(&calls, brought);
        tokio::select! {
            biased;
            () = calls.begin(connection) => {}
            () = ready(()) => {}
        }
        assert_eq!(told.try_recv(), Ok(()));
    }
}
