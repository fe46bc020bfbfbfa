//! Where spans go, by flag and by OpenTelemetry's environment variables.

use std::{path::PathBuf, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use super::sampler::Sampler;
use crate::{
    Address, ChannelSettings,
    channel::Target,
    tls::{ClientFiles, ClientTls, TlsError},
};

/// Where collectors listen for OTLP/gRPC.
const PORT: u16 = 4317;
/// Most spans that wait, whatever the environment says.
const MAX_QUEUE: usize = 1 << 20;
/// Longest pause and longest attempt.
const MAX_MILLISECONDS: u64 = 600_000;

/// A setting of tracing that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A variable, or the flag, has a value that it cannot have.
    #[error("{setting}: {problem}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// TLS to the collector cannot be set up.
    #[error("TLS to the trace collector: {0}")]
    Tls(#[from] TlsError),
    /// The thread that sends cannot be started.
    #[error("cannot start sending traces: {0}")]
    Start(#[from] std::io::Error),
}

/// Where spans go, and which.
#[derive(Clone)]
pub struct TraceSettings {
    pub(super) collector: ChannelSettings,
    pub(super) metadata: HeaderMap,
    /// What describes this program: `service.name` and more.
    pub(super) resource: Vec<(String, String)>,
    pub(super) sampler: Sampler,
    /// Most spans that wait.
    pub(super) queue: usize,
    /// Most spans that are sent at once.
    pub(super) batch: usize,
    /// How long a span waits for others to be sent with.
    pub(super) delay: Duration,
    /// Bound on one attempt to send.
    pub(super) timeout: Duration,
}

const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

impl TraceSettings {
    /// Spans of the program `service` for the collector at `endpoint`, such as
    /// `http://127.0.0.1:4317`.
    ///
    /// # Errors
    /// What is wrong with the endpoint.
    pub fn at(endpoint: &str, service: &str) -> Result<Option<Self>, TraceError> {
        Self::read(Some(endpoint), service, |_| None)
    }

    /// The same for another collector.
    #[must_use]
    pub fn with_collector(mut self, collector: ChannelSettings) -> Self {
        self.collector = collector;
        self
    }

    /// The settings of the environment of this process. `endpoint`, the value of
    /// `--otlp-endpoint`, counts more than it; `service` is the name of the program where
    /// `OTEL_SERVICE_NAME` gives none. `None` when no endpoint is given: tracing is off.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn from_environment(
        endpoint: Option<&str>,
        service: &str,
    ) -> Result<Option<Self>, TraceError> {
        Self::read(endpoint, service, |name| std::env::var(name).ok())
    }

    /// The same with an environment of yours.
    ///
    /// # Errors
    /// As [`TraceSettings::from_environment`].
    pub fn read(
        endpoint: Option<&str>,
        service: &str,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, TraceError> {
        // A variable that is empty counts as one that is not set.
        let variable = |name| environment(name).filter(|value| !value.trim().is_empty());
        let either = |names: [&'static str; 2]| {
            let mut names = names.into_iter();
            names.find_map(|name| Some((name, variable(name)?)))
        };
        let is = |name, wanted: &str| {
            variable(name).is_some_and(|value| value.trim().eq_ignore_ascii_case(wanted))
        };
        let endpoint = match endpoint {
            Some(endpoint) => Some(("--otlp-endpoint", endpoint.to_owned())),
            None if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") => None,
            None => either(ENDPOINTS),
        };
        let Some((setting, endpoint)) = endpoint else {
            return Ok(None);
        };
        if let Some((setting, protocol)) = either([
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ]) && protocol.trim() != "grpc"
        {
            return wrong(
                setting,
                format!("`{protocol}` is not spoken here; `grpc` is"),
            );
        }
        let certificate = either([
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
        ]);
        let ca = certificate.map(|(_, file)| PathBuf::from(file));
        let mut collector = collector(setting, endpoint.trim(), ca)?;
        let (timeout_setting, timeout) = either([
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
            "OTEL_EXPORTER_OTLP_TIMEOUT",
        ])
        .map_or(("", None), |(name, value)| (name, Some(value)));
        let timeout = milliseconds(timeout_setting, timeout, 10_000)?;
        collector.connect_timeout = timeout;
        let number = |name, default| number(name, variable(name), default, MAX_QUEUE as u64);
        let queue = number("OTEL_BSP_MAX_QUEUE_SIZE", 2048)? as usize;
        let batch = number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)? as usize;
        let delay = "OTEL_BSP_SCHEDULE_DELAY";
        let headers = either([
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ]);
        Ok(Some(Self {
            collector,
            metadata: headers.map_or_else(
                || Ok(HeaderMap::new()),
                |(name, text)| headers_of(name, &text),
            )?,
            resource: resource(
                variable("OTEL_SERVICE_NAME").as_deref(),
                service,
                variable("OTEL_RESOURCE_ATTRIBUTES").as_deref(),
            )?,
            sampler: sampler(
                variable("OTEL_TRACES_SAMPLER").as_deref(),
                variable("OTEL_TRACES_SAMPLER_ARG").as_deref(),
            )?,
            queue,
            batch: batch.min(queue),
            delay: milliseconds(delay, variable(delay), 5_000)?,
            timeout,
        }))
    }
}

fn wrong<T>(setting: &'static str, problem: impl Into<String>) -> Result<T, TraceError> {
    let problem = problem.into();
    Err(TraceError::Setting { setting, problem })
}

fn collector(
    setting: &'static str,
    endpoint: &str,
    ca: Option<PathBuf>,
) -> Result<ChannelSettings, TraceError> {
    let problem = |problem: &str| wrong(setting, format!("`{endpoint}`: {problem}"));
    if endpoint.starts_with("unix:") {
        return match endpoint.parse() {
            Ok(address) => Ok(ChannelSettings::new(
                "localhost",
                vec![Target::Address(address)],
            )),
            Err(error) => problem(&format!("{error}")),
        };
    }
    let Ok(url) = endpoint.parse::<Uri>() else {
        return problem("not a URL");
    };
    let secure = match url.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return problem("expected `http://` or `https://`, such as http://127.0.0.1:4317"),
    };
    if !matches!(url.path(), "" | "/") || url.query().is_some() {
        return problem("OTLP over gRPC is asked for by host and port, without a path");
    }
    if url
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        // Not shown: there is a password in it.
        return wrong(
            setting,
            "user and password belong in OTEL_EXPORTER_OTLP_HEADERS",
        );
    }
    let Some(host) = url.host().filter(|host| !host.is_empty()) else {
        return problem("it has no host");
    };
    let port = url.port_u16().unwrap_or(PORT);
    let address: Address = match format!("{host}:{port}").parse() {
        Ok(address) => address,
        Err(error) => return problem(&format!("{error}")),
    };
    let mut settings = ChannelSettings::new(host, vec![Target::Address(address)]);
    if secure {
        settings.tls = Some(ClientTls::load(ClientFiles {
            ca,
            alpn: vec!["h2".to_owned()],
            ..ClientFiles::default()
        })?);
    }
    Ok(settings)
}

