//! Logs: to stderr, as text or JSON lines, filtered by directives.

mod at_json;

use std::{
    fmt,
    io::IsTerminal,
    sync::{Mutex, OnceLock, PoisonError},
};

use tracing_subscriber::{
    EnvFilter, filter::LevelFilter, fmt::format::FmtSpan, reload, reload::Handle,
    util::SubscriberInitExt,
};

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
    /// Logging has ended.
    #[error("the filter of the log cannot be changed: {0}")]
    Fixed(#[from] reload::Error),
}

/// What is logged by this process, to be looked at and changed while it runs.
pub struct LogFilter {
    set: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
    directives: Mutex<String>,
}

static FILTER: OnceLock<LogFilter> = OnceLock::new();

impl LogFilter {
    /// That of this process; nothing before [`init`].
    pub fn of_process() -> Option<&'static Self> {
        FILTER.get()
    }

    /// The directives that hold, as they were written.
    pub fn directives(&self) -> String {
        let directives = self.directives.lock();
        directives.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs what these directives say from now on; see [`init`].
    ///
    /// # Errors
    /// Malformed directives; the old ones go on.
    pub fn set(&self, directives: &str) -> Result<(), TelemetryError> {
        let filter = parse_filter(Some(directives))?;
        let mut known = self
            .directives
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        (self.set)(filter)?;
        directives.trim().clone_into(&mut known);
        Ok(())
    }

    /// Changes what is logged, by directives that are put to those that hold: one for a target,
    /// such as `attache_proxy=debug`, takes the place of what was said of this target; with a
    /// level alone, such as `info`, nothing of what was said before holds on.
    ///
    /// # Errors
    /// Malformed directives, among them a word alone that is no level; the old ones go on.
    pub fn change(&self, directives: &str) -> Result<(), TelemetryError> {
        let asked: Vec<_> = split(directives).collect();
        let bad = |reason: String| TelemetryError::BadFilter {
            filter: directives.to_owned(),
            reason,
        };
        if asked.is_empty() {
            return Err(bad("there is no directive".to_owned()));
        }
        let levels = asked.iter().filter(|one| target(one).is_none());
        let mut whole = false;
        for level in levels {
            level.parse::<LevelFilter>().map_err(|_| {
                bad(format!(
                    "`{level}` is no level: off, error, warn, info, debug, trace"
                ))
            })?;
            whole = true;
        }
        // Shows what is wrong with them alone.
        parse_filter(Some(directives))?;
        if whole {
            return self.set(directives);
        }
        let before = self.directives();
        let stays = |one: &&str| {
            let named = target(one);
            named.is_none() || asked.iter().all(|other| target(other) != named)
        };
        let kept = split(&before).filter(stays);
        self.set(
            &kept
                .chain(asked.iter().copied())
                .collect::<Vec<_>>()
                .join(","),
        )
    }

    fn new<S: 'static>(handle: Handle<EnvFilter, S>, directives: String) -> Self
    where
        Handle<EnvFilter, S>: Send + Sync,
    {
        Self {
            set: Box::new(move |filter| handle.reload(filter)),
            directives: Mutex::new(directives),
        }
    }
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogFilter {}", self.directives())
    }
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
    let directives = filter.to_string();
    let stderr = std::io::stderr;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_span_events(FmtSpan::NONE);
    let (started, filter) = match format {
        LogFormat::Text => {
            let ansi = stderr().is_terminal();
            let builder = builder.with_ansi(ansi).with_filter_reloading();
            let filter = LogFilter::new(builder.reload_handle(), directives);
            (builder.finish().try_init(), filter)
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_current_span(false);
            let builder = builder.with_filter_reloading();
            let filter = LogFilter::new(builder.reload_handle(), directives);
            (builder.finish().try_init(), filter)
        }
        LogFormat::AtJson => {
            let builder = builder.with_ansi(false).event_format(at_json::AtJson);
            let builder = builder.with_filter_reloading();
            let filter = LogFilter::new(builder.reload_handle(), directives);
            (builder.finish().try_init(), filter)
        }
    };
    started.map_err(|_| TelemetryError::AlreadyStarted)?;
    // Nobody else gets here: logging starts once.
    let _ = FILTER.set(filter);
    Ok(())
}

/// The directives of a list.
fn split(directives: &str) -> impl Iterator<Item = &str> {
    let parts = directives.split(',').map(str::trim);
    parts.filter(|one| !one.is_empty())
}

/// What a directive is about; nothing when it is a level alone.
fn target(directive: &str) -> Option<&str> {
    match directive.rsplit_once('=') {
        Some((target, _)) => Some(target.trim()),
        None if directive.contains('[') || directive.contains("::") => Some(directive),
        None => None,
    }
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
    fn what_is_logged_can_be_changed_while_the_process_runs() {
        let builder = tracing_subscriber::fmt()
            .with_env_filter(parse_filter(None).unwrap())
            .with_writer(std::io::sink)
            .with_filter_reloading();
        let filter = LogFilter::new(builder.reload_handle(), "info".to_owned());
        let _guard = builder.finish().set_default();

        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        filter.set("debug").unwrap();
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        assert_eq!(filter.directives(), "debug");

        let error = filter.set("attache=loud").unwrap_err().to_string();
        assert!(error.contains("`attache=loud`"), "{error}");
        assert_eq!(filter.directives(), "debug");
    }

    #[test]
    fn a_change_of_one_target_leaves_the_others() {
        let builder = tracing_subscriber::fmt()
            .with_env_filter(parse_filter(None).unwrap())
            .with_writer(std::io::sink)
            .with_filter_reloading();
        let filter = LogFilter::new(builder.reload_handle(), "info,h2=off".to_owned());
        let _guard = builder.finish().set_default();
        for (asked, then) in [
            ("attache_proxy=debug", "info,h2=off,attache_proxy=debug"),
            ("h2=warn", "info,attache_proxy=debug,h2=warn"),
            (
                " a[b{c}]=trace ",
                "info,attache_proxy=debug,h2=warn,a[b{c}]=trace",
            ),
            ("warn,h2=off", "warn,h2=off"),
            ("DEBUG", "DEBUG"),
        ] {
            filter.change(asked).unwrap();
            assert_eq!(filter.directives(), then, "{asked}");
        }
        for (asked, reason) in [
            ("", "no directive"),
            (",", "no directive"),
            ("loud", "`loud` is no level"),
            ("info,attache_proxy", "`attache_proxy` is no level"),
            ("attache=loud", "attache=loud"),
        ] {
            let error = filter.change(asked).unwrap_err().to_string();
            assert!(error.contains(reason), "{asked}: {error}");
            assert_eq!(filter.directives(), "DEBUG");
        }
    }

    #[test]
    fn a_malformed_filter_is_named() {
        let error = parse_filter(Some("attache=loud")).unwrap_err().to_string();
        assert!(error.contains("`attache=loud`"), "{error}");
    }
}
