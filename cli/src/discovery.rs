//! The control plane of a running proxy, if its file names one.

use attache_proxy::{
    Config, Plan, Running,
    xds::{ControlPlane, Event, XdsError},
};
use attache_service::{
    Metrics,
    admin::{Condition, Readiness},
    config::Document,
    xds::AdsStatus,
};
use tokio::sync::watch;

use crate::Failure;

/// Follows the control plane that the file names, from one file to the next.
pub(crate) struct Discovery {
    control: Option<ControlPlane>,
    /// Holds once the first answers have come.
    condition: Option<Condition>,
    readiness: Readiness,
    metrics: Metrics,
}

impl Discovery {
    /// What `config` says, which runs.
    pub(crate) fn new(
        config: &Config,
        document: &Document,
        running: &Running,
        metrics: Metrics,
        readiness: Readiness,
    ) -> Self {
        let mut this = Self {
            control: None,
            condition: None,
            readiness,
            metrics,
        };
        this.begin(config.clone(), document.clone(), running);
        this
    }

    fn begin(&mut self, config: Config, document: Document, running: &Running) {
        self.control = ControlPlane::new(config, document, &running.plan(), &self.metrics);
        if self.control.is_some() && self.condition.is_none() {
            let reason = "waits for the control plane";
            self.condition = Some(self.readiness.condition("xds", reason));
        }
    }

    /// How things stand with the control plane, where there is one.
    pub(crate) fn status(&self) -> Option<watch::Receiver<AdsStatus>> {
        self.control.as_ref().map(ControlPlane::status)
    }

    /// Waits for what happens next; for ever without a control plane.
    pub(crate) async fn next(&mut self) -> Event {
        match &mut self.control {
            Some(control) => control.next().await,
            None => std::future::pending().await,
        }
    }

    /// Does what is to be done.
    pub(crate) async fn take(&mut self, event: Event, running: &Running) {
        if let Some(control) = &mut self.control {
            control.take(event, running).await;
        }
        self.tell();
    }

    /// Whether the first answers have come, or are done without.
    pub(crate) fn is_ready(&self) -> bool {
        self.control.as_ref().is_none_or(ControlPlane::is_ready)
    }

    fn tell(&self) {
        let ready = self.is_ready();
        if let Some(condition) = self.condition.as_ref().filter(|_| ready) {
            condition.hold();
        }
    }

    /// Brings another file into force.
    pub(crate) async fn reload(
        &mut self,
        config: Config,
        document: &Document,
        plan: Plan,
        running: &Running,
    ) -> Result<(), Failure> {
        if let Some(control) = self.control.as_mut().filter(|_| plan.xds.is_some()) {
            let done = control.rebase(config, document.clone(), &plan, running);
            return done.await.map_err(|error| match error {
                XdsError::Config(errors) => Failure::Config(errors),
                XdsError::Run(error) => Failure::run(error),
            });
        }
        running.reload(plan).await.map_err(Failure::run)?;
        self.begin(config, document.clone(), running);
        self.tell();
        Ok(())
    }
}
