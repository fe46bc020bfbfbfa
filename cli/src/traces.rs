//! Traces: `--otlp-endpoint` and OpenTelemetry's environment.

use std::time::Duration;

use attache_service::{
    Metrics, Shutdown,
    trace::{Exporter, TraceError, TraceSettings, Tracer},
};

use crate::{Failure, args::TraceArgs};

/// How long the last spans may take to be sent when all else has stopped.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// The traces of this process, if they are sent.
pub(crate) struct Traces {
    exporter: Option<Exporter>,
    tracer: Tracer,
}

impl Traces {
    /// Starts sending if there is a collector to send to.
    pub(crate) fn start(args: &TraceArgs, metrics: &Metrics) -> Result<Self, Failure> {
        let endpoint = args.otlp_endpoint.as_deref();
        let settings = TraceSettings::from_environment(endpoint, "attache").map_err(wrong)?;
        Self::with(settings, metrics)
    }

    /// Starts sending as these settings say, if there are any.
    pub(crate) fn with(
        settings: Option<TraceSettings>,
        metrics: &Metrics,
    ) -> Result<Self, Failure> {
        let Some(settings) = settings else {
            return Ok(Self {
                exporter: None,
                tracer: Tracer::default(),
            });
        };
        let (exporter, tracer) = Exporter::start(settings, metrics).map_err(wrong)?;
        Ok(Self {
            exporter: Some(exporter),
            tracer,
        })
    }

    pub(crate) fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Sends what waits, unless the stop is to be immediate.
    pub(crate) async fn finish(self, shutdown: &Shutdown) {
        let Some(exporter) = self.exporter else {
            return;
        };
        tokio::select! {
            () = exporter.finish(LAST_SPANS) => {}
            () = shutdown.recv_immediate() => {}
        }
    }
}

fn wrong(error: TraceError) -> Failure {
    match error {
        TraceError::Start(_) => Failure::run(error),
        TraceError::Setting { .. } | TraceError::Tls(_) => Failure::Usage(error.to_string()),
    }
}
