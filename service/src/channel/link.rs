//! One established connection, and the doubt whether it still works.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, client::SendRequest};
use tokio::{
    task::AbortHandle,
    time::{Instant, timeout},
};

use crate::cluster::breakers::Permit;

/// Bound on the answer to a PING that was sent out of suspicion.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Suspicions closer together than this make one PING: some servers punish frequent ones.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// A connection that calls can be sent on.
pub(super) struct Link {
    send: SendRequest<Bytes>,
    driver: AbortHandle,
    probe: Mutex<Probe>,
    _room: Option<Permit>,
}

struct Probe {
    /// Absent while a probe runs.
    ping: Option<PingPong>,
    last: Option<Instant>,
}

impl Link {
    pub(super) fn new(
        send: SendRequest<Bytes>,
        ping: PingPong,
        driver: AbortHandle,
        room: Option<Permit>,
    ) -> Self {
        Self {
            send,
            driver,
            probe: Mutex::new(Probe {
                ping: Some(ping),
                last: None,
            }),
            _room: room,
        }
    }

    /// A handle for one call.
    pub(super) fn send(&self) -> SendRequest<Bytes> {
        self.send.clone()
    }

    /// A call was given up without an answer, or it is time for a sign of life. Asks the peer for
    /// one, and ends the connection when none comes: a host that was cut off, or a frozen process,
    /// would otherwise swallow calls until TCP gives up.
    pub(super) fn suspect(self: &Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let Some(mut ping) = self.begin_probe() else {
            return;
        };
        let link = self.clone();
        runtime.spawn(async move {
            match timeout(PROBE_TIMEOUT, ping.ping(Ping::opaque())).await {
                Ok(Ok(_)) => link.probe().ping = Some(ping),
                // The connection has ended by itself.
                Ok(Err(_)) => {}
                Err(_) => {
                    tracing::warn!("connection given up: no sign of life for {PROBE_TIMEOUT:?}");
                    link.driver.abort();
                }
            }
        });
    }

    fn begin_probe(&self) -> Option<PingPong> {
        let mut probe = self.probe();
        if probe
            .last
            .is_some_and(|last| last.elapsed() < PROBE_INTERVAL)
        {
            return None;
        }
        let ping = probe.ping.take()?;
        probe.last = Some(Instant::now());
        Some(ping)
    }

    fn probe(&self) -> std::sync::MutexGuard<'_, Probe> {
        self.probe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
