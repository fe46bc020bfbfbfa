//! Logs: to stderr, as text or JSON lines, filtered by directives.

mod at_json;

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan, util::SubscriberInitExt};

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line an event; coloured on a terminal only.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
    /// One JSON object a line, with the names that the reference rate limit service has:
    /// `@timestamp`, `level`, `@message`, and the fields beside them.
    AtJson,
}

/// Why logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter text is not understood.
    #[error("log filter `{filter}`: {reason}")]
    BadFilter {
        /// The text as given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Logging was already started in this process.
    #[error("logging was already started")]
    AlreadyStarted,
}

/// Starts logging for the whole process.
///
/// `filter` holds `tracing` directives, such as `info` or `warn,attache_proxy=debug`. When it is
/// `None`, the environment variable `RUST_LOG` decides, else `info`.
///
/// # Errors
/// A malformed filter, or logging that already runs.
pub fn init(format: LogFormat, filter: Option<&str>) -> Result<(), TelemetryError> {
    let from_environment = std::env::var(EnvFilter::DEFAULT_ENV).ok();
    let filter = parse_filter(filter.or(from_environment.as_deref()))?;
    let stderr = std::io::stderr;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_span_events(FmtSpan::NONE);
    let started = match format {
        LogFormat::Text => builder
            .with_ansi(stderr().is_terminal())
            .finish()
            .try_init(),
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .finish()
            .try_init(),
        LogFormat::AtJson => builder
            .with_ansi(false)
            .event_format(at_json::AtJson)
            .finish()
            .try_init(),
    };
    started.map_err(|_| TelemetryError::AlreadyStarted)
}

fn parse_filter(text: Option<&str>) -> Result<EnvFilter, TelemetryError> {
    let text = text.map(str::trim).filter(|text| !text.is_empty());
    let filter = text.unwrap_or("info");
    EnvFilter::try_new(filter).map_err(|error| TelemetryError::BadFilter {
        filter: filter.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_filter_the_level_is_info() {
        assert_eq!(parse_filter(None).unwrap().to_string(), "info");
        assert_eq!(parse_filter(Some(" ")).unwrap().to_string(), "info");
    }

    #[test]
    fn a_malformed_filter_is_named() {
        let error = parse_filter(Some("attache=loud")).unwrap_err().to_string();
        assert!(error.contains("`attache=loud`"), "{error}");
    }
}
