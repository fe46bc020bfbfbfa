//! Traces: `TRACING_*`, and OpenTelemetry's own variables.

use attache_service::trace::{TraceError, TraceSettings};

use super::variables::Variables;

/// What the reference's variables say of traces.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// `service.name`. Default `RateLimit`.
    pub service: String,
    /// `service.namespace`; none when empty.
    pub namespace: String,
    /// `service.instance.id`; a random one when empty.
    pub instance: String,
    /// The share of traces that is recorded, where the caller does not say. Default 1.
    pub ratio: f64,
}

/// Where the reference sends to when nothing is said.
const DEFAULT_ENDPOINT: &str = "http://localhost:4317";

impl Tracing {
    /// `None` when tracing is off.
    pub(super) fn read(variables: &mut Variables<'_>) -> Option<Self> {
        let enabled = variables.flag("TRACING_ENABLED", false);
        let protocols = [("", false), ("http", false), ("grpc", true)];
        let grpc = variables.choice("TRACING_EXPORTER_PROTOCOL", &protocols, false);
        let tracing = Self {
            service: variables.text("TRACING_SERVICE_NAME", "RateLimit"),
            namespace: variables.text("TRACING_SERVICE_NAMESPACE", ""),
            instance: variables.text("TRACING_SERVICE_INSTANCE_ID", ""),
            ratio: ratio(variables),
        };
        if enabled && !grpc {
            variables.no_effect(
                "TRACING_ENABLED",
                "traces are sent over gRPC only: set TRACING_EXPORTER_PROTOCOL to `grpc`",
            );
        }
        (enabled && grpc).then_some(tracing)
    }

    /// Settings of the exporter. Of OpenTelemetry's variables all count that the reference reads;
    /// the service's name and the share of traces are those of the reference's own variables.
    ///
    /// # Errors
    /// What is wrong with OpenTelemetry's variables.
    pub fn settings(
        &self,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<TraceSettings>, TraceError> {
        let mut attributes = environment("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let instance = match self.instance.as_str() {
            "" => format!("{:032x}", rand::random::<u128>()),
            given => given.to_owned(),
        };
        for (key, value) in [
            ("service.namespace", self.namespace.as_str()),
            ("service.instance.id", &instance),
        ] {
            if !value.is_empty() {
                let separator = if attributes.is_empty() { "" } else { "," };
                let value = escape(value);
                attributes = format!("{attributes}{separator}{key}={value}");
            }
        }
        TraceSettings::read(None, &self.service, |name| match name {
            "OTEL_SERVICE_NAME" => Some(self.service.clone()),
            "OTEL_RESOURCE_ATTRIBUTES" => Some(attributes.clone()),
            "OTEL_TRACES_SAMPLER" => Some("parentbased_traceidratio".to_owned()),
            "OTEL_TRACES_SAMPLER_ARG" => Some(self.ratio.to_string()),
            // Said by TRACING_EXPORTER_PROTOCOL.
            "OTEL_EXPORTER_OTLP_PROTOCOL" | "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" => None,
            "OTEL_EXPORTER_OTLP_ENDPOINT" => {
                environment(name).or_else(|| Some(DEFAULT_ENDPOINT.to_owned()))
            }
            name => environment(name),
        })
    }
}

/// The reference takes more than 1 for 1, and less than 0 for 0.
fn ratio(variables: &mut Variables<'_>) -> f64 {
    let text = variables.text("TRACING_SAMPLING_RATE", "1");
    match text.parse::<f64>() {
        Ok(ratio) if !ratio.is_nan() => ratio.clamp(0.0, 1.0),
        _ => {
            variables.refuse("TRACING_SAMPLING_RATE", "not a number");
            1.0
        }
    }
}

/// Percent-encodes what has a meaning in `OTEL_RESOURCE_ATTRIBUTES`.
fn escape(value: &str) -> String {
    percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC).to_string()
}
