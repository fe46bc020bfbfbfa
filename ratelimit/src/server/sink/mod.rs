//! Where statistics go, by the names of the reference service.
//!
//! - [`statsd`]: lines over TCP.
//! - [`dog_statsd`]: datagrams with tags, and names that are changed on the way.
//! - [`prometheus`]: pages that a Prometheus fetches.
//! - [`mapper`]: from the reference's dotted names to names and labels of Prometheus.

pub mod dog_statsd;
pub mod mapper;
pub mod prometheus;
pub mod statsd;

use std::time::Duration;

use attache_service::{Address, config::Errors, listen::ListenError};

use super::statistics::StatisticsSource;

pub use dog_statsd::Mogrifier;
pub use prometheus::PrometheusSettings;

/// Where statistics go, and how often.
#[derive(Debug, Clone)]
pub struct StatisticsSettings {
    /// Where.
    pub sink: SinkSettings,
    /// How often; Prometheus comes when it likes. Default 10 s.
    pub flush_interval: Duration,
    /// Tags, or labels, of all of them.
    pub extra_tags: Vec<(String, String)>,
}

/// Where statistics go.
#[derive(Debug, Clone)]
pub enum SinkSettings {
    /// Nowhere.
    None,
    /// Into the log, at level `info`.
    Log,
    /// To a collector that speaks statsd over TCP.
    Statsd(Address),
    /// To a Datadog agent, over UDP.
    DogStatsd {
        /// Where it listens.
        collector: Address,
        /// What becomes of names, the first that matches.
        mogrifiers: Vec<Mogrifier>,
    },
    /// To a Prometheus that fetches them.
    Prometheus(PrometheusSettings),
}

/// Why statistics cannot go there.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Prometheus has nowhere to fetch them from.
    #[error("statistics for Prometheus: {0}")]
    Listen(#[from] ListenError),
    /// The mapper's file is wrong.
    #[error(transparent)]
    Mapper(#[from] Errors),
}

/// One statistic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The reference's name: `ratelimit.service.rate_limit.<domain>.<path>.over_limit`.
    pub name: String,
    /// What it stands at, or by what it grew.
    pub value: SampleValue,
}

/// What a statistic says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SampleValue {
    /// How often.
    Counter(u64),
    /// How much now.
    Gauge(u64),
    /// How long, in milliseconds, and how often so long.
    Timer(Vec<(u64, u64)>),
}

/// A sink that is ready to run: where Prometheus comes to is bound already.
pub struct Sink {
    kind: Kind,
    settings: StatisticsSettings,
}

enum Kind {
    Idle,
    Log,
    Statsd(Address),
    DogStatsd(Address, Vec<Mogrifier>),
    Prometheus(Box<prometheus::Page>),
}

impl Sink {
    /// Makes it ready.
    ///
    /// # Errors
    /// The mapper's file is wrong, or the address for Prometheus cannot be listened on.
    pub async fn bind(settings: StatisticsSettings) -> Result<Self, SinkError> {
        let kind = match settings.sink.clone() {
            SinkSettings::None => Kind::Idle,
            SinkSettings::Log => Kind::Log,
            SinkSettings::Statsd(collector) => Kind::Statsd(collector),
            SinkSettings::DogStatsd {
                collector,
                mogrifiers,
            } => Kind::DogStatsd(collector, mogrifiers),
            SinkSettings::Prometheus(prometheus) => {
                let tags = settings.extra_tags.clone();
                Kind::Prometheus(Box::new(prometheus::Page::bind(&prometheus, tags).await?))
            }
        };
        Ok(Self { kind, settings })
    }

    /// Where Prometheus finds them, with the port that the system chose.
    pub fn address(&self) -> Option<&Address> {
        match &self.kind {
            Kind::Prometheus(page) => Some(page.address()),
            _ => None,
        }
    }

    /// Sends statistics until dropped.
    pub async fn run(self, source: StatisticsSource) {
        let StatisticsSettings {
            flush_interval,
            extra_tags,
            ..
        } = self.settings;
        let mut push = match self.kind {
            Kind::Idle => std::future::pending().await,
            Kind::Prometheus(page) => return page.serve(source).await,
            Kind::Log => Push::Log,
            Kind::Statsd(collector) => Push::Statsd(statsd::Statsd::new(collector, &extra_tags)),
            Kind::DogStatsd(collector, mogrifiers) => Push::DogStatsd(dog_statsd::DogStatsd::new(
                collector,
                mogrifiers,
                &extra_tags,
            )),
        };
        loop {
            tokio::time::sleep(flush_interval).await;
            push.flush(&source).await;
        }
    }
}

/// A sink that is sent to.
enum Push {
    Log,
    Statsd(statsd::Statsd),
    DogStatsd(dog_statsd::DogStatsd),
}

impl Push {
    async fn flush(&mut self, source: &StatisticsSource) {
        match self {
            Self::Log => {
                for Sample { name, value } in source.flush() {
                    tracing::info!(name, ?value, "statistic");
                }
            }
            Self::Statsd(sink) => sink.flush(source).await,
            Self::DogStatsd(sink) => sink.flush(source).await,
        }
    }
}
