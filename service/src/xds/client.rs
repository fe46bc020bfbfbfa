//! The client: a subscription with its account for operators.

use std::collections::BTreeSet;

use tokio::sync::watch;

use super::{
    discovery::{Discovery, Event},
    resource::{Answer, ResourceType, Update, Wanted},
    settings::AdsSettings,
    status::{AdsStatus, Reporter},
};
use crate::{Metrics, channel::OutageLog};

/// Follows a control plane: resources of several types over one aggregated stream.
///
/// It does something only while [`AdsClient::next`] is awaited, which may be given up and awaited
/// again at any time; dropped, it ends the subscription.
pub struct AdsClient {
    discovery: Discovery,
    reporter: Reporter,
}

impl AdsClient {
    /// A client of these types. On each new stream they are asked for in this order.
    ///
    /// Counted are, in `metrics`: `attache_xds_connected` (1 while there is a stream),
    /// `attache_xds_updates` by `type` and `result` (`accepted`, `rejected`),
    /// `attache_xds_last_update_timestamp_seconds` by `type`, `attache_xds_updates_ignored` (of
    /// types that were not asked for) and `attache_xds_streams_lost`.
    pub fn new(
        mut settings: AdsSettings,
        types: impl IntoIterator<Item = (ResourceType, Wanted)>,
        metrics: &Metrics,
    ) -> Self {
        // Outages are told here.
        settings.channel.outage_log = OutageLog::Caller;
        let types: Vec<_> = types.into_iter().collect();
        let kinds: Vec<_> = types.iter().map(|(kind, _)| *kind).collect();
        Self {
            reporter: Reporter::new(&settings.channel.name, &kinds, metrics),
            discovery: Discovery::new(settings, types),
        }
    }

    /// Counts resources of these names, which another source has brought, as in force: when the
    /// server does not have them, they come among [`Update::removed`]. To be called before the
    /// first [`AdsClient::next`].
    pub fn resume(&mut self, resource_type: ResourceType, names: impl IntoIterator<Item = String>) {
        self.discovery.resume(resource_type, names);
    }

    /// Asks for these names from here on, all of them that are wanted of a
    /// [`Wanted::Named`] type; of another, everything is wanted anyway. Resources that are wanted
    /// no longer count as gone.
    pub fn subscribe(&mut self, resource_type: ResourceType, names: BTreeSet<String>) {
        self.discovery.subscribe(resource_type, names);
    }

    /// The next update. Streams that are lost are made anew, for ever.
    pub async fn next(&mut self) -> Update {
        loop {
            match self.discovery.next().await {
                Event::Update(update) => return update,
                Event::Connected => self.reporter.connected(),
                Event::Lost {
                    reached,
                    reason,
                    pause,
                } => self.reporter.lost(reached, reason, pause),
                Event::Refused(refused) => {
                    let in_force = self.discovery.in_force(refused.resource_type);
                    self.reporter.refused(&refused, in_force);
                }
                Event::Foreign(type_url) => self.reporter.foreign(&type_url),
            }
        }
    }

    /// Says what became of an update, which is acknowledged or refused with the reasons. Each has
    /// to be answered, in the order in which they came.
    ///
    /// A refusal that says the same as the one before is said after a pause, of up to 10 s: some
    /// servers send what was refused again at once.
    pub fn answer(&mut self, update: &Update, answer: &Answer) {
        let refused = self.discovery.answer(update, answer);
        let in_force = self.discovery.in_force(update.resource_type);
        match refused {
            None => self.reporter.accepted(update, in_force),
            Some(refused) => self.reporter.refused(&refused, in_force),
        }
    }

    /// Says in the status what has become of the latest response of a type since it was answered:
    /// something of it may have come into force, or be so no longer. The server learns of it with
    /// the answer to its next response.
    pub fn show(&mut self, resource_type: ResourceType, answer: &Answer) {
        self.reporter.show(resource_type, answer.reason());
    }

    /// How it stands; changes can be waited for.
    pub fn status(&self) -> watch::Receiver<AdsStatus> {
        self.reporter.subscribe()
    }
}
