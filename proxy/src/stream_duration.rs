//! Bound on a whole stream: `max_stream_duration` of a route (Envoy's
//! `config.route.v3.RouteAction.MaxStreamDuration`).

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::MaxStreamDuration;

pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// What a route says of the bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamDuration {
    most: Option<Duration>,
    grpc: Option<GrpcTimeout>,
}

/// How `grpc-timeout` of a request counts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct GrpcTimeout {
    /// 0 is any.
    most: Duration,
    less: Duration,
}

impl StreamDuration {
    /// Resolves what was written.
    pub fn plan(raw: &MaxStreamDuration) -> Self {
        Self {
            most: raw.max_stream_duration,
            grpc: raw.grpc_timeout_header_max.map(|most| GrpcTimeout {
                most,
                less: raw.grpc_timeout_header_offset.unwrap_or_default(),
            }),
        }
    }

    /// The bound for a request with these headers, where the listener's is `inherited`.
    pub(crate) fn of(
        &self,
        headers: &mut HeaderMap,
        inherited: Option<Duration>,
    ) -> Option<Duration> {
        if let Some(grpc) = &self.grpc
            && let Some(asked) = headers.get(GRPC_TIMEOUT).and_then(read)
        {
            let most = match grpc.most.is_zero() {
                true => asked,
                false => asked.min(grpc.most),
            };
            let bound = most.saturating_sub(grpc.less);
            headers.insert(GRPC_TIMEOUT, write(bound));
            return Some(bound);
        }
        match self.most {
            Some(most) => Some(most).filter(|most| !most.is_zero()),
            None => inherited,
        }
    }
}

/// Reads a `grpc-timeout`: at most eight digits and a unit.
fn read(value: &HeaderValue) -> Option<Duration> {
    let (number, unit) = value
        .to_str()
        .ok()?
        .split_at_checked(value.len().checked_sub(1)?)?;
    if number.is_empty() || number.len() > 8 || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.checked_mul(3600)?),
        "M" => Duration::from_secs(number.checked_mul(60)?),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The same in milliseconds, or in seconds where those are too many.
fn write(bound: Duration) -> HeaderValue {
    let text = match bound.as_millis() {
        millis @ 0..=99_999_999 => format!("{millis}m"),
        _ => format!("{}S", bound.as_secs().min(99_999_999)),
    };
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("99999999S"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_grpc_are_read_as_their_specification_has_them() {
        for (text, wanted) in [
            ("1H", Some(3_600_000_000)),
            ("2M", Some(120_000_000)),
            ("3S", Some(3_000_000)),
            ("4m", Some(4000)),
            ("5u", Some(5)),
            ("6000n", Some(6)),
            ("99999999S", Some(99_999_999_000_000)),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("-1S", None),
            ("1s", None),
        ] {
            let read = read(&HeaderValue::from_static(text));
            assert_eq!(read, wanted.map(Duration::from_micros), "{text}");
        }
    }

    #[test]
    fn the_route_goes_before_the_listener_and_the_header_before_both_where_it_counts() {
        let secs = Duration::from_secs;
        let of = |route: (Option<u64>, Option<u64>, u64), header: Option<&'static str>| {
            let (most, grpc, less) = route;
            let duration = StreamDuration::plan(&MaxStreamDuration {
                max_stream_duration: most.map(secs),
                grpc_timeout_header_max: grpc.map(secs),
                grpc_timeout_header_offset: Some(secs(less)),
            });
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(GRPC_TIMEOUT, HeaderValue::from_static(header));
            }
            duration.of(&mut headers, Some(secs(50)))
        };
        for (route, header, wanted) in [
            ((None, None, 0), None, Some(50)),
            ((Some(5), None, 0), None, Some(5)),
            ((Some(0), None, 0), None, None),
            ((Some(5), None, 0), Some("9S"), Some(5)),
            ((Some(5), Some(0), 0), Some("9S"), Some(9)),
            ((Some(5), Some(7), 0), Some("9S"), Some(7)),
            ((Some(5), Some(7), 3), Some("9S"), Some(4)),
            ((Some(5), Some(0), 3), Some("2S"), Some(0)),
            ((Some(5), Some(7), 0), Some("soon"), Some(5)),
            ((Some(5), Some(7), 0), None, Some(5)),
        ] {
            assert_eq!(of(route, header), wanted.map(secs), "{route:?} {header:?}");
        }
    }
}
