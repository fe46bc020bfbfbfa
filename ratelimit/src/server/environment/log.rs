//! What is logged and how: `LOG_LEVEL`, `LOG_FORMAT`.

use super::variables::Variables;

/// What is logged and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// The least level that is logged: `error`, `warn`, `info`, `debug` or `trace`. Default `warn`.
    pub level: &'static str,
    /// JSON lines with `@timestamp`, `@message` and `level`. Default false: text.
    pub json: bool,
}

/// The reference's levels, and ours that log as much.
const LEVELS: [(&str, &str); 8] = [
    ("panic", "error"),
    ("fatal", "error"),
    ("error", "error"),
    ("warn", "warn"),
    ("warning", "warn"),
    ("info", "info"),
    ("debug", "debug"),
    ("trace", "trace"),
];

impl Log {
    pub(super) fn read(variables: &mut Variables<'_>) -> Self {
        Self {
            level: variables.choice("LOG_LEVEL", &LEVELS, "warn"),
            json: variables
                .text("LOG_FORMAT", "text")
                .eq_ignore_ascii_case("json"),
        }
    }
}
