//! Durations and sizes.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::error::Errors;
use super::node::{Node, Value};
use super::scalar::VARIABLE;
use super::schema::Schemas;
use super::value::ConfigValue;

/// Protobuf's bound: about ten thousand years.
const MAX_SECONDS: u64 = 315_576_000_000;

const DURATION_UNITS: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl ConfigValue for Duration {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        let what = "a duration such as `0.25s`, `250ms`, `5m` or `1h`";
        match &node.value {
            Value::String(text) => match duration(text) {
                Ok(value) => return Some(value),
                Err(Some(problem)) => errors.invalid(node, problem),
                Err(None) => errors.expected(node, what),
            },
            Value::Int(number) if *number >= 0 && node.shown.is_none() => {
                errors.invalid(node, &format!("a duration needs a unit: `{number}s`"));
            }
            _ => errors.expected(node, what),
        }
        None
    }

    fn encode(&self) -> Option<Json> {
        Some(Json::String(format_duration(*self)))
    }

    fn schema(_schemas: &mut Schemas) -> Json {
        let pattern = format!(r"^\d*\.?\d+(ns|us|ms|s|m|h)$|{VARIABLE}");
        json!({ "type": "string", "pattern": pattern })
    }
}

/// Reads a duration; the error says what is wrong, or nothing when it is no duration at all.
fn duration(text: &str) -> Result<Duration, Option<&'static str>> {
    let number_end = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+')))
        .ok_or(None)?;
    let (number, unit) = text.split_at_checked(number_end).ok_or(None)?;
    let unit = DURATION_UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, nanos)| *nanos)
        .ok_or(None)?;
    if number.starts_with('-') {
        return Err(Some("a duration cannot be negative"));
    }
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return Err(None);
    }
    let too_long = Some("longer than a duration can be");
    let whole = match whole {
        "" => 0,
        digits => digits.parse::<u128>().map_err(|_| too_long)?,
    };
    let fraction = fraction.trim_end_matches('0');
    let places = u32::try_from(fraction.len()).unwrap_or(u32::MAX);
    if places > 18 {
        return Err(Some("finer than a nanosecond"));
    }
    let unit = u128::from(unit);
    let scale = 10_u128.pow(places);
    let part = match fraction {
        "" => 0,
        digits => digits.parse::<u128>().map_err(|_| None)?,
    };
    if !(part * unit).is_multiple_of(scale) {
        return Err(Some("finer than a nanosecond"));
    }
    let nanos = whole
        .checked_mul(unit)
        .and_then(|nanos| nanos.checked_add(part * unit / scale))
        .ok_or(too_long)?;
    let seconds = u64::try_from(nanos / 1_000_000_000)
        .ok()
        .filter(|seconds| *seconds <= MAX_SECONDS)
        .ok_or(too_long)?;
    let rest = u32::try_from(nanos % 1_000_000_000).map_err(|_| None)?;
    Ok(Duration::new(seconds, rest))
}

/// Reads a duration as configuration files write it: `0.25s`, `250ms`, `5m`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    duration(text).ok()
}

/// A duration as proto JSON writes it: `0.25s`.
pub fn format_duration(value: Duration) -> String {
    match value.subsec_nanos() {
        0 => format!("{}s", value.as_secs()),
        nanos => {
            let fraction = format!("{nanos:09}");
            format!("{}.{}s", value.as_secs(), fraction.trim_end_matches('0'))
        }
    }
}

/// A number of bytes, written `4096`, `64KiB`, `1MiB` or `2GiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

impl Size {
    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// The number of bytes as a length in memory, at most the largest there is.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

const SIZE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

impl ConfigValue for Size {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        let what = "a size such as `4096`, `64KiB` or `1MiB`";
        let size = match &node.value {
            Value::Int(number) => u64::try_from(*number).ok(),
            Value::String(text) => size(text),
            _ => None,
        };
        if size.is_none() {
            errors.expected(node, what);
        }
        size.map(Size)
    }

    fn encode(&self) -> Option<Json> {
        Some(Json::from(self.0))
    }

    fn schema(_schemas: &mut Schemas) -> Json {
        let pattern = format!(r"^\d+(B|KiB|MiB|GiB)?$|{VARIABLE}");
        json!({ "type": ["integer", "string"], "minimum": 0, "pattern": pattern })
    }
}

fn size(text: &str) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    let unit = match unit {
        "" => 1,
        unit => SIZE_UNITS.iter().find(|(name, _)| *name == unit)?.1,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let nanos = |text: &str| duration(text).map(|value| value.as_nanos());
        assert_eq!(nanos("0.25s"), Ok(250_000_000));
        assert_eq!(nanos("250ms"), Ok(250_000_000));
        assert_eq!(nanos("7us"), Ok(7_000));
        assert_eq!(nanos("1.5m"), Ok(90_000_000_000));
        assert_eq!(nanos("2h"), Ok(7_200_000_000_000));
        assert_eq!(nanos("0s"), Ok(0));
        assert_eq!(nanos(".5s"), Ok(500_000_000));
        assert_eq!(nanos("0.000000001s"), Ok(1));
        assert_eq!(nanos("0.1000000000000000000000s"), Ok(100_000_000));
        for text in [
            "", "s", "5", "5 s", "5x", "1.2.3s", "+5s", "5-s", ".s", "1e3s",
        ] {
            assert_eq!(nanos(text), Err(None), "{text}");
        }
        assert_eq!(nanos("-1s"), Err(Some("a duration cannot be negative")));
        assert_eq!(nanos("0.0000000001s"), Err(Some("finer than a nanosecond")));
        assert_eq!(nanos("0.00001ns"), Err(Some("finer than a nanosecond")));
        let too_long = Err(Some("longer than a duration can be"));
        assert_eq!(nanos("315576000001s"), too_long);
        assert_eq!(nanos(&format!("{}h", u128::MAX)), too_long);
        assert_eq!(nanos(&format!("{}s", "9".repeat(100))), too_long);
    }

    #[test]
    fn durations_are_written_like_proto_json() {
        let written = |text: &str| duration(text).map(format_duration);
        assert_eq!(written("250ms").as_deref(), Ok("0.25s"));
        assert_eq!(written("1m").as_deref(), Ok("60s"));
        assert_eq!(written("1ns").as_deref(), Ok("0.000000001s"));
    }

    #[test]
    fn sizes() {
        assert_eq!(size("64KiB"), Some(65_536));
        assert_eq!(size("1MiB"), Some(1 << 20));
        assert_eq!(size("2GiB"), Some(2 << 30));
        assert_eq!(size("12"), Some(12));
        assert_eq!(size("12B"), Some(12));
        for text in ["", "KiB", "64K", "64 KiB", "-1", "1.5MiB", "99999999999GiB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
