//! One endpoint: connected once it is wanted, and again whenever the connection is lost.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use rand::Rng;
use tokio::{sync::Notify, time::Instant};

use super::{
    ChannelSettings, OutageLog,
    connect::{Connected, Connector},
    link::Link,
};
use crate::cluster;

/// Backoff after the first failed connection; doubles up to [`BACKOFF_MAX`], half of it random.
const BACKOFF_BASE: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A connection that lived shorter than this counts as a failure for the backoff, or a service
/// that drops every connection at once would be connected to in a tight loop.
const STABLE: Duration = Duration::from_secs(1);

pub(super) struct Endpoint {
    shared: Arc<Shared>,
}

struct Shared {
    connector: Arc<Connector>,
    state: Mutex<State>,
    /// Tells waiting calls of the whole channel that something has changed.
    changed: Arc<Notify>,
    /// Tells the endpoint's task that its connection takes no further calls.
    retired: Arc<Notify>,
}

enum State {
    /// Nobody has asked yet.
    Idle,
    /// First attempt, or the attempt after a loss: calls wait for it.
    Connecting,
    Ready(Arc<Link>),
    /// The last attempt failed, the next one is on its way: calls fail at once meanwhile, so
    /// that a dead service does not gather a crowd.
    Failed(Arc<str>),
}

/// What a call that wants a connection gets.
pub(super) enum Connection {
    Ready(Arc<Link>),
    /// Wait for the channel's `changed`.
    Wait,
    Failed(Arc<str>),
}

impl Endpoint {
    pub(super) fn new(
        endpoint: Arc<cluster::Endpoint>,
        settings: &ChannelSettings,
        changed: Arc<Notify>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                connector: Arc::new(Connector::new(endpoint, settings)),
                state: Mutex::new(State::Idle),
                changed,
                retired: Arc::default(),
            }),
        }
    }

    /// The connection; an endpoint that nobody has asked for begins to connect.
    pub(super) fn connection(&self) -> Connection {
        let mut state = self.shared.state();
        match &*state {
            State::Ready(link) => Connection::Ready(link.clone()),
            State::Failed(why) => Connection::Failed(why.clone()),
            State::Connecting => Connection::Wait,
            State::Idle => {
                *state = State::Connecting;
                tokio::spawn(keep_connected(Arc::downgrade(&self.shared)));
                Connection::Wait
            }
        }
    }

    /// Takes `link` out of use, since it refuses further calls; those on it may finish.
    pub(super) fn retire(&self, link: &Arc<Link>) {
        let mut state = self.shared.state();
        if matches!(&*state, State::Ready(current) if Arc::ptr_eq(current, link)) {
            *state = State::Connecting;
            self.shared.retired.notify_one();
        }
    }
}

impl Drop for Endpoint {
    /// Calls that wait for it look for another one.
    fn drop(&mut self) {
        self.shared.changed.notify_waiters();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, state: State) {
        *self.state() = state;
        self.changed.notify_waiters();
    }
}

/// The endpoint's task: lives as long as the channel does.
async fn keep_connected(endpoint: Weak<Shared>) {
    let _reset = ResetOnDrop(endpoint.clone());
    let mut failures = 0u32;
    loop {
        let Some(shared) = endpoint.upgrade() else {
            return;
        };
        let connector = shared.connector.clone();
        drop(shared);
        let attempt = connector.connect().await;
        let Some(shared) = endpoint.upgrade() else {
            return;
        };
        match attempt {
            Ok(connected) => {
                if failures > 0 && connector.outage_log == OutageLog::Channel {
                    tracing::info!("reached {connector} again");
                }
                let since = Instant::now();
                use_connection(shared, &endpoint, connected, &connector).await;
                failures = match since.elapsed() < STABLE {
                    true => failures.saturating_add(1),
                    false => 0,
                };
                // The first loss, after however short a life, is repaired at once.
                if failures > 1 {
                    tokio::time::sleep(backoff(failures)).await;
                }
            }
            Err(why) => {
                if failures == 0 && connector.outage_log == OutageLog::Channel {
                    tracing::warn!("{why}");
                }
                failures = failures.saturating_add(1);
                shared.publish(State::Failed(why));
                drop(shared);
                tokio::time::sleep(backoff(failures)).await;
            }
        }
    }
}

/// Offers a connection to calls until it ends or is retired.
async fn use_connection(
    shared: Arc<Shared>,
    endpoint: &Weak<Shared>,
    connected: Connected,
    connector: &Connector,
) {
    let Connected {
        send,
        ping,
        mut driver,
    } = connected;
    let link = Arc::new(Link::new(
        send,
        ping,
        driver.abort_handle(),
        connector.room(),
    ));
    let retired = shared.retired.clone();
    let this = Arc::downgrade(&link);
    shared.publish(State::Ready(link));
    // Neither the channel nor the connection may be held from here: that nobody holds them is
    // how they end.
    drop(shared);

    let is_current = |state: &State| matches!(state, State::Ready(link) if std::ptr::eq(Arc::as_ptr(link), this.as_ptr()));
    let mut aged = pin!(connector.aged());
    loop {
        tokio::select! {
            () = &mut aged => break,
            () = connector.unheard() => {
                if let Some(link) = this.upgrade() {
                    link.suspect();
                }
            }
            ended = &mut driver => {
                if let Ok(Err(error)) = ended {
                    tracing::debug!(%error, "connection to {connector} ended");
                }
                break;
            }
            () = retired.notified() => {
                let Some(shared) = endpoint.upgrade() else { break };
                if !is_current(&shared.state()) {
                    break;
                }
            }
        }
    }
    // Calls in flight on a retired connection finish on it.
    driver.detach();
    if let Some(shared) = endpoint.upgrade() {
        let mut state = shared.state();
        if is_current(&state) {
            *state = State::Connecting;
        }
    }
}

/// When the task ends with its runtime, the next call starts it anew.
struct ResetOnDrop(Weak<Shared>);

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.publish(State::Idle);
        }
    }
}

/// Exponential, capped, half of it random so that workers do not knock in step.
fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = BACKOFF_BASE.saturating_mul(1 << doublings).min(BACKOFF_MAX);
    full.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_cap_and_is_never_zero() {
        for (failures, full) in [(1, 10), (2, 20), (5, 160), (8, 1000), (u32::MAX, 1000)] {
            let full = Duration::from_millis(full);
            let waited = backoff(failures);
            assert!(
                waited >= full / 2 && waited <= full,
                "{failures}: {waited:?}"
            );
        }
    }
}
