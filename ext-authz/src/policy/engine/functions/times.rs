//! Times.

use chrono::DateTime;
use regorus::Value;

use super::{Answer, text};

pub(super) fn parse_time(arguments: &[Value]) -> Answer {
    let Some(text) = arguments.first().and_then(text) else {
        return Ok(None);
    };
    // RFC 3339 leaves more open than the reference takes.
    let strict = text.as_bytes().get(10) == Some(&b'T') && !text.ends_with('z');
    let time = DateTime::parse_from_rfc3339(text).ok().filter(|_| strict);
    let nanos = time.and_then(|time| time.timestamp_nanos_opt());
    Ok(nanos.map(Value::from))
}
