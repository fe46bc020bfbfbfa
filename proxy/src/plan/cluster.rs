//! One cluster, as a worker runs it.

use std::{
    num::NonZero,
    sync::{Arc, OnceLock},
    time::Duration,
};

use attache_filter::metadata::MetadataPath;
use attache_service::{
    Address, ChannelSettings, Metrics,
    channel::Target,
    cluster::{
        Balance, Endpoints, Guards, Outliers, Source,
        breakers::{Breakers, BreakersPlan},
        health::{HealthChecks, HealthPlan},
        outlier::Detector,
    },
    tls::ClientTls,
};
use http::HeaderName;
use ipnet::IpNet;

use crate::{config, upstream::SWEEPS_PER_IDLE_TIMEOUT};

/// One cluster: an upstream or a policy service.
#[derive(Debug)]
pub struct ClusterPlan {
    /// Its name.
    pub name: Arc<str>,
    /// Its endpoints, one set for all workers.
    pub endpoints: Arc<Endpoints>,
    /// What says which they are, followed while the cluster runs; `None` where nobody does.
    pub source: Option<Source>,
    /// Under which name a control plane tells its endpoints.
    pub eds: Option<Arc<str>>,
    /// Where each request names its endpoint, how.
    pub destination: Option<DestinationPlan>,
    /// How they are chosen.
    pub balance: Balance,
    /// How requests are sent.
    pub protocol: Protocol,
    /// TLS to the endpoints; plain text when absent.
    pub tls: Option<ClientTls>,
    /// Bound on establishing a connection, TLS included. Default 1 s (Envoy: 5 s).
    pub connect_timeout: Duration,
    /// How long an unused connection is kept. Default 1 h, as Envoy.
    pub idle_timeout: Duration,
    /// A connection this old takes no further requests, give or take a tenth. Default: no bound.
    pub max_connection_duration: Option<Duration>,
    /// A connection that has carried so many requests takes no further ones. Default: no bound.
    pub max_requests_per_connection: Option<NonZero<u32>>,
    /// What it was made of, to see whether a reload leaves it as it is.
    pub(crate) configured: Option<config::Cluster>,
    /// Bound on a stream, from when it is sent there (`max_stream_duration`). Default: none.
    pub max_stream_duration: Option<Duration>,
    /// How much of it may be in use at a time (`circuit_breakers`). Default: no limits but that
    /// on retries.
    pub breakers: BreakersPlan,
    /// How endpoints are asked whether they are well (`health_checks`). Default: they are not.
    pub health: Option<HealthPlan>,
    /// When endpoints are ejected for how they answer (`outlier_detection`). Default: never.
    pub outliers: Option<Detector>,
    /// What guards it while it runs.
    pub(crate) guards: OnceLock<Guards>,
}

impl ClusterPlan {
    /// A plain-text HTTP/1.1 cluster with defaults.
    pub fn new(name: &str, addresses: impl IntoIterator<Item = Address>) -> Self {
        let name: Arc<str> = name.into();
        Self {
            endpoints: Endpoints::new(name.clone(), addresses),
            name,
            source: None,
            eds: None,
            destination: None,
            balance: Balance::default(),
            protocol: Protocol::Http1,
            tls: None,
            connect_timeout: Duration::from_secs(1),
            idle_timeout: DEFAULT_CLUSTER_IDLE,
            max_connection_duration: None,
            max_requests_per_connection: None,
            configured: None,
            max_stream_duration: None,
            breakers: BreakersPlan::default(),
            health: None,
            outliers: None,
            guards: OnceLock::new(),
        }
    }

    /// What a client of a service of the cluster is told, guards included.
    ///
    /// # Panics
    /// As [`guards`](Self::guards).
    pub(crate) fn channel(&self, metrics: &Metrics) -> ChannelSettings {
        ChannelSettings {
            guards: Some(self.guards(metrics).clone()),
            ..self.unguarded_channel()
        }
    }

    /// The same without guards, which begin when the cluster runs.
    pub(crate) fn unguarded_channel(&self) -> ChannelSettings {
        ChannelSettings {
            balance: self.balance,
            tls: self.tls.clone(),
            connect_timeout: self.connect_timeout,
            max_connection_duration: self.max_connection_duration,
            ..ChannelSettings::of(self.endpoints.clone())
        }
    }

    /// What guards the cluster while it runs, over all workers; health checks begin with the
    /// first call.
    ///
    /// # Panics
    /// The first call, outside a tokio runtime.
    pub(crate) fn guards(&self, metrics: &Metrics) -> &Guards {
        self.guards.get_or_init(|| {
            let endpoints = &self.endpoints;
            let outliers = self.outliers.as_ref().map(|detector| {
                let outliers = Outliers::new(detector.clone(), &self.name, metrics);
                endpoints.attach(outliers.clone().run(Arc::downgrade(endpoints)));
                outliers
            });
            if let Some(plan) = &self.health {
                let (plan, tls) = (plan.clone(), self.tls.clone());
                let checks = HealthChecks::new(plan, tls, outliers.clone(), &self.name, metrics);
                endpoints.attach(checks.run(Arc::downgrade(endpoints)));
            }
            Guards {
                breakers: Breakers::new(self.breakers, &self.name, metrics),
                outliers,
                checked: self.health.is_some(),
            }
        })
    }

    /// How often connections are looked over.
    pub(crate) fn sweeps_every(&self) -> Duration {
        let shortest = self.max_connection_duration.unwrap_or(Duration::MAX);
        let every = self.idle_timeout / SWEEPS_PER_IDLE_TIMEOUT;
        every.min(shortest).max(Duration::from_millis(10))
    }

    /// Whether it is the same cluster as `other`, so that what runs of it can go on: it was
    /// configured in the same way, and embeds the same service.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let embedded = |plan: &Self| -> Vec<Target> {
            let members = plan.endpoints.members();
            let targets = members
                .iter()
                .map(|member| member.endpoint.target().clone());
            targets
                .filter(|target| matches!(target, Target::Embedded(_)))
                .collect()
        };
        let (one, two) = (embedded(self), embedded(other));
        self.name == other.name
            && self.configured.is_some()
            && self.configured == other.configured
            && one.len() == two.len()
            && one.iter().zip(&two).all(|(one, two)| one.is(two))
    }
}

/// How long an unused connection to an endpoint is kept unless configured.
pub const DEFAULT_CLUSTER_IDLE: Duration = Duration::from_secs(3600);

/// How requests name their endpoint themselves.
#[derive(Debug, Clone)]
pub struct DestinationPlan {
    /// The header that names it.
    pub header: Option<HeaderName>,
    /// The dynamic metadata that names it; looked at first.
    pub metadata: Option<MetadataPath>,
    /// Where it may be.
    pub allowed: Vec<IpNet>,
    /// Endpoints that a worker keeps connections to at a time. Default 1024.
    pub max_endpoints: usize,
}

/// The protocol spoken to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 with kept connections.
    Http1,
    /// HTTP/2, one connection per worker and endpoint (`http2: {}`).
    Http2,
}
