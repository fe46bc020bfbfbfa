//! What operators see of a client: log, metrics, status.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tokio::sync::watch;

use super::{
    discovery::RefusedUpdate,
    resource::{ResourceType, Update},
    retry::Reached,
};
use crate::{
    Metrics,
    metrics::{Counter, Gauge},
};

/// How a client stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AdsStatus {
    /// Whether there is a stream.
    pub connected: bool,
    /// Why the latest stream ended or could not be had; `None` before that.
    pub lost: Option<String>,
    /// Each type, by its [name](ResourceType::name).
    pub types: BTreeMap<&'static str, TypeStatus>,
}

/// How one type stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TypeStatus {
    /// The version of the response accepted last, be it after its answer; `None` before.
    pub version: Option<String>,
    /// How many resources are in force.
    pub resources: usize,
    /// How many responses were accepted.
    pub accepted: u64,
    /// How many were refused, in part or as a whole.
    pub rejected: u64,
    /// When the latest response came, in seconds since 1970; `None` before.
    pub last_update: Option<u64>,
    /// The latest response, while something of it is refused.
    pub refused: Option<RefusedResponse>,
}

/// A response that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedResponse {
    /// Its version.
    pub version: String,
    /// Why, one reason a line.
    pub reason: String,
}

#[derive(Debug)]
pub(super) struct Reporter {
    server: String,
    status: watch::Sender<AdsStatus>,
    connected: Gauge,
    lost: Counter,
    foreign: Counter,
    types: BTreeMap<ResourceType, Counts>,
    /// The outage was logged.
    away: bool,
}

#[derive(Debug)]
struct Counts {
    accepted: Counter,
    rejected: Counter,
    last_update: Gauge,
}

impl Counts {
    fn new(resource_type: ResourceType, metrics: &Metrics) -> Self {
        let updates = |result| {
            metrics.counter(
                "attache_xds_updates",
                "Responses of the control plane by type and what became of them.",
                &[("type", resource_type.name()), ("result", result)],
            )
        };
        Self {
            accepted: updates("accepted"),
            rejected: updates("rejected"),
            last_update: metrics.gauge(
                "attache_xds_last_update_timestamp_seconds",
                "When the latest response of the control plane came.",
                &[("type", resource_type.name())],
            ),
        }
    }
}

impl Reporter {
    pub(super) fn new(server: &str, types: &[ResourceType], metrics: &Metrics) -> Self {
        let status = AdsStatus {
            types: types
                .iter()
                .map(|one| (one.name(), TypeStatus::default()))
                .collect(),
            ..AdsStatus::default()
        };
        Self {
            server: server.to_owned(),
            status: watch::Sender::new(status),
            connected: metrics.gauge(
                "attache_xds_connected",
                "Whether there is a stream from the control plane.",
                &[],
            ),
            lost: metrics.counter(
                "attache_xds_streams_lost",
                "Streams from the control plane that ended or could not be had.",
                &[],
            ),
            foreign: metrics.counter(
                "attache_xds_updates_ignored",
                "Responses of the control plane of types that were not asked for.",
                &[],
            ),
            types: types
                .iter()
                .map(|one| (*one, Counts::new(*one, metrics)))
                .collect(),
            away: false,
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<AdsStatus> {
        self.status.subscribe()
    }

    pub(super) fn connected(&mut self) {
        tracing::info!(server = self.server, "connected to the control plane");
        self.away = false;
        self.connected.set(1);
        self.status.send_modify(|status| status.connected = true);
    }

    pub(super) fn accepted(&self, update: &Update, in_force: usize) {
        let (server, version) = (&*self.server, &*update.version);
        let resource_type = update.resource_type;
        tracing::info!(server, r#type = %resource_type, version, in_force, "update accepted");
        if let Some(counts) = self.types.get(&resource_type) {
            counts.accepted.inc();
        }
        self.change(resource_type, |status| {
            status.version = Some(update.version.clone());
            status.resources = in_force;
            status.accepted = status.accepted.saturating_add(1);
            status.refused = None;
        });
    }

    pub(super) fn refused(&self, refused: &RefusedUpdate, in_force: usize) {
        let RefusedUpdate {
            resource_type,
            version,
            reason,
            pause,
        } = refused;
        let server = &*self.server;
        if pause.is_zero() {
            tracing::error!(
                server,
                r#type = %resource_type,
                version,
                reason,
                "update refused; what was in force in its place stays"
            );
        } else {
            tracing::debug!(server, r#type = %resource_type, version, reason, ?pause, "refused again");
        }
        if let Some(counts) = self.types.get(resource_type) {
            counts.rejected.inc();
        }
        self.change(*resource_type, |status| {
            status.resources = in_force;
            status.rejected = status.rejected.saturating_add(1);
            status.refused = Some(RefusedResponse {
                version: version.clone(),
                reason: reason.clone(),
            });
        });
    }

    /// What has become of the latest response of a type since it was answered.
    pub(super) fn show(&self, resource_type: ResourceType, refused: Option<String>) {
        self.status.send_modify(|status| {
            let status = status.types.entry(resource_type.name()).or_default();
            let before = status.refused.take().map(|before| before.version);
            let version = before.or_else(|| status.version.clone());
            match refused {
                Some(reason) => {
                    status.refused = Some(RefusedResponse {
                        version: version.unwrap_or_default(),
                        reason,
                    });
                }
                None => status.version = version,
            }
        });
    }

    /// A type has had a response.
    fn change(&self, resource_type: ResourceType, change: impl FnOnce(&mut TypeStatus)) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        if let Some(counts) = self.types.get(&resource_type) {
            counts
                .last_update
                .set(i64::try_from(now).unwrap_or(i64::MAX));
        }
        self.status.send_modify(|status| {
            let status = status.types.entry(resource_type.name()).or_default();
            status.last_update = Some(now);
            change(status);
        });
    }

    pub(super) fn foreign(&self, type_url: &str) {
        let server = &*self.server;
        tracing::warn!(
            server,
            type_url,
            "response of a type that was not asked for"
        );
        self.foreign.inc();
    }

    /// Outages are logged once.
    pub(super) fn lost(&mut self, reached: Reached, reason: String, pause: Duration) {
        let server = &*self.server;
        if std::mem::replace(&mut self.away, true) {
            tracing::debug!(server, reason, ?pause, "no control plane");
        } else if reached == Reached::Nothing {
            tracing::warn!(server, reason, ?pause, "cannot reach the control plane");
        } else {
            tracing::warn!(server, reason, ?pause, "the control plane is lost");
        }
        self.lost.inc();
        self.connected.set(0);
        self.status.send_modify(|status| {
            status.connected = false;
            status.lost = Some(reason);
        });
    }
}