/// Pairs `key=value`, separated by commas, with values percent-encoded (as W3C Baggage).
fn pairs(setting: &'static str, text: &str) -> Result<Vec<(String, String)>, TraceError> {
    let mut pairs = Vec::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return wrong(setting, "expected pairs `key=value`, separated by commas");
        };
        let Ok(value) = percent_decode_str(value.trim()).decode_utf8() else {
            return wrong(
                setting,
                format!("the value of `{}` is not UTF-8", key.trim()),
            );
        };
        pairs.push((key.trim().to_owned(), value.into_owned()));
    }
    Ok(pairs)
}

/// Metadata of each export. Their values may be secret and are not shown.
fn headers_of(setting: &'static str, text: &str) -> Result<HeaderMap, TraceError> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs(setting, text)? {
        let Ok(header) = name.to_ascii_lowercase().parse::<HeaderName>() else {
            return wrong(setting, format!("`{name}` is not a header name"));
        };
        let Ok(mut value) = HeaderValue::from_str(&value) else {
            return wrong(setting, format!("not a value that `{name}` can have"));
        };
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

fn resource(
    named: Option<&str>,
    default: &str,
    more: Option<&str>,
) -> Result<Vec<(String, String)>, TraceError> {
    let mut attributes = pairs("OTEL_RESOURCE_ATTRIBUTES", more.unwrap_or_default())?;
    let mut set = |key: &str, value: &str, stronger: bool| match attributes
        .iter_mut()
        .find(|(known, _)| known == key)
    {
        Some(known) if stronger => known.1 = value.to_owned(),
        Some(_) => {}
        None => attributes.push((key.to_owned(), value.to_owned())),
    };
    set("service.name", named.unwrap_or(default), named.is_some());
    set("service.version", env!("CARGO_PKG_VERSION"), false);
    set("telemetry.sdk.name", "attache", true);
    set("telemetry.sdk.language", "rust", true);
    set("telemetry.sdk.version", env!("CARGO_PKG_VERSION"), true);
    Ok(attributes)
}

fn sampler(name: Option<&str>, argument: Option<&str>) -> Result<Sampler, TraceError> {
    let Some(name) = name.map(str::trim) else {
        return Ok(Sampler::default());
    };
    match Sampler::named(name, argument) {
        Some(sampler) => Ok(sampler),
        None if name.ends_with("traceidratio") => wrong(
            "OTEL_TRACES_SAMPLER_ARG",
            format!(
                "`{}` is not a share from 0 to 1",
                argument.unwrap_or_default()
            ),
        ),
        None => wrong(
            "OTEL_TRACES_SAMPLER",
            format!(
                "`{name}` is not one of `always_on`, `always_off`, `traceidratio`, \
                 `parentbased_always_on`, `parentbased_always_off`, `parentbased_traceidratio`"
            ),
        ),
    }
}

fn milliseconds(
    setting: &'static str,
    value: Option<String>,
    default: u64,
) -> Result<Duration, TraceError> {
    number(setting, value, default, MAX_MILLISECONDS).map(Duration::from_millis)
}

fn number(
    setting: &'static str,
    value: Option<String>,
    default: u64,
    most: u64,
) -> Result<u64, TraceError> {
    let Some(value) = value else {
        return Ok(default);
    };
    match value.trim().parse() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => wrong(
            setting,
            format!("`{value}` is not a number from 1 to {most}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        endpoint: Option<&str>,
        environment: &[(&str, &str)],
    ) -> Result<Option<TraceSettings>, TraceError> {
        TraceSettings::read(endpoint, "attache", |name| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const SOME: Option<&str> = Some("http://127.0.0.1:4317");

    fn target(settings: &TraceSettings) -> String {
        settings.collector.endpoints.members()[0]
            .endpoint
            .to_string()
    }

    #[test]
    fn without_an_endpoint_tracing_is_off() {
        assert!(read(None, &[]).unwrap().is_none());
        assert!(read(None, &[(ENDPOINTS[1], " ")]).unwrap().is_none());
        for off in [
            ("OTEL_SDK_DISABLED", "true"),
            ("OTEL_TRACES_EXPORTER", "none"),
        ] {
            let environment = [(ENDPOINTS[1], "http://127.0.0.1:1"), off];
            assert!(read(None, &environment).unwrap().is_none(), "{off:?}");
        }
    }

    #[test]
    fn the_flag_counts_more_than_the_variable_for_traces_and_that_more_than_the_general_one() {
        let environment = [
            (ENDPOINTS[0], "http://127.0.0.1:2"),
            (ENDPOINTS[1], "http://127.0.0.1:3/"),
        ];
        let found =
            |endpoint, environment: &[_]| target(&read(endpoint, environment).unwrap().unwrap());
        assert_eq!(
            found(Some("http://127.0.0.1:1"), &environment),
            "127.0.0.1:1"
        );
        assert_eq!(found(None, &environment), "127.0.0.1:2");
        assert_eq!(found(None, &environment[1..]), "127.0.0.1:3");
        assert_eq!(found(Some("http://collector"), &[]), "collector:4317");
        assert_eq!(
            found(Some("unix:/run/otel.sock"), &[]),
            "unix:/run/otel.sock"
        );
    }

    #[test]
    fn the_service_has_a_name_and_may_have_other_attributes() {
        let of = |environment: &[_], key: &str| {
            let resource = read(SOME, environment).unwrap().unwrap().resource;
            let found: Vec<_> = resource
                .into_iter()
                .filter(|(known, _)| known == key)
                .collect();
            assert_eq!(found.len(), 1);
            found[0].1.clone()
        };
        let attributes = "service.name=b, deployment.environment.name=a%20b";
        let more = ("OTEL_RESOURCE_ATTRIBUTES", attributes);
        assert_eq!(of(&[], "service.name"), "attache");
        assert_eq!(of(&[more], "service.name"), "b");
        assert_eq!(of(&[more, ("OTEL_SERVICE_NAME", "c")], "service.name"), "c");
        assert_eq!(of(&[more], "deployment.environment.name"), "a b");
    }

    #[test]
    fn what_a_setting_cannot_be_is_told_by_its_name_and_without_secrets() {
        for (setting, value) in [
            (ENDPOINTS[1], "collector:4317"),
            (ENDPOINTS[1], "ftp://collector"),
            (ENDPOINTS[1], "http://collector/v1/traces"),
            (ENDPOINTS[1], "http://me:secret@collector"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=secret"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=%01secret"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
            ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
        ] {
            let environment = [(setting, value), (ENDPOINTS[0], "http://127.0.0.1:1")];
            let environment = match setting {
                _ if setting == ENDPOINTS[1] => &environment[..1],
                _ => &environment[..],
            };
            let error = read(None, environment).err().expect(value).to_string();
            assert!(error.starts_with(setting), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let share = [
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "7"),
        ];
        let error = read(SOME, &share).err().unwrap().to_string();
        assert!(error.starts_with("OTEL_TRACES_SAMPLER_ARG"), "{error}");
    }

    #[test]
    fn headers_go_along_marked_as_secrets() {
        let environment = [(
            "OTEL_EXPORTER_OTLP_HEADERS",
            "Authorization=Bearer%20x,a=b=c",
        )];
        let metadata = read(SOME, &environment).unwrap().unwrap().metadata;
        assert_eq!(metadata["authorization"], "Bearer x");
        assert_eq!(metadata["a"], "b=c");
        assert!(metadata["authorization"].is_sensitive());
    }
}
