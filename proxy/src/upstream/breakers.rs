//! Connections within the limits of `circuit_breakers`.

use std::{sync::Arc, time::Duration};

use attache_service::cluster::breakers::{Breakers, Overflow, Permit, Resource};

use super::{
    UpstreamError, connect,
    pool::{Connection, Http1, Http2, Pool},
};

/// A request that waits looks this often whether a connection can take it: when its task sees
/// the end of the last response, or that the upstream has closed it, nobody is told.
const LOOKS_EVERY: Duration = Duration::from_millis(5);

impl Pool {
    /// The cluster's breakers, where they limit anything but retries.
    fn breakers(&self) -> Option<&Arc<Breakers>> {
        let guards = self.cluster.guards.get()?;
        Some(&guards.breakers).filter(|breakers| breakers.limit())
    }

    /// A connection for HTTP/1.1: one of its own, or where there may be no more, one that becomes
    /// free.
    pub(super) async fn connect_http1(&self) -> Result<Http1, UpstreamError> {
        let Some(breakers) = self.breakers() else {
            let (sender, made) = connect::http1(self).await?;
            return Ok(Connection::new(sender, made, &self.cluster, None));
        };
        let _pending = breakers.acquire(Resource::PendingRequests)?;
        let mut overflowed = false;
        let room = loop {
            if let Some(room) = self.open.take(breakers) {
                break room;
            }
            if !std::mem::replace(&mut overflowed, true) {
                breakers.overflow(Resource::Connections);
            }
            tokio::time::sleep(LOOKS_EVERY).await;
            if let Some(mut connection) = self.take_kept() {
                connection.waited_for();
                return Ok(connection);
            }
        };
        let (sender, made) = connect::http1(self).await?;
        Ok(Connection::new(sender, made, &self.cluster, Some(room)))
    }

    /// The connection for HTTP/2, of which a pool may always have one.
    pub(super) async fn connect_http2(&self) -> Result<Connection<Http2>, UpstreamError> {
        let breakers = self.breakers();
        let room = breakers.map(|breakers| self.open.take_anyway(breakers));
        let (sender, made) = connect::http2(self).await?;
        Ok(Connection::new(sender, made, &self.cluster, room))
    }

    /// Where connections are limited, the right to wait for the one for HTTP/2.
    pub(super) fn pending(&self) -> Result<Option<Permit>, Overflow> {
        let breakers = self.breakers();
        breakers
            .map(|breakers| breakers.acquire(Resource::PendingRequests))
            .transpose()
    }
}
