//! Rules from a control plane: discovery (xDS), state of the world, over one aggregated stream.
//!
//! - [`settings`]: which server, who we are, and how persistent.
//! - `rules`: resources as rules, and why they are refused.
//! - [`status`]: what operators see.
//!
//! The client subscribes to all resources of
//! `type.googleapis.com/ratelimit.config.ratelimit.v3.RateLimitConfig`, as the reference service
//! does. Each response replaces everything that was there before; none at all is a valid state.
//! A response that is refused is answered with the reason, and what was accepted before stays in
//! force, also while the server is away.

mod rules;
pub mod settings;
pub mod status;

use attache_proto::ratelimit_config::RateLimitConfig;
use attache_service::{
    Metrics,
    admin::Condition,
    config::Errors,
    tls::ClientTls,
    xds::{Discovery, Event, Wanted},
};
use tokio::sync::watch;

pub use attache_service::xds::Retry;
use rules::RULES;
pub use settings::{NodeIdentity, XdsSettings};
use status::Reporter;
pub use status::XdsStatus;

/// Keeps a subscription to the rules of one control plane.
pub struct XdsClient {
    tls: Option<ClientTls>,
    discovery: Discovery,
    reporter: Reporter,
}

impl XdsClient {
    /// A client that does nothing until [`XdsClient::run`].
    ///
    /// Counted are, in `metrics`: `attache_ratelimit_xds_connected` (1 while there is a stream),
    /// `attache_ratelimit_xds_responses` by `result` (`accepted`, `refused`, `ignored`) and
    /// `attache_ratelimit_xds_streams_lost`.
    pub fn new(settings: XdsSettings, metrics: &Metrics) -> Self {
        Self {
            tls: settings.tls.clone(),
            reporter: Reporter::new(&settings.server, metrics),
            discovery: Discovery::new(settings.into(), [(RULES, Wanted::All)]),
        }
    }

    /// Says by `condition` whether there are rules: it fails until the first response is
    /// accepted, and holds from then on.
    #[must_use]
    pub fn readiness(mut self, condition: Condition) -> Self {
        self.reporter.ready_by(condition);
        self
    }

    /// What operators see; changes can be waited for.
    pub fn status(&self) -> watch::Receiver<XdsStatus> {
        self.reporter.subscribe()
    }

    /// Follows the control plane, and never returns; dropped, it ends the subscription.
    ///
    /// `apply` gets all resources of a response. What it refuses is answered with its errors,
    /// each as `<name of the resource>: <message>`.
    pub async fn run(mut self, mut apply: impl FnMut(&[RateLimitConfig]) -> Result<(), Errors>) {
        let tls = self.tls.clone();
        let certificates = async {
            match &tls {
                Some(tls) => tls.follow_files().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = certificates => {}
            () = self.subscribe(&mut apply) => {}
        }
    }

    async fn subscribe(
        &mut self,
        apply: &mut impl FnMut(&[RateLimitConfig]) -> Result<(), Errors>,
    ) {
        loop {
            match self.discovery.next().await {
                Event::Connected => self.reporter.connected(),
                Event::Lost {
                    reached,
                    reason,
                    pause,
                } => self.reporter.lost(reached, reason, pause),
                Event::Refused(refused) => self.reporter.refused(&refused),
                Event::Foreign(type_url) => self.reporter.ignored(&type_url),
                Event::Update(update) => {
                    let answer = rules::apply(&update, apply);
                    match self.discovery.answer(&update, &answer) {
                        None => self.reporter.accepted(&update),
                        Some(refused) => self.reporter.refused(&refused),
                    }
                }
            }
        }
    }
}
