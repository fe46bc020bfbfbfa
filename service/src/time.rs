//! Times as they are written.

use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};

/// RFC 3339, in UTC, with milliseconds. Times that have no such form are written as nothing.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let time = DateTime::<Utc>::from_timestamp(seconds, since.subsec_nanos());
    time.map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339_says() {
        let since = |seconds, millis: u32| {
            SystemTime::UNIX_EPOCH + Duration::new(seconds, millis * 1_000_000)
        };
        assert_eq!(rfc3339(since(0, 0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(since(1_800_000_000, 7)), "2027-01-15T08:00:00.007Z");
        assert_eq!(rfc3339(since(1 << 62, 0)), "");
    }
}
