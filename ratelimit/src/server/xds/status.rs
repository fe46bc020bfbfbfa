//! What operators see of a subscription: log, metrics, readiness.

use std::time::Duration;

use attache_service::{
    Address, Metrics,
    admin::Condition,
    metrics::{Counter, Gauge},
    xds::{Reached, RefusedUpdate, Update},
};
use tokio::sync::watch;

/// How a subscription stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XdsStatus {
    /// Whether there is a stream.
    pub connected: bool,
    /// What is in force; `None` until a response was accepted.
    pub accepted: Option<Accepted>,
    /// Why the latest response was refused; `None` when it was accepted, or none has come.
    pub refused: Option<String>,
    /// Why the latest stream ended or could not be had; `None` before that.
    pub lost: Option<String>,
}

/// The state of the world in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its version, as the server names it.
    pub version: String,
    /// How many resources it has.
    pub resources: usize,
}

impl XdsStatus {
    /// Whether a response has come, accepted or not.
    pub fn has_answer(&self) -> bool {
        self.accepted.is_some() || self.refused.is_some()
    }
}

#[derive(Debug)]
pub(super) struct Reporter {
    server: String,
    status: watch::Sender<XdsStatus>,
    condition: Option<Condition>,
    connected: Gauge,
    accepted: Counter,
    refused: Counter,
    ignored: Counter,
    lost: Counter,
    /// The outage was logged.
    away: bool,
}

impl Reporter {
    pub(super) fn new(server: &Address, metrics: &Metrics) -> Self {
        let responses = |result| {
            metrics.counter(
                "attache_ratelimit_xds_responses",
                "Responses of the xDS server by what became of them.",
                &[("result", result)],
            )
        };
        Self {
            server: server.to_string(),
            status: watch::Sender::default(),
            condition: None,
            connected: metrics.gauge(
                "attache_ratelimit_xds_connected",
                "Whether there is a stream from the xDS server.",
                &[],
            ),
            accepted: responses("accepted"),
            refused: responses("refused"),
            ignored: responses("ignored"),
            lost: metrics.counter(
                "attache_ratelimit_xds_streams_lost",
                "Streams from the xDS server that ended or could not be had.",
                &[],
            ),
            away: false,
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<XdsStatus> {
        self.status.subscribe()
    }

    pub(super) fn ready_by(&mut self, condition: Condition) {
        condition.fail(&format!("no rules from xDS server {} yet", self.server));
        self.condition = Some(condition);
    }

    pub(super) fn connected(&mut self) {
        tracing::info!(server = self.server, "subscribed to rules");
        self.away = false;
        self.connected.set(1);
        self.status.send_modify(|status| status.connected = true);
    }

    pub(super) fn accepted(&self, update: &Update) {
        let server = &*self.server;
        let version = &*update.version;
        let resources = update.resources.len();
        tracing::info!(server, version, resources, "rules accepted");
        self.accepted.inc();
        if let Some(condition) = &self.condition {
            condition.hold();
        }
        self.status.send_modify(|status| {
            status.refused = None;
            status.accepted = Some(Accepted {
                version: version.to_owned(),
                resources,
            });
        });
    }

    pub(super) fn refused(&self, refused: &RefusedUpdate) {
        let server = &*self.server;
        let (version, reason, pause) = (&*refused.version, &*refused.reason, refused.pause);
        self.refused.inc();
        if !pause.is_zero() {
            tracing::debug!(server, version, reason, ?pause, "rules refused again");
            return;
        }
        tracing::error!(
            server,
            version,
            reason,
            "rules refused; those in force stay in force"
        );
        if let Some(condition) = &self.condition
            && self.status.borrow().accepted.is_none()
        {
            condition.fail(&format!("the rules of xDS server {server} are refused"));
        }
        self.status
            .send_modify(|status| status.refused = Some(reason.to_owned()));
    }

    pub(super) fn ignored(&self, type_url: &str) {
        let server = &*self.server;
        tracing::warn!(
            server,
            type_url,
            "response of a type that was not asked for"
        );
        self.ignored.inc();
    }

    /// Outages are logged once.
    pub(super) fn lost(&mut self, reached: Reached, reason: String, pause: Duration) {
        if std::mem::replace(&mut self.away, true) {
            tracing::debug!(server = self.server, reason, ?pause, "no rules");
        } else if reached == Reached::Nothing {
            tracing::warn!(
                server = self.server,
                reason,
                ?pause,
                "cannot subscribe to rules"
            );
        } else {
            tracing::warn!(
                server = self.server,
                reason,
                ?pause,
                "rules are not followed"
            );
        }
        self.lost.inc();
        self.connected.set(0);
        self.status.send_modify(|status| {
            status.connected = false;
            status.lost = Some(reason);
        });
    }
}
