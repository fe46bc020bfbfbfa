//! The connections of an HTTP client: how they are made, kept and given up.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::Instant;

use super::{HttpError, Inner};
use crate::{
    Io,
    channel::notice_vanished_peers,
    cluster::{Endpoint, InFlight, Opened, Room, Rooms, breakers::Resource, jittered},
};

/// Unused HTTP/1.1 connections kept per endpoint; more are closed after their answer.
const MAX_KEPT: usize = 16;
/// An HTTP/1.1 connection unused for longer is closed when it is come across.
const KEPT_FOR: Duration = Duration::from_secs(30);

pub(super) type Http1 = http1::SendRequest<Full<Bytes>>;
pub(super) type Http2 = http2::SendRequest<Full<Bytes>>;

/// The connections to one endpoint.
#[derive(Default)]
pub(super) struct Pool {
    kept: Mutex<Vec<(Aging<Http1>, Instant)>>,
    http2: tokio::sync::Mutex<Option<Aging<Http2>>>,
    pub(super) open: Rooms,
}

/// A connection, and when it takes no further requests.
pub(super) struct Aging<C> {
    pub(super) connection: C,
    ends: Option<Instant>,
    /// Where connections are limited.
    _room: Option<Room>,
}

impl<C> Aging<C> {
    fn is_over(&self) -> bool {
        self.ends.is_some_and(|ends| ends <= Instant::now())
    }
}

impl Inner {
    /// The one connection for all.
    pub(super) async fn http2(&self, at: &InFlight<Pool>) -> Result<Http2, HttpError> {
        let mut current = at.own.http2.lock().await;
        let usable = |one: &&Aging<Http2>| !one.connection.is_closed() && !one.is_over();
        if let Some(sender) = current.as_ref().filter(usable) {
            return Ok(sender.connection.clone());
        }
        let breakers = self.breakers();
        let _pending = self.admit(Resource::PendingRequests)?;
        // There may always be the one.
        let room = breakers.map(|breakers| at.own.open.take_anyway(breakers));
        let io = self.connect(&at.endpoint).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .map_err(|e| self.broken(e))?;
        tokio::spawn(connection);
        *current = Some(self.aging(sender.clone(), room));
        Ok(sender)
    }

    pub(super) fn aging<C>(&self, connection: C, room: Option<Room>) -> Aging<C> {
        let max_age = self.settings.max_connection_duration;
        Aging {
            connection,
            ends: max_age.and_then(|max_age| Instant::now().checked_add(jittered(max_age))),
            _room: room,
        }
    }

    pub(super) async fn connect(&self, endpoint: &Endpoint) -> Result<Box<dyn Io>, HttpError> {
        let limit = self.settings.connect_timeout;
        let attempt = async {
            let opened = tokio::time::timeout(limit, self.open(endpoint)).await;
            opened.unwrap_or_else(|_| {
                let message = format!("not connected within {limit:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, message))
            })
        };
        let opened = endpoint.counted(attempt).await;
        opened.map_err(|reason| HttpError::Connect {
            target: endpoint.to_string(),
            cluster: self.settings.name.clone(),
            reason,
        })
    }

    async fn open(&self, endpoint: &Endpoint) -> io::Result<Box<dyn Io>> {
        let opened = endpoint.open().await?;
        if let Opened::Tcp(io) = &opened {
            notice_vanished_peers(io)?;
        }
        let tls = self.settings.tls.as_ref();
        opened.secured(tls, endpoint.hostname()).await
    }
}

impl Pool {
    pub(super) fn take_kept(&self) -> Option<Aging<Http1>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut not_yet = None;
        let found = loop {
            match kept.pop() {
                None => break None,
                Some((sender, since)) if sender.is_over() || since.elapsed() >= KEPT_FOR => {}
                Some((sender, _)) if sender.connection.is_ready() => break Some(sender),
                Some((sender, _)) if sender.connection.is_closed() || not_yet.is_some() => {}
                // Its task has not seen the end of the last answer yet.
                Some(one) => not_yet = Some(one),
            }
        };
        kept.extend(not_yet);
        found
    }

    pub(super) fn keep(&self, sender: Aging<Http1>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = !sender.connection.is_closed() && !sender.is_over();
        if usable && kept.len() < MAX_KEPT {
            kept.push((sender, Instant::now()));
        }
    }
}
