//! Pauses that an upstream asks for before a request is sent again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attache_service::config::Errors;
use http::{HeaderMap, HeaderName};
use rand::Rng;

use crate::config::{RateLimitedRetryBackOff, ResetHeaderFormat};

/// Envoy's bound on such a pause.
const LONGEST: Duration = Duration::from_secs(300);

/// Where the upstream says how long to wait (`rate_limited_retry_back_off`).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AskedFor {
    headers: Vec<(HeaderName, ResetHeaderFormat)>,
    longest: Duration,
}

impl AskedFor {
    pub(super) fn plan(raw: &RateLimitedRetryBackOff, errors: &mut Errors) -> Self {
        let mut headers = Vec::new();
        for header in &raw.reset_headers {
            match HeaderName::from_bytes(header.name.as_bytes()) {
                Ok(name) => {
                    headers.push((name, header.format.unwrap_or(ResetHeaderFormat::Seconds)));
                }
                Err(_) => {
                    let message = format!("`{}` is not a header", header.name.value);
                    errors.push(&header.name, message);
                }
            }
        }
        if let Some(written) = raw.max_interval.as_ref().filter(|at| at.value.is_zero()) {
            errors.push(written, "`max_interval` is more than 0s");
        }
        Self {
            headers,
            longest: raw.max_interval.as_ref().map_or(LONGEST, |at| at.value),
        }
    }

    /// The pause that these headers ask for: as long, or by chance up to half as long again.
    pub(crate) fn pause(&self, headers: &HeaderMap) -> Option<Duration> {
        self.asked(headers, SystemTime::now())
            .map(|pause| pause.mul_f64(1.0 + rand::rng().random::<f64>() / 2.0))
    }

    fn asked(&self, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
        self.headers.iter().find_map(|(name, format)| {
            let number: u64 = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
            let pause = match format {
                ResetHeaderFormat::Seconds => Duration::from_secs(number),
                ResetHeaderFormat::UnixTimestamp => {
                    let at = UNIX_EPOCH.checked_add(Duration::from_secs(number))?;
                    at.duration_since(now).ok()?
                }
            };
            (pause <= self.longest).then_some(pause)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_header_that_can_be_read_and_is_not_too_long_counts() {
        let asked = AskedFor {
            headers: vec![
                (
                    HeaderName::from_static("x-at"),
                    ResetHeaderFormat::UnixTimestamp,
                ),
                (
                    HeaderName::from_static("retry-after"),
                    ResetHeaderFormat::Seconds,
                ),
            ],
            longest: Duration::from_secs(60),
        };
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        for (at, after, wanted) in [
            (None, None, None),
            (None, Some("7"), Some(7)),
            (Some("1009"), Some("7"), Some(9)),
            (Some("999"), Some("7"), Some(7)),
            (Some("1061"), Some("7"), Some(7)),
            (None, Some("61"), None),
            (None, Some("soon"), None),
            (None, Some("99999999999999999999"), None),
            (Some("18446744073709551615"), None, None),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [("x-at", at), ("retry-after", after)] {
                if let Some(value) = value {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            let pause = asked.asked(&headers, now);
            assert_eq!(pause, wanted.map(Duration::from_secs), "{at:?} {after:?}");
        }
    }
}
